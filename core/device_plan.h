/* SPDX-License-Identifier: Apache-2.0
 *
 * device_plan.h - a model as its device sees it: layers, matrices and the facts of its
 * arithmetic. The walk reads it op by op; a device that runs steps is given it whole.
 *
 * Owns     nothing: it points to what the model holds.
 * Ignores  architectures' names, sequences.
 * Thread   made once, when the model is ready; then read by step.
 */
#ifndef PL_DEVICE_PLAN_H
#define PL_DEVICE_PLAN_H

#include "base.h"

typedef struct pl_matrix pl_matrix; /* weights, packed as the device likes them */

typedef struct pl_attention {
    int32_t n_heads, n_kv_heads, head_dim, block_size;
    int32_t kv_type, n_layers;
    int32_t rope_pairs;
    float norm_eps, scale;
} pl_attention;

typedef struct pl_experts {
    int32_t n, n_used, ffn, hidden, renormalize;
    const pl_matrix *router;
    pl_matrix *const *gate, *const *up, *const *down;
} pl_experts;

typedef struct pl_layer {
    const float *attn_norm, *ffn_norm;
    const float *q_norm, *k_norm;                   /* of each head; NULL: none */
    const float *q_bias, *k_bias, *v_bias, *o_bias; /* NULL: none */
    const pl_matrix *q, *k, *v, *o;
    const pl_matrix *gate, *up, *down; /* NULL where there are experts */
    pl_experts experts;                /* n is 0 where there are none */
    int32_t window;                    /* 0: all positions */
} pl_layer;

typedef struct pl_plan {
    pl_attention attention;
    int32_t n_layers, hidden, ffn, vocab, max_positions;
    float norm_eps;
    const double *inv_freq; /* head_dim / 2: pair i turns by inv_freq[i] a position */
    double rope_scale;      /* of cos and sin */
    const pl_matrix *embed, *head;
    const float *norm;
    const pl_layer *layers;
    char *kv;                             /* n_blocks of kv_bytes each */
    int32_t n_blocks, max_rows, max_seqs; /* the last two: of a step, at most */
} pl_plan;

#endif
