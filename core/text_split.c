/* SPDX-License-Identifier: Apache-2.0
 *
 * text_split.c - what Hugging Face calls normalizer and pre-tokenizer.
 *
 * Owns     the regular expressions' translation from Oniguruma's dialect to PCRE2's.
 * Ignores  added tokens, ids.
 * Thread   any; a pl_text is only read.
 */
#define _GNU_SOURCE
#include "text.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Unicode's White_Space, as Oniguruma's \s has it; PCRE2's has U+180E too. */
#define WHITE                                                                            \
    "\\t-\\r "                                                                           \
    "\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{" \
    "3000}"

/* ---- regular expressions -------------------------------------------------------- */

/* \p{Han} is a script to Oniguruma; PCRE2 takes script extensions unless it is told. */
static size_t add_property(const char *p, size_t len, pl_buf *out)
{
    const char *end = len > 2 && p[2] == '{' ? memchr(p, '}', len) : NULL;
    const char *name = p + 3 + (end && p[3] == '^');
    bool script = end && end - name > 2 && *name >= 'A' && *name <= 'Z' &&
                  strncmp(name, "Any}", 4) != 0;
    pl_buf_add(out, p, script ? (size_t)(name - p) : 2);
    if (!script) return 2;
    pl_buf_add_str(out, "sc:");
    return (size_t)(name - p);
}

static size_t add_escape(const char *p, size_t len, bool in_class, pl_buf *out)
{
    if (len < 2) {
        pl_buf_add(out, p, len);
        return len;
    }
    if (p[1] == 's') {
        pl_buf_add_str(out, in_class ? WHITE : "[" WHITE "]");
    } else if (p[1] == 'S' && !in_class) {
        pl_buf_add_str(out, "[^" WHITE "]");
    } else if (p[1] == 'p' || p[1] == 'P') {
        return add_property(p, len, out);
    } else {
        pl_buf_add(out, p, 2);
    }
    return 2;
}

/* Says what PCRE2 would read differently instead of refusing it. */
static const char *foreign(const char *p, size_t len, bool in_class)
{
    if (len > 1 && p[0] == '\\' && (p[1] == 'h' || p[1] == 'H')) return "\\h";
    if (in_class && len > 1 && memcmp(p, "&&", 2) == 0) return "&& in a class";
    if (in_class && p[0] == '[' && (len < 2 || p[1] != ':')) return "[ in a class";
    return NULL;
}

static pl_status translate(const char *regex, size_t len, pl_buf *out)
{
    bool in_class = false;
    for (size_t i = 0; i < len;) {
        const char *what = foreign(regex + i, len - i, in_class);
        if (what)
            return pl_fail(PL_EUNSUPPORTED, "pre-tokenizer '%.*s' has %s",
                           (int)PL_MIN(len, 200), regex, what);
        if (regex[i] == '\\') {
            i += add_escape(regex + i, len - i, in_class, out);
            continue;
        }
        size_t n = 1;
        if (in_class && len - i > 1 && memcmp(regex + i, "[:", 2) == 0) {
            const char *end = memmem(regex + i, len - i, ":]", 2);
            n = end ? (size_t)(end + 2 - (regex + i)) : 1;
        } else if (!in_class && regex[i] == '[') {
            in_class = true;
            if (i + n < len && regex[i + n] == '^') n++;
            if (i + n < len && regex[i + n] == ']') n++;
        } else if (regex[i] == ']') {
            in_class = false;
        }
        pl_buf_add(out, regex + i, n);
        i += n;
    }
    return PL_OK;
}

enum {
    OTHER,
    WORDS,
    NUMERALS
};

/* Two shapes of expressions that most models have, and that need not be asked where the
 * text is ASCII: GPT-2's, Qwen2's and Llama 3's take letters, alone or after one space, as
 * a word; the others match numerals only. */
static int shape_of(const char *regex, size_t len)
{
    static const char *const words[] = {
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|"
        "\\s+",
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}"
        "\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
        "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"};
    static const char *const numerals[] = {"\\p{N}", "\\p{N}+"};
    for (int i = 0; i < PL_COUNT(words); i++)
        if (strlen(words[i]) == len && !memcmp(words[i], regex, len)) return WORDS;
    for (int i = 0; i < PL_COUNT(numerals); i++)
        if (strlen(numerals[i]) == len && !memcmp(numerals[i], regex, len))
            return NUMERALS;
    return OTHER;
}

pl_status text_split_add(pl_text *t, const char *regex, size_t len)
{
    if (!len || len > 16384) return pl_fail(PL_ELIMIT, "pre-tokenizer of %zu bytes", len);
    if (!pl_utf8_valid(regex, len))
        return pl_fail(PL_EFORMAT, "pre-tokenizer is not UTF-8");
    pl_buf b = {0};
    pl_status status = translate(regex, len, &b);
    if (status < 0) {
        pl_buf_fini(&b);
        return status;
    }
    int error;
    size_t at;
    uint32_t flags = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)b.data, b.len, flags, &error, &at, NULL);
    pl_buf_fini(&b);
    if (!code) {
        char why[128] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof why);
        return pl_fail(PL_EUNSUPPORTED, "pre-tokenizer '%.*s': %s", (int)PL_MIN(len, 200),
                       regex, why);
    }
    int i = t->n_splits++;
    t->splits[i] = code;
    t->jit[i] = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
    t->shape[i] = shape_of(regex, len);
    return PL_OK;
}

/* ---- matching ------------------------------------------------------------------- */

static bool is_letter(char c)
{
    return (unsigned)((c | 0x20) - 'a') < 26;
}

/* The end of the letters at `from`, alone or after a space; 0: there are none, or what
 * follows could belong to them. */
static size_t ascii_word(const char *p, size_t len, size_t from)
{
    size_t start = from + (p[from] == ' '), end = start;
    while (end < len && is_letter(p[end])) end++;
    return end > start && (end == len || !(p[end] & 0x80)) ? end : 0;
}

/* The first byte that can begin a numeral. */
static size_t ascii_numeral(const char *p, size_t len, size_t from)
{
    while (from < len && !(p[from] & 0x80) && (unsigned)(p[from] - '0') > 9) from++;
    return from;
}

static int ask(const pl_text *t, int i, const char *p, size_t len, size_t from,
               pcre2_match_data *m)
{
    PCRE2_SPTR s = (PCRE2_SPTR)p;
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (t->jit[i])
        rc = pcre2_jit_match(t->splits[i], s, len, from, PCRE2_NO_UTF_CHECK, m, NULL);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter has more room to turn back */
        rc = pcre2_match(t->splits[i], s, len, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m,
                         NULL);
    return rc;
}

/* The next match of the i'th expression from `from` on, which is before the end. */
static int match(const pl_text *t, int i, const char *p, size_t len, size_t from,
                 pcre2_match_data *m, size_t *start, size_t *end)
{
    if (t->shape[i] == WORDS && (*end = ascii_word(p, len, from))) {
        *start = from;
        return 1;
    }
    if (t->shape[i] == NUMERALS) from = ascii_numeral(p, len, from);
    if (from == len) return PCRE2_ERROR_NOMATCH;
    int rc = ask(t, i, p, len, from, m);
    if (rc < 0) return rc;
    const size_t *found = pcre2_get_ovector_pointer(m);
    *start = found[0];
    *end = found[1];
    return rc;
}

static pl_status match_failed(int rc)
{
    char why[128] = "";
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
    return pl_fail(PL_ELIMIT, "the pre-tokenizer gave up on this text: %s", why);
}

/* The i'th expression and those after it: both what matches and what lies between are
 * pieces, which the next one sees without their surroundings. */
static pl_status split_from(const pl_text *t, text_scratch *s, int i, const char *p,
                            size_t len, pl_buf *out)
{
    if (i == t->n_splits) {
        text_bpe_word(t, s, p, len, out);
        return PL_OK;
    }
    pcre2_match_data *m = text_scratch_match(s);
    size_t done = 0, start, end;
    for (size_t at = 0; at < len;) {
        int rc = match(t, i, p, len, at, m, &start, &end);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        if (rc < 0) return match_failed(rc);
        if (start < done || end < start)
            return pl_fail(PL_EUNSUPPORTED,
                           "a pre-tokenizer's match starts before the search (\\K)");
        if (start > done) PL_TRY(split_from(t, s, i + 1, p + done, start - done, out));
        if (end > start) PL_TRY(split_from(t, s, i + 1, p + start, end - start, out));
        at = done = end;
        if (end == start && end < len)
            at += (size_t)pl_utf8_len((const unsigned char *)p + end, len - end, NULL);
        else if (end == start)
            break;
    }
    return done < len ? split_from(t, s, i + 1, p + done, len - done, out) : PL_OK;
}

static void cut_words(const pl_text *t, text_scratch *s, const char *p, size_t len,
                      pl_buf *out)
{
    size_t start = 0;
    for (size_t i = 1; i < len; i++) {
        const char *next = memmem(p + i, len - i, PL_TEXT_SPACE, 3);
        if (!next) break;
        i = (size_t)(next - p);
        if (i - start >= 3 && memcmp(p + i - 3, PL_TEXT_SPACE, 3) == 0) continue;
        text_bpe_word(t, s, p + start, i - start, out);
        start = i;
    }
    text_bpe_word(t, s, p + start, len - start, out);
}

pl_status text_split_words(const pl_text *t, text_scratch *s, const char *p, size_t len,
                           pl_buf *out)
{
    if (!t->cut) return split_from(t, s, 0, p, len, out);
    cut_words(t, s, p, len, out);
    return PL_OK;
}

/* ---- normalizing ---------------------------------------------------------------- */

/* The length of the character at s if NFC leaves it alone and never joins it to the one
 * before: below U+0300, Cyrillic, most punctuation and symbols, kana, Han, Hangul, wide
 * forms, emoji. Else 0. */
static size_t stable_len(const unsigned char *s)
{
    unsigned c = s[0];
    if (c < 0x80) return 1;
    if (c < 0xcc || c == 0xd0 || c == 0xd1) return 2;
    if (c < 0xe2) return 0;
    unsigned second = s[1], third = s[2];
    if (c == 0xe2)
        return (second == 0x80 && third >= 0x90) || (second >= 0x85 && second <= 0x8b) ||
                       (second >= 0x8d && second <= 0xaa)
                   ? 3
                   : 0;
    if (c == 0xe3)
        return (second == 0x80 && third >= 0xaa && third <= 0xaf) ||
                       (second == 0x82 && (third == 0x99 || third == 0x9a))
                   ? 0
                   : 3;
    if (c <= 0xe9 || c == 0xeb || c == 0xec) return 3;
    if (c == 0xef) return second == 0xbc || second == 0xbd ? 3 : 0;
    return c == 0xf0 && second == 0x9f ? 4 : 0;
}

static pl_status add_nfc(pl_buf *b, const char *p, size_t len)
{
    utf8proc_uint8_t *made = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)p, (utf8proc_ssize_t)len,
                                      &made, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (n < 0)
        return pl_fail(PL_EINVAL, "text cannot be normalized: %s", utf8proc_errmsg(n));
    pl_buf_add(b, made, (size_t)n);
    free(made);
    return PL_OK;
}

/* Only what is not stable, with the character before it, goes through utf8proc. */
static pl_status to_nfc(text_scratch *s, const char **p, size_t *len)
{
    const unsigned char *in = (const unsigned char *)*p;
    pl_buf *b = text_scratch_buf(s, TEXT_BUF_NFC);
    size_t done = 0, last = 0;
    b->len = 0;
    for (size_t i = 0, n; i < *len;) {
        if ((n = stable_len(in + i))) {
            last = i;
            i += n;
            continue;
        }
        size_t end = i;
        while (end < *len && !stable_len(in + end))
            end += (size_t)pl_utf8_len(in + end, *len - end, NULL);
        size_t start = PL_MAX(last, done);
        pl_buf_add(b, in + done, start - done);
        PL_TRY(add_nfc(b, *p + start, end - start));
        done = i = end;
    }
    if (!done) return PL_OK;
    pl_buf_add(b, in + done, *len - done);
    *p = b->data;
    *len = b->len;
    return PL_OK;
}

static void replace_spaces(pl_buf *b, const char *p, size_t len)
{
    for (const char *end = p + len; p < end;) {
        const char *space = memchr(p, ' ', (size_t)(end - p));
        if (!space) space = end;
        pl_buf_add(b, p, (size_t)(space - p));
        if (space < end) pl_buf_add(b, PL_TEXT_SPACE, 3);
        p = space + 1;
    }
}

pl_status text_normalize(const pl_text *t, text_scratch *s, const char **p, size_t *len)
{
    if (t->o.nfc) PL_TRY(to_nfc(s, p, len));
    if (t->o.kind != PL_TEXT_PIECES || t->o.metaspace) return PL_OK;
    pl_buf *b = text_scratch_buf(s, TEXT_BUF_NORMAL);
    b->len = 0;
    if (*len && t->o.prefix_space == PL_PREFIX_ALWAYS) pl_buf_add(b, PL_TEXT_SPACE, 3);
    replace_spaces(b, *p, *len);
    *p = b->data;
    *len = b->len;
    return PL_OK;
}

void text_respace(const pl_text *t, text_scratch *s, bool first, const char **p,
                  size_t *len)
{
    bool bytes = t->o.kind == PL_TEXT_BYTES;
    if (bytes ? !t->o.prefix_space : !t->o.metaspace) return;
    pl_buf *b = text_scratch_buf(s, TEXT_BUF_SPACED);
    b->len = 0;
    bool spaced =
        **p == ' ' || (!bytes && *len >= 3 && memcmp(*p, PL_TEXT_SPACE, 3) == 0);
    int when = t->o.prefix_space;
    bool prefix =
        !spaced && (when == PL_PREFIX_ALWAYS || (when == PL_PREFIX_FIRST && first));
    if (bytes) {
        if (!prefix) return;
        pl_buf_add_str(b, " ");
        pl_buf_add(b, *p, *len);
    } else {
        if (prefix) pl_buf_add(b, PL_TEXT_SPACE, 3);
        replace_spaces(b, *p, *len);
    }
    *p = b->data;
    *len = b->len;
}
