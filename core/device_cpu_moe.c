/* SPDX-License-Identifier: Apache-2.0
 *
 * Mixture of experts on the CPU. Rows are gathered by expert, so an expert's weights are
 * read once; what a row's experts say is added up in the order of that row's own choice.
 */
#include "device_cpu.h"

#include <stdlib.h>
#include <string.h>

typedef struct moe_job {
    pl_cpu *c;
    const pl_experts *e;
    const pl_acts *x;
    float *logits, *weights; /* [row][n], [row][n_used] */
    int32_t *chosen;         /* [row][n_used] */
    float *gate, *up, *down; /* of the gathered rows */
    float *said;             /* [row][n_used][hidden] */
    int32_t *slots;          /* gathered row -> row * n_used + slot */
    float *out;
    int stride;
} moe_job;

/* The likeliest that is not chosen yet (those are below 0). Where none is a number it is
 * the first: whatever the weights are, no expert is chosen twice. */
static int find_best(const float *p, int n)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (!(p[i] < 0) && (best < 0 || p[i] > p[best])) best = i;
    return best;
}

static void choose_row(void *arg, int row, int thread)
{
    (void)thread;
    moe_job *j = arg;
    const pl_experts *e = j->e;
    float *p = j->logits + (size_t)row * (size_t)e->n;
    float *weights = j->weights + (size_t)row * (size_t)e->n_used, sum = 0;
    int32_t *chosen = j->chosen + (size_t)row * (size_t)e->n_used;
    j->c->k->softmax(p, e->n);
    for (int i = 0; i < e->n_used; i++) {
        int best = find_best(p, e->n);
        chosen[i] = best;
        weights[i] = p[best];
        sum += p[best];
        p[best] = -1;
    }
    for (int i = 0; e->renormalize && i < e->n_used; i++) weights[i] /= sum;
}

static void gather_row(void *arg, int i, int thread)
{
    (void)thread;
    moe_job *j = arg;
    pl_acts *to = j->c->gathered;
    const pl_cpu_rows *from = &j->x->rows;
    size_t row = (size_t)(j->slots[i] / j->e->n_used), at = (size_t)i, s = from->stride;
    memcpy(to->rows.f + at * s, from->f + row * s, s * sizeof(float));
    if (to->rows.h) memcpy(to->rows.h + at * s, from->h + row * s, s * sizeof(uint16_t));
    if (!to->rows.q) return;
    size_t codes = to->rows.activations == PL_ACT_INT8X2 ? s * 2 : s;
    memcpy(to->rows.q + at * codes, from->q + row * codes, codes);
    memcpy(to->rows.d + at * (s / 32), from->d + row * (s / 32), s / 32 * sizeof(float));
    memcpy(to->rows.ds + at * (s / 32), from->ds + row * (s / 32),
           s / 32 * sizeof(float));
    memcpy(to->rows.minus_sum + at * (s / 16), from->minus_sum + row * (s / 16),
           s / 16 * sizeof(int32_t));
}

static void gate_row(void *arg, int i, int thread)
{
    (void)thread;
    moe_job *j = arg;
    pl_acts *a = j->c->gated;
    size_t at = (size_t)i * (size_t)j->e->ffn;
    j->c->k->gate[j->e->gate_kind](j->gate + at, j->up + at, j->e->ffn,
                                   a->rows.f + (size_t)i * a->rows.stride);
    j->c->k->reduce(&a->rows, i);
}

static void add_row(void *arg, int row, int thread)
{
    (void)thread;
    moe_job *j = arg;
    const pl_experts *e = j->e;
    for (int i = 0; i < e->n_used; i++) {
        size_t at = (size_t)row * (size_t)e->n_used + (size_t)i;
        j->c->k->add(j->out + (size_t)row * (size_t)j->stride,
                     j->said + at * (size_t)e->hidden, j->weights[at], e->hidden);
    }
}

static void run_expert(pl_device *d, moe_job *j, int expert, int n_slots)
{
    pl_cpu *c = j->c;
    const pl_experts *e = j->e;
    int n = 0;
    for (int i = 0; i < n_slots; i++) {
        if (j->chosen[i] == expert) j->slots[n++] = i;
    }
    if (!n) return;
    pl_pool_run(c->pool, gather_row, j, n);
    c->gathered->n = c->gated->n = n;
    pl_linear in[2] = {{e->gate[expert], NULL, j->gate, e->ffn, false},
                       {e->up[expert], NULL, j->up, e->ffn, false}};
    pl_cpu_linear_run(d, in, 2, c->gathered);
    pl_pool_run(c->pool, gate_row, j, n);
    pl_linear down = {e->down[expert], NULL, j->down, e->hidden, false};
    pl_cpu_linear_run(d, &down, 1, c->gated);
    for (int i = 0; i < n; i++) {
        memcpy(j->said + (size_t)j->slots[i] * (size_t)e->hidden,
               j->down + (size_t)i * (size_t)e->hidden,
               (size_t)e->hidden * sizeof(float));
    }
}

/* Room for an expert that every row has chosen. */
static void reserve(pl_device *d, const pl_experts *e, const pl_acts *x)
{
    pl_cpu *c = pl_cpu_of(d);
    pl_acts *g = c->gathered;
    bool same = g && g->cap >= x->n && g->rows.k == x->rows.k &&
                g->rows.activations == x->rows.activations && c->gated->rows.k == e->ffn;
    if (same) return;
    pl_cpu_acts_close(d, c->gathered);
    pl_cpu_acts_close(d, c->gated);
    c->gathered = c->gated = NULL;
    int activations = x->rows.activations;
    if (pl_cpu_acts_open(d, x->cap, x->rows.k, activations, &c->gathered) < 0 ||
        pl_cpu_acts_open(d, x->cap, e->ffn, activations, &c->gated) < 0) {
        abort();
    }
}

void pl_cpu_experts(pl_device *d, const pl_experts *e, const pl_acts *x, float *out,
                    int stride)
{
    pl_cpu *c = pl_cpu_of(d);
    size_t n = (size_t)x->n, used = (size_t)e->n_used;
    size_t hidden = (size_t)e->hidden, ffn = (size_t)e->ffn;
    moe_job j = {.c = c, .e = e, .x = x, .out = out, .stride = stride};
    reserve(d, e, x);
    float *p =
        pl_cpu_scratch(c, n * ((size_t)e->n + used * (3 + hidden) + ffn * 2 + hidden));
    j.logits = p, p += n * (size_t)e->n;
    j.weights = p, p += n * used;
    j.said = p, p += n * used * hidden;
    j.gate = p, p += n * ffn;
    j.up = p, p += n * ffn;
    j.down = p, p += n * hidden;
    j.chosen = (int32_t *)(void *)p, p += n * used;
    j.slots = (int32_t *)(void *)p;
    pl_linear router = {e->router, NULL, j.logits, e->n, false};
    pl_cpu_linear_run(d, &router, 1, x);
    pl_pool_run(c->pool, choose_row, &j, x->n);
    for (int i = 0; i < e->n; i++) run_expert(d, &j, i, (int)(n * used));
    pl_pool_run(c->pool, add_row, &j, x->n);
}
