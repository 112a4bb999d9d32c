/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune/serve.h - the io thread: HTTP, streams, tasks, and the events that Lua polls.
 */
#ifndef PERILUNE_H
#error "include perilune.h"
#endif

/* clang-format off */
/* [cdef] */

/* ---- runtime: the io thread, HTTP, streams; what Lua polls (lua thread) ---------- */

enum { PL_EV_REQUEST = 1,                  /* a whole HTTP request: object is a pl_exchange */
       PL_EV_GONE,                         /* the client of exchange `id` disconnected */
       PL_EV_PIECE,                        /* stream `id` has a new piece (mode PIECES) */
       PL_EV_DONE,                         /* stream `id` has ended */
       PL_EV_TASK,                         /* task `id` is finished */
       PL_EV_SIGNAL,                       /* SIGINT, SIGTERM, SIGHUP: number in a */
       PL_EV_LOST,                         /* stream `id` lost its engine; a: PL_LOST_*, b: a status */
       PL_EV_BUS,                          /* a: the bus is connected (1) or not (0) */
       PL_EV_PEER,                         /* process `id`: lost (a: PL_LOST_*), or its hello changed (a: 0) */
       PL_EV_CALL,                         /* another process asks: object is a pl_call */
       PL_EV_REPLY,                        /* call `id` is answered: object, or a status in a */
       PL_EV_ANSWER, PL_EV_ANSWERED };     /* relay `id`: perilune/relay.h */
typedef struct pl_event { int32_t kind, id, a, b; void *object; } pl_event;
typedef struct pl_runtime pl_runtime;
typedef struct pl_runtime_options {
    int64_t max_body;                      /* bytes in a request body */
    int32_t max_connections, max_header_bytes, max_headers;
    int32_t idle_timeout_ms, request_timeout_ms;            /* between requests; for one to arrive completely */
    int64_t max_pending_write;             /* a reader this far behind is cut off */
} pl_runtime_options;
void pl_runtime_options_init(pl_runtime_options *o);
pl_runtime *pl_runtime_open(const pl_runtime_options *options);
void pl_runtime_close(pl_runtime *rt);
/* Returns how many events; 0 on timeout. Objects already closed or released cause no new
 * events, but within one batch, handling one event may close the object of a later one. */
int pl_poll(pl_runtime *rt, pl_event *out, int max, int timeout_ms);
int pl_listen(pl_runtime *rt, const char *host, int port);             /* the port bound, or a status */
/* A Unix socket that only its owner can open, in a folder that only its owner can enter
 * (else PL_EIO). A stale one is replaced. Removed with the runtime. */
pl_status pl_listen_local(pl_runtime *rt, const char *path);
void pl_unlisten(pl_runtime *rt);          /* accepts only local connections from now on; open ones close after their answer */
/* What Lua is doing, in a few words: if it then fails to poll for a second, io logs and
 * counts that. NULL, the initial value, turns this off. */
void pl_doing(pl_runtime *rt, const char *what);
pl_status pl_runtime_attach(pl_runtime *rt, pl_engine *e);   /* starts its step thread; tokens go to streams */
/* Stops it, ending its streams. Before pl_engine_close; pl_runtime_close does it for all. */
void pl_runtime_detach(pl_runtime *rt, pl_engine *e);

typedef struct pl_exchange pl_exchange;    /* one HTTP request and its answer; valid until released */
int32_t pl_exchange_id(const pl_exchange *x);
int pl_exchange_is_local(const pl_exchange *x);   /* arrived through pl_listen_local */
int pl_exchange_is_gone(const pl_exchange *x);    /* client disconnected; any thread, true before the event */
const char *pl_exchange_peer(const pl_exchange *x);   /* the client, for logs */
const char *pl_exchange_method(const pl_exchange *x);
const char *pl_exchange_path(const pl_exchange *x);                    /* without the query; percent-decoded */
const char *pl_exchange_query(const pl_exchange *x);
const char *pl_exchange_header(const pl_exchange *x, const char *name);   /* case-insensitive; NULL: absent */
const char *pl_exchange_body(const pl_exchange *x, size_t *len);
/* A complete response. `headers`: extra lines, each ending in \r\n. */
void pl_exchange_reply(pl_exchange *x, int status, const char *type, const char *headers,
                       size_t headers_len, const char *body, size_t len);
void pl_exchange_begin(pl_exchange *x, int status, const char *type, const char *headers,
                       size_t headers_len);    /* chunked: begin, writes, end */
void pl_exchange_write(pl_exchange *x, const char *data, size_t len);
void pl_exchange_end(pl_exchange *x);
void pl_exchange_release(pl_exchange *x);      /* Lua is done with it; if unanswered, the connection is cut */
/* Before the response ends: extra fields for its access log line, as for pl_log_fields. */
void pl_exchange_label(pl_exchange *x, const char *fields, size_t len);

enum { PL_STREAM_SSE = 0,                  /* C writes before + JSON text + after, per piece */
       PL_STREAM_PIECES = 1,               /* Lua gets an event per piece and writes it */
       PL_STREAM_WHOLE = 2 };              /* Lua gets an event at the end only */
typedef struct pl_stream pl_stream;        /* turns one sequence's tokens into output */
/* `x` may be NULL unless the mode is SSE. If its client disconnects, the stream is cancelled. */
pl_stream *pl_stream_open(pl_runtime *rt, const pl_text *text, int mode, pl_exchange *x);
int32_t pl_stream_id(const pl_stream *s);
/* SSE, once: `before` ends and `after` begins with the quote around the text. Pieces are
 * held until then, so that the response can begin after an engine accepts the sequence. */
void pl_stream_frame(pl_stream *s, const char *before, size_t before_len, const char *after,
                     size_t after_len);
pl_status pl_stream_stop(pl_stream *s, const char *stop, size_t len);  /* a stop string; PL_ELIMIT */
/* A piece has at least `interval` tokens; stop strings apply after min_tokens tokens. */
void pl_stream_flags(pl_stream *s, int skip_special, int include_stop, int interval, int min_tokens);
/* Before the start: sets a histogram to observe the seconds between tokens. */
void pl_stream_observe(pl_stream *s, int metric);
void pl_stream_prime(pl_stream *s, const pl_seq *prompt);   /* what its text goes on from */
/* Hands both over: tokens of `seq` go through `s`; the runtime cancels on a stop string.
 * If the engine refuses, `seq` stays with the caller, who may try another. */
pl_status pl_stream_start(pl_stream *s, pl_engine *e, pl_seq *seq);
/* The same in another process, on engine `index` of a peer. The stream keeps the sequence. */
pl_status pl_stream_send(pl_stream *s, int32_t peer, int index, pl_seq *seq);
/* Before the first start: keep a copy of the sequence, as pl_stream_send does. After LOST it
 * can then be started or sent again with seq NULL, and continues where it was. */
void pl_stream_keep(pl_stream *s);
/* While it runs and keeps its sequence: a second place for it, on an engine here or (NULL)
 * on engine `index` of a peer. The first to say a token is heard; LOST comes with the last. */
pl_status pl_stream_also(pl_stream *s, pl_engine *e, int32_t peer, int index);
typedef struct pl_target {                 /* an engine: of this process, or (NULL) number `index` of a peer */
    pl_engine *engine;
    int32_t peer, index;
} pl_target;
/* As pl_stream_start, in two places: `reader` reads the prompt and says the first token;
 * `taker` fetches the prompt's KV from there and goes on. The stream keeps the sequence, and
 * refusals come as LOST. */
pl_status pl_stream_split(pl_stream *s, const pl_target *reader, const pl_target *taker,
                          pl_seq *seq);
int pl_stream_by_reader(const pl_stream *s);   /* after LOST: was it the reader that was lost, or refused? */
/* If it keeps its sequence, withdraws that from where it runs: LOST follows, with
 * PL_LOST_RECALLED, unless it ends first. */
void pl_stream_recall(pl_stream *s);
const char *pl_stream_why(pl_stream *s);   /* after LOST: why it was refused, or "" */
/* After PIECE and DONE: the text since the last take (SSE: what is not written yet). */
const char *pl_stream_take(pl_stream *s, size_t *len);
/* Not with SSE: how many tokens the last take returned, and at which byte of the whole text
 * each starts; the pointers are valid until the next take. */
int pl_stream_tokens(pl_stream *s, const pl_token **tokens, const int32_t **starts);
typedef struct pl_stream_end {
    int32_t finish, stop_reason;           /* stop_reason: token id, or -1 */
    int32_t stop_string;                   /* index of the stop string that ended it, or -1 */
    int32_t n_tokens, n_cached;
    int64_t submitted_ns, scheduled_ns, first_ns, last_ns;
} pl_stream_end;
void pl_stream_result(pl_stream *s, pl_stream_end *out);   /* after DONE; after LOST, what there is so far */
void pl_stream_cancel(pl_stream *s);       /* DONE follows, with finish ABORT */
void pl_stream_close(pl_stream *s);        /* after DONE, or before start */

/* Jobs: work for the pool of Lua states (main.c opens them; they run api/pool.lua). */
typedef struct pl_task pl_task;
int32_t pl_task_push(pl_runtime *rt, pl_exchange *x, const char *arg, size_t len);   /* its id, or PL_ELIMIT */
pl_task *pl_task_take(pl_runtime *rt, int timeout_ms);         /* pool thread; NULL: timeout, or closing */
int pl_task_closing(const pl_runtime *rt);
void pl_task_stop(pl_runtime *rt);          /* makes all takes return; join the pool's threads before pl_runtime_close */
const char *pl_task_arg(const pl_task *j, size_t *len);
pl_exchange *pl_task_exchange(const pl_task *j);
void pl_task_done(pl_task *j, const char *result, size_t len); /* pool thread; PL_EV_TASK follows */
const char *pl_task_result(const pl_task *j, size_t *len);     /* lua thread; the event's object */
void pl_task_close(pl_task *j);

/* [/cdef] */
/* clang-format on */
