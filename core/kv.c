/* SPDX-License-Identifier: Apache-2.0 */
#include "kv.h"

#include <assert.h>
#include <string.h>

typedef struct block {
    int32_t refs;
    int32_t prev, next; /* in its line, while refs is 0 */
    bool found;         /* again, since it got its name */
    uint64_t since;     /* n_taken when it came into line */
    int32_t chain;      /* the next block in the bucket; 0: the last */
    int32_t before;     /* the one before it there; 0: the first */
    bool named;
    pl_name name;
} block;

/* Two lines, by whether a block was found again; each is a ring through a place that is no
 * block. */
#define ONCE(kv) 0
#define FOUND(kv) ((kv)->n_blocks)
/* So many times as long as another a block stays that was found again. Of 2 to 4, found by
 * simulating recorded conversations. */
#define STAY 3

struct pl_kv {
    int32_t n_blocks, n_free, n_cached;
    uint64_t n_taken; /* new blocks so far: the clock by which others age */
    pl_namer namer;
    int32_t n_names; /* different ones */
    uint64_t n_changes;
    pl_change_log *log; /* NULL: nobody wants to know */
    uint32_t mask;
    int32_t *buckets; /* the first block of each; 0: none */
    block *blocks;    /* and one more, for FOUND */
};

pl_kv *pl_kv_open(int32_t n_blocks, const pl_namer *namer)
{
    pl_kv *kv = pl_alloc(sizeof *kv);
    uint32_t n_buckets = 16;
    while (n_buckets < 2 * (uint32_t)n_blocks) n_buckets *= 2;
    kv->n_blocks = n_blocks;
    kv->n_free = n_blocks - 1;
    kv->namer = *namer;
    kv->mask = n_buckets - 1;
    kv->buckets = pl_alloc(n_buckets * sizeof *kv->buckets);
    kv->blocks = pl_alloc(((size_t)n_blocks + 1) * sizeof *kv->blocks);
    for (int32_t i = 0; i < n_blocks; i++) {
        kv->blocks[i].prev = (i ? i : n_blocks) - 1;
        kv->blocks[i].next = (i + 1) % n_blocks;
    }
    kv->blocks[FOUND(kv)].prev = kv->blocks[FOUND(kv)].next = FOUND(kv);
    return kv;
}

void pl_kv_close(pl_kv *kv)
{
    if (!kv) return;
    pl_free(kv->buckets);
    pl_free(kv->blocks);
    pl_free(kv);
}

/* ---- the lines ------------------------------------------------------------------ */

static void leave_line(pl_kv *kv, int32_t at)
{
    block *b = &kv->blocks[at];
    kv->blocks[b->prev].next = b->next;
    kv->blocks[b->next].prev = b->prev;
    kv->n_free--;
    kv->n_cached -= b->named;
}

static void join_line(pl_kv *kv, int32_t at)
{
    int32_t line = kv->blocks[at].found ? FOUND(kv) : ONCE(kv);
    block *b = &kv->blocks[at], *ends = &kv->blocks[line];
    b->since = kv->n_taken;
    b->prev = ends->prev;
    b->next = line;
    kv->blocks[ends->prev].next = at;
    ends->prev = at;
    kv->n_free++;
    kv->n_cached += b->named;
}

/* Of the first in both lines (or who would be by then) the one to be taken, once n_taken
 * blocks are; 0: there is none. */
static int32_t choose(const pl_kv *kv, int32_t once, int32_t found, uint64_t n_taken)
{
    if (found == FOUND(kv)) return once;
    if (once == ONCE(kv)) return found;
    uint64_t age = n_taken - kv->blocks[once].since;
    return n_taken - kv->blocks[found].since > STAY * age ? found : once;
}

/* ---- changes -------------------------------------------------------------------- */

static void change(pl_kv *kv, pl_change kind, const pl_name *name)
{
    kv->n_changes++;
    if (kv->log)
        pl_change_log_add(kv->log, kind, name ? pl_name_key(&kv->namer, name) : 0);
}

void pl_kv_log(pl_kv *kv, pl_change_log *log)
{
    kv->log = log;
}

uint64_t pl_kv_changes(const pl_kv *kv)
{
    return kv->n_changes;
}

/* ---- names ---------------------------------------------------------------------- */

static int32_t *find_bucket(const pl_kv *kv, const pl_name *name)
{
    uint32_t h; /* a name is evenly spread already */
    memcpy(&h, name->bytes, sizeof h);
    return &kv->buckets[h & kv->mask];
}

static bool is_named(const pl_kv *kv, int32_t at, const pl_name *name)
{
    return memcmp(&kv->blocks[at].name, name, sizeof *name) == 0;
}

static int32_t find_block(const pl_kv *kv, const pl_name *name)
{
    int32_t at = *find_bucket(kv, name);
    while (at && !is_named(kv, at, name)) at = kv->blocks[at].chain;
    return at;
}

int32_t pl_kv_find(const pl_kv *kv, const pl_name *names, int32_t n, int32_t *blocks)
{
    int32_t i = 0;
    while (i < n && (blocks[i] = find_block(kv, &names[i]))) i++;
    return i;
}

bool pl_kv_name(pl_kv *kv, int32_t at, const pl_name *name)
{
    block *b = &kv->blocks[at];
    assert(b->refs > 0 && !b->named);
    /* Behind the first of the name, which stays the one that is found: there may be many
     * of the others, and none is walked over. */
    b->before = find_block(kv, name);
    int32_t *link = b->before ? &kv->blocks[b->before].chain : find_bucket(kv, name);
    b->chain = *link;
    if (b->chain) kv->blocks[b->chain].before = at;
    *link = at;
    b->name = *name;
    b->named = true;
    if (b->before && is_named(kv, b->before, name)) return false;
    kv->n_names++;
    change(kv, PL_CHANGE_STORED, name);
    return true;
}

void pl_kv_forget(pl_kv *kv, int32_t at)
{
    block *b = &kv->blocks[at];
    if (!b->named) return;
    int32_t *link = b->before ? &kv->blocks[b->before].chain : find_bucket(kv, &b->name);
    *link = b->chain;
    if (b->chain) kv->blocks[b->chain].before = b->before;
    b->named = false;
    kv->n_cached -= b->refs == 0;
    /* Those of one name stand together. */
    if ((b->before && is_named(kv, b->before, &b->name)) ||
        (b->chain && is_named(kv, b->chain, &b->name)))
        return;
    kv->n_names--;
    change(kv, PL_CHANGE_REMOVED, &b->name);
}

bool pl_kv_reset(pl_kv *kv)
{
    if (kv->n_free != kv->n_blocks - 1) return false;
    for (int32_t i = 1; i < kv->n_blocks; i++)
        kv->blocks[i].named = kv->blocks[i].found = false;
    memset(kv->buckets, 0, ((size_t)kv->mask + 1) * sizeof *kv->buckets);
    kv->n_cached = 0;
    kv->n_names = 0;
    change(kv, PL_CHANGE_CLEARED, NULL);
    return true;
}

pl_changes *pl_kv_whole(const pl_kv *kv)
{
    uint64_t *keys;
    int32_t n = 0, all = PL_MIN(kv->n_names, PL_CHANGES_WHOLE);
    pl_changes *c = pl_changes_whole(kv->n_changes, all, &keys);
    for (uint32_t i = 0; n < all; i++)
        for (int32_t at = kv->buckets[i]; at && n < all; at = kv->blocks[at].chain) {
            const block *b = &kv->blocks[at];
            if (!b->before || !is_named(kv, b->before, &b->name))
                keys[n++] = pl_name_key(&kv->namer, &b->name);
        }
    return c;
}

/* ---- take, put ------------------------------------------------------------------ */

bool pl_kv_take(pl_kv *kv, const int32_t *hits, int32_t n_hits, int32_t n_new,
                int32_t *fresh)
{
    int32_t idle = 0; /* hits that stand in the line themselves */
    for (int32_t i = 0; i < n_hits; i++) idle += kv->blocks[hits[i]].refs == 0;
    if (n_new > kv->n_free - idle) return false;
    for (int32_t i = 0; i < n_hits; i++) {
        kv->blocks[hits[i]].found = true;
        if (kv->blocks[hits[i]].refs++ == 0) leave_line(kv, hits[i]);
    }
    for (int32_t i = 0; i < n_new; i++) {
        int32_t at = choose(kv, kv->blocks[ONCE(kv)].next, kv->blocks[FOUND(kv)].next,
                            kv->n_taken++);
        pl_kv_forget(kv, at);
        leave_line(kv, at);
        kv->blocks[at].refs = 1;
        kv->blocks[at].found = false;
        fresh[i] = at;
    }
    return true;
}

void pl_kv_share(pl_kv *kv, const int32_t *blocks, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        assert(kv->blocks[blocks[i]].refs > 0);
        kv->blocks[blocks[i]].refs++;
    }
}

void pl_kv_put(pl_kv *kv, const int32_t *blocks, int32_t n)
{
    while (n-- > 0) {
        assert(kv->blocks[blocks[n]].refs > 0);
        if (--kv->blocks[blocks[n]].refs == 0) join_line(kv, blocks[n]);
    }
}

/* ---- what it looks like --------------------------------------------------------- */

int32_t pl_kv_size(const pl_kv *kv)
{
    return kv->n_blocks - 1;
}

int32_t pl_kv_free(const pl_kv *kv)
{
    return kv->n_free;
}

int32_t pl_kv_cached(const pl_kv *kv)
{
    return kv->n_cached;
}

int32_t pl_kv_users(const pl_kv *kv, int32_t at)
{
    return kv->blocks[at].refs;
}

int32_t pl_kv_line(const pl_kv *kv, int32_t *out, int32_t max)
{
    int32_t n = 0, once = kv->blocks[ONCE(kv)].next, found = kv->blocks[FOUND(kv)].next;
    for (int32_t at;
         n < max && (at = choose(kv, once, found, kv->n_taken + (uint64_t)n));) {
        out[n++] = at;
        if (at == once)
            once = kv->blocks[at].next;
        else
            found = kv->blocks[at].next;
    }
    return n;
}

static pl_status check_line(const pl_kv *kv, int32_t line, int32_t *n, int32_t *n_cached)
{
    for (int32_t at = kv->blocks[line].next; at != line; at = kv->blocks[at].next) {
        const block *b = &kv->blocks[at];
        if (b->refs || kv->blocks[b->next].prev != at || ++*n >= kv->n_blocks)
            return pl_fail(PL_EINTERNAL, "the line of free blocks is broken at %d", at);
        *n_cached += b->named;
    }
    return PL_OK;
}

pl_status pl_kv_check(const pl_kv *kv)
{
    int32_t in_line = 0, cached = 0, named = 0, found = 0, idle = 0, names = 0;
    PL_TRY(check_line(kv, ONCE(kv), &in_line, &cached));
    PL_TRY(check_line(kv, FOUND(kv), &in_line, &cached));
    for (int32_t i = 1; i < kv->n_blocks; i++) {
        named += kv->blocks[i].named;
        idle += kv->blocks[i].refs == 0;
    }
    for (uint32_t i = 0; i <= kv->mask; i++)
        for (int32_t at = kv->buckets[i], before = 0; at;
             before = at, at = kv->blocks[at].chain) {
            if (!kv->blocks[at].named || kv->blocks[at].before != before ||
                ++found > named)
                return pl_fail(PL_EINTERNAL, "block %d is found, wrongly", at);
            names += find_block(kv, &kv->blocks[at].name) == at;
        }
    if (in_line != kv->n_free || idle != in_line || cached != kv->n_cached ||
        found != named || names != kv->n_names)
        return pl_fail(PL_EINTERNAL,
                       "of %d idle blocks %d are in line and %d are counted; "
                       "%d of %d named are found; %d cached, %d counted; "
                       "%d names, %d counted",
                       idle, in_line, kv->n_free, found, named, cached, kv->n_cached,
                       names, kv->n_names);
    return PL_OK;
}
