/* SPDX-License-Identifier: Apache-2.0
 *
 * route_follow.c - what workers tell of their caches, until it is in the index.
 *
 * Owns     each worker's inbox; whether its holdings are known, and when they are asked for.
 * Ignores  where changes come from, but for engines of this process.
 * Thread   push, lost, put: any. The rest: lua.
 */
#include "engine.h"
#include "route_own.h"

#include <stdio.h>

enum {
    MAX_KEYS = 4 << 20, /* in a worker's inbox; what comes beyond makes it start anew */
    MAX_BATCHES = 1 << 16
};
#define ASK_AGAIN INT64_C(500000000)
#define PATIENCE INT64_C(2000000000) /* with changes that were counted and do not come */

struct bell { /* whether any inbox has something */
    atomic_int refs;
    atomic_bool rung;
};

struct pl_source {
    atomic_int refs; /* the index's and the teller's */
    bell *bell;
    pl_mutex lock; /* over: */
    pl_changes **inbox;
    int32_t n, cap;
    int64_t n_keys;
    bool is_lost, is_over;

    /* lua */
    pl_source_hooks hooks;
    void *ctx;
    bool is_known;
    uint64_t expected; /* the count from which its next changes go on */
    int64_t asked_ns;
    uint64_t said; /* its count, by another way, and since when that is missed */
    int64_t said_ns;
};

/* ---- any --------------------------------------------------------------------------- */

static void put_bell(bell *b)
{
    if (atomic_fetch_sub(&b->refs, 1) == 1) pl_free(b);
}

static void empty(pl_source *s)
{
    for (int32_t i = 0; i < s->n; i++) pl_changes_put(s->inbox[i]);
    s->n = 0;
    s->n_keys = 0;
}

void pl_source_put(pl_source *s)
{
    if (atomic_fetch_sub(&s->refs, 1) > 1) return;
    empty(s);
    put_bell(s->bell);
    pl_mutex_fini(&s->lock);
    pl_free(s->inbox);
    pl_free(s);
}

static void lose(pl_source *s)
{
    empty(s);
    s->is_lost = true;
}

void pl_source_push(pl_source *s, pl_changes *c)
{
    pl_lock(&s->lock);
    if (c->is_whole) { /* what was told before is void */
        empty(s);
        s->is_lost = false;
    } else if (s->n_keys + c->n_keys > MAX_KEYS || s->n >= MAX_BATCHES) {
        lose(s);
    }
    if (s->is_lost || s->is_over) {
        pl_changes_put(c);
    } else {
        if (s->n == s->cap) {
            s->cap = PL_MAX(16, 2 * s->cap);
            s->inbox = pl_realloc(s->inbox, (size_t)s->cap * sizeof *s->inbox);
        }
        s->inbox[s->n++] = c;
        s->n_keys += c->n_keys;
    }
    pl_unlock(&s->lock);
    atomic_store(&s->bell->rung, true);
}

void pl_source_lost(pl_source *s)
{
    pl_lock(&s->lock);
    lose(s);
    pl_unlock(&s->lock);
    atomic_store(&s->bell->rung, true);
}

/* ---- lua --------------------------------------------------------------------------- */

static void ask(pl_source *s, int64_t now)
{
    if (s->asked_ns && now - s->asked_ns < ASK_AGAIN) return;
    s->asked_ns = now;
    s->hooks.ask(s->ctx);
}

static void set_unknown(pl_route *x, int worker, pl_source *s)
{
    if (s->is_known) {
        x->gaps++;
        pl_metric_add(x->metrics.gaps, 1);
    }
    s->is_known = false;
    pl_route_forget(x, worker);
}

static void take_runs(pl_route *x, int worker, const pl_changes *c)
{
    const uint64_t *keys = c->keys;
    for (int32_t i = 0; i < c->n_runs; i++) {
        pl_change_run run = c->runs[i];
        if (run.kind == PL_CHANGE_STORED) {
            pl_route_store(x, worker, keys, run.n);
        } else if (run.kind == PL_CHANGE_REMOVED) {
            pl_route_remove(x, worker, keys, run.n);
        } else {
            pl_route_forget(x, worker);
            pl_route_revive(x, worker);
        }
        keys += run.n;
        pl_metric_add(x->metrics.applied[run.kind], PL_MAX(1, run.n));
    }
}

static void take(pl_route *x, int worker, pl_source *s, const pl_changes *c)
{
    if (c->is_whole) {
        pl_route_forget(x, worker);
        s->is_known = pl_route_revive(x, worker) == PL_OK;
    } else if (s->is_known && c->after <= s->expected) {
        return; /* it was told before */
    } else if (c->before != s->expected) {
        set_unknown(x, worker, s);
    }
    if (!s->is_known) return;
    take_runs(x, worker, c);
    s->expected = c->after;
}

static int64_t apply(pl_route *x, int worker, pl_source *s)
{
    pl_lock(&s->lock);
    pl_changes **list = s->inbox;
    int32_t n = s->n;
    int64_t n_keys = s->n_keys;
    bool is_lost = s->is_lost;
    s->inbox = NULL;
    s->n = s->cap = 0;
    s->n_keys = 0;
    s->is_lost = false;
    pl_unlock(&s->lock);
    if (is_lost) set_unknown(x, worker, s);
    for (int32_t i = 0; i < n; i++) {
        take(x, worker, s, list[i]);
        pl_changes_put(list[i]);
    }
    pl_free(list);
    return n_keys;
}

void pl_route_show(pl_route *x)
{
    if (!x->is_followed) return; /* what it holds nobody told */
    pl_metric_add(x->metrics.blocks, (double)(x->n_held - x->n_shown));
    x->n_shown = x->n_held;
}

int64_t pl_route_apply(pl_route *x)
{
    PL_ON(LUA);
    if (!atomic_load_explicit(&x->bell->rung, memory_order_relaxed) ||
        !atomic_exchange(&x->bell->rung, false))
        return 0;
    int64_t n = 0;
    for (int w = 0; w < x->n_planes * PLANE; w++) {
        pl_source *s = x->sources[w];
        if (!s) continue;
        n += apply(x, w, s);
        if (!s->is_known) ask(s, pl_now_ns());
    }
    pl_route_show(x);
    return n;
}

int pl_route_check(pl_route *x, int worker, int64_t changed)
{
    PL_ON(LUA);
    pl_source *s =
        worker >= 0 && worker < x->n_planes * PLANE ? x->sources[worker] : NULL;
    if (!s) return 0;
    pl_route_apply(x);
    int64_t now = pl_now_ns();
    if (!s->said_ns || !s->is_known || s->expected >= s->said) {
        s->said = (uint64_t)changed;
        s->said_ns = now;
    } else if (now - s->said_ns > PATIENCE) {
        set_unknown(x, worker, s);
    }
    if (!s->is_known) ask(s, now);
    return s->is_known;
}

pl_status pl_route_source(pl_route *x, int worker, const pl_source_hooks *hooks,
                          void *ctx, pl_source **out)
{
    PL_ON(LUA);
    if (worker < 0 || worker >= x->n_planes * PLANE ||
        !(x->planes[worker / PLANE].taken >> worker % PLANE & 1))
        return pl_fail(PL_ENOTFOUND, "no worker %d in this index", worker);
    if (x->sources[worker])
        return pl_fail(PL_EINVAL, "worker %d of this index is followed already", worker);
    pl_source *s = pl_alloc(sizeof *s);
    *s = (pl_source){.refs = 2, .bell = x->bell, .hooks = *hooks, .ctx = ctx};
    atomic_fetch_add(&x->bell->refs, 1);
    pl_mutex_init(&s->lock);
    x->sources[worker] = s;
    x->is_followed = true;
    pl_route_forget(x, worker);
    *out = s;
    ask(s, pl_now_ns());
    return PL_OK;
}

void pl_route_unfollow(pl_route *x, int worker)
{
    pl_source *s = x->sources[worker];
    if (!s) return;
    x->sources[worker] = NULL;
    pl_lock(&s->lock);
    empty(s);
    s->is_over = true;
    pl_unlock(&s->lock);
    s->hooks.stop(s->ctx);
    pl_source_put(s);
}

static void open_metrics(pl_route *x)
{
    static const char *const kinds[] = {NULL, "stored", "removed", "cleared"};
    char label[64];
    for (int i = PL_CHANGE_STORED; i <= PL_CHANGE_CLEARED; i++) {
        snprintf(label, sizeof label, "status=\"ok\",event_type=\"%s\"", kinds[i]);
        x->metrics.applied[i] = pl_metric_open(
            PL_COUNTER, "dynamo_component_kv_cache_events_applied", label,
            "Blocks that workers' caches gained or lost, by their word.", NULL, 0);
    }
    x->metrics.blocks = pl_metric_open(
        PL_GAUGE, "perilune_kv_index_blocks", "",
        "Blocks that workers are known to hold, counted for each worker.", NULL, 0);
    x->metrics.gaps = pl_metric_open(
        PL_COUNTER, "perilune_kv_index_gaps_total", "",
        "Times that it was not known any more what a worker holds.", NULL, 0);
}

void pl_route_inbox_open(pl_route *x)
{
    open_metrics(x);
    x->bell = pl_alloc(sizeof *x->bell);
    atomic_init(&x->bell->refs, 1);
}

void pl_route_inbox_close(pl_route *x)
{
    for (int w = 0; w < x->n_planes * PLANE; w++) pl_route_leave(x, w);
    put_bell(x->bell);
}

/* ---- an engine of this process ----------------------------------------------------- */

typedef struct local {
    pl_engine *engine; /* NULL: it is closed, which is done by the lua thread */
    pl_source *source;
} local;

static void hear(void *ctx, pl_changes *c)
{
    local *l = ctx;
    if (c) {
        pl_source_push(l->source, c);
        return;
    }
    l->engine = NULL;
    pl_source_lost(l->source);
}

static void ask_engine(void *ctx)
{
    local *l = ctx;
    if (l->engine && pl_engine_tap(l->engine, hear, l, false) < 0)
        pl_log(PL_LOG_WARN, "an engine's cache cannot be followed: %s", pl_error_text());
}

static void stop_engine(void *ctx)
{
    local *l = ctx;
    if (l->engine) pl_engine_untap(l->engine, l);
    pl_source_put(l->source);
    pl_free(l);
}

pl_status pl_route_follow(pl_route *x, int worker, pl_engine *e)
{
    static const pl_source_hooks hooks = {ask_engine, stop_engine};
    local *l = pl_alloc(sizeof *l);
    l->engine = e;
    pl_status status = pl_route_source(x, worker, &hooks, l, &l->source);
    if (status < 0) pl_free(l);
    return status;
}
