/* SPDX-License-Identifier: Apache-2.0 */
#include "http_own.h"

#include <string.h>

enum {
    AHEAD_BYTES = 65536,   /* read while a request is answered; then reading stops */
    LINGER_MS = 1000,      /* for the client to close after us */
    MAX_BODIES = 16,       /* times max_body: what all requests together may hold */
    MAX_REFUSED_LINES = 20 /* of the log, a second */
};

/* ---- deadlines: one timer a connection, moved only when it fires too early --------- */

static void on_deadline(uv_timer_t *timer);

static int64_t now_of(const pl_conn *c)
{
    return (int64_t)uv_now(c->h.stream.loop);
}

static void set_deadline(pl_conn *c, int64_t ms)
{
    c->deadline = now_of(c) + ms;
    if (uv_is_active((uv_handle_t *)&c->timer) &&
        (int64_t)uv_timer_get_due_in(&c->timer) <= ms)
        return;
    uv_timer_start(&c->timer, on_deadline, (uint64_t)ms, 0);
}

static int64_t write_ms(const pl_conn *c)
{
    return c->http->stopping ? LINGER_MS : c->http->options.request_timeout_ms;
}

static size_t n_sending(const pl_conn *c)
{
    return c->writing ? uv_stream_get_write_queue_size(&c->h.stream) : 0;
}

/* ---- closing ----------------------------------------------------------------------- */

static void on_closed(uv_handle_t *handle)
{
    pl_conn *c = handle->data;
    if (--c->n_handles) return;
    atomic_fetch_sub(&c->http->shared.body_bytes, (long long)c->parser.request.body.len);
    pl_parser_fini(&c->parser);
    pl_buf_fini(&c->ahead);
    pl_buf_fini(&c->out);
    pl_buf_fini(&c->sending);
    pl_free(c);
}

static void remove_dirty(pl_conn *c)
{
    for (pl_conn **at = &c->http->dirty; *at; at = &(*at)->next_dirty) {
        if (*at != c) continue;
        *at = c->next_dirty;
        break;
    }
    c->dirty = false;
}

void pl_conn_close(pl_conn *c)
{
    if (c->closing) return;
    c->closing = true;
    if (c->dirty) remove_dirty(c);
    if (c->prev)
        c->prev->next = c->next;
    else
        c->http->conns = c->next;
    if (c->next) c->next->prev = c->prev;
    if (c->local)
        c->http->n_local--;
    else
        c->http->n_conns--;
    uv_close((uv_handle_t *)&c->h, on_closed);
    uv_close((uv_handle_t *)&c->timer, on_closed);
}

static void lose(pl_conn *c)
{
    pl_exchange *x = c->x;
    c->x = NULL;
    if (x) pl_exchange_lost(x);
    pl_conn_close(c);
}

void pl_conn_cut(pl_conn *c)
{
    c->x = NULL;
    pl_conn_close(c);
}

/* ---- writing ----------------------------------------------------------------------- */

static void flush(pl_conn *c);
static void next_request(pl_conn *c);

pl_buf *pl_conn_out(pl_conn *c)
{
    if (!c->dirty) {
        c->dirty = true;
        c->next_dirty = c->http->dirty;
        c->http->dirty = c;
    }
    return &c->out;
}

static void on_shut(uv_shutdown_t *req, int status)
{
    pl_conn *c = req->data;
    if (status < 0) pl_conn_close(c);
}

/* All is sent. Who leaves says so, and waits for the other side to do the same. */
static void written(pl_conn *c)
{
    if (c->state == ANSWERING) {
        c->deadline = 0;
        pl_exchange_drained(c->x);
    }
    if (c->state == DRAINING) next_request(c);
    if (c->state != LEAVING || c->shut) return;
    if (c->eof) {
        pl_conn_close(c);
        return;
    }
    c->shut = true;
    set_deadline(c, LINGER_MS);
    if (uv_shutdown(&c->shutdown, &c->h.stream, on_shut)) pl_conn_close(c);
}

static void on_written(uv_write_t *req, int status)
{
    pl_conn *c = req->data;
    c->writing = false;
    c->sending.len = 0;
    if (c->closing) return;
    if (status < 0) {
        lose(c);
        return;
    }
    if (c->out.len)
        flush(c);
    else
        written(c);
}

static void send_rest(pl_conn *c, size_t sent)
{
    pl_buf spare = c->sending;
    c->sending = c->out;
    c->out = spare;
    uv_buf_t rest =
        uv_buf_init(c->sending.data + sent, (unsigned)(c->sending.len - sent));
    c->writing = true;
    c->last_sending = rest.len;
    set_deadline(c, write_ms(c));
    if (uv_write(&c->write, &c->h.stream, &rest, 1, on_written)) {
        c->writing = false;
        lose(c);
    }
}

static size_t unsent(const pl_conn *c)
{
    return c->out.len + n_sending(c);
}

static void flush(pl_conn *c)
{
    if (c->closing) return;
    if (!c->writing && c->out.len) {
        uv_buf_t all = uv_buf_init(c->out.data, (unsigned)c->out.len);
        int n = uv_try_write(&c->h.stream, &all, 1);
        if (n < 0 && n != UV_EAGAIN) {
            lose(c);
            return;
        }
        if (n == (int)c->out.len) {
            c->out.len = 0;
            written(c);
            return;
        }
        send_rest(c, n > 0 ? (size_t)n : 0);
    }
    /* A whole answer may be any size; one that grows must be read as it grows. */
    if (c->closing || c->state != ANSWERING ||
        (int64_t)unsent(c) <= c->http->options.max_pending_write)
        return;
    pl_log(PL_LOG_WARN, "%s reads too slowly: %zu bytes unsent", c->peer, unsent(c));
    lose(c);
}

size_t pl_conn_flush(pl_conn *c)
{
    flush(c);
    return c->closing ? 0 : unsent(c);
}

void pl_http_flush(pl_http *h)
{
    PL_ON(IO);
    while (h->dirty) {
        pl_conn *c = h->dirty;
        h->dirty = c->next_dirty;
        c->dirty = false;
        flush(c);
    }
}

/* ---- requests ---------------------------------------------------------------------- */

static void feed(pl_conn *c, const char *data, size_t len);
static void read_on(pl_conn *c);

static void leave(pl_conn *c)
{
    c->state = LEAVING;
    c->ahead.len = 0;
    read_on(c); /* so that its close is seen */
    pl_conn_out(c);
    if (!c->out.len && !c->writing)
        written(c);
    else
        set_deadline(c, write_ms(c));
}

/* What is no request costs its sender nothing, so lines about it have a bound. */
static void log_refusal(pl_conn *c, int status, const char *why)
{
    pl_http *h = c->http;
    int64_t now = now_of(c);
    if (now - h->refused_since >= 1000) {
        if (h->n_refused > MAX_REFUSED_LINES)
            pl_log(PL_LOG_INFO, "%d more requests were refused",
                   h->n_refused - MAX_REFUSED_LINES);
        h->refused_since = now;
        h->n_refused = 0;
    }
    if (h->n_refused++ < MAX_REFUSED_LINES)
        pl_log(PL_LOG_INFO, "%s - refused: %s: %d", c->peer, why, status);
}

void pl_conn_refuse(pl_conn *c, int status, const char *why)
{
    pl_exchange_answer_error(pl_conn_out(c), status, why,
                             c->parser.llhttp.method == HTTP_HEAD);
    log_refusal(c, status, why);
    leave(c);
    flush(c);
}

/* Whether all bodies together stay within their bound. */
static bool hold_body(pl_conn *c, long long more)
{
    pl_http *h = c->http;
    long long before = atomic_fetch_add(&h->shared.body_bytes, more);
    return before + more <= MAX_BODIES * h->options.max_body;
}

/* Whether it asks how this process is: who asks must hear that Lua does not answer. */
static bool is_probe(const pl_request *r)
{
    static const char *const paths[] = {"/health", "/live", "/ping"};
    const char *path = r->head.data + r->path;
    for (int i = 0; i < PL_COUNT(paths); i++)
        if (strcmp(path, paths[i]) == 0) return true;
    return false;
}

static bool answer_for_lua(pl_conn *c)
{
    char why[PL_STALL_TEXT];
    if (c->local || !is_probe(&c->parser.request) ||
        !pl_loop_stalled(c->http->loop, why, sizeof why))
        return false;
    pl_buf body = {0};
    pl_buf_add_str(&body, "{\"status\":\"unhealthy\",\"message\":\"");
    pl_buf_add_json(&body, why, strlen(why));
    pl_buf_add_str(&body, "\"}");
    pl_exchange_answer(pl_conn_out(c), 503, &body, c->parser.llhttp.method == HTTP_HEAD);
    pl_buf_fini(&body);
    leave(c);
    flush(c);
    return true;
}

static void begin_exchange(pl_conn *c)
{
    pl_http *h = c->http;
    if (answer_for_lua(c)) return;
    if (!c->local &&
        atomic_load(&h->shared.n_exchanges) >= 2 * h->options.max_connections) {
        pl_conn_refuse(c, 503, "too many requests are being handled");
        return;
    }
    h->last_id = h->last_id == INT32_MAX ? 1 : h->last_id + 1;
    c->x =
        pl_exchange_open(h->loop, &h->shared, c, &c->parser.request, h->last_id, c->peer);
    c->x->local = c->local;
    c->state = ANSWERING;
    c->deadline = 0;
    pl_parser_reset(&c->parser);
    pl_loop_tell(h->loop, &c->x->request_news);
}

static void feed(pl_conn *c, const char *data, size_t len)
{
    pl_parser *p = &c->parser;
    bool started = p->started;
    size_t body = p->request.body.len;
    size_t n = pl_parser_feed(p, data, len);
    bool room = hold_body(c, (long long)(p->request.body.len - body));
    if (!started && p->started) set_deadline(c, c->http->options.request_timeout_ms);
    if (p->phase == PL_PARSE_BAD) {
        pl_conn_refuse(c, p->status, p->why);
        return;
    }
    if (!room) {
        pl_conn_refuse(c, 503, "the requests' bodies take too much memory");
        return;
    }
    if (p->phase == PL_PARSE_DONE) {
        begin_exchange(c);
        if (c->state == ANSWERING) pl_buf_add(&c->ahead, data + n, len - n);
    } else if (p->wants_continue) {
        p->wants_continue = false;
        pl_buf_add_str(pl_conn_out(c), "HTTP/1.1 100 Continue\r\n\r\n");
        flush(c);
    }
}

/* The answer before is sent: who does not read its answers gets no further ones. */
static void next_request(pl_conn *c)
{
    c->state = READING;
    set_deadline(c, c->http->options.idle_timeout_ms);
    if (c->ahead.len) {
        pl_buf ahead = c->ahead;
        c->ahead = (pl_buf){0};
        feed(c, ahead.data, ahead.len);
        pl_buf_fini(&ahead);
    }
    read_on(c);
}

void pl_conn_answered(pl_conn *c, bool keep_alive)
{
    c->x = NULL;
    if (keep_alive) {
        c->state = DRAINING;
        if (c->out.len)
            flush(c);
        else if (!c->writing)
            next_request(c);
    } else {
        leave(c);
    }
}

/* ---- reading ----------------------------------------------------------------------- */

static void on_alloc(uv_handle_t *handle, size_t size, uv_buf_t *out)
{
    (void)size;
    pl_conn *c = handle->data;
    *out = uv_buf_init(c->http->input, PL_READ_BYTES);
}

/* What the client said, in plain text. With TLS, this is what comes out of it; what goes
 * into it is c->out, which flush sends. */
static void received(pl_conn *c, const char *data, size_t len)
{
    if (c->state == READING) {
        feed(c, data, len);
    } else if (c->state != LEAVING) {
        pl_buf_add(&c->ahead, data, len);
        if (c->ahead.len < AHEAD_BYTES) return;
        c->reading = false;
        uv_read_stop(&c->h.stream);
    }
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    pl_conn *c = stream->data;
    if (n == 0) return;
    if (n == UV_EOF && !c->x && unsent(c)) {
        c->eof = true; /* its answer is on its way: let it have that */
        c->state = LEAVING;
        c->reading = false;
        uv_read_stop(stream);
        set_deadline(c, write_ms(c));
    } else if (n < 0) {
        lose(c);
    } else {
        received(c, buf->base, (size_t)n);
    }
}

static void read_on(pl_conn *c)
{
    if (c->reading || c->eof || c->closing || c->ahead.len >= AHEAD_BYTES) return;
    c->reading = true;
    if (uv_read_start(&c->h.stream, on_alloc, on_read)) lose(c);
}

static void on_deadline(uv_timer_t *timer)
{
    pl_conn *c = timer->data;
    int64_t left = c->deadline - now_of(c);
    if (!c->deadline) return;
    if (left > 0) {
        uv_timer_start(timer, on_deadline, (uint64_t)left, 0);
    } else if (n_sending(c) < c->last_sending && !c->http->stopping) {
        c->last_sending = n_sending(c); /* slow, but it reads */
        set_deadline(c, write_ms(c));
    } else if (c->state == READING && c->parser.started && !c->writing) {
        pl_conn_refuse(c, 408, "the request did not arrive in time");
    } else {
        lose(c);
    }
}

/* ---- life -------------------------------------------------------------------------- */

pl_conn *pl_conn_open(pl_http *h, bool local)
{
    pl_conn *c = pl_alloc(sizeof *c);
    c->http = h;
    c->local = local;
    c->n_handles = 2;
    if (local)
        uv_pipe_init(pl_loop_uv(h->loop), &c->h.pipe, 0);
    else
        uv_tcp_init(pl_loop_uv(h->loop), &c->h.tcp);
    uv_timer_init(pl_loop_uv(h->loop), &c->timer);
    c->h.stream.data = c->timer.data = c->write.data = c->shutdown.data = c;
    pl_parser_init(&c->parser, &h->limits);
    c->next = h->conns;
    if (c->next) c->next->prev = c;
    h->conns = c;
    if (local)
        h->n_local++;
    else
        h->n_conns++;
    return c;
}

void pl_conn_begin(pl_conn *c)
{
    set_deadline(c, c->http->options.idle_timeout_ms);
    read_on(c);
}

pl_http *pl_http_open(pl_loop *loop, const pl_runtime_options *options)
{
    pl_http *h = pl_alloc(sizeof *h);
    h->loop = loop;
    h->options = *options;
    h->limits = (pl_http_limits){options->max_body, options->max_header_bytes,
                                 options->max_headers};
    return h;
}

static void run_unlisten(void *arg)
{
    pl_http *h = arg;
    pl_http_close_listeners(h, false);
    atomic_store(&h->shared.closing, true);
    for (pl_conn *c = h->conns, *next; c; c = next) {
        next = c->next;
        if (c->state == READING && !c->parser.started) leave(c);
    }
}

void pl_http_unlisten(pl_http *h)
{
    pl_loop_call(h->loop, run_unlisten, h);
}

void pl_http_stop(pl_http *h)
{
    PL_ON(IO);
    h->stopping = true;
    pl_http_close_listeners(h, true);
    for (pl_conn *c = h->conns, *next; c; c = next) {
        next = c->next;
        if (c->out.len && !c->writing) flush(c);
        if (c->closing) continue;
        if (c->x || !unsent(c)) {
            lose(c);
            continue;
        }
        leave(c);
        set_deadline(c, LINGER_MS);
    }
}

void pl_http_close(pl_http *h)
{
    pl_free(h);
}
