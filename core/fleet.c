/* SPDX-License-Identifier: Apache-2.0 */
#include "fleet.h"

#include "kv.h"
#include "load.h"
#include "route.h"
#include "seq.h"

#include <math.h>
#include <string.h>

enum {
    MAX_ROWS = 8192, /* as the index */
    FIRST_ROOM = 16
};

/* The columns of a fleet, and the bytes of an entry. */
typedef struct column {
    size_t at, width;
} column;

/* clang-format off */
#define COLUMN(name) { offsetof(pl_fleet, name), sizeof *((pl_fleet *)0)->name }
/* clang-format on */
static const column columns[] = {
    COLUMN(cost),     COLUMN(cached), COLUMN(sent),     COLUMN(prefilling),
    COLUMN(decoding), COLUMN(free),   COLUMN(capacity), COLUMN(waiting),
    COLUMN(running),  COLUMN(rank),   COLUMN(number),   COLUMN(worker),
    COLUMN(ttft),     COLUMN(itl),
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
    pl_free(f->keys);
    pl_free(f);
}

void pl_fleet_clear(pl_fleet *f)
{
    f->n = f->n_keys = 0;
}

static int32_t add(pl_fleet *f)
{
    if (f->n == MAX_ROWS) return PL_ELIMIT;
    if (f->n == f->room) reserve(f, 2 * f->room);
    return f->n++;
}

int32_t pl_fleet_add(pl_fleet *f, const pl_load *l, int32_t number, int32_t rank,
                     int32_t worker)
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
    f->worker[row] = worker;
    f->cached[row] = f->sent[row] = 0;
    f->cost[row] = NAN;
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

void pl_fleet_name(pl_fleet *f, const pl_naming *n, pl_seq *s)
{
    pl_naming_apply(n, s);
    f->keys = pl_realloc(f->keys, (size_t)PL_MAX(s->n_names, 1) * sizeof *f->keys);
    f->n_keys = pl_naming_keys(n, s, 0, f->keys, s->n_names);
}

void pl_fleet_match(pl_fleet *f, pl_route *x)
{
    static int32_t depths[MAX_ROWS]; /* lua's */
    int n = f->n_keys ? pl_route_match(x, f->keys, f->n_keys, depths) : 0;
    for (int32_t i = 0; i < f->n; i++) {
        int32_t number = f->number[i];
        f->cached[i] = number >= 0 && number < n ? depths[number] : 0;
    }
}

/* ---- decisions --------------------------------------------------------------------- */

enum {
    MOST_KEPT = 1000,
    MOST_BYTES = 16 << 20
};

typedef struct kept { /* and its fleet's columns, one after the other */
    pl_decision d;
    size_t bytes;
} kept;

struct pl_decisions {
    kept *ring[MOST_KEPT]; /* by number */
    int64_t first, last;
    size_t bytes;
};

pl_decisions *pl_decisions_open(void)
{
    pl_decisions *l = pl_alloc(sizeof *l);
    l->first = 1;
    return l;
}

/* Its memory is the caller's now. */
static kept *drop_first(pl_decisions *l)
{
    kept **at = &l->ring[l->first++ % MOST_KEPT], *k = *at;
    l->bytes -= k->bytes;
    *at = NULL;
    return k;
}

void pl_decisions_close(pl_decisions *l)
{
    if (!l) return;
    while (l->first <= l->last) pl_free(drop_first(l));
    pl_free(l);
}

static size_t row_bytes(void)
{
    size_t bytes = 0;
    for (int i = 0; i < PL_COUNT(columns); i++) bytes += columns[i].width;
    return bytes;
}

/* The widest column stands first, so each is where its type wants it. */
static void copy_columns(pl_fleet *to, const pl_fleet *from, char *at)
{
    *to = (pl_fleet){.n = from->n, .room = from->n};
    for (int i = 0; i < PL_COUNT(columns); i++) {
        size_t bytes = (size_t)from->n * columns[i].width;
        *place(to, i) = at;
        memcpy(at, *place(from, i), bytes);
        at += bytes;
    }
}

int64_t pl_decisions_add(pl_decisions *l, const pl_decision *d, const pl_fleet *f)
{
    kept *k = NULL;
    size_t bytes = sizeof *k + (size_t)f->n * row_bytes();
    while (l->first <= l->last &&
           (l->last - l->first + 1 == MOST_KEPT || l->bytes + bytes > MOST_BYTES)) {
        pl_free(k);
        k = drop_first(l);
    }
    k = pl_realloc(k, bytes); /* mostly that of the oldest, which is as large */
    k->d = *d;
    k->d.number = ++l->last;
    k->d.at_ns = pl_wall_ns();
    k->d.found = -1;
    k->d.n_keys = PL_MIN(f->n_keys, PL_COUNT(k->d.keys));
    if (k->d.n_keys) memcpy(k->d.keys, f->keys, (size_t)k->d.n_keys * sizeof *f->keys);
    k->bytes = bytes;
    copy_columns(&k->d.fleet, f, (char *)(k + 1));
    l->ring[l->last % MOST_KEPT] = k;
    l->bytes += bytes;
    return l->last;
}

int64_t pl_decisions_last(const pl_decisions *l)
{
    return l->last;
}

static pl_decision *find(const pl_decisions *l, int64_t number)
{
    if (number < l->first || number > l->last) return NULL;
    return &l->ring[number % MOST_KEPT]->d;
}

void pl_decisions_found(pl_decisions *l, int64_t number, int32_t found)
{
    pl_decision *d = find(l, number);
    if (d) d->found = found;
}

const pl_decision *pl_decisions_get(const pl_decisions *l, int64_t number)
{
    return find(l, number);
}
