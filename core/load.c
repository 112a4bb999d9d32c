/* SPDX-License-Identifier: Apache-2.0 */
#include "load.h"

enum {
    MEMORY = 16 /* a mean follows the last that many values */
};

typedef struct sums {
    int32_t prefill; /* tokens */
    int32_t blocks, waiting, running;
} sums;

struct pl_load {
    atomic_int refs;
    int32_t block_size;
    atomic_int prefill, unread; /* tokens, of prompts without an answer yet */
    atomic_int blocks, waiting, running;
    atomic_int ttft_us, itl_us; /* io writes; 0: none yet */
    int32_t capacity;           /* lua */
    int32_t known;              /* at most so many tokens to prefill; negative: unknown */
    sums others;                /* lua */
};

pl_load *pl_load_open(int32_t block_size)
{
    pl_load *l = pl_alloc(sizeof *l);
    atomic_init(&l->refs, 1);
    l->block_size = PL_MAX(block_size, 1);
    l->known = -1;
    return l;
}

void pl_load_close(pl_load *l)
{
    if (l && atomic_fetch_sub(&l->refs, 1) == 1) pl_free(l);
}

static int32_t blocks_for(const pl_load *l, int32_t n_tokens)
{
    return (n_tokens + l->block_size - 1) / l->block_size;
}

/* ---- charges ----------------------------------------------------------------------- */

void pl_charge_begin(pl_charge *c, pl_load *to, int32_t n_tokens, int32_t n_cached)
{
    n_cached =
        PL_MAX(0, PL_MIN(n_cached, n_tokens - 1)); /* the last is always computed */
    *c = (pl_charge){.load = to,
                     .prefill = n_tokens - n_cached,
                     .unread = n_tokens,
                     .blocks = blocks_for(to, n_tokens) - n_cached / to->block_size,
                     .n_tokens = n_tokens,
                     .sent_ns = pl_now_ns()};
    atomic_fetch_add(&to->refs, 1);
    atomic_fetch_add(&to->prefill, c->prefill);
    atomic_fetch_add(&to->unread, c->unread);
    atomic_fetch_add(&to->blocks, c->blocks);
    atomic_fetch_add(&to->waiting, 1);
}

void pl_charge_unread(pl_charge *c)
{
    atomic_fetch_sub(&c->load->prefill, c->prefill);
    c->prefill = 0;
}

void pl_charge_started(pl_charge *c)
{
    if (!c->load || c->started) return;
    c->started = true;
    atomic_fetch_sub(&c->load->waiting, 1);
    atomic_fetch_add(&c->load->running, 1);
}

static void follow(atomic_int *mean, int64_t ns)
{
    int32_t us = (int32_t)PL_MAX(1, PL_MIN(ns / 1000, INT32_MAX / 2));
    int32_t was = atomic_load_explicit(mean, memory_order_relaxed);
    int32_t is = was ? was + (us - was) / MEMORY : us;
    atomic_store_explicit(mean, PL_MAX(is, 1), memory_order_relaxed);
}

static void answered(pl_charge *c)
{
    atomic_fetch_sub(&c->load->prefill, c->prefill);
    atomic_fetch_sub(&c->load->unread, c->unread);
    c->prefill = c->unread = 0;
}

void pl_charge_token(pl_charge *c, int64_t ns)
{
    if (!c->load) return;
    if (!c->heard) {
        c->heard = true;
        pl_charge_started(c);
        answered(c);
        follow(&c->load->ttft_us, ns - c->sent_ns);
    } else {
        follow(&c->load->itl_us, ns - c->last_ns);
    }
    c->last_ns = ns;
    if (c->n_tokens++ % c->load->block_size) return;
    c->blocks++; /* what it holds is full */
    atomic_fetch_add(&c->load->blocks, 1);
}

void pl_charge_end(pl_charge *c)
{
    pl_load *l = c->load;
    if (!l) return;
    answered(c);
    atomic_fetch_sub(&l->blocks, c->blocks);
    atomic_fetch_sub(c->started ? &l->running : &l->waiting, 1);
    c->load = NULL;
    pl_load_close(l);
}

/* ---- reports ----------------------------------------------------------------------- */

static int32_t bounded(int64_t said)
{
    return (int32_t)PL_MAX(0, PL_MIN(said, INT32_MAX / 4));
}

static int32_t beyond(int32_t said, int32_t ours)
{
    return PL_MAX(0, said - ours);
}

void pl_load_report(pl_load *l, const pl_engine_stats *s, int is_now)
{
    int32_t prefill = bounded(s->prefill_tokens), waiting = bounded(s->waiting);
    int32_t ours = atomic_load(&l->waiting), running = atomic_load(&l->running);
    l->capacity = bounded(s->blocks);
    l->known = is_now ? prefill : -1;
    l->others.prefill = beyond(prefill, atomic_load(&l->unread));
    l->others.blocks = beyond(bounded(s->blocks_used), atomic_load(&l->blocks));
    l->others.waiting = beyond(waiting, ours);
    l->others.running =
        beyond(waiting + bounded(s->running), ours + running + l->others.waiting);
}

void pl_load_look(const pl_load *l, pl_load_view *out)
{
    int32_t prefill = atomic_load(&l->prefill) + l->others.prefill;
    if (l->known >= 0) prefill = PL_MIN(prefill, l->known);
    int32_t blocks = atomic_load(&l->blocks) + l->others.blocks;
    *out = (pl_load_view){
        .prefilling = blocks_for(l, prefill),
        .decoding = blocks,
        .capacity = l->capacity,
        .free = PL_MAX(0, l->capacity - blocks),
        .waiting = atomic_load(&l->waiting) + l->others.waiting,
        .running = atomic_load(&l->running) + l->others.running,
        .ttft = (float)atomic_load(&l->ttft_us) * 1e-6f,
        .itl = (float)atomic_load(&l->itl_us) * 1e-6f,
    };
}
