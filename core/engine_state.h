/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_state.h - what the files of the engine share.
 *
 * A sequence's run:
 *
 *     submit -> INBOX --> WAITING --admitted--> RUNNING --stop, length, error--> ended
 *                          ^  ^  \                 |
 *                          |  |   placed           |
 *                   arrived|  |      \             |
 *                          |  |       v            |
 *                          +--|---- REMOTE         |
 *                             +-----preempted------+
 *
 * A cancel ends it from anywhere, at the next step's start; from REMOTE it is told at
 * once, but as ORPHAN it holds its blocks until the KV has arrived: someone may be
 * writing there.
 *
 * Of a run, `news`, `in_inbox` and `next_news` belong to the lock, as do the engine's
 * index, inbox and published numbers; all else belongs to whoever steps.
 */
#ifndef PL_ENGINE_STATE_H
#define PL_ENGINE_STATE_H

#include "engine.h"
#include "kv.h"
#include "model.h"
#include "seq.h"

typedef enum run_state {
    RUN_INBOX,
    RUN_WAITING,
    RUN_REMOTE,
    RUN_ORPHAN,
    RUN_RUNNING,
    RUN_ENDED,
} run_state;

enum {
    NEWS_SUBMIT = 1,
    NEWS_CANCEL = 2,
    NEWS_ARRIVED = 4,
    NEWS_FAILED = 8
};

typedef struct run {
    pl_seq *seq;
    int32_t id;
    int32_t max_total; /* tokens, prompt and all */
    run_state state;
    uint64_t arrival;
    int32_t at; /* its place in the waiting heap */

    int32_t n_computed; /* tokens whose KV is in the cache once the step is over */
    int32_t n_now;      /* of these, in the step that is being made; 0: not in it */
    int32_t *blocks;    /* room for max_total tokens, from its first admission on */
    int32_t n_blocks;
    pl_name *names; /* of full blocks */
    int32_t n_names, names_cap;
    int32_t n_named; /* blocks that are to be found by them */
    int32_t n_found; /* n_named when the step that is being made began */

    int32_t n_cached; /* prompt tokens that needed no computing; -1: never admitted */
    bool told;        /* its first token is out */
    bool spoiled;     /* what it found in the cache was not computed after all */
    pl_logprob *prompt_top;

    int news;
    bool in_inbox;
    struct run *next_news;
} run;

typedef struct outcome {
    pl_token token;
    run *run;
} outcome;

typedef struct run_list {
    run **items;
    int32_t n, cap;
} run_list;

/* A step, from its making to its collection. */
typedef struct step {
    pl_batch batch;
    int32_t *tokens, *targets;
    pl_batch_seq *seqs;
    run **runs; /* of each of seqs */
} step;

typedef struct shared {
    pl_mutex lock;
    run **index; /* by id; open addressing */
    uint32_t mask;
    int32_t n_live;
    uint64_t arrivals;
    run *inbox, *inbox_last; /* oldest first */
    bool stepping, stopping;
    pl_engine_stats stats; /* as of the last step's end */
} shared;

struct pl_engine {
    pl_engine_options options;
    pl_model *model;
    int32_t vocab, block_size;
    pl_namer namer;
    pl_kv *kv;
    run_list running; /* in order of admission */
    run_list waiting; /* a heap */
    run_list remote;  /* and orphans */
    run_list ended;   /* to be freed when the batch is made */
    step step;
    bool moved; /* this step changed something: the next one may do more */

    outcome *outs; /* of this step */
    int32_t n_outs, outs_cap;
    run_list placed, started; /* in this step */
    int64_t began_ns;
    pl_token_batch *last; /* without a thread: what pl_engine_tokens shows */
    pl_engine_stats stats;

    shared *shared; /* apart, so that a const engine can be asked under the lock */
    pthread_t thread;
    pl_engine_sink sink;
    void *sink_ctx;
};

/* engine_line.c: lists, the index of ids, the inbox */
void pl_run_push(run_list *l, run *r);
void pl_run_remove(run_list *l, run *r); /* keeps the order of the others */
void pl_run_free(run *r);
bool pl_run_is_before(const pl_engine *e, const run *a, const run *b);
void pl_line_push(pl_engine *e, run *r); /* the waiting heap */
void pl_line_remove(pl_engine *e, run *r);
void pl_index_init(shared *s, int32_t max_live);
run *pl_index_find(const shared *s, int32_t id);
void pl_index_insert(shared *s, run *r);
void pl_index_remove(shared *s, run *r); /* from the inbox too */
void pl_inbox_push(shared *s, run *r, int news);
run *pl_inbox_pop(shared *s, int *news);

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
