/* SPDX-License-Identifier: Apache-2.0
 *
 * text_bpe.c - a word's ids: its characters, merged by rank.
 *
 * Owns     the pairs that merge; each thread's scratch, with its cache of words.
 * Ignores  where words begin and end.
 * Thread   any; a pl_text is only read.
 *
 * Always the merge of lowest rank goes first, of equal ones the leftmost. Short words
 * look for it by scanning; long ones keep a heap, so that a megabyte in one word stays
 * n log n.
 */
#include "text.h"

#include <string.h>

#define SHORT 128              /* symbols merged by scanning */
#define CACHE_SLOTS 8192       /* 512 KiB a thread */
#define KEEP_SYMBOLS (1 << 14) /* what a thread keeps after a long text */
#define KEEP_BYTES (1 << 20)

typedef struct cached { /* 64 bytes: a cache line */
    uint32_t serial;
    uint8_t len, n;
    char bytes[26];
    int32_t ids[8];
} cached;

typedef struct symbol {
    int32_t id, prev, next; /* next -1: the last; id -1: swallowed */
    uint32_t rank;          /* of the merge with the next, into `merged` */
    int32_t merged;
} symbol;

struct text_scratch {
    pcre2_match_data *match;
    pl_buf bufs[TEXT_N_BUFS];
    symbol *symbols;
    int32_t *ids;
    size_t n_symbols; /* room in both */
    uint64_t *heap;   /* rank << 32 | position */
    size_t heap_len, heap_cap;
    cached cache[CACHE_SLOTS];
};

/* ---- scratch -------------------------------------------------------------------- */

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static _Thread_local text_scratch *scratch;

static void scratch_close(void *p)
{
    text_scratch *s = p;
    pcre2_match_data_free(s->match);
    for (int i = 0; i < TEXT_N_BUFS; i++) pl_buf_fini(&s->bufs[i]);
    pl_free(s->symbols);
    pl_free(s->ids);
    pl_free(s->heap);
    pl_free(s);
    scratch = NULL;
}

static void scratch_key_open(void)
{
    pthread_key_create(&scratch_key, scratch_close);
}

text_scratch *text_scratch_get(void)
{
    if (scratch) return scratch;
    pthread_once(&scratch_once, scratch_key_open);
    scratch = pl_alloc(sizeof *scratch);
    scratch->match = pcre2_match_data_create(1, NULL);
    pthread_setspecific(scratch_key, scratch);
    return scratch;
}

void text_scratch_trim(text_scratch *s)
{
    for (int i = 0; i < TEXT_N_BUFS; i++)
        if (s->bufs[i].cap > KEEP_BYTES) pl_buf_fini(&s->bufs[i]);
    if (s->n_symbols <= KEEP_SYMBOLS) return;
    pl_free(s->symbols);
    pl_free(s->ids);
    pl_free(s->heap);
    s->symbols = NULL, s->ids = NULL, s->heap = NULL;
    s->n_symbols = s->heap_cap = 0;
}

pcre2_match_data *text_scratch_match(text_scratch *s)
{
    return s->match;
}

pl_buf *text_scratch_buf(text_scratch *s, int which)
{
    return &s->bufs[which];
}

/* ---- pairs ---------------------------------------------------------------------- */

static uint64_t pair_hash(uint64_t key)
{
    return (key ^ key >> 32) * 0x9e3779b97f4a7c15u;
}

static uint8_t pair_tag(uint64_t hash)
{
    return (uint8_t)(hash >> 56) ? (uint8_t)(hash >> 56) : 1;
}

static void pairs_put(text_pairs *p, const text_pair *pair)
{
    uint64_t hash = pair_hash(pair->key);
    uint32_t at = (uint32_t)(hash >> 24) & p->mask;
    while (p->tags[at] && p->slots[at].key != pair->key) at = (at + 1) & p->mask;
    if (!p->tags[at]) p->n++;
    p->tags[at] = pair_tag(hash);
    p->slots[at] = *pair;
}

void text_pairs_init(text_pairs *p, uint32_t n_slots)
{
    *p = (text_pairs){pl_alloc(n_slots), pl_alloc(n_slots * sizeof *p->slots),
                      n_slots - 1, 0};
}

void text_pairs_fini(text_pairs *p)
{
    pl_free(p->tags);
    pl_free(p->slots);
}

/* Of two equal pairs the later counts, as in HF. */
void text_pairs_add(text_pairs *p, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    if (p->n * 2 > p->mask) {
        text_pairs bigger;
        text_pairs_init(&bigger, (p->mask + 1) * 2);
        for (uint32_t i = 0; i <= p->mask; i++)
            if (p->tags[i]) pairs_put(&bigger, &p->slots[i]);
        text_pairs_fini(p);
        *p = bigger;
    }
    pairs_put(p,
              &(text_pair){(uint64_t)(uint32_t)left << 32 | (uint32_t)right, rank, id});
}

/* ---- characters ----------------------------------------------------------------- */

/* The ids of one character that is not in the vocabulary: its bytes. 0: not possible. */
static int fall_back(const pl_text *t, const char *p, int len, int32_t *out)
{
    for (int i = 0; i < len; i++) {
        out[i] = t->byte_id[(uint8_t)p[i]];
        if (out[i] < 0) return 0;
    }
    return len;
}

/* The ids a word starts from, one a character; at most `len` of them. What is unknown
 * waits in `unk` until something known follows, as HF has it. */
static int split_characters(const pl_text *t, const char *p, size_t len, int32_t *out)
{
    bool unk = false;
    int n = 0;
    for (size_t i = 0; i < len;) {
        int step = 1;
        int32_t id;
        if (t->o.kind == PL_TEXT_BYTES) {
            id = t->byte_id[(uint8_t)p[i]];
        } else {
            step = pl_utf8_len((const unsigned char *)p + i, len - i, NULL);
            id = text_words_find(t, p + i, (size_t)step);
        }
        if (id >= 0) {
            if (unk) out[n++] = t->o.unk_id;
            unk = false;
            out[n++] = id;
        } else {
            int fallen = t->o.byte_fallback ? fall_back(t, p + i, step, out + n) : 0;
            n += fallen;
            if (!fallen && t->o.unk_id >= 0) {
                if (unk && !t->o.fuse_unk) out[n++] = t->o.unk_id;
                unk = true;
            }
        }
        i += (size_t)step;
    }
    if (unk) out[n++] = t->o.unk_id;
    return n;
}

/* ---- merging -------------------------------------------------------------------- */

/* The rank at which the two merge, and into what. */
static inline uint32_t rank_of(const pl_text *t, int32_t left, int32_t right,
                               int32_t *merged)
{
    const text_pairs *p = &t->pairs;
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t hash = pair_hash(key);
    uint8_t tag = pair_tag(hash);
    for (uint32_t at = (uint32_t)(hash >> 24) & p->mask; p->tags[at];
         at = (at + 1) & p->mask) {
        if (p->tags[at] != tag || p->slots[at].key != key) continue;
        *merged = p->slots[at].id;
        return p->slots[at].rank;
    }
    return TEXT_NO_RANK;
}

/* Leaves the ids in `ids`. */
static int merge_short(const pl_text *t, int32_t *ids, int n)
{
    struct {
        int32_t id, merged;
        uint32_t rank;
    } y[SHORT];
    for (int i = 0; i < n; i++) {
        y[i].id = ids[i];
        y[i].rank =
            i + 1 < n ? rank_of(t, ids[i], ids[i + 1], &y[i].merged) : TEXT_NO_RANK;
    }
    while (n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (y[i].rank < y[best].rank) best = i;
        if (y[best].rank == TEXT_NO_RANK) break;
        y[best].id = y[best].merged;
        n--;
        memmove(y + best + 1, y + best + 2, (size_t)(n - best - 1) * sizeof *y);
        y[best].rank = best + 1 < n
                           ? rank_of(t, y[best].id, y[best + 1].id, &y[best].merged)
                           : TEXT_NO_RANK;
        if (best)
            y[best - 1].rank =
                rank_of(t, y[best - 1].id, y[best].id, &y[best - 1].merged);
    }
    for (int i = 0; i < n; i++) ids[i] = y[i].id;
    return n;
}

static void heap_down(uint64_t *heap, size_t len, size_t at)
{
    uint64_t v = heap[at];
    for (size_t child; (child = 2 * at + 1) < len; at = child) {
        if (child + 1 < len && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= v) break;
        heap[at] = heap[child];
    }
    heap[at] = v;
}

static uint64_t heap_pop(text_scratch *s)
{
    uint64_t top = s->heap[0];
    s->heap[0] = s->heap[--s->heap_len];
    if (s->heap_len) heap_down(s->heap, s->heap_len, 0);
    return top;
}

static void heap_push(text_scratch *s, uint64_t v)
{
    if (s->heap_len == s->heap_cap) {
        s->heap_cap = s->heap_cap * 2 + 256;
        s->heap = pl_realloc(s->heap, s->heap_cap * sizeof *s->heap);
    }
    size_t at = s->heap_len++;
    for (; at && s->heap[(at - 1) / 2] > v; at = (at - 1) / 2)
        s->heap[at] = s->heap[(at - 1) / 2];
    s->heap[at] = v;
}

static void rank_symbol(const pl_text *t, text_scratch *s, int32_t at)
{
    symbol *y = &s->symbols[at];
    y->rank = y->next < 0 ? TEXT_NO_RANK
                          : rank_of(t, y->id, s->symbols[y->next].id, &y->merged);
    if (y->rank != TEXT_NO_RANK) heap_push(s, (uint64_t)y->rank << 32 | (uint32_t)at);
}

static int merge_long(const pl_text *t, text_scratch *s, int32_t *ids, int n)
{
    symbol *y = s->symbols;
    for (int32_t i = 0; i < n; i++)
        y[i] = (symbol){ids[i], i - 1, i + 1 < n ? i + 1 : -1, 0, 0};
    s->heap_len = 0;
    for (int32_t i = 0; i < n; i++) rank_symbol(t, s, i);
    while (s->heap_len) {
        uint64_t top = heap_pop(s);
        int32_t at = (int32_t)(uint32_t)top;
        if (y[at].id < 0 || y[at].rank != top >> 32) continue; /* overtaken */
        int32_t gone = y[at].next;
        y[at].id = y[at].merged;
        y[at].next = y[gone].next;
        y[gone].id = -1;
        if (y[gone].next >= 0) y[y[gone].next].prev = at;
        rank_symbol(t, s, at);
        if (y[at].prev >= 0) rank_symbol(t, s, y[at].prev);
    }
    int left = 0;
    for (int32_t i = 0; i >= 0; i = y[i].next) ids[left++] = y[i].id;
    return left;
}

static void add_ids(pl_buf *out, const int32_t *ids, int n)
{
    pl_buf_add(out, ids, (size_t)n * sizeof *ids);
}

static void encode_long(const pl_text *t, text_scratch *s, const char *p, size_t len,
                        pl_buf *out)
{
    if (s->n_symbols < len) {
        pl_free(s->symbols);
        pl_free(s->ids);
        s->symbols = pl_alloc(len * sizeof *s->symbols);
        s->ids = pl_alloc(len * sizeof *s->ids);
        s->n_symbols = len;
    }
    int n = split_characters(t, p, len, s->ids);
    add_ids(out, s->ids, n < 2 ? n : merge_long(t, s, s->ids, n));
}

/* ---- words ---------------------------------------------------------------------- */

static void encode_short(const pl_text *t, const char *p, size_t len, pl_buf *out,
                         cached *slot)
{
    int32_t ids[SHORT];
    int n = 1;
    ids[0] = t->o.ignore_merges ? text_words_find(t, p, len) : -1;
    if (ids[0] < 0) n = merge_short(t, ids, split_characters(t, p, len, ids));
    add_ids(out, ids, n);
    if (!slot || n > PL_COUNT(slot->ids)) return;
    slot->serial = t->serial;
    slot->len = (uint8_t)len;
    slot->n = (uint8_t)n;
    memcpy(slot->bytes, p, len);
    memcpy(slot->ids, ids, (size_t)n * sizeof *ids);
}

/* Most words come here, so all ids are copied in one go where there is room for them. */
static void add_cached(pl_buf *out, const cached *slot)
{
    if (out->cap - out->len < sizeof slot->ids) pl_buf_reserve(out, sizeof slot->ids);
    memcpy(out->data + out->len, slot->ids, sizeof slot->ids);
    out->len += slot->n * sizeof *slot->ids;
}

void text_bpe_word(const pl_text *t, text_scratch *s, const char *p, size_t len,
                   pl_buf *out)
{
    if (len <= sizeof s->cache->bytes) {
        uint64_t hash = text_hash(p, len) + t->serial * 0x9e3779b97f4a7c15u;
        cached *slot = &s->cache[hash & (CACHE_SLOTS - 1)];
        if (slot->serial == t->serial && slot->len == len &&
            memcmp(slot->bytes, p, len) == 0)
            add_cached(out, slot);
        else
            encode_short(t, p, len, out, slot);
    } else if (len <= SHORT) {
        encode_short(t, p, len, out, NULL);
    } else {
        int32_t whole = t->o.ignore_merges ? text_words_find(t, p, len) : -1;
        if (whole >= 0)
            pl_buf_add_i32(out, whole);
        else
            encode_long(t, s, p, len, out);
    }
}
