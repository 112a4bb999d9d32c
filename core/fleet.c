/* SPDX-License-Identifier: Apache-2.0 */
#include "fleet.h"

#include "kv.h"
#include "load.h"
#include "route.h"
#include "seq.h"

#include <string.h>

enum {
    MAX_ROWS = 8192, /* as the index */
    FIRST_ROOM = 16
};

/* The columns of a fleet, and the bytes of an entry. */
typedef struct column {
    size_t at, width;
} column;

#define COLUMN(name)                                            \
    {                                                           \
        offsetof(pl_fleet, name), sizeof *((pl_fleet *)0)->name \
    }
static const column columns[] = {
    COLUMN(cached),   COLUMN(prefilling), COLUMN(decoding), COLUMN(free),
    COLUMN(capacity), COLUMN(waiting),    COLUMN(running),  COLUMN(rank),
    COLUMN(number),   COLUMN(ttft),       COLUMN(itl),      COLUMN(cost),
};

static char **place(const pl_fleet *f, int i)
{
    return (char **)((char *)(uintptr_t)f + columns[i].at);
}

static char *entry(const pl_fleet *f, int i, int32_t row)
{
    return *place(f, i) + (size_t)row * columns[i].width;
}

static void reserve(pl_fleet *f, int32_t room)
{
    for (int i = 0; i < PL_COUNT(columns); i++)
        *place(f, i) = pl_realloc(*place(f, i), (size_t)room * columns[i].width);
    f->room = room;
}

pl_fleet *pl_fleet_open(void)
{
    pl_fleet *f = pl_alloc(sizeof *f);
    reserve(f, FIRST_ROOM);
    return f;
}

void pl_fleet_close(pl_fleet *f)
{
    if (!f) return;
    for (int i = 0; i < PL_COUNT(columns); i++) pl_free(*place(f, i));
    pl_free(f);
}

void pl_fleet_clear(pl_fleet *f)
{
    f->n = 0;
}

static int32_t add(pl_fleet *f)
{
    if (f->n == MAX_ROWS) return PL_ELIMIT;
    if (f->n == f->room) reserve(f, 2 * f->room);
    return f->n++;
}

int32_t pl_fleet_add(pl_fleet *f, const pl_load *l, int32_t number, int32_t rank)
{
    int32_t row = add(f);
    if (row < 0) return row;
    pl_load_view v = {0};
    if (l) pl_load_look(l, &v);
    f->prefilling[row] = v.prefilling;
    f->decoding[row] = v.decoding;
    f->free[row] = v.free;
    f->capacity[row] = v.capacity;
    f->waiting[row] = v.waiting;
    f->running[row] = v.running;
    f->ttft[row] = v.ttft;
    f->itl[row] = v.itl;
    f->rank[row] = rank;
    f->number[row] = number;
    f->cached[row] = 0;
    f->cost[row] = 0;
    return row;
}

int32_t pl_fleet_copy(pl_fleet *to, const pl_fleet *from, int32_t row)
{
    int32_t at = add(to);
    if (at < 0) return at;
    for (int i = 0; i < PL_COUNT(columns); i++)
        memcpy(entry(to, i, at), entry(from, i, row), columns[i].width);
    return at;
}

void pl_fleet_match(pl_fleet *f, pl_route *x, const pl_naming *n, pl_seq *s)
{
    static int32_t depths[MAX_ROWS]; /* lua's */
    pl_naming_apply(n, s);
    uint64_t *keys = pl_realloc(NULL, (size_t)s->n_names * sizeof *keys);
    int32_t n_keys = pl_naming_keys(n, s, 0, keys, s->n_names);
    int n_depths = n_keys ? pl_route_match(x, keys, n_keys, depths) : 0;
    pl_free(keys);
    for (int32_t i = 0; i < f->n; i++) {
        int32_t number = f->number[i];
        f->cached[i] = number >= 0 && number < n_depths ? depths[number] : 0;
    }
}
