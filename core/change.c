/* SPDX-License-Identifier: Apache-2.0 */
#include "change.h"

#include <string.h>

/* Room for one item more. */
#define GROW(items, n, cap)                                             \
    do {                                                                \
        if ((n) < (cap)) break;                                         \
        (cap) = PL_MAX(64, 2 * (cap));                                  \
        (items) = pl_realloc((items), (size_t)(cap) * sizeof *(items)); \
    } while (0)

void pl_change_log_fini(pl_change_log *l)
{
    pl_free(l->runs);
    pl_free(l->keys);
    pl_free(l->blocks);
    pl_buf_fini(&l->tokens);
    pl_buf_fini(&l->salts);
}

void pl_change_log_clear(pl_change_log *l)
{
    l->n_runs = l->n_keys = l->n_blocks = 0;
    l->tokens.len = l->salts.len = 0;
}

void pl_change_log_add(pl_change_log *l, pl_change kind, uint64_t key)
{
    if (kind == PL_CHANGE_CLEARED) pl_change_log_clear(l);
    if (!l->n_runs || l->runs[l->n_runs - 1].kind != (int32_t)kind) {
        GROW(l->runs, l->n_runs, l->runs_cap);
        l->runs[l->n_runs++] = (pl_change_run){.kind = kind};
    }
    if (kind == PL_CHANGE_CLEARED) return;
    GROW(l->keys, l->n_keys, l->keys_cap);
    l->keys[l->n_keys++] = key;
    l->runs[l->n_runs - 1].n++;
}

void pl_change_log_block(pl_change_log *l, const pl_change_block *block,
                         const int32_t *tokens, int32_t block_size, const char *salt)
{
    GROW(l->blocks, l->n_blocks, l->blocks_cap);
    pl_change_block *b = &l->blocks[l->n_blocks++];
    *b = *block;
    b->salt_at = (int32_t)l->salts.len;
    if (b->salt_len >= 0) pl_buf_add(&l->salts, salt, (size_t)b->salt_len);
    pl_buf_add(&l->tokens, tokens, (size_t)block_size * sizeof *tokens);
}

static void *copy(char **room, const void *from, size_t bytes)
{
    void *at = *room;
    if (bytes) memcpy(at, from, bytes);
    *room += bytes;
    return at;
}

pl_changes *pl_change_log_take(pl_change_log *l, uint64_t before, uint64_t after)
{
    size_t keys = (size_t)l->n_keys * sizeof *l->keys,
           runs = (size_t)l->n_runs * sizeof *l->runs,
           blocks = (size_t)l->n_blocks * sizeof *l->blocks;
    pl_changes *c =
        pl_alloc(sizeof *c + keys + blocks + runs + l->tokens.len + l->salts.len);
    char *room = (char *)(c + 1); /* what is aligned most comes first */
    *c = (pl_changes){.refs = 1, .before = before, .after = after};
    c->n_runs = l->n_runs;
    c->n_keys = l->n_keys;
    c->keys = copy(&room, l->keys, keys);
    if (l->n_blocks) {
        c->n_stored = l->n_blocks;
        c->block_size = (int32_t)(l->tokens.len / sizeof(int32_t)) / l->n_blocks;
        c->blocks = copy(&room, l->blocks, blocks);
    }
    c->runs = copy(&room, l->runs, runs);
    c->tokens = copy(&room, l->tokens.data, l->tokens.len);
    c->salts = copy(&room, l->salts.data, l->salts.len);
    pl_change_log_clear(l);
    return c;
}

pl_changes *pl_changes_whole(uint64_t after, int32_t n, uint64_t **keys)
{
    pl_changes *c = pl_alloc(sizeof *c + (size_t)n * sizeof **keys + sizeof *c->runs);
    *keys = (uint64_t *)(c + 1);
    pl_change_run *run = (pl_change_run *)(*keys + n);
    *run = (pl_change_run){PL_CHANGE_STORED, n};
    *c = (pl_changes){.refs = 1, .is_whole = true, .before = after, .after = after};
    c->n_runs = 1;
    c->runs = run;
    c->n_keys = n;
    c->keys = *keys;
    return c;
}

void pl_changes_take(pl_changes *c)
{
    atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
}

void pl_changes_put(pl_changes *c)
{
    if (c && atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) == 1)
        pl_free(c);
}
