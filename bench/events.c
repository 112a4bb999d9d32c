/* SPDX-License-Identifier: Apache-2.0
 *
 * events.c - workers whose caches change without pause, and a frontend that follows them: how
 * far behind is its index?
 *
 *   cmake --build build --target events_bench
 *   build/events_bench [WORKERS [BLOCKS_PER_SECOND [SECONDS [NATS_URL]]]]
 *
 * Each worker has an io thread of its own and sends a batch every 10 ms, half of it stored,
 * half removed. The frontend is a whole one but for Lua: it applies what has come every
 * 20 ms, as fleet/holdings.lua does, and looks the first key of each batch up. Without a
 * URL the bus is a hub in this process. Prints a table, then a line of JSON.
 */
#include "link.h"
#include "remote.h"
#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_WORKERS = 64,
    EVERY_MS = 10,
    APPLY_MS = 20,
    HELD = 20, /* batches */
    MAX_SENT = 1 << 16
};

#define MUST(cond)                                                             \
    do {                                                                       \
        if (!(cond)) {                                                         \
            fprintf(stderr, "%s: %s (%s)\n", #cond, "false", pl_error_text()); \
            abort();                                                           \
        }                                                                      \
    } while (0)

typedef struct worker {
    int index;
    char id[17];
    pl_loop *loop;
    pl_links *links;
    pl_link *follower; /* io */
    uv_timer_t timer;
    uint64_t count;
    int64_t sent_ns[MAX_SENT]; /* of each batch */
    atomic_int n_sent;
} worker;

static worker workers[MAX_WORKERS];
static int n_workers = 16, per_batch = 1000, seconds = 10;
static atomic_bool over;

static uint64_t key_of(const worker *w, uint64_t batch, uint64_t i)
{
    return pl_random_at((uint64_t)w->index, batch, i);
}

/* ---- a worker; io ------------------------------------------------------------------ */

static void send_changes(worker *w, pl_change_log *log, bool is_whole)
{
    uint64_t after = w->count + (uint64_t)log->n_keys;
    pl_changes *c = pl_change_log_take(log, w->count, after);
    c->is_whole = is_whole;
    w->count = after;
    pl_buf message = {0};
    pl_remote_i32(&message, 0);
    pl_wire_put_changes(&message, c);
    pl_link_send(w->follower, PL_MSG_CHANGES, message.data, message.len);
    pl_buf_fini(&message);
    pl_changes_put(c);
}

static void on_tick(uv_timer_t *timer)
{
    worker *w = timer->data;
    int n = atomic_load(&w->n_sent);
    if (!w->follower || atomic_load(&over) || n == MAX_SENT) return;
    pl_change_log log = {0};
    for (int i = 0; i < per_batch / 2; i++)
        pl_change_log_add(&log, PL_CHANGE_STORED, key_of(w, (uint64_t)n, (uint64_t)i));
    for (int i = 0; n >= HELD && i < per_batch / 2; i++)
        pl_change_log_add(&log, PL_CHANGE_REMOVED,
                          key_of(w, (uint64_t)n - HELD, (uint64_t)i));
    w->sent_ns[n] = pl_now_ns();
    send_changes(w, &log, false);
    pl_change_log_fini(&log);
    atomic_store(&w->n_sent, n + 1);
}

static void on_message(void *ctx, pl_link *l, int kind, const void *data, size_t len)
{
    worker *w = ctx;
    (void)data;
    (void)len;
    if (kind != PL_MSG_FOLLOW) return;
    pl_change_log log = {0};
    w->follower = l;
    send_changes(w, &log, true);
}

static void on_lost(void *ctx, pl_link *l, int why)
{
    (void)l;
    ((worker *)ctx)->follower = NULL;
    fprintf(stderr, "a worker lost its follower: %d\n", why);
}

static void on_peer(void *ctx, int32_t peer, int why)
{
    (void)ctx, (void)peer, (void)why;
}

static void on_state(void *ctx, bool there)
{
    (void)ctx, (void)there;
}

static void on_stats(void *ctx, pl_buf *out)
{
    (void)ctx, (void)out;
}

static void do_nothing(void *ctx)
{
    (void)ctx;
}

static void on_stop(void *ctx)
{
    worker *w = ctx;
    uv_close((uv_handle_t *)&w->timer, NULL);
    pl_links_stop(w->links);
}

static void start_timer(void *arg)
{
    worker *w = arg;
    uv_timer_init(pl_loop_uv(w->loop), &w->timer);
    w->timer.data = w;
    uv_timer_start(&w->timer, on_tick, EVERY_MS, EVERY_MS);
}

static void open_worker(worker *w, int index, const pl_bus_options *o)
{
    w->index = index;
    snprintf(w->id, sizeof w->id, "%016llx", (unsigned long long)pl_entropy());
    w->loop = pl_loop_open(&(pl_loop_hooks){w, do_nothing, on_stop, do_nothing});
    MUST(w->loop);
    w->links = pl_links_open(
        w->loop, o, w->id,
        &(pl_links_hooks){w, on_message, on_lost, on_peer, on_state, on_stats});
    MUST(w->links);
    pl_links_hello(w->links, "{}", 2);
    pl_loop_call(w->loop, start_timer, w);
}

static void close_worker(worker *w)
{
    pl_loop_stop(w->loop);
    pl_links_close(w->links);
    pl_loop_put(w->loop);
}

/* ---- the frontend; lua ------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

typedef struct result {
    int64_t *lags;
    size_t n, cap;
    int64_t applied, apply_ns;
    int seen[MAX_WORKERS]; /* batches */
} result;

static void note_lag(result *r, int64_t ns)
{
    if (r->n == r->cap) {
        r->cap = PL_MAX(4096, 2 * r->cap);
        r->lags = pl_realloc(r->lags, r->cap * sizeof *r->lags);
    }
    r->lags[r->n++] = ns;
}

/* Which batches have come in by now; those that went again unseen count as come now. */
static void look(pl_route *x, result *r)
{
    static int32_t depths[8192];
    int64_t now = pl_now_ns();
    for (int i = 0; i < n_workers; i++) {
        const worker *w = &workers[i];
        for (int sent = atomic_load(&w->n_sent); r->seen[i] < sent; r->seen[i]++) {
            uint64_t key = key_of(w, (uint64_t)r->seen[i], 0);
            pl_route_match(x, &key, 1, depths);
            if (!depths[i] && sent - r->seen[i] < HELD) break;
            note_lag(r, now - w->sent_ns[r->seen[i]]);
        }
    }
}

static void follow_all(pl_runtime *rt, pl_route *x)
{
    for (int n = 0; n < n_workers;) {
        pl_event ev;
        if (pl_poll(rt, &ev, 1, 1000) < 1 || ev.kind != PL_EV_PEER || ev.a) continue;
        pl_buf said = {0};
        MUST(pl_peer_hello(rt, ev.id, &said) == PL_OK);
        for (int i = 0; i < n_workers; i++)
            if (said.len > 23 && !memcmp(said.data + 7, workers[i].id, 16)) {
                MUST(pl_route_follow_peer(x, i, rt, ev.id, 0) == PL_OK);
                n++;
            }
        pl_buf_fini(&said);
    }
}

static void run_frontend(pl_runtime *rt, pl_route *x, result *r)
{
    int64_t until = pl_now_ns() + seconds * INT64_C(1000000000);
    for (int64_t next = pl_now_ns(); pl_now_ns() < until;) {
        pl_event events[16];
        int64_t left = (next - pl_now_ns()) / 1000000;
        pl_poll(rt, events, 16, (int)PL_MAX(0, left));
        if (pl_now_ns() < next) continue;
        next = pl_now_ns() + APPLY_MS * INT64_C(1000000);
        int64_t began = pl_now_ns();
        r->applied += pl_route_apply(x);
        r->apply_ns += pl_now_ns() - began;
        look(x, r);
    }
    atomic_store(&over, true);
}

static void report(const pl_route *x, result *r)
{
    pl_route_stats stats;
    pl_route_stats_get(x, &stats);
    MUST(r->n > 0);
    qsort(r->lags, r->n, sizeof *r->lags, compare);
    double p50 = (double)r->lags[r->n / 2] * 1e-6,
           p99 = (double)r->lags[r->n * 99 / 100] * 1e-6,
           most = (double)r->lags[r->n - 1] * 1e-6;
    double rate = (double)r->applied / seconds * 1e-6,
           cost = (double)r->apply_ns / (double)PL_MAX(1, r->applied);
    printf("workers            %9d\n", n_workers);
    printf("applied            %9.2f million blocks/s\n", rate);
    printf("gaps               %9lld\n", (long long)stats.gaps);
    printf("behind, median     %9.1f ms\n", p50);
    printf("behind, p99        %9.1f ms\n", p99);
    printf("behind, most       %9.1f ms\n", most);
    printf("applying           %9.1f ns a block\n", cost);
    printf("{\"workers\":%d,\"applied\":%.3f,\"gaps\":%lld,\"behind_p50_ms\":%.2f,"
           "\"behind_p99_ms\":%.2f,\"behind_max_ms\":%.2f,\"apply_ns\":%.1f}\n",
           n_workers, rate, (long long)stats.gaps, p50, p99, most, cost);
}

int main(int argc, char **argv)
{
    pl_bus_options o;
    pl_log_level(PL_LOG_WARN);
    if (argc > 1) n_workers = PL_MIN(atoi(argv[1]), MAX_WORKERS);
    if (argc > 2) per_batch = atoi(argv[2]) * EVERY_MS / 1000;
    if (argc > 3) seconds = atoi(argv[3]);
    MUST(n_workers > 0 && per_batch > 1 && seconds > 0);
    pl_bus_options_init(&o);
    o.name_space = "bench";
    if (argc > 4)
        o.url = argv[4];
    else
        o.hub = pl_hub_open();
    pl_runtime *rt = pl_runtime_open(NULL);
    MUST(rt && pl_bus_open(rt, &o) == PL_OK);
    pl_route *x = pl_route_open(1 << 24);
    for (int i = 0; i < n_workers; i++) MUST(pl_route_join(x) == i);
    for (int i = 0; i < n_workers; i++) open_worker(&workers[i], i, &o);
    result r = {0};
    follow_all(rt, x);
    run_frontend(rt, x, &r);
    report(x, &r);
    for (int i = 0; i < n_workers; i++) close_worker(&workers[i]);
    pl_route_close(x);
    pl_runtime_close(rt);
    if (o.hub) pl_hub_close(o.hub);
    pl_free(r.lags);
    return 0;
}
