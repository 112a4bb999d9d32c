/* SPDX-License-Identifier: Apache-2.0
 *
 * decode.h - the arguments of the kernel that computes a whole step of few rows.
 *
 * Owns     nothing.
 * Ignores  which steps are such: decode.c.
 * Thread   as kernels.h.
 *
 * CTAs exchange packets of 64 bits: the lower half is a value, a float or two 16-bit
 * values, and the upper half the epoch in which it was written. A reader polls until the
 * epoch is the one it expects.
 */
#ifndef PL_CUDA_DECODE_H
#define PL_CUDA_DECODE_H

#include "attend.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PL_CU_DECODE_ROWS = 4, /* of a step, each its own sequence's: with more, many kernels
                              are as fast */
    PL_CU_DECODE_SPLITS = 256 /* of attention, of all rows together */
};

typedef struct pl_cu_decode_layer {
    const void *q, *k, *v, *o, *gate, *up, *down;
    const float *attn_norm, *ffn_norm, *q_norm, *k_norm;
    const float *q_bias, *k_bias, *v_bias, *o_bias;
    int32_t window;
} pl_cu_decode_layer;

typedef struct pl_cu_decode {
    pl_cu_attention a; /* of no particular layer */
    const pl_cu_decode_layer *layers;
    int32_t n_layers, hidden, ffn, vocab;
    float eps;
    const void *embed, *head;
    int32_t embed_f16, f16; /* the latter: of all matrices */
    int32_t biased;         /* some of the layers' biases are there */
    const float *norm;
    const uint64_t *before; /* keys of tokens that the step before drew */
    /* Rows whose logits are wanted, and where keys of the best tokens go. */
    const int32_t *picks, *targets;
    int32_t n_picks;
    float *logits; /* NULL: only the best tokens are wanted */
    uint64_t *drawn;
    /* Packets: floats of q, k, v; of a split's queries, top, sum and values; pairs of
     * attention's result; floats of x after o; pairs of the gated; floats of x after
     * down. */
    uint64_t *qkv, *partials, *attended, *middle, *gated, *x;
    uint32_t epoch;    /* the first layer's; each has one */
    int32_t depth;     /* pieces of weights that wait for each warp */
    int32_t under_way; /* and those that are being copied */
    int32_t ctas;
} pl_cu_decode;

/* How much the packets take, in the order of their names; they are zero at first. */
void pl_cu_decode_packets(const pl_cu_decode *d, int64_t count[6]);
/* Fills in depth, under_way and ctas for steps of up to n rows; false: no such steps of this model
 * on this GPU. */
bool pl_cu_decode_fits(pl_cu_decode *d, int n_rows);
cudaError_t pl_cu_decode_step(cudaStream_t s, const pl_cu_decode *d);

#ifdef __cplusplus
}
#endif
#endif
