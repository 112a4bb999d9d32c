/* SPDX-License-Identifier: Apache-2.0 */
#include "remote_own.h"

#include <assert.h>
#include <stdio.h>

/* ---- messages ---------------------------------------------------------------------- */

pl_status pl_reader_i32(pl_reader *in, int32_t *out)
{
    if (in->end - in->at < 4) return pl_fail(PL_EFORMAT, "the message ends too early");
    const uint8_t *b = (const uint8_t *)in->at;
    *out = (int32_t)((uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 |
                     (uint32_t)b[3] << 24);
    in->at += 4;
    return PL_OK;
}

void pl_remote_i32(pl_buf *b, int32_t v)
{
    uint32_t u = (uint32_t)v;
    uint8_t bytes[4] = {(uint8_t)u, (uint8_t)(u >> 8), (uint8_t)(u >> 16),
                        (uint8_t)(u >> 24)};
    pl_buf_add(b, bytes, sizeof bytes);
}

pl_status pl_reader_u64(pl_reader *in, uint64_t *out)
{
    int32_t low = 0, high = 0;
    PL_TRY(pl_reader_i32(in, &low));
    PL_TRY(pl_reader_i32(in, &high));
    *out = (uint64_t)(uint32_t)low | (uint64_t)(uint32_t)high << 32;
    return PL_OK;
}

void pl_remote_u64(pl_buf *b, uint64_t v)
{
    pl_remote_i32(b, (int32_t)(uint32_t)v);
    pl_remote_i32(b, (int32_t)(uint32_t)(v >> 32));
}

pl_buf *pl_remote_begin(pl_remote *r, int32_t first)
{
    PL_ON(IO);
    r->message.len = 0;
    pl_remote_i32(&r->message, first);
    return &r->message;
}

void pl_remote_send(pl_side *s, int kind)
{
    PL_ON(IO);
    if (s->link) pl_link_send(s->link, kind, s->r->message.data, s->r->message.len);
}

void pl_remote_malformed(pl_remote *r, const char *what)
{
    pl_metric_add(r->malformed, 1);
    int64_t now = pl_now_ns();
    if (now - r->complained_ns < 1000000000) return;
    r->complained_ns = now;
    pl_log(PL_LOG_WARN, "dropped a %s of another process: %s", what, pl_error_text());
}

void pl_remote_register(pl_remote *r, const pl_service *service)
{
    assert(r->n_services < PL_SERVICES);
    r->services[r->n_services++] = *service;
    for (int i = 0; i < service->n_kinds; i++) {
        const pl_message_kind *k = &service->kinds[i];
        assert(k->kind > 0 && k->kind < PL_MSG_KINDS && !r->kinds[k->kind].kind);
        r->kinds[k->kind].kind = k;
        r->kinds[k->kind].ctx = service->ctx;
    }
}

/* ---- sides ------------------------------------------------------------------------- */

pl_side *pl_side_take(pl_remote *r, pl_link *l, bool make)
{
    PL_ON(IO);
    pl_side *s = pl_map_find(&r->sides, (uintptr_t)l);
    if (!s && make) {
        s = pl_alloc(sizeof *s);
        s->r = r;
        s->link = l;
        pl_link_hold(l);
        pl_map_put(&r->sides, (uintptr_t)l, s);
    }
    if (s) s->n++;
    return s;
}

pl_side *pl_side_of(pl_remote *r, int32_t peer)
{
    pl_link *l = r->stopped ? NULL : pl_links_find(r->links, peer);
    return l ? pl_side_take(r, l, true) : NULL;
}

uint64_t pl_remote_process(pl_remote *r, int32_t peer)
{
    return peer ? pl_links_key(r->links, peer) : r->key;
}

static void let_go_of_link(pl_side *s)
{
    pl_link *l = s->link;
    if (!l) return;
    s->link = NULL;
    pl_map_remove(&s->r->sides, (uintptr_t)l);
    pl_link_release(l);
}

void pl_side_put(pl_side *s)
{
    PL_ON(IO);
    if (--s->n) return;
    let_go_of_link(s);
    pl_map_fini(&s->by_number);
    pl_buf_fini(&s->out);
    pl_free(s);
}

/* ---- what a link brings ------------------------------------------------------------ */

static void on_message(void *ctx, pl_link *l, int kind, const void *data, size_t len)
{
    pl_remote *r = ctx;
    if (kind < 0 || kind >= PL_MSG_KINDS || !r->kinds[kind].kind || r->stopped) return;
    const pl_message_kind *k = r->kinds[kind].kind;
    pl_side *s = pl_side_take(r, l, k->begins);
    if (!s) return;
    pl_reader in = {data, (const char *)data + len};
    if (k->take(r->kinds[kind].ctx, s, in) < 0) pl_remote_malformed(r, k->name);
    pl_side_put(s);
}

static void on_lost(void *ctx, pl_link *l, int why)
{
    pl_remote *r = ctx;
    for (int i = 0; i < r->n_services; i++)
        if (r->services[i].link_lost) r->services[i].link_lost(r->services[i].ctx, l);
    pl_side *s = pl_side_take(r, l, false);
    if (!s) return;
    let_go_of_link(s);
    for (int i = 0; i < r->n_services; i++)
        if (r->services[i].lost) r->services[i].lost(r->services[i].ctx, s, why);
    pl_side_put(s);
}

static void on_stats(void *ctx, pl_buf *out)
{
    const pl_remote *r = ctx;
    for (int i = 0; i < MAX_SERVED; i++) {
        pl_engine_stats st;
        if (!r->served[i]) continue;
        pl_engine_stats_get(r->served[i], &st);
        pl_wire_put_engine(out, (uint32_t)i, &st, pl_now_ns());
    }
}

/* ---- news for Lua ------------------------------------------------------------------ */

static void on_state(void *ctx, bool there)
{
    pl_remote *r = ctx;
    pl_loop_tell_newest(r->loop, &r->bus_news, there, 0);
}

typedef struct known { /* what Lua is to hear of a process */
    pl_news news;
    atomic_int refs; /* of the line, and while it is there */
} known;

static void put_known(known *p)
{
    if (atomic_fetch_sub(&p->refs, 1) == 1) pl_free(p);
}

static bool known_taken(pl_news *news, bool lost)
{
    put_known((known *)news);
    return !lost;
}

static void on_peer(void *ctx, int32_t id, int why)
{
    pl_remote *r = ctx;
    known *p = pl_map_find(&r->peers, (uint64_t)id);
    if (!p) {
        p = pl_alloc(sizeof *p);
        p->news.event = (pl_event){.kind = PL_EV_PEER, .id = id};
        p->news.taken = known_taken;
        atomic_init(&p->refs, 1);
        pl_map_put(&r->peers, (uint64_t)id, p);
    }
    atomic_fetch_add(&p->refs, 1);
    if (!pl_loop_tell_newest(r->loop, &p->news, why, 0)) put_known(p);
    if (!why) return;
    pl_map_remove(&r->peers, (uint64_t)id);
    put_known(p);
}

/* ---- lua --------------------------------------------------------------------------- */

static void run_begin(void *arg)
{
    pl_calls_begin(arg);
}

pl_status pl_remote_join(pl_remote *r, const pl_bus_options *options)
{
    PL_ON(LUA);
    if (r->links) return pl_fail(PL_EINVAL, "this process is on a bus already");
    pl_loop_call(r->loop, run_begin, r);
    pl_links *links = pl_links_open(
        r->loop, options, r->id,
        &(pl_links_hooks){r, on_message, on_lost, on_peer, on_state, on_stats});
    if (!links) return PL_EINVAL;
    r->links = links;
    pl_sequences_join(r);
    return PL_OK;
}

const char *pl_remote_id(const pl_remote *r)
{
    return r->id;
}

void pl_remote_hello(pl_remote *r, const char *json, size_t len)
{
    PL_ON(LUA);
    if (r->links) pl_links_hello(r->links, json, len);
}

pl_status pl_remote_peer(pl_remote *r, int32_t peer, pl_buf *out)
{
    PL_ON(LUA);
    if (!r->links) return pl_fail(PL_ENOTFOUND, "no process %d: there is no bus", peer);
    return pl_links_peer(r->links, peer, out);
}

pl_status pl_remote_stats(pl_remote *r, int32_t peer, int index, pl_engine_stats *out)
{
    PL_ON(LUA);
    if (!r->links) return pl_fail(PL_ENOTFOUND, "no process %d: there is no bus", peer);
    return pl_links_stats(r->links, peer, index, out);
}

typedef struct serving {
    pl_remote *r;
    int index;
    pl_engine *engine;
} serving;

static void run_serve(void *arg)
{
    const serving *s = arg;
    if (s->r->served[s->index] != s->engine) pl_followers_drop(s->r, s->index);
    s->r->served[s->index] = s->engine;
}

void pl_remote_serve(pl_remote *r, int index, pl_engine *e)
{
    PL_ON(LUA);
    if (index < 0 || index >= MAX_SERVED) {
        pl_log(PL_LOG_ERROR, "no engine can be served as %d: wanted 0 to %d", index,
               MAX_SERVED - 1);
        return;
    }
    pl_loop_call(r->loop, run_serve, &(serving){r, index, e});
}

void pl_remote_forget(pl_remote *r, const pl_engine *e)
{
    PL_ON(IO);
    for (int i = 0; i < MAX_SERVED; i++) {
        if (r->served[i] != e) continue;
        pl_followers_drop(r, i);
        r->served[i] = NULL;
    }
}

/* ---- life -------------------------------------------------------------------------- */

pl_remote *pl_remote_open(pl_loop *loop, pl_courses *courses, pl_xfer *xfer)
{
    pl_remote *r = pl_alloc(sizeof *r);
    r->loop = loop;
    r->courses = courses;
    r->xfer = xfer;
    r->key = pl_entropy() | 1;
    snprintf(r->id, sizeof r->id, "%016llx", (unsigned long long)r->key);
    r->bus_news.event.kind = PL_EV_BUS;
    r->malformed = pl_metric_open(PL_COUNTER, "perilune_bus_malformed_messages_total", "",
                                  "Malformed messages from other processes.", NULL, 0);
    pl_sequences_open(r);
    pl_calls_open(r);
    pl_followers_open(r);
    pl_crossings_open(r);
    return r;
}

void pl_remote_stop(pl_remote *r)
{
    PL_ON(IO);
    r->stopped = true;
    pl_calls_stop(r);
    pl_followers_stop(r);
    uint32_t at = 0;
    for (pl_side *s; (s = pl_map_next(&r->sides, &at)); at = 0) on_lost(r, s->link, 0);
    if (r->links) pl_links_stop(r->links);
}

void pl_remote_close(pl_remote *r)
{
    if (r->links) pl_links_close(r->links);
    uint32_t at = 0;
    for (known *k; (k = pl_map_next(&r->peers, &at));) put_known(k);
    pl_map_fini(&r->peers);
    pl_map_fini(&r->sides);
    pl_sequences_close(r);
    pl_followers_close(r);
    pl_map_fini(&r->asked);
    pl_buf_fini(&r->message);
    pl_free(r);
}
