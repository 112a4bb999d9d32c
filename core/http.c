/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "client.h"
#include "http_exchange.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    READ_BYTES = 65536,  /* one read */
    AHEAD_BYTES = 65536, /* read while a request is answered; then reading stops */
    LINGER_MS = 1000,    /* for the client to close after us */
    MAX_LEAVING = 64,    /* beyond max_connections: those told that we are full */
    MAX_LOCAL = 64,      /* connections of the owner's; they count apart */
    MAX_BODIES = 16,     /* times max_body: what all requests together may hold */
    BACKLOG = 1024,
    MAX_REFUSED_LINES = 20 /* of the log, a second */
};

enum {
    READING = 0,
    ANSWERING,
    DRAINING,
    LEAVING
};

typedef union any_stream {
    uv_stream_t stream;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
} any_stream;

struct pl_conn {
    any_stream h;
    uv_timer_t timer;
    uv_write_t write;
    uv_shutdown_t shutdown;
    pl_http *http;
    pl_conn *next, *prev, *next_dirty;
    pl_exchange *x; /* ANSWERING */
    pl_parser parser;
    pl_buf ahead;   /* read while ANSWERING or DRAINING */
    pl_buf out;     /* to be sent */
    pl_buf sending; /* being sent by libuv */
    int state, n_handles;
    bool dirty, writing, reading, eof, shut, closing, local;
    int64_t deadline;    /* loop time; 0: none */
    size_t last_sending; /* when the deadline for a write was set */
    char peer[64];
};

typedef struct listener {
    any_stream h;
    struct listener *next;
    char *path; /* of a local one: removed at its end */
} listener;

struct pl_http {
    pl_loop *loop;
    pl_runtime_options options;
    pl_http_limits limits;
    listener *listeners;
    pl_conn *conns, *dirty;
    int n_conns, n_local;
    int32_t last_id;
    bool stopping;
    int64_t refused_since; /* the second that n_refused is of */
    int n_refused;
    pl_http_shared shared;
    char input[READ_BYTES];
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

static void close_conn(pl_conn *c)
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
    close_conn(c);
}

void pl_conn_cut(pl_conn *c)
{
    c->x = NULL;
    close_conn(c);
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
    if (status < 0) close_conn(c);
}

/* All is sent. Who leaves says so, and waits for the other side to do the same. */
static void written(pl_conn *c)
{
    if (c->state == ANSWERING) c->deadline = 0;
    if (c->state == DRAINING) next_request(c);
    if (c->state != LEAVING || c->shut) return;
    if (c->eof) {
        close_conn(c);
        return;
    }
    c->shut = true;
    set_deadline(c, LINGER_MS);
    if (uv_shutdown(&c->shutdown, &c->h.stream, on_shut)) close_conn(c);
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

void pl_http_flush(pl_http *h)
{
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

static void refuse(pl_conn *c, int status, const char *why)
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
        refuse(c, 503, "too many requests are being handled");
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
        refuse(c, p->status, p->why);
        return;
    }
    if (!room) {
        refuse(c, 503, "the requests' bodies take too much memory");
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
    *out = uv_buf_init(c->http->input, READ_BYTES);
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
    } else if (c->state == READING) {
        feed(c, buf->base, (size_t)n);
    } else if (c->state != LEAVING) {
        pl_buf_add(&c->ahead, buf->base, (size_t)n);
        if (c->ahead.len < AHEAD_BYTES) return;
        c->reading = false;
        uv_read_stop(stream);
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
        refuse(c, 408, "the request did not arrive in time");
    } else {
        lose(c);
    }
}

/* ---- accepting --------------------------------------------------------------------- */

static void name_peer(pl_conn *c)
{
    struct sockaddr_storage a;
    int len = sizeof a;
    char ip[INET6_ADDRSTRLEN] = "?";
    if (uv_tcp_getpeername(&c->h.tcp, (struct sockaddr *)&a, &len)) return;
    if (a.ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&a;
        uv_ip6_name(v6, ip, sizeof ip);
        snprintf(c->peer, sizeof c->peer, "[%s]:%d", ip, ntohs(v6->sin6_port));
    } else {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)&a;
        uv_ip4_name(v4, ip, sizeof ip);
        snprintf(c->peer, sizeof c->peer, "%s:%d", ip, ntohs(v4->sin_port));
    }
}

/* Whether it is the owner's, or root's; the folder lets in nobody else either. */
static bool is_owner(pl_conn *c)
{
    struct ucred who;
    socklen_t len = sizeof who;
    uv_os_fd_t fd;
    if (uv_fileno((uv_handle_t *)&c->h, &fd) ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len))
        return false;
    snprintf(c->peer, sizeof c->peer, "process %d of user %u", (int)who.pid,
             (unsigned)who.uid);
    return who.uid == geteuid() || who.uid == 0;
}

static pl_conn *open_conn(pl_http *h, bool local)
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

static bool has_room(const pl_conn *c)
{
    const pl_http *h = c->http;
    return c->local ? h->n_local <= MAX_LOCAL
                    : h->n_conns <= h->options.max_connections + MAX_LEAVING;
}

static void on_connection(uv_stream_t *server, int status)
{
    pl_http *h = server->data;
    if (status < 0) {
        pl_log(PL_LOG_WARN, "a connection could not be accepted: %s",
               uv_strerror(status));
        return;
    }
    pl_conn *c = open_conn(h, server->type == UV_NAMED_PIPE);
    if (uv_accept(server, &c->h.stream) || !has_room(c) || (c->local && !is_owner(c))) {
        close_conn(c);
        return;
    }
    uv_update_time(c->h.stream.loop); /* the round may have been long */
    if (!c->local) {
        uv_tcp_nodelay(&c->h.tcp, 1);
        uv_tcp_keepalive(&c->h.tcp, 1, 60);
        name_peer(c);
        if (h->n_conns > h->options.max_connections) {
            refuse(c, 503, "too many connections");
            return;
        }
    }
    set_deadline(c, h->options.idle_timeout_ms);
    read_on(c);
}

typedef struct listening {
    pl_http *http;
    struct sockaddr_storage address;
    int result;
} listening;

static int port_of(const uv_tcp_t *tcp)
{
    struct sockaddr_storage a;
    int len = sizeof a;
    int bad = uv_tcp_getsockname(tcp, (struct sockaddr *)&a, &len);
    if (bad) return bad;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

static void free_listener(uv_handle_t *handle)
{
    listener *l = (listener *)handle;
    pl_free(l->path);
    pl_free(l);
}

static void close_listener(listener *l)
{
    if (l->path) unlink(l->path);
    uv_close((uv_handle_t *)&l->h, free_listener);
}

static void add_listener(pl_http *h, listener *l)
{
    l->next = h->listeners;
    h->listeners = l;
}

static void run_listen(void *arg)
{
    listening *call = arg;
    listener *l = pl_alloc(sizeof *l);
    int bad = uv_tcp_init(pl_loop_uv(call->http->loop), &l->h.tcp);
    l->h.stream.data = call->http;
    if (!bad) bad = uv_tcp_bind(&l->h.tcp, (struct sockaddr *)&call->address, 0);
    if (!bad) bad = uv_listen(&l->h.stream, BACKLOG, on_connection);
    call->result = bad ? bad : port_of(&l->h.tcp);
    if (call->result < 0)
        close_listener(l);
    else
        add_listener(call->http, l);
}

int pl_http_listen(pl_http *h, const char *host, int port)
{
    if (port < 0 || port > 65535) return pl_fail(PL_EINVAL, "%d is not a port", port);
    char service[8];
    snprintf(service, sizeof service, "%d", port);
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
                             .ai_socktype = SOCK_STREAM},
                    *found;
    if (!host || !*host) host = "0.0.0.0";
    int bad = getaddrinfo(host, service, &hints, &found);
    if (bad)
        return pl_fail(PL_EINVAL, "'%s' is not an address to listen on: %s", host,
                       gai_strerror(bad));
    listening call = {.http = h};
    memcpy(&call.address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    pl_loop_call(h->loop, run_listen, &call);
    if (call.result < 0)
        return pl_fail(PL_EIO, "cannot listen on %s:%d: %s", host, port,
                       uv_strerror(call.result));
    return call.result;
}

typedef struct listening_local {
    pl_http *http;
    const char *path;
    int fd, result;
} listening_local;

static void run_listen_local(void *arg)
{
    listening_local *call = arg;
    listener *l = pl_alloc(sizeof *l);
    l->path = pl_strndup(call->path, strlen(call->path));
    uv_pipe_init(pl_loop_uv(call->http->loop), &l->h.pipe, 0);
    l->h.stream.data = call->http;
    call->result = uv_pipe_open(&l->h.pipe, call->fd);
    if (call->result)
        close(call->fd);
    else
        call->result = uv_listen(&l->h.stream, BACKLOG, on_connection);
    if (call->result < 0)
        close_listener(l);
    else
        add_listener(call->http, l);
}

pl_status pl_http_listen_local(pl_http *h, const char *path)
{
    int fd = pl_local_bind(path);
    if (fd < 0) return fd;
    listening_local call = {.http = h, .path = path, .fd = fd};
    pl_loop_call(h->loop, run_listen_local, &call);
    if (call.result < 0)
        return pl_fail(PL_EIO, "cannot listen at '%s': %s", path,
                       uv_strerror(call.result));
    return PL_OK;
}

/* ---- life -------------------------------------------------------------------------- */

pl_http *pl_http_open(pl_loop *loop, const pl_runtime_options *options)
{
    pl_http *h = pl_alloc(sizeof *h);
    h->loop = loop;
    h->options = *options;
    h->limits = (pl_http_limits){options->max_body, options->max_header_bytes,
                                 options->max_headers};
    return h;
}

static void close_listeners(pl_http *h, bool local_too)
{
    for (listener **at = &h->listeners; *at;) {
        listener *l = *at;
        if (l->path && !local_too) {
            at = &l->next;
            continue;
        }
        *at = l->next;
        close_listener(l);
    }
}

static void run_unlisten(void *arg)
{
    pl_http *h = arg;
    close_listeners(h, false);
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
    h->stopping = true;
    close_listeners(h, true);
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
