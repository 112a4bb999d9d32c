/* SPDX-License-Identifier: Apache-2.0
 *
 * link_stress.c - links over the hub: messages lost, doubled and late; processes stopped,
 * killed and begun anew; the bus away; strangers. See link_world.h for what must hold
 * throughout.
 *
 *   link_stress [ROUNDS [FIRST_SEED]]
 */
#define _GNU_SOURCE /* memmem */
#include "link_world.h"

#include <unistd.h>

static int dice(uint64_t seed, uint64_t a, int n)
{
    return (int)(pl_random_at(seed, a, 7) % (uint64_t)n);
}

static int n_lost(world *w, int from, int other)
{
    pl_lock(&w->lock);
    int n = w->processes[from].ways[other].n_lost;
    pl_unlock(&w->lock);
    return n;
}

static void test_faults(world *w, pl_hub *hub)
{
    for (int i = 0; i < 3; i++) { /* long messages, then many losses */
        uint64_t at = (uint64_t)i * 3;
        pl_hub_faults(hub, w->seed + at, dice(w->seed, at, i ? 150 : 20),
                      dice(w->seed, at + 1, 100), dice(w->seed, at + 2, 100));
        world_exchange(w, 60, i ? 20000 : 5 << 20);
    }
    pl_hub_faults(hub, w->seed, 0, 0, 0);
    world_exchange(w, 60, 5 << 20);
}

/* A stopped one is counted as lost, and what it says on waking belongs to the past. */
static void test_stop(world *w, pl_hub *hub)
{
    int before = n_lost(w, 0, 1), others = n_lost(w, 0, 2);
    pl_hub_stop(hub, w->processes[1].id, 1);
    world_push(w, 50);
    MUST(world_wait_lost(w, 0, 1, before + 1) == PL_LOST_SILENT);
    if (w->n > 2) MUST(n_lost(w, 0, 2) == others);
    pl_hub_stop(hub, w->processes[1].id, 0);
    world_meet(w);
    world_exchange(w, 30, 100000);
}

/* One that ends is missed by the next frame, and forgotten. */
static void test_kill(world *w)
{
    int last = w->n - 1, before = n_lost(w, 0, last);
    process_close(w, last);
    world_push(w, 20);
    int why = world_wait_lost(w, 0, last, before + 1);
    MUST(why == PL_LOST_GONE);
    MUST(world_wait_gone(w, 0, last) == PL_LOST_LEFT);
    process_open(w, last);
    world_meet(w);
    world_exchange(w, 30, 100000);
}

static void test_away(world *w, pl_hub *hub)
{
    int before = world_lost(w);
    pl_hub_away(hub, 1);
    world_push(w, 100);
    pl_hub_away(hub, 0);
    world_exchange(w, 20, 1 << 20);
    world_must_not_lose(w, before); /* a pause, and no more */
    int one = n_lost(w, 0, 1), other = n_lost(w, 1, 0);
    pl_hub_away(hub, 1);
    MUST(world_wait_lost(w, 0, 1, one + 1) == PL_LOST_BUS);
    MUST(world_wait_lost(w, 1, 0, other + 1) == PL_LOST_BUS);
    pl_hub_away(hub, 0);
    world_meet(w);
    world_exchange(w, 20, 1 << 20);
}

/* ---- what others may say ----------------------------------------------------------- */

#define STRANGER "00000000000000aa"
#define NEWCOMER "00000000000000ad"
#define BEAT "pl.perilune.b."
#define WHO "pl.perilune.who"

typedef struct stranger {
    pl_loop *loop;
    pl_bus *bus;
    char to[80], kv[64];
    uint64_t seed;
    pl_mutex lock;         /* over: */
    int n_frames, version; /* what came, and the last one's version */
    bool asked;            /* for the newcomer's hello */
} stranger;

static void on_frame(void *ctx, const char *subject, const void *data, size_t len)
{
    stranger *s = ctx;
    pl_lock(&s->lock);
    if (!strcmp(subject, WHO)) {
        s->asked = s->asked || (len == 16 && !memcmp(data, NEWCOMER, 16));
    } else {
        s->n_frames++;
        s->version = len ? *(const unsigned char *)data : -1;
    }
    pl_unlock(&s->lock);
}

static void on_nothing(void *ctx, const char *reply)
{
    (void)ctx;
    (void)reply;
}

static void on_bus_state(void *ctx, bool there)
{
    (void)ctx;
    (void)there;
}

static void no_round(void *ctx)
{
    (void)ctx;
}

static void on_stranger_stop(void *ctx)
{
    stranger *s = ctx;
    pl_bus_stop(s->bus);
}

static void say(stranger *s, const char *subject, const void *data, size_t len)
{
    pl_status status;
    while ((status = pl_bus_send(s->bus, subject, NULL, data, len)) == PL_EAGAIN)
        usleep(1000);
    MUST(status == PL_OK);
}

/* A long hello, then a short one whose key is told by who decodes it alone. */
static void say_spelt_otherwise(stranger *s)
{
    const char *to = "$KV.perilune_perilune.00000000000000ac";
    pl_buf text = {0};
    pl_buf_add_str(&text, "{\"id\":\"00000000000000ac\",\"wire\":99,");
    size_t len = text.len;
    pl_buf_add_str(&text, "\"serial\":1,\"hello\":{\"a\":\"");
    for (int i = 0; i < 30000; i++) pl_buf_add_str(&text, "x");
    pl_buf_add_str(&text, "\"}}");
    say(s, to, text.data, text.len);
    text.len = len;
    pl_buf_add_str(&text, "\"serial\":2,\"\\u0068ello\":{}}");
    say(s, to, text.data, text.len);
    pl_buf_fini(&text);
}

/* Noise, frames that begin well, hellos that are none, subjects that mean nothing. */
static void babble(void *arg)
{
    stranger *s = arg;
    char bytes[200];
    for (uint64_t i = 0; i < 2000; i++) {
        for (size_t k = 0; k < sizeof bytes; k++)
            bytes[k] = (char)pl_random_at(s->seed, i, k);
        bytes[0] = (char)dice(s->seed, i, 3);
        bytes[1] = (char)dice(s->seed, i + 5000, 5);
        if (i % 4 == 0) memset(bytes + 16, 0, 24);
        say(s, s->to, bytes, (size_t)dice(s->seed, i + 10000, sizeof bytes));
        if (i % 10 == 0) say(s, s->kv, bytes, sizeof bytes);
        if (i % 10 == 5) say(s, BEAT STRANGER, bytes, i % sizeof bytes);
    }
    const char *hello = "{\"id\":\"" STRANGER "\",\"wire\":1,\"serial\":1,\"hello\":[]}";
    say(s, s->kv, hello, strlen(hello));
    say_spelt_otherwise(s);
    say(s, "$KV.perilune_perilune.nobody", "{}", 2);
    say(s, "$KV.perilune_perilune.00000000000000ab", "{\"id\":\"00000000000000ac\"}", 25);
}

static void say_old(void *arg)
{
    stranger *s = arg;
    char ping[40] = {PL_WIRE - 1, 1};
    memset(ping + 8, 0xff, 8); /* later than all that it babbled of */
    say(s, s->to, ping, sizeof ping);
    const char *hello = "{\"id\":\"" STRANGER "\",\"wire\":99,\"serial\":9,\"hello\":{}}";
    say(s, s->kv, hello, strlen(hello));
}

static void say_beat(void *arg)
{
    const char serial[8] = {3};
    say(arg, BEAT NEWCOMER, serial, sizeof serial);
}

/* The later one is the older one. */
static void say_two_hellos(void *arg)
{
    static const char *const hellos[] = {
        "{\"id\":\"" NEWCOMER "\",\"wire\":1,\"serial\":3,\"hello\":{\"n\":\"newer\"}}",
        "{\"id\":\"" NEWCOMER "\",\"wire\":1,\"serial\":2,\"hello\":{\"n\":\"older\"}}"};
    for (int i = 0; i < 2; i++)
        say(arg, "$KV.perilune_perilune." NEWCOMER, hellos[i], strlen(hellos[i]));
}

static void do_nothing(void *arg)
{
    (void)arg;
}

/* Who hears a heartbeat of a process that it does not know asks for its hello; of two
 * hellos the newer one counts, whichever comes last. */
static void test_newcomer(const process *p, stranger *s)
{
    int64_t until = pl_now_ns() + PATIENCE_MS * INT64_C(1000000);
    for (bool asked = false; !asked; usleep(15000)) {
        MUST(pl_now_ns() < until);
        pl_loop_call(s->loop, say_beat, s);
        pl_lock(&s->lock);
        asked = s->asked;
        pl_unlock(&s->lock);
    }
    pl_loop_call(s->loop, say_two_hellos, s);
    pl_loop_call(p->loop, do_nothing, NULL); /* it has heard both */
    bool found = false;
    for (int32_t peer = 1; peer < 50 && !found; peer++) {
        pl_buf text = {0};
        found = pl_links_peer(p->links, peer, &text) == PL_OK &&
                memmem(text.data, text.len, NEWCOMER, 16);
        if (found) MUST(memmem(text.data, text.len, "newer", 5));
        pl_buf_fini(&text);
    }
    MUST(found);
}

static double n_dropped(void)
{
    return pl_metric_value(
        pl_metric_open(PL_COUNTER, "perilune_bus_dropped_total", "", "", NULL, 0));
}

/* All of it is dropped and counted; who speaks the version before ours is answered in it;
 * who speaks another one is nobody's peer. */
static void test_hostile(world *w, const pl_bus_options *o)
{
    stranger s = {.seed = w->seed};
    const pl_bus_hooks hooks = {&s, on_frame, on_nothing, on_bus_state};
    double before = n_dropped();
    pl_mutex_init(&s.lock);
    snprintf(s.to, sizeof s.to, "pl.perilune.p.%s." STRANGER, w->processes[0].id);
    snprintf(s.kv, sizeof s.kv, "$KV.perilune_perilune." STRANGER);
    s.loop = pl_loop_open(&(pl_loop_hooks){&s, no_round, on_stranger_stop, no_round});
    s.bus = pl_bus_connect(s.loop, o, STRANGER, &hooks);
    pl_bus_listen(s.bus, "pl.perilune.p." STRANGER ".*");
    pl_bus_listen(s.bus, WHO);
    pl_bus_join(s.bus);
    while (!pl_bus_is_there(s.bus)) usleep(1000);
    pl_loop_call(s.loop, babble, &s);
    world_exchange(w, 20, 1000);
    MUST(n_dropped() > before);
    for (bool answered = false; !answered; usleep(15000)) {
        pl_loop_call(s.loop, say_old, &s);
        pl_lock(&s.lock);
        answered = s.n_frames && s.version == PL_WIRE - 1;
        pl_unlock(&s.lock);
    }
    test_newcomer(&w->processes[0], &s);
    pl_buf text = {0};
    for (int32_t peer = 1; peer < 50; peer++)
        if (pl_links_peer(w->processes[0].links, peer, &text) == PL_OK)
            MUST(!memmem(text.data, text.len, STRANGER, 16));
    pl_buf_fini(&text);
    pl_loop_stop(s.loop);
    pl_loop_put(s.loop);
    pl_bus_close(s.bus);
    pl_mutex_fini(&s.lock);
}

static void run_round(uint64_t seed)
{
    static world w;
    pl_bus_options o;
    pl_bus_options_init(&o);
    o.hub = pl_hub_open();
    o.lost_after_ms = 3000;
    o.patience_ms = 2000;
    world_open(&w, seed, seed % 2 ? 2 : 3, &o);
    world_meet(&w);
    test_faults(&w, o.hub);
    test_kill(&w);
    test_stop(&w, o.hub);
    test_away(&w, o.hub);
    test_hostile(&w, &o);
    printf("seed %llu: %d processes, lost was told %d times\n", (unsigned long long)seed,
           w.n, world_lost(&w));
    world_close(&w);
    pl_hub_close(o.hub);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 4;
    uint64_t first = argc > 2 ? (uint64_t)atoll(argv[2]) : 1;
    pl_log_level(PL_LOG_ERROR + 1);
    for (int i = 0; i < rounds; i++) run_round(first + (uint64_t)i);
    return 0;
}
