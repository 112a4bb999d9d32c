/* SPDX-License-Identifier: Apache-2.0
 *
 * json_read.c - the text of a document becomes values.
 *
 * Owns     what is JSON (RFC 8259), and what is said of a text that is not.
 * Ignores  what values mean.
 * Thread   any.
 *
 * A message says where by line and column, in characters, of the end of what was read,
 * and repeats the token if that is short.
 */
#include "json.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    NO_TOKEN = 0, /* tokens; punctuation is its own character */
    END = 'E',
    SCALAR = 'S',
    STRING = '"',
    MAX_SHOWN = 20, /* bytes of a token that a message repeats */
    ROOM = 32       /* values, at first */
};

typedef struct document {
    char *bytes; /* of all strings and long integers, each ended by NUL */
    pl_json values[];
} document;

typedef struct reader {
    const char *text;
    size_t len, at, start; /* read up to `at`; the token begins at `start` */
    int token, depth;
    pl_json value; /* the token's, if it is a string or a scalar */
    document *doc;
    uint32_t n, room; /* values there are; for so many there is memory */
    char *free;       /* where the next bytes go in doc->bytes */
    char wrong[40];   /* with the string that is being read; "": nothing */
} reader;

/* ---- what is wrong ----------------------------------------------------------------- */

static void where(const reader *r, int *line, int *column)
{
    *line = 1, *column = 0;
    for (size_t i = 0; i < r->at; i++) {
        unsigned char c = (unsigned char)r->text[i];
        *line += c == '\n';
        *column = c == '\n' ? 0 : *column + ((c & 0xc0) != 0x80);
    }
}

static pl_status fail(const reader *r, const char *fmt, ...) PL_PRINTF(2, 3);

static pl_status fail(const reader *r, const char *fmt, ...)
{
    char what[80], near[MAX_SHOWN + 16] = "";
    size_t shown = r->at - r->start;
    int line, column;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    where(r, &line, &column);
    if (shown && shown <= MAX_SHOWN && r->text[r->start])
        snprintf(near, sizeof near, " near '%.*s'", (int)shown, r->text + r->start);
    else if (r->start == r->len)
        snprintf(near, sizeof near, " near end of file");
    return pl_fail(PL_EFORMAT, "json: line %d, column %d: %s%s", line, column, what,
                   near);
}

/* ---- values ------------------------------------------------------------------------ */

static void reserve(reader *r, uint32_t room)
{
    r->room = room;
    r->doc = pl_realloc(r->doc, sizeof *r->doc + room * sizeof *r->doc->values);
}

static uint32_t add_value(reader *r, pl_json v)
{
    if (r->n == r->room) reserve(r, 2 * r->room);
    r->doc->values[r->n] = v;
    return r->n++;
}

/* ---- strings ----------------------------------------------------------------------- */

/* How many of the next bytes stand for themselves, eight at a time. */
static size_t plain_bytes(const reader *r)
{
    static const uint64_t ones = 0x0101010101010101u, highs = 0x8080808080808080u;
    size_t i = r->at;
    for (uint64_t w; i + 8 <= r->len; i += 8) {
        memcpy(&w, r->text + i, 8);
        uint64_t quote = w ^ ones * '"', slash = w ^ ones * '\\';
        uint64_t special = (w - ones * 0x20) | (quote - ones) | (slash - ones) | w;
        if (special & highs) break; /* or a carry: looked at byte by byte below */
    }
    while (i < r->len) {
        unsigned char c = (unsigned char)r->text[i];
        if (c < 0x20 || c >= 0x80 || c == '"' || c == '\\') break;
        i++;
    }
    return i - r->at;
}

static void copy(reader *r, size_t n)
{
    memcpy(r->free, r->text + r->at, n);
    r->free += n;
    r->at += n;
}

static pl_status fail_byte(const reader *r)
{
    return fail(r, "unable to decode byte 0x%x", (unsigned char)r->text[r->at]);
}

/* The four digits of an escape, with `at` behind its u. */
static pl_status read_hex(reader *r, unsigned *out)
{
    *out = 0;
    for (int i = 0; i < 4; i++) {
        int c = r->at < r->len ? (unsigned char)r->text[r->at++] : 0;
        if (!isxdigit(c)) return fail(r, "invalid escape");
        *out = *out * 16 + (unsigned)(isdigit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return PL_OK;
}

static void add_character(reader *r, unsigned c)
{
    if (c < 0x80) {
        *r->free++ = (char)c;
        return;
    }
    int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    *r->free++ = (char)((0xff00 >> (more + 1) & 0xff) | c >> 6 * more);
    while (more--) *r->free++ = (char)(0x80 | (c >> 6 * more & 0x3f));
}

/* Characters beyond 16 bits are two escapes, of which neither means anything alone. That
 * is said once all of the string has been read. */
static pl_status read_unicode(reader *r)
{
    unsigned c, low = 0;
    PL_TRY(read_hex(r, &c));
    bool two = c >= 0xd800 && c < 0xdc00 && r->at + 1 < r->len &&
               !memcmp(r->text + r->at, "\\u", 2);
    if (two) {
        r->at += 2;
        PL_TRY(read_hex(r, &low));
    }
    if (two && low >= 0xdc00 && low < 0xe000)
        add_character(r, 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff)));
    else if (c < 0xd800 || c >= 0xe000)
        add_character(r, c);
    else if (!*r->wrong && two)
        snprintf(r->wrong, sizeof r->wrong, "invalid Unicode '\\u%04X\\u%04X'", c, low);
    else if (!*r->wrong)
        snprintf(r->wrong, sizeof r->wrong, "invalid Unicode '\\u%04X'", c);
    return PL_OK;
}

static pl_status read_escape(reader *r)
{
    static const char names[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
    r->at++;
    char c = r->at < r->len ? r->text[r->at++] : 0;
    if (c == 'u') return read_unicode(r);
    const char *name = c ? strchr(names, c) : NULL;
    if (!name) return fail(r, "invalid escape");
    *r->free++ = means[name - names];
    return PL_OK;
}

static pl_status read_string(reader *r)
{
    char *bytes = r->free;
    *r->wrong = 0;
    for (r->at++;;) {
        copy(r, plain_bytes(r));
        if (r->at == r->len) return fail(r, "premature end of input");
        unsigned char c = (unsigned char)r->text[r->at];
        if (c == '"') break;
        if (c == '\\') {
            PL_TRY(read_escape(r));
        } else if (c >= 0x80) {
            int n =
                pl_utf8_len((const unsigned char *)r->text + r->at, r->len - r->at, NULL);
            if (!n) return fail_byte(r);
            copy(r, (size_t)n);
        } else {
            return c == '\n' ? fail(r, "unexpected newline")
                             : fail(r, "control character 0x%x", c);
        }
    }
    r->at++;
    if (*r->wrong) return fail(r, "%s", r->wrong);
    r->value = (pl_json){.kind = PL_JSON_STRING,
                         .n = (uint32_t)(r->free - bytes),
                         .span = 1,
                         .as.bytes = bytes};
    *r->free++ = 0;
    r->token = STRING;
    return PL_OK;
}

/* ---- numbers ----------------------------------------------------------------------- */

static bool digit_at(const reader *r)
{
    return r->at < r->len && isdigit((unsigned char)r->text[r->at]);
}

static bool char_at(const reader *r, char a, char b)
{
    return r->at < r->len && (r->text[r->at] == a || r->text[r->at] == b);
}

/* Moves behind digits, of which there must be one. */
static bool skip_digits(reader *r)
{
    if (!digit_at(r)) return false;
    while (digit_at(r)) r->at++;
    return true;
}

/* Beyond 64 bits its digits are kept. */
static void take_integer(reader *r)
{
    const char *s = r->text + r->start;
    size_t n = r->at - r->start;
    bool negative = *s == '-', fits = true;
    uint64_t x = 0, most = (uint64_t)INT64_MAX + negative;
    for (size_t i = negative; i < n && fits; i++) {
        uint64_t digit = (uint64_t)(s[i] - '0');
        fits = x <= (most - digit) / 10;
        x = x * 10 + digit;
    }
    r->value = (pl_json){.kind = PL_JSON_INTEGER, .span = 1};
    r->value.as.integer = (int64_t)(negative ? 0 - x : x);
    if (fits) return;
    r->value.is_long = true;
    r->value.n = (uint32_t)n;
    r->value.as.bytes = r->free;
    memcpy(r->free, s, n);
    r->free[n] = 0;
    r->free += n + 1;
}

static pl_status take_real(reader *r)
{
    size_t n = r->at - r->start;
    memcpy(r->free, r->text + r->start, n); /* strtod wants an end */
    r->free[n] = 0;
    r->value = (pl_json){.kind = PL_JSON_REAL, .span = 1};
    r->value.as.real = strtod(r->free, NULL);
    return isinf(r->value.as.real) ? fail(r, "real number overflow") : PL_OK;
}

/* A number that is not one is no token; what is read of it has been read. */
static pl_status read_number(reader *r)
{
    bool real = false;
    if (r->text[r->at] == '-') r->at++;
    if (char_at(r, '0', '0')) {
        r->at++;
        if (digit_at(r)) return PL_OK;
    } else if (!skip_digits(r)) {
        return PL_OK;
    }
    if (char_at(r, '.', '.')) {
        real = true;
        r->at++;
        if (!skip_digits(r)) return PL_OK;
    }
    if (char_at(r, 'e', 'E')) {
        real = true;
        r->at++;
        if (char_at(r, '+', '-')) r->at++;
        if (!skip_digits(r)) return PL_OK;
    }
    r->token = SCALAR;
    if (real) return take_real(r);
    take_integer(r);
    return PL_OK;
}

/* ---- tokens ------------------------------------------------------------------------ */

static void read_word(reader *r)
{
    static const struct {
        const char *word;
        int kind;
    } words[] = {
        {"null", PL_JSON_NULL}, {"false", PL_JSON_FALSE}, {"true", PL_JSON_TRUE}};
    while (r->at < r->len && isalpha((unsigned char)r->text[r->at])) r->at++;
    for (int i = 0; i < PL_COUNT(words); i++) {
        size_t n = strlen(words[i].word);
        if (r->at - r->start != n || memcmp(r->text + r->start, words[i].word, n))
            continue;
        r->value = (pl_json){.kind = (uint8_t)words[i].kind, .span = 1};
        r->token = SCALAR;
    }
}

static pl_status next_token(reader *r)
{
    while (r->at < r->len && strchr(" \t\n\r", r->text[r->at]) && r->text[r->at]) r->at++;
    r->start = r->at;
    r->token = END;
    if (r->at == r->len) return PL_OK;
    unsigned char c = (unsigned char)r->text[r->at];
    r->token = NO_TOKEN;
    if (c == '"') return read_string(r);
    if (c == '-' || isdigit(c)) return read_number(r);
    if (isalpha(c)) {
        read_word(r);
    } else {
        int n = pl_utf8_len((const unsigned char *)r->text + r->at, r->len - r->at, NULL);
        if (!n) return fail_byte(r);
        r->at += (size_t)n;
        if (c && strchr("{}[]:,", c)) r->token = c;
    }
    return PL_OK;
}

/* ---- documents --------------------------------------------------------------------- */

static pl_status read_value(reader *r);

/* Depth is bounded, so these may call each other. */
static pl_status open_container(reader *r, int kind, uint32_t *at)
{
    int line, column;
    if (++r->depth > PL_JSON_MAX_DEPTH) {
        where(r, &line, &column);
        return pl_fail(PL_ELIMIT, "json: line %d: nested deeper than %d levels", line,
                       PL_JSON_MAX_DEPTH);
    }
    *at = add_value(r, (pl_json){.kind = (uint8_t)kind});
    return next_token(r);
}

static pl_status close_container(reader *r, char end, uint32_t at, uint32_t n)
{
    if (r->token != end) return fail(r, "'%c' expected", end);
    r->depth--;
    r->doc->values[at].n = n;
    r->doc->values[at].span = r->n - at;
    return PL_OK;
}

static pl_status read_array(reader *r)
{
    uint32_t at, n = 0;
    PL_TRY(open_container(r, PL_JSON_ARRAY, &at));
    while ((r->token != ']' || n) && r->token != END) {
        PL_TRY(read_value(r));
        n++;
        PL_TRY(next_token(r));
        if (r->token != ',') break;
        PL_TRY(next_token(r));
    }
    return close_container(r, ']', at, n);
}

static pl_status read_member(reader *r)
{
    if (r->token != STRING) return fail(r, "string or '}' expected");
    if (memchr(r->value.as.bytes, 0, r->value.n))
        return fail(r, "NUL byte in object key not supported");
    add_value(r, r->value);
    PL_TRY(next_token(r));
    if (r->token != ':') return fail(r, "':' expected");
    PL_TRY(next_token(r));
    PL_TRY(read_value(r));
    return next_token(r);
}

static pl_status read_object(reader *r)
{
    uint32_t at, n = 0;
    PL_TRY(open_container(r, PL_JSON_OBJECT, &at));
    while (r->token != '}' || n) {
        PL_TRY(read_member(r));
        n++;
        if (r->token != ',') break;
        PL_TRY(next_token(r));
    }
    return close_container(r, '}', at, n);
}

static pl_status read_value(reader *r)
{
    switch (r->token) {
    case STRING:
    case SCALAR:
        add_value(r, r->value);
        return PL_OK;
    case '[':
        return read_array(r);
    case '{':
        return read_object(r);
    case NO_TOKEN:
        return fail(r, "invalid token");
    default:
        return fail(r, "unexpected token");
    }
}

static pl_status read_document(reader *r)
{
    if (r->len > INT32_MAX)
        return pl_fail(PL_ELIMIT, "json: %zu bytes, at most %d are taken", r->len,
                       INT32_MAX);
    PL_TRY(next_token(r));
    PL_TRY(read_value(r));
    PL_TRY(next_token(r));
    return r->token == END ? PL_OK : fail(r, "end of file expected");
}

/* What is kept of a token is never longer than it, but for a NUL, and between two of
 * them there is a comma or a colon: so there is room for all. */
pl_json *pl_json_open(const char *text, size_t len)
{
    reader r = {.text = text, .len = len};
    reserve(&r, ROOM);
    r.doc->bytes = r.free = pl_realloc(NULL, len + 1);
    if (read_document(&r) == PL_OK) return r.doc->values;
    pl_json_close(r.doc->values);
    return NULL;
}

void pl_json_close(pl_json *doc)
{
    if (!doc) return;
    document *d = (document *)((char *)doc - offsetof(document, values));
    pl_free(d->bytes);
    pl_free(d);
}
