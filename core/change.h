/* SPDX-License-Identifier: Apache-2.0
 *
 * change.h - what the cache of an engine gained and lost, in order.
 *
 * Owns     the log that the cache writes, and batches of it, which travel between threads.
 * Ignores  which blocks hold what (kv.h), who listens (engine.h), how a batch goes to
 *          other processes (wire.h).
 * Thread   log: its owner's; batches: any, they never change.
 *
 * A block goes by its key: the last 8 bytes of its hash as a big-endian number, which is
 * how vLLM's events name it.
 */
#ifndef PL_CHANGE_H
#define PL_CHANGE_H

#include "base.h"

#pragma GCC visibility push(default) /* for tests */

typedef enum pl_change {  /* numbers on the wire too: never used for something else */
    PL_CHANGE_STORED = 1, /* now there is one of that name */
    PL_CHANGE_REMOVED,    /* now there is none any more */
    PL_CHANGE_CLEARED,    /* nothing is there */
} pl_change;

typedef struct pl_change_run { /* changes of one kind that follow one another */
    int32_t kind, n;           /* CLEARED: 0 */
} pl_change_run;

/* What a stored block holds; its tokens are block_size of pl_changes.tokens. */
typedef struct pl_change_block {
    uint64_t parent;
    bool is_first;             /* of a text: it has no parent */
    int32_t salt_at, salt_len; /* in pl_changes.salts; -1: none */
} pl_change_block;

/* All changes of a cache are counted; `before` and `after` say which of them these are. A
 * receiver whose count differs from `before` has missed something. */
typedef struct pl_changes {
    atomic_int refs;
    bool is_whole; /* all that is held now, stored; what was told before is void */
    uint64_t before, after;
    int32_t n_runs, n_keys;
    const pl_change_run *runs;
    const uint64_t *keys;
    int32_t n_stored, block_size; /* with blocks only: */
    const pl_change_block
        *blocks; /* of each that was stored, in order; NULL: not asked */
    const int32_t *tokens;
    const char *salts;
} pl_changes;

typedef struct pl_change_log {
    pl_change_run *runs;
    uint64_t *keys;
    int32_t n_runs, runs_cap, n_keys, keys_cap;
    pl_change_block *blocks;
    int32_t n_blocks, blocks_cap;
    pl_buf tokens, salts;
} pl_change_log;
void pl_change_log_fini(pl_change_log *l);
void pl_change_log_clear(pl_change_log *l);
/* CLEARED makes what was logged before void. */
void pl_change_log_add(pl_change_log *l, pl_change kind, uint64_t key);
/* What the block that was just stored holds; then of every one that is. */
void pl_change_log_block(pl_change_log *l, const pl_change_block *block,
                         const int32_t *tokens, int32_t block_size, const char *salt);
/* The log as a batch, which is the caller's; the log is empty then. */
pl_changes *pl_change_log_take(pl_change_log *l, uint64_t before, uint64_t after);

enum {
    PL_CHANGES_WHOLE = 4 << 20 /* keys of a cache that is told whole; it may hold more */
};
/* One run of n stored keys, which the caller fills in. */
pl_changes *pl_changes_whole(uint64_t after, int32_t n, uint64_t **keys);
void pl_changes_take(pl_changes *c);
void pl_changes_put(pl_changes *c); /* takes NULL */

#pragma GCC visibility pop

#endif
