/* SPDX-License-Identifier: Apache-2.0
 *
 * weights_gguf.c - the header of a GGUF file, version 2 or 3, little-endian (the two
 * differ only in that version 3 may be big-endian as well).
 *
 * Owns     the metadata: its keys, and where in the file each value is.
 * Ignores  what keys mean, but for the alignment.
 * Thread   any.
 *
 *     "GGUF" version n_tensors n_values
 *     value:   key, type, bytes           string: length, bytes; array: type, n, items
 *     tensor:  name, n_dims, dims (innermost first), type, offset
 *     padding to the alignment; the tensors' bytes, offsets counted from here
 */
#include "weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_KEY = 65535,
    DEFAULT_ALIGNMENT = 32,
    MAX_ALIGNMENT = 1 << 16
};
enum {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    FLOAT,
    BOOL,
    STRING,
    ARRAY,
    U64,
    I64,
    DOUBLE,
    N_KINDS
};

static const unsigned char widths[N_KINDS] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

/* By GGUF's number: types that are known but not read. */
static const char *const unread[] = {
    [9] = "Q8_1",     [15] = "Q8_K",  [16] = "IQ2_XXS", [17] = "IQ2_XS",
    [18] = "IQ3_XXS", [19] = "IQ1_S", [21] = "IQ3_S",   [22] = "IQ2_S",
    [24] = "I8",      [25] = "I16",   [27] = "I64",     [28] = "F64",
    [29] = "IQ1_M",   [34] = "TQ1_0", [35] = "TQ2_0",   [39] = "MXFP4",
};

/* ---- bytes ------------------------------------------------------------------------ */

typedef struct reader {
    const pl_weights *w;
    size_t at;
} reader;

static uint64_t number(const unsigned char *p, int width)
{
    uint64_t v = 0;
    for (int i = width - 1; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static pl_status take(reader *r, uint64_t n, const char *what, const unsigned char **out)
{
    if (n > r->w->size - r->at)
        return pl_fail(PL_EFORMAT,
                       "%s: %s at byte %zu takes %llu bytes, the file has %zu",
                       r->w->path, what, r->at, (unsigned long long)n, r->w->size);
    *out = r->w->bytes + r->at;
    r->at += (size_t)n;
    return PL_OK;
}

static pl_status take_number(reader *r, int width, const char *what, uint64_t *out)
{
    const unsigned char *p = NULL;
    PL_TRY(take(r, (uint64_t)width, what, &p));
    *out = number(p, width);
    return PL_OK;
}

static pl_status take_string(reader *r, const char *what, const char **out, size_t *len)
{
    uint64_t n = 0;
    const unsigned char *p = NULL;
    PL_TRY(take_number(r, 8, what, &n));
    PL_TRY(take(r, n, what, &p));
    *out = (const char *)p;
    *len = (size_t)n;
    return PL_OK;
}

/* ---- metadata --------------------------------------------------------------------- */

static int json_kind(uint32_t type)
{
    return type == STRING                    ? PL_JSON_STRING
           : type == ARRAY                   ? PL_JSON_ARRAY
           : type == BOOL                    ? PL_JSON_TRUE
           : type == FLOAT || type == DOUBLE ? PL_JSON_REAL
                                             : PL_JSON_INTEGER;
}

static pl_status check_scalar(const reader *r, const char *key, uint32_t type,
                              const unsigned char *p)
{
    if (type == BOOL && *p > 1)
        return pl_fail(PL_EFORMAT, "%s: '%s' is a bool of %d", r->w->path, key, *p);
    if (type == U64 && p[7] & 0x80)
        return pl_fail(PL_EFORMAT, "%s: '%s' is %llu, more than a signed integer holds",
                       r->w->path, key, (unsigned long long)number(p, 8));
    return PL_OK;
}

static pl_status take_strings(reader *r, pl_weights_value *v)
{
    if ((uint64_t)v->n > (r->w->size - r->at) / 8)
        return pl_fail(PL_EFORMAT, "%s: '%s' has %d strings, the file has %zu bytes left",
                       r->w->path, v->key, v->n, r->w->size - r->at);
    v->items = pl_alloc((size_t)v->n * sizeof *v->items);
    for (int i = 0; i < v->n; i++) {
        const char *s = NULL;
        size_t len = 0;
        v->items[i] = r->w->bytes + r->at;
        PL_TRY(take_string(r, v->key, &s, &len));
    }
    return PL_OK;
}

static pl_status take_array(reader *r, pl_weights_value *v)
{
    uint64_t type = 0, n = 0;
    PL_TRY(take_number(r, 4, v->key, &type));
    PL_TRY(take_number(r, 8, v->key, &n));
    if (type >= N_KINDS || type == ARRAY)
        return pl_fail(PL_EUNSUPPORTED, "%s: '%s' is an array of type %llu", r->w->path,
                       v->key, (unsigned long long)type);
    if (n > INT32_MAX)
        return pl_fail(PL_EFORMAT, "%s: '%s' has %llu items, the file has %zu bytes",
                       r->w->path, v->key, (unsigned long long)n, r->w->size);
    v->item_type = (uint32_t)type;
    v->n = (int32_t)n;
    if (type == STRING) return take_strings(r, v);
    PL_TRY(take(r, n * widths[type], v->key, &v->at));
    for (int i = 0; i < v->n; i++)
        PL_TRY(check_scalar(r, v->key, v->item_type, v->at + (size_t)i * widths[type]));
    return PL_OK;
}

static pl_status take_value(reader *r, pl_weights_value *v)
{
    const char *key = NULL;
    size_t len = 0;
    uint64_t type = 0;
    PL_TRY(take_string(r, "a key", &key, &len));
    PL_TRY(pl_weights_name_check(r->w, "key", key, len, MAX_KEY));
    v->key = pl_strndup(key, len);
    PL_TRY(take_number(r, 4, v->key, &type));
    if (type >= N_KINDS)
        return pl_fail(PL_EFORMAT, "%s: '%s' is of type %llu, wanted 0 to %d", r->w->path,
                       v->key, (unsigned long long)type, N_KINDS - 1);
    v->type = (uint32_t)type;
    if (type == ARRAY) return take_array(r, v);
    v->at = r->w->bytes + r->at;
    if (type == STRING) return take_string(r, v->key, &key, &len);
    PL_TRY(take(r, widths[type], v->key, &v->at));
    return check_scalar(r, v->key, v->type, v->at);
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(((const pl_weights_value *)a)->key, ((const pl_weights_value *)b)->key);
}

static pl_status take_metas(reader *r, pl_weights *w, uint64_t n)
{
    enum {
        LEAST = 13
    }; /* an empty key, a type, a byte */
    if (n > PL_WEIGHTS_MAX_METAS || n > (w->size - r->at) / LEAST)
        return pl_fail(PL_EFORMAT, "%s: %llu values of metadata in %zu bytes", w->path,
                       (unsigned long long)n, w->size);
    w->metas = pl_alloc((size_t)n * sizeof *w->metas);
    for (uint64_t i = 0; i < n; i++) {
        w->n_metas++;
        PL_TRY(take_value(r, &w->metas[i]));
    }
    qsort(w->metas, (size_t)n, sizeof *w->metas, compare_keys);
    for (uint64_t i = 1; i < n; i++)
        if (!strcmp(w->metas[i - 1].key, w->metas[i].key))
            return pl_fail(PL_EFORMAT, "%s: '%s' is there twice", w->path,
                           w->metas[i].key);
    return PL_OK;
}

void pl_weights_free_metas(pl_weights *w)
{
    for (int i = 0; i < w->n_metas; i++) {
        pl_free(w->metas[i].key);
        pl_free(w->metas[i].items);
    }
    pl_free(w->metas);
}

/* ---- tensors ---------------------------------------------------------------------- */

typedef struct info {
    pl_tensor shape;
    size_t name_len;
    uint64_t offset;
} info;

static pl_status find_type(const reader *r, const char *what, uint64_t number,
                           int32_t *out)
{
    char known[256];
    size_t at = 0;
    for (int i = 0; i < PL_N_TYPES; i++) {
        if ((uint64_t)pl_packings[i].gguf == number) {
            *out = i;
            return PL_OK;
        }
        at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "",
                               pl_packings[i].name);
    }
    const char *name =
        number < PL_COUNT(unread) && unread[number] ? unread[number] : "unknown";
    return pl_fail(PL_EUNSUPPORTED, "%s: %s is of type %llu (%s), wanted one of %s",
                   r->w->path, what, (unsigned long long)number, name, known);
}

static pl_status take_dims(reader *r, info *t)
{
    char what[PL_WEIGHTS_MAX_NAME + 16];
    uint64_t n = 0, type = 0;
    snprintf(what, sizeof what, "tensor '%.*s'", (int)t->name_len, t->shape.name);
    PL_TRY(take_number(r, 4, what, &n));
    if (n < 1 || n > PL_COUNT(t->shape.dims))
        return pl_fail(PL_EUNSUPPORTED, "%s: %s has %llu dimensions, wanted 1 to %d",
                       r->w->path, what, (unsigned long long)n, PL_COUNT(t->shape.dims));
    t->shape.n_dims = (int32_t)n;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t dim = 0;
        PL_TRY(take_number(r, 8, what, &dim));
        if (dim > INT64_MAX)
            return pl_fail(PL_EFORMAT, "%s: %s has a dimension of %llu", r->w->path, what,
                           (unsigned long long)dim);
        t->shape.dims[n - 1 - i] = (int64_t)dim;
    }
    PL_TRY(take_number(r, 4, what, &type));
    PL_TRY(find_type(r, what, type, &t->shape.type));
    return take_number(r, 8, what, &t->offset);
}

static pl_status take_info(reader *r, info *t)
{
    PL_TRY(take_string(r, "a tensor's name", &t->shape.name, &t->name_len));
    PL_TRY(pl_weights_name_check(r->w, "tensor's name", t->shape.name, t->name_len,
                                 PL_WEIGHTS_MAX_NAME));
    return take_dims(r, t);
}

static pl_status find_alignment(const pl_weights *w, uint64_t *out)
{
    pl_meta m;
    *out = DEFAULT_ALIGNMENT;
    int status = pl_weights_meta(w, "general.alignment", &m);
    if (status == PL_ENOTFOUND) return PL_OK;
    if (m.kind != PL_JSON_INTEGER || m.integer < 8 || m.integer > MAX_ALIGNMENT ||
        m.integer & (m.integer - 1))
        return pl_fail(
            PL_EFORMAT,
            "%s: 'general.alignment' is %lld, wanted a power of two from 8 to %d",
            w->path, (long long)m.integer, MAX_ALIGNMENT);
    *out = (uint64_t)m.integer;
    return PL_OK;
}

/* Where the bytes begin is known only after the last description: a second pass adds
 * them. */
static pl_status place_tensors(pl_weights *w, reader *r, const info *infos, uint64_t n)
{
    uint64_t alignment = 0;
    PL_TRY(find_alignment(w, &alignment));
    uint64_t base = (r->at + alignment - 1) / alignment * alignment;
    w->data_at = (size_t)PL_MIN(base, (uint64_t)w->size);
    for (uint64_t i = 0; i < n; i++) {
        const info *t = &infos[i];
        if (t->offset % alignment)
            return pl_fail(
                PL_EFORMAT,
                "%s: tensor '%.*s' has the offset %llu, wanted a multiple of %llu",
                w->path, (int)t->name_len, t->shape.name, (unsigned long long)t->offset,
                (unsigned long long)alignment);
        if (t->offset > (uint64_t)w->size)
            return pl_fail(
                PL_EFORMAT,
                "%s: tensor '%.*s' has the offset %llu, the file has %zu bytes", w->path,
                (int)t->name_len, t->shape.name, (unsigned long long)t->offset, w->size);
        PL_TRY(pl_weights_add(w, &t->shape, t->name_len, base + t->offset, 0));
    }
    return PL_OK;
}

static pl_status take_tensors(pl_weights *w, reader *r, uint64_t n)
{
    enum {
        LEAST = 32
    }; /* a name's length, one dimension, type, offset */
    if (n > PL_WEIGHTS_MAX_TENSORS || n > (w->size - r->at) / LEAST)
        return pl_fail(PL_EFORMAT, "%s: %llu tensors in %zu bytes", w->path,
                       (unsigned long long)n, w->size);
    info *infos = pl_alloc((size_t)n * sizeof *infos);
    pl_status status = PL_OK;
    for (uint64_t i = 0; status == PL_OK && i < n; i++) status = take_info(r, &infos[i]);
    if (status == PL_OK) status = place_tensors(w, r, infos, n);
    pl_free(infos);
    return status;
}

pl_status pl_weights_read_gguf(pl_weights *w)
{
    reader r = {w, 4};
    uint64_t version = 0, n_tensors = 0, n_metas = 0;
    PL_TRY(take_number(&r, 4, "the version", &version));
    if (version != 2 && version != 3)
        return pl_fail(PL_EUNSUPPORTED,
                       "%s: GGUF version %llu, wanted 2 or 3, little-endian", w->path,
                       (unsigned long long)version);
    PL_TRY(take_number(&r, 8, "the number of tensors", &n_tensors));
    PL_TRY(take_number(&r, 8, "the number of values", &n_metas));
    PL_TRY(take_metas(&r, w, n_metas));
    return take_tensors(w, &r, n_tensors);
}

/* ---- answers ---------------------------------------------------------------------- */

static void fill_scalar(uint32_t type, const unsigned char *p, pl_meta *out)
{
    pl_meta m = {.kind = json_kind(type)};
    if (type == STRING) {
        m.len = (size_t)number(p, 8);
        m.string = (const char *)p + 8;
    } else if (type == FLOAT) {
        float f;
        memcpy(&f, p, sizeof f);
        m.number = f;
    } else if (type == DOUBLE) {
        memcpy(&m.number, p, sizeof m.number);
    } else {
        int bits = 8 * widths[type];
        uint64_t v = number(p, widths[type]);
        bool negative =
            (type == I8 || type == I16 || type == I32 || type == I64) && v >> (bits - 1);
        m.integer = (int64_t)(negative && bits < 64 ? v | UINT64_MAX << bits : v);
        m.number = (double)m.integer;
        if (type == BOOL && !m.integer) m.kind = PL_JSON_FALSE;
    }
    *out = m;
}

static pl_status find_value(const pl_weights *w, const char *key,
                            const pl_weights_value **out)
{
    pl_weights_value wanted = {.key = (char *)key};
    const pl_weights_value *v = w->n_metas
                                    ? bsearch(&wanted, w->metas, (size_t)w->n_metas,
                                              sizeof *w->metas, compare_keys)
                                    : NULL;
    if (!v) return pl_fail(PL_ENOTFOUND, "%s: no '%s' in the metadata", w->path, key);
    *out = v;
    return PL_OK;
}

pl_status pl_weights_meta(const pl_weights *w, const char *key, pl_meta *out)
{
    const pl_weights_value *v = NULL;
    PL_TRY(find_value(w, key, &v));
    if (v->type == ARRAY)
        *out = (pl_meta){
            .kind = PL_JSON_ARRAY, .n = v->n, .item_kind = json_kind(v->item_type)};
    else
        fill_scalar(v->type, v->at, out);
    return PL_OK;
}

pl_status pl_weights_meta_item(const pl_weights *w, const char *key, int i, pl_meta *out)
{
    const pl_weights_value *v = NULL;
    PL_TRY(find_value(w, key, &v));
    if (v->type != ARRAY)
        return pl_fail(PL_EINVAL, "%s: '%s' is not an array", w->path, key);
    if (i < 0 || i >= v->n)
        return pl_fail(PL_EINVAL, "%s: '%s' has no item %d, it has %d", w->path, key, i,
                       v->n);
    fill_scalar(v->item_type,
                v->items ? v->items[i] : v->at + (size_t)i * widths[v->item_type], out);
    return PL_OK;
}
