/* SPDX-License-Identifier: Apache-2.0
 *
 * device.h - what a backend fills in: memory, matrices, and either the ops that a model
 * walks over, or `run`, which computes a whole step by itself.
 *
 * Owns     the device's threads or streams, and how weights and KV lie in its memory.
 * Ignores  architectures, sequences, blocks' owners.
 * Thread   lua while loading; then step.
 *
 * A walk's ops are done when they return. Steps that are run may be in flight: as many as
 * `depth` says, collected in their order. float * below is the device's memory, except in
 * pl_rows, pl_draw and pl_step, which are the host's.
 *
 * A backend may live in a library of its own, libperilune_NAME.so beside the program; it
 * exports a pl_backend called perilune_backend, and finds what it needs of base.h,
 * sample.h and step.h in the program.
 */
#ifndef PL_DEVICE_H
#define PL_DEVICE_H

#include "base.h"
#include "device_plan.h"
#include "step.h"

/* Rows of activations, in every form that matrices read; as many as the op that wrote
 * them was about. */
typedef struct pl_acts pl_acts;

typedef struct pl_rows { /* what the ops of one walk are about */
    int32_t n;
    const int32_t *tokens;
    const int32_t *positions;
    const int32_t *const
        *blocks;            /* a row's sequence's; equal pointers: the same sequence */
    const float *cos, *sin; /* rope_dims / 2 a row */
    const float *window_cos, *window_sin; /* of layers with a window; NULL: the same */
} pl_rows;

typedef struct pl_linear { /* out = matrix . row (+ bias) (+ out, if add) */
    const pl_matrix *w;
    const float *bias;
    float *out;
    int32_t out_stride;
    bool add;
} pl_linear;

typedef struct pl_heads { /* one layer's attention, after its projections */
    const pl_attention *shape;
    int32_t layer, window;        /* 0: all positions */
    const float *q_norm, *k_norm; /* NULL: none */
    float *q, *k, *v;             /* rows, all of qkv_stride */
    int32_t stride;
    char *kv;
} pl_heads;

typedef struct pl_draw {       /* what is wanted of one row's logits */
    const pl_sampler *sampler; /* NULL: logprobs of `target` and the n_top best */
    int32_t target, n_top;
    int32_t *token;  /* where the sampled one goes */
    pl_logprob *top; /* room for 1 + n_top; NULL: none are wanted */
    float *logits;   /* not NULL: only a copy of the logits is wanted */
} pl_draw;

typedef struct pl_planned pl_planned; /* what a device made of a plan */

typedef struct pl_device_ops {
    void (*close)(pl_device *d);
    const char *(*kernels)(const pl_device *d);
    /* Of a model with these activations, PL_ACT_*, and bf16 weights or none: equal ids,
     * equal bits. */
    const char *(*numerics)(const pl_device *d, int activations, bool bf16);
    /* How a block lies in memory: equal names and shapes, exchangeable blocks. */
    const char *(*kv_layout)(const pl_device *d);
    int32_t facts; /* PL_FACT_* that it does */

    void *(*alloc)(pl_device *d, size_t bytes); /* zeroed; NULL: exhausted */
    void (*free)(pl_device *d, void *p, size_t bytes);
    void (*write)(pl_device *d, void *to, const void *from, size_t bytes);
    /* Bytes of its own memory: left, and in all. NULL: it uses the host's. */
    pl_status (*memory)(pl_device *d, int64_t *left, int64_t *all);
    pl_status (*kv_check)(pl_device *d, const pl_attention *a);
    size_t (*kv_bytes)(pl_device *d, const pl_attention *a); /* of one block */
    /* n rows of k columns, from row-major data of a pl_type. A device that takes no
     * weights has no matrix_open. */
    pl_status (*matrix_open)(pl_device *d, int type, int64_t n, int64_t k,
                             const void *data, pl_matrix **out);
    void (*matrix_close)(pl_device *d, pl_matrix *w);
    size_t (*matrix_bytes)(const pl_matrix *w);

    /* Whole steps. The plan and what it points to live until it is discarded. */
    pl_status (*prepare)(pl_device *d, const pl_plan *plan, pl_planned **out);
    void (*discard)(pl_planned *p);
    pl_status (*run)(pl_planned *p, pl_step *s);      /* starts it */
    pl_status (*wait)(pl_planned *p, int timeout_ms); /* the oldest; PL_EAGAIN: not yet */

    /* The walk's ops, where there is no `run`. */
    pl_status (*acts_open)(pl_device *d, int n_rows, int k, int activations,
                           pl_acts **out);
    void (*acts_close)(pl_device *d, pl_acts *a);
    void (*begin)(pl_device *d, const pl_rows *rows);
    void (*embed)(pl_device *d, const pl_matrix *table, float scale, float *x,
                  int stride);
    void (*norm)(pl_device *d, const float *x, int stride, const float *weight, float eps,
                 pl_acts *out);
    /* x += part, normed; both of n a row. What is left in part is undefined. */
    void (*add_norm)(pl_device *d, float *part, const float *weight, float eps, float *x,
                     int n);
    void (*load)(pl_device *d, const float *x, int n, pl_acts *out); /* from the host */
    void (*linear)(pl_device *d, const pl_linear *parts, int n_parts, const pl_acts *x);
    void (*heads)(pl_device *d,
                  const pl_heads *h); /* norms, rope, K and V to the cache */
    void (*attend)(pl_device *d, const pl_heads *h, pl_acts *out);
    void (*gate)(pl_device *d, int kind, const float *gate, const float *up, int stride,
                 pl_acts *out); /* kind: PL_GATE_* */
    void (*experts)(pl_device *d, const pl_experts *e, const pl_acts *x, float *out,
                    int stride);
    /* The rows listed, normed. */
    void (*pick)(pl_device *d, const int32_t *rows, int n, const float *x, int stride,
                 const float *weight, float eps, pl_acts *out);
    void (*cap)(pl_device *d, float *logits, int32_t vocab, int n, float cap);
    void (*sample)(pl_device *d, float *logits, int32_t vocab, const pl_draw *draws,
                   int n);
} pl_device_ops;

struct pl_device {
    const pl_device_ops *ops;
    int32_t depth; /* steps in flight at once: 1 or 2 */
};

/* Goes up with every change of this header, step.h or what they include. */
enum {
    PL_DEVICE_ABI = 4
};

typedef struct pl_backend {
    int32_t abi; /* PL_DEVICE_ABI */
    const char *name;
    pl_device *(*open)(
        const pl_device_options *options); /* NULL: the last error says why */
} pl_backend;

extern const pl_backend pl_backend_cpu, pl_backend_null;

/* Bytes of n values of a row, or 0 where n is no multiple of the type's block. */
PL_PLUGIN size_t pl_type_bytes(int type, int64_t n);
/* The n values of a row of a quantized type. */
PL_PLUGIN void pl_type_row(int type, const void *row, int32_t n, float *out);

#endif
