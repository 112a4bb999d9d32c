/* SPDX-License-Identifier: Apache-2.0
 *
 * kv_naming.c - the names of a prompt's blocks, made ahead of an engine, or without one.
 */
#include "kv.h"

#include "seq.h"

enum {
    MAX_BLOCK = 1 << 20 /* tokens */
};

uint64_t pl_namer_id(const pl_namer *namer, int32_t block_size)
{
    return (pl_name_key(namer, &namer->none) ^ (uint64_t)(uint32_t)block_size << 8 ^
            (uint64_t)(uint32_t)namer->algo) |
           1;
}

void pl_namer_seq(const pl_namer *namer, int32_t block_size, pl_seq *s)
{
    uint64_t id = pl_namer_id(namer, block_size);
    int32_t n = s->n_given / block_size;
    if (s->named_by == id && s->n_names >= n) return;
    pl_name *names = pl_realloc(s->names, (size_t)n * sizeof *names);
    pl_namer_chain(namer, NULL, s->tokens, block_size, n, s->salt, s->salt_len, names);
    s->names = names;
    s->n_names = n;
    s->named_by = id;
}

struct pl_naming {
    pl_namer namer;
    int32_t block_size;
};

pl_naming *pl_naming_open(int algo, const char *seed, int32_t block_size)
{
    pl_namer namer;
    if (pl_namer_init(&namer, algo, seed) < 0) return NULL;
    if (block_size < 1 || block_size > MAX_BLOCK) {
        pl_fail(PL_EINVAL, "blocks of %d tokens, wanted 1 to %d", block_size, MAX_BLOCK);
        return NULL;
    }
    pl_naming *n = pl_alloc(sizeof *n);
    *n = (pl_naming){namer, block_size};
    return n;
}

void pl_naming_close(pl_naming *n)
{
    pl_free(n);
}

void pl_naming_apply(const pl_naming *n, pl_seq *s)
{
    pl_namer_seq(&n->namer, n->block_size, s);
}

/* A name whose key is this one, and whose other bytes are as evenly spread. */
static pl_name name_of(const pl_namer *namer, uint64_t key)
{
    pl_name name = {0};
    for (int i = 0; i < namer->digest_len; i++)
        name.bytes[i] = (uint8_t)(key >> (56 - 8 * (i % 8)));
    return name;
}

void pl_naming_give(const pl_naming *n, pl_seq *s, const uint64_t *keys, int32_t n_keys)
{
    pl_name *names = pl_realloc(s->names, (size_t)PL_MAX(n_keys, 1) * sizeof *names);
    for (int32_t i = 0; i < n_keys; i++) names[i] = name_of(&n->namer, keys[i]);
    s->names = names;
    s->n_names = n_keys;
    s->named_by = pl_namer_id(&n->namer, n->block_size);
}

int32_t pl_naming_keys(const pl_naming *n, pl_seq *s, int32_t first, uint64_t *out,
                       int32_t max)
{
    pl_naming_apply(n, s);
    const pl_name *names = s->names;
    int32_t count = PL_MIN(s->n_names - first, max);
    for (int32_t i = 0; i < count; i++)
        out[i] = pl_name_key(&n->namer, &names[first + i]);
    return PL_MAX(count, 0);
}
