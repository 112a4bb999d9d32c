/* SPDX-License-Identifier: Apache-2.0 */
#include "kv.h"

#include <assert.h>
#include <string.h>

typedef struct block {
    int32_t refs;
    int32_t prev, next; /* in the line, while refs is 0 */
    int32_t chain;      /* the next block in the bucket; 0: the last */
    int32_t before;     /* the one before it there; 0: the first */
    bool named;
    pl_name name;
} block;

struct pl_kv {
    int32_t n_blocks, n_free, n_cached;
    pl_namer namer;
    int32_t n_names; /* different ones */
    uint64_t n_changes;
    pl_change_log *log; /* NULL: nobody wants to know */
    uint32_t mask;
    int32_t *buckets; /* the first block of each; 0: none */
    block *blocks;    /* block 0's links are the two ends of the line */
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
    kv->blocks = pl_alloc((size_t)n_blocks * sizeof *kv->blocks);
    for (int32_t i = 0; i < n_blocks; i++) {
        kv->blocks[i].prev = (i ? i : n_blocks) - 1;
        kv->blocks[i].next = (i + 1) % n_blocks;
    }
    return kv;
}

void pl_kv_close(pl_kv *kv)
{
    if (!kv) return;
    pl_free(kv->buckets);
    pl_free(kv->blocks);
    pl_free(kv);
}

/* ---- the line ------------------------------------------------------------------- */

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
    block *b = &kv->blocks[at], *ends = &kv->blocks[0];
    b->prev = ends->prev;
    b->next = 0;
    kv->blocks[ends->prev].next = at;
    ends->prev = at;
    kv->n_free++;
    kv->n_cached += b->named;
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
    for (int32_t i = 1; i < kv->n_blocks; i++) kv->blocks[i].named = false;
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
    for (int32_t i = 0; i < n_hits; i++)
        if (kv->blocks[hits[i]].refs++ == 0) leave_line(kv, hits[i]);
    for (int32_t i = 0; i < n_new; i++) {
        int32_t at = kv->blocks[0].next;
        pl_kv_forget(kv, at);
        leave_line(kv, at);
        kv->blocks[at].refs = 1;
        fresh[i] = at;
    }
    return true;
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
    int32_t n = 0;
    for (int32_t at = kv->blocks[0].next; at && n < max; at = kv->blocks[at].next)
        out[n++] = at;
    return n;
}

pl_status pl_kv_check(const pl_kv *kv)
{
    int32_t in_line = 0, cached = 0, named = 0, found = 0, idle = 0, names = 0;
    for (int32_t at = kv->blocks[0].next; at; at = kv->blocks[at].next) {
        const block *b = &kv->blocks[at];
        if (b->refs || kv->blocks[b->next].prev != at || ++in_line >= kv->n_blocks)
            return pl_fail(PL_EINTERNAL, "the line of free blocks is broken at %d", at);
        cached += b->named;
    }
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
