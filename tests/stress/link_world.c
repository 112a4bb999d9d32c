/* SPDX-License-Identifier: Apache-2.0 */
#include "link_world.h"

#include "link_socket.h"

#include <unistd.h>

enum {
    HEAD = 16
};

static uint64_t stuff(const world *w, int from, int to, uint32_t series, uint32_t number)
{
    uint64_t who = (uint64_t)(from * MAX_PROCESSES + to) << 32 | series;
    return pl_random_at(w->seed, who, number);
}

static size_t size_of(const world *w, uint64_t dice)
{
    uint32_t max = w->max_bytes;
    switch (dice % 40) {
    case 0:
        return max;
    case 1:
        return dice / 40 % (max + 1);
    case 2:
        return HEAD;
    default:
        return HEAD + dice / 40 % 2000;
    }
}

/* A message: its series and number, then bytes that follow from them. Some are empty:
 * their kind alone says that they are one. */
static void fill(char *bytes, size_t len, uint64_t dice)
{
    for (size_t i = 0; i < len; i++)
        bytes[i] = (char)(dice >> (i % 8 * 8)) ^ (char)(i >> 8);
}

static bool right(const char *bytes, size_t len, uint64_t dice)
{
    for (size_t i = 0; i < len; i++)
        if (bytes[i] != (char)((char)(dice >> (i % 8 * 8)) ^ (char)(i >> 8)))
            return false;
    return true;
}

static int index_of(const world *w, const char *id)
{
    for (int i = 0; i < w->n; i++)
        if (!memcmp(w->processes[i].id, id, 16)) return i;
    return -1;
}

static int way_of(const process *p, const pl_link *l)
{
    for (int i = 0; i < p->world->n; i++)
        if (pl_link_peer(l) && p->ways[i].peer == pl_link_peer(l)) return i;
    for (int i = 0; i < p->world->n; i++)
        if (p->ways[i].link == l) return i;
    return -1;
}

/* ---- what links tell --------------------------------------------------------------- */

static void on_message(void *ctx, pl_link *l, int kind, const void *data, size_t len)
{
    process *p = ctx;
    world *w = p->world;
    uint32_t head[4];
    pl_lock(&w->lock);
    int from = way_of(p, l);
    MUST(from >= 0);
    way *v = &p->ways[from];
    if (kind == 1) { /* empty: the next of its series */
        MUST(len == 0 && v->in_next > 0);
        v->in_next++;
    } else {
        MUST(kind == 0 && len >= HEAD);
        memcpy(head, data, HEAD);
        MUST(head[3] == w->processes[from].life);
        if (head[0] != v->in_series) {
            MUST(head[0] > v->in_series && head[1] == 0 && v->may_begin);
            v->in_series = head[0];
            v->in_next = 0;
        }
        v->may_begin = false;
        MUST(head[1] == v->in_next);
        v->in_next++;
        uint64_t dice = stuff(w, from, p->index, head[0], head[1]);
        MUST(head[2] == (uint32_t)len);
        MUST(right((const char *)data + HEAD, len - HEAD, dice));
    }
    pl_unlock(&w->lock);
}

static void on_lost(void *ctx, pl_link *l, int why)
{
    process *p = ctx;
    pl_lock(&p->world->lock);
    int to = way_of(p, l);
    way *v = to < 0 ? NULL : &p->ways[to];
    bool held = v && v->link == l;
    if (v) {
        v->link = NULL;
        v->series++;
        v->sent = 0;
        v->may_begin = true;
        v->n_lost++;
        v->last_why = why;
    }
    pl_unlock(&p->world->lock);
    if (held) pl_link_release(l);
}

static void on_peer(void *ctx, int32_t peer, int why)
{
    process *p = ctx;
    world *w = p->world;
    pl_buf text = {0};
    pl_lock(&w->lock);
    if (!why) {
        MUST(pl_links_peer(p->links, peer, &text) == PL_OK);
        MUST(text.len > 23 && !memcmp(text.data, "{\"id\":\"", 7));
        int i = index_of(w, text.data + 7);
        if (i >= 0) {
            p->ways[i].peer = peer;
            p->ways[i].n_here++;
            p->ways[i].why = 0;
        }
    }
    for (int i = 0; why && i < w->n; i++) {
        if (p->ways[i].peer != peer) continue;
        p->ways[i].why = why;
        if (!p->ways[i].link) p->ways[i].peer = 0;
    }
    pl_unlock(&w->lock);
    pl_buf_fini(&text);
}

static void on_state(void *ctx, bool there)
{
    process *p = ctx;
    pl_lock(&p->world->lock);
    p->there = there;
    pl_unlock(&p->world->lock);
}

static void on_stats(void *ctx, pl_buf *out)
{
    (void)ctx;
    (void)out;
}

/* ---- a process --------------------------------------------------------------------- */

static void on_round(void *ctx)
{
    (void)ctx;
}

static void on_stop(void *ctx)
{
    process *p = ctx;
    pl_links_stop(p->links);
}

void process_open(world *w, int index)
{
    process *p = &w->processes[index];
    pl_lock(&w->lock);
    memset(p->ways, 0, sizeof p->ways);
    for (int i = 0; i < w->n; i++) {
        p->ways[i].may_begin = true;
        w->processes[i].ways[index].may_begin = true;
        w->processes[i].ways[index].in_series = 0;
        w->processes[i].ways[index].in_next = 0;
        p->ways[i].series = 1;
    }
    p->world = w;
    p->index = index;
    p->there = false;
    p->life++;
    snprintf(p->id, sizeof p->id, "%08x%04x%04x", (unsigned)w->seed & 0xffffffffu,
             p->life & 0xffff, (unsigned)index + 1);
    pl_unlock(&w->lock);
    p->loop = pl_loop_open(&(pl_loop_hooks){p, on_round, on_stop, on_round});
    MUST(p->loop);
    const pl_links_hooks hooks = {p, on_message, on_lost, on_peer, on_state, on_stats};
    p->links = pl_links_open(p->loop, &w->options, p->id, &hooks);
    MUST(p->links);
    if (w->far) *p->links->direct->own.net = 0;
    pl_links_hello(p->links, "{\"role\":\"worker\"}", 17);
}

void process_close(world *w, int index)
{
    process *p = &w->processes[index];
    pl_loop_stop(p->loop);
    pl_loop_put(p->loop);
    pl_links_close(p->links);
    p->loop = NULL;
}

/* ---- sending ----------------------------------------------------------------------- */

static void send_one(process *p, way *v, int to, pl_link *l)
{
    world *w = p->world;
    uint64_t dice = stuff(w, p->index, to, v->series, v->sent);
    size_t len = PL_MAX(size_of(w, dice), (size_t)HEAD);
    uint32_t head[4] = {v->series, v->sent, (uint32_t)len, p->life};
    bool empty = v->sent && dice % 40 == 3;
    char *bytes = empty ? NULL : pl_alloc(len);
    if (!empty) memcpy(bytes, head, HEAD);
    if (!empty) fill(bytes + HEAD, len - HEAD, dice);
    v->sent++;
    pl_link_send(l, empty, bytes, empty ? 0 : len);
    pl_free(bytes);
}

static void send_more(void *arg)
{
    process *p = arg;
    world *w = p->world;
    for (int to = 0; to < w->n; to++) {
        way *v = &p->ways[to];
        if (to == p->index || !v->peer) continue;
        if (!v->link) {
            v->link = pl_links_find(p->links, v->peer);
            if (!v->link) continue;
            pl_link_hold(v->link);
        }
        for (int i = 0; i < 20 && v->sent < w->goal; i++) send_one(p, v, to, v->link);
    }
}

static void step(world *w)
{
    for (int i = 0; i < w->n; i++)
        if (w->processes[i].loop)
            pl_loop_call(w->processes[i].loop, send_more, &w->processes[i]);
    usleep(5000);
}

static bool all_there(world *w)
{
    bool all = true;
    pl_lock(&w->lock);
    for (int i = 0; i < w->n; i++) {
        for (int k = 0; k < w->n; k++) {
            const process *from = &w->processes[i], *to = &w->processes[k];
            if (i == k || !from->loop || !to->loop) continue;
            const way *out = &from->ways[k], *in = &to->ways[i];
            all = all && out->series == in->in_series && in->in_next == w->goal;
        }
    }
    pl_unlock(&w->lock);
    return all;
}

void world_exchange(world *w, uint32_t n, uint32_t max_bytes)
{
    int64_t until = pl_now_ns() + PATIENCE_MS * INT64_C(1000000);
    w->goal += n;
    w->max_bytes = max_bytes;
    do {
        MUST(pl_now_ns() < until);
        step(w);
    } while (!all_there(w));
}

void world_push(world *w, int ms)
{
    int64_t until = pl_now_ns() + ms * INT64_C(1000000);
    while (pl_now_ns() < until) step(w);
}

void world_meet(world *w)
{
    int64_t until = pl_now_ns() + PATIENCE_MS * INT64_C(1000000);
    for (bool all = false; !all; usleep(5000)) {
        MUST(pl_now_ns() < until);
        all = true;
        pl_lock(&w->lock);
        for (int i = 0; i < w->n; i++)
            for (int k = 0; k < w->n; k++)
                if (i != k && w->processes[i].loop && w->processes[k].loop)
                    all = all && w->processes[i].ways[k].peer &&
                          !w->processes[i].ways[k].why;
        pl_unlock(&w->lock);
    }
}

int world_wait_lost(world *w, int from, int other, int n_lost)
{
    int64_t until = pl_now_ns() + PATIENCE_MS * INT64_C(1000000);
    const way *v = &w->processes[from].ways[other];
    for (;; usleep(2000)) {
        MUST(pl_now_ns() < until);
        pl_lock(&w->lock);
        int why = v->n_lost >= n_lost ? v->last_why : 0;
        pl_unlock(&w->lock);
        if (why) return why;
    }
}

int world_wait_gone(world *w, int from, int other)
{
    int64_t until = pl_now_ns() + PATIENCE_MS * INT64_C(1000000);
    const way *v = &w->processes[from].ways[other];
    for (;; usleep(2000)) {
        MUST(pl_now_ns() < until);
        pl_lock(&w->lock);
        int why = v->why;
        pl_unlock(&w->lock);
        if (why) return why;
    }
}

int world_lost(world *w)
{
    int n = 0;
    pl_lock(&w->lock);
    for (int i = 0; i < w->n; i++)
        for (int k = 0; k < w->n; k++) n += w->processes[i].ways[k].n_lost;
    pl_unlock(&w->lock);
    return n;
}

void world_must_not_lose(world *w, int before)
{
    int now = world_lost(w);
    pl_lock(&w->lock);
    for (int i = 0; i < w->n && now != before; i++)
        for (int k = 0; k < w->n; k++)
            if (w->processes[i].ways[k].n_lost)
                fprintf(stderr, "%d lost %d, last for reason %d\n", i, k,
                        w->processes[i].ways[k].last_why);
    pl_unlock(&w->lock);
    MUST(now == before);
}

void world_open(world *w, uint64_t seed, int n, const pl_bus_options *options)
{
    *w = (world){.seed = seed,
                 .n = n,
                 .options = *options,
                 .far = options->direct && options->direct_host};
    pl_mutex_init(&w->lock);
    for (int i = 0; i < n; i++) process_open(w, i);
}

void world_close(world *w)
{
    for (int i = 0; i < w->n; i++)
        if (w->processes[i].loop) process_close(w, i);
    pl_mutex_fini(&w->lock);
}
