/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune/decide.h - what is known of a request and of workers when one is chosen.
 */
#ifndef PERILUNE_H
#error "include perilune.h"
#endif

/* clang-format off */
/* [cdef] */

/* ---- naming: how the workers of a model name blocks (any thread) ----------------- */

typedef struct pl_naming pl_naming;
pl_naming *pl_naming_open(int algo, const char *seed, int32_t block_size);   /* PL_HASH_*; seed as for engines */
void pl_naming_close(pl_naming *n);
/* Names the prompt's full blocks, unless that is done. Engines that name alike need not do it
 * again. For the sequence's holder, after pl_seq_salt. */
void pl_naming_apply(const pl_naming *n, pl_seq *s);
/* Gives the prompt's n full blocks these names instead: of blocks that need no tokens. */
void pl_naming_give(const pl_naming *n, pl_seq *s, const uint64_t *keys, int32_t n_keys);
/* The names of its full blocks as the index knows them, from block `first` on; returns how many. */
int32_t pl_naming_keys(const pl_naming *n, pl_seq *s, int32_t first, uint64_t *out, int32_t max);

/* ---- load: what a worker has to do (lua thread) ---------------------------------- */

typedef struct pl_load pl_load;            /* of one worker */
pl_load *pl_load_open(int32_t block_size);
void pl_load_close(pl_load *l);            /* streams that count for it may go on */
/* What its engine counts: now, or as it said in its last heartbeat. */
void pl_load_report(pl_load *l, const pl_engine_stats *s, int is_now);
/* While it does not run: wherever the stream goes next counts for that load (NULL: none),
 * where the first n_cached tokens are thought to be cached. */
void pl_stream_charge(pl_stream *s, pl_load *l, int32_t n_cached);
void pl_stream_charge_reader(pl_stream *s, pl_load *l, int32_t n_cached);   /* the same of the reader of a split one */
/* After LOST: the sequence that it keeps, until it is started again; else NULL. */
pl_seq *pl_stream_kept(pl_stream *s);

/* ---- fleet: the workers that may take a request (lua thread) --------------------- */

typedef struct pl_fleet {                  /* a row per worker, a column per fact; counts of blocks unless noted */
    int32_t n, room;
    int32_t *cached;                       /* of the request's prompt */
    int32_t *sent;                         /* of it, those that this process has sent there of late */
    int32_t *prefilling;                   /* of prompts, still to be computed */
    int32_t *decoding;                     /* in use */
    int32_t *free, *capacity;
    int32_t *waiting, *running;            /* requests */
    int32_t *rank;
    int32_t *number;                       /* in the index; -1: none */
    int32_t *worker;                       /* the caller's own number of it */
    float *ttft, *itl;                     /* recent means in seconds; 0: unknown */
    double *cost;                          /* what the hook said; NaN: nothing */
    int32_t n_keys;
    uint64_t *keys;                        /* the names of the prompt's blocks */
} pl_fleet;
pl_fleet *pl_fleet_open(void);
void pl_fleet_close(pl_fleet *f);
void pl_fleet_clear(pl_fleet *f);
/* One more row, with what the load says (NULL: zeros): its place, from 0; at most 8192. */
int32_t pl_fleet_add(pl_fleet *f, const pl_load *l, int32_t number, int32_t rank,
                     int32_t worker);
int32_t pl_fleet_copy(pl_fleet *to, const pl_fleet *from, int32_t row);
void pl_fleet_name(pl_fleet *f, const pl_naming *n, pl_seq *s);   /* fills `keys` */
void pl_fleet_match(pl_fleet *f, pl_route *x);                    /* then fills `cached` */

typedef struct pl_sent pl_sent;            /* what was sent where of late, which no worker may have told yet */
pl_sent *pl_sent_open(void);
void pl_sent_close(pl_sent *s);
/* What `keys` names goes to the worker of that row: it counts for ttl_ms at least, and for twice
 * that at most. At most 2^20 blocks; what comes beyond that is left out. */
void pl_sent_add(pl_sent *s, const pl_fleet *f, int32_t row, int64_t now_ms, int64_t ttl_ms);
/* Raises a column of the fleet, `cached` or `sent`, to it. */
void pl_sent_match(pl_sent *s, const pl_fleet *f, int32_t *column, int64_t now_ms, int64_t ttl_ms);
void pl_sent_forget(pl_sent *s, int32_t worker);

/* ---- decisions: the last ones, to be explained and decided again (lua thread) ---- */

typedef struct pl_decision {
    int64_t number, at_ns;                 /* from 1, without gaps; pl_wall_ns */
    int32_t row;                           /* of the worker that was taken; -1: it had to wait; -2: it was refused */
    int32_t found;                         /* blocks that this worker had cached, by its own word; -1: not told yet */
    int32_t reads;                         /* 1: that one only reads the prompt, for another */
    int32_t tokens, total, max_tokens, n, stream, priority, moves, block_size;   /* of the request */
    int32_t n_keys;
    uint64_t keys[32];                     /* the names of its prompt's first blocks */
    char id[64], by[128];                  /* the request's id; who has decided; may be cut */
    pl_fleet fleet;                        /* what was known of the workers */
} pl_decision;
typedef struct pl_decisions pl_decisions;
/* Keeps the last 1000 at most, and at most as many as 16 MiB hold. */
pl_decisions *pl_decisions_open(void);
void pl_decisions_close(pl_decisions *l);
/* Adds one, as `d` says but for number, at_ns, found, and what is copied of the fleet; its number. */
int64_t pl_decisions_add(pl_decisions *l, const pl_decision *d, const pl_fleet *f);
int64_t pl_decisions_last(const pl_decisions *l);       /* the number of the newest; 0: there is none */
void pl_decisions_found(pl_decisions *l, int64_t number, int32_t found);   /* if it is still kept */
/* NULL: it is not kept any more. Valid until the next add. */
const pl_decision *pl_decisions_get(const pl_decisions *l, int64_t number);

/* [/cdef] */
/* clang-format on */
