/* SPDX-License-Identifier: Apache-2.0
 *
 * engine.h - the step: choose, run, sample, tell. What the runtime needs beyond
 * perilune.h.
 *
 * Owns     the sequences given to it, from submit to the token that ends each.
 * Ignores  text, sockets, requests.
 * Thread   step; start and stop: whoever opened the engine. Batches: any.
 */
#ifndef PL_ENGINE_H
#define PL_ENGINE_H

#include "change.h"

/* A sequence whose first KV comes from elsewhere has its blocks now. Whoever brings it
 * says so by pl_engine_arrived, once, when nothing will be written to them any more: with
 * ok or not, within a deadline of its own, and even if the sequence was cancelled
 * meanwhile. */
typedef struct pl_placed {
    int32_t seq;
    uint64_t ticket;
    int32_t first;    /* tokens that were found in the cache here: whole blocks */
    int32_t n_tokens; /* to arrive, from `first` on */
    int32_t n_blocks;
    const int32_t *blocks; /* those to be written, from the block of `first` on */
} pl_placed;

/* A sequence that lends has so much of its prompt's KV here, in blocks that keep it until
 * pl_engine_return. While it goes on these are full; the last part comes with its end. */
typedef struct pl_lent {
    int32_t seq;
    uint64_t ticket;
    int32_t first;    /* tokens that were told of before: whole blocks */
    int32_t n_tokens; /* from the prompt's start on */
    bool over;        /* it has ended: no more will come */
    int32_t n_blocks;
    const int32_t *blocks; /* from the block of `first` on */
} pl_lent;

/* What one step produced. Everything in it lives as long as it does. */
typedef struct pl_token_batch {
    atomic_int refs;
    int64_t began_ns, ended_ns; /* by the engine's clock */
    int32_t n, n_placed, n_lent, n_started;
    const pl_token *tokens;
    const pl_placed *placed;
    const pl_lent *lent;
    const int32_t *started; /* sequences that were given their first step */
} pl_token_batch;
/* Of an engine without a thread: what the last step told; NULL: nothing. */
const pl_token_batch *pl_engine_last(const pl_engine *e);
void pl_token_batch_take(pl_token_batch *batch);
void pl_token_batch_put(pl_token_batch *batch); /* takes NULL */

/* Called on the step thread, once a step that has something to tell. The receiver owns
 * the batch and puts it. */
typedef void (*pl_engine_sink)(void *ctx, pl_token_batch *batch);

/* Starts the step thread. */
pl_status pl_engine_start(pl_engine *e, pl_engine_sink sink, void *ctx);
/* Ends it after the step it is in. All sequences end with PL_FINISH_ABORT, in a last
 * batch; from now on none is taken. Without a thread the last batch is in
 * pl_engine_tokens. */
void pl_engine_stop(pl_engine *e);

/* Its KV, for who copies blocks: between placed and arrived, lent and return. */
typedef struct pl_engine_kv {
    int32_t block_size;
    size_t block_bytes;
    const char *layout; /* equal ones may be exchanged, if the models are equal */
    bool is_local;      /* the host's memory */
} pl_engine_kv;
void pl_engine_kv_get(const pl_engine *e, pl_engine_kv *out);
void *pl_engine_block(const pl_engine *e, int32_t block);

/* What the cache gains and loses. The receiver owns each batch and puts it; NULL: the
 * engine closes. It is called with a lock held, so it must not call back. */
typedef void (*pl_engine_teller)(void *ctx, pl_changes *c);
/* First all that is there, at the next step (at once if there is a thread), then each
 * step's changes. For a ctx that taps already: all, anew. `blocks`: with what the stored
 * ones hold. PL_ELIMIT. Any thread. */
pl_status pl_engine_tap(pl_engine *e, pl_engine_teller tell, void *ctx, bool blocks);
void pl_engine_untap(pl_engine *e, const void *ctx); /* it is not called any more */

#endif
