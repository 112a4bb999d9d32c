/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include "seq.h"

#include <string.h>

enum {
    MAX_STOPS = 256,
    MAX_STOP_BYTES = 65536,
    PRIME = 6 /* of a prompt's last ids: so far back its decoder looks */
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

struct pl_stream {
    int32_t id;
    atomic_int refs;
    pl_streams *streams;
    pl_loop *loop;
    pl_course course;
    const pl_text *text;
    int mode;
    pl_exchange *x;

    /* Set by lua before the start, then read by io. */
    pl_buf before, after, prime;
    stop *stops;
    int n_stops;
    bool skip_special, include_stop;
    int32_t interval, min_tokens;
    int gap_metric; /* a histogram of the seconds between tokens; negative: none */
    pl_detok *detok;
    atomic_bool framed; /* lua sets it, perhaps after the start: pieces may go */

    /* io */
    pl_stream *next, **link; /* among the living: from its first start to its end */
    bool watching;
    pl_watch watch;
    pl_buf held;    /* text not let go yet */
    int32_t length; /* of the whole text, held or not */
    int32_t n_unsent;
    bool sent;
    bag own;

    pl_mutex lock; /* over what both touch: */
    bool cancel, told;
    bag back;
    pl_stream_end end;

    bag front;          /* lua */
    atomic_bool closed; /* lua writes */
    pl_note note;
    pl_news piece_news, done_news, lost_news;
};

struct pl_streams {
    pl_loop *loop;
    pl_courses *courses;
    atomic_int last_id;
    pl_stream *living;
    pl_buf fresh, frame; /* scratch: a token's text; an event */
};

static void put(pl_stream *s);

/* ---- the living -------------------------------------------------------------------- */

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

static void finish(pl_stream *s, int reason, int stop_reason, int stop_string)
{
    if (s->watching) pl_exchange_unwatch(s->x, &s->watch);
    move_buf(&s->own.text, &s->held);
    hand_to_lua(s, false);
    pl_lock(&s->lock);
    s->end.finish = reason;
    s->end.stop_reason = stop_reason;
    s->end.stop_string = stop_string;
    pl_unlock(&s->lock);
    pl_course_end(&s->course, reason == PL_FINISH_ABORT);
    tell(s, &s->done_news);
    leave(s);
}

static void on_gone(pl_watch *watch)
{
    pl_stream *s = (pl_stream *)((char *)watch - offsetof(pl_stream, watch));
    s->watching = false;
    finish(s, PL_FINISH_ABORT, -1, -1);
}

/* ---- io: what its course says ------------------------------------------------------ */

static pl_stream *of_course(pl_course *c)
{
    return (pl_stream *)((char *)c - offsetof(pl_stream, course));
}

static void on_started(pl_course *c, int64_t ns)
{
    pl_stream *s = of_course(c);
    pl_lock(&s->lock); /* lua may look at any time: pl_stream_result */
    if (!s->end.scheduled_ns) s->end.scheduled_ns = ns;
    pl_unlock(&s->lock);
}

static void on_lost(pl_course *c, int why, int status)
{
    pl_stream *s = of_course(c);
    s->lost_news.event.a = why;
    s->lost_news.event.b = status;
    tell(s, &s->lost_news);
}

static void count(pl_stream *s, const pl_token *t, int64_t ns)
{
    pl_stream_end *end = &s->end;
    if (end->n_tokens && s->gap_metric >= 0)
        pl_metric_observe(s->gap_metric, (double)(ns - end->last_ns) * 1e-9);
    pl_lock(&s->lock); /* lua may look at any time: pl_stream_result */
    if (!end->n_tokens++) {
        end->first_ns = ns;
        end->n_cached = t->n_cached;
    }
    end->last_ns = ns;
    pl_unlock(&s->lock);
    s->n_unsent++;
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

static void on_token(pl_course *c, const pl_token *t, int64_t ns)
{
    pl_stream *s = of_course(c);
    if (t->token >= 0) count(s, t, ns);
    pl_buf *fresh = &s->streams->fresh;
    take_text(s, t, fresh);
    if (t->finish) pl_detok_flush(s->detok, fresh);
    size_t before = s->held.len, end = 0;
    pl_buf_add(&s->held, fresh->data, fresh->len);
    s->length += (int32_t)fresh->len;
    int hit = s->n_stops ? find_stop(s, fresh->data, fresh->len, &end) : -1;
    if (hit >= 0) {
        s->held.len = before + end - (s->include_stop ? 0 : (size_t)s->stops[hit].len);
        finish(s, PL_FINISH_STOP, -1, hit);
    } else if (t->finish) {
        finish(s, t->finish, t->stop_reason, -1);
    } else {
        let_go(s);
    }
}

/* ---- io: what Lua says ------------------------------------------------------------- */

/* Whether its client is there, if it has one. */
static bool begin(pl_stream *s)
{
    join(s);
    if (s->x) s->watching = pl_exchange_watch(s->x, &s->watch);
    return !s->x || s->watching;
}

static void run_note(pl_note *note)
{
    pl_stream *s = (pl_stream *)((char *)note - offsetof(pl_stream, note));
    bool first = !s->link && pl_course_is_live(&s->course);
    bool gone = first && !begin(s);
    pl_lock(&s->lock);
    bool cancel = s->cancel || atomic_load(&s->closed);
    pl_unlock(&s->lock);
    if (s->link && (gone || cancel || pl_courses_stopped(s->streams->courses)))
        finish(s, PL_FINISH_ABORT, -1, -1);
    else
        pl_course_run(&s->course);
    put(s);
}

static void on_soon(pl_course *c, bool later)
{
    pl_stream *s = of_course(c);
    atomic_fetch_add(&s->refs, 1);
    bool posted =
        later ? pl_loop_post_later(s->loop, &s->note) : pl_loop_post(s->loop, &s->note);
    if (!posted) put(s);
}

/* ---- lua --------------------------------------------------------------------------- */

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

void pl_stream_prime(pl_stream *s, const pl_seq *prompt)
{
    int32_t n = PL_MIN(prompt->n_given, PRIME);
    s->prime.len = 0;
    pl_buf_add(&s->prime, prompt->tokens + prompt->n_given - n,
               (size_t)n * sizeof *prompt->tokens);
}

void pl_stream_keep(pl_stream *s)
{
    s->course.keeps = true;
}

void pl_stream_charge(pl_stream *s, pl_load *l, int32_t n_cached)
{
    PL_ON(LUA);
    pl_course_charge(&s->course, l, n_cached);
}

pl_seq *pl_stream_kept(pl_stream *s)
{
    PL_ON(LUA);
    return pl_course_kept(&s->course);
}

static void open_detok(pl_stream *s)
{
    if (s->detok) return;
    s->detok = pl_detok_open(s->text, s->skip_special);
    pl_detok_prime(s->detok, (const int32_t *)s->prime.data,
                   (int)(s->prime.len / sizeof(int32_t)));
}

pl_status pl_stream_start(pl_stream *s, pl_engine *e, pl_seq *seq)
{
    int64_t now = pl_now_ns();
    open_detok(s);
    PL_TRY(pl_course_start(&s->course, e, seq));
    if (!s->end.submitted_ns) s->end.submitted_ns = now;
    return PL_OK;
}

pl_status pl_stream_send(pl_stream *s, int32_t peer, int index, pl_seq *seq)
{
    int64_t now = pl_now_ns();
    open_detok(s);
    PL_TRY(pl_course_send(&s->course, peer, index, seq));
    if (!s->end.submitted_ns) s->end.submitted_ns = now;
    return PL_OK;
}

pl_status pl_stream_also(pl_stream *s, pl_engine *e, int32_t peer, int index)
{
    return pl_course_also(&s->course, e, peer, index);
}

pl_status pl_stream_split(pl_stream *s, const pl_target *reader, const pl_target *taker,
                          pl_seq *seq)
{
    int64_t now = pl_now_ns();
    open_detok(s);
    PL_TRY(pl_course_split(&s->course, reader, taker, seq));
    if (!s->end.submitted_ns) s->end.submitted_ns = now;
    return PL_OK;
}

int pl_stream_by_reader(const pl_stream *s)
{
    return pl_course_by_reader(&s->course);
}

void pl_stream_charge_reader(pl_stream *s, pl_load *l, int32_t n_cached)
{
    pl_course_charge_reader(&s->course, l, n_cached);
}

void pl_stream_recall(pl_stream *s)
{
    pl_course_recall(&s->course);
}

const char *pl_stream_why(pl_stream *s)
{
    return pl_course_why(&s->course);
}

const char *pl_stream_take(pl_stream *s, size_t *len)
{
    PL_ON(LUA);
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

void pl_stream_result(pl_stream *s, pl_stream_end *out)
{
    pl_lock(&s->lock); /* while it is lost, its client may go */
    *out = s->end;
    pl_unlock(&s->lock);
}

void pl_stream_cancel(pl_stream *s)
{
    bool live = pl_course_is_live(&s->course);
    pl_lock(&s->lock);
    s->cancel = live;
    pl_unlock(&s->lock);
    on_soon(&s->course, false);
}

void pl_stream_close(pl_stream *s)
{
    PL_ON(LUA);
    if (!s || atomic_exchange(&s->closed, true)) return;
    on_soon(&s->course, false);
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
    pl_course_heard_lost(&s->course);
    put(s);
    return wanted;
}

pl_stream *pl_streams_make(pl_streams *ss, const pl_text *text, int mode, pl_exchange *x)
{
    pl_stream *s = pl_alloc(sizeof *s);
    static const pl_course_hooks hooks = {on_soon, on_started, on_token, on_lost};
    s->id = atomic_fetch_add(&ss->last_id, 1) % INT32_MAX + 1;
    pl_course_init(&s->course, ss->courses, &hooks, s->id);
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
    pl_course_fini(&s->course);
    pl_mutex_fini(&s->lock);
    pl_free(s);
    pl_loop_put(loop);
}

pl_streams *pl_streams_open(pl_loop *loop, pl_courses *courses)
{
    pl_streams *ss = pl_alloc(sizeof *ss);
    ss->loop = loop;
    ss->courses = courses;
    return ss;
}

void pl_streams_stop(pl_streams *ss)
{
    PL_ON(IO);
    pl_courses_stop(ss->courses);
    while (ss->living) finish(ss->living, PL_FINISH_ABORT, -1, -1);
}

void pl_streams_close(pl_streams *ss)
{
    pl_buf_fini(&ss->fresh);
    pl_buf_fini(&ss->frame);
    pl_free(ss);
}
