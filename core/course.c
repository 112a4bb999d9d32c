/* SPDX-License-Identifier: Apache-2.0 */
#include "course.h"

#include "seq.h"
#include "wire.h"

#include <stdio.h>
#include <string.h>

enum {
    MAX_PARCEL = 32 << 20 /* bytes of a sequence that is sent */
};

enum {
    IDLE,    /* never started */
    RUNNING, /* io may not have heard of it yet */
    LOSING,  /* lost, but lua has not heard of it yet */
    LOST,
    OVER
};

struct pl_courses {
    pl_map by_seq; /* places */
    pl_xfer *xfer;
    pl_course *split; /* those whose taker waits for the reader to begin */
    pl_sender sender;
    bool stopped;
};

static pl_place *find(const pl_courses *cs, int32_t seq)
{
    return seq > 0 ? pl_map_find(&cs->by_seq, (uint64_t)seq) : NULL;
}

/* ---- places ------------------------------------------------------------------------ */

static pl_place *enter(pl_course *c, int32_t seq, pl_engine *engine)
{
    pl_place *p = c->places;
    while (p->seq) p++;
    *p = (pl_place){.course = c, .seq = seq, .engine = engine, .began_ns = pl_now_ns()};
    pl_map_put(&c->all->by_seq, (uint64_t)seq, p);
    return p;
}

/* What the place may still say finds nobody. */
static void forget(pl_place *p)
{
    if (p->seq) pl_map_remove(&p->course->all->by_seq, (uint64_t)p->seq);
    p->seq = 0;
}

static void withdraw(pl_place *p, bool aborted)
{
    int32_t seq = p->seq;
    if (!seq) return;
    const pl_sender *sender = &p->course->all->sender;
    forget(p);
    if (p->engine)
        pl_engine_cancel(p->engine, seq);
    else
        sender->cancel(sender->ctx, seq, aborted);
}

/* One place or order less; whether it was the last. */
static bool leave(pl_course *c)
{
    pl_lock(&c->lock);
    bool last = --c->n_places == 0;
    pl_unlock(&c->lock);
    return last;
}

static void drop_orders(pl_order *orders, int n)
{
    for (int i = 0; i < n; i++) {
        if (orders[i].seq && orders[i].engine)
            pl_engine_cancel(orders[i].engine, orders[i].seq);
        pl_buf_fini(&orders[i].parcel);
    }
}

/* What was to be read for it need not be: its taker is lost, or has read it sooner. */
static void spare_reader(pl_course *c)
{
    for (int i = 0; i < PL_PLACES; i++) {
        if (!c->places[i].seq || !c->places[i].reads) continue;
        withdraw(&c->places[i], false);
        pl_charge_end(&c->split.charge);
        leave(c);
    }
}

static void enlist(pl_course *c)
{
    c->split.next = c->all->split;
    c->split.link = &c->all->split;
    if (c->split.next) c->split.next->split.link = &c->split.next;
    c->all->split = c;
}

static void unlist(pl_course *c)
{
    if (!c->split.link) return;
    *c->split.link = c->split.next;
    if (c->split.next) c->split.next->split.link = c->split.link;
    c->split.link = NULL;
}

static void end_split(pl_course *c)
{
    unlist(c);
    pl_charge_end(&c->split.charge);
    const pl_sender *to = &c->all->sender;
    uint64_t ticket = c->split.ticket;
    c->split.ticket = 0;
    if (!ticket) return;
    pl_xfer_withdraw(c->all->xfer, NULL, ticket);
    if (c->split.peer && !c->all->stopped) to->withdraw(to->ctx, c->split.peer, ticket);
}

/* It has no place now. by_reader: the last was one that reads. */
static void lose(pl_course *c, bool by_reader, int why, int status, const char *text,
                 size_t len)
{
    pl_charge_end(&c->charge);
    end_split(c);
    pl_lock(&c->lock);
    c->state = LOSING;
    c->split.by_reader = by_reader;
    c->has_taker = c->recall = false;
    c->why.len = 0;
    pl_buf_add(&c->why, text, len);
    pl_buf_add(&c->why, "", 1);
    pl_unlock(&c->lock);
    c->hooks->lost(c, why, status);
}

/* The place is gone; so is the course, if that was the last one or a taker. */
static void lose_place(pl_course *c, bool reads, int why, int status, const char *text,
                       size_t len)
{
    if (reads)
        pl_charge_end(&c->split.charge);
    else
        spare_reader(c);
    if (leave(c)) lose(c, reads, why, status, text, len);
}

/* ---- what is said of a sequence ---------------------------------------------------- */

static void join(pl_course *c, const pl_order *o);

/* Its reader has begun. */
static void call_taker(pl_course *c)
{
    unlist(c);
    pl_lock(&c->lock);
    bool goes = c->has_taker && c->state == RUNNING;
    pl_order o = c->taker;
    c->has_taker = false;
    c->n_places += goes;
    pl_unlock(&c->lock);
    if (goes) join(c, &o);
}

static void begins(pl_place *p, int64_t ns)
{
    pl_course *c = p->course;
    bool reads = p->reads;
    pl_charge_started(reads ? &c->split.charge : &c->charge);
    c->hooks->started(c, ns);
    if (reads) call_taker(c);
}

void pl_courses_started(pl_courses *cs, int32_t seq, int64_t ns)
{
    PL_ON(IO);
    pl_place *p = find(cs, seq);
    if (p) begins(p, ns);
}

void pl_courses_waited(pl_courses *cs, int32_t seq, int64_t ns)
{
    PL_ON(IO);
    pl_place *p = find(cs, seq);
    if (!p) return;
    begins(p, p->began_ns + PL_MIN(ns, pl_now_ns() - p->began_ns));
}

void pl_courses_lost(pl_courses *cs, int32_t seq, int why, int status, const char *text,
                     size_t len)
{
    PL_ON(IO);
    pl_place *p = find(cs, seq);
    if (!p) return;
    forget(p);
    lose_place(p->course, p->reads, why, status, text, len);
}

/* Whether so much of it is there that who goes on and on is not listened to. */
static bool take(pl_course *c, const pl_token *t)
{
    c->next++;
    c->heard = true;
    if (!c->kept) return false;
    pl_seq_append(c->kept, t->token);
    return c->kept->n_tokens - c->kept->n_prompt >= c->kept->params.max_tokens;
}

/* A place that leaves tokens out would leave us waiting for them for ever. */
static void refuse(pl_place *p, int32_t index)
{
    pl_course *c = p->course;
    char text[80];
    int n =
        snprintf(text, sizeof text, "it said token %d where %d was next", index, c->next);
    withdraw(p, false);
    lose_place(c, p->reads, PL_LOST_REFUSED, PL_EFORMAT, text, (size_t)n);
}

void pl_courses_token(pl_courses *cs, const pl_token *t, int64_t ns)
{
    PL_ON(IO);
    pl_place *p = find(cs, t->seq);
    if (!p) return;
    pl_course *c = p->course;
    if (t->index > c->next) {
        refuse(p, t->index);
        return;
    }
    bool reads = p->reads, is_next = t->index == c->next, full = false;
    if (t->finish) forget(p);
    bool closes = t->finish == PL_FINISH_ABORT && c->kept; /* its engine does */
    if (closes || !is_next) {
        if (t->finish) lose_place(c, reads, PL_LOST_LEFT, PL_ECANCELED, NULL, 0);
        return;
    }
    if (reads) pl_charge_token(&c->split.charge, ns);
    if (t->token >= 0) {
        pl_charge_token(&c->charge, ns);
        full = take(c, t);
    }
    if (!reads) spare_reader(c);
    if (reads && t->finish) pl_charge_end(&c->split.charge);
    bool last = t->finish && leave(c);
    pl_token told = *t;
    if (full && !t->finish) told.finish = PL_FINISH_LENGTH;
    if (t->finish > PL_FINISH_STOP && !last && !full) told.finish = PL_FINISH_NONE;
    if (told.token >= 0 || told.finish) c->hooks->token(c, &told, ns);
}

/* ---- io: what lua says ------------------------------------------------------------- */

static pl_status too_long(size_t len)
{
    return pl_fail(PL_ELIMIT, "a sequence of %zu bytes: at most %d can be sent", len,
                   MAX_PARCEL);
}

static void bring(pl_course *c, int32_t seq, const pl_order *o, const pl_buf *parcel)
{
    const pl_sender *to = &c->all->sender;
    enter(c, seq, NULL)->reads = o->reads;
    if (o->reads) enlist(c);
    to->send(to->ctx, seq, o->peer, o->index, parcel);
}

/* What had its prompt's logprobs told is not to tell them twice. */
static void freshen(const pl_course *c, pl_seq *seq)
{
    if (c->heard) seq->params.prompt_logprobs = -1;
}

/* The reader stops after one token. The taker waits for the KV of all that the reader was
 * given but the last token, whose row gives the logits. */
static void prepare_split(pl_course *c, pl_seq *copy, bool reads, const pl_engine *engine)
{
    copy->ticket = c->split.ticket;
    copy->lends = reads;
    if (reads) {
        c->split.n_read = copy->n_tokens;
        copy->params.max_tokens = copy->n_tokens - copy->n_prompt + 1;
        copy->params.min_tokens =
            PL_MIN(copy->params.min_tokens, copy->params.max_tokens);
    } else {
        const pl_sender *all = &c->all->sender;
        bool apart = c->split.peer || !engine;
        copy->lender = apart ? all->process(all->ctx, c->split.peer) : 0;
        copy->n_remote = apart && !copy->lender ? 0 : c->split.n_read - 1;
    }
}

static void refused(pl_course *c, bool reads, pl_status status)
{
    const char *why = pl_error_text();
    lose_place(c, reads, PL_LOST_REFUSED, status, why, strlen(why));
}

static void join_there(pl_course *c, const pl_order *o, pl_seq *copy)
{
    int32_t seq = copy->id;
    pl_buf parcel = {0};
    pl_wire_put_seq(&parcel, copy);
    pl_seq_close(copy);
    if (parcel.len <= MAX_PARCEL)
        bring(c, seq, o, &parcel);
    else
        refused(c, o->reads, too_long(parcel.len));
    pl_buf_fini(&parcel);
}

static void join_here(pl_course *c, const pl_order *o, pl_seq *copy)
{
    int32_t seq = copy->id;
    uint64_t lender = copy->lender;
    pl_status status = pl_engine_submit(o->engine, copy);
    if (status < 0) {
        pl_seq_close(copy);
        refused(c, o->reads, status);
        return;
    }
    enter(c, seq, o->engine)->reads = o->reads;
    if (o->takes) pl_xfer_expect(c->all->xfer, NULL, c->split.ticket, lender);
    if (!o->reads) return;
    pl_xfer_begin(c->all->xfer, NULL, c->split.ticket, o->engine, seq);
    enlist(c);
}

/* A place for what is kept: it begins where the answer is by now. */
static void join(pl_course *c, const pl_order *o)
{
    pl_seq *copy = pl_seq_copy(c->kept);
    freshen(c, copy);
    if (o->reads || o->takes) prepare_split(c, copy, o->reads, o->engine);
    if (o->engine)
        join_here(c, o, copy);
    else
        join_there(c, o, copy);
}

void pl_course_run(pl_course *c)
{
    PL_ON(IO);
    pl_order orders[PL_PLACES];
    pl_lock(&c->lock);
    int n = c->n_orders;
    memcpy(orders, c->orders, sizeof orders);
    c->n_orders = 0;
    bool recall = c->recall && c->state == RUNNING && c->kept;
    if (recall) c->n_places = 0;
    pl_unlock(&c->lock);
    for (int i = 0; i < n && !recall; i++) {
        if (!orders[i].seq)
            join(c, &orders[i]);
        else if (orders[i].engine)
            enter(c, orders[i].seq, orders[i].engine);
        else
            bring(c, orders[i].seq, &orders[i], &orders[i].parcel);
        pl_buf_fini(&orders[i].parcel);
    }
    if (!recall) return;
    drop_orders(orders, n);
    for (int i = 0; i < PL_PLACES; i++) withdraw(&c->places[i], false);
    lose(c, false, PL_LOST_RECALLED, 0, NULL, 0);
}

void pl_course_end(pl_course *c, bool aborted)
{
    PL_ON(IO);
    pl_order orders[PL_PLACES];
    pl_lock(&c->lock);
    int n = c->n_orders;
    memcpy(orders, c->orders, sizeof orders);
    c->n_orders = c->n_places = 0;
    c->has_taker = false;
    c->state = OVER;
    pl_unlock(&c->lock);
    pl_charge_end(&c->charge);
    end_split(c);
    drop_orders(orders, n);
    for (int i = 0; i < PL_PLACES; i++)
        if (c->all->stopped)
            forget(&c->places[i]);
        else
            withdraw(&c->places[i], aborted);
}

/* ---- lua --------------------------------------------------------------------------- */

/* With the lock held: whether it may be started, with a sequence or (NULL) again. */
static pl_status check(const pl_course *c, const pl_seq *seq)
{
    if (c->state == OVER) return pl_fail(PL_ECANCELED, "stream %d is over", c->id);
    if (c->state == RUNNING || c->state == LOSING)
        return pl_fail(PL_EINVAL, "stream %d is running already", c->id);
    if (c->state == IDLE && !seq)
        return pl_fail(PL_EINVAL, "stream %d has no sequence yet", c->id);
    if (c->state == LOST && seq)
        return pl_fail(PL_EINVAL, "stream %d has a sequence, which goes on", c->id);
    return PL_OK;
}

/* With the lock held. */
static void order(pl_course *c, const pl_order *o)
{
    c->state = RUNNING;
    c->n_places++;
    c->orders[c->n_orders++] = *o;
}

static pl_status try_check(pl_course *c, const pl_seq *seq)
{
    pl_lock(&c->lock);
    pl_status status = check(c, seq);
    pl_unlock(&c->lock);
    return status;
}

/* With the lock held: what io finds when it hears of the start. */
static void begin(pl_course *c, const pl_seq *seq)
{
    c->next = seq->n_tokens - seq->n_prompt;
    if (c->load) pl_charge_begin(&c->charge, c->load, seq->n_tokens, c->n_cached);
    c->load = NULL;
}

/* With the lock held, so that io hears of it only once it is there; it is told before the
 * first token can come. */
static pl_status submit(pl_course *c, pl_engine *e, pl_seq *seq)
{
    int32_t id = seq->id;
    begin(c, seq);
    c->hooks->soon(c, true);
    pl_status status = pl_engine_submit(e, seq);
    if (status < 0) {
        pl_charge_end(&c->charge);
        return status;
    }
    order(c, &(pl_order){.seq = id, .engine = e});
    return PL_OK;
}

pl_status pl_course_start(pl_course *c, pl_engine *e, pl_seq *seq)
{
    PL_ON(LUA);
    PL_TRY(try_check(c, seq));
    pl_seq *copy = seq ? c->keeps ? pl_seq_copy(seq) : NULL : pl_seq_copy(c->kept);
    pl_seq *goes = seq ? seq : copy;
    freshen(c, goes);
    pl_engine_hash(e, goes); /* the long part, before the lock */
    pl_lock(&c->lock);
    pl_status status = check(c, seq); /* it may have ended meanwhile */
    if (status == PL_OK) status = submit(c, e, goes);
    if (status == PL_OK && seq) c->kept = copy, copy = NULL;
    pl_unlock(&c->lock);
    if (status == PL_OK) return PL_OK;
    pl_seq_close(copy);
    return status;
}

static pl_status check_target(const pl_course *c, int32_t peer, int index)
{
    if (!c->all->sender.send) return pl_fail(PL_EINVAL, "there is no bus to send by");
    if (index < 0) return pl_fail(PL_EINVAL, "engine %d of process %d", index, peer);
    return PL_OK;
}

pl_status pl_course_send(pl_course *c, int32_t peer, int index, pl_seq *seq)
{
    PL_ON(LUA);
    PL_TRY(check_target(c, peer, index));
    PL_TRY(try_check(c, seq));
    pl_order o = {.peer = peer, .index = index};
    pl_seq *goes = seq ? seq : c->kept;
    if (!seq) pl_seq_renew(goes);
    freshen(c, goes);
    o.seq = goes->id;
    pl_wire_put_seq(&o.parcel, goes);
    size_t len = o.parcel.len;
    pl_lock(&c->lock);
    pl_status status = check(c, seq); /* it may have ended meanwhile */
    if (len > MAX_PARCEL) status = too_long(len);
    if (status == PL_OK) {
        begin(c, goes);
        c->kept = goes;
        order(c, &o);
    }
    pl_unlock(&c->lock);
    if (status == PL_OK)
        c->hooks->soon(c, false);
    else
        pl_buf_fini(&o.parcel);
    return status;
}

/* With the lock held: whether it may have one place more. */
static pl_status check_also(const pl_course *c)
{
    if (c->state == OVER) return pl_fail(PL_ECANCELED, "stream %d is over", c->id);
    /* Without a place it is about to be lost, or over, though nobody was told yet. */
    if (c->state != RUNNING || !c->n_places || !c->kept)
        return pl_fail(PL_EINVAL, "stream %d does not run, or keeps no sequence", c->id);
    if (c->n_places + c->has_taker >= PL_PLACES)
        return pl_fail(PL_ELIMIT, "stream %d runs in %d places already", c->id,
                       PL_PLACES);
    return PL_OK;
}

pl_status pl_course_also(pl_course *c, pl_engine *e, int32_t peer, int index)
{
    PL_ON(LUA);
    if (!e) PL_TRY(check_target(c, peer, index));
    pl_lock(&c->lock);
    pl_status status = check_also(c);
    if (status == PL_OK) order(c, &(pl_order){.engine = e, .peer = peer, .index = index});
    pl_unlock(&c->lock);
    if (status == PL_OK) c->hooks->soon(c, false);
    return status;
}

/* With the lock held. */
static void begin_split(pl_course *c, const pl_target *r, const pl_target *t, pl_seq *seq)
{
    pl_load *reader = c->split.load, *taker = c->load;
    int32_t n = seq->n_tokens;
    c->next = n - seq->n_prompt;
    if (taker) {
        pl_charge_begin(&c->charge, taker, n, c->n_cached);
        pl_charge_unread(&c->charge);
    }
    if (reader) pl_charge_begin(&c->split.charge, reader, n, c->split.n_cached);
    c->load = c->split.load = NULL;
    c->kept = seq;
    c->split.ticket = pl_xfer_ticket();
    c->split.by_reader = false;
    c->split.peer = r->engine ? 0 : r->peer;
    c->taker = (pl_order){
        .engine = t->engine, .peer = t->peer, .index = t->index, .takes = true};
    c->has_taker = true;
    order(c, &(pl_order){
                 .engine = r->engine, .peer = r->peer, .index = r->index, .reads = true});
}

pl_status pl_course_split(pl_course *c, const pl_target *reader, const pl_target *taker,
                          pl_seq *seq)
{
    PL_ON(LUA);
    if (!reader->engine) PL_TRY(check_target(c, reader->peer, reader->index));
    if (!taker->engine) PL_TRY(check_target(c, taker->peer, taker->index));
    PL_TRY(try_check(c, seq));
    pl_seq *goes = seq ? seq : c->kept;
    const pl_target *near = reader->engine ? reader : taker;
    if (near->engine) pl_engine_hash(near->engine, goes); /* here, not on io */
    pl_lock(&c->lock);
    pl_status status = check(c, seq); /* it may have ended meanwhile */
    if (status == PL_OK) begin_split(c, reader, taker, goes);
    pl_unlock(&c->lock);
    if (status == PL_OK) c->hooks->soon(c, false);
    return status;
}

bool pl_course_by_reader(const pl_course *c)
{
    return c->split.by_reader; /* io is silent while it is lost */
}

void pl_course_recall(pl_course *c)
{
    PL_ON(LUA);
    pl_lock(&c->lock);
    c->recall = c->state == RUNNING;
    pl_unlock(&c->lock);
    c->hooks->soon(c, false);
}

const char *pl_course_why(const pl_course *c)
{
    return c->why.len ? c->why.data : ""; /* io is silent while it is lost */
}

void pl_course_charge(pl_course *c, pl_load *l, int32_t n_cached)
{
    c->load = l;
    c->n_cached = n_cached;
}

void pl_course_charge_reader(pl_course *c, pl_load *l, int32_t n_cached)
{
    c->split.load = l;
    c->split.n_cached = n_cached;
}

pl_seq *pl_course_kept(pl_course *c)
{
    pl_lock(&c->lock);
    pl_seq *kept = c->state == LOST ? c->kept : NULL;
    pl_unlock(&c->lock);
    return kept;
}

void pl_course_heard_lost(pl_course *c)
{
    pl_lock(&c->lock);
    if (c->state == LOSING) c->state = LOST;
    pl_unlock(&c->lock);
}

bool pl_course_is_live(pl_course *c)
{
    pl_lock(&c->lock);
    bool live = c->state != IDLE && c->state != OVER;
    pl_unlock(&c->lock);
    return live;
}

/* ---- life -------------------------------------------------------------------------- */

void pl_course_init(pl_course *c, pl_courses *all, const pl_course_hooks *hooks,
                    int32_t id)
{
    *c = (pl_course){.all = all, .hooks = hooks, .id = id};
    pl_mutex_init(&c->lock);
}

void pl_course_fini(pl_course *c)
{
    pl_charge_end(&c->charge);
    pl_charge_end(&c->split.charge);
    pl_seq_close(c->kept);
    for (int i = 0; i < c->n_orders; i++) pl_buf_fini(&c->orders[i].parcel);
    pl_buf_fini(&c->why);
    pl_mutex_fini(&c->lock);
}

pl_courses *pl_courses_open(pl_xfer *xfer)
{
    pl_courses *cs = pl_alloc(sizeof *cs);
    cs->xfer = xfer;
    return cs;
}

void pl_courses_close(pl_courses *cs)
{
    pl_map_fini(&cs->by_seq);
    pl_free(cs);
}

void pl_courses_stop(pl_courses *cs)
{
    PL_ON(IO);
    cs->stopped = true;
}

void pl_courses_forget(pl_courses *cs, const pl_engine *e)
{
    PL_ON(IO);
    for (pl_course *c = cs->split, *next; c; c = next) {
        next = c->split.next;
        if (c->taker.engine != e) continue;
        spare_reader(c);
        lose(c, false, PL_LOST_LEFT, PL_ECANCELED, NULL, 0);
    }
}

bool pl_courses_stopped(const pl_courses *cs)
{
    return cs->stopped;
}

void pl_courses_sender(pl_courses *cs, const pl_sender *sender)
{
    cs->sender = *sender;
}
