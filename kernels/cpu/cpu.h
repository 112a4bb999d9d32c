/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu.h - the CPU's kernels: one table of functions per instruction set, and the shape of
 * the weights that they read.
 *
 * Owns     nothing.
 * Thread   any; a call touches only what it is given.
 *
 * Sixteen rows of a matrix lie interleaved in a panel, so that one lane is one row and no
 * sum crosses lanes. Every sum runs over k upwards in one chain. So all tables give equal
 * bits, whatever the tile.
 *
 *   f32, f16   [k][16]
 *   bf16       [k/2][16][2]
 *   quantized  codes, per block of 32 k: groups of four k, [16 rows][4 bytes]. Eight
 *              groups of bytes (code + 128), or four of nibbles (group g low, g + 4 high)
 *              then scales, per block, of 16 rows each: f16 d (and f16 m), or u8 or s8
 *              factors of the super-block's f16 d (and m), of a whole block or each half
 *              then those, per 256 k
 */
#ifndef PL_CPU_H
#define PL_CPU_H

#include "perilune.h"

#include <stdbool.h>

enum {
    PL_PANEL = 16,  /* rows of a panel */
    PL_CHUNK = 128, /* positions of a chunk of attention */
    PL_STATE = 16,  /* floats of a query's state before its sums */
};

typedef struct pl_cpu_matrix {
    int32_t type;           /* whose panels these are: types that fit share them */
    int32_t n, k, n_panels; /* n rows of k columns */
    size_t panel_bytes, scales_at, supers_at;
    char *panels;
} pl_cpu_matrix;

/* Rows of activations. Beside f, unless `activations` is PL_ACT_FLOAT32: q where k is a
 * multiple of 32; h with PL_ACT_INT8, where the kernels multiply bf16. A value is d * q,
 * or, in two terms, d * (256 * q + the q 32 bytes on). */
typedef struct pl_cpu_rows {
    int32_t k, activations;
    size_t stride; /* of f and h; multiple of 64 */
    float *f;
    uint16_t *h;        /* bf16 */
    int8_t *q;          /* -127 .. 127, 32 or 2 x 32 a block of 32 values */
    float *d, *ds;      /* stride / 32 a row: scale; scale * sum of the block */
    int32_t *minus_sum; /* stride / 16 a row: minus the sum of 16 values in units of d */
} pl_cpu_rows;

typedef struct pl_cpu_linear { /* out[r][...] = rows[r] . matrix (+ bias) (+ out) */
    const pl_cpu_matrix *w;
    const float *bias; /* NULL: none */
    bool add;
    float *out;
    size_t out_stride;
} pl_cpu_linear;

/* A KV block holds for every layer and KV head K as [head_dim][block_size], then V as
 * [block_size][head_dim rounded up to 16]; 16-bit integers with a scale for each head of
 * a position, then K's [block_size] scales and V's, or floats. */
typedef struct pl_cpu_kv {
    int32_t head_dim, block_size, group; /* group: query heads per KV head */
    bool s16;
    float scale, cap;             /* cap: of the scaled scores; 0: none */
    size_t k_at, v_at, scales_at; /* of the head at hand, in bytes from a block's start */
    const int32_t *blocks;
    char *base;
    size_t block_bytes;
} pl_cpu_kv;

typedef struct pl_cpu_query { /* one query head of one row */
    const float *q;
    int32_t from, to; /* the positions it sees */
    float *state;     /* largest score, sum of weights; from PL_STATE on: the sums */
} pl_cpu_query;

typedef struct pl_cpu_kernels {
    const char *name;
    bool bf16; /* reads h */
    void (*linear)(const pl_cpu_linear *l, const pl_cpu_rows *x, int first, int n,
                   int panel, int n_panels);
    void (*reduce)(const pl_cpu_rows *x, int row); /* f to the forms that are there */
    void (*norm)(const float *x, const float *weight, float eps, int n, float *out);
    void (*gate[PL_N_GATES])(const float *gate, const float *up, int n, float *out);
    void (*cap)(float *x, float cap, int n); /* x = cap * tanh(x / cap) */
    void (*add)(float *x, const float *y, float factor, int n); /* x += factor * y */
    void (*softmax)(float *x, int n);
    void (*rope)(float *x, const float *cos, const float *sin, int n, int pairs);
    void (*kv_write)(const pl_cpu_kv *kv, int position, const float *k, const float *v);
    /* The queries' results over one chunk of positions alone; then onto those before
     * it. */
    void (*attend)(const pl_cpu_kv *kv, int chunk, pl_cpu_query *queries, int n);
    void (*merge)(float *state, const float *chunk_state, int head_dim);
    void (*finish)(const float *state, int head_dim, float *out);
} pl_cpu_kernels;

extern const pl_cpu_kernels pl_cpu_scalar;
/* A build may leave these out (PERILUNE_KERNELS): then they are at NULL. */
extern const pl_cpu_kernels pl_cpu_avx2 __attribute__((weak));
extern const pl_cpu_kernels pl_cpu_avx512 __attribute__((weak));
extern const pl_cpu_kernels pl_cpu_avx512bf16 __attribute__((weak));

#endif
