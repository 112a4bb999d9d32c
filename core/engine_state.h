/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_state.h - the engine itself, as its files share it.
 *
 * Owns     the step that is being made, and those in flight.
 * Thread   step; `shared`: see engine_run.h.
 */
#ifndef PL_ENGINE_STATE_H
#define PL_ENGINE_STATE_H

#include "engine.h"
#include "engine_run.h"
#include "model.h"

typedef struct outcome {
    pl_token token;
    run *run;
} outcome;

/* A step on its way, from its making until it has landed. */
typedef struct flight {
    pl_step *step;
    run **runs; /* of each of its sequences */
    pl_step_info info;
} flight;

struct pl_engine {
    pl_engine_options options;
    pl_model *model;
    int32_t vocab, block_size;
    int metrics[2]; /* by PL_OBSERVE_*: histograms; negative: none */
    pl_namer namer;
    uint64_t naming; /* its pl_namer_id */
    pl_kv *kv;
    run_list running; /* in order of admission */
    run_list waiting; /* a heap */
    run_list remote;  /* and orphans */
    run_list ended;   /* since the last publish */
    flight flights[2];
    int32_t oldest, n_flying; /* of these: the one that lands next; how many fly */
    bool moved;               /* something changed: another step may do more */

    outcome *outs; /* of this step */
    int32_t n_outs, outs_cap;
    run_list placed, started; /* in this step */
    pl_map loans;             /* by sequence */
    struct {
        loan **items;
        int32_t n, cap;
    } lent;               /* those that this step has news of */
    int64_t began_ns;     /* by the engine's clock */
    int64_t woke_ns;      /* the same in real time */
    pl_step_info landed;  /* what is told of the step that has; number 0: nothing */
    pl_token_batch *last; /* without a thread: what pl_engine_tokens shows */
    pl_engine_stats stats;

    pl_change_log log; /* of the cache, since the last batch */
    bool is_logging, logs_blocks;
    uint64_t n_told; /* changes, by the last batch */

    shared *shared; /* apart, so that a const engine can be asked under the lock */
    pthread_t thread;
    pl_engine_sink sink;
    void *sink_ctx;
};

/* The step that has been in flight for i others; from n_flying on, one to be made. */
static inline flight *pl_engine_flight(pl_engine *e, int32_t i)
{
    return &e->flights[(e->oldest + i) % PL_COUNT(e->flights)];
}

/* engine_plan.c: who is in the next step, with how many tokens */
void pl_engine_plan(pl_engine *e);
void pl_engine_build(pl_engine *e, flight *f);
/* Names the blocks that are full once n_tokens are computed. */
void pl_engine_name(pl_engine *e, run *r, int32_t n_tokens);
void pl_engine_drop(pl_engine *e, run *r); /* its blocks; what it computed is forgotten */
void pl_engine_chain(const pl_engine *e, run *r,
                     int32_t n_blocks); /* its names, that far */

/* engine_changes.c: what the cache gained and lost */
void pl_engine_serve_taps(pl_engine *e);   /* new ones hear all that is there */
void pl_engine_tell_changes(pl_engine *e); /* those since the last time */
void pl_engine_log_block(pl_engine *e, const run *r, int32_t i); /* it was just stored */
void pl_engine_close_taps(pl_engine *e);
void pl_engine_nudge(pl_engine *e); /* engine.c: has it make a step */

/* engine_lend.c: blocks on loan */
/* Its prompt's KV, up to there, has landed. */
void pl_engine_lend(pl_engine *e, run *r, int32_t n_tokens);
void pl_engine_end_loan(pl_engine *e, run *r); /* it ends */
void pl_engine_take_returned(pl_engine *e);    /* with the lock held */
void pl_engine_close_loans(pl_engine *e);
void pl_engine_count_lent(const pl_engine *e, int32_t *holders); /* by block */
size_t pl_engine_lent_size(const pl_engine *e); /* of this step's news, in bytes */
void pl_engine_add_lent(pl_engine *e, pl_lent *out, int32_t *room);

/* engine_tell.c: what a step brought, and to whom */
void pl_engine_end(pl_engine *e, run *r, int finish); /* without a token */
void pl_engine_orphan(pl_engine *e, run *r);          /* a remote one is cancelled */
void pl_engine_tell(pl_engine *e, const flight *f);
/* The last error is why a step failed; all in it and in those that build on it end. */
void pl_engine_tell_failure(pl_engine *e, int32_t first, int32_t n);
pl_token_batch *pl_engine_batch(pl_engine *e); /* NULL: nothing to tell */

#endif
