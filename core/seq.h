/* SPDX-License-Identifier: Apache-2.0
 *
 * seq.h - a sequence: a prompt, the tokens generated so far, and its parameters.
 *
 * Owns     its tokens, its parameters, the lists that constrain the next token.
 * Ignores  blocks, steps, who waits for it.
 * Thread   one at a time: whoever holds it, then the engine.
 */
#ifndef PL_SEQ_H
#define PL_SEQ_H

#include "sample.h"

enum {
    PL_NAME_BYTES = 32
};

typedef struct pl_ids { /* a list of token ids */
    int32_t *ids;
    int32_t n;
} pl_ids;

struct pl_seq {
    int32_t id;
    pl_params params;
    int32_t *tokens;  /* prompt, then output */
    int32_t n_given;  /* tokens it was opened with */
    int32_t n_prompt; /* n_given, less those that pl_seq_resume called output */
    int32_t n_tokens, cap;
    bool uncounted; /* pl_seq_uncounted */
    pl_ids ends;    /* the first n_eos are eos, the rest stop ids */
    int32_t n_eos;
    pl_ids allowed;
    pl_ids bias_ids;
    float *bias;
    pl_ids bad_words; /* each: its length, then its ids */
    char *salt;       /* NULL: none */
    size_t salt_len;
    char *label; /* NULL: none */
    size_t label_len;
    int32_t n_remote;
    uint64_t ticket;   /* of whoever may fetch its KV, or brings it; 0: nobody */
    bool lends;        /* its prompt's KV may be fetched */
    uint64_t lender;   /* the process that brings it, by its id; 0: this one */
    uint64_t named_by; /* pl_namer_id of who named its blocks ahead; 0: nobody */
    void *names;       /* heap; PL_NAME_BYTES each */
    int32_t n_names;
    pl_sampler sampler;
};

/* Whether all ids in it are below `vocab`, and such things; PL_EINVAL says which is
 * not. */
pl_status pl_seq_check(const pl_seq *s, int32_t vocab);
/* All bad words at once: each its length, then its ids. */
pl_status pl_seq_bad_words(pl_seq *s, const int32_t *ids, int n);
/* The same once more, as it stands now, under an id of its own. */
pl_seq *pl_seq_copy(const pl_seq *s);
/* Gives it a new id, and takes all its tokens for given: it begins again where it is. */
void pl_seq_renew(pl_seq *s);
void pl_seq_reserve(pl_seq *s, int32_t n_tokens);
void pl_seq_append(pl_seq *s, int32_t token);
/* What a sampler must know to draw the next token; lives until the next append. */
const pl_sampler *pl_seq_sampler(pl_seq *s);
/* Whether its last token ends it, for a total of at most `max_tokens` tokens, prompt and
 * all. Sets the reason: a stop id, or -1. */
int pl_seq_finish(const pl_seq *s, int32_t max_tokens, int32_t *stop_reason);

#endif
