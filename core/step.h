/* SPDX-License-Identifier: Apache-2.0
 *
 * step.h - one step of an engine: what to compute, for whom, and what came of it.
 *
 * Owns     all that the step needs: tokens, block tables, samplers are copied into it.
 * Ignores  who the sequences belong to, how they are computed.
 * Thread   step. From submit to collect it is the device's; then the engine's again.
 *
 *     pl_step_clear(s);
 *     pl_step_seq *q = pl_step_add(s, position, tokens, n_rows, blocks, n_blocks);
 *     pl_step_want_token(s, q, sampler);      then submit, collect: q->sampled is there
 *
 * Two steps may be in flight. Where the second reads a token that the first is still
 * about to draw, its row holds pl_step_drawn(i) instead: whatever sequence i of the step
 * before draws.
 */
#ifndef PL_STEP_H
#define PL_STEP_H

#include "sample.h"

typedef enum pl_want {
    PL_WANT_NONE = 0,   /* rows only fill the cache */
    PL_WANT_TOKEN = 1,  /* sample after the last row */
    PL_WANT_ROWS = 2,   /* or'ed: logprobs of given tokens after rows (prompt_logprobs) */
    PL_WANT_LOGITS = 4, /* or'ed: the logits after each row */
} pl_want;

typedef struct pl_step_seq {
    int32_t first, n_rows; /* its rows of the step's tokens */
    int32_t position;      /* of its first row: that many tokens are in the cache */
    int32_t n_blocks;
    const int32_t *blocks;  /* of the whole sequence so far, from its start */
    int32_t want;           /* pl_want */
    pl_sampler sampler;     /* PL_WANT_TOKEN */
    int32_t n_top;          /* PL_WANT_ROWS: this many best besides the given token */
    const int32_t *targets; /* PL_WANT_ROWS: the token after each row; -1: skip it */

    /* What came of it. */
    pl_sampled sampled; /* PL_WANT_TOKEN; .token is -1 until it is drawn */
    pl_logprob *top;    /* PL_WANT_TOKEN: room for the sampled token's logprobs */
    pl_logprob *rows;   /* PL_WANT_ROWS: n_rows x (1 + n_top); token -1 where skipped */
    float *logits;      /* PL_WANT_LOGITS: n_rows x vocab, the caller's memory */
} pl_step_seq;

typedef struct pl_step {
    int32_t n_rows, n_seqs;
    int32_t *tokens;   /* of its rows: ids, or pl_step_drawn */
    pl_step_seq *seqs; /* in order of their rows */

    int32_t max_rows, max_seqs;
    struct pl_step_chunk *chunks; /* what the sequences point to */
} pl_step;

/* Stands for the token that sequence i of the step before draws. */
static inline int32_t pl_step_drawn(int32_t i)
{
    return -1 - i;
}

pl_step *pl_step_open(int32_t max_rows, int32_t max_seqs);
void pl_step_close(pl_step *s);
void pl_step_clear(pl_step *s);
/* One sequence more. Copies the tokens of its rows and its block table. */
pl_step_seq *pl_step_add(pl_step *s, int32_t position, const int32_t *tokens,
                         int32_t n_rows, const int32_t *blocks, int32_t n_blocks);
/* One row more for the sequence added last: what sequence i of the step before draws. */
void pl_step_add_drawn(pl_step *s, pl_step_seq *q, int32_t i);
/* A token after its last row. Copies the sampler, and the tokens before the last where it
 * reads them; its other lists must stay as they are until the step is collected. */
void pl_step_want_token(pl_step *s, pl_step_seq *q, const pl_sampler *sampler);
/* Logprobs of `targets` and of the n_top best, after each of its first n_targets rows. */
void pl_step_want_rows(pl_step *s, pl_step_seq *q, const int32_t *targets,
                       int32_t n_targets, int32_t n_top);
/* Puts the tokens that `before` has drawn in place of those that stand for them. */
PL_PLUGIN void pl_step_resolve(pl_step *s, const pl_step *before);

#endif
