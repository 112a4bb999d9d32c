/* SPDX-License-Identifier: Apache-2.0
 *
 * link_stress.c - links over the hub: messages lost, doubled and late; processes stopped,
 * killed and begun anew; the bus away. See link_world.h for what must hold throughout.
 *
 *   link_stress [ROUNDS [FIRST_SEED]]
 */
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
    for (int i = 0; i < 3; i++) {
        pl_hub_faults(hub, w->seed + (uint64_t)i, dice(w->seed, (uint64_t)i, 150),
                      dice(w->seed, 10 + (uint64_t)i, 100),
                      dice(w->seed, 20 + (uint64_t)i, 100));
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
    MUST(world_lost(w) == before); /* a pause, and no more */
    int one = n_lost(w, 0, 1), other = n_lost(w, 1, 0);
    pl_hub_away(hub, 1);
    MUST(world_wait_lost(w, 0, 1, one + 1) == PL_LOST_BUS);
    MUST(world_wait_lost(w, 1, 0, other + 1) == PL_LOST_BUS);
    pl_hub_away(hub, 0);
    world_meet(w);
    world_exchange(w, 20, 1 << 20);
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
