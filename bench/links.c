/* SPDX-License-Identifier: Apache-2.0
 *
 * links.c - megabytes a second of messages of 8 MB, as KV blocks are, between two processes
 * (two loops of this one): through a nats-server, over a Unix socket, over TCP with TLS.
 *
 *   links_bench NATS_URL
 */
#include "link_socket.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    BYTES = 8 << 20,
    MESSAGES = 200,
    AHEAD = 24 << 20, /* bytes that may be under way */
    PATIENCE_MS = 10000
};

typedef struct side {
    pl_loop *loop;
    pl_links *links;
    atomic_int peer;
    pl_link *link;
    int n_left; /* to send */
    atomic_int n_came;
} side;

static char *data;

static void on_message(void *ctx, pl_link *l, int kind, const void *bytes, size_t len)
{
    (void)l;
    (void)kind;
    (void)bytes;
    (void)len;
    atomic_fetch_add(&((side *)ctx)->n_came, 1);
}

static void on_lost(void *ctx, pl_link *l, int why)
{
    (void)ctx;
    (void)l;
    fprintf(stderr, "the link was lost: %d\n", why);
    exit(1);
}

static void on_peer(void *ctx, int32_t peer, int why)
{
    if (!why) atomic_store(&((side *)ctx)->peer, peer);
}

static void on_state(void *ctx, bool there)
{
    (void)ctx;
    (void)there;
}

static void on_stats(void *ctx, pl_buf *out)
{
    (void)ctx;
    (void)out;
}

static void on_round(void *ctx)
{
    (void)ctx;
}

static void on_stop(void *ctx)
{
    pl_links_stop(((side *)ctx)->links);
}

static void send_more(void *arg)
{
    side *s = arg;
    if (!s->link) {
        s->link = pl_links_find(s->links, atomic_load(&s->peer));
        pl_link_hold(s->link);
    }
    for (; s->n_left && pl_link_unacked(s->link) < AHEAD; s->n_left--)
        pl_link_send(s->link, 0, data, BYTES);
}

static void let_go(void *arg)
{
    pl_link_release(((side *)arg)->link);
}

static void open_side(side *s, const pl_bus_options *o)
{
    const pl_links_hooks hooks = {s, on_message, on_lost, on_peer, on_state, on_stats};
    char id[17] = "";
    pl_entropy_hex(id, 16);
    s->loop = pl_loop_open(&(pl_loop_hooks){s, on_round, on_stop, on_round});
    s->links = s->loop ? pl_links_open(s->loop, o, id, &hooks) : NULL;
    if (!s->links) {
        fprintf(stderr, "%s\n", pl_error_text());
        exit(1);
    }
    if (o->direct_host) *s->links->direct->own.net = 0; /* as if on another host */
    pl_links_hello(s->links, "{}", 2);
}

static void close_side(side *s)
{
    pl_loop_stop(s->loop);
    pl_loop_put(s->loop);
    pl_links_close(s->links);
}

static double cpu_seconds(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

/* Returns once as many are there. */
static void bring(side *from, side *to, int n)
{
    int goal = atomic_load(&to->n_came) + n;
    from->n_left = n;
    for (; atomic_load(&to->n_came) < goal; usleep(500))
        pl_loop_call(from->loop, send_more, from);
}

static bool is_connected(int direct)
{
    int id = pl_metric_open(PL_GAUGE, "perilune_direct_links", "", "", NULL, 0);
    return !direct || pl_metric_value(id) == 2;
}

static void measure(const char *what, const char *url, int direct, const char *host)
{
    static side sides[2];
    pl_bus_options o;
    pl_bus_options_init(&o);
    o.url = url;
    o.direct = direct;
    o.direct_host = host;
    memset(sides, 0, sizeof sides);
    for (int i = 0; i < 2; i++) open_side(&sides[i], &o);
    int64_t until = pl_now_ns() + PATIENCE_MS * INT64_C(1000000);
    bool met = false;
    while (!met && pl_now_ns() < until) {
        met = atomic_load(&sides[0].peer) && atomic_load(&sides[1].peer);
        if (met) bring(&sides[0], &sides[1], 1);
        met = met && is_connected(direct);
        usleep(10000);
    }
    if (!met) {
        fprintf(stderr, "%s: they did not meet\n", what);
        exit(1);
    }
    double cpu = cpu_seconds(), gb = (double)MESSAGES * BYTES * 1e-9;
    int64_t from = pl_now_ns();
    bring(&sides[0], &sides[1], MESSAGES);
    double seconds = (double)(pl_now_ns() - from) * 1e-9;
    printf("%-16s %6.0f MB/s  %.2f s of CPU a GB\n", what, gb * 1e3 / seconds,
           (cpu_seconds() - cpu) / gb);
    pl_loop_call(sides[0].loop, let_go, &sides[0]);
    for (int i = 0; i < 2; i++) close_side(&sides[i]);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fputs("links_bench: wanted the URL of a NATS server\n", stderr);
        return 2;
    }
    pl_log_level(PL_LOG_ERROR);
    data = pl_alloc(BYTES);
    measure("the bus", argv[1], 0, NULL);
    measure("a Unix socket", argv[1], 1, NULL);
    measure("TCP with TLS", argv[1], 1, "127.0.0.1");
    pl_free(data);
    return 0;
}
