/* SPDX-License-Identifier: Apache-2.0
 *
 * text_decode.c - tokens back to bytes, at once or as they come.
 *
 * Owns     pl_detok: what is held back of a stream.
 * Ignores  stop strings, sockets.
 * Thread   any; a pl_detok belongs to whoever holds it.
 *
 * Held back are, of byte-level tokens, the bytes of a character that is not yet whole; of
 * pieces, a run of byte tokens until it ends: only then is it known whether the run is
 * UTF-8, and where it is not each of its bytes becomes U+FFFD, as in HF.
 */
#define _GNU_SOURCE
#include "text.h"

#include <string.h>

/* ---- the byte alphabet: GPT-2 writes bytes as printable characters ----------------- */

static bool is_printable(int b)
{
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
}

/* The other 68 bytes are U+0100 and on, in their order. */
static int byte_of(int c)
{
    if (c < 256) return is_printable(c) ? c : -1;
    int n = 256;
    for (int b = 0; b < 256; b++)
        if (!is_printable(b) && n++ == c) return b;
    return -1;
}

size_t text_unmap(const char *s, size_t len, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)s[i];
        int b;
        if (c < 0x80) {
            b = byte_of(c);
            i++;
        } else if (c >= 0xc2 && c <= 0xc5 && i + 1 < len) {
            b = byte_of((c & 0x1f) << 6 | (s[i + 1] & 0x3f));
            i += 2;
        } else {
            return SIZE_MAX;
        }
        if (b < 0) return SIZE_MAX;
        out[n++] = (char)b;
    }
    return n;
}

int text_byte_named(const char *s, size_t len)
{
    static const char digits[] = "0123456789abcdef";
    if (len != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    const char *high = memchr(digits, s[3] | 0x20, 16),
               *low = memchr(digits, s[4] | 0x20, 16);
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

/* ---- what each token decodes to ------------------------------------------------- */

static text_slice with_spaces(pl_text *t, text_slice from)
{
    if (!memmem(text_at(t, from), from.len, PL_TEXT_SPACE, 3)) return from;
    text_slice made = {(uint32_t)t->arena.len, 0};
    pl_buf_reserve(&t->arena, from.len);
    const char *p = text_at(t, from), *end = p + from.len;
    while (p < end) {
        bool space = end - p >= 3 && memcmp(p, PL_TEXT_SPACE, 3) == 0;
        t->arena.data[t->arena.len++] = space ? ' ' : *p;
        p += space ? 3 : 1;
    }
    made.len = (uint32_t)t->arena.len - made.at;
    return made;
}

static text_slice unmapped(pl_text *t, text_slice from)
{
    pl_buf_reserve(&t->arena, from.len);
    size_t n = text_unmap(text_at(t, from), from.len, t->arena.data + t->arena.len);
    if (n == SIZE_MAX) return from;
    text_slice made = {(uint32_t)t->arena.len, (uint32_t)n};
    t->arena.len += n;
    return made;
}

void text_decode_ready(pl_text *t, int32_t id)
{
    text_token *token = &t->tokens[id];
    bool added = token->flags & TEXT_ADDED;
    text_slice from = added ? token->added : token->vocab;
    if ((token->flags & TEXT_KIND) == PL_TOKEN_BYTE) {
        char byte = (char)text_byte_named(text_at(t, from), from.len);
        token->shown = (text_slice){(uint32_t)t->arena.len, 1};
        pl_buf_add(&t->arena, &byte, 1);
    } else if (t->o.kind == PL_TEXT_PIECES) {
        token->shown = with_spaces(t, from);
    } else {
        token->shown = added ? unmapped(t, from) : from;
    }
    if (pl_utf8_valid(text_at(t, token->shown), token->shown.len))
        token->flags |= TEXT_VALID;
}

/* ---- as they come --------------------------------------------------------------- */

struct pl_detok {
    const pl_text *t;
    bool skip_special, begun;
    int32_t strip; /* spaces still to take off the start */
    pl_buf held;
};

static void detok_init(pl_detok *d, const pl_text *t, int skip_special)
{
    *d = (pl_detok){
        .t = t, .skip_special = skip_special, .strip = PL_MAX(t->o.strip_left, 0)};
}

static void emit(pl_detok *d, const char *p, size_t len, pl_buf *out)
{
    while (len && d->strip && *p == ' ') p++, len--, d->strip--;
    if (len) d->strip = 0;
    pl_buf_add(out, p, len);
}

/* How many of the bytes at p, which start no whole character, one U+FFFD stands for. */
static size_t broken_len(const unsigned char *p, size_t len)
{
    size_t n = 1;
    for (int need; n < len; n++) {
        pl_utf8_len(p, n + 1, &need);
        if (!need) break;
    }
    return n;
}

/* Gives out the held bytes but for an incomplete character at their end. */
static void drain(pl_detok *d, pl_buf *out)
{
    if (!d->held.len) return;
    const unsigned char *p = (const unsigned char *)d->held.data;
    size_t len = d->held.len, i = 0, whole = 0;
    while (i < len) {
        int need, n = pl_utf8_len(p + i, len - i, &need);
        if (n) {
            i += (size_t)n;
            continue;
        }
        pl_buf_add(out, p + whole, i - whole);
        whole = i;
        if (need) break;
        pl_buf_add(out, PL_TEXT_BROKEN, 3);
        whole = i += broken_len(p + i, len - i);
    }
    pl_buf_add(out, p + whole, i - whole);
    memmove(d->held.data, d->held.data + i, len - i);
    d->held.len = len - i;
}

static void end_run(pl_detok *d, pl_buf *out)
{
    if (pl_utf8_valid(d->held.data, d->held.len)) {
        emit(d, d->held.data, d->held.len, out);
    } else {
        for (size_t i = 0; i < d->held.len; i++) emit(d, PL_TEXT_BROKEN, 3, out);
    }
    d->held.len = 0;
}

/* A Metaspace decoder takes all U+2581 out of the first token. */
static void emit_first(pl_detok *d, const text_token *token, pl_buf *out)
{
    text_slice from = token->flags & TEXT_ADDED ? token->added : token->vocab;
    const char *p = text_at(d->t, from), *end = p + from.len;
    while (p < end) {
        if (end - p >= 3 && memcmp(p, PL_TEXT_SPACE, 3) == 0)
            p += 3;
        else
            pl_buf_add(out, p++, 1);
    }
}

static void push_piece(pl_detok *d, const text_token *token, pl_buf *out)
{
    bool first = !d->begun && d->t->o.strip_left < 0;
    d->begun = true;
    if ((token->flags & TEXT_KIND) == PL_TOKEN_BYTE) {
        pl_buf_add(&d->held, text_at(d->t, token->shown), 1);
        return;
    }
    if (d->held.len) end_run(d, out);
    if (first)
        emit_first(d, token, out);
    else
        emit(d, text_at(d->t, token->shown), token->shown.len, out);
}

void pl_detok_push(pl_detok *d, int32_t id, pl_buf *out)
{
    if (id < 0 || id >= d->t->o.vocab_size) return;
    const text_token *token = &d->t->tokens[id];
    if (!(token->flags & (TEXT_VOCAB | TEXT_ADDED))) return;
    if (d->skip_special && (token->flags & TEXT_KIND) == PL_TOKEN_SPECIAL) return;
    const char *p = text_at(d->t, token->shown);
    if (d->t->o.kind == PL_TEXT_PIECES) {
        push_piece(d, token, out);
    } else if (!d->held.len && token->flags & TEXT_VALID) {
        pl_buf_add(out, p, token->shown.len);
    } else {
        pl_buf_add(&d->held, p, token->shown.len);
        drain(d, out);
    }
}

void pl_detok_flush(pl_detok *d, pl_buf *out)
{
    if (!d->held.len) return;
    if (d->t->o.kind == PL_TEXT_PIECES)
        end_run(d, out);
    else
        pl_buf_add(out, PL_TEXT_BROKEN, 3); /* one character that was never whole */
    d->held.len = 0;
}

void pl_detok_prime(pl_detok *d, const int32_t *ids, int n)
{
    pl_buf unseen = {0};
    for (int i = 0; i < n; i++) {
        pl_detok_push(d, ids[i], &unseen);
        unseen.len = 0;
    }
    if (d->held.len) { /* only an unfinished character is still to come */
        drain(d, &unseen);
        d->strip = 0;
    }
    pl_buf_fini(&unseen);
}

pl_detok *pl_detok_open(const pl_text *text, int skip_special)
{
    pl_detok *d = pl_alloc(sizeof *d);
    detok_init(d, text, skip_special);
    return d;
}

void pl_detok_close(pl_detok *d)
{
    if (!d) return;
    pl_buf_fini(&d->held);
    pl_free(d);
}

/* ---- at once -------------------------------------------------------------------- */

pl_status pl_text_decode(const pl_text *t, const int32_t *ids, int n, int skip_special,
                         pl_buf *out)
{
    if (!t->ready) return pl_fail(PL_EINVAL, "the tokenizer is not ready");
    pl_detok d;
    detok_init(&d, t, skip_special);
    for (int i = 0; i < n; i++) pl_detok_push(&d, ids[i], out);
    pl_detok_flush(&d, out);
    pl_buf_fini(&d.held);
    return PL_OK;
}

pl_status pl_text_bytes(const pl_text *t, int32_t id, pl_buf *out)
{
    if (!t->ready) return pl_fail(PL_EINVAL, "the tokenizer is not ready");
    if (pl_text_token_kind(t, id) < 0)
        return pl_fail(PL_EINVAL, "token %d does not exist", id);
    text_slice s = t->tokens[id].shown;
    pl_buf_add(out, text_at(t, s), s.len);
    return PL_OK;
}
