/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_run.h - a sequence while the engine has it, and the lists it may stand in.
 *
 * Owns     the order of those who wait, who has which id, who has news.
 * Ignores  what a step is.
 * Thread   `news`, `in_inbox`, `next_news`, `say_ns`, `shown` and all of `shared`: any,
 *          under the lock (taps: theirs). `stage`, `wait_ns`: step writes, any reads. The rest: step.
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
 */
#ifndef PL_ENGINE_RUN_H
#define PL_ENGINE_RUN_H

#include "engine.h"
#include "kv.h"
#include "seq.h"

typedef enum run_state {
    RUN_INBOX,
    RUN_WAITING,
    RUN_REMOTE,
    RUN_ORPHAN,
    RUN_RUNNING,
    RUN_ENDED,
    RUN_GONE, /* told, and known to nobody; a step in flight still has it */
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
    int64_t since_ns; /* its submit */
    int32_t at;       /* its place in the waiting heap */

    int32_t n_computed; /* tokens whose KV is in the cache once all steps have landed */
    int32_t n_now;      /* in the step that is being planned; 0: not in it */
    int32_t n_pending;  /* tokens that steps in flight will draw for it */
    int32_t n_flying;   /* steps in flight that have it */
    int32_t place;      /* its sequence in the last of these */
    int32_t *blocks;    /* room for max_total tokens, from its first admission on */
    int32_t n_blocks;
    pl_name *names; /* of full blocks */
    int32_t n_names, names_cap;
    int32_t n_named; /* blocks that are to be found by them */
    int32_t n_found; /* n_named before it was planned */

    int32_t n_unread;  /* tokens of its prompt that `shared` counts as unread */
    int32_t n_cached;  /* prompt tokens that needed no computing; -1: never admitted */
    bool told;         /* its first token is out */
    struct loan *loan; /* what it has lent so far */
    int32_t n_stale;   /* steps in flight that wrote to blocks it lost meanwhile */
    bool spoiled;      /* what it found in the cache was not computed after all */
    pl_logprob *prompt_top;

    atomic_int stage;     /* pl_seq_info's */
    atomic_llong wait_ns; /* since when it waits for its next token, by the clock */
    int64_t say_ns;       /* when the log is told of that again */
    struct {
        int32_t n_tokens;
        int64_t first_ns, last_ns;
    } shown; /* pl_seq_info's, as of the last step's end */

    int news;
    bool in_inbox;
    struct run *next_news;
} run;

typedef struct loan loan; /* engine_lend.c */

typedef struct run_list {
    run **items;
    int32_t n, cap;
} run_list;

typedef struct tap { /* who hears what the cache gains and loses */
    pl_engine_teller tell;
    void *ctx;
    bool blocks; /* wants to know what they hold */
    bool is_due; /* is to hear all that is there */
} tap;

/* What other threads may touch. */
typedef struct shared {
    pl_mutex lock;
    run **index; /* by id; open addressing */
    uint32_t mask;
    int32_t n_live;
    int64_t n_unread; /* of all of them */
    uint64_t arrivals;
    run *inbox, *inbox_last; /* oldest first */
    bool stepping, stopping;
    bool nudged; /* a step is wanted, even if there is nothing to compute */
    struct {
        int32_t *seqs, n, cap;
    } returned;            /* loans */
    pl_engine_stats stats; /* as of the last step's end */
    pl_step_info *steps;   /* the last ones; the next goes to n_steps % their number */
    int64_t n_steps;

    pl_mutex tap_lock; /* over: */
    tap taps[4];
    int n_taps;
} shared;

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

#endif
