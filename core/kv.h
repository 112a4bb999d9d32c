/* SPDX-License-Identifier: Apache-2.0
 *
 * kv.h - the paged KV cache: fixed blocks, shared by prefix, evicted by age and use; their
 *        names.
 *
 * Owns     which block has which name, how many use it, who is evicted next.
 * Ignores  bytes (model.h has them), sequences, time.
 * Thread   step. Nothing in here locks. A pl_namer is read only once made: any.
 *
 * A block is always in one of three places:
 *
 *      free --take--> used --last put--> cached --evict--> free
 *                      ^                   |
 *                      +---- take as hit --+
 *
 * Free and cached blocks stand in line. New blocks come from its front, and lose their
 * names only then; blocks put go to its back, a sequence's last block first, so
 * that the ends of texts go before the prefixes that others may share. Only full blocks
 * get names. Two blocks may bear one name: a prompt's last block is computed even if it
 * was found, and some may not read the cache. The oldest is found while it is there.
 *
 * Those that were found again have a line of their own, from whose front a block is taken
 * only if it has waited more than three times as long as the other's. What many prompts share,
 * or a conversation comes back to, so outlives what was asked once.
 *
 * Block 0 is never given out: a 0 in a table is a mistake that shows, and a device that
 * works in fixed shapes has a place where rows without a sequence may write.
 */
#ifndef PL_KV_H
#define PL_KV_H

#include "change.h"
#include "seq.h"

#pragma GCC visibility push(default) /* tests compare it with a twin */

typedef struct pl_name {
    uint8_t bytes[PL_NAME_BYTES]; /* xxh3 uses 16; the rest is 0 */
} pl_name;

/* How blocks are named: H(parent, tokens, extra), as vLLM does it, byte for byte. */
typedef struct pl_namer {
    int algo;       /* PL_HASH_* */
    int digest_len; /* bytes of a name that are used */
    pl_name none;   /* the parent of first blocks */
} pl_namer;

pl_status pl_namer_init(pl_namer *namer, int algo, const char *seed);
/* Names n_blocks blocks that follow one another; `parent` NULL: they start a text, and
 * the salt (NULL: none) goes into the first. */
void pl_namer_chain(const pl_namer *namer, const pl_name *parent, const int32_t *tokens,
                    int32_t block_size, int32_t n_blocks, const char *salt,
                    size_t salt_len, pl_name *out);

/* A name as others are told it: change.h. */
uint64_t pl_name_key(const pl_namer *namer, const pl_name *name);
/* Equal, and not 0, for those that give the same names to blocks of this size. */
uint64_t pl_namer_id(const pl_namer *namer, int32_t block_size);
/* Names a prompt's full blocks, unless they are so named already; s->named_by is that id. */
void pl_namer_seq(const pl_namer *namer, int32_t block_size, pl_seq *s);

typedef struct pl_kv pl_kv;
pl_kv *pl_kv_open(int32_t n_blocks, const pl_namer *namer);
void pl_kv_close(pl_kv *kv);

/* The longest run of known names from the first on: how many, and their blocks. Takes
 * nothing. */
int32_t pl_kv_find(const pl_kv *kv, const pl_name *names, int32_t n, int32_t *blocks);
/* Takes the blocks found and n_new others, written to `fresh`; all or nothing. */
bool pl_kv_take(pl_kv *kv, const int32_t *hits, int32_t n_hits, int32_t n_new,
                int32_t *fresh);
/* One user more of blocks that are in use. */
void pl_kv_share(pl_kv *kv, const int32_t *blocks, int32_t n);
/* Gives back a sequence's blocks, from its start. */
void pl_kv_put(pl_kv *kv, const int32_t *blocks, int32_t n);
/* The block is full (or will be when this step is over): from now on it is found. Whether
 * it is the first of that name. */
bool pl_kv_name(pl_kv *kv, int32_t block, const pl_name *name);
/* What the block was to hold never came: it is not found any more. */
void pl_kv_forget(pl_kv *kv, int32_t block);
/* Forgets all names; false while blocks are in use. */
bool pl_kv_reset(pl_kv *kv);

/* Changes: a name is there now, or is not any more, however many blocks bear it. They are
 * always counted; NULL: and not logged. */
void pl_kv_log(pl_kv *kv, pl_change_log *log);
uint64_t pl_kv_changes(const pl_kv *kv);
/* All names that are there; of very many, PL_CHANGES_WHOLE. */
pl_changes *pl_kv_whole(const pl_kv *kv);

int32_t pl_kv_size(const pl_kv *kv);   /* blocks that can be given out */
int32_t pl_kv_free(const pl_kv *kv);   /* free and cached */
int32_t pl_kv_cached(const pl_kv *kv); /* not in use, but named */
int32_t pl_kv_users(const pl_kv *kv, int32_t block);
/* The free and cached blocks in the order in which they would be taken; how many. */
int32_t pl_kv_line(const pl_kv *kv, int32_t *out, int32_t max);
/* Whether all this still fits together: PL_EINTERNAL if not. For tests. */
pl_status pl_kv_check(const pl_kv *kv);

#pragma GCC visibility pop

#endif
