/* SPDX-License-Identifier: Apache-2.0
 *
 * runtime.c - the io thread with all that lives on it, and what Lua polls.
 *
 * Owns     the loop, the server, the streams, the jobs; which engines are attached.
 * Ignores  how any of them works.
 * Thread   lua, but for what says otherwise.
 *
 * The runtime's memory lasts until its last exchange, stream and job is given back: those
 * that Lua still holds when it closes the runtime are dead, but may be asked and closed.
 */
#include "job.h"

#include <string.h>

struct pl_runtime {
    pl_loop *loop;
    pl_http *http;
    pl_jobs *jobs;
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
    pl_http_stop(rt->http);
}

static void on_last(void *ctx)
{
    pl_runtime *rt = ctx;
    pl_jobs_close(rt->jobs);
    pl_http_close(rt->http);
    pl_free(rt);
}

static pl_status check(const pl_runtime_options *o)
{
    if (o->max_body < 0 || o->max_connections < 1 || o->max_header_bytes < 1 || o->max_headers < 1 ||
        o->idle_timeout_ms < 1 || o->request_timeout_ms < 1 || o->max_pending_write < 1)
        return pl_fail(PL_EINVAL, "a limit of the runtime is below 1");
    if (o->max_connections > 1 << 20) return pl_fail(PL_EINVAL, "%d connections are too many", o->max_connections);
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
    rt->jobs = pl_jobs_open(rt->loop);
    return rt;
}

void pl_runtime_close(pl_runtime *rt)
{
    if (!rt) return;
    pl_jobs_stop(rt->jobs);
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

/* ---- jobs ---------------------------------------------------------------------------- */

int32_t pl_job_push(pl_runtime *rt, pl_exchange *x, const char *arg, size_t len)
{
    return pl_jobs_push(rt->jobs, x, arg, len);
}

pl_job *pl_job_take(pl_runtime *rt, int timeout_ms)
{
    return pl_jobs_take(rt->jobs, timeout_ms);
}

int pl_job_closing(const pl_runtime *rt)
{
    return pl_jobs_stopped(rt->jobs);
}

void pl_job_stop(pl_runtime *rt)
{
    pl_jobs_stop(rt->jobs);
}
