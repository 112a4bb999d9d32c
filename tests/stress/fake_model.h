/* SPDX-License-Identifier: Apache-2.0
 *
 * fake_model.h - model.h without a model: what the KV of a position holds is a hash of
 * all tokens up to there, and the next token is drawn from it. So whatever the engine
 * does with blocks shows in the tokens, and anyone can say what the tokens must be.
 */
#ifndef FAKE_MODEL_H
#define FAKE_MODEL_H

#include "model.h"

struct pl_model {
    int32_t vocab, block_size, max_positions;
    int32_t n_blocks;
    uint64_t *kv;
    int32_t depth;
    pl_step *flying[2]; /* oldest first; computed when they are collected */
    int32_t n_flying;
    int fail_submit, fail_collect; /* one in so many fails; 0: none */
    bool fail_next;
    uint64_t n_steps;
    int64_t n_rows; /* computed so far */
};

uint64_t fake_next(uint64_t context, int32_t token);
int32_t fake_token(const pl_model *m, uint64_t context);
/* What comes after `tokens`. */
int32_t fake_expect(const pl_model *m, const int32_t *tokens, int32_t n);

#endif
