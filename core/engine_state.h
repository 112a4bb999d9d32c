/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_state.h - the engine itself, as its files share it.
 *
 * Owns     the step that is being made.
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

/* A step, from its making to its collection. */
typedef struct step {
    pl_batch batch;
    int32_t *tokens, *targets;
    pl_batch_seq *seqs;
    run **runs; /* of each of seqs */
} step;

struct pl_engine {
    pl_engine_options options;
    pl_model *model;
    int32_t vocab, block_size;
    int metrics[2]; /* by PL_OBSERVE_*: histograms; negative: none */
    pl_namer namer;
    pl_kv *kv;
    run_list running; /* in order of admission */
    run_list waiting; /* a heap */
    run_list remote;  /* and orphans */
    run_list ended;   /* to be freed when the step is over */
    step step;
    bool moved; /* this step changed something: the next one may do more */

    outcome *outs; /* of this step */
    int32_t n_outs, outs_cap;
    run_list placed, started; /* in this step */
    int64_t began_ns;         /* by the engine's clock */
    int64_t woke_ns;          /* the same in real time */
    pl_step_info info; /* of the step that is being made; number 0: it computed nothing */
    pl_token_batch *last; /* without a thread: what pl_engine_tokens shows */
    pl_engine_stats stats;

    shared *shared; /* apart, so that a const engine can be asked under the lock */
    pthread_t thread;
    pl_engine_sink sink;
    void *sink_ctx;
};

/* engine_plan.c: who is in the next step, with how many tokens */
void pl_engine_plan(pl_engine *e);
void pl_engine_build(pl_engine *e);
/* Names the blocks that are full once n_tokens are computed. */
void pl_engine_name(pl_engine *e, run *r, int32_t n_tokens);
void pl_engine_drop(pl_engine *e, run *r); /* its blocks; what it computed is forgotten */
void pl_engine_chain(const pl_engine *e, run *r,
                     int32_t n_blocks); /* its names, that far */

/* engine_tell.c: what a step brought, and to whom */
void pl_engine_end(pl_engine *e, run *r, int finish); /* without a token */
void pl_engine_orphan(pl_engine *e, run *r);          /* a remote one is cancelled */
void pl_engine_tell(pl_engine *e, const pl_result *results);
void pl_engine_tell_failure(pl_engine *e);
pl_token_batch *pl_engine_batch(pl_engine *e); /* NULL: nothing to tell */

#endif
