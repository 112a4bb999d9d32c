/* SPDX-License-Identifier: Apache-2.0
 *
 * text_index.c - what a tokenizer looks up: words, pairs to merge, added tokens.
 *
 * Owns     the tables inside a pl_text.
 * Ignores  in what order they are asked.
 * Thread   any; writes only while the pl_text is built.
 */
#include "text.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t text_hash(const char *s, size_t len)
{
    return XXH3_64bits(s, len);
}

/* ---- words --------------------------------------------------------------------------
 */

static void words_grow(text_words *w)
{
    uint32_t n = w->slots ? (w->mask + 1) * 2 : 1024;
    struct text_word *old = w->slots, *slots = pl_alloc(n * sizeof *slots);
    for (uint32_t i = 0; i < n; i++) slots[i].id = -1;
    for (uint32_t i = 0; old && i <= w->mask; i++) {
        if (old[i].id < 0) continue;
        uint32_t at = old[i].hash & (n - 1);
        while (slots[at].id >= 0) at = (at + 1) & (n - 1);
        slots[at] = old[i];
    }
    pl_free(old);
    w->slots = slots;
    w->mask = n - 1;
}

int32_t text_words_find(const pl_text *t, const char *s, size_t len)
{
    const text_words *w = &t->words;
    if (!w->slots) return -1;
    uint32_t hash = (uint32_t)text_hash(s, len);
    for (uint32_t at = hash & w->mask; w->slots[at].id >= 0; at = (at + 1) & w->mask) {
        if (w->slots[at].hash != hash) continue;
        text_slice have = t->tokens[w->slots[at].id].vocab;
        if (have.len == len && memcmp(text_at(t, have), s, len) == 0)
            return w->slots[at].id;
    }
    return -1;
}

void text_words_add(pl_text *t, int32_t id)
{
    text_words *w = &t->words;
    text_slice key = t->tokens[id].vocab;
    if (text_words_find(t, text_at(t, key), key.len) >= 0) return;
    if (!w->slots || w->n * 2 > w->mask) words_grow(w);
    uint32_t hash = (uint32_t)text_hash(text_at(t, key), key.len), at = hash & w->mask;
    while (w->slots[at].id >= 0) at = (at + 1) & w->mask;
    w->slots[at] = (struct text_word){hash, id};
    w->n++;
}

/* ---- pairs --------------------------------------------------------------------------
 */

static void pairs_put(text_pairs *p, const text_pair *pair)
{
    uint64_t hash = text_pair_hash(pair->key);
    uint32_t at = (uint32_t)(hash >> 24) & p->mask;
    while (p->tags[at] && p->slots[at].key != pair->key) at = (at + 1) & p->mask;
    if (!p->tags[at]) p->n++;
    p->tags[at] = text_pair_tag(hash);
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

/* ---- added tokens -------------------------------------------------------------------
 */

static int32_t trie_child(const text_trie *trie, int32_t at, uint8_t byte)
{
    int32_t child = trie->nodes[at].child;
    while (child && trie->nodes[child].byte != byte) child = trie->nodes[child].next;
    return child;
}

static int32_t trie_grow(text_trie *trie, int32_t parent, uint8_t byte)
{
    if (trie->n == trie->cap) {
        trie->cap = trie->cap * 2 + 64;
        trie->nodes = pl_realloc(trie->nodes, (size_t)trie->cap * sizeof *trie->nodes);
    }
    if (!trie->n)
        trie->nodes[trie->n++] =
            (struct text_node){0, 0, -1, 0}; /* 0 is nobody's child */
    int32_t at = trie->n++;
    trie->nodes[at] = (struct text_node){0, 0, -1, byte};
    if (parent) {
        trie->nodes[at].next = trie->nodes[parent].child;
        trie->nodes[parent].child = at;
    } else {
        trie->first[byte] = at;
    }
    return at;
}

void text_trie_add(text_trie *trie, const char *s, size_t len, int32_t id)
{
    int32_t at = 0;
    for (size_t i = 0; i < len; i++) {
        uint8_t byte = (uint8_t)s[i];
        int32_t next = at ? trie_child(trie, at, byte) : trie->first[byte];
        at = next ? next : trie_grow(trie, at, byte);
    }
    if (at && trie->nodes[at].id < 0) trie->nodes[at].id = id;
}

static int32_t trie_longest(const text_trie *trie, const char *s, size_t len, size_t *end)
{
    int32_t found = -1;
    int32_t at = trie->first[(uint8_t)s[0]];
    for (size_t i = 1; at; i++) {
        if (trie->nodes[at].id >= 0) found = trie->nodes[at].id, *end = i;
        if (i == len) break;
        at = trie_child(trie, at, (uint8_t)s[i]);
    }
    return found;
}

int32_t text_trie_next(const text_trie *trie, const char *s, size_t len, size_t from,
                       size_t *start, size_t *end)
{
    if (!trie->n) return -1;
    for (size_t i = from; i < len; i++) {
        if (!trie->first[(uint8_t)s[i]]) continue;
        size_t n = 0;
        int32_t id = trie_longest(trie, s + i, len - i, &n);
        if (id < 0) continue;
        *start = i;
        *end = i + n;
        return id;
    }
    return -1;
}
