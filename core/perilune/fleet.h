/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune/fleet.h - the other processes of a deployment, over a bus.
 */
#ifndef PERILUNE_H
#error "include perilune.h"
#endif

/* clang-format off */
/* [cdef] */

/* ---- bus: the other processes of a deployment (lua thread) ----------------------- */

enum { PL_LOST_GONE = 1,                   /* nobody is subscribed there any more */
       PL_LOST_SILENT,                     /* nothing heard for lost_after */
       PL_LOST_LEFT,                       /* it announced that it is leaving */
       PL_LOST_RESET,                      /* it restarted, or counts us as lost */
       PL_LOST_BUS,                        /* the bus was away for longer than patience_ms */
       PL_LOST_REFUSED,                    /* its engine refused the sequence: a status, pl_stream_why */
       PL_LOST_RECALLED };
typedef struct pl_hub pl_hub;              /* a bus inside one process: for tests */
pl_hub *pl_hub_open(void);
void pl_hub_close(pl_hub *h);              /* after the runtimes on it */
/* Per 1000 messages: how many are dropped, duplicated, or delivered after the next one. */
void pl_hub_faults(pl_hub *h, uint64_t seed, int drop, int twice, int late);
/* Stops the process with that id (pl_bus_id): its messages wait, and it sends none. */
void pl_hub_stop(pl_hub *h, const char *id, int stopped);
void pl_hub_away(pl_hub *h, int away);     /* the bus goes away, or comes back, for everyone on it */
typedef struct pl_bus_options {
    pl_hub *hub;                           /* or, if NULL, a NATS server: */
    const char *url;                       /* one or more, separated by commas */
    const char *user, *password, *token, *nkey_seed, *credentials;   /* NULL: none; the last two are files */
    const char *tls_ca, *tls_cert, *tls_key;                         /* PEM files; NULL: none */
    const char *name_space;                /* [A-Za-z0-9_-]+: processes that share it see each other */
    int32_t lost_after_ms;                 /* a peer silent for this long counts as lost */
    int32_t patience_ms;                   /* if the bus is away for longer, all peers count as lost */
    int32_t direct;                        /* 0: all goes over the bus; 1: over sockets where they reach */
    const char *direct_host;               /* an address for TCP between hosts; NULL: within this host only */
    int32_t direct_port;                   /* 0: any */
} pl_bus_options;
void pl_bus_options_init(pl_bus_options *o);
/* Joins without waiting: PL_EV_BUS reports when the bus is connected, and every change.
 * Refuses options that can never connect (PL_EINVAL). pl_runtime_close leaves. */
pl_status pl_bus_open(pl_runtime *rt, const pl_bus_options *options);
const char *pl_bus_id(const pl_runtime *rt);   /* this process's id: 16 hex digits, new each time */
/* What others are told about this process: JSON, at once and when they ask. Its engines'
 * counters follow with every heartbeat. A process without a hello is invisible. */
void pl_bus_hello(pl_runtime *rt, const char *json, size_t len);
void pl_bus_leave(pl_runtime *rt);         /* withdraws the hello */
/* Lets other processes run sequences on this engine, as that index (0 to 63); NULL: accepts
 * no more, but those running continue. */
void pl_bus_serve(pl_runtime *rt, int index, pl_engine *e);
/* What a peer says about itself: {"id":"...","hello":{...},"engines":[{"running":0,...}]}. PL_ENOTFOUND. */
pl_status pl_peer_hello(pl_runtime *rt, int32_t peer, pl_buf *out);
/* What its engine of that index counted when it last said so, each half second. PL_ENOTFOUND. */
pl_status pl_peer_stats(pl_runtime *rt, int32_t peer, int index, pl_engine_stats *out);
typedef struct pl_call pl_call;            /* a request to another process, or its reply */
/* Calls a peer; a REPLY event follows within that time. Returns the call's id or a status.
 * PL_ELIMIT: the text (or the reply's) exceeds 32 MiB, or 1024 calls are under way. */
int32_t pl_call_send(pl_runtime *rt, int32_t peer, const char *text, size_t len, int timeout_ms);
const char *pl_call_text(const pl_call *c, size_t *len);   /* CALL: the request; REPLY: the answer */
void pl_call_answer(pl_call *c, const char *text, size_t len);
void pl_call_close(pl_call *c);            /* if unanswered, the caller gets PL_ECANCELED */

/* ---- index: which worker holds which blocks of the KV cache (lua thread) --------- */

typedef struct pl_route pl_route;
typedef struct pl_route_stats {
    int64_t blocks;                        /* different ones (those of dead workers too, for a while) */
    int64_t dropped;                       /* not stored, since the index was full */
    int64_t missed;                        /* removals of what was not held */
    int64_t gaps;                          /* times that what a worker holds was not known any more */
    int64_t bytes;
} pl_route_stats;
/* At most max_blocks different blocks. What comes beyond that is counted and left out: then
 * a worker is thought to hold less than it does, never more. */
pl_route *pl_route_open(int64_t max_blocks);
void pl_route_close(pl_route *x);
/* A worker that holds nothing yet: its number, from 0, or PL_ELIMIT (8192 workers). */
int pl_route_join(pl_route *x);
void pl_route_leave(pl_route *x, int worker);   /* at once, and all that it held */
/* A block's name is the last 8 bytes of its hash, a big-endian number, as in vLLM's events.
 * How many are new with this worker, or were held by it; PL_ENOTFOUND. */
int64_t pl_route_store(pl_route *x, int worker, const uint64_t *names, int n);
int64_t pl_route_remove(pl_route *x, int worker, const uint64_t *names, int n);
int64_t pl_route_held(const pl_route *x, int worker);
/* Of a prompt's n blocks, how many each worker holds from the first on without a gap: into
 * depths, by number. Returns the length of that, which pl_route_join tells: workers are
 * numbered below the next multiple of 64. */
int pl_route_match(pl_route *x, const uint64_t *names, int n, int32_t *depths);
/* From now on the worker's engine, here or that of a peer, tells what it holds, until it
 * leaves the index: all of it first (until then it is taken to hold nothing), then each
 * change. If some of that is lost it is asked for all again. PL_ENOTFOUND, PL_EINVAL: it is
 * followed already. */
pl_status pl_route_follow(pl_route *x, int worker, pl_engine *e);
pl_status pl_route_follow_peer(pl_route *x, int worker, pl_runtime *rt, int32_t peer, int index);
/* Puts into the index what has been told, which pl_route_match does first; how many blocks. */
int64_t pl_route_apply(pl_route *x);
/* Whether it is known what the worker holds. `changed`: its blocks_changed, twice a second:
 * if it stays ahead of what was told, something is missing. */
int pl_route_check(pl_route *x, int worker, int64_t changed);
void pl_route_stats_get(const pl_route *x, pl_route_stats *out);

/* ---- events: vLLM's KV events over ZeroMQ (lua thread) ---------------------------- */

typedef struct pl_events_options {
    const char *endpoint;                  /* bound if it has a '*' or "::" or is ipc; else connected */
    const char *replay_endpoint;           /* NULL: none */
    const char *topic;
    int32_t hwm, buffer_steps;             /* batches: that wait for a slow subscriber; that can be replayed */
    int32_t max_queue_size;                /* that wait to be sent */
    int32_t rank;                          /* added to the ports, and said with each batch */
} pl_events_options;
void pl_events_options_init(pl_events_options *o);
typedef struct pl_events pl_events;
/* Publishes what the engine's cache stores and removes, from the next step on. */
pl_events *pl_events_open(pl_engine *e, const pl_events_options *options);
void pl_events_close(pl_events *p);        /* before the engine or after it */
/* pl_route_follow for a publisher elsewhere. What it does not replay is not known: the worker
 * is taken to hold what came since. */
pl_status pl_route_subscribe(pl_route *x, int worker, const char *endpoint,
                             const char *replay_endpoint, const char *topic);

/* [/cdef] */
/* clang-format on */
