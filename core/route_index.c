/* SPDX-License-Identifier: Apache-2.0 */
#include "route_own.h"

#include <string.h>

enum {
    AHEAD = 32, /* places fetched before they are read */
    LINE = 4,   /* entries of a cache line, at whose start a search begins */
    FIRST_PLACES = 1024,
    TAIL_PLACES = 256 /* after the last place that a name can ask for */
};

__extension__ typedef unsigned __int128 wide;

/* The finalizer of SplitMix64: a bijection, so different names stay different. */
static uint64_t mixed(const pl_route *x, uint64_t name)
{
    uint64_t k = name ^ x->secret;
    k = (k ^ k >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    k = (k ^ k >> 27) * UINT64_C(0x94d049bb133111eb);
    k ^= k >> 31;
    return k ? k : 1;
}

static uint64_t home(const plane *p, uint64_t key)
{
    return (uint64_t)((wide)key * p->places >> 64) & ~(uint64_t)(LINE - 1);
}

/* All of them, with the gap that ends the last and what is read of its line. */
static size_t bytes_of(const plane *p)
{
    return (p->places + TAIL_PLACES + LINE) * sizeof *p->at;
}

/* Who of a line holds it: 0, it is not there. Without a branch, as it is a matter of chance
 * which entry has the key. */
static uint64_t holders_in(const entry *line, uint64_t key)
{
    uint64_t holders = 0;
    for (int i = 0; i < LINE; i++) {
        uint64_t here = line[i].holders;
        holders = line[i].key == key ? here : holders;
    }
    return holders;
}

/* Whether a key that this line lacks may be in the next: no gap, nothing greater ends it. */
static bool goes_on(const entry *line, uint64_t key)
{
    return line[LINE - 1].key - 1 < key - 1; /* a gap is 0 */
}

/* Where the key is, or where it would be put. */
static entry *place(const plane *p, uint64_t key)
{
    entry *e = p->at + home(p, key);
    while (e->key && e->key < key) e++;
    return e;
}

/* ---- growing ----------------------------------------------------------------------- */

static bool allocate(plane *p, uint64_t places)
{
    p->places = places;
    p->at = pl_alloc_big(bytes_of(p));
    return p->at != NULL;
}

/* Puts an entry at the end of those that are there; false: the tail is full. */
static bool append(plane *p, entry **last, entry e)
{
    entry *to = p->at + home(p, e.key);
    if (*last && to <= *last) to = *last + 1;
    if (to >= p->at + p->places + TAIL_PLACES) return false;
    *to = e;
    *last = to;
    return true;
}

/* Copies all entries into an array of so many places, but for the bits of those that
 * left. PL_ENOMEM leaves the plane as it was. */
static pl_status rebuild(pl_route *x, plane *p, uint64_t places)
{
    plane fresh = {.alive = p->alive, .taken = p->taken};
    if (!allocate(&fresh, places))
        return pl_fail(PL_ENOMEM, "no memory for an index of %llu places",
                       (unsigned long long)places);
    entry *last = NULL;
    for (uint64_t i = 0; p->at && i < p->places + TAIL_PLACES; i++) {
        entry e = p->at[i];
        e.holders &= ~p->gone;
        if (!e.key || !e.holders) continue;
        if (!append(&fresh, &last, e)) {
            pl_free_big(fresh.at, bytes_of(&fresh));
            return rebuild(x, p, places + places / 4);
        }
        fresh.n++;
    }
    x->n += fresh.n - p->n;
    if (p->at) pl_free_big(p->at, bytes_of(p));
    *p = fresh;
    return PL_OK;
}

/* Forgets what workers held that left; whether that made room. */
static bool purge(pl_route *x)
{
    for (int i = 0; i < x->n_planes; i++)
        if (x->planes[i].gone) rebuild(x, &x->planes[i], x->planes[i].places);
    return x->n < x->limit;
}

/* A plane has 1.6 to 2 places for each entry, so at most 32 bytes. With fewer, more searches
 * go on to another line. */
static bool is_full(const plane *p)
{
    return (uint64_t)p->n >= p->places / 8 * 5;
}

/* ---- one block --------------------------------------------------------------------- */

/* Makes a gap at `e` by moving what follows; false: the tail is full. */
static bool make_gap(plane *p, entry *e)
{
    entry *gap = e;
    while (gap->key) gap++;
    if (gap >= p->at + p->places + TAIL_PLACES) return false;
    memmove(e + 1, e, (size_t)(gap - e) * sizeof *e);
    return true;
}

/* Moves what follows back, where its place allows it. */
static void close_gap(plane *p, entry *e)
{
    entry *end = e + 1;
    while (end->key && p->at + home(p, end->key) < end) end++;
    memmove(e, e + 1, (size_t)(end - e - 1) * sizeof *e);
    end[-1] = (entry){0};
}

/* True: the worker did not hold it before. */
static bool store(pl_route *x, plane *p, uint64_t key, uint64_t bit)
{
    entry *e = place(p, key);
    if (e->key == key) {
        bool is_new = !(e->holders & bit);
        e->holders |= bit;
        return is_new;
    }
    if (x->n >= x->limit && !purge(x)) {
        x->dropped++;
        return false;
    }
    if (is_full(p) || !make_gap(p, e)) {
        if (rebuild(x, p, p->places + p->places / 4) < 0) {
            x->dropped++;
            return false;
        }
        return store(x, p, key, bit);
    }
    *e = (entry){key, bit};
    p->n++;
    x->n++;
    return true;
}

static bool drop(pl_route *x, plane *p, uint64_t key, uint64_t bit)
{
    entry *e = place(p, key);
    if (e->key != key || !(e->holders & bit)) {
        x->missed++;
        return false;
    }
    e->holders &= ~bit;
    if (e->holders & ~p->gone) return true;
    close_gap(p, e);
    p->n--;
    x->n--;
    return true;
}

/* ---- public ------------------------------------------------------------------------ */

pl_route *pl_route_open(int64_t max_blocks)
{
    if (max_blocks < 1) {
        pl_fail(PL_EINVAL, "an index of %lld blocks", (long long)max_blocks);
        return NULL;
    }
    pl_route *x = pl_alloc(sizeof *x);
    x->limit = max_blocks;
    x->secret = pl_entropy();
    pl_route_inbox_open(x);
    return x;
}

void pl_route_close(pl_route *x)
{
    if (!x) return;
    pl_route_inbox_close(x);
    for (int i = 0; i < x->n_planes; i++)
        pl_free_big(x->planes[i].at, bytes_of(&x->planes[i]));
    pl_free(x);
}

int pl_route_join(pl_route *x)
{
    int i = 0;
    while (i < x->n_planes && !~(x->planes[i].taken | x->planes[i].gone)) i++;
    /* No number is unused: those of workers that left are made so, a pass over a
     * plane. */
    if (i == x->n_planes)
        for (i = 0; i < x->n_planes && !~x->planes[i].taken;) i++;
    if (i == MAX_PLANES)
        return pl_fail(PL_ELIMIT, "an index of more than %d workers", MAX_PLANES * PLANE);
    plane *p = &x->planes[i];
    if (i == x->n_planes) {
        if (!allocate(p, FIRST_PLACES))
            return pl_fail(PL_ENOMEM, "no memory for an index");
        x->n_planes++;
    }
    if (!~(p->taken | p->gone)) PL_TRY(rebuild(x, p, p->places));
    int bit = __builtin_ctzll(~(p->taken | p->gone));
    p->alive |= UINT64_C(1) << bit;
    p->taken |= UINT64_C(1) << bit;
    return i * PLANE + bit;
}

static plane *plane_of(pl_route *x, int worker, uint64_t *bit)
{
    if (worker < 0 || worker >= x->n_planes * PLANE) return NULL;
    plane *p = &x->planes[worker / PLANE];
    *bit = UINT64_C(1) << worker % PLANE;
    return p->taken & *bit ? p : NULL;
}

static void add_held(pl_route *x, int worker, int64_t n)
{
    x->held[worker] += n;
    x->n_held += n;
}

void pl_route_forget(pl_route *x, int worker)
{
    uint64_t bit;
    plane *p = plane_of(x, worker, &bit);
    if (!p) return;
    p->alive &= ~bit;
    if (x->held[worker]) p->gone |= bit;
    add_held(x, worker, -x->held[worker]);
}

pl_status pl_route_revive(pl_route *x, int worker)
{
    uint64_t bit;
    plane *p = plane_of(x, worker, &bit);
    if (!p) return PL_ENOTFOUND;
    if (p->gone & bit) PL_TRY(rebuild(x, p, p->places));
    p->alive |= bit;
    return PL_OK;
}

void pl_route_leave(pl_route *x, int worker)
{
    uint64_t bit;
    plane *p = plane_of(x, worker, &bit);
    if (!p) return;
    pl_route_unfollow(x, worker);
    pl_route_forget(x, worker);
    pl_route_show(x);
    p->taken &= ~bit;
}

static int64_t each(pl_route *x, int worker, const uint64_t *names, int n,
                    bool (*change)(pl_route *, plane *, uint64_t, uint64_t))
{
    uint64_t bit, keys[AHEAD];
    plane *p = plane_of(x, worker, &bit);
    if (!p || !(p->alive & bit))
        return pl_fail(PL_ENOTFOUND, "no worker %d in this index", worker);
    int64_t changed = 0;
    for (int from = 0; from < n; from += AHEAD) {
        int count = PL_MIN(AHEAD, n - from);
        for (int i = 0; i < count; i++) {
            keys[i] = mixed(x, names[from + i]);
            __builtin_prefetch(p->at + home(p, keys[i]), 1);
        }
        for (int i = 0; i < count; i++) changed += change(x, p, keys[i], bit);
    }
    return changed;
}

int64_t pl_route_store(pl_route *x, int worker, const uint64_t *names, int n)
{
    int64_t added = each(x, worker, names, n, store);
    if (added > 0) add_held(x, worker, added);
    return added;
}

int64_t pl_route_remove(pl_route *x, int worker, const uint64_t *names, int n)
{
    int64_t removed = each(x, worker, names, n, drop);
    if (removed > 0) add_held(x, worker, -removed);
    return removed;
}

static void write_depth(uint64_t workers, int32_t depth, int32_t *depths)
{
    for (; workers; workers &= workers - 1) depths[__builtin_ctzll(workers)] = depth;
}

/* Who holds each of these. All lines are fetched before the first is read. Nine in ten keys
 * are in the line where they would be, or in none; for the others the next line is fetched
 * while the rest is looked through. */
static void find(const pl_route *x, const plane *p, const uint64_t *names, int n,
                 uint64_t *holders)
{
    uint64_t keys[AHEAD];
    const entry *lines[AHEAD];
    for (int i = 0; i < n; i++) {
        keys[i] = mixed(x, names[i]);
        lines[i] = p->at + home(p, keys[i]);
        __builtin_prefetch(lines[i], 0);
    }
    uint32_t rest = 0;
    for (int i = 0; i < n; i++) {
        holders[i] = holders_in(lines[i], keys[i]);
        bool more = !holders[i] & goes_on(lines[i], keys[i]);
        __builtin_prefetch(lines[i] + (more ? LINE : 0), 0);
        rest |= (uint32_t)more << i;
    }
    for (; rest; rest &= rest - 1) {
        int i = __builtin_ctz(rest);
        const entry *line = lines[i];
        do {
            line += LINE;
            holders[i] = holders_in(line, keys[i]);
        } while (!holders[i] && goes_on(line, keys[i]));
    }
}

static void match(const pl_route *x, const plane *p, const uint64_t *names, int n,
                  int32_t *depths)
{
    uint64_t in = p->alive, holders[AHEAD];
    for (int from = 0; from < n && in; from += AHEAD) {
        int count = PL_MIN(AHEAD, n - from);
        find(x, p, names + from, count, holders);
        for (int i = 0; i < count && in; i++) {
            if (from + i) /* 0 is there */
                write_depth(in & ~holders[i], from + i, depths);
            in &= holders[i];
        }
    }
    write_depth(in, n, depths);
}

int pl_route_match(pl_route *x, const uint64_t *names, int n, int32_t *depths)
{
    pl_route_apply(x);
    memset(depths, 0, (size_t)x->n_planes * PLANE * sizeof *depths);
    for (int i = 0; i < x->n_planes; i++)
        if (x->planes[i].alive) match(x, &x->planes[i], names, n, depths + i * PLANE);
    return x->n_planes * PLANE;
}

void pl_route_stats_get(const pl_route *x, pl_route_stats *out)
{
    *out = (pl_route_stats){
        .blocks = x->n, .dropped = x->dropped, .missed = x->missed, .gaps = x->gaps};
    for (int i = 0; i < x->n_planes; i++) out->bytes += (int64_t)bytes_of(&x->planes[i]);
}

int64_t pl_route_held(const pl_route *x, int worker)
{
    return worker >= 0 && worker < x->n_planes * PLANE ? x->held[worker] : 0;
}
