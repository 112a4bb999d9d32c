/* SPDX-License-Identifier: Apache-2.0
 *
 * kernels.h - what the CUDA device's C and its kernels share: how weights, activations
 * and KV lie in the GPU's memory, and a function for each kernel that launches it.
 *
 * Owns     nothing.
 * Ignores  steps, sequences, plans: cuda_own.h.
 * Thread   the caller's; kernels run in the order of the stream.
 *
 * Exactness: every product of a matrix is summed in one order, whatever the kernel: K in
 * slices, each a chain of mma.m16n8k16 from zero, slices added in ascending order in f32.
 * The m operand is always weights, 16 rows a tile.
 */
#ifndef PL_CUDA_KERNELS_H
#define PL_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __CUDACC__
#define PL_CU_BOTH __host__ __device__
#else
#define PL_CU_BOTH
#endif

enum {
    PL_CU_SLICE = 256, /* columns of a slice, where there are slices */
    PL_CU_FUSED = 8    /* at most that many rows are normed by the product itself */
};

/* Tiles of 8 rows by 32 columns, those of the same rows together, with zeros after them up
 * to a multiple of 64 columns and 16 rows. A tile has 8 values for each of a warp's lanes,
 * as an mma's n operand wants them, and as half of its m operand. Lane l: g = l / 4,
 * t = l % 4; row g, columns 2t, 2t + 1, 2t + 8, 2t + 9, then the same 16 columns on.
 */
typedef struct pl_cu_weights {
    void *data;
    int32_t n, k;
    int32_t f16; /* else bf16 */
} pl_cu_weights;

PL_CU_BOTH static inline int32_t pl_cu_tiles(int32_t n)
{
    return (n + 15) / 16;
}

/* Steps of 16 columns, from 8 rows to the next 8: 256 bytes each. */
PL_CU_BOTH static inline int32_t pl_cu_pitch(int32_t k)
{
    return (k + 63) / 64 * 4;
}

PL_CU_BOTH static inline size_t pl_cu_weight_bytes(int32_t n, int32_t k)
{
    return (size_t)pl_cu_tiles(n) * (size_t)pl_cu_pitch(k) * 512;
}

/* The token of a key that pl_cu_argmax leaves. */
#define PL_CU_TOKEN(key) ((int32_t) ~(uint32_t)(key))

/* Rows of a matrix's input, 16 * pl_cu_tiles(k) values each: in bf16 and f16, as far as a
 * matrix reads them (else NULL). */
typedef struct pl_cu_acts {
    void *bf16, *f16;
} pl_cu_acts;

typedef struct pl_cu_part { /* one of the matrices that read the same rows */
    const void *w;          /* of experts: an array of pointers, one each */
    const float *bias;      /* NULL: none */
    float *out;
    int32_t n, stride, add;
} pl_cu_part;

typedef struct pl_cu_tile { /* rows of an expert */
    int32_t expert, first, n;
} pl_cu_tile;

typedef struct pl_cu_gemm {
    pl_cu_part parts[3];
    int32_t n_parts, f16;
    const void *x;
    int32_t n_rows, k;
    int32_t slice; /* PL_CU_SLICE columns; 0: one chain */
    /* Not NULL, of up to PL_CU_FUSED rows: x is not read, but the norms of these. */
    const float *unnormed, *norm;
    float eps;
    /* One of them not NULL: silu of the first part times the second goes there. */
    pl_cu_acts gated;
    /* Experts: the rows of a tile are order[first ..], of x divided by `share`. */
    const pl_cu_tile *tiles;
    const int32_t *order;
    int32_t n_tiles, tile_rows, share;
} pl_cu_gemm;

typedef struct pl_cu_row { /* of a step */
    int32_t token;         /* below 0: what sequence -1 - token of the step before drew */
    int32_t position, table; /* the latter: where its sequence's blocks begin */
} pl_cu_row;

typedef struct pl_cu_moe {
    const float *logits;
    int32_t n_rows, n, n_used, renormalize, tile_rows;
    float *weights;
    int32_t *chosen, *order;
    pl_cu_tile *tiles;
    int32_t n_tiles;
} pl_cu_moe;

/* Whether there is code for this GPU. */
cudaError_t pl_cu_usable(void);
/* Row-major values of a pl_type that is F32, F16 or BF16, from row `first` on. */
void pl_cu_pack(cudaStream_t s, const pl_cu_weights *w, int type, const void *values,
                int64_t first, int64_t n);
void pl_cu_rope(cudaStream_t s, float *table, const double *inv_freq, double scale,
                int half, int positions);

cudaError_t pl_cu_embed(cudaStream_t s, const pl_cu_weights *w, const pl_cu_row *rows,
                        int n, const uint64_t *drawn, float *x);
/* `picks`: which rows, NULL: all. */
cudaError_t pl_cu_norm(cudaStream_t s, const float *x, const int32_t *picks, int n, int k,
                       const float *weight, float eps, pl_cu_acts out);
cudaError_t pl_cu_gate(cudaStream_t s, const float *gate, const float *up, int stride,
                       int n, int k, pl_cu_acts out);
cudaError_t pl_cu_multiply(cudaStream_t s, const pl_cu_gemm *g);
/* Whether products of so many rows can be `gated`. */
bool pl_cu_gates(int n_rows);

cudaError_t pl_cu_choose(cudaStream_t s, const pl_cu_moe *m);
cudaError_t pl_cu_combine(cudaStream_t s, const pl_cu_moe *m, const float *said,
                          int hidden, float *x);
/* The best of each row as a key to out[draws[i]], which was 0; where draws[i] >= 0. */
cudaError_t pl_cu_argmax(cudaStream_t s, const float *logits, int vocab,
                         const int32_t *draws, int n, uint64_t *out);

#ifdef __cplusplus
}
#endif
#endif
