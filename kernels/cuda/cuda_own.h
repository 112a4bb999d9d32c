/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_own.h - what the CUDA device's C files share.
 *
 * Owns     the device's stream; of a plan, its buffers and the steps in flight.
 * Ignores  architectures.
 * Thread   lua while loading; then step.
 */
#ifndef PL_CUDA_OWN_H
#define PL_CUDA_OWN_H

#include "attend.h"
#include "decode.h"
#include "device.h"
#include "draw.h"

typedef struct pl_cuda {
    pl_device base;
    cudaStream_t stream;
    char kernels[64], numerics[64];
    bool eager; /* no graphs, no kernel of a whole step */
} pl_cuda;

struct pl_matrix {
    pl_cu_weights w;
    size_t bytes;
};

enum {
    PL_CU_LOGIT_ROWS = 256,  /* rows whose logits are computed together */
    PL_CU_PARTIALS = 1 << 17 /* partial results of attention, at most */
};

enum {              /* who draws from a row */
    PL_CU_BEST_ONE, /* the step's kernels: its best token, and nothing else is wanted */
    PL_CU_SAMPLED,  /* the GPU, behind them */
    PL_CU_BY_HOST
};

typedef struct pl_cu_draw { /* what is wanted of a row's logits */
    int32_t seq, row;       /* of its sequence */
    int kind;
} pl_cu_draw;

typedef struct pl_cu_flight { /* a step that is under way */
    pl_step *step;
    cudaEvent_t over;
    uint64_t *drawn;      /* keys of tokens by sequence, on the GPU */
    uint64_t *drawn_host; /* and where it is copied */
    pl_cu_said *tops_host;
    pl_cu_draw *draws;
    int32_t n_draws, n_host, n_sampled;
    int32_t from;      /* the first draw whose logits are still on the GPU */
    bool says;         /* there are logprobs in `said` */
    int64_t told;      /* int32s that the GPU is told for its draws */
    int64_t samplings; /* and where in `meta` how it draws begins */
    bool finished;     /* its results are there */
    int32_t *meta;     /* pinned: what is told to the GPU */
} pl_cu_flight;

typedef struct pl_cu_layer { /* experts' weights, by expert, on the GPU */
    const void **gate, **up, **down;
} pl_cu_layer;

typedef struct pl_cu_shape { /* of a step, and where on the GPU its parts are */
    int32_t n_rows, n_few, n_walks, n_many, splits, n_draws;
    const pl_cu_row *rows;
    const pl_cu_queries *few, *walks, *many;
    const int32_t *picks, *targets, *tables;
    const uint64_t *drawn; /* by the step before */
    bool decodes;          /* by one kernel */
} pl_cu_shape;

typedef struct pl_cu_graph pl_cu_graph;
typedef struct pl_cu_decoder pl_cu_decoder;

struct pl_planned {
    pl_cuda *cuda;
    const pl_plan *plan;
    bool bf16, f16; /* what the matrices are */
    int32_t slice;
    pl_cu_layer *layers;
    void **owned; /* all that is freed at the end */
    int32_t n_owned;

    float *x, *qkv, *ffn, *said, *router, *weights, *logits, *edited, *rope, *partial;
    pl_cu_said *tops; /* logprobs, by sequence */
    int32_t *chosen, *order, *counts;
    pl_cu_tile *tiles;
    uint16_t *q;
    pl_cu_acts normed, attended, gated, picked;

    int32_t *meta, meta_cap; /* on the GPU */
    float *host_logits;      /* pinned */
    pl_sample_scratch *scratch;
    pl_cu_flight flights[2];
    int32_t first, n; /* the oldest in flight; how many */
    pl_cu_graph *graphs;
    pl_cu_decoder *decoder; /* NULL: this model has none */
};

pl_status pl_cuda_failed(cudaError_t e, const char *what);
pl_status pl_cuda_prepare(pl_device *d, const pl_plan *plan, pl_planned **out);
void pl_cuda_discard(pl_planned *p);
pl_status pl_cuda_run(pl_planned *p, pl_step *s);
pl_status pl_cuda_wait(pl_planned *p, int timeout_ms);
/* Room for so many int32s of what a step tells the GPU; none may be under way. */
pl_status pl_cuda_meta(pl_planned *p, int64_t n);

/* The layers, up to the rows of x. */
pl_status pl_cuda_forward(pl_planned *p, const pl_cu_shape *s);
/* The logits of some draws, and the best tokens among them. */
pl_status pl_cuda_logits(pl_planned *p, const pl_cu_shape *s, int32_t from, int32_t n,
                         uint64_t *drawn);
/* Both: by one kernel, launched one by one, or as a graph where the same step has been
 * before. */
pl_status pl_cuda_kernels(pl_planned *p, const pl_cu_shape *s, int32_t n,
                          uint64_t *drawn);
/* Fills in the step's draws, and says how many int32s the GPU is told of them, puts them
 * into `meta` at an even place, and sends off the draws from n rows of logits, and what
 * came of them. Then what came is the step's; and the host draws from the same rows. */
void pl_cuda_list_draws(pl_planned *p, pl_cu_flight *f);
int64_t pl_cuda_draws_size(const pl_cu_flight *f);
void pl_cuda_tell_draws(const pl_planned *p, pl_cu_flight *f, int64_t at);
pl_status pl_cuda_draw(pl_planned *p, const pl_cu_flight *f, int32_t n,
                       const uint64_t *before);
pl_status pl_cuda_bring_draws(pl_planned *p, pl_cu_flight *f);
void pl_cuda_take_draws(const pl_planned *p, pl_cu_flight *f);
void pl_cuda_draw_on_host(pl_planned *p, pl_cu_flight *f, int32_t n);
/* Zeroed memory on the GPU that lives as long as the plan; NULL where there is none. */
void *pl_cuda_own(pl_planned *p, size_t bytes);
pl_cu_attention pl_cuda_attention(const pl_planned *p, const pl_cu_shape *s, int layer);

pl_status pl_cuda_decode_open(pl_planned *p);
/* Whether one kernel computes this step. */
bool pl_cuda_decodes(const pl_planned *p, const pl_step *s);
pl_status pl_cuda_decode_step(pl_planned *p, const pl_cu_shape *s, uint64_t *drawn);
void pl_cuda_graphs_open(pl_planned *p);
void pl_cuda_graphs_close(pl_planned *p);

#endif
