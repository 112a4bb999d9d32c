/* SPDX-License-Identifier: Apache-2.0
 *
 * A device that computes nothing: what is measured over it is the rest. It answers at
 * once, or takes $PERILUNE_NULL_STEP_US for a step, as a real one would take some time.
 */
#include "device.h"

#include <stdlib.h>
#include <time.h>

typedef struct null_device {
    pl_device base;
    struct timespec step;
} null_device;

/* The token depends on its position alone. */
static pl_status null_step(pl_device *d, int32_t vocab, const pl_draw *draws, int n)
{
    const null_device *null = (const null_device *)d;
    if (null->step.tv_sec || null->step.tv_nsec) nanosleep(&null->step, NULL);
    for (int i = 0; i < n; i++) {
        const pl_draw *w = draws + i;
        int32_t token = (int32_t)(((int64_t)w->position * 7 + 11) % vocab);
        if (w->token) *w->token = token;
        if (!w->top) continue;
        for (int k = 0; k <= w->n_top; k++) {
            int32_t rank = k ? k : 1, best = (token + rank - 1) % vocab;
            w->top[k] =
                (pl_logprob){w->sampler || k ? best : w->target, rank, -(float)rank};
        }
    }
    return PL_OK;
}

static void null_close(pl_device *d)
{
    pl_free(d);
}

static const char *null_name(const pl_device *d)
{
    (void)d;
    return "null";
}

static const char *null_numerics(const pl_device *d, bool reduced)
{
    (void)reduced;
    return null_name(d);
}

static void *null_alloc(pl_device *d, size_t bytes)
{
    (void)d;
    return pl_alloc_big(bytes);
}

static void null_free(pl_device *d, void *p, size_t bytes)
{
    (void)d;
    pl_free_big(p, bytes);
}

static pl_status null_kv_check(pl_device *d, const pl_attention *a)
{
    (void)d, (void)a;
    return PL_OK;
}

/* Enough to be sent and recognised; the size that a real model has would be for nothing.
 */
static size_t null_kv_bytes(pl_device *d, const pl_attention *a)
{
    (void)d, (void)a;
    return 256;
}

pl_device *pl_device_null_open(void)
{
    static const pl_device_ops ops = {
        .close = null_close,
        .kernels = null_name,
        .numerics = null_numerics,
        .step = null_step,
        .alloc = null_alloc,
        .free = null_free,
        .kv_check = null_kv_check,
        .kv_bytes = null_kv_bytes,
    };
    null_device *d = pl_alloc(sizeof *d);
    d->base.ops = &ops;
    const char *text = getenv("PERILUNE_NULL_STEP_US");
    long us = text ? strtol(text, NULL, 10) : 0;
    if (us > 0) d->step = (struct timespec){us / 1000000, us % 1000000 * 1000};
    return &d->base;
}
