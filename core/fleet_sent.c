/* SPDX-License-Identifier: Apache-2.0
 *
 * fleet_sent.c - what was sent where of late.
 *
 * Two generations, each an index: what is sent goes into the young one; once that is ttl_ms
 * old it becomes the old one, and what the old one knew is forgotten. So nothing is
 * remembered block by block, and a block counts for ttl_ms at least and twice that at most.
 */
#include "fleet.h"

#include "route.h"

enum {
    MOST_BLOCKS = 1 << 20, /* of a generation: about 25 MB */
    MAX_NUMBERS = 8192     /* of an index */
};

typedef struct generation { /* lua's, as all here */
    pl_route *index;        /* NULL: nothing was sent */
    pl_map numbers;         /* by worker + 1: its number in the index, + 1 */
} generation;

struct pl_sent {
    generation young, old;
    int64_t since_ms; /* from then on the young one is filled */
};

pl_sent *pl_sent_open(void)
{
    return pl_alloc(sizeof(pl_sent));
}

static void drop(generation *g)
{
    pl_route_close(g->index);
    pl_map_fini(&g->numbers);
    *g = (generation){0};
}

void pl_sent_close(pl_sent *s)
{
    if (!s) return;
    drop(&s->young);
    drop(&s->old);
    pl_free(s);
}

/* Of a worker in there; negative: it has none. */
static int number_of(const generation *g, int32_t worker)
{
    return (int)(intptr_t)pl_map_find(&g->numbers, (uint64_t)worker + 1) - 1;
}

static void age(pl_sent *s, int64_t now_ms, int64_t ttl_ms)
{
    int64_t turns = (now_ms - s->since_ms) / PL_MAX(ttl_ms, 1);
    if (turns < 1) return;
    drop(&s->old);
    s->old = s->young;
    s->young = (generation){0};
    s->since_ms = now_ms;
    if (turns > 1) drop(&s->old);
}

void pl_sent_add(pl_sent *s, const pl_fleet *f, int32_t row, int64_t now_ms,
                 int64_t ttl_ms)
{
    int32_t worker = f->worker[row];
    age(s, now_ms, ttl_ms);
    generation *g = &s->young;
    if (!g->index) g->index = pl_route_open(MOST_BLOCKS);
    if (!g->index) return; /* no memory for it */
    int number = number_of(g, worker);
    if (number < 0) {
        number = pl_route_join(g->index);
        if (number < 0) return;
        pl_map_put(&g->numbers, (uint64_t)worker + 1, (void *)(intptr_t)(number + 1));
    }
    pl_route_store(g->index, number, f->keys, f->n_keys);
}

void pl_sent_forget(pl_sent *s, int32_t worker)
{
    generation *both[] = {&s->young, &s->old};
    for (int i = 0; i < PL_COUNT(both); i++) {
        int number = number_of(both[i], worker);
        if (number < 0) continue;
        pl_route_leave(both[i]->index, number);
        pl_map_remove(&both[i]->numbers, (uint64_t)worker + 1);
    }
}

static void raise(const generation *g, const pl_fleet *f, int32_t *column)
{
    static int32_t depths[MAX_NUMBERS]; /* lua's */
    if (!g->index || !f->n_keys) return;
    int n = pl_route_match(g->index, f->keys, f->n_keys, depths);
    for (int32_t i = 0; i < f->n; i++) {
        int number = number_of(g, f->worker[i]);
        if (number >= 0 && number < n) column[i] = PL_MAX(column[i], depths[number]);
    }
}

void pl_sent_match(pl_sent *s, const pl_fleet *f, int32_t *column, int64_t now_ms,
                   int64_t ttl_ms)
{
    age(s, now_ms, ttl_ms);
    raise(&s->young, f, column);
    raise(&s->old, f, column);
}
