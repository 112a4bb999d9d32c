/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include "seq.h"
#include "wire.h"

#include <string.h>

enum {
    MAX_STOPS = 256,
    MAX_STOP_BYTES = 65536,
    MAX_PARCEL = 32 << 20 /* bytes of a sequence that is sent */
};

enum {
    IDLE,    /* never started */
    RUNNING, /* io may not have heard of it yet */
    LOSING,  /* lost, but Lua has not heard of it yet */
    LOST,
    OVER
};

typedef struct stop {
    char *text;
    int32_t *fail; /* where to go on when the next byte is another */
    int32_t len, state;
} stop;

typedef struct bag { /* what is on its way to Lua */
    pl_buf text;
    pl_buf tokens; /* pl_token; `top` is set when it is taken */
    pl_buf starts; /* int32 */
    pl_buf tops;   /* pl_logprob: of each token `top`, then `prompt_top` */
} bag;

typedef struct order { /* where io is to bring a sequence */
    pl_engine *engine; /* it is there already; NULL: */
    int32_t peer, index;
    pl_buf parcel;
} order;

struct pl_stream {
    int32_t id;
    atomic_int refs;
    pl_streams *streams;
    pl_loop *loop;
    const pl_text *text;
    int mode;
    pl_exchange *x;

    /* Set by lua before the start, then read by io. */
    pl_buf before, after, prime;
    stop *stops;
    int n_stops;
    bool skip_special, include_stop, keep;
    int32_t interval, min_tokens;
    int gap_metric; /* a histogram of the seconds between tokens; negative: none */
    pl_detok *detok;
    atomic_bool framed; /* lua sets it, perhaps after the start: pieces may go */

    /* io */
    pl_stream *next, **link; /* among the living: from its first start to its end */
    int32_t mapped;          /* the sequence that it is found by; 0: none */
    pl_place place;          /* where that runs */
    int64_t began_ns;        /* when io sent it there */
    bool watching;
    pl_watch watch;
    pl_buf held;    /* text not let go yet */
    int32_t length; /* of the whole text, held or not */
    int32_t n_unsent;
    bool sent;
    bag own;
    pl_seq *kept; /* what goes on elsewhere if this is lost; while LOST: lua's */

    pl_mutex lock; /* over what both touch: */
    int state;
    int32_t seq;
    order order;
    bool cancel, recall, told;
    bag back;
    pl_buf why;
    pl_stream_end end;

    bag front;          /* lua */
    atomic_bool closed; /* lua writes */
    pl_note note;
    pl_news piece_news, done_news, lost_news;
};

struct pl_streams {
    pl_loop *loop;
    atomic_int last_id;
    pl_map by_seq;
    pl_stream *living;
    pl_sender sender;
    bool stopped;
    pl_buf fresh, frame; /* scratch: a token's text; an event */
};

static void put(pl_stream *s);

/* ---- the living, and the running by sequence --------------------------------------- */

static void join(pl_stream *s)
{
    if (s->link) return;
    pl_streams *ss = s->streams;
    s->next = ss->living;
    s->link = &ss->living;
    if (s->next) s->next->link = &s->next;
    ss->living = s;
    atomic_fetch_add(&s->refs, 1);
}

/* Perhaps it was the last who knew it. */
static void leave(pl_stream *s)
{
    *s->link = s->next;
    if (s->next) s->next->link = s->link;
    s->link = NULL;
    put(s);
}

static void unmap(pl_stream *s)
{
    if (s->mapped) pl_map_remove(&s->streams->by_seq, (uint64_t)s->mapped);
    s->mapped = 0;
}

static pl_stream *find(const pl_streams *ss, int32_t seq)
{
    return seq > 0 ? pl_map_find(&ss->by_seq, (uint64_t)seq) : NULL;
}

/* ---- bags -------------------------------------------------------------------------- */

static void bag_fini(bag *b)
{
    pl_buf_fini(&b->text);
    pl_buf_fini(&b->tokens);
    pl_buf_fini(&b->starts);
    pl_buf_fini(&b->tops);
}

static void bag_clear(bag *b)
{
    b->text.len = b->tokens.len = b->starts.len = b->tops.len = 0;
}

static void bag_keep(bag *b, const pl_token *t, int32_t start)
{
    pl_buf_add(&b->tokens, t, sizeof *t);
    pl_buf_add_i32(&b->starts, start);
    pl_buf_add(&b->tops, t->top, t->top ? (size_t)t->n_top * sizeof *t->top : 0);
    pl_buf_add(&b->tops, t->prompt_top,
               t->prompt_top ? (size_t)t->n_prompt_top * sizeof *t->prompt_top : 0);
}

static void move_buf(pl_buf *to, pl_buf *from)
{
    if (!to->len) {
        pl_buf spare = *to;
        *to = *from;
        *from = spare;
    } else {
        pl_buf_add(to, from->data, from->len);
        from->len = 0;
    }
}

static void bag_move(bag *to, bag *from)
{
    move_buf(&to->text, &from->text);
    move_buf(&to->tokens, &from->tokens);
    move_buf(&to->starts, &from->starts);
    move_buf(&to->tops, &from->tops);
}

/* The buffers stand still now: the tokens may point into them. */
static void bag_point(bag *b)
{
    pl_token *t = (pl_token *)b->tokens.data;
    const pl_logprob *top = (const pl_logprob *)b->tops.data;
    for (size_t i = 0; i < b->tokens.len / sizeof *t; i++) {
        if (t[i].top) t[i].top = top, top += t[i].n_top;
        if (t[i].prompt_top) t[i].prompt_top = top, top += t[i].n_prompt_top;
    }
}

/* ---- stop strings ------------------------------------------------------------------ */

static void stop_open(stop *p, const char *text, int32_t len)
{
    *p = (stop){pl_strndup(text, (size_t)len), pl_alloc((size_t)len * sizeof *p->fail),
                len, 0};
    for (int32_t i = 1, k = 0; i < len; i++) {
        while (k && text[i] != text[k]) k = p->fail[k - 1];
        k += text[i] == text[k];
        p->fail[i] = k;
    }
}

static bool stop_step(stop *p, char c)
{
    while (p->state && c != p->text[p->state]) p->state = p->fail[p->state - 1];
    p->state += c == p->text[p->state];
    if (p->state < p->len) return false;
    p->state = p->fail[p->len - 1];
    return true;
}

/* The stop string that ends first in `s`, or -1; `end` is where. */
static int find_stop(pl_stream *st, const char *s, size_t len, size_t *end)
{
    bool counts = st->end.n_tokens > st->min_tokens;
    for (size_t i = 0; i < len; i++) {
        int hit = -1;
        for (int k = st->n_stops - 1; k >= 0; k--)
            if (stop_step(&st->stops[k], s[i])) hit = k;
        if (hit < 0 || !counts) continue;
        *end = i + 1;
        return hit;
    }
    return -1;
}

static size_t n_undecided(const pl_stream *s)
{
    int32_t n = 0;
    for (int i = 0; !s->include_stop && i < s->n_stops; i++)
        n = PL_MAX(n, s->stops[i].state);
    return (size_t)n;
}

/* ---- letting go of text ------------------------------------------------------------ */

static void tell(pl_stream *s, pl_news *news)
{
    atomic_fetch_add(&s->refs, 1);
    if (!pl_loop_tell(s->loop, news)) put(s);
}

static const pl_buf *frame_text(pl_stream *s, size_t len)
{
    pl_buf *frame = &s->streams->frame;
    frame->len = 0;
    pl_buf_add(frame, s->before.data, s->before.len);
    pl_buf_add_json(frame, s->held.data, len);
    pl_buf_add(frame, s->after.data, s->after.len);
    return frame;
}

static void hand_to_lua(pl_stream *s, bool piece)
{
    pl_lock(&s->lock);
    bag_move(&s->back, &s->own);
    bool news = piece && !s->told;
    s->told = s->told || piece;
    pl_unlock(&s->lock);
    if (news) tell(s, &s->piece_news);
}

/* Writing may find that Lua has cut the exchange off, and so end the stream and free it:
 * it is the last thing done. */
static void let_go(pl_stream *s)
{
    size_t len = s->held.len - n_undecided(s);
    if (s->mode == PL_STREAM_WHOLE || !len || (s->sent && s->n_unsent < s->interval))
        return;
    if (s->mode == PL_STREAM_SSE && !atomic_load(&s->framed)) return;
    const pl_buf *frame = s->mode == PL_STREAM_SSE ? frame_text(s, len) : NULL;
    if (!frame) pl_buf_add(&s->own.text, s->held.data, len);
    s->held.len -= len;
    memmove(s->held.data, s->held.data + len, s->held.len);
    s->n_unsent = 0;
    s->sent = true;
    if (frame)
        pl_exchange_piece(s->x, frame->data, frame->len);
    else
        hand_to_lua(s, true);
}

static void finish(pl_stream *s, int reason, int stop_reason, int stop_string,
                   bool cancel)
{
    int32_t seq = s->mapped;
    if (s->watching) pl_exchange_unwatch(s->x, &s->watch);
    move_buf(&s->own.text, &s->held);
    hand_to_lua(s, false);
    pl_lock(&s->lock);
    s->state = OVER;
    s->end.finish = reason;
    s->end.stop_reason = stop_reason;
    s->end.stop_string = stop_string;
    pl_unlock(&s->lock);
    unmap(s);
    if (cancel && seq) s->place.cancel(s->place.ctx, seq, reason == PL_FINISH_ABORT);
    tell(s, &s->done_news);
    leave(s);
}

static void on_gone(pl_watch *watch)
{
    pl_stream *s = (pl_stream *)((char *)watch - offsetof(pl_stream, watch));
    s->watching = false;
    finish(s, PL_FINISH_ABORT, -1, -1, true);
}

/* It runs nowhere now; what its old place may still say finds nobody. */
static void lose(pl_stream *s, int why, int status, const char *text, size_t len)
{
    unmap(s);
    pl_lock(&s->lock);
    s->state = LOSING;
    s->recall = false;
    s->why.len = 0;
    pl_buf_add(&s->why, text, len);
    pl_buf_add(&s->why, "", 1);
    pl_unlock(&s->lock);
    s->lost_news.event.a = why;
    s->lost_news.event.b = status;
    tell(s, &s->lost_news);
}

/* ---- io: tokens -------------------------------------------------------------------- */

void pl_streams_started(pl_streams *ss, int32_t seq, int64_t ns)
{
    pl_stream *s = find(ss, seq);
    if (s && !s->end.scheduled_ns) s->end.scheduled_ns = ns;
}

void pl_streams_waited(pl_streams *ss, int32_t seq, int64_t ns)
{
    pl_stream *s = find(ss, seq);
    if (!s || s->end.scheduled_ns) return;
    s->end.scheduled_ns = s->began_ns + PL_MIN(ns, pl_now_ns() - s->began_ns);
}

void pl_streams_lost(pl_streams *ss, int32_t seq, int why, int status, const char *text,
                     size_t len)
{
    pl_stream *s = find(ss, seq);
    if (s) lose(s, why, status, text, len);
}

static void count(pl_stream *s, const pl_token *t, int64_t ns)
{
    pl_stream_end *end = &s->end;
    if (!end->n_tokens++) {
        end->first_ns = ns;
        end->n_cached = t->n_cached;
    } else if (s->gap_metric >= 0) {
        pl_metric_observe(s->gap_metric, (double)(ns - end->last_ns) * 1e-9);
    }
    end->last_ns = ns;
    s->n_unsent++;
}

/* How it ends with this token: so much of it is there that a peer which goes on and on
 * is not listened to. */
static int finish_of(pl_stream *s, const pl_token *t)
{
    if (t->token < 0 || !s->kept) return t->finish;
    pl_seq_append(s->kept, t->token);
    bool full = s->kept->n_tokens - s->kept->n_prompt >= s->kept->params.max_tokens;
    return full && !t->finish ? PL_FINISH_LENGTH : t->finish;
}

static void take_text(pl_stream *s, const pl_token *t, pl_buf *fresh)
{
    fresh->len = 0;
    if (t->token < 0) return;
    if (s->mode != PL_STREAM_SSE) bag_keep(&s->own, t, s->length);
    /* A token that ends the sequence is no part of the text, as stop strings are not. */
    if (t->finish != PL_FINISH_STOP || s->include_stop)
        pl_detok_push(s->detok, t->token, fresh);
}

void pl_streams_token(pl_streams *ss, const pl_token *t, int64_t ns)
{
    pl_stream *s = find(ss, t->seq);
    if (!s) return;
    if (t->finish == PL_FINISH_ABORT && s->kept) { /* its engine closes */
        lose(s, PL_LOST_LEFT, PL_ECANCELED, NULL, 0);
        return;
    }
    if (t->token >= 0) count(s, t, ns);
    int ends = finish_of(s, t);
    pl_buf *fresh = &ss->fresh;
    take_text(s, t, fresh);
    if (ends) pl_detok_flush(s->detok, fresh);
    size_t before = s->held.len, end = 0;
    pl_buf_add(&s->held, fresh->data, fresh->len);
    s->length += (int32_t)fresh->len;
    int hit = s->n_stops ? find_stop(s, fresh->data, fresh->len, &end) : -1;
    if (hit >= 0) {
        s->held.len = before + end - (s->include_stop ? 0 : (size_t)s->stops[hit].len);
        finish(s, PL_FINISH_STOP, -1, hit, !t->finish);
    } else if (ends) {
        finish(s, ends, t->stop_reason, -1, !t->finish);
    } else {
        let_go(s);
    }
}

/* ---- io: what Lua says ------------------------------------------------------------- */

static void cancel_here(void *ctx, int32_t seq, bool aborted)
{
    (void)aborted;
    pl_engine_cancel(ctx, seq);
}

static void begin(pl_stream *s, int32_t seq, order *o)
{
    pl_streams *ss = s->streams;
    bool first = !s->link;
    join(s);
    s->mapped = seq;
    s->began_ns = pl_now_ns();
    pl_map_put(&ss->by_seq, (uint64_t)seq, s);
    s->place = o->engine ? (pl_place){cancel_here, o->engine}
                         : (pl_place){ss->sender.cancel, ss->sender.ctx};
    if (first && s->x) s->watching = pl_exchange_watch(s->x, &s->watch);
    if (ss->stopped || (first && s->x && !s->watching))
        finish(s, PL_FINISH_ABORT, -1, -1, o->engine);
    else if (!o->engine)
        ss->sender.send(ss->sender.ctx, seq, o->peer, o->index, &o->parcel);
}

static void recall_now(pl_stream *s)
{
    s->place.cancel(s->place.ctx, s->mapped, false);
    lose(s, PL_LOST_RECALLED, 0, NULL, 0);
}

static void run_note(pl_note *note)
{
    pl_stream *s = (pl_stream *)((char *)note - offsetof(pl_stream, note));
    pl_lock(&s->lock);
    int state = s->state;
    int32_t seq = state == RUNNING ? s->seq : 0;
    order o = s->order;
    s->order = (order){0};
    bool cancel = s->cancel || atomic_load(&s->closed), recall = s->recall;
    pl_unlock(&s->lock);
    if (seq && seq != s->mapped) begin(s, seq, &o);
    if (cancel && s->link)
        finish(s, PL_FINISH_ABORT, -1, -1, true);
    else if (recall && s->mapped && s->kept)
        recall_now(s);
    pl_buf_fini(&o.parcel);
    put(s);
}

/* ---- lua --------------------------------------------------------------------------- */

static void post(pl_stream *s)
{
    atomic_fetch_add(&s->refs, 1);
    if (!pl_loop_post(s->loop, &s->note)) put(s);
}

int32_t pl_stream_id(const pl_stream *s)
{
    return s->id;
}

void pl_stream_frame(pl_stream *s, const char *before, size_t before_len,
                     const char *after, size_t after_len)
{
    s->before.len = s->after.len = 0;
    pl_buf_add(&s->before, before, before_len);
    pl_buf_add(&s->after, after, after_len);
    atomic_store(&s->framed, true);
}

pl_status pl_stream_stop(pl_stream *s, const char *text, size_t len)
{
    if (!len) return pl_fail(PL_EINVAL, "a stop string is empty");
    if (len > MAX_STOP_BYTES)
        return pl_fail(PL_ELIMIT, "a stop string has %zu bytes; %d are allowed", len,
                       MAX_STOP_BYTES);
    if (s->n_stops == MAX_STOPS)
        return pl_fail(PL_ELIMIT, "there are more than %d stop strings", MAX_STOPS);
    s->stops = pl_realloc(s->stops, (size_t)(s->n_stops + 1) * sizeof *s->stops);
    stop_open(&s->stops[s->n_stops++], text, (int32_t)len);
    return PL_OK;
}

void pl_stream_flags(pl_stream *s, int skip_special, int include_stop, int interval,
                     int min_tokens)
{
    s->skip_special = skip_special;
    s->include_stop = include_stop;
    s->interval = interval;
    s->min_tokens = min_tokens;
}

void pl_stream_observe(pl_stream *s, int metric)
{
    s->gap_metric = metric;
}

void pl_stream_prime(pl_stream *s, const int32_t *prompt, int n)
{
    s->prime.len = 0;
    pl_buf_add(&s->prime, prompt, n > 0 ? (size_t)n * sizeof *prompt : 0);
}

void pl_stream_keep(pl_stream *s)
{
    s->keep = true;
}

/* With the lock held: whether it may be started, with a sequence or (NULL) again. */
static pl_status check_start(const pl_stream *s, const pl_seq *seq)
{
    if (s->state == OVER) return pl_fail(PL_ECANCELED, "stream %d is over", s->id);
    if (s->state == RUNNING || s->state == LOSING)
        return pl_fail(PL_EINVAL, "stream %d is running already", s->id);
    if (s->state == IDLE && !seq)
        return pl_fail(PL_EINVAL, "stream %d has no sequence yet", s->id);
    if (s->state == LOST && seq)
        return pl_fail(PL_EINVAL, "stream %d has a sequence, which goes on", s->id);
    return PL_OK;
}

static void open_detok(pl_stream *s)
{
    if (s->detok) return;
    s->detok = pl_detok_open(s->text, s->skip_special);
    pl_detok_prime(s->detok, (const int32_t *)s->prime.data,
                   (int)(s->prime.len / sizeof(int32_t)));
}

static void set_running(pl_stream *s, int32_t seq, const order *o)
{
    s->state = RUNNING;
    s->seq = seq;
    s->order = *o;
    if (!s->end.submitted_ns) s->end.submitted_ns = pl_now_ns();
}

/* With the lock held, so that io hears of it only once it is there; the note is in line
 * before the first token can come. */
static pl_status submit(pl_stream *s, pl_engine *e, pl_seq *seq)
{
    atomic_fetch_add(&s->refs, 1);
    if (!pl_loop_post_later(s->loop, &s->note)) put(s);
    int32_t id = seq->id;
    PL_TRY(pl_engine_submit(e, seq));
    set_running(s, id, &(order){.engine = e});
    return PL_OK;
}

/* What had its prompt's logprobs told is not to tell them twice. */
static void freshen(pl_stream *s, pl_seq *seq)
{
    if (s->end.n_tokens) seq->params.prompt_logprobs = -1;
}

pl_status pl_stream_start(pl_stream *s, pl_engine *e, pl_seq *seq)
{
    pl_lock(&s->lock);
    pl_status status = check_start(s, seq);
    pl_unlock(&s->lock);
    PL_TRY(status);
    open_detok(s);
    pl_seq *copy = seq ? s->keep ? pl_seq_copy(seq) : NULL : pl_seq_copy(s->kept);
    pl_seq *runs = seq ? seq : copy;
    freshen(s, runs);
    pl_engine_hash(e, runs); /* the long part, before the lock */
    pl_lock(&s->lock);
    status = check_start(s, seq); /* it may have ended meanwhile */
    if (status == PL_OK) status = submit(s, e, runs);
    if (status == PL_OK && seq) s->kept = copy, copy = NULL;
    pl_unlock(&s->lock);
    if (status == PL_OK) return PL_OK;
    pl_seq_close(copy);
    return status;
}

pl_status pl_stream_send(pl_stream *s, int32_t peer, int index, pl_seq *seq)
{
    if (!s->streams->sender.send) return pl_fail(PL_EINVAL, "there is no bus to send by");
    if (index < 0) return pl_fail(PL_EINVAL, "engine %d of process %d", index, peer);
    pl_lock(&s->lock);
    pl_status status = check_start(s, seq);
    pl_unlock(&s->lock);
    PL_TRY(status);
    open_detok(s);
    pl_seq *goes = seq ? seq : s->kept;
    if (!seq) pl_seq_renew(goes);
    freshen(s, goes);
    order o = {.peer = peer, .index = index};
    pl_wire_put_seq(&o.parcel, goes);
    size_t len = o.parcel.len;
    pl_lock(&s->lock);
    status = len > MAX_PARCEL
                 ? pl_fail(PL_ELIMIT, "a sequence of %zu bytes: at most %d can be sent",
                           len, MAX_PARCEL)
                 : check_start(s, seq); /* it may have ended meanwhile */
    if (status == PL_OK) {
        s->kept = goes;
        set_running(s, goes->id, &o);
    }
    pl_unlock(&s->lock);
    if (status == PL_OK)
        post(s);
    else
        pl_buf_fini(&o.parcel);
    return status;
}

void pl_stream_recall(pl_stream *s)
{
    pl_lock(&s->lock);
    s->recall = s->state == RUNNING;
    pl_unlock(&s->lock);
    post(s);
}

const char *pl_stream_why(pl_stream *s)
{
    return s->why.len ? s->why.data : ""; /* io is silent while it is lost */
}

const char *pl_stream_take(pl_stream *s, size_t *len)
{
    bag_clear(&s->front);
    pl_lock(&s->lock);
    bag spare = s->front;
    s->front = s->back;
    s->back = spare;
    s->told = false;
    pl_unlock(&s->lock);
    bag_point(&s->front);
    *len = s->front.text.len;
    return s->front.text.len ? s->front.text.data : "";
}

int pl_stream_tokens(pl_stream *s, const pl_token **tokens, const int32_t **starts)
{
    *tokens = (const pl_token *)s->front.tokens.data;
    *starts = (const int32_t *)s->front.starts.data;
    return (int)(s->front.tokens.len / sizeof(pl_token));
}

void pl_stream_result(const pl_stream *s, pl_stream_end *out)
{
    *out = s->end; /* io writes it no more after DONE */
}

void pl_stream_cancel(pl_stream *s)
{
    pl_lock(&s->lock);
    s->cancel = s->state != IDLE;
    pl_unlock(&s->lock);
    post(s);
}

void pl_stream_close(pl_stream *s)
{
    if (!s || atomic_exchange(&s->closed, true)) return;
    post(s);
    put(s);
}

/* ---- life -------------------------------------------------------------------------- */

static bool piece_taken(pl_news *news, bool lost)
{
    pl_stream *s = (pl_stream *)((char *)news - offsetof(pl_stream, piece_news));
    bool wanted = !lost && !atomic_load(&s->closed);
    put(s);
    return wanted;
}

static bool done_taken(pl_news *news, bool lost)
{
    pl_stream *s = (pl_stream *)((char *)news - offsetof(pl_stream, done_news));
    bool wanted = !lost && !atomic_load(&s->closed);
    put(s);
    return wanted;
}

static bool lost_taken(pl_news *news, bool lost)
{
    pl_stream *s = (pl_stream *)((char *)news - offsetof(pl_stream, lost_news));
    bool wanted = !lost && !atomic_load(&s->closed);
    pl_lock(&s->lock);
    if (s->state == LOSING) s->state = LOST;
    pl_unlock(&s->lock);
    put(s);
    return wanted;
}

pl_stream *pl_streams_make(pl_streams *ss, const pl_text *text, int mode, pl_exchange *x)
{
    pl_stream *s = pl_alloc(sizeof *s);
    s->id = atomic_fetch_add(&ss->last_id, 1) % INT32_MAX + 1;
    s->gap_metric = -1;
    atomic_init(&s->refs, 1);
    s->streams = ss;
    s->loop = ss->loop;
    pl_loop_take(s->loop);
    s->text = text;
    s->mode = mode;
    s->x = x;
    if (x) pl_exchange_take(x);
    s->end.stop_string = s->end.stop_reason = -1;
    pl_mutex_init(&s->lock);
    s->watch.gone = on_gone;
    s->note.run = run_note;
    s->piece_news = (pl_news){.event = {.kind = PL_EV_PIECE, .id = s->id, .object = s},
                              .taken = piece_taken};
    s->done_news = (pl_news){.event = {.kind = PL_EV_DONE, .id = s->id, .object = s},
                             .taken = done_taken};
    s->lost_news = (pl_news){.event = {.kind = PL_EV_LOST, .id = s->id, .object = s},
                             .taken = lost_taken};
    return s;
}

static void put(pl_stream *s)
{
    if (atomic_fetch_sub(&s->refs, 1) > 1) return;
    pl_loop *loop = s->loop;
    if (s->detok) pl_detok_close(s->detok);
    if (s->x) pl_exchange_put(s->x);
    for (int i = 0; i < s->n_stops; i++) {
        pl_free(s->stops[i].text);
        pl_free(s->stops[i].fail);
    }
    pl_free(s->stops);
    pl_buf_fini(&s->before);
    pl_buf_fini(&s->after);
    pl_buf_fini(&s->prime);
    pl_buf_fini(&s->held);
    bag_fini(&s->own);
    bag_fini(&s->back);
    bag_fini(&s->front);
    pl_seq_close(s->kept);
    pl_buf_fini(&s->order.parcel);
    pl_buf_fini(&s->why);
    pl_mutex_fini(&s->lock);
    pl_free(s);
    pl_loop_put(loop);
}

pl_streams *pl_streams_open(pl_loop *loop)
{
    pl_streams *ss = pl_alloc(sizeof *ss);
    ss->loop = loop;
    return ss;
}

void pl_streams_sender(pl_streams *ss, const pl_sender *sender)
{
    ss->sender = *sender;
}

void pl_streams_stop(pl_streams *ss)
{
    ss->stopped = true;
    while (ss->living) finish(ss->living, PL_FINISH_ABORT, -1, -1, false);
}

void pl_streams_close(pl_streams *ss)
{
    pl_map_fini(&ss->by_seq);
    pl_buf_fini(&ss->fresh);
    pl_buf_fini(&ss->frame);
    pl_free(ss);
}
