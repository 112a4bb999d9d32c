/* SPDX-License-Identifier: Apache-2.0 */
#include "relay.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

enum {
    MAX_EVENT = 4 << 20,   /* bytes of an event that has not ended */
    MAX_AHEAD = 256 << 10, /* bytes that the client has not read: then reading stops */
    MAX_TEXT = 16 << 20,   /* bytes of text that are kept */
    DONE_MS = 1000         /* for the end of the answer after its last event */
};

enum {
    IDLE, /* never sent, failed or refused: it may be sent */
    UNDER_WAY,
    OVER
};

typedef struct progress {
    pl_stream_end end;
    int32_t n_prompt;
} progress;

struct pl_relay {
    int32_t id;
    atomic_int refs;
    pl_relays *relays;
    pl_exchange *x;

    /* lua, while it is not under way; then io's */
    bool hide_usage, keeps;
    int metric;
    pl_load *load;
    int32_t load_tokens, load_cached;
    pl_charge charge;
    int64_t max_body;
    pl_ask ask;

    /* io, or lua while it is not under way */
    progress now;
    int64_t read_ns; /* when what is being read came */

    /* io */
    pl_relay *next, **link; /* among those under way */
    pl_watch watch;
    bool watching;
    bool streams;          /* its answer is events, */
    bool passing;          /* which may go on to the client */
    bool done, has_finish; /* the last event came; one that said how it ended */
    bool late; /* the server is through with it, while nothing may go on yet: */
    pl_status late_status;
    bool goes_on;     /* with what another server began */
    int32_t n_before; /* tokens of that one */
    pl_buf held;      /* no whole event yet, or may not go on */
    size_t searched;  /* of these: no event ends there */

    /* io until it is over, or while lua waits to say go; then lua's */
    int status;
    pl_buf fields, body, text;
    bool is_plain;
    char why[256];

    pl_mutex lock; /* over what both touch: */
    int state;
    bool wants_send, wants_go, cancel;
    progress told; /* as of the last read */

    atomic_bool closed; /* lua writes */
    pl_note note;
    pl_news answer_news, answered_news;
};

struct pl_relays {
    pl_loop *loop;
    pl_upstream *upstream;
    atomic_int last_id;
    pl_relay *living;
    pl_buf scratch;
};

#define OF(member, p) ((pl_relay *)((char *)(p)-offsetof(pl_relay, member)))

static void put(pl_relay *r)
{
    if (atomic_fetch_sub(&r->refs, 1) > 1) return;
    pl_loop *loop = r->relays->loop;
    pl_charge_end(&r->charge);
    if (r->x) pl_exchange_put(r->x);
    pl_ask_fini(&r->ask);
    pl_buf_fini(&r->held);
    pl_buf_fini(&r->fields);
    pl_buf_fini(&r->body);
    pl_buf_fini(&r->text);
    pl_mutex_fini(&r->lock);
    pl_free(r);
    pl_loop_put(loop);
}

static void tell(pl_relay *r, pl_news *news, int a)
{
    atomic_fetch_add(&r->refs, 1);
    news->event.a = a;
    if (!pl_loop_tell(r->relays->loop, news)) put(r);
}

/* ---- the end ----------------------------------------------------------------------- */

/* It is not under way any more. Perhaps nobody knows it afterwards. */
static void finish(pl_relay *r, pl_status status, const char *why)
{
    if (!r->link) return;
    pl_ask_drop(&r->ask);
    if (r->watching) pl_exchange_unwatch(r->x, &r->watch);
    r->watching = false;
    pl_charge_end(&r->charge);
    if (why != r->why) snprintf(r->why, sizeof r->why, "%s", why);
    if (status == PL_ECANCELED) r->now.end.finish = PL_FINISH_ABORT;
    pl_lock(&r->lock);
    r->told = r->now;
    bool is_last = status == PL_ECANCELED || (status == PL_OK && r->streams);
    r->state = is_last ? OVER : IDLE;
    pl_unlock(&r->lock);
    r->answered_news.event.b = r->ask.sent;
    tell(r, &r->answered_news, status);
    *r->link = r->next;
    if (r->next) r->next->link = r->link;
    r->link = NULL;
    put(r);
}

static void on_gone(pl_watch *watch)
{
    pl_relay *r = OF(watch, watch);
    r->watching = false;
    finish(r, PL_ECANCELED, "the client is gone");
}

static void on_drained(pl_watch *watch)
{
    pl_relay *r = OF(watch, watch);
    if (r->passing) pl_ask_pause(&r->ask, false);
}

/* ---- events ------------------------------------------------------------------------ */

static void publish(pl_relay *r)
{
    pl_lock(&r->lock);
    r->told = r->now;
    pl_unlock(&r->lock);
}

/* Bytes up to the end of the first event, its empty line included; 0: it has not ended.
 * It does not end within the first `searched`. */
static size_t event_end(const char *s, size_t len, size_t searched)
{
    const char *at = s + (searched > 3 ? searched - 3 : 0), *end = s + len;
    while ((at = memchr(at, '\n', (size_t)(end - at)))) {
        at++;
        if (at < end && *at == '\n') return (size_t)(at + 1 - s);
        if (end - at >= 2 && at[0] == '\r' && at[1] == '\n') return (size_t)(at + 2 - s);
    }
    return 0;
}

/* The data of an event, of several lines too; an empty span: it has none. */
static pl_span data_of(pl_relay *r, const char *s, size_t len)
{
    pl_buf *all = &r->relays->scratch;
    pl_span data = {0};
    const char *end = s + len;
    int n = 0;
    while (s < end) {
        const char *stop = memchr(s, '\n', (size_t)(end - s));
        size_t line = (size_t)(stop - s);
        if (line && s[line - 1] == '\r') line--;
        if (line >= 5 && !memcmp(s, "data:", 5)) {
            size_t from = line > 5 && s[5] == ' ' ? 6 : 5;
            if (n == 1) {
                all->len = 0;
                pl_buf_add(all, data.at, data.len);
            }
            if (n) {
                pl_buf_add(all, "\n", 1);
                pl_buf_add(all, s + from, line - from);
            }
            data =
                n++ ? (pl_span){all->data, all->len} : (pl_span){s + from, line - from};
        }
        s = stop + 1;
    }
    return data;
}

static void count_content(pl_relay *r, const pl_relay_event *e)
{
    int64_t now = r->read_ns;
    pl_stream_end *end = &r->now.end;
    if (end->n_tokens && r->metric >= 0)
        pl_metric_observe(r->metric, (double)(now - end->last_ns) * 1e-9);
    pl_charge_token(&r->charge, now);
    if (!end->n_tokens) end->first_ns = now;
    end->n_tokens += e->n_ids > 0 ? e->n_ids : 1;
    end->last_ns = now;
}

static void count(pl_relay *r, const pl_relay_event *e)
{
    if (e->has_content) count_content(r, e);
    if (!e->is_plain) r->is_plain = false;
    if (r->keeps && r->is_plain && e->has_content)
        pl_buf_add(&r->text, e->text.at, e->text.len);
    if (r->text.len > MAX_TEXT) r->is_plain = false;
    progress *p = &r->now;
    p->end.finish = PL_MAX(p->end.finish, e->finish);
    if (e->has_usage) {
        if (!r->goes_on) p->n_prompt = (int32_t)PL_MIN(e->prompt_tokens, INT32_MAX);
        p->end.n_cached = (int32_t)PL_MIN(e->cached_tokens, p->n_prompt);
        if (e->completion_tokens)
            p->end.n_tokens =
                (int32_t)PL_MIN(r->n_before + e->completion_tokens, INT32_MAX);
    }
    r->has_finish = r->has_finish || e->finish;
}

typedef struct patch { /* of an event */
    pl_span digits;
    int64_t value;
} patch;

/* What a server that goes on says of usage counts the tokens before as part of the prompt,
 * and perhaps cut in another way. False: it says too little. */
static bool rewrite_usage(const pl_relay *r, const pl_relay_event *e, const char *s,
                          size_t len, pl_buf *out)
{
    int64_t completion = e->completion_tokens + r->n_before;
    patch all[] = {{e->prompt_digits, r->now.n_prompt},
                   {e->completion_digits, completion},
                   {e->total_digits, r->now.n_prompt + completion}};
    for (int i = 0; i < PL_COUNT(all); i++) {
        if (!all[i].digits.len || all[i].digits.at < s || all[i].digits.at >= s + len)
            return false;
        for (int k = i; k && all[k].digits.at < all[k - 1].digits.at; k--) {
            patch swap = all[k];
            all[k] = all[k - 1];
            all[k - 1] = swap;
        }
    }
    out->len = 0;
    const char *at = s;
    for (int i = 0; i < PL_COUNT(all); i++) {
        pl_buf_add(out, at, (size_t)(all[i].digits.at - at));
        pl_buf_printf(out, "%lld", (long long)all[i].value);
        at = all[i].digits.at + all[i].digits.len;
    }
    pl_buf_add(out, at, (size_t)(s + len - at));
    return true;
}

typedef enum verdict {
    PASS,
    HIDE,
    REWRITE,
    FAIL
} verdict;

static verdict failure(pl_relay *r, const char *what, pl_span shown)
{
    char why[sizeof r->why];
    snprintf(why, sizeof why, "%s%.*s", what, (int)PL_MIN(shown.len, 120), shown.at);
    for (char *at = why; *at; at++)
        if ((unsigned char)*at < 0x20) *at = ' ';
    snprintf(r->why, sizeof r->why, "%s", why);
    return FAIL;
}

static verdict judge(pl_relay *r, const char *s, size_t len, pl_buf *out)
{
    pl_span data = data_of(r, s, len);
    pl_relay_event e;
    if (!data.len) return PASS; /* a comment, as proxies send them */
    if (data.len == 6 && !memcmp(data.at, "[DONE]", 6)) {
        r->done = true;
        r->ask.between_ms = PL_MIN(r->ask.between_ms, DONE_MS);
        return HIDE; /* lua writes it */
    }
    if (r->done) return failure(r, "it sent an event after the last one: ", data);
    if (!pl_relay_read(&e, data.at, data.len))
        return failure(r, "it sent an event that is no JSON object: ", data);
    if (e.has_error && (e.error_code < 400 || e.error_code >= 500))
        return failure(r, "it says: ", e.error);
    if (e.has_error) e.finish = PL_FINISH_ERROR; /* of the request, not the server */
    count(r, &e);
    if (r->goes_on && !e.has_content && !e.finish && !e.has_usage) return HIDE;
    if (e.has_usage && !e.has_choice && r->hide_usage) return HIDE;
    if (r->goes_on && e.has_usage && rewrite_usage(r, &e, s, len, out)) return REWRITE;
    return PASS;
}

static void emit(pl_relay *r, const char *from, const char *to)
{
    if (to > from && r->link) pl_exchange_piece(r->x, from, (size_t)(to - from));
}

/* Passes whole events on; how many bytes they were, or -1: it is over. */
static ssize_t pass(pl_relay *r, const char *s, size_t len)
{
    pl_buf rewritten = {0};
    size_t at = 0, from = 0, searched = r->searched, n;
    verdict v = PASS;
    for (; r->link && v != FAIL && (n = event_end(s + at, len - at, searched));
         searched = 0) {
        v = judge(r, s + at, n, &rewritten);
        if (v != PASS) emit(r, s + from, s + at);
        at += n;
        if (v != PASS) from = at;
        if (v == REWRITE) emit(r, rewritten.data, rewritten.data + rewritten.len);
    }
    if (v != FAIL) emit(r, s + from, s + at);
    pl_buf_fini(&rewritten);
    if (v == FAIL) finish(r, PL_EFORMAT, r->why);
    return r->link ? (ssize_t)at : -1;
}

static void feed(pl_relay *r, const char *data, size_t len)
{
    pl_buf *held = &r->held;
    bool direct = r->passing && !held->len;
    if (!direct) {
        pl_buf_add(held, data, len);
        data = held->data;
        len = held->len;
        if (!r->passing) {
            if (len > MAX_AHEAD) pl_ask_pause(&r->ask, true);
            return;
        }
    }
    r->read_ns = pl_now_ns();
    ssize_t n = pass(r, data, len);
    if (n < 0) return;
    publish(r);
    r->searched = len - (size_t)n;
    if (direct) {
        pl_buf_add(held, data + n, len - (size_t)n);
    } else {
        held->len -= (size_t)n;
        memmove(held->data, held->data + n, held->len);
    }
    if (held->len > MAX_EVENT)
        finish(r, PL_EFORMAT, "it sent an event that does not end");
}

/* What was passed on goes to the client, if that takes it. */
static void flush(pl_relay *r)
{
    if (r->link && r->passing && pl_exchange_flush(r->x) > MAX_AHEAD)
        pl_ask_pause(&r->ask, true);
}

/* ---- what the server says ---------------------------------------------------------- */

static void on_head(pl_ask *a)
{
    pl_relay *r = OF(ask, a);
    const char *type = pl_fields_find(&a->fields, "content-type");
    r->status = a->status;
    pl_buf_add(&r->fields, a->fields.data, a->fields.len);
    pl_charge_started(&r->charge);
    if (!r->now.end.scheduled_ns) r->now.end.scheduled_ns = pl_now_ns();
    publish(r);
    r->streams =
        r->x && a->status == 200 && type && !strncasecmp(type, "text/event-stream", 17);
    if (r->streams) tell(r, &r->answer_news, a->status);
}

static void on_body(pl_ask *a, const char *data, size_t len)
{
    pl_relay *r = OF(ask, a);
    atomic_fetch_add(&r->refs, 1); /* its client may go with what is written */
    if (r->streams)
        feed(r, data, len);
    else if ((int64_t)(r->body.len + len) > r->max_body)
        finish(r, PL_ELIMIT, "its answer is too large");
    else
        pl_buf_add(&r->body, data, len);
    put(r);
}

static void on_rest(pl_ask *a)
{
    pl_relay *r = OF(ask, a);
    atomic_fetch_add(&r->refs, 1); /* its client may go with what is written */
    flush(r);
    put(r);
}

/* The server is through with it. */
static void conclude(pl_relay *r, pl_status status, const char *why)
{
    bool cut = r->streams && !r->done && !r->has_finish;
    if (status < 0 && r->streams && r->done)
        finish(r, PL_OK, ""); /* all has come, the connection's end does not matter */
    else if (status == PL_OK && cut)
        finish(r, PL_EIO, "its stream ended before its answer did");
    else
        finish(r, status, why);
}

static void on_over(pl_ask *a, pl_status status, const char *why)
{
    pl_relay *r = OF(ask, a);
    if (r->streams && !r->passing && status != PL_ECANCELED) {
        r->late = true;
        r->late_status = status;
        snprintf(r->why, sizeof r->why, "%s", why);
        return;
    }
    conclude(r, status, why);
}

/* ---- what lua says ----------------------------------------------------------------- */

static void begin(pl_relay *r)
{
    r->next = r->relays->living;
    r->link = &r->relays->living;
    if (r->next) r->next->link = &r->next;
    r->relays->living = r;
    atomic_fetch_add(&r->refs, 1);
    r->watching = r->x && pl_exchange_watch(r->x, &r->watch);
    if (r->x && !r->watching)
        finish(r, PL_ECANCELED, "the client is gone");
    else
        pl_ask_begin(r->relays->upstream, &r->ask);
}

static void go(pl_relay *r)
{
    r->passing = true;
    pl_ask_pause(&r->ask, false);
    feed(r, "", 0);
    flush(r);
    if (!r->link || !r->late) return;
    conclude(r, r->late_status, r->why);
}

static void run_note(pl_note *note)
{
    pl_relay *r = OF(note, note);
    pl_lock(&r->lock);
    bool wants_send = r->wants_send, wants_go = r->wants_go, cancel = r->cancel;
    r->wants_send = r->wants_go = false;
    pl_unlock(&r->lock);
    if (wants_send) begin(r);
    if (r->link && (cancel || atomic_load(&r->closed)))
        finish(r, PL_ECANCELED, "it was cancelled");
    if (r->link && wants_go) go(r);
    put(r);
}

static void post(pl_relay *r)
{
    atomic_fetch_add(&r->refs, 1);
    if (!pl_loop_post(r->relays->loop, &r->note)) put(r);
}

static pl_status check_send(const pl_relay *r)
{
    if (r->state == UNDER_WAY) return pl_fail(PL_EINVAL, "relay %d is under way", r->id);
    if (r->state == OVER || r->cancel)
        return pl_fail(PL_ECANCELED, "relay %d is over", r->id);
    return PL_OK;
}

/* As it stands before it is sent; what went on to the client stays. */
static void renew(pl_relay *r, const pl_relay_request *q)
{
    pl_ask *a = &r->ask;
    snprintf(a->host, sizeof a->host, "%s", q->host);
    a->port = q->port;
    a->tls = q->tls;
    a->text.len = a->fields.len = 0;
    pl_buf_add(&a->text, q->text, q->len);
    a->connect_ms = q->connect_ms;
    a->first_ms = q->first_ms;
    a->between_ms = q->between_ms;
    a->paused = a->sent = false;
    r->max_body = q->max_body;
    r->goes_on = r->now.end.n_tokens > 0;
    r->n_before = r->now.end.n_tokens;
    r->streams = r->done = r->has_finish = r->late = false;
    r->status = 0;
    r->held.len = r->fields.len = r->body.len = r->searched = 0;
    if (!r->now.end.submitted_ns) r->now.end.submitted_ns = pl_now_ns();
    r->told = r->now;
}

pl_status pl_relay_send(pl_relay *r, const pl_relay_request *q)
{
    PL_ON(LUA);
    if (strlen(q->host) >= sizeof r->ask.host || q->port < 1 || q->port > 65535)
        return pl_fail(PL_EINVAL, "'%.80s:%d' is no address", q->host, q->port);
    pl_lock(&r->lock);
    pl_status status = check_send(r);
    if (status == PL_OK) {
        renew(r, q);
        if (r->load) pl_charge_begin(&r->charge, r->load, r->load_tokens, r->load_cached);
        r->load = NULL;
        r->state = UNDER_WAY;
        r->wants_send = true;
    }
    pl_unlock(&r->lock);
    if (status == PL_OK) post(r);
    return status;
}

void pl_relay_go(pl_relay *r)
{
    pl_lock(&r->lock);
    r->wants_go = true;
    pl_unlock(&r->lock);
    post(r);
}

void pl_relay_cancel(pl_relay *r)
{
    pl_lock(&r->lock);
    r->cancel = true;
    pl_unlock(&r->lock);
    post(r);
}

void pl_relay_close(pl_relay *r)
{
    PL_ON(LUA);
    if (!r || atomic_exchange(&r->closed, true)) return;
    post(r);
    put(r);
}

int32_t pl_relay_id(const pl_relay *r)
{
    return r->id;
}

void pl_relay_flags(pl_relay *r, int hide_usage, int keep, int32_t n_prompt)
{
    r->hide_usage = hide_usage;
    r->keeps = keep;
    r->now.n_prompt = r->told.n_prompt = n_prompt;
}

void pl_relay_observe(pl_relay *r, int metric)
{
    r->metric = metric;
}

void pl_relay_charge(pl_relay *r, pl_load *l, int32_t n_tokens, int32_t n_cached)
{
    r->load = l;
    r->load_tokens = n_tokens;
    r->load_cached = n_cached;
}

/* ---- lua: asking ------------------------------------------------------------------- */

int pl_relay_status(const pl_relay *r)
{
    return r->status;
}

const char *pl_relay_header(const pl_relay *r, const char *name)
{
    return pl_fields_find(&r->fields, name);
}

const char *pl_relay_why(const pl_relay *r)
{
    return r->why;
}

const char *pl_relay_body(const pl_relay *r, size_t *len)
{
    *len = r->body.len;
    return r->body.len ? r->body.data : "";
}

const char *pl_relay_text(const pl_relay *r, size_t *len)
{
    *len = r->text.len;
    if (!r->keeps || !r->is_plain) return NULL;
    return r->text.len ? r->text.data : "";
}

void pl_relay_result(pl_relay *r, pl_stream_end *out, int32_t *n_prompt)
{
    pl_lock(&r->lock);
    *out = r->told.end;
    *n_prompt = r->told.n_prompt;
    pl_unlock(&r->lock);
}

/* ---- life -------------------------------------------------------------------------- */

static bool answer_taken(pl_news *news, bool lost)
{
    pl_relay *r = OF(answer_news, news);
    bool wanted = !lost && !atomic_load(&r->closed);
    put(r);
    return wanted;
}

static bool answered_taken(pl_news *news, bool lost)
{
    pl_relay *r = OF(answered_news, news);
    bool wanted = !lost && !atomic_load(&r->closed);
    put(r);
    return wanted;
}

pl_relay *pl_relays_make(pl_relays *rs, pl_exchange *x)
{
    static const pl_ask_hooks hooks = {on_head, on_body, on_rest, on_over};
    pl_relay *r = pl_alloc(sizeof *r);
    r->id = atomic_fetch_add(&rs->last_id, 1) % INT32_MAX + 1;
    atomic_init(&r->refs, 1);
    r->relays = rs;
    pl_loop_take(rs->loop);
    r->x = x;
    if (x) pl_exchange_take(x);
    r->metric = -1;
    r->is_plain = true;
    r->ask.hooks = &hooks;
    r->now.end.stop_string = r->now.end.stop_reason = -1;
    r->told = r->now;
    pl_mutex_init(&r->lock);
    r->watch = (pl_watch){.gone = on_gone, .drained = on_drained};
    r->note.run = run_note;
    r->answer_news = (pl_news){.event = {.kind = PL_EV_ANSWER, .id = r->id, .object = r},
                               .taken = answer_taken};
    r->answered_news =
        (pl_news){.event = {.kind = PL_EV_ANSWERED, .id = r->id, .object = r},
                  .taken = answered_taken};
    return r;
}

pl_relays *pl_relays_open(pl_loop *loop)
{
    pl_relays *rs = pl_alloc(sizeof *rs);
    rs->loop = loop;
    rs->upstream = pl_upstream_open(loop);
    return rs;
}

pl_status pl_relays_trust(pl_relays *rs, const char *ca)
{
    return pl_upstream_trust(rs->upstream, ca);
}

void pl_relays_stop(pl_relays *rs)
{
    PL_ON(IO);
    while (rs->living) finish(rs->living, PL_ECANCELED, "the process ends");
    pl_upstream_stop(rs->upstream);
}

void pl_relays_close(pl_relays *rs)
{
    pl_upstream_close(rs->upstream);
    pl_buf_fini(&rs->scratch);
    pl_free(rs);
}
