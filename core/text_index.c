/* SPDX-License-Identifier: Apache-2.0
 *
 * text_index.c - what a tokenizer looks up by bytes: words, added tokens.
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

/* ---- words ---------------------------------------------------------------------- */

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

/* ---- added tokens --------------------------------------------------------------- */

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
    if (len) trie->begin = !trie->n || trie->begin == (uint8_t)*s ? (uint8_t)*s : -1;
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
        if (trie->begin >= 0) {
            const char *found = memchr(s + i, trie->begin, len - i);
            if (!found) return -1;
            i = (size_t)(found - s);
        }
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
