/* SPDX-License-Identifier: Apache-2.0
 *
 * A backend in a library of its own, as small as can be: the next token is the last one
 * and one more. Also built for another ABI, as "strange".
 */
#include "device.h"

#ifndef ABI
#define ABI PL_DEVICE_ABI
#endif

struct pl_planned {
    int32_t vocab;
    pl_step *step;
};

static void echo_close(pl_device *d)
{
    pl_free(d);
}

static const char *echo_name(const pl_device *d)
{
    (void)d;
    return "echo";
}

static const char *echo_numerics(const pl_device *d, int activations, bool bf16)
{
    (void)activations, (void)bf16;
    return echo_name(d);
}

static void *echo_alloc(pl_device *d, size_t bytes)
{
    (void)d;
    return pl_alloc_big(bytes);
}

static void echo_free(pl_device *d, void *p, size_t bytes)
{
    (void)d;
    pl_free_big(p, bytes);
}

/* 64 MiB, of which a quarter is always in use. */
static pl_status echo_memory(pl_device *d, int64_t *left, int64_t *all)
{
    (void)d;
    *all = 64 << 20;
    *left = 48 << 20;
    return PL_OK;
}

static pl_status echo_kv_check(pl_device *d, const pl_attention *a)
{
    (void)d;
    if (a->block_size > 0) return PL_OK;
    return pl_fail(PL_EUNSUPPORTED, "block_size is %d", a->block_size);
}

static size_t echo_kv_bytes(pl_device *d, const pl_attention *a)
{
    (void)d;
    return (size_t)a->block_size * 4;
}

static pl_status echo_prepare(pl_device *d, const pl_plan *plan, pl_planned **out)
{
    (void)d;
    *out = pl_alloc(sizeof **out);
    (*out)->vocab = plan->vocab;
    return PL_OK;
}

static void echo_discard(pl_planned *p)
{
    pl_free(p);
}

static pl_status echo_run(pl_planned *p, pl_step *s)
{
    p->step = s;
    return PL_OK;
}

static pl_status echo_wait(pl_planned *p, int timeout_ms)
{
    (void)timeout_ms;
    for (int32_t i = 0; i < p->step->n_seqs; i++) {
        pl_step_seq *q = &p->step->seqs[i];
        int32_t last = p->step->tokens[q->first + q->n_rows - 1];
        if (q->want & PL_WANT_TOKEN) q->sampled.token = (last + 1) % p->vocab;
    }
    return PL_OK;
}

static pl_device *echo_open(const pl_device_options *o)
{
    static const pl_device_ops ops = {
        .close = echo_close,
        .kernels = echo_name,
        .numerics = echo_numerics,
        .kv_layout = echo_name,
        .alloc = echo_alloc,
        .free = echo_free,
        .memory = echo_memory,
        .kv_check = echo_kv_check,
        .kv_bytes = echo_kv_bytes,
        .prepare = echo_prepare,
        .discard = echo_discard,
        .run = echo_run,
        .wait = echo_wait,
    };
    (void)o;
    pl_device *d = pl_alloc(sizeof *d);
    d->ops = &ops;
    d->depth = 1;
    return d;
}

PL_PLUGIN const pl_backend perilune_backend = {ABI, "echo", echo_open};
