/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU device: ops cut into tasks for the pool. How they are cut never changes a bit.
 */
#define _GNU_SOURCE
#include "device_cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    ROW_BLOCK = 64,
    TASKS_PER_THREAD = 8
};

float *pl_cpu_scratch(pl_cpu *c, size_t floats)
{
    size_t bytes = floats * sizeof(float);
    if (bytes > c->scratch_bytes) {
        pl_free_big(c->scratch, c->scratch_bytes);
        c->scratch_bytes = bytes + bytes / 4;
        c->scratch = pl_alloc_big(c->scratch_bytes);
        if (!c->scratch) abort();
    }
    return c->scratch;
}

/* ---- activations ------------------------------------------------------------------- */

/* Bytes of q for n values. */
static size_t codes_bytes(const pl_cpu_rows *r, size_t n)
{
    return r->activations == PL_ACT_INT8X2 ? n * 2 : n;
}

pl_status pl_cpu_acts_open(pl_device *d, int n_rows, int k, int activations,
                           pl_acts **out)
{
    pl_acts *a = pl_alloc(sizeof *a);
    pl_cpu_rows *r = &a->rows;
    a->cap = n_rows;
    r->k = k;
    r->activations = activations;
    r->stride = (size_t)(k + 63) / 64 * 64;
    size_t n = (size_t)n_rows * r->stride;
    r->f = pl_alloc_big(n * sizeof *r->f);
    bool ok = r->f != NULL;
    if (activations == PL_ACT_INT8 && pl_cpu_of(d)->k->bf16) {
        r->h = pl_alloc_big(n * sizeof *r->h);
        ok = ok && r->h;
    }
    if (activations != PL_ACT_FLOAT32 && k % 32 == 0) {
        r->q = pl_alloc_big(codes_bytes(r, n));
        r->d = pl_alloc_big(n / 32 * sizeof *r->d);
        r->ds = pl_alloc_big(n / 32 * sizeof *r->ds);
        r->minus_sum = pl_alloc_big(n / 16 * sizeof *r->minus_sum);
        ok = ok && r->q && r->d && r->ds && r->minus_sum;
    }
    if (!ok) {
        pl_cpu_acts_close(d, a);
        return pl_fail(PL_ENOMEM, "no memory for %d rows of %d activations", n_rows, k);
    }
    *out = a;
    return PL_OK;
}

void pl_cpu_acts_close(pl_device *d, pl_acts *a)
{
    (void)d;
    if (!a) return;
    pl_cpu_rows *r = &a->rows;
    size_t n = (size_t)a->cap * r->stride;
    pl_free_big(r->f, n * sizeof *r->f);
    pl_free_big(r->h, n * sizeof *r->h);
    pl_free_big(r->q, codes_bytes(r, n));
    pl_free_big(r->d, n / 32 * sizeof *r->d);
    pl_free_big(r->ds, n / 32 * sizeof *r->ds);
    pl_free_big(r->minus_sum, n / 16 * sizeof *r->minus_sum);
    pl_free(a);
}

/* ---- one row a task ---------------------------------------------------------------- */

typedef struct row_job {
    pl_cpu *c;
    const int32_t *picked;
    const float *x, *other;
    int stride, kind;
    float eps, scale;
    pl_acts *out;
    const pl_matrix *table;
    float *part, *to;
} row_job;

static float *acts_row(pl_acts *a, int row)
{
    return a->rows.f + (size_t)row * a->rows.stride;
}

static void norm_row(void *arg, int row, int thread)
{
    (void)thread;
    row_job *j = arg;
    const float *x =
        j->x + (size_t)(j->picked ? j->picked[row] : row) * (size_t)j->stride;
    j->c->k->norm(x, j->other, j->eps, j->out->rows.k, acts_row(j->out, row));
    j->c->k->reduce(&j->out->rows, row);
}

static void gate_row(void *arg, int row, int thread)
{
    (void)thread;
    row_job *j = arg;
    size_t at = (size_t)row * (size_t)j->stride;
    j->c->k->gate[j->kind](j->x + at, j->other + at, j->out->rows.k,
                           acts_row(j->out, row));
    j->c->k->reduce(&j->out->rows, row);
}

static void embed_row(void *arg, int row, int thread)
{
    (void)thread;
    row_job *j = arg;
    float *to = j->to + (size_t)row * (size_t)j->stride;
    pl_cpu_matrix_row(&j->table->m, j->c->rows->tokens[row], to);
    for (int i = 0; i < j->table->m.k; i++) to[i] *= j->scale;
}

static void add_norm_row(void *arg, int row, int thread)
{
    (void)thread;
    row_job *j = arg;
    float *to = j->to + (size_t)row * (size_t)j->stride;
    float *part = j->part + (size_t)row * (size_t)j->stride;
    j->c->k->norm(part, j->other, j->eps, j->stride, part);
    j->c->k->add(to, part, 1.0f, j->stride);
}

static void cap_row(void *arg, int row, int thread)
{
    (void)thread;
    row_job *j = arg;
    j->c->k->cap(j->to + (size_t)row * (size_t)j->stride, j->scale, j->stride);
}

static void cpu_norm(pl_device *d, const float *x, int stride, const float *weight,
                     float eps, pl_acts *out)
{
    pl_cpu *c = pl_cpu_of(d);
    row_job j = {
        .c = c, .x = x, .other = weight, .stride = stride, .eps = eps, .out = out};
    out->n = c->rows->n;
    pl_pool_run(c->pool, norm_row, &j, out->n);
}

static void cpu_pick(pl_device *d, const int32_t *rows, int n, const float *x, int stride,
                     const float *weight, float eps, pl_acts *out)
{
    pl_cpu *c = pl_cpu_of(d);
    row_job j = {.c = c,
                 .picked = rows,
                 .x = x,
                 .other = weight,
                 .stride = stride,
                 .eps = eps,
                 .out = out};
    out->n = n;
    pl_pool_run(c->pool, norm_row, &j, n);
}

static void cpu_gate(pl_device *d, int kind, const float *gate, const float *up,
                     int stride, pl_acts *out)
{
    pl_cpu *c = pl_cpu_of(d);
    row_job j = {
        .c = c, .kind = kind, .x = gate, .other = up, .stride = stride, .out = out};
    out->n = c->rows->n;
    pl_pool_run(c->pool, gate_row, &j, out->n);
}

static void load_row(void *arg, int row, int thread)
{
    (void)thread;
    row_job *j = arg;
    size_t k = (size_t)j->out->rows.k;
    memcpy(acts_row(j->out, row), j->x + (size_t)row * k, k * sizeof(float));
    j->c->k->reduce(&j->out->rows, row);
}

static void cpu_load(pl_device *d, const float *x, int n, pl_acts *out)
{
    row_job j = {.c = pl_cpu_of(d), .x = x, .out = out};
    out->n = n;
    pl_pool_run(j.c->pool, load_row, &j, n);
}

static void cpu_embed(pl_device *d, const pl_matrix *table, float scale, float *x,
                      int stride)
{
    pl_cpu *c = pl_cpu_of(d);
    row_job j = {.c = c, .table = table, .scale = scale, .to = x, .stride = stride};
    pl_pool_run(c->pool, embed_row, &j, c->rows->n);
}

static void cpu_add_norm(pl_device *d, float *part, const float *weight, float eps,
                         float *x, int n)
{
    pl_cpu *c = pl_cpu_of(d);
    row_job j = {.c = c, .part = part, .other = weight, .eps = eps, .to = x, .stride = n};
    pl_pool_run(c->pool, add_norm_row, &j, c->rows->n);
}

static void cpu_cap(pl_device *d, float *logits, int32_t vocab, int n, float cap)
{
    row_job j = {.c = pl_cpu_of(d), .to = logits, .stride = vocab, .scale = cap};
    pl_pool_run(j.c->pool, cap_row, &j, n);
}

/* ---- matrices ---------------------------------------------------------------------- */

enum {
    MAX_PARTS = 4
};

typedef struct linear_job {
    pl_cpu *c;
    pl_cpu_linear parts[MAX_PARTS];
    int n_parts, n_panels, group, n_groups; /* panels of all parts; panels a task */
    const pl_acts *x;
} linear_job;

/* Panels first .. first + group of the parts laid end to end, by a block of rows. */
static void linear_task(void *arg, int task, int thread)
{
    (void)thread;
    linear_job *j = arg;
    int row = task / j->n_groups * ROW_BLOCK;
    int first = task % j->n_groups * j->group,
        last = PL_MIN(first + j->group, j->n_panels);
    int rows = PL_MIN(j->x->n - row, ROW_BLOCK);
    for (int i = 0, at = 0; i < j->n_parts; i++) {
        int n = j->parts[i].w->n_panels, from = PL_MAX(first - at, 0),
            to = PL_MIN(last - at, n);
        if (from < to) {
            j->c->k->linear(j->parts + i, &j->x->rows, row, rows, from, to - from);
        }
        at += n;
    }
}

void pl_cpu_linear_run(pl_device *d, const pl_linear *parts, int n_parts,
                       const pl_acts *x)
{
    pl_cpu *c = pl_cpu_of(d);
    linear_job j = {.c = c, .n_parts = n_parts, .x = x};
    for (int i = 0; i < n_parts; i++) {
        const pl_linear *p = parts + i;
        j.parts[i] =
            (pl_cpu_linear){&p->w->m, p->bias, p->add, p->out, (size_t)p->out_stride};
        j.n_panels += p->w->m.n_panels;
    }
    int blocks = (x->n + ROW_BLOCK - 1) / ROW_BLOCK, threads = pl_pool_threads(c->pool);
    int wanted =
        threads == 1 ? 1 : PL_MAX(1, threads * TASKS_PER_THREAD / PL_MAX(blocks, 1));
    j.group = PL_MAX(1, (j.n_panels + wanted - 1) / wanted);
    j.n_groups = (j.n_panels + j.group - 1) / j.group;
    pl_pool_run(c->pool, linear_task, &j, blocks * j.n_groups);
}

/* ---- sampling: a row a task -------------------------------------------------------- */

typedef struct sample_job {
    pl_cpu *c;
    float *logits;
    int32_t vocab;
    const pl_draw *draws;
} sample_job;

static void sample_row(void *arg, int row, int thread)
{
    sample_job *j = arg;
    const pl_draw *w = j->draws + row;
    float *logits = j->logits + (size_t)row * (size_t)j->vocab;
    pl_sample_scratch *s = j->c->samplers[thread];
    if (w->logits) {
        memcpy(w->logits, logits, (size_t)j->vocab * sizeof *logits);
    } else if (w->sampler) {
        *w->token = pl_sample(s, logits, j->vocab, w->sampler, w->top);
    } else {
        pl_logprobs(s, logits, j->vocab, w->target, w->n_top, w->top);
    }
}

static void close_samplers(pl_cpu *c)
{
    for (int i = 0; i < pl_pool_threads(c->pool); i++) {
        pl_sample_scratch_close(c->samplers[i]);
        c->samplers[i] = NULL;
    }
}

static void cpu_sample(pl_device *d, float *logits, int32_t vocab, const pl_draw *draws,
                       int n)
{
    pl_cpu *c = pl_cpu_of(d);
    if (c->vocab != vocab) {
        close_samplers(c);
        c->vocab = vocab;
        for (int i = 0; i < pl_pool_threads(c->pool); i++) {
            c->samplers[i] = pl_sample_scratch_open(vocab);
        }
    }
    sample_job j = {c, logits, vocab, draws};
    pl_pool_run(c->pool, sample_row, &j, n);
}

/* ---- the device -------------------------------------------------------------------- */

static void *cpu_alloc(pl_device *d, size_t bytes)
{
    (void)d;
    return pl_alloc_big(bytes);
}

static void cpu_free(pl_device *d, void *p, size_t bytes)
{
    (void)d;
    pl_free_big(p, bytes);
}

static void cpu_write(pl_device *d, void *to, const void *from, size_t bytes)
{
    (void)d;
    memcpy(to, from, bytes);
}

static size_t cpu_matrix_bytes(const pl_matrix *w)
{
    return w->bytes;
}

static void cpu_begin(pl_device *d, const pl_rows *rows)
{
    pl_cpu_of(d)->rows = rows;
}

static const char *cpu_kernels(const pl_device *d)
{
    return ((const pl_cpu *)(const void *)d)->k->name;
}

/* All kernels agree, but for bf16 rows. */
static const char *cpu_numerics(const pl_device *d, int activations, bool bf16)
{
    if (activations == PL_ACT_FLOAT32) return "cpu-2-float32";
    if (activations == PL_ACT_INT8X2) return "cpu-2-int8x2";
    bf16 = bf16 && ((const pl_cpu *)(const void *)d)->k->bf16;
    return bf16 ? "cpu-2-int8-bf16" : "cpu-2-int8";
}

/* K by position within a dimension, V by dimension within a position: kv_of has it. */
static const char *cpu_kv_layout(const pl_device *d)
{
    (void)d;
    return "cpu-1";
}

static void cpu_close(pl_device *d)
{
    pl_cpu *c = pl_cpu_of(d);
    close_samplers(c);
    pl_free(c->samplers);
    pl_pool_close(c->pool);
    pl_cpu_acts_close(d, c->gathered);
    pl_cpu_acts_close(d, c->gated);
    pl_free_big(c->scratch, c->scratch_bytes);
    pl_free(c);
}

static const pl_device_ops cpu_ops = {
    .close = cpu_close,
    .kernels = cpu_kernels,
    .numerics = cpu_numerics,
    .kv_layout = cpu_kv_layout,
    .facts = PL_FACT_POST_NORMS | PL_FACT_GELU_TANH | PL_FACT_EMBED_SCALE |
             PL_FACT_ATTENTION_CAP | PL_FACT_LOGIT_CAP | PL_FACT_WINDOW_ROPE |
             PL_FACT_ROPE_DIMS,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .write = cpu_write,
    .kv_check = pl_cpu_kv_check,
    .kv_bytes = pl_cpu_kv_bytes,
    .matrix_open = pl_cpu_matrix_open,
    .matrix_close = pl_cpu_matrix_close,
    .matrix_bytes = cpu_matrix_bytes,
    .acts_open = pl_cpu_acts_open,
    .acts_close = pl_cpu_acts_close,
    .begin = cpu_begin,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .add_norm = cpu_add_norm,
    .load = cpu_load,
    .linear = pl_cpu_linear_run,
    .heads = pl_cpu_heads,
    .attend = pl_cpu_attend,
    .gate = cpu_gate,
    .experts = pl_cpu_experts,
    .pick = cpu_pick,
    .cap = cpu_cap,
    .sample = cpu_sample,
};

#if defined(__x86_64__)
/* clang has no word for it in __builtin_cpu_supports. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

/* The best that this CPU and this build have, or the one asked for if they have it. */
static const pl_cpu_kernels *choose(const char *name)
{
    const pl_cpu_kernels *have[5] = {&pl_cpu_scalar};
    int n = 1;
#if defined(__x86_64__)
    bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    bool avx512 = avx2 && __builtin_cpu_supports("avx512vnni") &&
                  __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
    if (avx2 && &pl_cpu_avx2) have[n++] = &pl_cpu_avx2;
    if (avx512 && &pl_cpu_avx512) have[n++] = &pl_cpu_avx512;
    if (avx512 && &pl_cpu_avx512bf16 && __builtin_cpu_supports("avx512bf16"))
        have[n++] = &pl_cpu_avx512bf16;
#endif
    if (!name || !*name || !strcmp(name, "auto")) return have[n - 1];
    for (int i = 0; i < n; i++) {
        if (!strcmp(name, have[i]->name)) return have[i];
    }
    return NULL;
}

/* The cores that this process may run on. */
static int count_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return PL_MAX(1, CPU_COUNT(&set));
    return (int)PL_MAX(1, sysconf(_SC_NPROCESSORS_ONLN));
}

static pl_device *cpu_open(const pl_device_options *o)
{
    const pl_cpu_kernels *k = choose(o->kernels);
    if (!k) {
        pl_fail(PL_EUNSUPPORTED,
                "no kernels '%s' on this CPU, wanted 'auto' (%s) or another", o->kernels,
                choose(NULL)->name);
        return NULL;
    }
    pl_cpu *c = pl_alloc(sizeof *c);
    c->device.ops = &cpu_ops;
    c->k = k;
    c->device.depth = PL_MAX(o->depth, 1);
    c->pool = pl_pool_open(o->n_threads ? o->n_threads : count_cores());
    if (!c->pool) {
        pl_fail(PL_ENOMEM, "no memory for a device");
        pl_free(c);
        return NULL;
    }
    c->samplers = pl_alloc((size_t)pl_pool_threads(c->pool) * sizeof *c->samplers);
    return &c->device;
}

const pl_backend pl_backend_cpu = {PL_DEVICE_ABI, "cpu", cpu_open};
