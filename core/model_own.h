/* SPDX-License-Identifier: Apache-2.0
 *
 * model_own.h - what the model's files share.
 *
 * Owns     a model's tensors on its device and the scratch of a walk.
 * Thread   lua while loading; then step.
 */
#ifndef PL_MODEL_OWN_H
#define PL_MODEL_OWN_H

#include "device.h"
#include "model.h"

/* Rows that walk the layers together (a longer batch is walked in pieces), and rows whose
 * logits are computed together. */
enum {
    PL_WALK_ROWS = 512,
    PL_LOGIT_ROWS = 64
};

typedef struct pl_slot { /* a role in a layer: one of the three */
    pl_matrix *matrix;
    pl_matrix **experts; /* n_experts */
    float *vector;       /* on the device */
} pl_slot;

struct pl_model {
    pl_device *device;
    pl_model_options o;
    pl_slot *slots;      /* [1 + layer][role] */
    int *flags;          /* by layer: PL_LAYER_* */
    float *rope_factors; /* head_dim / 2, the host's; NULL: none */
    bool ready;
    bool has_bf16, has_quantized; /* weights */
    char numerics[64], kv_layout[128];

    pl_plan plan; /* attention from the start, the rest once it is ready */
    pl_layer *layers;
    double *inv_freq, *window_inv_freq;
    pl_planned *planned; /* by a device that runs steps */

    pl_step *flying[2]; /* steps in flight, oldest first */
    int32_t n_flying;

    /* A walk's scratch. */
    float *x, *qkv, *ffn, *logits;
    float *part; /* what is normed before x gets it; NULL: nothing is */
    pl_acts *normed, *attended, *gated, *picked;
    int32_t *positions;
    const int32_t **blocks;
    float *cos, *sin, *window_cos, *window_sin;
    pl_draw *draws; /* of the step; which row of it each is about */
    int32_t *draw_rows, *picks;
    int32_t n_draws, draws_cap;
};

static inline pl_slot *pl_model_slot(const pl_model *m, int role, int layer)
{
    return m->slots + (size_t)(layer + 1) * PL_N_ROLES + role;
}

/* Whether its device takes weights; else it may have no layers. */
static inline bool pl_model_takes_weights(const pl_model *m)
{
    return m->device->ops->matrix_open != NULL;
}

bool pl_model_has_experts(const pl_model *m, int layer);
pl_status pl_model_tensors_check(const pl_model *m); /* all that are needed are there */
void pl_model_tensors_close(pl_model *m);
void pl_model_plan_fill(pl_model *m); /* from the slots */
void pl_model_rope_fill(pl_model *m);
void pl_model_rope_at(const double *inv_freq, double scale, int n, int32_t position,
                      float *cos, float *sin);
pl_status pl_model_walk_open(pl_model *m);
void pl_model_walk_close(pl_model *m);
void pl_model_walk(pl_model *m, pl_step *step);

#endif
