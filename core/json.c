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
 * that are not JSON's, integers beyond 64 bits, bad UTF-8, lone surrogates, trailing
 * bytes); of two equal keys the last value wins, at the first one's place, as in Python.
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

/* Jansson's own bound is fixed when it is built. Brackets are counted here, outside
 * strings; whether they match is left to the parser. */
static pl_status check_depth(const char *text, size_t len)
{
    int depth = 0, line = 1;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > PL_JSON_MAX_DEPTH)
                return pl_fail(PL_ELIMIT, "json: line %d: nested deeper than %d levels",
                               line, PL_JSON_MAX_DEPTH);
        } else if (c == ']' || c == '}') {
            depth--;
        } else if (c == '\n') {
            line++;
        }
    }
    return PL_OK;
}

pl_json *pl_json_open(const char *text, size_t len)
{
    json_error_t why;
    if (check_depth(text, len) < 0) return NULL;
    json_t *doc = json_loadb(text, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    if (!doc)
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
        return PL_JSON_STRING;
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
    return json_integer_value(of(v));
}

double pl_json_number(const pl_json *v)
{
    return json_number_value(of(v));
}

const char *pl_json_string(const pl_json *v, size_t *len)
{
    *len = json_string_length(of(v));
    return json_string_value(of(v));
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
        if (!json_is_integer(v))
            return pl_fail(PL_EINVAL, "json: item %zu is no integer", i);
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
