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
    pl_attention attention;
    pl_slot *slots;    /* [1 + layer][role] */
    double *inv_freq;  /* head_dim / 2 */
    double rope_scale; /* of cos and sin */
    bool ready;
    char numerics[64];

    char *kv;
    int32_t n_blocks;

    float *x, *qkv, *ffn, *logits;
    pl_acts *normed, *attended, *gated, *picked;
    int32_t *positions;
    const int32_t **blocks;
    float *cos, *sin;

    pl_draw *draws; /* of the step; which row of the batch each is about */
    int32_t *draw_rows, *picks;
    int32_t n_draws, draws_cap;
    pl_result *results;
    int32_t results_cap;
    pl_logprob *tops;
    size_t tops_cap;
    bool in_flight;
};

static inline pl_slot *pl_model_slot(const pl_model *m, int role, int layer)
{
    return m->slots + (size_t)(layer + 1) * PL_N_ROLES + role;
}

void pl_model_rope_open(pl_model *m);
void pl_model_rope_at(const pl_model *m, int32_t position, float *cos, float *sin);
pl_status pl_model_walk_open(pl_model *m);
void pl_model_walk_close(pl_model *m);
/* The walk alone: m->draws say what is wanted, m->draw_rows after which rows. */
pl_status pl_model_walk(pl_model *m, const pl_batch *batch);
void pl_model_draw(pl_model *m, int32_t row, pl_draw draw);

#endif
