/* SPDX-License-Identifier: Apache-2.0
 *
 * A device that computes nothing: what is measured over it is the rest. It answers at
 * once, or takes $PERILUNE_NULL_STEP_US for a step, as a real one would take some time.
 */
#include "device.h"

#include <stdlib.h>
#include <time.h>

struct pl_planned {
    int32_t vocab;
    int64_t step_ns;
    int64_t done_ns[2]; /* of the steps in flight, oldest first */
    int n;
};

/* The token depends on its position alone. */
static int32_t token_at(const pl_planned *p, int32_t position)
{
    return (int32_t)(((int64_t)position * 7 + 11) % p->vocab);
}

/* The n_top tokens that follow it by number, as if they were the best. */
static void fill_top(const pl_planned *p, int32_t first, int32_t token, int32_t n_top,
                     pl_logprob *top)
{
    top[0] = (pl_logprob){first, 1, -1};
    for (int32_t k = 1; k <= n_top; k++)
        top[k] = (pl_logprob){(token + k - 1) % p->vocab, k, -(float)k};
}

static void answer(const pl_planned *p, pl_step_seq *q)
{
    for (int32_t i = 0; q->want & PL_WANT_ROWS && i < q->n_rows; i++) {
        int32_t token = token_at(p, q->position + i + 1);
        if (q->targets[i] >= 0)
            fill_top(p, q->targets[i], token, q->n_top, q->rows + i * (1 + q->n_top));
    }
    if (!(q->want & PL_WANT_TOKEN)) return;
    int32_t token = q->sampled.token = token_at(p, q->sampler.position);
    if (q->top) fill_top(p, token, token, q->sampled.n_top - 1, q->top);
}

static pl_status null_run(pl_planned *p, pl_step *s)
{
    int64_t now = pl_now_ns();
    for (int32_t i = 0; i < s->n_seqs; i++) answer(p, &s->seqs[i]);
    p->done_ns[p->n] = p->step_ns + (p->n ? PL_MAX(now, p->done_ns[p->n - 1]) : now);
    p->n++;
    return PL_OK;
}

static pl_status null_wait(pl_planned *p, int timeout_ms)
{
    int64_t left = p->step_ns ? p->done_ns[0] - pl_now_ns() : 0;
    int64_t wait = PL_MIN(left, (int64_t)timeout_ms * 1000000);
    if (wait > 0)
        nanosleep(&(struct timespec){wait / 1000000000, wait % 1000000000}, NULL);
    if (wait < left) return PL_EAGAIN;
    p->done_ns[0] = p->done_ns[1];
    p->n--;
    return PL_OK;
}

static pl_status null_prepare(pl_device *d, const pl_plan *plan, pl_planned **out)
{
    (void)d;
    const char *text = getenv("PERILUNE_NULL_STEP_US");
    long us = text ? strtol(text, NULL, 10) : 0;
    *out = pl_alloc(sizeof **out);
    (*out)->vocab = plan->vocab;
    (*out)->step_ns = PL_MIN(PL_MAX(us, 0), 1000000000) * 1000ll;
    return PL_OK;
}

static void null_discard(pl_planned *p)
{
    pl_free(p);
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

static const char *null_numerics(const pl_device *d, int activations, bool bf16)
{
    (void)activations, (void)bf16;
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

/* Enough to be sent and recognised; the size that a real model has would be for
 * nothing. */
static size_t null_kv_bytes(pl_device *d, const pl_attention *a)
{
    (void)d, (void)a;
    return 256;
}

static pl_device *null_open(const pl_device_options *o)
{
    static const pl_device_ops ops = {
        .close = null_close,
        .kernels = null_name,
        .numerics = null_numerics,
        .kv_layout = null_name,
        .facts = -1, /* all: it computes none */
        .alloc = null_alloc,
        .free = null_free,
        .kv_check = null_kv_check,
        .kv_bytes = null_kv_bytes,
        .prepare = null_prepare,
        .discard = null_discard,
        .run = null_run,
        .wait = null_wait,
    };
    pl_device *d = pl_alloc(sizeof *d);
    d->ops = &ops;
    d->depth = PL_MAX(o->depth, 1);
    return d;
}

const pl_backend pl_backend_null = {PL_DEVICE_ABI, "null", null_open};
