/* SPDX-License-Identifier: Apache-2.0
 *
 * weights_safetensors.c - the header of a safetensors file.
 *
 * Owns     nothing.
 * Ignores  __metadata__, once it is seen to be well formed.
 * Thread   any.
 *
 *     length (8 bytes)  {"name":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},
 * ...} the tensors' bytes, without gaps; offsets counted from here
 *
 * The header is JSON of one fixed shape, three deep, so it is scanned rather than parsed:
 * what does not have the shape is refused.
 */
#include "weights.h"

#include <string.h>

enum {
    MAX_HEADER = 100 << 20
};

typedef struct scanner {
    const pl_weights *w;
    const char *text;
    size_t at, len;
} scanner;

typedef struct slice {
    const char *p;
    size_t len;
    bool escaped;
} slice;

/* ---- the words of the header ------------------------------------------------------ */

static int peek(scanner *s)
{
    while (s->at < s->len && strchr(" \t\r\n", s->text[s->at]) && s->text[s->at]) s->at++;
    return s->at < s->len ? (unsigned char)s->text[s->at] : -1;
}

static pl_status broken(const scanner *s, const char *wanted)
{
    return pl_fail(PL_EFORMAT, "%s: the header breaks at byte %zu, wanted %s", s->w->path,
                   s->at + 8, wanted);
}

static bool skip(scanner *s, char c)
{
    if (peek(s) != (unsigned char)c) return false;
    s->at++;
    return true;
}

/* The position after an escape that begins at `at`, or 0. */
static size_t after_escape(const scanner *s, size_t at)
{
    if (at + 1 >= s->len) return 0;
    if (s->text[at + 1] && strchr("\"\\/bfnrt", s->text[at + 1])) return at + 2;
    if (s->text[at + 1] != 'u' || at + 6 > s->len) return 0;
    for (size_t i = at + 2; i < at + 6; i++)
        if (!s->text[i] || !strchr("0123456789abcdefABCDEF", s->text[i])) return 0;
    return at + 6;
}

static pl_status scan_string(scanner *s, slice *out)
{
    if (!skip(s, '"')) return broken(s, "a string");
    size_t at = s->at;
    bool escaped = false;
    while (at < s->len && s->text[at] != '"') {
        if ((unsigned char)s->text[at] < 0x20)
            return broken(s, "a string without control characters");
        if (s->text[at] == '\\') {
            escaped = true;
            at = after_escape(s, at);
            if (!at) return broken(s, "a string with good escapes");
        } else {
            at++;
        }
    }
    if (at >= s->len) return broken(s, "a string that ends");
    *out = (slice){s->text + s->at, at - s->at, escaped};
    s->at = at + 1;
    return PL_OK;
}

static pl_status scan_integer(scanner *s, int64_t *out)
{
    int64_t v = 0;
    int c = peek(s);
    if (c < '0' || c > '9') return broken(s, "an integer, 0 or more");
    if (c == '0' && s->at + 1 < s->len && s->text[s->at + 1] >= '0' &&
        s->text[s->at + 1] <= '9')
        return broken(s, "an integer without leading zeros");
    for (; s->at < s->len && s->text[s->at] >= '0' && s->text[s->at] <= '9'; s->at++)
        if (__builtin_mul_overflow(v, 10, &v) ||
            __builtin_add_overflow(v, s->text[s->at] - '0', &v))
            return broken(s, "an integer below 2^63");
    *out = v;
    return PL_OK;
}

/* [1, 2, ...], at most max. */
static pl_status scan_integers(scanner *s, int max, int64_t *out, int *n)
{
    int count = 0;
    if (!skip(s, '[')) return broken(s, "a list");
    if (!skip(s, ']')) {
        do {
            if (count == max)
                return broken(s, max == 2 ? "two offsets" : "at most 4 dimensions");
            PL_TRY(scan_integer(s, &out[count++]));
        } while (skip(s, ','));
        if (!skip(s, ']')) return broken(s, "',' or ']'");
    }
    *n = count;
    return PL_OK;
}

static bool is(slice s, const char *word)
{
    return s.len == strlen(word) && !memcmp(s.p, word, s.len);
}

/* ---- entries ---------------------------------------------------------------------- */

static pl_status scan_metadata(scanner *s)
{
    slice word = {0};
    if (!skip(s, '{')) return broken(s, "'{' after \"__metadata__\"");
    if (skip(s, '}')) return PL_OK;
    do {
        PL_TRY(scan_string(s, &word));
        if (!skip(s, ':')) return broken(s, "':'");
        PL_TRY(scan_string(s, &word));
    } while (skip(s, ','));
    return skip(s, '}') ? PL_OK : broken(s, "',' or '}'");
}

static pl_status find_type(const scanner *s, slice name, slice dtype, int32_t *out)
{
    static const struct {
        const char *name;
        int type;
    } known[] = {{"F32", PL_F32},
                 {"F16", PL_F16},
                 {"BF16", PL_BF16},
                 {"I32", PL_I32},
                 {"I64", PL_N_TYPES}};
    for (int i = 0; i < PL_COUNT(known); i++) {
        if (!is(dtype, known[i].name)) continue;
        *out = known[i].type;
        return PL_OK;
    }
    return pl_fail(
        PL_EUNSUPPORTED, "%s: tensor '%.*s' is of type '%.*s', wanted F32, F16 or BF16",
        s->w->path, (int)name.len, name.p, (int)PL_MIN(dtype.len, (size_t)32), dtype.p);
}

static pl_status add_tensor(pl_weights *w, const scanner *s, slice name, pl_tensor *t,
                            const int64_t *offsets)
{
    uint64_t base = 8 + (uint64_t)s->len, begin, end;
    if (offsets[0] > offsets[1])
        return pl_fail(PL_EFORMAT, "%s: tensor '%.*s' has data_offsets %lld to %lld",
                       w->path, (int)name.len, name.p, (long long)offsets[0],
                       (long long)offsets[1]);
    begin = base + (uint64_t)offsets[0];
    end = base + (uint64_t)offsets[1];
    t->name = name.p;
    return pl_weights_add(w, t, name.len, begin, end);
}

static pl_status scan_tensor(scanner *s, pl_weights *w, slice name)
{
    enum {
        DTYPE = 1,
        SHAPE = 2,
        OFFSETS = 4,
        ALL = 7
    };
    pl_tensor t = {0};
    int64_t offsets[2] = {0};
    int seen = 0, n = 0;
    slice key = {0}, dtype = {0};
    if (!skip(s, '{')) return broken(s, "'{' after a tensor's name");
    do {
        PL_TRY(scan_string(s, &key));
        if (!skip(s, ':')) return broken(s, "':'");
        int field = is(key, "dtype")          ? DTYPE
                    : is(key, "shape")        ? SHAPE
                    : is(key, "data_offsets") ? OFFSETS
                                              : 0;
        if (!field || seen & field)
            return pl_fail(PL_EFORMAT,
                           "%s: tensor '%.*s' has '%.*s', wanted dtype, shape and "
                           "data_offsets once each",
                           w->path, (int)name.len, name.p,
                           (int)PL_MIN(key.len, (size_t)32), key.p);
        seen |= field;
        if (field == DTYPE) {
            PL_TRY(scan_string(s, &dtype));
            PL_TRY(find_type(s, name, dtype, &t.type));
        } else if (field == SHAPE) {
            PL_TRY(scan_integers(s, PL_COUNT(t.dims), t.dims, &n));
            t.n_dims = n;
        } else {
            PL_TRY(scan_integers(s, 2, offsets, &n));
            if (n != 2) return broken(s, "two offsets");
        }
    } while (skip(s, ','));
    if (!skip(s, '}')) return broken(s, "',' or '}'");
    if (seen != ALL)
        return pl_fail(PL_EFORMAT, "%s: tensor '%.*s' has no %s", w->path, (int)name.len,
                       name.p,
                       !(seen & DTYPE)   ? "dtype"
                       : !(seen & SHAPE) ? "shape"
                                         : "data_offsets");
    return add_tensor(w, s, name, &t, offsets);
}

static pl_status scan_entry(scanner *s, pl_weights *w, bool *metadata)
{
    slice name = {0};
    PL_TRY(scan_string(s, &name));
    if (!skip(s, ':')) return broken(s, "':'");
    if (is(name, "__metadata__")) {
        if (*metadata) return broken(s, "__metadata__ only once");
        *metadata = true;
        return scan_metadata(s);
    }
    if (name.escaped) return broken(s, "a tensor's name without escapes");
    PL_TRY(
        pl_weights_name_check(w, "tensor's name", name.p, name.len, PL_WEIGHTS_MAX_NAME));
    return scan_tensor(s, w, name);
}

/* No gaps: with overlaps refused, the sizes of all add up to what there is. */
static pl_status check_gaps(const pl_weights *w)
{
    uint64_t total = 0;
    for (int i = 0; i < w->n_tensors; i++) total += (uint64_t)w->tensors[i].bytes;
    if (total != w->size - w->data_at)
        return pl_fail(PL_EFORMAT,
                       "%s: the tensors take %llu bytes, the file has %zu for them",
                       w->path, (unsigned long long)total, w->size - w->data_at);
    return PL_OK;
}

pl_status pl_weights_read_safetensors(pl_weights *w)
{
    uint64_t len = 0;
    for (int i = 7; i >= 0; i--) len = len << 8 | w->bytes[i];
    if (len < 2 || len > MAX_HEADER || len > w->size - 8)
        return pl_fail(PL_EFORMAT, "%s: a header of %llu bytes, the file has %zu",
                       w->path, (unsigned long long)len, w->size);
    scanner s = {w, (const char *)w->bytes + 8, 0, (size_t)len};
    bool metadata = false;
    w->data_at = 8 + (size_t)len;
    if (!skip(&s, '{')) return broken(&s, "'{'");
    if (!skip(&s, '}')) {
        do {
            PL_TRY(scan_entry(&s, w, &metadata));
        } while (skip(&s, ','));
        if (!skip(&s, '}')) return broken(&s, "',' or '}'");
    }
    if (peek(&s) != -1) return broken(&s, "nothing after the header's '}'");
    return check_gaps(w);
}
