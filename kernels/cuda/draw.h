/* SPDX-License-Identifier: Apache-2.0
 *
 * draw.h - from logits to a token, as core/sample.c does it and with the same result.
 *
 * Owns     nothing.
 * Ignores  sequences: draw.c says what is wanted of a row.
 * Thread   as kernels.h.
 */
#ifndef PL_CUDA_DRAW_H
#define PL_CUDA_DRAW_H

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PL_CU_BEST = 20, /* logprobs besides the token's own, at most */
    PL_CU_BIASED = 512
};

typedef struct pl_cu_list { /* n int32s of what the step is told of, from `at` on */
    int32_t at, n;
} pl_cu_list;

typedef struct pl_cu_sampling { /* how a token is drawn from a row */
    double u;                   /* the draw: from 0 to below 1 */
    float scale;                /* 1 / temperature; 0: the best token */
    float least;                /* distances from the best one below it are out: min_p */
    float top_p, repetition, presence, frequency;
    int32_t top_k;     /* 0: all */
    int32_t n_best;    /* logprobs, besides the token's own; -1: none */
    int32_t row, seq;  /* of the logits at hand; of the step: where the token goes */
    int32_t last;      /* the token before it; as pl_cu_row's */
    int32_t fallback;  /* where the masks leave nothing */
    pl_cu_list tokens; /* so far, for penalties: the first n_prompt are the prompt's */
    int32_t n_prompt;
    pl_cu_list bias;    /* pairs of an id and a float */
    pl_cu_list masks;   /* pairs: what `last` must be (-1: anything), and the id */
    pl_cu_list allowed; /* a bit for each id; none: all */
} pl_cu_sampling;

typedef struct pl_cu_top {
    int32_t token, rank;
    float logit;
} pl_cu_top;

typedef struct pl_cu_said { /* of a row that logprobs are wanted of */
    uint64_t total; /* weights of all tokens, of which `best` is the greatest logit */
    float best;
    pl_cu_top top[1 + PL_CU_BEST]; /* the token drawn, then the best */
} pl_cu_said;

typedef struct pl_cu_sampler {
    const float *logits;
    float *edited; /* room for as many */
    int32_t vocab, n;
    const pl_cu_sampling *rows; /* n of them */
    const int32_t *told;
    const uint64_t *before; /* tokens drawn by the step before */
    uint64_t *drawn;        /* by sequence, as pl_cu_argmax leaves them */
    pl_cu_said *said;       /* by sequence */
} pl_cu_sampler;

cudaError_t pl_cu_sample(cudaStream_t s, const pl_cu_sampler *p);

#ifdef __cplusplus
}
#endif
#endif
