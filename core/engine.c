/* SPDX-License-Identifier: Apache-2.0
 *
 * engine.c - the engine's doors, its step, and the thread that may run it.
 *
 * Owns     when a step runs.
 * Ignores  what is in it.
 * Thread   submit, cancel, arrived, reset, stats, blocks, check: any. The rest: one.
 */
#include "engine_state.h"

#include <stdio.h>
#include <string.h>

enum {
    IDLE_MS = 3600 * 1000,
    COLLECT_MS = 1000,
    SLOW_WAITS = 30
};
enum {
    MAX_BLOCKS = 1 << 24,
    MAX_BATCHED = 1 << 20,
    MAX_SEQS = 1 << 16,
    MAX_WAITING = 1 << 20,
    MAX_PROMPT_TOP = 1 << 24,
    N_STEPS = 1024 /* remembered */
};

/* ---- open, close ---------------------------------------------------------------- */

static pl_status check_options(const pl_engine_options *o, int32_t max_positions)
{
    if (o->n_blocks < 2 || o->n_blocks > MAX_BLOCKS)
        return pl_fail(PL_EINVAL, "n_blocks %d: wanted 2 to %d; block 0 is set aside",
                       o->n_blocks, MAX_BLOCKS);
    if (o->max_num_seqs < 1 || o->max_num_seqs > MAX_SEQS)
        return pl_fail(PL_EINVAL, "max_num_seqs %d: wanted 1 to %d", o->max_num_seqs,
                       MAX_SEQS);
    if (o->max_num_batched_tokens < o->max_num_seqs ||
        o->max_num_batched_tokens > MAX_BATCHED)
        return pl_fail(PL_EINVAL,
                       "max_num_batched_tokens %d: wanted max_num_seqs, %d, to %d",
                       o->max_num_batched_tokens, o->max_num_seqs, MAX_BATCHED);
    if (o->max_model_len < 2 || o->max_model_len > max_positions)
        return pl_fail(PL_EINVAL, "max_model_len %d: wanted 2 to the model's %d",
                       o->max_model_len, max_positions);
    if (!o->enable_chunked_prefill && o->max_num_batched_tokens < o->max_model_len)
        return pl_fail(PL_EINVAL,
                       "max_num_batched_tokens %d: without chunked prefill wanted "
                       "max_model_len, %d, or more",
                       o->max_num_batched_tokens, o->max_model_len);
    if (o->long_prefill_token_threshold < 0)
        return pl_fail(PL_EINVAL, "long_prefill_token_threshold %d: wanted 0 or more",
                       o->long_prefill_token_threshold);
    if (o->policy != PL_POLICY_FCFS && o->policy != PL_POLICY_PRIORITY)
        return pl_fail(PL_EINVAL, "policy %d: not one of PL_POLICY_*", o->policy);
    if (o->max_waiting < 1 || o->max_waiting > MAX_WAITING)
        return pl_fail(PL_EINVAL, "max_waiting %d: wanted 1 to %d", o->max_waiting,
                       MAX_WAITING);
    return PL_OK;
}

static void open_flights(pl_engine *e)
{
    const pl_engine_options *o = &e->options;
    for (int i = 0; i < PL_COUNT(e->flights); i++) {
        e->flights[i].step = pl_step_open(o->max_num_batched_tokens, o->max_num_seqs);
        e->flights[i].runs = pl_alloc((size_t)o->max_num_seqs * sizeof(run *));
    }
}

static void close_flights(pl_engine *e)
{
    for (int i = 0; i < PL_COUNT(e->flights); i++) {
        pl_step_close(e->flights[i].step);
        pl_free(e->flights[i].runs);
    }
}

static void publish(pl_engine *e);

pl_engine *pl_engine_open(pl_model *model, const pl_engine_options *o)
{
    pl_namer namer;
    if (check_options(o, pl_model_max_positions(model)) < 0 ||
        pl_namer_init(&namer, o->hash_algo, o->hash_seed) < 0 ||
        pl_model_kv_open(model, o->n_blocks, o->max_num_batched_tokens, o->max_num_seqs) <
            0)
        return NULL;
    pl_engine *e = pl_alloc(sizeof *e);
    e->options = *o;
    e->options.hash_seed = NULL; /* the caller's */
    e->model = model;
    e->vocab = pl_model_vocab(model);
    e->block_size = pl_model_block_size(model);
    e->metrics[PL_OBSERVE_STEP_TOKENS] = e->metrics[PL_OBSERVE_SECONDS] = -1;
    e->namer = namer;
    e->naming = pl_namer_id(&namer, e->block_size);
    e->kv = pl_kv_open(o->n_blocks, &namer);
    open_flights(e);
    e->shared = pl_alloc(sizeof *e->shared);
    e->shared->steps = pl_alloc(N_STEPS * sizeof *e->shared->steps);
    pl_mutex_init(&e->shared->lock);
    pl_mutex_init(&e->shared->tap_lock);
    pl_index_init(e->shared, o->max_waiting + o->max_num_seqs);
    publish(e);
    return e;
}

void pl_engine_close(pl_engine *e)
{
    if (!e) return;
    pl_engine_stop(e);
    pl_engine_close_taps(e);
    pl_model_kv_close(e->model);
    pl_token_batch_put(e->last);
    pl_mutex_fini(&e->shared->lock);
    pl_mutex_fini(&e->shared->tap_lock);
    pl_engine_close_loans(e);
    pl_free(e->shared->index);
    pl_free(e->shared->steps);
    pl_free(e->shared);
    close_flights(e);
    pl_kv_close(e->kv);
    pl_free(e->running.items);
    pl_free(e->waiting.items);
    pl_free(e->remote.items);
    pl_free(e->ended.items);
    pl_free(e->placed.items);
    pl_free(e->started.items);
    pl_free(e->outs);
    pl_free(e);
}

/* ---- doors ---------------------------------------------------------------------- */

static pl_status check_seq(const pl_engine *e, const pl_seq *s)
{
    int32_t room = pl_kv_size(e->kv);
    if (s->n_given >= e->options.max_model_len)
        return pl_fail(PL_EINVAL,
                       "a prompt of %d tokens leaves no room for one more in the "
                       "maximum context length of %d tokens",
                       s->n_given, e->options.max_model_len);
    if ((s->n_given - 1) / e->block_size >= room)
        return pl_fail(PL_EINVAL,
                       "a prompt of %d tokens will never fit the KV cache: it has "
                       "%d blocks of %d tokens",
                       s->n_given, room, e->block_size);
    int64_t width = (int64_t)PL_MIN(s->params.prompt_logprobs, e->vocab) + 1;
    if (s->n_given * width > MAX_PROMPT_TOP)
        return pl_fail(PL_EINVAL, "prompt_logprobs %d of %d tokens: more than %d entries",
                       s->params.prompt_logprobs, s->n_given, MAX_PROMPT_TOP);
    return pl_seq_check(s, e->vocab);
}

/* What a sequence may grow to. A full cache ends it too: alone it could not go on
 * either. */
static int32_t max_total_of(const pl_engine *e, const pl_seq *s)
{
    int64_t total = (int64_t)s->n_prompt + s->params.max_tokens;
    int64_t room =
        (int64_t)pl_kv_size(e->kv) * e->block_size + 1; /* the last needs no KV */
    total = PL_MIN(total, e->options.max_model_len);
    return (int32_t)PL_MIN(total, room);
}

static run *open_run(const pl_engine *e, pl_seq *s)
{
    run *r = pl_alloc(sizeof *r);
    r->seq = s;
    r->id = s->id;
    r->max_total = max_total_of(e, s);
    r->n_cached = -1;
    atomic_init(&r->stage, PL_SEQ_IN_LINE);
    if (s->named_by == e->naming) {
        r->names = s->names;
        r->n_names = r->names_cap = s->n_names;
        s->names = NULL;
        s->named_by = 0;
    }
    if (e->options.enable_prefix_caching) /* here, not on the step thread */
        pl_engine_chain(e, r, s->n_given / e->block_size);
    return r;
}

/* Fits what it asks for to this engine: only once it is taken, or another may be
 * asked. */
static void fit(const pl_engine *e, const run *r)
{
    pl_seq *s = r->seq;
    pl_params *p = &s->params;
    p->min_tokens = PL_MIN(p->min_tokens, r->max_total - s->n_prompt);
    p->logprobs = PL_MIN(p->logprobs, e->vocab - 1);
    p->prompt_logprobs = PL_MIN(p->prompt_logprobs, e->vocab - 1);
    if (p->prompt_logprobs >= 0) s->n_remote = 0; /* they must be computed to be known */
}

static pl_status enter(pl_engine *e, run *r)
{
    shared *s = e->shared;
    if (s->stopping) return pl_fail(PL_ECANCELED, "the engine is closing");
    if (s->n_live - s->stats.running >= e->options.max_waiting)
        return pl_fail(PL_ELIMIT,
                       "%d sequences are waiting: no more than max_waiting, %d",
                       s->n_live - s->stats.running, e->options.max_waiting);
    if (pl_index_find(s, r->id))
        return pl_fail(PL_EINVAL, "sequence %d is here already", r->id);
    fit(e, r);
    r->arrival = s->arrivals++;
    r->since_ns = pl_clock_now(e->options.clock);
    atomic_store(&r->wait_ns, r->since_ns);
    r->n_unread = r->seq->n_tokens;
    s->n_unread += r->n_unread;
    pl_index_insert(s, r);
    return PL_OK;
}

static void tell_news(shared *s, run *r, int news)
{
    pl_inbox_push(s, r, news);
    if (!s->stats.busy_since_ns) s->stats.busy_since_ns = pl_now_ns();
}

pl_status pl_engine_submit(pl_engine *e, pl_seq *seq)
{
    PL_TRY(check_seq(e, seq));
    run *r = open_run(e, seq);
    pl_lock(&e->shared->lock);
    pl_status status = enter(e, r);
    if (status == PL_OK) tell_news(e->shared, r, NEWS_SUBMIT);
    pl_unlock(&e->shared->lock);
    if (status == PL_OK) {
        pl_wake(&e->shared->lock); /* who wakes finds the lock free */
        return PL_OK;
    }
    r->seq = NULL; /* stays the caller's */
    pl_run_free(r);
    return status;
}

void pl_engine_hash(const pl_engine *e, pl_seq *s)
{
    if (e->options.enable_prefix_caching) pl_namer_seq(&e->namer, e->block_size, s);
}

static void post(pl_engine *e, int32_t id, int news)
{
    pl_lock(&e->shared->lock);
    run *r = pl_index_find(e->shared, id);
    if (r) tell_news(e->shared, r, news);
    pl_unlock(&e->shared->lock);
    pl_wake(&e->shared->lock);
}

void pl_engine_nudge(pl_engine *e)
{
    pl_lock(&e->shared->lock);
    e->shared->nudged = true;
    pl_unlock(&e->shared->lock);
    pl_wake(&e->shared->lock);
}

void pl_engine_cancel(pl_engine *e, int32_t seq)
{
    post(e, seq, NEWS_CANCEL);
}

void pl_engine_arrived(pl_engine *e, int32_t seq, int ok)
{
    post(e, seq, ok ? NEWS_ARRIVED : NEWS_FAILED);
}

void pl_engine_kv_get(const pl_engine *e, pl_engine_kv *out)
{
    *out = (pl_engine_kv){.block_size = e->block_size,
                          .block_bytes = (size_t)pl_model_block_bytes(e->model),
                          .layout = pl_model_kv_layout(e->model),
                          .is_local = pl_model_is_local(e->model)};
}

void *pl_engine_block(const pl_engine *e, int32_t block)
{
    size_t bytes;
    return pl_model_block(e->model, block, &bytes);
}

void pl_engine_observe(pl_engine *e, int what, int metric)
{
    if (what >= 0 && what < PL_COUNT(e->metrics)) e->metrics[what] = metric;
}

void pl_engine_stats_get(const pl_engine *e, pl_engine_stats *out)
{
    pl_lock(&e->shared->lock);
    *out = e->shared->stats;
    out->waiting = e->shared->n_live - out->running - out->waiting_remote;
    out->prefill_tokens = e->shared->n_unread;
    pl_unlock(&e->shared->lock);
}

int pl_engine_steps(const pl_engine *e, pl_step_info *out, int max)
{
    const shared *s = e->shared;
    pl_lock(&e->shared->lock);
    int n = (int)PL_MIN(s->n_steps, PL_MIN(PL_MAX(max, 0), N_STEPS));
    for (int i = 0; i < n; i++) out[i] = s->steps[(s->n_steps - n + i) % N_STEPS];
    pl_unlock(&e->shared->lock);
    return n;
}

/* A label is names and values, each ended by NUL; the first value is the request's id. */
static void copy_label(const pl_seq *s, char *out, size_t room)
{
    const char *name_end = s->label ? memchr(s->label, 0, s->label_len) : NULL;
    out[0] = 0;
    if (!name_end) return;
    size_t left = s->label_len - (size_t)(name_end + 1 - s->label);
    snprintf(out, room, "%.*s", (int)left, name_end + 1);
}

int pl_engine_seqs(const pl_engine *e, pl_seq_info *out, int max)
{
    const shared *s = e->shared;
    int n = 0;
    pl_lock(&e->shared->lock);
    for (uint32_t i = 0; i <= s->mask; i++) {
        const run *r = s->index[i];
        if (!r || r->seq->uncounted || n++ >= max) continue;
        pl_seq_info *info = &out[n - 1];
        int32_t given = r->seq->n_given - r->seq->n_prompt; /* made elsewhere */
        *info = (pl_seq_info){.seq = r->id,
                              .stage = atomic_load(&r->stage),
                              .n_prompt = r->seq->n_prompt,
                              .n_tokens = PL_MAX(given, r->shown.n_tokens),
                              .since_ns = r->since_ns,
                              .first_ns = r->shown.first_ns,
                              .last_ns = r->shown.last_ns};
        copy_label(r->seq, info->label, sizeof info->label);
    }
    pl_unlock(&e->shared->lock);
    return n;
}

/* ---- between steps: the step thread stays out while the lock is held ------------ */

pl_status pl_engine_reset_cache(pl_engine *e)
{
    pl_lock(&e->shared->lock);
    bool done = !e->shared->stepping && pl_kv_reset(e->kv);
    if (done) e->shared->stats.blocks_cached = 0;
    pl_unlock(&e->shared->lock);
    if (done) pl_engine_nudge(e); /* those who follow the cache must hear of it */
    return done ? PL_OK : PL_EAGAIN;
}

int pl_engine_blocks(const pl_engine *e, int32_t seq, int32_t *out, int max)
{
    int n = PL_EAGAIN;
    pl_lock(&e->shared->lock);
    if (!e->shared->stepping && !seq) {
        n = pl_kv_line(e->kv, out, max);
    } else if (!e->shared->stepping) {
        const run *r = pl_index_find(e->shared, seq);
        n = r ? PL_MIN(r->n_blocks, max) : PL_ENOTFOUND;
        for (int i = 0; i < n; i++) out[i] = r->blocks[i];
    }
    pl_unlock(&e->shared->lock);
    return n == PL_ENOTFOUND ? pl_fail(PL_ENOTFOUND, "no sequence %d", seq) : n;
}

/* Every block is used as often as there are sequences that hold it. */
static pl_status check_blocks(const pl_engine *e)
{
    PL_TRY(pl_kv_check(e->kv));
    int32_t n = pl_kv_size(e->kv) + 1;
    int32_t *holders = pl_alloc((size_t)n * sizeof *holders);
    pl_status status = PL_OK;
    for (uint32_t i = 0; i <= e->shared->mask; i++) {
        const run *r = e->shared->index[i];
        for (int32_t j = 0; r && j < r->n_blocks; j++)
            if (r->blocks[j] >= 1 && r->blocks[j] < n)
                holders[r->blocks[j]]++;
            else
                status = pl_fail(PL_EINTERNAL, "sequence %d holds block %d", r->id,
                                 r->blocks[j]);
    }
    pl_engine_count_lent(e, holders);
    for (int32_t i = 1; i < n; i++)
        if (holders[i] != pl_kv_users(e->kv, i))
            status = pl_fail(PL_EINTERNAL,
                             "block %d has %d users, but %d sequences and loans hold it",
                             i, pl_kv_users(e->kv, i), holders[i]);
    pl_free(holders);
    return status;
}

pl_status pl_engine_check(const pl_engine *e)
{
    pl_lock(&e->shared->lock);
    pl_status status = e->shared->stepping ? PL_EAGAIN : check_blocks(e);
    pl_unlock(&e->shared->lock);
    return status;
}

/* ---- the step ------------------------------------------------------------------- */

static void take_arrival(pl_engine *e, run *r, bool ok)
{
    int32_t n_remote = r->seq->n_remote;
    r->seq->n_remote = 0;
    if (r->state == RUN_ORPHAN) pl_engine_end(e, r, PL_FINISH_ABORT);
    if (r->state != RUN_REMOTE) return; /* not placed yet: it will be computed here */
    if (!ok && e->options.fail_without_kv) {
        pl_engine_end(e, r, PL_FINISH_ERROR);
        return;
    }
    pl_run_remove(&e->remote, r);
    if (ok && !r->spoiled) {
        /* The last token is computed again: its row gives the first logits. */
        r->n_computed = PL_MIN(n_remote, r->seq->n_tokens - 1);
        pl_engine_name(e, r, r->n_computed);
    } else {
        pl_engine_drop(e, r);
    }
    r->spoiled = false;
    pl_line_push(e, r);
}

static void take_news(pl_engine *e, run *r, int news)
{
    if (news & NEWS_SUBMIT) pl_line_push(e, r);
    if (news & (NEWS_ARRIVED | NEWS_FAILED)) take_arrival(e, r, !(news & NEWS_FAILED));
    if (!(news & NEWS_CANCEL) || r->state == RUN_ORPHAN || r->state == RUN_ENDED) return;
    if (r->state == RUN_REMOTE) {
        pl_engine_orphan(e, r);
        return;
    }
    pl_engine_end(e, r, PL_FINISH_ABORT);
}

/* With the lock held, as is; not while they hear all that is in the cache. */
static void serve_taps(pl_engine *e)
{
    e->shared->nudged = false;
    pl_unlock(&e->shared->lock);
    pl_engine_serve_taps(e);
    pl_lock(&e->shared->lock);
}

static void begin(pl_engine *e)
{
    PL_ON(STEP);
    int news = 0;
    e->began_ns = pl_clock_now(e->options.clock);
    e->moved = false;
    e->landed.number = 0;
    pl_lock(&e->shared->lock);
    e->shared->stepping = true;
    if (e->shared->nudged) serve_taps(e);
    pl_engine_take_returned(e);
    for (run *r; (r = pl_inbox_pop(e->shared, &news));) take_news(e, r, news);
    pl_unlock(&e->shared->lock);
}

/* Of the prompts of those that run: how many tokens this step has read. */
static int64_t count_read(pl_engine *e)
{
    int64_t n_read = 0;
    for (int32_t i = 0; i < e->running.n; i++) {
        run *r = e->running.items[i];
        int32_t left = r->told ? 0 : PL_MAX(0, r->seq->n_tokens - r->n_computed);
        n_read += PL_MAX(0, r->n_unread - left);
        r->n_unread = PL_MIN(r->n_unread, left);
    }
    return n_read;
}

/* With the lock held, once the step is counted. */
static void remember(pl_engine *e, shared *s)
{
    pl_step_info *i = &e->landed;
    if (!i->number) return;
    i->ended_ns = e->stats.last_step_ns;
    i->running = e->stats.running;
    i->waiting = s->n_live - e->stats.running - e->stats.waiting_remote;
    i->blocks_used = e->stats.blocks_used;
    s->steps[s->n_steps++ % N_STEPS] = *i;
    i->number = 0;
}

/* With the lock held: what others are shown of those that run. */
static void show_runs(pl_engine *e)
{
    int64_t now = e->stats.last_step_ns;
    for (int32_t i = 0; i < e->running.n; i++) {
        run *r = e->running.items[i];
        int32_t made = r->seq->n_tokens - r->seq->n_prompt;
        if (r->told && !r->shown.first_ns) r->shown.first_ns = now;
        if (r->told && made != r->shown.n_tokens) r->shown.last_ns = now;
        r->shown.n_tokens = made;
    }
}

/* Makes known how things are, and lets others in. Those that ended go in the same moment,
 * or the counts would not fit together. */
static void publish(pl_engine *e)
{
    shared *s = e->shared;
    pl_engine_stats *mine = &e->stats;
    mine->running = e->running.n;
    mine->waiting_remote = e->remote.n;
    mine->blocks = pl_kv_size(e->kv);
    mine->blocks_used = mine->blocks - pl_kv_free(e->kv);
    mine->blocks_cached = pl_kv_cached(e->kv);
    mine->blocks_changed = (int64_t)pl_kv_changes(e->kv);
    mine->last_step_ns = pl_now_ns();
    e->moved = e->n_flying || (e->moved && (e->running.n || e->waiting.n));
    int64_t n_read = count_read(e);
    pl_lock(&s->lock);
    s->n_unread -= n_read;
    for (int32_t i = 0; i < e->ended.n; i++) pl_index_remove(s, e->ended.items[i]);
    /* Those who can only wait for KV from elsewhere are not this engine's work. */
    mine->busy_since_ns = e->moved || s->inbox ? s->stats.busy_since_ns : 0;
    s->stats = *mine;
    show_runs(e);
    remember(e, s);
    s->stepping = false;
    pl_unlock(&s->lock);
    for (int32_t i = 0; i < e->ended.n; i++) {
        run *r = e->ended.items[i];
        r->state = RUN_GONE;
        if (!r->n_flying) pl_run_free(r);
    }
    e->ended.n = 0;
}

/* ---- a step's way --------------------------------------------------------------- */

/* The tokens before each of n rows from a position on, summed. */
static int64_t look_back(int64_t position, int64_t n)
{
    return n * position + n * (n - 1) / 2;
}

/* Of a step's rows, those that read a prompt, and what they cost. A prompt's last token
 * alone, where all others are cached or came from elsewhere, is as much work as one that
 * was drawn. */
static void count_rows(const flight *f, pl_step_info *info)
{
    for (int32_t i = 0; i < f->step->n_seqs; i++) {
        const pl_step_seq *q = &f->step->seqs[i];
        int32_t given = PL_MIN(f->runs[i]->seq->n_given - q->position, q->n_rows);
        given = q->n_rows > 1 ? PL_MAX(0, given) : 0;
        info->prompt_rows += given;
        info->looked_back += look_back(q->position, q->n_rows);
        info->prompt_looked_back += look_back(q->position, given);
    }
}

/* Whether it counts: trials of an idle engine do not. */
static bool count_step(pl_engine *e, const flight *f)
{
    int32_t n_rows = 0;
    for (int32_t i = 0; i < f->step->n_seqs; i++)
        if (!f->runs[i]->seq->uncounted) n_rows += f->step->seqs[i].n_rows;
    if (!n_rows) return false;
    e->stats.steps++;
    pl_metric_observe(e->metrics[PL_OBSERVE_STEP_TOKENS], n_rows);
    return true;
}

/* Plans a step and sends it off; false when there was nothing to compute, or it failed at
 * once. */
static bool launch(pl_engine *e)
{
    flight *f = pl_engine_flight(e, e->n_flying);
    pl_engine_plan(e);
    pl_engine_build(e, f);
    if (!f->step->n_seqs) return false;
    e->moved = true;
    f->info = (pl_step_info){.number = count_step(e, f) ? e->stats.steps : 0,
                             .began_ns = e->woke_ns,
                             .submitted_ns = pl_now_ns(),
                             .seqs = f->step->n_seqs,
                             .rows = f->step->n_rows};
    count_rows(f, &f->info);
    if (pl_model_submit(e->model, f->step) < 0) {
        pl_engine_tell_failure(e, e->n_flying, 1);
        return false;
    }
    e->n_flying++;
    return true;
}

static pl_status collect(pl_engine *e, const flight *f)
{
    pl_status status;
    for (int i = 1; (status = pl_model_collect(e->model, COLLECT_MS)) == PL_EAGAIN; i++)
        /* It cannot be given up: the device may still write to the blocks. */
        if (i % SLOW_WAITS == 0)
            pl_log(PL_LOG_WARN, "a step of %d tokens has taken %d s so far",
                   f->step->n_rows, i * COLLECT_MS / 1000);
    return status;
}

/* Waits for the oldest step and tells what it brought. Those behind it build on it: if it
 * failed, so have they. */
static void land(pl_engine *e)
{
    flight *f = pl_engine_flight(e, 0);
    int32_t n = 1;
    pl_status status = collect(e, f);
    f->info.collected_ns = pl_now_ns();
    e->landed = f->info;
    if (status == PL_OK) {
        pl_engine_tell(e, f);
    } else {
        pl_engine_tell_failure(e, 0, e->n_flying);
        for (; n < e->n_flying; n++) collect(e, pl_engine_flight(e, n));
    }
    e->oldest = (e->oldest + n) % PL_COUNT(e->flights);
    e->n_flying -= n;
}

/* Sends a step off and, where no more may fly or nothing is left to plan, waits for the
 * oldest. */
static pl_token_batch *run_step(pl_engine *e)
{
    e->woke_ns = pl_now_ns();
    begin(e);
    bool sent = launch(e);
    if (e->n_flying && (!sent || e->n_flying == pl_model_depth(e->model))) land(e);
    pl_token_batch *batch = pl_engine_batch(e);
    pl_engine_tell_changes(e);
    publish(e);
    return batch;
}

static void show(pl_engine *e, pl_token_batch *batch)
{
    pl_token_batch_put(e->last);
    e->last = batch;
}

pl_status pl_engine_step(pl_engine *e)
{
    if (e->sink) return pl_fail(PL_EINVAL, "the engine has a thread that steps");
    pl_thread was = pl_thread_become(PL_THREAD_STEP);
    show(e, run_step(e));
    pl_thread_become(was);
    return PL_OK;
}

const pl_token_batch *pl_engine_last(const pl_engine *e)
{
    return e->last;
}

int pl_engine_tokens(pl_engine *e, const pl_token **out)
{
    *out = e->last ? e->last->tokens : NULL;
    return e->last ? e->last->n : 0;
}

/* ---- the thread ----------------------------------------------------------------- */

static void tell(pl_engine *e, pl_token_batch *batch)
{
    if (batch) e->sink(e->sink_ctx, batch);
}

static void *run_thread(void *arg)
{
    pl_engine *e = arg;
    pl_thread_begin(PL_THREAD_STEP, "pl-step");
    for (bool stop = false; !stop;) {
        tell(e, run_step(e));
        pl_lock(&e->shared->lock);
        while (!e->shared->inbox && !e->moved && !e->shared->stopping &&
               !e->shared->nudged && !e->shared->returned.n)
            pl_wait(&e->shared->lock, IDLE_MS);
        stop = e->shared->stopping;
        pl_unlock(&e->shared->lock);
    }
    return NULL;
}

pl_status pl_engine_start(pl_engine *e, pl_engine_sink sink, void *ctx)
{
    if (e->sink) return pl_fail(PL_EINVAL, "the engine's thread runs already");
    e->sink = sink;
    e->sink_ctx = ctx;
    if (pthread_create(&e->thread, NULL, run_thread, e) == 0) return PL_OK;
    e->sink = NULL;
    return pl_fail(PL_EIO, "cannot create a thread for the engine's steps");
}

static pl_token_batch *end_all(pl_engine *e)
{
    begin(e);
    while (e->n_flying) land(e);
    while (e->running.n)
        pl_engine_end(e, e->running.items[e->running.n - 1], PL_FINISH_ABORT);
    while (e->waiting.n)
        pl_engine_end(e, e->waiting.items[e->waiting.n - 1], PL_FINISH_ABORT);
    while (e->remote.n)
        pl_engine_end(e, e->remote.items[e->remote.n - 1], PL_FINISH_ABORT);
    pl_token_batch *batch = pl_engine_batch(e);
    publish(e);
    return batch;
}

void pl_engine_stop(pl_engine *e)
{
    pl_lock(&e->shared->lock);
    bool first = !e->shared->stopping;
    e->shared->stopping = true;
    pl_wake(&e->shared->lock);
    pl_unlock(&e->shared->lock);
    if (!first) return;
    if (e->sink) pthread_join(e->thread, NULL);
    pl_thread was = pl_thread_become(PL_THREAD_STEP);
    if (e->sink)
        tell(e, end_all(e));
    else
        show(e, end_all(e));
    pl_thread_become(was);
}
