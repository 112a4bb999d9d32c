/* SPDX-License-Identifier: Apache-2.0 */
#include "sim.h"

#include <math.h>
#include <string.h>

enum {
    MAX_WORKERS = 4096,
    GAP_BITS = 7, /* of a gap, below its first: so much a bucket tells apart */
    GAP_BUCKETS = (65 - GAP_BITS) << GAP_BITS
};

typedef struct worker worker;
typedef struct live live;

typedef struct crossing { /* a prompt's KV, until the taker has it or needs none */
    struct crossing *next, **link;
    live *of;
    worker *reader, *taker;
    int32_t read;       /* the sequence at the reader */
    pl_seq *waits;      /* the taker's, until the reader has begun */
    int32_t n_lent;     /* tokens */
    int32_t first, end; /* those that are to cross; end 0: they have no place yet */
    int64_t there_ns;   /* when all that was lent will be across */
    pl_charge charge;   /* the reader's */
} crossing;

struct live { /* a sequence, from its submit to the telling of its end */
    pl_sim_answer answer;
    int32_t seq, n_given;
    pl_charge charge;
    crossing *crossing; /* NULL: nothing is to cross (any more) */
};

struct worker {
    pl_engine *engine;
    pl_clock *clock;
    pl_timing timing;
    int64_t last_step;  /* its number */
    bool woken;         /* it was given something while it was idle */
    bool busy, leaping; /* in a step; or in n_leaps of them, which are yet to be taken */
    int32_t n_leaps;
    pl_step_info leap;      /* the first of these */
    int64_t from_ns, to_ns; /* of the step or the leap */
    int64_t leapt_ns;       /* the end of the last leap: its sequences had a token then */
    pl_source *source;      /* who follows its cache; NULL: nobody */
    pl_changes **changes;   /* of the step under way: to be told there when it is over */
    int n_changes, changes_cap;
};

struct pl_sim {
    int64_t now_ns;
    worker **workers;
    int n_workers;
    pl_map lives;   /* by sequence */
    pl_map readers; /* crossings, by the reader's sequence */
    crossing *crossings;
    pl_event *events; /* to be told */
    int n_events, at_event, events_cap;
    live **told; /* whose ends the last run told */
    int n_told, told_cap;
    int64_t *gaps; /* how many there were, by bucket */
    int64_t n_gaps;
    double gaps_ns; /* their sum */
};

/* ---- open, close ---------------------------------------------------------------- */

pl_sim *pl_sim_open(void)
{
    pl_sim *s = pl_alloc(sizeof *s);
    s->gaps = pl_alloc(GAP_BUCKETS * sizeof *s->gaps);
    return s;
}

int pl_sim_join(pl_sim *s, pl_model *model, const pl_engine_options *options,
                const pl_timing *timing)
{
    if (s->n_workers == MAX_WORKERS)
        return pl_fail(PL_ELIMIT, "there are %d workers already", MAX_WORKERS);
    pl_clock *clock = pl_clock_open();
    pl_engine_options o = *options;
    o.clock = clock;
    pl_engine *e = pl_engine_open(model, &o);
    if (!e) {
        pl_clock_close(clock);
        return pl_error_status();
    }
    worker *w = pl_alloc(sizeof *w);
    *w = (worker){.engine = e, .clock = clock, .timing = *timing};
    s->workers = pl_realloc(s->workers, (size_t)(s->n_workers + 1) * sizeof *s->workers);
    s->workers[s->n_workers] = w;
    return s->n_workers++;
}

static worker *find_worker(const pl_sim *s, int number)
{
    if (number >= 0 && number < s->n_workers) return s->workers[number];
    pl_fail(PL_ENOTFOUND, "no worker %d in this simulation", number);
    return NULL;
}

pl_engine *pl_sim_engine(pl_sim *s, int number)
{
    worker *w = find_worker(s, number);
    return w ? w->engine : NULL;
}

int64_t pl_sim_now(const pl_sim *s)
{
    return s->now_ns;
}

/* ---- what a worker's cache gains and loses ------------------------------------------ */

static void tell_changes(worker *w)
{
    for (int i = 0; i < w->n_changes; i++)
        if (w->source)
            pl_source_push(w->source, w->changes[i]);
        else
            pl_changes_put(w->changes[i]);
    w->n_changes = 0;
}

static void keep_changes(void *ctx, pl_changes *c)
{
    worker *w = ctx;
    if (!c) return; /* the engine closes */
    if (w->n_changes == w->changes_cap) {
        w->changes_cap = PL_MAX(16, 2 * w->changes_cap);
        w->changes = pl_realloc(w->changes, (size_t)w->changes_cap * sizeof *w->changes);
    }
    w->changes[w->n_changes++] = c;
}

static void ask_changes(void *ctx)
{
    worker *w = ctx;
    pl_engine_tap(w->engine, keep_changes, w, false);
    w->woken = !w->busy;
}

static void stop_changes(void *ctx)
{
    worker *w = ctx;
    pl_engine_untap(w->engine, w);
    pl_source_put(w->source);
    w->source = NULL;
}

pl_status pl_sim_follow(pl_sim *s, int number, pl_route *x, int number_there)
{
    static const pl_source_hooks hooks = {.ask = ask_changes, .stop = stop_changes};
    worker *w = find_worker(s, number);
    if (!w) return PL_ENOTFOUND;
    return pl_route_source(x, number_there, &hooks, w, &w->source);
}

static void forget_told(pl_sim *s)
{
    for (int i = 0; i < s->n_told; i++) pl_free(s->told[i]);
    s->n_told = 0;
}

static void drop_crossing(pl_sim *s, crossing *x)
{
    pl_map_remove(&s->readers, (uint64_t)x->read);
    *x->link = x->next;
    if (x->next) x->next->link = x->link;
    x->of->crossing = NULL;
    pl_charge_end(&x->charge);
    pl_seq_close(x->waits);
    pl_free(x);
}

void pl_sim_close(pl_sim *s)
{
    if (!s) return;
    while (s->crossings) drop_crossing(s, s->crossings);
    for (int i = 0; i < s->n_workers; i++) {
        worker *w = s->workers[i];
        pl_engine_close(w->engine);
        pl_clock_close(w->clock);
        tell_changes(w);
        if (w->source) pl_source_put(w->source);
        pl_free(w->changes);
        pl_free(w);
    }
    live *l;
    for (uint32_t at = 0; (l = pl_map_next(&s->lives, &at));) {
        pl_charge_end(&l->charge);
        pl_free(l);
    }
    forget_told(s);
    pl_map_fini(&s->lives);
    pl_map_fini(&s->readers);
    pl_free(s->told);
    pl_free(s->events);
    pl_free(s->gaps);
    pl_free(s->workers);
    pl_free(s);
}

/* ---- gaps between tokens: counted in buckets, 128 for each power of two ----------- */

static int bucket_of(uint64_t ns)
{
    if (ns < 1u << GAP_BITS) return (int)ns;
    int high = 63 - __builtin_clzll(ns);
    return ((high - GAP_BITS) << GAP_BITS) + (int)(ns >> (high - GAP_BITS));
}

/* The middle of a bucket. */
static double gap_of(int bucket)
{
    int high = (bucket >> GAP_BITS) - 1;
    if (high < 0) return bucket;
    double width = ldexp(1, high);
    return ((bucket & ((1 << GAP_BITS) - 1)) + (1 << GAP_BITS)) * width + width / 2 - 0.5;
}

static void count_gap(pl_sim *s, double ns, int64_t n)
{
    s->gaps[bucket_of((uint64_t)PL_MAX(ns, 0))] += n;
    s->n_gaps += n;
    s->gaps_ns += ns * (double)n;
}

double pl_sim_gap_mean(const pl_sim *s)
{
    return s->n_gaps ? s->gaps_ns / (double)s->n_gaps : 0;
}

double pl_sim_gap(const pl_sim *s, double share)
{
    double wanted = share * (double)s->n_gaps, seen = 0;
    int last = 0;
    for (int i = 0; i < GAP_BUCKETS && (!i || seen < wanted); i++) {
        if (!s->gaps[i]) continue;
        seen += (double)s->gaps[i];
        last = i;
    }
    return gap_of(last);
}

/* ---- what a step takes ------------------------------------------------------------- */

static double step_ns(const worker *w, const pl_step_info *i)
{
    const pl_timing *t = &w->timing;
    double n = i->prompt_rows, seqs = i->rows - i->prompt_rows, ns = 0;
    if (n > 0)
        ns += t->prefill + t->prefill_token * n + t->prefill_square * n * n +
              t->prefill_back * (double)i->prompt_looked_back;
    if (seqs > 0) {
        pl_engine_stats stats;
        pl_engine_stats_get(w->engine, &stats);
        double used = (double)i->blocks_used / PL_MAX(stats.blocks, 1);
        ns += t->decode + t->decode_seq * seqs + t->decode_used * used +
              t->decode_used_square * used * used +
              t->decode_back * (double)(i->looked_back - i->prompt_looked_back);
    }
    return PL_MAX(ns, 0);
}

/* Of a leap's steps those that begin before a time, or all; and when the last ends. */
static int32_t leap_until(const worker *w, int64_t before_ns, int64_t *to_ns)
{
    double per_step = w->timing.decode_back * w->leap.rows, ns = step_ns(w, &w->leap);
    double at = (double)w->from_ns;
    int32_t n = 0;
    while (n < w->n_leaps && at < (double)before_ns) {
        at += ns + per_step * n;
        n++;
    }
    *to_ns = (int64_t)at;
    return n;
}

static live *find_live(const pl_sim *s, int32_t seq)
{
    return pl_map_find(&s->lives, (uint64_t)seq);
}

/* It was given something, now. */
static void wake(const pl_sim *s, worker *w)
{
    w->woken = !w->busy;
    /* The steps of a leap that would begin from now on are not alike any more. */
    if (w->leaping && w->busy) w->n_leaps = leap_until(w, s->now_ns, &w->to_ns);
}

static void push_event(pl_sim *s, int kind, live *l)
{
    if (s->n_events == s->events_cap) {
        s->events_cap = PL_MAX(64, 2 * s->events_cap);
        s->events = pl_realloc(s->events, (size_t)s->events_cap * sizeof *s->events);
    }
    s->events[s->n_events++] =
        (pl_event){.kind = kind, .id = l->seq, .object = &l->answer};
}

static void tell_end(pl_sim *s, live *l, int finish)
{
    l->answer.finish = finish;
    pl_charge_end(&l->charge);
    pl_map_remove(&s->lives, (uint64_t)l->seq);
    push_event(s, PL_EV_DONE, l);
}

/* ---- what crosses ------------------------------------------------------------------ */

/* The reader need not keep, or read, anything for it any more. */
static void end_crossing(pl_sim *s, crossing *x)
{
    pl_clock_set(x->reader->clock, s->now_ns);
    pl_engine_cancel(x->reader->engine, x->read);
    pl_engine_return(x->reader->engine, x->read);
    wake(s, x->reader);
    drop_crossing(s, x);
}

/* A sequence's first step begins: if it is a reader's, the taker is called. */
static void start(pl_sim *s, int32_t seq)
{
    crossing *x = pl_map_find(&s->readers, (uint64_t)seq);
    if (!x) {
        live *l = find_live(s, seq);
        if (l) pl_charge_started(&l->charge);
        return;
    }
    pl_charge_started(&x->charge);
    pl_seq *seq_there = x->waits;
    x->waits = NULL;
    pl_clock_set(x->taker->clock, s->now_ns);
    if (seq_there && pl_engine_submit(x->taker->engine, seq_there) < 0) {
        live *l = x->of;
        pl_seq_close(seq_there);
        end_crossing(s, x);
        tell_end(s, l, PL_FINISH_ERROR);
        return;
    }
    wake(s, x->taker);
}

/* So much of it is lent, and has a place, as of now. */
static void cross(const pl_sim *s, crossing *x, int32_t n_lent, int32_t first,
                  int32_t end)
{
    pl_engine_kv kv;
    pl_engine_kv_get(x->taker->engine, &kv);
    bool begins = end && !x->end;
    int32_t from = begins ? first : PL_MAX(x->first, PL_MIN(x->n_lent, end));
    int32_t to = PL_MAX(from, PL_MIN(n_lent, end));
    int32_t n = (to + kv.block_size - 1) / kv.block_size - from / kv.block_size;
    double ns = (begins ? x->taker->timing.transfer : 0) +
                x->taker->timing.transfer_block * (to > from ? n : 0);
    x->there_ns = PL_MAX(x->there_ns, s->now_ns) + (int64_t)PL_MAX(ns, 0);
    x->n_lent = n_lent;
    x->first = first;
    x->end = end;
}

/* What this step said of KV. */
static void tell_kv(pl_sim *s, const pl_token_batch *told)
{
    for (int i = 0; i < told->n_lent; i++) {
        const pl_lent *p = &told->lent[i];
        crossing *x = pl_map_find(&s->readers, (uint64_t)p->seq);
        if (x) cross(s, x, p->n_tokens, x->first, x->end);
    }
    for (int i = 0; i < told->n_placed; i++) {
        const pl_placed *p = &told->placed[i];
        live *l = find_live(s, p->seq);
        if (l && l->crossing)
            cross(s, l->crossing, l->crossing->n_lent, p->first, p->first + p->n_tokens);
    }
}

/* The one that is there first. */
static crossing *next_there(const pl_sim *s)
{
    crossing *next = NULL;
    for (crossing *x = s->crossings; x; x = x->next)
        if (x->end && x->n_lent >= x->end && (!next || x->there_ns < next->there_ns))
            next = x;
    return next;
}

static void arrive(pl_sim *s, crossing *x)
{
    worker *taker = x->taker;
    s->now_ns = PL_MAX(s->now_ns, x->there_ns);
    pl_clock_set(taker->clock, s->now_ns);
    pl_engine_arrived(taker->engine, x->of->seq, true);
    wake(s, taker);
    end_crossing(s, x);
}

/* ---- a worker's steps -------------------------------------------------------------- */

/* Begins what the worker does next, at this moment. */
static void begin(pl_sim *s, worker *w)
{
    pl_clock_set(w->clock, s->now_ns);
    w->from_ns = w->to_ns = s->now_ns;
    w->woken = false;
    w->n_leaps = pl_engine_alike(w->engine, &w->leap);
    w->busy = w->leaping = w->n_leaps > 0;
    if (w->leaping) {
        leap_until(w, INT64_MAX, &w->to_ns);
        return;
    }
    pl_step_info info;
    pl_engine_step(w->engine);
    const pl_token_batch *told = pl_engine_last(w->engine);
    for (int i = 0; told && i < told->n_started; i++) start(s, told->started[i]);
    if (pl_engine_steps(w->engine, &info, 1) && info.number != w->last_step) {
        w->last_step = info.number;
        w->to_ns += (int64_t)step_ns(w, &info);
        w->busy = true;
    } else if (told) {
        w->busy = true; /* for no time: to tell that sequences have ended */
    } else {
        tell_changes(w);
    }
}

/* A token of the sequence, drawn now; all that the worker's last leap had drew one then. */
static void count_token(pl_sim *s, const worker *w, live *l, const pl_token *t)
{
    pl_sim_answer *a = &l->answer;
    int64_t before = PL_MAX(a->last_ns, w->leapt_ns);
    if (!a->n_tokens) {
        a->first_ns = s->now_ns;
        a->n_cached = t->n_cached;
        push_event(s, PL_EV_PIECE, l);
    } else {
        count_gap(s, (double)(s->now_ns - before), 1);
    }
    a->last_ns = s->now_ns;
    a->n_tokens = t->index + 1;
    l->charge.n_tokens = l->n_given + t->index;
    l->charge.last_ns = before;
    pl_charge_token(&l->charge, s->now_ns);
}

/* A reader says the first token, and no more; the taker says it again. */
static void tell_token(pl_sim *s, const worker *w, const pl_token *t)
{
    crossing *x = pl_map_find(&s->readers, (uint64_t)t->seq);
    live *l = x ? x->of : find_live(s, t->seq);
    if (!l) return; /* a reader that was not needed */
    if (t->token >= 0 && t->index >= l->answer.n_tokens) count_token(s, w, l, t);
    if (x) {
        pl_charge_end(&x->charge);
        return;
    }
    if (l->crossing) end_crossing(s, l->crossing); /* all was cached */
    if (t->finish) tell_end(s, l, t->finish);
}

static void end_leap(pl_sim *s, worker *w)
{
    double per_step = w->timing.decode_back * w->leap.rows, ns = step_ns(w, &w->leap);
    for (int32_t i = 0; i < w->n_leaps; i++)
        count_gap(s, ns + per_step * i, w->leap.rows);
    pl_engine_leap(w->engine, w->n_leaps);
    w->leapt_ns = s->now_ns;
    w->last_step += w->n_leaps;
}

/* The worker's step is over: what it brought becomes events. */
static void end(pl_sim *s, worker *w)
{
    w->busy = false;
    if (w->leaping) {
        end_leap(s, w);
        return;
    }
    tell_changes(w);
    const pl_token_batch *told = pl_engine_last(w->engine);
    for (int i = 0; told && i < told->n; i++) tell_token(s, w, &told->tokens[i]);
    if (told) tell_kv(s, told);
}

/* ---- what passes through the door -------------------------------------------------- */

static live *add_live(pl_sim *s, int32_t seq, int32_t n_tokens, int number, pl_load *load,
                      int32_t n_cached)
{
    live *l = pl_alloc(sizeof *l);
    l->seq = seq;
    l->n_given = n_tokens;
    l->answer.worker = number;
    l->answer.came_ns = s->now_ns;
    if (load) pl_charge_begin(&l->charge, load, n_tokens, n_cached);
    l->charge.sent_ns = s->now_ns;
    pl_map_put(&s->lives, (uint64_t)seq, l);
    return l;
}

pl_status pl_sim_submit(pl_sim *s, int number, pl_seq *seq, pl_load *load,
                        int32_t n_cached)
{
    worker *w = find_worker(s, number);
    if (!w) return PL_ENOTFOUND;
    int32_t id = seq->id, n_tokens = seq->n_tokens;
    pl_clock_set(w->clock, s->now_ns);
    PL_TRY(pl_engine_submit(w->engine, seq));
    add_live(s, id, n_tokens, number, load, n_cached);
    wake(s, w);
    return PL_OK;
}

pl_status pl_sim_split(pl_sim *s, int reader, int number, pl_seq *seq, pl_load *load,
                       int32_t n_cached, pl_load *reader_load, int32_t reader_cached)
{
    worker *reads = find_worker(s, reader), *takes = find_worker(s, number);
    if (!reads || !takes) return PL_ENOTFOUND;
    pl_seq *copy = pl_seq_copy(seq);
    int32_t id = copy->id, n_tokens = seq->n_tokens;
    copy->lends = true;
    copy->params.max_tokens = 1;
    pl_clock_set(reads->clock, s->now_ns);
    pl_status status = pl_engine_submit(reads->engine, copy);
    if (status < 0) {
        pl_seq_close(copy);
        return status;
    }
    seq->n_remote = n_tokens - 1;
    crossing *x = pl_alloc(sizeof *x);
    *x = (crossing){.reader = reads, .taker = takes, .read = id, .waits = seq};
    x->of = add_live(s, seq->id, n_tokens, number, load, n_cached);
    x->of->crossing = x;
    if (load) pl_charge_unread(&x->of->charge);
    if (reader_load) pl_charge_begin(&x->charge, reader_load, n_tokens, reader_cached);
    x->next = s->crossings;
    x->link = &s->crossings;
    if (x->next) x->next->link = &x->next;
    s->crossings = x;
    pl_map_put(&s->readers, (uint64_t)id, x);
    wake(s, reads);
    return PL_OK;
}

/* One that begins may wake another. */
static void begin_all(pl_sim *s)
{
    bool again = true;
    while (again) {
        again = false;
        for (int i = 0; i < s->n_workers; i++) {
            if (!s->workers[i]->woken) continue;
            begin(s, s->workers[i]);
            again = true;
        }
    }
}

static worker *find_next(pl_sim *s)
{
    worker *next = NULL;
    begin_all(s);
    for (int i = 0; i < s->n_workers; i++) {
        worker *w = s->workers[i];
        if (w->busy && (!next || w->to_ns < next->to_ns)) next = w;
    }
    return next;
}

static int hand_out(pl_sim *s, pl_event *out, int max)
{
    int n = PL_MIN(max, s->n_events - s->at_event);
    memcpy(out, s->events + s->at_event, (size_t)n * sizeof *out);
    s->at_event += n;
    if (n && s->n_told + n > s->told_cap) {
        s->told_cap = s->n_told + n;
        s->told = pl_realloc(s->told, (size_t)s->told_cap * sizeof(live *));
    }
    for (int i = 0; i < n; i++)
        if (out[i].kind == PL_EV_DONE) s->told[s->n_told++] = out[i].object;
    return n;
}

int pl_sim_run(pl_sim *s, int64_t until_ns, pl_event *out, int max)
{
    forget_told(s);
    while (s->at_event == s->n_events) {
        s->at_event = s->n_events = 0;
        worker *w = find_next(s);
        crossing *x = next_there(s);
        if (x && w && x->there_ns > w->to_ns) x = NULL;
        int64_t at_ns = x ? x->there_ns : w ? w->to_ns : INT64_MAX;
        if (at_ns > until_ns) {
            s->now_ns = PL_MAX(s->now_ns, until_ns);
            return 0;
        }
        s->now_ns = PL_MAX(s->now_ns, at_ns);
        if (x) {
            arrive(s, x);
            continue;
        }
        end(s, w);
        begin(s, w);
    }
    return hand_out(s, out, max);
}
