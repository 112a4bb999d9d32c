/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include <ctype.h>
#include <float.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A pl_json is a json_t: it has no body of its own. Jansson does the refusing (numbers
 * that are not JSON's, bad UTF-8, lone surrogates, trailing bytes); of two equal keys the
 * last value wins, at the first one's place, as in Python.
 *
 * Integers beyond 64 bits are the one thing that Jansson cannot hold. They are strings in
 * its trees: a NUL and the digits. A string of the document that begins with a NUL has
 * one more before it, so that the two cannot be taken for each other. The few documents
 * with such a number or string are written anew before Jansson reads them.
 */

static const json_t *of(const pl_json *v)
{
    return (const json_t *)v;
}

static const pl_json *value_of(const json_t *v)
{
    return (const pl_json *)v;
}

static json_t *unconst(const pl_json *v)
{
    union {
        const pl_json *from;
        json_t *to;
    } u = {.from = v};
    return u.to;
}

static bool is_number_char(char c)
{
    return isdigit((unsigned char)c) || (c && strchr("+-.eE", c));
}

/* Whether a number, as it stands in a document, is an integer of more than 64 bits. */
static bool is_long(const char *number, size_t len)
{
    static const char *const most[] = {"9223372036854775807", "9223372036854775808"};
    bool negative = *number == '-';
    const char *digits = number + negative;
    size_t n = len - negative;
    if (n < 19 || *digits == '0') return false;
    for (size_t i = 0; i < n; i++)
        if (!isdigit((unsigned char)digits[i])) return false;
    return n > 19 || memcmp(digits, most[negative], 19) > 0;
}

/* Looks through a document before Jansson does. */
typedef struct scan {
    const char *text;
    size_t len, at;
    size_t copied; /* so much of the text is in `out` */
    pl_buf out;    /* the document anew, if it must be: see above */
} scan;

static void add_up_to(scan *s, size_t end, const char *more)
{
    pl_buf_add(&s->out, s->text + s->copied, end - s->copied);
    pl_buf_add_str(&s->out, more);
    s->copied = end;
}

static void scan_string(scan *s)
{
    size_t i = s->at + 1;
    if (s->len - i >= 6 && !memcmp(s->text + i, "\\u0000", 6)) add_up_to(s, i, "\\u0000");
    while (i < s->len && s->text[i] != '"') i += s->text[i] == '\\' ? 2 : 1;
    s->at = PL_MIN(i + 1, s->len);
}

static void scan_number(scan *s)
{
    size_t end = s->at;
    while (end < s->len && is_number_char(s->text[end])) end++;
    if (is_long(s->text + s->at, end - s->at)) {
        add_up_to(s, s->at, "\"\\u0000");
        add_up_to(s, end, "\"");
    }
    s->at = end;
}

/* Jansson's own bound on the depth is fixed when it is built. Brackets are counted here,
 * outside strings; whether they match is left to the parser. */
static pl_status scan_all(scan *s)
{
    int depth = 0, line = 1;
    while (s->at < s->len) {
        char c = s->text[s->at];
        if (c == '"') {
            scan_string(s);
            continue;
        }
        if (c == '-' || isdigit((unsigned char)c)) {
            scan_number(s);
            continue;
        }
        if (c == '[' || c == '{') depth++;
        if (depth > PL_JSON_MAX_DEPTH)
            return pl_fail(PL_ELIMIT, "json: line %d: nested deeper than %d levels", line,
                           PL_JSON_MAX_DEPTH);
        if (c == ']' || c == '}') depth--;
        line += c == '\n';
        s->at++;
    }
    if (s->out.len) add_up_to(s, s->len, "");
    return PL_OK;
}

/* The digits in a string that stands for an integer; NULL: it stands for itself. */
static const char *digits_of(const json_t *v)
{
    const char *s = json_string_value(v);
    return s && !s[0] && json_string_length(v) > 1 && s[1] ? s + 1 : NULL;
}

pl_json *pl_json_open(const char *text, size_t len)
{
    json_error_t why;
    scan s = {.text = text, .len = len};
    bool fits = scan_all(&s) == PL_OK, anew = s.out.len > 0;
    json_t *doc = !fits ? NULL
                        : json_loadb(anew ? s.out.data : text, anew ? s.out.len : len,
                                     JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    pl_buf_fini(&s.out);
    if (fits && !doc)
        pl_fail(PL_EFORMAT, "json: line %d, column %d: %s", why.line, why.column,
                why.text);
    return (pl_json *)doc;
}

void pl_json_close(pl_json *doc)
{
    json_decref((json_t *)doc);
}

int pl_json_kind(const pl_json *v)
{
    if (!v) return PL_JSON_NULL;
    switch (json_typeof(of(v))) {
    case JSON_OBJECT:
        return PL_JSON_OBJECT;
    case JSON_ARRAY:
        return PL_JSON_ARRAY;
    case JSON_STRING:
        return digits_of(of(v)) ? PL_JSON_INTEGER : PL_JSON_STRING;
    case JSON_INTEGER:
        return PL_JSON_INTEGER;
    case JSON_REAL:
        return PL_JSON_REAL;
    case JSON_TRUE:
        return PL_JSON_TRUE;
    case JSON_FALSE:
        return PL_JSON_FALSE;
    case JSON_NULL:
        break;
    }
    return PL_JSON_NULL;
}

int pl_json_size(const pl_json *v)
{
    return (int)(json_is_array(of(v)) ? json_array_size(of(v)) : json_object_size(of(v)));
}

int64_t pl_json_integer(const pl_json *v)
{
    const char *digits = digits_of(of(v));
    if (digits) return *digits == '-' ? INT64_MIN : INT64_MAX;
    return json_integer_value(of(v));
}

const char *pl_json_digits(const pl_json *v)
{
    return digits_of(of(v));
}

double pl_json_number(const pl_json *v)
{
    const char *digits = digits_of(of(v));
    return digits ? strtod(digits, NULL) : json_number_value(of(v));
}

const char *pl_json_string(const pl_json *v, size_t *len)
{
    const char *s = json_string_value(of(v));
    *len = json_string_length(of(v));
    if (!s || *len < 2 || s[0]) return s;
    *len -= 1;
    return s[1] ? NULL : s + 1;
}

const pl_json *pl_json_item(const pl_json *array, int i)
{
    return i < 0 ? NULL : value_of(json_array_get(of(array), (size_t)i));
}

const pl_json *pl_json_find(const pl_json *object, const char *key)
{
    return value_of(json_object_get(of(object), key));
}

void *pl_json_next(const pl_json *object, void *at)
{
    json_t *o = unconst(object);
    return at ? json_object_iter_next(o, at) : json_object_iter(o);
}

const char *pl_json_key(void *at, size_t *len)
{
    *len = json_object_iter_key_len(at);
    return json_object_iter_key(at);
}

const pl_json *pl_json_value(void *at)
{
    return value_of(json_object_iter_value(at));
}

int pl_json_ints(const pl_json *array, int32_t *out, int max)
{
    const json_t *a = of(array);
    if (!json_is_array(a)) return pl_fail(PL_EINVAL, "json: wanted an array of integers");
    size_t n = json_array_size(a);
    if (n > (size_t)PL_MAX(max, 0))
        return pl_fail(PL_ELIMIT, "json: %zu integers, at most %d wanted", n, max);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(a, i);
        json_int_t x = json_integer_value(v);
        if (digits_of(v))
            return pl_fail(PL_EINVAL, "json: item %zu is beyond 32 bits: %.40s", i,
                           digits_of(v));
        if (!json_is_integer(v))
            return pl_fail(PL_EINVAL, "json: item %zu is not an integer", i);
        if (x < INT32_MIN || x > INT32_MAX)
            return pl_fail(PL_EINVAL,
                           "json: item %zu is beyond 32 bits: %" JSON_INTEGER_FORMAT, i,
                           x);
    }
    for (size_t i = 0; i < n; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(a, i));
    return (int)n;
}

/* The shortest "d.ddde+xx" that reads back as v: 15 digits hold for what people write,
 * and fewer only for subnormals. */
static void shortest(double v, char *out, size_t size)
{
    for (int digits = fabs(v) < DBL_MIN ? 0 : 14; digits <= 16; digits++) {
        snprintf(out, size, "%.*e", digits, v);
        if (strtod(out, NULL) == v) return;
    }
}

void pl_buf_add_real(pl_buf *b, double v)
{
    char text[40], digits[20];
    if (!isfinite(v)) {
        pl_buf_add_str(b, isnan(v) ? "nan" : v < 0 ? "-inf" : "inf");
        return;
    }
    shortest(v, text, sizeof text);
    int n = 0, exponent = atoi(strchr(text, 'e') + 1);
    for (const char *p = text; *p != 'e'; p++)
        if (isdigit((unsigned char)*p)) digits[n++] = *p;
    while (n > 1 && digits[n - 1] == '0') n--;
    if (signbit(v)) pl_buf_add(b, "-", 1);
    if (exponent < -4 || exponent >= 16) {
        pl_buf_printf(b, "%c%s%.*se%c%02d", digits[0], n > 1 ? "." : "", n - 1,
                      digits + 1, exponent < 0 ? '-' : '+', abs(exponent));
    } else if (exponent < 0) {
        pl_buf_printf(b, "0.%.*s%.*s", -exponent - 1, "000", n, digits);
    } else if (n <= exponent + 1) {
        pl_buf_printf(b, "%.*s%.*s.0", n, digits, exponent + 1 - n, "000000000000000");
    } else {
        pl_buf_printf(b, "%.*s.%.*s", exponent + 1, digits, n - exponent - 1,
                      digits + exponent + 1);
    }
}
