/* SPDX-License-Identifier: Apache-2.0
 *
 * text.c - builds a tokenizer from what a model's files say, checks and freezes it.
 *
 * Owns     pl_text.
 * Ignores  how a text is encoded; tokenizer.json and GGUF (model/tokenizer.lua reads
 *          those).
 * Thread   one while building; any once ready.
 *
 *      open --token, merge, split--> building --ready--> frozen --> encode, decode, find
 */
#define _GNU_SOURCE
#include "text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_IDS (1 << 22)
#define MAX_TOKEN_LEN 4096
#define MAX_ARENA ((size_t)1 << 30)

static pl_status check_options(const pl_text_options *o)
{
    if (o->kind != PL_TEXT_BYTES && o->kind != PL_TEXT_PIECES)
        return pl_fail(PL_EINVAL, "tokenizer kind %d is not known", o->kind);
    if (o->vocab_size < 1 || o->vocab_size > MAX_IDS)
        return pl_fail(PL_EINVAL, "vocab_size %d is not in 1..%d", o->vocab_size,
                       MAX_IDS);
    if (o->unk_id < -1 || o->unk_id >= o->vocab_size)
        return pl_fail(PL_EINVAL, "unk_id %d is not in -1..%d", o->unk_id,
                       o->vocab_size - 1);
    bool bytes = o->kind == PL_TEXT_BYTES;
    if (o->prefix_space < 0 || o->prefix_space > PL_PREFIX_FIRST)
        return pl_fail(PL_EINVAL, "prefix_space %d is not known", o->prefix_space);
    if (o->prefix_space == PL_PREFIX_FIRST && !o->metaspace)
        return pl_fail(PL_EINVAL, "prefix_space FIRST needs metaspace");
    if (bytes && (o->by_score || o->byte_fallback || o->strip_left || o->metaspace))
        return pl_fail(
            PL_EINVAL,
            "by_score, byte_fallback, strip_left and metaspace are for pieces only");
    if (o->strip_left < -1)
        return pl_fail(PL_EINVAL, "strip_left %d is below -1", o->strip_left);
    return PL_OK;
}

pl_text *pl_text_open(const pl_text_options *options)
{
    if (check_options(options) < 0) return NULL;
    pl_text *t = pl_alloc(sizeof *t);
    t->o = *options;
    t->tokens = pl_alloc((size_t)options->vocab_size * sizeof *t->tokens);
    text_pairs_init(&t->pairs, 1024);
    pl_buf_reserve(&t->arena, 1); /* slices point somewhere, even empty ones */
    return t;
}

void pl_text_close(pl_text *t)
{
    if (!t) return;
    for (int i = 0; i < t->n_splits; i++) pcre2_code_free(t->splits[i]);
    pl_free(t->raw.nodes);
    pl_free(t->normalized.nodes);
    text_pairs_fini(&t->pairs);
    pl_free(t->words.slots);
    pl_free(t->added);
    pl_free(t->tokens);
    pl_buf_fini(&t->arena);
    pl_free(t);
}

static pl_status check_building(const pl_text *t)
{
    return t->ready ? pl_fail(PL_EINVAL, "the tokenizer is frozen") : PL_OK;
}

static text_slice keep(pl_text *t, const char *s, size_t len)
{
    text_slice slice = {(uint32_t)t->arena.len, (uint32_t)len};
    pl_buf_add(&t->arena, s, len);
    return slice;
}

static pl_status check_token(const pl_text *t, int32_t id, const char *bytes, size_t len,
                             int kind, float score)
{
    PL_TRY(check_building(t));
    if (id < 0 || id >= t->o.vocab_size)
        return pl_fail(PL_EFORMAT, "token id %d is not in 0..%d", id,
                       t->o.vocab_size - 1);
    if ((kind & TEXT_KIND) > PL_TOKEN_BYTE || kind < 0 || kind >= 2 * PL_TOKEN_NORMALIZED)
        return pl_fail(PL_EINVAL, "token %d: kind %d is not known", id, kind);
    if (len > MAX_TOKEN_LEN)
        return pl_fail(PL_ELIMIT, "token %d has %zu bytes, more than %d", id, len,
                       MAX_TOKEN_LEN);
    if (!pl_utf8_valid(bytes, len))
        return pl_fail(PL_EFORMAT, "token %d is not UTF-8", id);
    if (t->o.by_score && !isfinite(score))
        return pl_fail(PL_EFORMAT, "token %d has no finite score", id);
    if (t->arena.len + 2 * len > MAX_ARENA)
        return pl_fail(PL_ELIMIT, "the vocabulary has more than %zu bytes", MAX_ARENA);
    return PL_OK;
}

static pl_status add_vocab(pl_text *t, int32_t id, const char *bytes, size_t len,
                           float score)
{
    text_token *token = &t->tokens[id];
    if (token->flags & TEXT_VOCAB)
        return pl_fail(PL_EFORMAT, "token id %d is given twice", id);
    char raw[MAX_TOKEN_LEN];
    size_t n = t->o.kind == PL_TEXT_BYTES ? text_unmap(bytes, len, raw) : SIZE_MAX;
    bool reachable = t->o.kind == PL_TEXT_PIECES || n != SIZE_MAX;
    token->vocab = n != SIZE_MAX ? keep(t, raw, n) : keep(t, bytes, len);
    token->score = score;
    token->flags |= TEXT_VOCAB;
    if (len && reachable) text_words_add(t, id);
    return PL_OK;
}

static pl_status add_added(pl_text *t, int32_t id, const char *bytes, size_t len)
{
    text_token *token = &t->tokens[id];
    if (token->flags & TEXT_ADDED)
        return pl_fail(PL_EFORMAT, "added token id %d is given twice", id);
    token->added = keep(t, bytes, len);
    token->flags |= TEXT_ADDED;
    if ((t->n_added & (t->n_added - 1)) == 0)
        t->added =
            pl_realloc(t->added, (size_t)PL_MAX(1, t->n_added * 2) * sizeof *t->added);
    t->added[t->n_added++] = id;
    return PL_OK;
}

pl_status pl_text_token(pl_text *t, int32_t id, const char *bytes, size_t len, int kind,
                        float score)
{
    PL_TRY(check_token(t, id, bytes, len, kind, score));
    int base = kind & TEXT_KIND;
    if (base == PL_TOKEN_BYTE &&
        (t->o.kind == PL_TEXT_BYTES || text_byte_named(bytes, len) < 0))
        return pl_fail(PL_EFORMAT, "token %d is not a byte token: '%.*s' is not <0xHH>",
                       id, (int)PL_MIN(len, 32), bytes);
    bool added = base == PL_TOKEN_ADDED || base == PL_TOKEN_SPECIAL;
    PL_TRY(added ? add_added(t, id, bytes, len) : add_vocab(t, id, bytes, len, score));
    uint32_t *flags = &t->tokens[id].flags;
    if (added || !(*flags & TEXT_ADDED))
        *flags = (*flags & (TEXT_VOCAB | TEXT_ADDED)) | (uint32_t)kind;
    return PL_OK;
}

/* The id of a part of a merge, joined from two strings; -1: not in the vocabulary; -2: no
 * text contains it, for it has characters that are not in the byte alphabet. */
static int32_t part_id(const pl_text *t, const char *a, size_t a_len, const char *b,
                       size_t b_len)
{
    char raw[2 * MAX_TOKEN_LEN];
    if (a_len > MAX_TOKEN_LEN || b_len > MAX_TOKEN_LEN) return -1;
    if (t->o.kind == PL_TEXT_PIECES) {
        memcpy(raw, a, a_len);
        memcpy(raw + a_len, b, b_len);
        return text_words_find(t, raw, a_len + b_len);
    }
    size_t n = text_unmap(a, a_len, raw);
    size_t m = n == SIZE_MAX ? n : text_unmap(b, b_len, raw + n);
    return m == SIZE_MAX ? -2 : text_words_find(t, raw, n + m);
}

pl_status pl_text_merge(pl_text *t, const char *left, size_t left_len, const char *right,
                        size_t right_len)
{
    PL_TRY(check_building(t));
    if (t->o.by_score)
        return pl_fail(PL_EINVAL, "a tokenizer with scores takes no merges");
    int32_t l = part_id(t, left, left_len, "", 0),
            r = part_id(t, right, right_len, "", 0);
    int32_t both = part_id(t, left, left_len, right, right_len);
    if (l == -1 || r == -1 || both == -1)
        return pl_fail(PL_EFORMAT,
                       "merge %u names '%.*s' '%.*s', which is not in the vocabulary",
                       t->n_merges, (int)PL_MIN(left_len, 64), left,
                       (int)PL_MIN(right_len, 64), right);
    uint32_t rank = t->n_merges++;
    if (both >= 0) text_pairs_add(&t->pairs, l, r, rank, both);
    return PL_OK;
}

pl_status pl_text_split(pl_text *t, const char *regex, size_t len)
{
    PL_TRY(check_building(t));
    if (t->n_splits == PL_TEXT_MAX_SPLITS)
        return pl_fail(PL_ELIMIT, "more than %d pre-tokenizers", PL_TEXT_MAX_SPLITS);
    return text_split_add(t, regex, len);
}

/* ---- ready ---------------------------------------------------------------------- */

typedef struct scored {
    float score;
    int32_t id;
} scored;

static int by_score(const void *a, const void *b)
{
    const scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static bool is_plain(const pl_text *t, int32_t id)
{
    return id >= 0 && (t->tokens[id].flags & (TEXT_VOCAB | TEXT_KIND)) == TEXT_VOCAB;
}

/* Every way to make a token of two others is a merge; equal scores have equal ranks, so
 * that the leftmost goes first, as in SentencePiece. */
static void merges_from_scores(pl_text *t)
{
    scored *order = pl_alloc((size_t)t->o.vocab_size * sizeof *order);
    int32_t n = 0;
    for (int32_t id = 0; id < t->o.vocab_size; id++)
        if (is_plain(t, id)) order[n++] = (scored){t->tokens[id].score, id};
    qsort(order, (size_t)n, sizeof *order, by_score);
    uint32_t rank = 0;
    for (int32_t i = 0; i < n; i++) {
        if (i && order[i].score != order[i - 1].score) rank++;
        text_slice s = t->tokens[order[i].id].vocab;
        const char *p = text_at(t, s);
        if (!s.len || text_words_find(t, p, s.len) != order[i].id) continue;
        for (uint32_t at = 1; at < s.len; at++) {
            if (((uint8_t)p[at] & 0xc0) == 0x80) continue;
            int32_t l = text_words_find(t, p, at),
                    r = text_words_find(t, p + at, s.len - at);
            if (is_plain(t, l) && is_plain(t, r))
                text_pairs_add(&t->pairs, l, r, rank, order[i].id);
        }
    }
    pl_free(order);
}

static void find_bytes(pl_text *t)
{
    for (int b = 0; b < 256; b++) {
        char name[8] = {(char)b};
        size_t len = 1;
        if (t->o.kind == PL_TEXT_PIECES)
            len = (size_t)snprintf(name, sizeof name, "<0x%02X>", b);
        t->byte_id[b] = text_words_find(t, name, len);
    }
}

static bool has_inner_space(const pl_text *t, int32_t id)
{
    text_slice s = t->tokens[id].vocab;
    const char *p = text_at(t, s);
    for (uint32_t i = 1; i + 3 <= s.len; i++) {
        if (memcmp(p + i, PL_TEXT_SPACE, 3) != 0) continue;
        if (i < 3 || memcmp(p + i - 3, PL_TEXT_SPACE, 3) != 0) return true;
    }
    return false;
}

/* Where no merge reaches from inside a word to the space after it, words can be merged
 * one by one: the same ids, but short words, which the cache knows. */
static bool may_cut(const pl_text *t)
{
    if (t->o.kind != PL_TEXT_PIECES || t->n_splits) return false;
    if (text_words_find(t, PL_TEXT_SPACE, 3) < 0) return false;
    for (uint32_t i = 0; t->pairs.slots && i <= t->pairs.mask; i++)
        if (t->pairs.slots[i].rank != TEXT_NO_RANK &&
            has_inner_space(t, t->pairs.slots[i].id))
            return false;
    return true;
}

static pl_status add_to_tries(pl_text *t)
{
    for (int32_t i = 0; i < t->n_added; i++) {
        const text_token *token = &t->tokens[t->added[i]];
        const char *p = text_at(t, token->added);
        size_t len = token->added.len;
        bool normalized = token->flags & PL_TOKEN_NORMALIZED;
        if (normalized) PL_TRY(text_normalize(t, text_scratch_get(), &p, &len));
        text_trie_add(normalized ? &t->normalized : &t->raw, p, len, t->added[i]);
    }
    return PL_OK;
}

pl_status pl_text_ready(pl_text *t)
{
    static atomic_uint serials = 1;
    PL_TRY(check_building(t));
    if (t->o.unk_id >= 0 && !(t->tokens[t->o.unk_id].flags & TEXT_VOCAB))
        return pl_fail(PL_EFORMAT, "unk_id %d is not in the vocabulary", t->o.unk_id);
    PL_TRY(add_to_tries(t));
    if (t->o.by_score) merges_from_scores(t);
    find_bytes(t);
    for (int32_t id = 0; id < t->o.vocab_size; id++) text_decode_ready(t, id);
    t->cut = may_cut(t);
    t->serial = atomic_fetch_add(&serials, 1);
    t->ready = true;
    return PL_OK;
}

/* ---- questions ------------------------------------------------------------------ */

int32_t pl_text_size(const pl_text *t)
{
    return t->o.vocab_size;
}

int32_t pl_text_find(const pl_text *t, const char *bytes, size_t len)
{
    for (int32_t i = 0; i < t->n_added; i++) {
        text_slice s = t->tokens[t->added[i]].added;
        if (s.len == len && memcmp(text_at(t, s), bytes, len) == 0) return t->added[i];
    }
    return len ? text_words_find(t, bytes, len) : -1;
}

int pl_text_token_kind(const pl_text *t, int32_t id)
{
    if (id < 0 || id >= t->o.vocab_size) return -1;
    uint32_t flags = t->tokens[id].flags;
    return flags & (TEXT_VOCAB | TEXT_ADDED) ? (int)(flags & 255) : -1;
}
