/* SPDX-License-Identifier: Apache-2.0
 *
 * sample.h - from logits to a token: penalties, masks, temperature, top-k/p, the draw.
 *
 * Owns     nothing: all it needs to know about a sequence is in pl_sampler.
 * Thread   step (the CPU device calls it, perhaps on several threads at once).
 *
 * The order is vLLM V1's: raw logprobs; allowed ids; bad words; min_tokens; logit_bias;
 * penalties; greedy if temperature is 0; temperature; min_p; top_k; top_p; draw.
 */
#ifndef PL_SAMPLE_H
#define PL_SAMPLE_H

#include "base.h"

typedef struct pl_sampler {
    pl_params params;
    int32_t position;      /* of the token to be drawn: with the seed, it keys the draw */
    const int32_t *tokens; /* prompt and output so far, for penalties and bad words */
    int32_t n_prompt, n_tokens;
    const int32_t *allowed; /* NULL: all */
    int32_t n_allowed;
    const int32_t *bias_ids;
    const float *bias;
    int32_t n_bias;
    const int32_t *bad_words; /* each: its length, then its ids */
    int32_t bad_words_len;    /* int32s in all */
    const int32_t *end_ids;   /* eos and stop ids, masked before min_tokens */
    int32_t n_end_ids;
} pl_sampler;

typedef struct pl_sampled {
    int32_t token;
    int32_t n_top; /* 0 without logprobs, else 1 + params.logprobs (at most vocab) */
    const pl_logprob *top; /* the sampled token, then the best, best first */
} pl_sampled;

/* Scratch for one caller at a time; `vocab` floats and more. */
typedef struct pl_sample_scratch pl_sample_scratch;
PL_PLUGIN pl_sample_scratch *pl_sample_scratch_open(int32_t vocab);
PL_PLUGIN void pl_sample_scratch_close(pl_sample_scratch *s);

/* Draws from `logits` (vocab of them, overwritten). `top` has room for 1 +
 * params.logprobs. */
PL_PLUGIN int32_t pl_sample(pl_sample_scratch *scratch, float *logits, int32_t vocab,
                            const pl_sampler *sampler, pl_logprob *top);
/* Logprob and rank of `token` and the n_best best of a row; `out` has room for 1 +
 * n_best. */
PL_PLUGIN void pl_logprobs(pl_sample_scratch *scratch, const float *logits, int32_t vocab,
                           int32_t token, int32_t n_best, pl_logprob *out);
/* `log_sum`: ln of the sum of e to each logit. */
PL_PLUGIN pl_logprob pl_logprob_of(float logit, int32_t token, int32_t rank,
                                   double log_sum);

#endif
