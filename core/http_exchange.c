/* SPDX-License-Identifier: Apache-2.0 */
#include "http_exchange.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define FROM_NOTE(n) ((pl_exchange *)((char *)(n)-offsetof(pl_exchange, note)))
#define FROM_NEWS(n, field) ((pl_exchange *)((char *)(n)-offsetof(pl_exchange, field)))

enum {
    CLIENT_LEFT = 499
};

/* Who is turned away for want of room is told when to come again, in seconds. */
static const char RETRY_AFTER[] = "Retry-After: 1\r\n";

static const char *phrase_of(int status)
{
    static const struct {
        int status;
        const char *phrase;
    } phrases[] = {
        {200, "OK"},
        {204, "No Content"},
        {304, "Not Modified"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {422, "Unprocessable Content"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {499, "Client Closed Request"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
    };
    for (int i = 0; i < PL_COUNT(phrases); i++)
        if (phrases[i].status == status) return phrases[i].phrase;
    return "Status";
}

/* ---- answers as bytes -------------------------------------------------------------- */

static void add_date(pl_buf *out)
{
    static _Thread_local time_t then;
    static _Thread_local char line[64];
    time_t now = time(NULL);
    if (now != then) {
        struct tm tm;
        gmtime_r(&now, &tm);
        strftime(line, sizeof line, "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &tm);
        then = now;
    }
    pl_buf_add_str(out, line);
}

static void add_head(pl_buf *out, int status, const char *type, const char *headers,
                     size_t len)
{
    pl_buf_printf(out, "HTTP/1.1 %d %s\r\n", status, phrase_of(status));
    add_date(out);
    if (type && *type) {
        pl_buf_add_str(out, "Content-Type: ");
        pl_buf_add_str(out, type);
        pl_buf_add_str(out, "\r\n");
    }
    pl_buf_add(out, headers, len);
}

static bool has_body(int status)
{
    return status >= 200 && status != 204 && status != 304;
}

static void add_chunk(pl_buf *out, const char *data, size_t len)
{
    char size[24];
    size_t at = sizeof size;
    size[--at] = '\n';
    size[--at] = '\r';
    size_t left = len;
    do size[--at] = "0123456789abcdef"[left & 15];
    while (left >>= 4);
    pl_buf_reserve(out, sizeof size + len + 2);
    pl_buf_add(out, size + at, sizeof size - at);
    pl_buf_add(out, data, len);
    pl_buf_add(out, "\r\n", 2);
}

static const char *error_type(int status)
{
    switch (status) {
    case 501:
        return "NotImplementedError";
    case 503:
        return "ServiceUnavailableError";
    default:
        return status < 500 ? "BadRequestError" : "InternalServerError";
    }
}

void pl_exchange_answer(pl_buf *out, int status, const pl_buf *body, bool head_only)
{
    const char *again = status == 503 ? RETRY_AFTER : "";
    add_head(out, status, "application/json", again, strlen(again));
    pl_buf_printf(out, "Content-Length: %zu\r\nConnection: close\r\n\r\n", body->len);
    if (!head_only) pl_buf_add(out, body->data, body->len);
}

void pl_exchange_answer_error(pl_buf *out, int status, const char *message,
                              bool head_only)
{
    pl_buf body = {0};
    pl_buf_add_str(&body, "{\"error\":{\"message\":\"");
    pl_buf_add_json(&body, message, strlen(message));
    pl_buf_printf(&body, "\",\"type\":\"%s\",\"param\":null,\"code\":%d}}",
                  error_type(status), status);
    pl_exchange_answer(out, status, &body, head_only);
    pl_buf_fini(&body);
}

/* ---- lua: asking ------------------------------------------------------------------- */

int32_t pl_exchange_id(const pl_exchange *x)
{
    return x->id;
}

int pl_exchange_is_local(const pl_exchange *x)
{
    return x->local;
}

int pl_exchange_is_gone(const pl_exchange *x)
{
    return atomic_load(&x->gone);
}

const char *pl_exchange_peer(const pl_exchange *x)
{
    return x->peer;
}

const char *pl_exchange_method(const pl_exchange *x)
{
    return llhttp_method_name(x->request.method);
}

const char *pl_exchange_path(const pl_exchange *x)
{
    return pl_request_path(&x->request);
}

const char *pl_exchange_query(const pl_exchange *x)
{
    return x->request.head.data + x->request.query;
}

const char *pl_exchange_header(const pl_exchange *x, const char *name)
{
    return pl_request_header(&x->request, name);
}

const char *pl_exchange_body(const pl_exchange *x, size_t *len)
{
    *len = x->request.body.len;
    return x->request.body.len ? x->request.body.data : "";
}

/* ---- lua: answering ---------------------------------------------------------------- */

static void post(pl_exchange *x)
{
    pl_exchange_take(x);
    if (!pl_loop_post(x->loop, &x->note)) pl_exchange_put(x);
}

/* Whether the answer is as far as `wanted`; what cannot be is the caller's mistake. */
static bool at(pl_exchange *x, int wanted, const char *what)
{
    if (x->answer == wanted) return true;
    pl_log(PL_LOG_ERROR, "exchange %d: %s of an answer that %s", x->id, what,
           x->answer == PL_ANSWER_NONE    ? "has not begun"
           : x->answer == PL_ANSWER_BEGUN ? "has begun"
                                          : "has ended");
    return false;
}

static bool head_only(const pl_exchange *x)
{
    return x->request.method == HTTP_HEAD;
}

static void add_connection(pl_exchange *x, bool keep_alive)
{
    x->keep_alive = keep_alive && !atomic_load(&x->shared->closing);
    if (!x->keep_alive)
        pl_buf_add_str(&x->out, "Connection: close\r\n");
    else if (!x->request.minor)
        pl_buf_add_str(&x->out, "Connection: keep-alive\r\n");
}

void pl_exchange_reply(pl_exchange *x, int status, const char *type, const char *headers,
                       size_t headers_len, const char *body, size_t len)
{
    if (!at(x, PL_ANSWER_NONE, "reply") || atomic_load(&x->gone)) return;
    x->answer = PL_ANSWER_ENDED;
    pl_lock(&x->lock);
    pl_buf_reserve(&x->out, 256 + headers_len + len);
    add_head(&x->out, status, type, headers, headers_len);
    add_connection(x, x->request.keep_alive);
    if (has_body(status)) pl_buf_printf(&x->out, "Content-Length: %zu\r\n", len);
    pl_buf_add(&x->out, "\r\n", 2);
    if (has_body(status) && !head_only(x)) pl_buf_add(&x->out, body, len);
    x->status = status;
    x->ended = true;
    pl_unlock(&x->lock);
    post(x);
}

/* HTTP/1.0 has no chunks: the end of the answer is the end of the connection. */
static bool chunked(const pl_exchange *x)
{
    return x->request.minor && !head_only(x);
}

void pl_exchange_begin(pl_exchange *x, int status, const char *type, const char *headers,
                       size_t headers_len)
{
    if (!at(x, PL_ANSWER_NONE, "begin")) return;
    x->answer = PL_ANSWER_BEGUN;
    pl_lock(&x->lock);
    add_head(&x->out, status, type, headers, headers_len);
    if (x->request.minor) pl_buf_add_str(&x->out, "Transfer-Encoding: chunked\r\n");
    add_connection(x, x->request.keep_alive && x->request.minor);
    pl_buf_add(&x->out, "\r\n", 2);
    x->status = status;
    pl_unlock(&x->lock);
    post(x);
}

static void add_part(pl_exchange *x, pl_buf *out, const char *data, size_t len)
{
    if (chunked(x))
        add_chunk(out, data, len);
    else if (!head_only(x))
        pl_buf_add(out, data, len);
}

void pl_exchange_write(pl_exchange *x, const char *data, size_t len)
{
    if (!at(x, PL_ANSWER_BEGUN, "write") || !len || atomic_load(&x->gone)) return;
    pl_lock(&x->lock);
    add_part(x, &x->out, data, len);
    pl_unlock(&x->lock);
    post(x);
}

void pl_exchange_end(pl_exchange *x)
{
    if (!at(x, PL_ANSWER_BEGUN, "end")) return;
    x->answer = PL_ANSWER_ENDED;
    pl_lock(&x->lock);
    if (chunked(x)) pl_buf_add_str(&x->out, "0\r\n\r\n");
    x->ended = true;
    pl_unlock(&x->lock);
    post(x);
}

void pl_exchange_release(pl_exchange *x)
{
    if (atomic_exchange(&x->released, true)) return;
    if (x->answer != PL_ANSWER_ENDED) {
        pl_lock(&x->lock);
        x->cut = true;
        pl_unlock(&x->lock);
        post(x);
    }
    pl_exchange_put(x);
}

void pl_exchange_label(pl_exchange *x, const char *fields, size_t len)
{
    pl_lock(&x->lock);
    pl_buf_add(&x->label, fields, len);
    pl_unlock(&x->lock);
}

/* ---- io ---------------------------------------------------------------------------- */

/* A field of its line: the name, then the value, each ended by a NUL. */
static void add_field(pl_buf *label, const char *name, const char *value)
{
    pl_buf_add(label, name, strlen(name) + 1);
    pl_buf_add(label, value, strlen(value) + 1);
}

/* The exchange is over. Without an answer its client has left, which counts as 499 as it
 * does for nginx, or it was cut off here. */
static void log_access(pl_exchange *x, int status)
{
    x->logged = true;
    if (x->local) return; /* who takes it says what of it is worth a line */
    const char *path = x->request.head.data + x->request.path; /* as it came */
    const char *query = pl_exchange_query(x);
    bool gone = atomic_load(&x->gone);
    if (!status) status = gone ? CLIENT_LEFT : 503;
    char ms[24];
    snprintf(ms, sizeof ms, "%lld", (long long)(pl_now_ns() - x->arrived_ns) / 1000000);
    pl_lock(&x->lock);
    pl_buf label = x->label;
    x->label = (pl_buf){0};
    pl_unlock(&x->lock);
    add_field(&label, "#ms", ms);
    if (gone) add_field(&label, "reason", "the client is gone");
    pl_log_with(PL_LOG_INFO, &label, "%s - \"%s %.512s%s%.256s HTTP/1.%d\" %d", x->peer,
                pl_exchange_method(x), path, *query ? "?" : "", query, x->request.minor,
                status);
    pl_buf_fini(&label);
}

static void unlink_watches(pl_exchange *x, bool gone)
{
    while (x->watches) {
        pl_watch *w = x->watches;
        x->watches = w->next;
        w->next = NULL;
        if (gone) w->gone(w);
    }
}

/* Brings what Lua has said to the connection. */
static void deliver(pl_exchange *x)
{
    pl_conn *c = x->conn;
    pl_lock(&x->lock);
    int status = x->status;
    bool ended = x->ended, cut = x->cut;
    if (c && x->out.len) pl_buf_add(pl_conn_out(c), x->out.data, x->out.len);
    bool keep_alive = x->keep_alive;
    x->out.len = 0;
    if (!c || ended) pl_buf_fini(&x->out);
    pl_unlock(&x->lock);
    if (!(ended || cut)) return;
    if (!x->logged) log_access(x, status);
    if (!c) return;
    x->conn = NULL;
    unlink_watches(x, cut && !ended);
    if (ended)
        pl_conn_answered(c, keep_alive);
    else
        pl_conn_cut(c);
    pl_exchange_put(x); /* the connection's */
}

static void run_note(pl_note *note)
{
    pl_exchange *x = FROM_NOTE(note);
    deliver(x);
    pl_exchange_put(x);
}

void pl_exchange_piece(pl_exchange *x, const char *data, size_t len)
{
    PL_ON(IO);
    pl_exchange_take(x); /* who calls may go with what is delivered */
    deliver(x);          /* what Lua wrote before comes before */
    if (x->conn) add_part(x, pl_conn_out(x->conn), data, len);
    pl_exchange_put(x);
}

size_t pl_exchange_flush(pl_exchange *x)
{
    PL_ON(IO);
    return x->conn ? pl_conn_flush(x->conn) : 0;
}

void pl_exchange_drained(pl_exchange *x)
{
    for (pl_watch *w = x->watches, *next; w; w = next) {
        next = w->next;
        if (w->drained) w->drained(w);
    }
}

bool pl_exchange_watch(pl_exchange *x, pl_watch *watch)
{
    PL_ON(IO);
    if (!x->conn) return false;
    watch->next = x->watches;
    x->watches = watch;
    return true;
}

void pl_exchange_unwatch(pl_exchange *x, pl_watch *watch)
{
    PL_ON(IO);
    for (pl_watch **at_ = &x->watches; *at_; at_ = &(*at_)->next) {
        if (*at_ != watch) continue;
        *at_ = watch->next;
        watch->next = NULL;
        return;
    }
}

void pl_exchange_lost(pl_exchange *x)
{
    PL_ON(IO);
    x->conn = NULL;
    atomic_store(&x->gone, true);
    unlink_watches(x, true);
    pl_exchange_take(x);
    if (!pl_loop_tell(x->loop, &x->gone_news)) pl_exchange_put(x);
    pl_exchange_put(x);
}

/* ---- life -------------------------------------------------------------------------- */

static bool request_taken(pl_news *news, bool lost)
{
    if (lost) pl_exchange_release(FROM_NEWS(news, request_news));
    return true;
}

static bool gone_taken(pl_news *news, bool lost)
{
    (void)lost;
    pl_exchange *x = FROM_NEWS(news, gone_news);
    bool wanted = !atomic_load(&x->released);
    pl_exchange_put(x);
    return wanted;
}

pl_exchange *pl_exchange_open(pl_loop *loop, pl_http_shared *shared, pl_conn *conn,
                              pl_request *request, int32_t id, const char *peer)
{
    pl_exchange *x = pl_alloc(sizeof *x);
    x->id = id;
    atomic_init(&x->refs, 2);
    x->arrived_ns = pl_now_ns();
    x->loop = loop;
    pl_loop_take(loop);
    x->shared = shared;
    atomic_fetch_add(&shared->n_exchanges, 1);
    x->request = *request;
    *request = (pl_request){0};
    snprintf(x->peer, sizeof x->peer, "%s", peer);
    x->conn = conn;
    pl_mutex_init(&x->lock);
    x->note.run = run_note;
    x->request_news = (pl_news){.event = {.kind = PL_EV_REQUEST, .id = id, .object = x},
                                .taken = request_taken};
    x->gone_news = (pl_news){.event = {.kind = PL_EV_GONE, .id = id, .object = x},
                             .taken = gone_taken};
    return x;
}

void pl_exchange_take(pl_exchange *x)
{
    atomic_fetch_add(&x->refs, 1);
}

void pl_exchange_put(pl_exchange *x)
{
    if (atomic_fetch_sub(&x->refs, 1) > 1) return;
    pl_loop *loop = x->loop;
    atomic_fetch_sub(&x->shared->body_bytes, (long long)x->request.body.len);
    pl_request_fini(&x->request);
    pl_buf_fini(&x->out);
    pl_buf_fini(&x->label);
    pl_mutex_fini(&x->lock);
    atomic_fetch_sub(&x->shared->n_exchanges, 1);
    pl_free(x);
    pl_loop_put(loop);
}
