/* SPDX-License-Identifier: Apache-2.0
 *
 * json.c - what a document's values are; and numbers as JSON writes them.
 */
#include "json.h"

#include <ctype.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int pl_json_kind(const pl_json *v)
{
    return v ? v->kind : PL_JSON_NULL;
}

int pl_json_size(const pl_json *v)
{
    return v->kind == PL_JSON_ARRAY || v->kind == PL_JSON_OBJECT ? (int)v->n : 0;
}

const char *pl_json_digits(const pl_json *v)
{
    return v->is_long ? v->as.bytes : NULL;
}

int64_t pl_json_integer(const pl_json *v)
{
    if (v->is_long) return *v->as.bytes == '-' ? INT64_MIN : INT64_MAX;
    return v->kind == PL_JSON_INTEGER ? v->as.integer : 0;
}

double pl_json_number(const pl_json *v)
{
    if (v->is_long) return strtod(v->as.bytes, NULL);
    return v->kind == PL_JSON_REAL ? v->as.real : (double)pl_json_integer(v);
}

const char *pl_json_string(const pl_json *v, size_t *len)
{
    bool is = v->kind == PL_JSON_STRING;
    *len = is ? v->n : 0;
    return is ? v->as.bytes : NULL;
}

const pl_json *pl_json_next(const pl_json *in, const pl_json *at)
{
    const pl_json *next = !at                         ? in + 1
                          : in->kind == PL_JSON_ARRAY ? at + at->span
                                                      : at + 1 + at[1].span;
    return next < in + in->span ? next : NULL;
}

const pl_json *pl_json_value(const pl_json *key)
{
    return key + 1;
}

const pl_json *pl_json_item(const pl_json *array, int i)
{
    if (i < 0 || i >= pl_json_size(array)) return NULL;
    const pl_json *v = array + 1;
    while (i--) v += v->span;
    return v;
}

/* Of equal keys the last one's value counts, as in Python. */
const pl_json *pl_json_find(const pl_json *object, const char *key)
{
    size_t len = strlen(key);
    const pl_json *found = NULL;
    if (pl_json_kind(object) != PL_JSON_OBJECT) return NULL;
    for (const pl_json *at = NULL; (at = pl_json_next(object, at));)
        if (at->n == len && !memcmp(at->as.bytes, key, len)) found = at + 1;
    return found;
}

static pl_status check_int(const pl_json *v, int i)
{
    if (v->is_long)
        return pl_fail(PL_EINVAL, "json: item %d is beyond 32 bits: %.40s", i,
                       v->as.bytes);
    if (v->kind != PL_JSON_INTEGER)
        return pl_fail(PL_EINVAL, "json: item %d is not an integer", i);
    if (v->as.integer < INT32_MIN || v->as.integer > INT32_MAX)
        return pl_fail(PL_EINVAL, "json: item %d is beyond 32 bits: %lld", i,
                       (long long)v->as.integer);
    return PL_OK;
}

int pl_json_ints(const pl_json *array, int32_t *out, int max)
{
    if (pl_json_kind(array) != PL_JSON_ARRAY)
        return pl_fail(PL_EINVAL, "json: wanted an array of integers");
    int n = (int)array->n;
    if (n > PL_MAX(max, 0))
        return pl_fail(PL_ELIMIT, "json: %d integers, at most %d wanted", n, max);
    const pl_json *v = array + 1;
    for (int i = 0; i < n; i++, v += v->span) PL_TRY(check_int(v, i));
    for (int i = 0; i < n; i++) out[i] = (int32_t)array[1 + i].as.integer;
    return n;
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
