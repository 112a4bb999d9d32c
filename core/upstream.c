/* SPDX-License-Identifier: Apache-2.0 */
#include "upstream.h"

#include "tls.h"

#include <llhttp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum {
    INPUT_BYTES = 65536, /* one read */
    MAX_HEAD = 65536,    /* of an answer, trailers included */
    MAX_KEPT = 256,      /* connections that wait for a request */
    KEPT_MS = 4000       /* uvicorn closes them after 5 s */
};

typedef enum up_state {
    LOOKUP,
    CONNECT,
    SHAKE,
    ASK,
    KEPT
} up_state;

typedef struct sending { /* bytes that libuv sends */
    uv_write_t write;
    pl_up_conn *conn;
    pl_buf bytes;
} sending;

struct pl_up_conn {
    uv_tcp_t tcp;
    uv_timer_t timer;
    uv_getaddrinfo_t lookup;
    uv_connect_t connect;
    pl_upstream *upstream;
    pl_up_conn *next, *prev;
    pl_ask *ask;
    char host[256];
    int port;
    struct addrinfo *addresses, *address; /* of the lookup; the one being tried */
    struct sockaddr_storage literal;
    up_state state;
    bool reused, closing, looking, reading, heard;
    int n_handles, n_sending;
    int64_t deadline; /* loop time; 0: none */
    pl_tls *tls;      /* NULL: in plain text */
    llhttp_t parser;
    size_t head_bytes;
    bool complete;
};

struct pl_upstream {
    pl_loop *loop;
    pl_trust *trust; /* NULL: no TLS */
    pl_up_conn *conns;
    int n_kept;
    bool stopped;
    char input[INPUT_BYTES];
};

/* ---- closing ----------------------------------------------------------------------- */

static void free_conn(pl_up_conn *c)
{
    if (c->n_handles || c->looking) return;
    if (c->addresses) uv_freeaddrinfo(c->addresses);
    pl_tls_close(c->tls);
    pl_free(c);
}

static void on_closed(uv_handle_t *handle)
{
    pl_up_conn *c = handle->data;
    c->n_handles--;
    free_conn(c);
}

static void close_conn(pl_up_conn *c)
{
    if (c->closing) return;
    c->closing = true;
    if (c->state == KEPT) c->upstream->n_kept--;
    if (c->prev)
        c->prev->next = c->next;
    else
        c->upstream->conns = c->next;
    if (c->next) c->next->prev = c->prev;
    if (c->looking) uv_cancel((uv_req_t *)&c->lookup);
    uv_close((uv_handle_t *)&c->tcp, on_closed);
    uv_close((uv_handle_t *)&c->timer, on_closed);
}

static void begin(pl_upstream *u, pl_ask *a, bool fresh);

/* The connection is of no use any more. */
static void fail(pl_up_conn *c, pl_status status, const char *why)
{
    pl_ask *a = c->ask;
    bool again = a && c->reused && !c->heard && status == PL_EIO;
    c->ask = NULL;
    close_conn(c);
    if (!a) return;
    a->conn = NULL;
    if (again)
        begin(c->upstream, a, true);
    else
        a->hooks->over(a, status, why);
}

static void fail_uv(pl_up_conn *c, const char *what, int code)
{
    char why[160];
    snprintf(why, sizeof why, "%s: %s", what, uv_strerror(code));
    fail(c, PL_EIO, why);
}

/* ---- deadlines: one timer a connection, moved only when it fires too early --------- */

static void on_deadline(uv_timer_t *timer)
{
    static const char *const whys[] = {"its name was not resolved in time",
                                       "it cannot be reached: no answer in time",
                                       "its part of TLS did not come in time"};
    pl_up_conn *c = timer->data;
    int64_t left = c->deadline - (int64_t)uv_now(timer->loop);
    if (!c->deadline) return;
    if (left > 0)
        uv_timer_start(timer, on_deadline, (uint64_t)left, 0);
    else if (c->state < ASK)
        fail(c, PL_ETIMEOUT, whys[c->state]);
    else
        fail(c, PL_ETIMEOUT,
             c->heard ? "nothing more of its answer came in time"
                      : "its answer did not begin in time");
}

static void set_deadline(pl_up_conn *c, int64_t ms)
{
    c->deadline = (int64_t)uv_now(c->tcp.loop) + ms;
    if (uv_is_active((uv_handle_t *)&c->timer) &&
        (int64_t)uv_timer_get_due_in(&c->timer) <= ms)
        return;
    uv_timer_start(&c->timer, on_deadline, (uint64_t)ms, 0);
}

/* ---- answers ----------------------------------------------------------------------- */

static int add_head(pl_up_conn *c, const char *at, size_t len)
{
    c->head_bytes += len;
    if (c->head_bytes > MAX_HEAD) return HPE_USER;
    pl_buf_add(&c->ask->fields, at, len);
    return 0;
}

static int on_field(llhttp_t *l, const char *at, size_t len)
{
    pl_up_conn *c = l->data;
    pl_buf *fields = &c->ask->fields;
    size_t from = fields->len;
    if (add_head(c, at, len)) return HPE_USER;
    for (size_t i = from; i < fields->len; i++)
        if (fields->data[i] >= 'A' && fields->data[i] <= 'Z') fields->data[i] |= 0x20;
    return 0;
}

static int on_value(llhttp_t *l, const char *at, size_t len)
{
    return add_head(l->data, at, len);
}

static int on_part(llhttp_t *l)
{
    pl_up_conn *c = l->data;
    return add_head(c, "", 1);
}

/* With 1xx it is not the answer yet. */
static int on_head(llhttp_t *l)
{
    pl_up_conn *c = l->data;
    c->ask->status = l->status_code;
    if (l->status_code == 101) return -1;
    l->upgrade = 0;
    if (l->status_code >= 200) c->ask->hooks->head(c->ask);
    return c->ask ? 0 : -1;
}

static int on_body(llhttp_t *l, const char *at, size_t len)
{
    pl_up_conn *c = l->data;
    if (c->ask) c->ask->hooks->body(c->ask, at, len);
    return c->ask ? 0 : HPE_USER;
}

static int on_complete(llhttp_t *l)
{
    pl_up_conn *c = l->data;
    if (l->status_code < 200) {
        c->ask->fields.len = 0;
        return 0;
    }
    c->complete = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_header_field = on_field,
    .on_header_field_complete = on_part,
    .on_header_value = on_value,
    .on_header_value_complete = on_part,
    .on_headers_complete = on_head,
    .on_body = on_body,
    .on_message_complete = on_complete,
};

static void keep(pl_up_conn *c)
{
    c->state = KEPT;
    c->upstream->n_kept++;
    set_deadline(c, KEPT_MS);
}

/* All of the answer is there; `more`: and bytes that belong to none. */
static void answered(pl_up_conn *c, bool more)
{
    pl_ask *a = c->ask;
    pl_upstream *u = c->upstream;
    c->ask = NULL;
    a->conn = NULL;
    if (more || c->n_sending || u->stopped || u->n_kept >= MAX_KEPT ||
        !llhttp_should_keep_alive(&c->parser))
        close_conn(c);
    else
        keep(c);
    a->hooks->over(a, PL_OK, "");
}

static void received(pl_up_conn *c, const char *data, size_t len)
{
    if (c->state == KEPT) { /* nobody asked */
        close_conn(c);
        return;
    }
    c->heard = true;
    if (!c->ask->paused) set_deadline(c, c->ask->between_ms);
    int code = llhttp_execute(&c->parser, data, len);
    if (c->ask) c->ask->hooks->rest(c->ask);
    if (!c->ask) return; /* it was dropped, and the connection with it */
    if (c->complete) {
        answered(c, llhttp_get_error_pos(&c->parser) != data + len);
    } else if (code != HPE_OK) {
        char why[128];
        snprintf(why, sizeof why, "its answer is not HTTP/1.1: %s",
                 c->head_bytes > MAX_HEAD ? "its headers are too large"
                                          : llhttp_get_error_reason(&c->parser));
        fail(c, PL_EFORMAT, why);
    }
}

/* `clean`: it ended on purpose, as far as one can know. */
static void at_eof(pl_up_conn *c, bool clean)
{
    if (c->state == ASK && c->heard && clean && llhttp_finish(&c->parser) == HPE_PAUSED &&
        c->complete)
        answered(c, true);
    else
        fail(c, PL_EIO,
             c->heard ? "it closed the connection in the middle of its answer"
                      : "it closed the connection without an answer");
}

static void shake(pl_up_conn *c);
static void send_wrapped(pl_up_conn *c);

static void unwrap(pl_up_conn *c, const char *data, size_t len)
{
    char *plain = c->upstream->input; /* the session has a copy of what was there */
    int n = 0;
    pl_tls_received(c->tls, data, len);
    if (c->state == SHAKE) shake(c);
    if (c->state == SHAKE) return;
    while (!c->closing && (n = pl_tls_read(c->tls, plain, INPUT_BYTES)) > 0)
        received(c, plain, (size_t)n);
    if (c->closing) return;
    if (n == PL_TLS_END)
        at_eof(c, true);
    else if (n < 0)
        fail(c, PL_EIO, "its part of TLS is broken");
    else
        send_wrapped(c);
}

static void on_alloc(uv_handle_t *handle, size_t size, uv_buf_t *out)
{
    (void)size;
    pl_up_conn *c = handle->data;
    *out = uv_buf_init(c->upstream->input, INPUT_BYTES);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    pl_up_conn *c = stream->data;
    if (n > 0 && c->tls)
        unwrap(c, buf->base, (size_t)n);
    else if (n > 0)
        received(c, buf->base, (size_t)n);
    else if (n == UV_EOF)
        at_eof(c, !c->tls);
    else if (n < 0)
        fail_uv(c, "its connection broke", (int)n);
}

static void read_on(pl_up_conn *c)
{
    if (c->reading || c->closing) return;
    c->reading = true;
    int code = uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
    if (code) fail_uv(c, "it cannot be read from", code);
}

/* ---- requests ---------------------------------------------------------------------- */

static void on_written(uv_write_t *req, int status)
{
    sending *out = req->data;
    (void)status; /* where it failed, reading will tell: perhaps an answer came first */
    out->conn->n_sending--;
    pl_buf_fini(&out->bytes);
    pl_free(out);
}

/* Takes the bytes over. */
static void send_bytes(pl_up_conn *c, pl_buf *bytes)
{
    sending *out = pl_alloc(sizeof *out);
    *out = (sending){.conn = c, .bytes = *bytes};
    *bytes = (pl_buf){0};
    out->write.data = out;
    uv_buf_t all = uv_buf_init(out->bytes.data, (unsigned)out->bytes.len);
    c->n_sending++;
    int code = uv_write(&out->write, (uv_stream_t *)&c->tcp, &all, 1, on_written);
    if (!code) return;
    on_written(&out->write, code);
    fail_uv(c, "it does not take the request", code);
}

static void send_wrapped(pl_up_conn *c)
{
    pl_buf bytes = {0};
    pl_tls_unsent(c->tls, &bytes);
    if (bytes.len)
        send_bytes(c, &bytes);
    else
        pl_buf_fini(&bytes);
}

/* The connection stands: the request goes. */
static void ask(pl_up_conn *c)
{
    pl_ask *a = c->ask;
    c->state = ASK;
    a->sent = true;
    c->heard = c->complete = false;
    c->head_bytes = 0;
    a->status = 0;
    a->fields.len = 0;
    llhttp_init(&c->parser, HTTP_RESPONSE, &settings);
    c->parser.data = c;
    set_deadline(c, a->first_ms);
    if (!a->paused) read_on(c);
    if (c->closing) return;
    pl_buf text = {0};
    if (c->tls) {
        if (pl_tls_write(c->tls, a->text.data, a->text.len))
            send_wrapped(c);
        else
            fail(c, PL_EIO, "its part of TLS is broken");
    } else {
        pl_buf_add(&text, a->text.data, a->text.len);
        send_bytes(c, &text);
    }
}

/* ---- connections ------------------------------------------------------------------- */

static pl_up_conn *open_conn(pl_upstream *u, pl_ask *a)
{
    pl_up_conn *c = pl_alloc(sizeof *c);
    c->upstream = u;
    c->ask = a;
    a->conn = c;
    memcpy(c->host, a->host, sizeof c->host);
    c->port = a->port;
    c->n_handles = 2;
    uv_tcp_init(pl_loop_uv(u->loop), &c->tcp);
    uv_timer_init(pl_loop_uv(u->loop), &c->timer);
    c->tcp.data = c->timer.data = c->lookup.data = c->connect.data = c;
    c->next = u->conns;
    if (c->next) c->next->prev = c;
    u->conns = c;
    return c;
}

static void on_connected(uv_connect_t *req, int status);

static void try_address(pl_up_conn *c, const struct sockaddr *address)
{
    c->state = CONNECT;
    int code = uv_tcp_connect(&c->connect, &c->tcp, address, on_connected);
    if (code) fail_uv(c, "it cannot be reached", code);
}

/* Goes on with agreeing on a session, as far as that goes. */
static void shake(pl_up_conn *c)
{
    char why[160];
    int done = pl_tls_shake(c->tls, why, sizeof why);
    if (done >= 0) send_wrapped(c);
    if (c->closing) return;
    if (done < 0)
        fail(c, PL_EIO, why);
    else if (done)
        ask(c);
}

static void begin_tls(pl_up_conn *c)
{
    c->state = SHAKE;
    c->tls = c->upstream->trust ? pl_tls_open(c->upstream->trust, c->host) : NULL;
    if (!c->tls) {
        fail(c, PL_EIO, "there is no TLS here");
        return;
    }
    read_on(c);
    if (!c->closing) shake(c);
}

/* A name may have several addresses, and a socket tries one of them. */
static bool try_next(pl_up_conn *c)
{
    if (!c->address || !c->address->ai_next) return false;
    pl_up_conn *other = open_conn(c->upstream, c->ask);
    other->addresses = c->addresses;
    other->address = c->address->ai_next;
    int64_t left = c->deadline - (int64_t)uv_now(c->tcp.loop);
    c->addresses = NULL;
    c->ask = NULL;
    close_conn(c);
    set_deadline(other, PL_MAX(left, 1));
    try_address(other, other->address->ai_addr);
    return true;
}

static void on_connected(uv_connect_t *req, int status)
{
    pl_up_conn *c = req->data;
    if (c->closing || (status < 0 && try_next(c))) return;
    if (status < 0) {
        fail_uv(c, "it cannot be reached", status);
        return;
    }
    uv_tcp_nodelay(&c->tcp, 1);
    if (c->ask->tls)
        begin_tls(c);
    else
        ask(c);
}

static void on_lookup(uv_getaddrinfo_t *req, int status, struct addrinfo *found)
{
    pl_up_conn *c = req->data;
    c->looking = false;
    c->addresses = c->address = found;
    if (c->closing)
        free_conn(c);
    else if (status < 0)
        fail_uv(c, "its name cannot be resolved", status);
    else
        try_address(c, found->ai_addr);
}

/* Whether the host is an address, and so needs no lookup. */
static bool is_address(pl_up_conn *c)
{
    return uv_ip4_addr(c->host, c->port, (struct sockaddr_in *)&c->literal) == 0 ||
           uv_ip6_addr(c->host, c->port, (struct sockaddr_in6 *)&c->literal) == 0;
}

static void look_up(pl_up_conn *c)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    char port[8];
    snprintf(port, sizeof port, "%d", c->port);
    c->looking = true;
    int code = uv_getaddrinfo(pl_loop_uv(c->upstream->loop), &c->lookup, on_lookup,
                              c->host, port, &hints);
    if (!code) return;
    c->looking = false;
    fail_uv(c, "its name cannot be resolved", code);
}

static pl_up_conn *find_kept(pl_upstream *u, const pl_ask *a)
{
    for (pl_up_conn *c = u->conns; c; c = c->next)
        if (c->state == KEPT && c->port == a->port && !c->tls == !a->tls &&
            !strcmp(c->host, a->host))
            return c;
    return NULL;
}

/* `fresh`: by no connection that was used before. */
static void begin(pl_upstream *u, pl_ask *a, bool fresh)
{
    pl_up_conn *c = fresh ? NULL : find_kept(u, a);
    if (c) {
        u->n_kept--;
        c->ask = a;
        a->conn = c;
        c->reused = true;
        ask(c);
        return;
    }
    c = open_conn(u, a);
    set_deadline(c, a->connect_ms);
    if (is_address(c))
        try_address(c, (struct sockaddr *)&c->literal);
    else
        look_up(c);
}

/* ---- asking ------------------------------------------------------------------------ */

void pl_ask_begin(pl_upstream *u, pl_ask *a)
{
    PL_ON(IO);
    if (u->stopped)
        a->hooks->over(a, PL_ECANCELED, "the process ends");
    else
        begin(u, a, false);
}

void pl_ask_drop(pl_ask *a)
{
    PL_ON(IO);
    pl_up_conn *c = a->conn;
    if (!c) return;
    c->ask = NULL;
    a->conn = NULL;
    close_conn(c);
}

void pl_ask_pause(pl_ask *a, bool paused)
{
    PL_ON(IO);
    pl_up_conn *c = a->conn;
    if (a->paused == paused) return;
    a->paused = paused;
    if (!c || c->state != ASK) return;
    if (!paused) {
        set_deadline(c, c->heard ? a->between_ms : a->first_ms);
        read_on(c);
        return;
    }
    c->deadline = 0;
    c->reading = false;
    uv_read_stop((uv_stream_t *)&c->tcp);
}

const char *pl_fields_find(const pl_buf *fields, const char *name)
{
    const char *at = fields->data, *end = at + fields->len;
    while (at && at < end) {
        const char *value = at + strlen(at) + 1;
        if (!strcasecmp(at, name)) return value;
        at = value + strlen(value) + 1;
    }
    return NULL;
}

void pl_ask_fini(pl_ask *a)
{
    pl_buf_fini(&a->text);
    pl_buf_fini(&a->fields);
}

/* ---- life -------------------------------------------------------------------------- */

pl_upstream *pl_upstream_open(pl_loop *loop)
{
    pl_upstream *u = pl_alloc(sizeof *u);
    u->loop = loop;
    return u;
}

void pl_upstream_stop(pl_upstream *u)
{
    PL_ON(IO);
    u->stopped = true;
    while (u->conns) fail(u->conns, PL_ECANCELED, "the process ends");
}

pl_status pl_upstream_trust(pl_upstream *u, const char *ca)
{
    u->trust = pl_trust_open(ca);
    return u->trust ? PL_OK : PL_EINVAL;
}

void pl_upstream_close(pl_upstream *u)
{
    pl_trust_close(u->trust);
    pl_free(u);
}
