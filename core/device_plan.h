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

/* What a model may ask of a device beyond what all of them do; a device names in
 * pl_device_ops those that it does, and is given no model that asks for another. */
enum {
    PL_FACT_POST_NORMS = 1 << 0,
    PL_FACT_GELU_TANH = 1 << 1,
    PL_FACT_EMBED_SCALE = 1 << 2,
    PL_FACT_ATTENTION_CAP = 1 << 3,
    PL_FACT_LOGIT_CAP = 1 << 4,
    PL_FACT_WINDOW_ROPE = 1 << 5,
    PL_FACT_ROPE_DIMS = 1 << 6,
};

typedef struct pl_attention {
    int32_t n_heads, n_kv_heads, head_dim, block_size;
    int32_t kv_type, n_layers;
    int32_t rope_pairs;
    int32_t rope_dims; /* the first values of a head, which are turned: all or fewer */
    float norm_eps, scale;
    float cap; /* a score s, scaled, becomes cap * tanh(s / cap); 0: stays */
} pl_attention;

typedef struct pl_experts {
    int32_t n, n_used, ffn, hidden, renormalize;
    int32_t gate_kind; /* PL_GATE_* */
    const pl_matrix *router;
    pl_matrix *const *gate, *const *up, *const *down;
} pl_experts;

typedef struct pl_layer {
    const float *attn_norm, *ffn_norm;
    const float *attn_post_norm, *ffn_post_norm;    /* NULL: none */
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
    int32_t gate_kind; /* PL_GATE_* */
    float norm_eps, embed_scale;
    float logit_cap;        /* as attention's cap */
    const double *inv_freq; /* rope_dims / 2: pair i turns by inv_freq[i] a position */
    double rope_scale;      /* of cos and sin */
    const double *window_inv_freq; /* of layers with a window, unscaled; NULL: the same */
    const pl_matrix *embed, *head;
    const float *norm;
    const pl_layer *layers;
    char *kv;                             /* n_blocks of kv_bytes each */
    int32_t n_blocks, max_rows, max_seqs; /* the last two: of a step, at most */
} pl_plan;

#endif
