/* SPDX-License-Identifier: Apache-2.0
 *
 * runtime.c - the io thread with all that lives on it, and what Lua polls.
 *
 * Owns     the loop, the server, the streams, the tasks, the bus; which engines are
 *          attached.
 * Ignores  how any of them works.
 * Thread   lua, but for what says otherwise.
 *
 * The runtime's memory lasts until its last exchange, stream and task is given back: those
 * that Lua still holds when it closes the runtime are dead, but may be asked and closed.
 */
#include "course.h"
#include "relay.h"
#include "task.h"
#include "remote.h"
#include "stream.h"
#include "xfer.h"

#include <string.h>

/* Steps that io has not seen yet. An engine so far ahead waits: io is the faster one, so
 * this is a stall of the whole machine, and what is in line must be bounded. */
enum {
    MAX_BATCHES = 1024
};

typedef struct attached {
    struct attached *next;
    pl_runtime *rt;
    pl_engine *engine;
    pl_mutex lock;
    int n_batches;
} attached;

typedef struct batch_note {
    pl_note note;
    attached *from;
    pl_token_batch *batch;
} batch_note;

struct pl_runtime {
    pl_loop *loop;
    pl_http *http;
    pl_xfer *xfer;
    pl_courses *courses;
    pl_streams *streams;
    pl_relays *relays;
    pl_tasks *tasks;
    pl_remote *remote;
    attached *engines;
};

void pl_runtime_options_init(pl_runtime_options *o)
{
    *o = (pl_runtime_options){
        .max_body = 64 << 20,
        .max_connections = 4096,
        .max_header_bytes = 32768,
        .max_headers = 256,
        .idle_timeout_ms = 75000,
        .request_timeout_ms = 30000,
        .max_pending_write = 4 << 20,
    };
}

static void on_round(void *ctx)
{
    pl_runtime *rt = ctx;
    pl_http_flush(rt->http);
}

static void on_stop(void *ctx)
{
    pl_runtime *rt = ctx;
    pl_streams_stop(rt->streams);
    pl_relays_stop(rt->relays);
    pl_http_stop(rt->http);
    pl_remote_stop(rt->remote);
    pl_xfer_stop(rt->xfer);
}

static void on_last(void *ctx)
{
    pl_runtime *rt = ctx;
    pl_tasks_close(rt->tasks);
    pl_remote_close(rt->remote);
    pl_streams_close(rt->streams);
    pl_relays_close(rt->relays);
    pl_courses_close(rt->courses);
    pl_xfer_close(rt->xfer);
    pl_http_close(rt->http);
    pl_free(rt);
}

static pl_status check(const pl_runtime_options *o)
{
    if (o->max_body < 0 || o->max_connections < 1 || o->max_header_bytes < 1 ||
        o->max_headers < 1 || o->idle_timeout_ms < 1 || o->request_timeout_ms < 1 ||
        o->max_pending_write < 1)
        return pl_fail(PL_EINVAL, "a limit of the runtime is below 1");
    if (o->max_connections > 1 << 20)
        return pl_fail(PL_EINVAL, "%d connections are too many", o->max_connections);
    return PL_OK;
}

pl_runtime *pl_runtime_open(const pl_runtime_options *options)
{
    pl_runtime_options o;
    pl_runtime_options_init(&o);
    if (options) o = *options;
    if (check(&o) < 0) return NULL;
    pl_runtime *rt = pl_alloc(sizeof *rt);
    rt->loop = pl_loop_open(&(pl_loop_hooks){rt, on_round, on_stop, on_last});
    if (!rt->loop) {
        pl_free(rt);
        return NULL;
    }
    rt->http = pl_http_open(rt->loop, &o);
    rt->xfer = pl_xfer_open(rt->loop);
    rt->courses = pl_courses_open(rt->xfer);
    rt->streams = pl_streams_open(rt->loop, rt->courses);
    rt->relays = pl_relays_open(rt->loop);
    rt->tasks = pl_tasks_open(rt->loop);
    rt->remote = pl_remote_open(rt->loop, rt->courses, rt->xfer);
    return rt;
}

/* ---- engines ----------------------------------------------------------------------- */

static void run_batch(pl_note *note)
{
    batch_note *b = (batch_note *)note;
    attached *a = b->from;
    const pl_token_batch *batch = b->batch;
    for (int i = 0; i < batch->n_started; i++)
        pl_remote_started(a->rt->remote, batch->started[i], batch->began_ns);
    for (int i = 0; i < batch->n; i++)
        pl_remote_token(a->rt->remote, &batch->tokens[i], batch->ended_ns);
    pl_remote_batch_end(a->rt->remote);
    pl_xfer_step(a->rt->xfer, a->engine, batch);
    pl_token_batch_put(b->batch);
    pl_free(b);
    pl_lock(&a->lock);
    if (a->n_batches-- == MAX_BATCHES) pl_wake(&a->lock);
    pl_unlock(&a->lock);
}

/* On the step's thread. */
static void sink(void *ctx, pl_token_batch *batch)
{
    attached *a = ctx;
    pl_lock(&a->lock);
    while (a->n_batches == MAX_BATCHES) pl_wait(&a->lock, 1000);
    a->n_batches++;
    pl_unlock(&a->lock);
    batch_note *b = pl_alloc(sizeof *b);
    *b = (batch_note){.note.run = run_batch, .from = a, .batch = batch};
    pl_loop_post(a->rt->loop, &b->note);
}

static void run_forget(void *arg)
{
    attached *a = arg;
    pl_remote_forget(a->rt->remote, a->engine);
    pl_courses_forget(a->rt->courses, a->engine);
    pl_xfer_forget(a->rt->xfer, a->engine);
}

static void detach(attached *a)
{
    pl_engine_stop(a->engine);
    pl_loop_call(a->rt->loop, run_forget, a); /* io has seen its last batch */
    pl_mutex_fini(&a->lock);
    pl_free(a);
}

pl_status pl_runtime_attach(pl_runtime *rt, pl_engine *e)
{
    attached *a = pl_alloc(sizeof *a);
    *a = (attached){.next = rt->engines, .rt = rt, .engine = e};
    pl_mutex_init(&a->lock);
    pl_status status = pl_engine_start(e, sink, a);
    if (status == PL_OK) {
        rt->engines = a;
        return PL_OK;
    }
    pl_mutex_fini(&a->lock);
    pl_free(a);
    return status;
}

void pl_runtime_detach(pl_runtime *rt, pl_engine *e)
{
    for (attached **at = &rt->engines; *at; at = &(*at)->next) {
        attached *a = *at;
        if (a->engine != e) continue;
        *at = a->next;
        detach(a);
        return;
    }
}

pl_stream *pl_stream_open(pl_runtime *rt, const pl_text *text, int mode, pl_exchange *x)
{
    if (mode < PL_STREAM_SSE || mode > PL_STREAM_WHOLE || (mode == PL_STREAM_SSE && !x)) {
        pl_fail(PL_EINVAL, "mode %d is unknown, or needs an exchange", mode);
        return NULL;
    }
    return pl_streams_make(rt->streams, text, mode, x);
}

pl_status pl_relay_trust(pl_runtime *rt, const char *ca)
{
    return pl_relays_trust(rt->relays, ca);
}

pl_relay *pl_relay_open(pl_runtime *rt, pl_exchange *x)
{
    return pl_relays_make(rt->relays, x);
}

/* ---- life -------------------------------------------------------------------------- */

void pl_runtime_close(pl_runtime *rt)
{
    if (!rt) return;
    pl_tasks_stop(rt->tasks);
    while (rt->engines) pl_runtime_detach(rt, rt->engines->engine);
    pl_loop_stop(rt->loop);
    pl_loop_put(rt->loop);
}

int pl_poll(pl_runtime *rt, pl_event *out, int max, int timeout_ms)
{
    return pl_loop_poll(rt->loop, out, max, timeout_ms);
}

int pl_listen(pl_runtime *rt, const char *host, int port)
{
    return pl_http_listen(rt->http, host, port);
}

pl_status pl_listen_local(pl_runtime *rt, const char *path)
{
    return pl_http_listen_local(rt->http, path);
}

void pl_doing(pl_runtime *rt, const char *what)
{
    pl_loop_doing(rt->loop, what);
}

void pl_unlisten(pl_runtime *rt)
{
    pl_http_unlisten(rt->http);
}

/* ---- tasks -------------------------------------------------------------------------- */

int32_t pl_task_push(pl_runtime *rt, pl_exchange *x, const char *arg, size_t len)
{
    return pl_tasks_push(rt->tasks, x, arg, len);
}

pl_task *pl_task_take(pl_runtime *rt, int timeout_ms)
{
    return pl_tasks_take(rt->tasks, timeout_ms);
}

int pl_task_closing(const pl_runtime *rt)
{
    return pl_tasks_stopped(rt->tasks);
}

void pl_task_stop(pl_runtime *rt)
{
    pl_tasks_stop(rt->tasks);
}

/* ---- bus --------------------------------------------------------------------------- */

pl_status pl_bus_open(pl_runtime *rt, const pl_bus_options *options)
{
    return pl_remote_join(rt->remote, options);
}

const char *pl_bus_id(const pl_runtime *rt)
{
    return pl_remote_id(rt->remote);
}

void pl_bus_hello(pl_runtime *rt, const char *json, size_t len)
{
    pl_remote_hello(rt->remote, json, len);
}

void pl_bus_leave(pl_runtime *rt)
{
    pl_remote_hello(rt->remote, NULL, 0);
}

void pl_bus_serve(pl_runtime *rt, int index, pl_engine *e)
{
    pl_remote_serve(rt->remote, index, e);
}

pl_status pl_peer_hello(pl_runtime *rt, int32_t peer, pl_buf *out)
{
    return pl_remote_peer(rt->remote, peer, out);
}

pl_status pl_peer_stats(pl_runtime *rt, int32_t peer, int index, pl_engine_stats *out)
{
    return pl_remote_stats(rt->remote, peer, index, out);
}

pl_status pl_route_follow_peer(pl_route *x, int worker, pl_runtime *rt, int32_t peer,
                               int index)
{
    return pl_remote_follow(rt->remote, x, worker, peer, index);
}

int32_t pl_call_send(pl_runtime *rt, int32_t peer, const char *text, size_t len,
                     int timeout_ms)
{
    return pl_remote_call(rt->remote, peer, text, len, timeout_ms);
}
