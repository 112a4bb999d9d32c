/* SPDX-License-Identifier: Apache-2.0
 *
 * weights.c - opens a file of tensors, whichever its format, and answers for it.
 *
 * Owns     the mapping; the checks that both formats share.
 * Ignores  the formats themselves: weights_gguf.c and weights_safetensors.c read them.
 * Thread   any.
 */
#include "weights.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* ---- what both formats have to obey ----------------------------------------------- */

pl_status pl_weights_name_check(const pl_weights *w, const char *what, const char *name,
                                size_t len, size_t max)
{
    if (!len || len > max)
        return pl_fail(PL_EFORMAT, "%s: a %s of %zu bytes, wanted 1 to %zu", w->path,
                       what, len, max);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return pl_fail(PL_EFORMAT, "%s: a %s holds the control character %d", w->path,
                           what, name[i]);
    if (!pl_utf8_valid(name, len))
        return pl_fail(PL_EFORMAT, "%s: a %s is not UTF-8", w->path, what);
    return PL_OK;
}

/* How many bytes the shape takes, by type. */
static pl_status shape_bytes(const pl_weights *w, const pl_tensor *t, uint64_t *out)
{
    uint64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) {
        if (t->dims[i] < 0)
            return pl_fail(PL_EFORMAT,
                           "%s: tensor '%s' has dimension %d of %lld, wanted 0 or more",
                           w->path, t->name, i, (long long)t->dims[i]);
        if (__builtin_mul_overflow(n, (uint64_t)t->dims[i], &n) || n > INT64_MAX / 8)
            return pl_fail(PL_EFORMAT,
                           "%s: tensor '%s' has more elements than can be counted",
                           w->path, t->name);
    }
    int block = pl_packings[t->type].values;
    int64_t row = t->n_dims ? t->dims[t->n_dims - 1] : 1;
    if (row % block)
        return pl_fail(PL_EFORMAT,
                       "%s: tensor '%s' has rows of %lld, wanted a multiple of %d",
                       w->path, t->name, (long long)row, block);
    *out = n / (uint64_t)block * (uint64_t)pl_packings[t->type].bytes;
    return PL_OK;
}

static pl_status check_extent(const pl_weights *w, const pl_tensor *t, uint64_t begin,
                              uint64_t *end)
{
    if (t->type != PL_N_TYPES) {
        uint64_t bytes = 0, need;
        PL_TRY(shape_bytes(w, t, &bytes));
        if (__builtin_add_overflow(begin, bytes, &need))
            return pl_fail(PL_EFORMAT,
                           "%s: tensor '%s' begins at byte %llu, the file has %zu",
                           w->path, t->name, (unsigned long long)begin, w->size);
        if (*end && *end != need)
            return pl_fail(
                PL_EFORMAT,
                "%s: tensor '%s' has data_offsets of %lld bytes, its shape takes %llu",
                w->path, t->name, (long long)(*end - begin), (unsigned long long)bytes);
        *end = need;
    }
    if (*end > w->size)
        return pl_fail(PL_EFORMAT, "%s: tensor '%s' ends at byte %llu, the file has %zu",
                       w->path, t->name, (unsigned long long)*end, w->size);
    return PL_OK;
}

pl_status pl_weights_add(pl_weights *w, const pl_tensor *shape, size_t name_len,
                         uint64_t begin, uint64_t end)
{
    if (w->n_tensors == PL_WEIGHTS_MAX_TENSORS)
        return pl_fail(PL_ELIMIT, "%s: more than %d tensors", w->path,
                       PL_WEIGHTS_MAX_TENSORS);
    if (w->n_tensors == w->cap_tensors) {
        w->cap_tensors = PL_MAX(64, w->cap_tensors * 2);
        w->tensors = pl_realloc(w->tensors, (size_t)w->cap_tensors * sizeof *w->tensors);
    }
    char name[PL_WEIGHTS_MAX_NAME + 1] = {0};
    memcpy(name, shape->name, name_len);
    pl_tensor t = *shape;
    t.name = name;
    PL_TRY(check_extent(w, &t, begin, &end));
    t.name = pl_strndup(name, name_len);
    t.data = w->bytes + begin;
    t.bytes = (int64_t)(end - begin);
    w->tensors[w->n_tensors++] = t;
    return PL_OK;
}

/* ---- after reading: no doubles, no overlaps --------------------------------------- */

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(pl_tensor *const *)a)->name, (*(pl_tensor *const *)b)->name);
}

static int compare_data(const void *a, const void *b)
{
    const pl_tensor *x = *(pl_tensor *const *)a, *y = *(pl_tensor *const *)b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

static void sort_tensors(pl_weights *w, int (*compare)(const void *, const void *))
{
    for (int i = 0; i < w->n_tensors; i++) w->by_name[i] = &w->tensors[i];
    if (w->n_tensors)
        qsort(w->by_name, (size_t)w->n_tensors, sizeof *w->by_name, compare);
}

static pl_status check_overlaps(pl_weights *w)
{
    sort_tensors(w, compare_data);
    for (int i = 1; i < w->n_tensors; i++) {
        const pl_tensor *a = w->by_name[i - 1], *b = w->by_name[i];
        if ((const unsigned char *)a->data + a->bytes > (const unsigned char *)b->data)
            return pl_fail(PL_EFORMAT, "%s: tensors '%s' and '%s' overlap", w->path,
                           a->name, b->name);
    }
    return PL_OK;
}

static pl_status check_doubles(pl_weights *w)
{
    sort_tensors(w, compare_names);
    for (int i = 1; i < w->n_tensors; i++)
        if (!strcmp(w->by_name[i - 1]->name, w->by_name[i]->name))
            return pl_fail(PL_EFORMAT, "%s: tensor '%s' is there twice", w->path,
                           w->by_name[i]->name);
    return PL_OK;
}

static void leave_out(pl_weights *w)
{
    int n = 0;
    for (int i = 0; i < w->n_tensors; i++) {
        if (w->tensors[i].type == PL_N_TYPES)
            pl_free((char *)w->tensors[i].name);
        else
            w->tensors[n++] = w->tensors[i];
    }
    w->n_tensors = n;
}

static pl_status read_content(pl_weights *w)
{
    if (w->size >= 4 && !memcmp(w->bytes, "GGUF", 4))
        PL_TRY(pl_weights_read_gguf(w));
    else if (w->size >= 9 && w->bytes[8] == '{')
        PL_TRY(pl_weights_read_safetensors(w));
    else
        return pl_fail(PL_EFORMAT, "%s: neither GGUF nor safetensors (%zu bytes)",
                       w->path, w->size);
    w->by_name = pl_alloc((size_t)w->n_tensors * sizeof *w->by_name);
    PL_TRY(check_doubles(w));
    PL_TRY(check_overlaps(w));
    leave_out(w);
    sort_tensors(w, compare_names);
    return PL_OK;
}

/* ---- open, close ------------------------------------------------------------------ */

static pl_weights *read_bytes(const char *path, const void *data, size_t size,
                              bool mapped)
{
    pl_weights *w = pl_alloc(sizeof *w);
    w->path = pl_strndup(path, strlen(path));
    w->bytes = data;
    w->size = size;
    w->mapped = mapped;
    if (read_content(w) == PL_OK) return w;
    pl_weights_close(w);
    return NULL;
}

pl_weights *pl_weights_parse(const char *path, const void *data, size_t size)
{
    return read_bytes(path, data, size, false);
}

static pl_status map_file(const char *path, int fd, void **data, size_t *size)
{
    struct stat st;
    if (fstat(fd, &st)) return pl_fail(PL_EIO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return pl_fail(PL_EFORMAT, "%s: not a regular file", path);
    if (!st.st_size) return pl_fail(PL_EFORMAT, "%s: empty", path);
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        return pl_fail(PL_EIO, "%s: cannot be mapped: %s", path, strerror(errno));
    *data = p;
    *size = (size_t)st.st_size;
    return PL_OK;
}

pl_weights *pl_weights_open(const char *path)
{
    /* Not to hang on a named pipe. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        pl_fail(errno == ENOENT ? PL_ENOTFOUND : PL_EIO, "%s: %s", path, strerror(errno));
        return NULL;
    }
    void *data = NULL;
    size_t size = 0;
    pl_status status = map_file(path, fd, &data, &size);
    close(fd);
    return status == PL_OK ? read_bytes(path, data, size, true) : NULL;
}

void pl_weights_close(pl_weights *w)
{
    if (!w) return;
    for (int i = 0; i < w->n_tensors; i++) pl_free((char *)w->tensors[i].name);
    pl_weights_free_metas(w);
    pl_free(w->tensors);
    pl_free(w->by_name);
    if (w->mapped) munmap((void *)w->bytes, w->size);
    pl_free(w->path);
    pl_free(w);
}

/* ---- answers ---------------------------------------------------------------------- */

int pl_weights_count(const pl_weights *w)
{
    return w->n_tensors;
}

int64_t pl_weights_size(const pl_weights *w)
{
    return (int64_t)w->size;
}

int64_t pl_weights_head(const pl_weights *w)
{
    return (int64_t)w->data_at;
}

const pl_tensor *pl_weights_get(const pl_weights *w, int i)
{
    return i >= 0 && i < w->n_tensors ? &w->tensors[i] : NULL;
}

const pl_tensor *pl_weights_find(const pl_weights *w, const char *name)
{
    pl_tensor key = {.name = name}, *at = &key;
    if (!w->n_tensors) return NULL;
    pl_tensor **found =
        bsearch(&at, w->by_name, (size_t)w->n_tensors, sizeof *w->by_name, compare_names);
    return found ? *found : NULL;
}

/* Each tensor read costs a page, if the system is kept from reading megabytes ahead of
 * it; of a great many tensors only some are read. */
uint64_t pl_weights_fingerprint(const pl_weights *w, const char *text, size_t len,
                                uint64_t seed)
{
    enum {
        SAMPLES = 256,
        BYTES = 64
    };
    uint64_t hash = XXH3_64bits_withSeed(text, len, seed);
    if (!w) return hash;
    hash = XXH3_64bits_withSeed(w->bytes, w->data_at, hash);
    if (w->mapped) madvise((void *)w->bytes, w->size, MADV_RANDOM);
    int step = w->n_tensors / SAMPLES + 1;
    for (int i = 0; i < w->n_tensors; i += step) {
        const pl_tensor *t = &w->tensors[i];
        hash =
            XXH3_64bits_withSeed(t->data, (size_t)PL_MIN(t->bytes, (int64_t)BYTES), hash);
    }
    if (w->mapped) madvise((void *)w->bytes, w->size, MADV_NORMAL);
    return hash;
}
