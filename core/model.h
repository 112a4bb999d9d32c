/* SPDX-License-Identifier: Apache-2.0
 *
 * model.h - a transformer as a walk over device ops; what the engine asks of it each
 * step.
 *
 * Owns     the weights as its device holds them, the KV blocks' bytes.
 * Ignores  who the sequences belong to, which blocks are whose.
 * Thread   lua while loading; then step.
 *
 * A step is split in two so that a device may work while the host does: submit says what
 * to compute and returns, collect brings the tokens. At most one step is in flight.
 *
 * Exactness: what comes out for a row depends on that row, the tokens before it in its
 * sequence, and the model. Not on the other rows, on how the prompt was cut into steps,
 * or on which of its blocks were found in the cache.
 */
#ifndef PL_MODEL_H
#define PL_MODEL_H

#include "base.h"
#include "sample.h"

typedef enum pl_want {
    PL_WANT_NONE = 0,  /* rows only fill the cache */
    PL_WANT_TOKEN = 1, /* sample after the last row */
    PL_WANT_ROWS = 2,  /* or'ed: logprobs of given tokens after rows (prompt_logprobs) */
} pl_want;

typedef struct pl_batch_seq {
    int32_t first, n_rows; /* its rows of the batch's tokens */
    int32_t position;      /* of its first row: that many tokens are in the cache */
    int32_t n_blocks;
    const int32_t *blocks;     /* the sequence's blocks so far, from its start */
    int32_t want;              /* pl_want */
    const pl_sampler *sampler; /* for PL_WANT_TOKEN */
    int32_t n_prompt_top;      /* PL_WANT_ROWS: this many best besides the given token */
    const int32_t *targets; /* PL_WANT_ROWS: the token after each row, n_rows; -1: skip */
} pl_batch_seq;

typedef struct pl_batch {
    int32_t n_rows, n_seqs;
    const int32_t *tokens;    /* n_rows */
    const pl_batch_seq *seqs; /* in order of their rows */
} pl_batch;

typedef struct pl_result { /* of one sequence of the batch; lives until the next submit */
    pl_sampled sampled;    /* PL_WANT_TOKEN */
    const pl_logprob *rows; /* PL_WANT_ROWS: n_rows x (1 + n_prompt_top) */
} pl_result;

/* Room for n_blocks blocks of KV; an engine opens it, and closes it at its end. */
pl_status pl_model_kv_open(pl_model *m, int32_t n_blocks);
void pl_model_kv_close(pl_model *m);
/* The bytes of one block (all layers of it lie together), for transfers. */
void *pl_model_block(pl_model *m, int32_t block, size_t *bytes);
int32_t pl_model_vocab(const pl_model *m);
int32_t pl_model_block_size(const pl_model *m);
int32_t pl_model_max_positions(const pl_model *m);

/* Starts the step. The batch and all it points to must live until it is collected. */
pl_status pl_model_submit(pl_model *m, const pl_batch *batch);
/* The results, n_seqs of them; PL_EAGAIN if they are not there within timeout_ms. */
pl_status pl_model_collect(pl_model *m, int timeout_ms, const pl_result **out);

#endif
