/* SPDX-License-Identifier: Apache-2.0
 *
 * text_encode.c - a text's ids: added tokens first, then what lies between them.
 *
 * Owns     which added token counts where several could.
 * Ignores  how the rest becomes words, and words ids.
 * Thread   any; a pl_text is only read.
 */
#include "text.h"

#include <string.h>
#include <utf8proc.h>

#define MAX_TEXT ((size_t)1 << 26)
#define MAX_AHEAD ((size_t)1 << 16) /* bytes that are reserved for ids at once */

typedef struct encoding {
    const pl_text *t;
    text_scratch *s;
    bool special;
    pl_buf *out;
} encoding;

/* ---- characters, as Rust's regex crate classes them ----------------------------- */

static bool is_white(int32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

static bool is_word(int32_t c)
{
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default: /* joiners and enclosed letters */
        return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) ||
               (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
               (c >= 0x1f170 && c <= 0x1f189);
    }
}

/* The character at p, which is valid; how many bytes it takes. */
static size_t read_char(const char *p, size_t len, int32_t *c)
{
    return (size_t)utf8proc_iterate((const utf8proc_uint8_t *)p, (utf8proc_ssize_t)len,
                                    c);
}

static size_t read_char_before(const char *p, size_t at, int32_t *c)
{
    size_t start = at - 1;
    while (((uint8_t)p[start] & 0xc0) == 0x80) start--;
    return read_char(p + start, at - start, c);
}

/* ---- added tokens --------------------------------------------------------------- */

/* Whether the token found at start..end counts there; its spaces widen it, but not to
 * before `done`. Where spaces before it may be its own, those of its spaces that the
 * token before has taken are not: nothing may be left of it. */
static bool accept(const encoding *e, int32_t id, const char *p, size_t len, size_t done,
                   size_t *start, size_t *end)
{
    uint32_t flags = e->t->tokens[id].flags;
    int32_t c;
    if (!e->special && (flags & TEXT_KIND) == PL_TOKEN_SPECIAL) return false;
    if (flags & PL_TOKEN_SINGLE_WORD) {
        if (*start > 0 && (read_char_before(p, *start, &c), is_word(c))) return false;
        if (*end < len && (read_char(p + *end, len - *end, &c), is_word(c))) return false;
    }
    if (flags & PL_TOKEN_LSTRIP) {
        for (size_t n; *start > done; *start -= n)
            if (n = read_char_before(p, *start, &c), !is_white(c)) break;
        *start = PL_MAX(*start, done);
    }
    if (flags & PL_TOKEN_RSTRIP) {
        for (size_t n; *end < len; *end += n)
            if (n = read_char(p + *end, len - *end, &c), !is_white(c)) break;
    }
    return true;
}

typedef pl_status between(encoding *e, const char *p, size_t len, bool first);

static pl_status match_added(encoding *e, const text_trie *trie, const char *p,
                             size_t len, bool first, between *rest)
{
    size_t done = 0, at = 0, start, end;
    int32_t id;
    while ((id = text_trie_next(trie, p, len, at, &start, &end)) >= 0) {
        at = end; /* a token among the spaces that this one takes counts as well */
        if (!accept(e, id, p, len, done, &start, &end)) continue;
        if (done < start) PL_TRY(rest(e, p + done, start - done, first && !done));
        if (start < end) pl_buf_add_i32(e->out, id);
        done = end;
    }
    return done < len ? rest(e, p + done, len - done, first && !done) : PL_OK;
}

static pl_status encode_plain(encoding *e, const char *p, size_t len, bool first)
{
    text_respace(e->t, e->s, first, &p, &len);
    return text_split_words(e->t, e->s, p, len, e->out);
}

static pl_status encode_section(encoding *e, const char *p, size_t len, bool first)
{
    PL_TRY(text_normalize(e->t, e->s, &p, &len));
    return match_added(e, &e->t->normalized, p, len, first, encode_plain);
}

/* ---- the whole text ------------------------------------------------------------- */

static bool is_utf8(const char *p, size_t len)
{
    for (size_t i = 0; i < len;) {
        uint64_t eight;
        if (len - i >= 8 && (memcpy(&eight, p + i, 8), !(eight & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        int n = pl_utf8_len((const unsigned char *)p + i, len - i, NULL);
        if (!n) return false;
        i += (size_t)n;
    }
    return true;
}

pl_status pl_text_encode(const pl_text *t, const char *bytes, size_t len, int special,
                         pl_buf *out)
{
    if (!t->ready) return pl_fail(PL_EINVAL, "the tokenizer is not ready");
    if (len > MAX_TEXT)
        return pl_fail(PL_ELIMIT, "text of %zu bytes, more than %zu", len, MAX_TEXT);
    if (!is_utf8(bytes, len)) return pl_fail(PL_EINVAL, "text is not UTF-8");
    size_t before = out->len, had = out->cap;
    pl_buf_reserve(out, PL_MIN(len, MAX_AHEAD)); /* a token has some four bytes */
    encoding e = {.t = t, .s = text_scratch_get(), .special = special, .out = out};
    pl_status status = match_added(&e, &t->raw, bytes, len, true, encode_section);
    if (status < 0) out->len = before;
    if (status < 0 && !had) pl_buf_fini(out); /* who fails leaves nothing to be freed */
    text_scratch_trim(e.s);
    return status;
}
