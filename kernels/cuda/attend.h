/* SPDX-License-Identifier: Apache-2.0
 *
 * attend.h - attention on the GPU: what is told of it, and functions that launch it.
 *
 * Owns     nothing.
 * Ignores  how keys and values lie in the cache: attend.cuh.
 * Thread   as kernels.h.
 */
#ifndef PL_CUDA_ATTEND_H
#define PL_CUDA_ATTEND_H

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PL_CU_SPLIT = 128, /* positions of a split of attention */
    PL_CU_FEW = 16,    /* items of a tile of few queries, and of one of many */
    PL_CU_MANY = 128,
    PL_CU_MAX_DIM = 256 /* of a head */
};

typedef struct pl_cu_queries { /* a tile of attention: queries of a sequence */
    int32_t row, position;     /* of the sequence's first */
    int32_t first, n;          /* of its rows x heads a KV head */
    int32_t table, slot;       /* the latter: which partial result is its first */
} pl_cu_queries;

typedef struct pl_cu_attention {
    const pl_cu_row *rows;
    const int32_t *tables;
    int32_t n_rows, n_heads, n_kv_heads, head_dim, block_size, layer, n_layers, window;
    int32_t pairs; /* of rope */
    float eps, scale;
    const float *rope; /* cos, sin: head_dim / 2 each a position */
    const float *q_norm, *k_norm, *qkv;
    uint16_t *q, *kv;
    float *partial;
    int32_t *counts; /* of CTAs that are done, by tile of few and KV head: all 0 between
                        steps */
} pl_cu_attention;

int64_t pl_cu_kv_values(const pl_cu_attention *a); /* of a block */
int pl_cu_head_width(int head_dim);                /* values of a head of q */
int pl_cu_partial(int head_dim); /* floats of a query's partial result */
cudaError_t pl_cu_heads(cudaStream_t s, const pl_cu_attention *a);
/* Tiles of at most PL_CU_MANY queries, each walked over all its splits. */
cudaError_t pl_cu_attend_many(cudaStream_t s, const pl_cu_attention *a,
                              const pl_cu_queries *tiles, int n, pl_cu_acts out);
/* Tiles of at most PL_CU_FEW queries, a CTA a split; the last of a tile's merges them. */
cudaError_t pl_cu_attend_few(cudaStream_t s, const pl_cu_attention *a,
                             const pl_cu_queries *tiles, int n, int splits,
                             pl_cu_acts out);
/* The same, by CTAs that walk one tile after the other over all its splits; how many
 * there are of these, 0: none on this GPU. */
cudaError_t pl_cu_attend_walk(cudaStream_t s, const pl_cu_attention *a,
                              const pl_cu_queries *tiles, int n, pl_cu_acts out);
int pl_cu_walkers(void);

#ifdef __cplusplus
}
#endif
#endif
