/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda.h - what the CUDA device's C and its kernels share: how weights, activations and
 * KV lie in the GPU's memory, and a function for each kernel that launches it.
 *
 * Owns     nothing.
 * Ignores  steps, sequences, plans: device_cuda.h.
 * Thread   the caller's; kernels run in the order of the stream.
 *
 * Exactness: every product of a matrix is summed in one order, whatever the kernel: K in
 * slices, each a chain of mma.m16n8k16 from zero, slices added in ascending order in f32.
 * The m operand is always weights, 16 rows a tile.
 */
#ifndef PL_CUDA_H
#define PL_CUDA_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PL_CU_SPLIT = 128, /* positions of a split of attention */
    PL_CU_ROWS = 64,   /* at most that many rows: the kernel that streams weights */
    PL_CU_FEW = 16,    /* items of a tile of few queries, and of one of many */
    PL_CU_MANY = 64,
    PL_CU_MAX_DIM = 256 /* of a head */
};

/* Tiles of 16 rows by 16 columns, all of a row of tiles together; a tile has 8 values for
 * each of a warp's lanes, as an mma's m operand wants them. Lane l: g = l / 4, t = l % 4,
 * columns 4t .. 4t + 3 of row g in elements 0, 1, 4, 5, and of row g + 8 in 2, 3, 6, 7.
 */
typedef struct pl_cu_weights {
    void *data;
    int32_t n, k;
    int32_t f16; /* else bf16 */
} pl_cu_weights;

static inline int32_t pl_cu_tiles(int32_t n)
{
    return (n + 15) / 16;
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
    int32_t slice; /* columns; 0: one chain */
    /* Experts: the rows of a tile are order[first ..], of x divided by `share`. */
    const pl_cu_tile *tiles;
    const int32_t *order;
    int32_t n_tiles, tile_rows, share;
} pl_cu_gemm;

typedef struct pl_cu_row { /* of a step */
    int32_t token;         /* below 0: what sequence -1 - token of the step before drew */
    int32_t position, table; /* the latter: where its sequence's blocks begin */
} pl_cu_row;

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
} pl_cu_attention;

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

void pl_cu_embed(cudaStream_t s, const pl_cu_weights *w, const pl_cu_row *rows, int n,
                 const uint64_t *drawn, float *x);
/* `picks`: which rows, NULL: all. */
void pl_cu_norm(cudaStream_t s, const float *x, const int32_t *picks, int n, int k,
                const float *weight, float eps, pl_cu_acts out);
void pl_cu_gate(cudaStream_t s, const float *gate, const float *up, int stride, int n,
                int k, pl_cu_acts out);
cudaError_t pl_cu_multiply(cudaStream_t s, const pl_cu_gemm *g);

int64_t pl_cu_kv_values(const pl_cu_attention *a); /* of a block */
int pl_cu_head_width(int head_dim);                /* values of a head of q */
int pl_cu_partial(int head_dim); /* floats of a query's partial result */
void pl_cu_heads(cudaStream_t s, const pl_cu_attention *a);
/* Tiles of at most PL_CU_MANY queries, each walked over all its splits. */
cudaError_t pl_cu_attend_many(cudaStream_t s, const pl_cu_attention *a,
                              const pl_cu_queries *tiles, int n, pl_cu_acts out);
/* Tiles of at most PL_CU_FEW queries, by splits and then merged. */
cudaError_t pl_cu_attend_few(cudaStream_t s, const pl_cu_attention *a,
                             const pl_cu_queries *tiles, int n, int splits,
                             pl_cu_acts out);

void pl_cu_choose(cudaStream_t s, const pl_cu_moe *m);
void pl_cu_combine(cudaStream_t s, const pl_cu_moe *m, const float *said, int hidden,
                   float *x);
/* The best of each row as a key to out[draws[i]], which was 0; where draws[i] >= 0. */
void pl_cu_argmax(cudaStream_t s, const float *logits, int vocab, const int32_t *draws,
                  int n, uint64_t *out);

#ifdef __cplusplus
}
#endif
#endif
