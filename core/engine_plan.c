/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_plan.c - who is in the next step, with how many tokens.
 *
 * Owns     the budget of a step, and who loses blocks when there are too few.
 * Ignores  what the tokens will be.
 * Thread   step.
 *
 * There is no prefill and no decode: each sequence has tokens that are not computed yet
 * (one, while it decodes) and is given as many as fit. Those that run come first, in
 * order of admission; then those that wait, strictly in order: if the first of them does
 * not fit, nobody behind it is tried. When a running one lacks a block, the last admitted
 * (or, by priority, the least important) loses all of its blocks and waits again; what it
 * computed is computed anew, or found in the cache if it is still there.
 *
 * Blocks get their names when their tokens are planned, so that two equal prompts in one
 * step are computed once: rows of one step see the KV of rows before them. If the step
 * fails the names are taken back.
 *
 * While a step is in flight the next one is planned as if nobody ended in it: who was
 * given a token goes on with it, unseen. Blocks may be given to others at once, since
 * steps are computed in their order.
 */
#include "engine_state.h"

#include <assert.h>
#include <string.h>

static int32_t blocks_for(const pl_engine *e, int32_t n_tokens)
{
    return (n_tokens + e->block_size - 1) / e->block_size;
}

/* ---- names ---------------------------------------------------------------------- */

void pl_engine_chain(const pl_engine *e, run *r, int32_t n_blocks)
{
    if (n_blocks <= r->n_names) return;
    if (n_blocks > r->names_cap) {
        r->names_cap = PL_MAX(n_blocks, 2 * r->names_cap);
        r->names = pl_realloc(r->names, (size_t)r->names_cap * sizeof *r->names);
    }
    const pl_name *parent = r->n_names ? &r->names[r->n_names - 1] : NULL;
    pl_namer_chain(&e->namer, parent, r->seq->tokens + r->n_names * e->block_size,
                   e->block_size, n_blocks - r->n_names, r->seq->salt, r->seq->salt_len,
                   r->names + r->n_names);
    r->n_names = n_blocks;
}

void pl_engine_name(pl_engine *e, run *r, int32_t n_tokens)
{
    r->n_found = r->n_named;
    if (!e->options.enable_prefix_caching) return;
    n_tokens = PL_MIN(n_tokens, r->seq->n_tokens); /* the last may be unknown yet */
    pl_engine_chain(e, r, n_tokens / e->block_size);
    int32_t n = PL_MIN(n_tokens / e->block_size, r->n_names);
    for (; r->n_named < n; r->n_named++)
        if (pl_kv_name(e->kv, r->blocks[r->n_named], &r->names[r->n_named]))
            pl_engine_log_block(e, r, r->n_named);
}

void pl_engine_drop(pl_engine *e, run *r)
{
    PL_ON(STEP);
    /* In the step that is being made: what was named for it will not be computed. */
    for (int32_t i = r->n_found; r->n_now > 0 && i < r->n_named; i++)
        pl_kv_forget(e->kv, r->blocks[i]);
    pl_kv_put(e->kv, r->blocks, r->n_blocks);
    r->n_stale = r->n_flying;
    r->n_blocks = r->n_named = r->n_found = r->n_computed = r->n_now = 0;
}

/* ---- those that run ------------------------------------------------------------- */

static int32_t want_tokens(const pl_engine *e, const run *r, int32_t n_computed)
{
    int32_t n = r->seq->n_tokens - n_computed,
            cap = e->options.long_prefill_token_threshold;
    /* The last token that it may have needs no computing. */
    if (r->n_pending) n += PL_MIN(r->n_pending, r->max_total - 1 - r->seq->n_tokens);
    return cap > 0 ? PL_MIN(n, cap) : n;
}

static bool extend(pl_engine *e, run *r, int32_t n)
{
    int32_t need = blocks_for(e, r->n_computed + n) - r->n_blocks;
    if (need > 0) {
        if (!pl_kv_take(e->kv, NULL, 0, need, r->blocks + r->n_blocks)) return false;
        r->n_blocks += need;
    }
    pl_engine_name(e, r, r->n_computed + n);
    r->n_now = n;
    return true;
}

/* Its place among those that run. */
static int32_t find_victim(const pl_engine *e)
{
    run *const *all = e->running.items;
    int32_t victim = e->running.n - 1;
    for (int32_t i = 0; e->options.policy == PL_POLICY_PRIORITY && i < e->running.n; i++)
        if (pl_run_is_before(e, all[victim], all[i])) victim = i;
    return victim;
}

static void preempt(pl_engine *e, run *r)
{
    pl_run_remove(&e->running, r);
    pl_engine_drop(e, r);
    if (atomic_load(&r->stage) == PL_SEQ_ANSWERING)
        atomic_store(&r->wait_ns, pl_clock_now(e->options.clock));
    pl_line_push(e, r);
    e->stats.preemptions++;
    e->moved = true;
}

/* Returns what is left of the budget, or -1 when someone was preempted. */
static int32_t plan_running(pl_engine *e, int32_t budget)
{
    bool preempted = false;
    for (int32_t i = 0; i < e->running.n && budget > 0; i++) {
        run *r = e->running.items[i], *victim = NULL;
        int32_t n = PL_MIN(want_tokens(e, r, r->n_computed), budget);
        if (n == 0) continue; /* the step in flight brings its last token */
        while (victim != r && !extend(e, r, n)) {
            int32_t at = find_victim(e);
            victim = e->running.items[at];
            budget += victim->n_now;
            i -= at < i; /* r moves up */
            preempt(e, victim);
            preempted = true;
        }
        if (victim == r) break;
        budget -= n;
    }
    return preempted ? -1 : budget;
}

/* ---- those that wait ------------------------------------------------------------ */

/* A prompt whose rows are wanted is computed, whatever the cache has of it. */
static bool reads_cache(const pl_engine *e, const run *r)
{
    bool wants_rows = r->seq->params.prompt_logprobs >= 0 && !r->told;
    return e->options.enable_prefix_caching && !wants_rows;
}

static int32_t find_prefix(const pl_engine *e, run *r)
{
    if (!reads_cache(e, r)) return 0;
    int32_t limit =
        (r->seq->n_tokens - 1) / e->block_size; /* one token must be computed */
    pl_engine_chain(e, r, limit);
    return pl_kv_find(e->kv, r->names, PL_MIN(limit, r->n_names), r->blocks);
}

static void count_prefix(pl_engine *e, const run *r, int32_t n_found)
{
    if (r->n_cached >= 0 || r->seq->uncounted || !reads_cache(e, r)) return;
    e->stats.prefix_queries += r->seq->n_tokens;
    e->stats.prefix_hits += n_found;
}

/* Blocks for KV that comes from elsewhere. They get their names when it is there. */
static bool place(pl_engine *e, run *r, int32_t hits)
{
    int32_t n_new = blocks_for(e, r->seq->n_remote) - hits;
    if (!pl_kv_take(e->kv, r->blocks, hits, n_new, r->blocks + hits)) return false;
    count_prefix(e, r, hits * e->block_size);
    pl_line_remove(e, r);
    r->n_blocks = hits + n_new;
    r->n_named = r->n_found = hits;
    r->n_computed = hits * e->block_size;
    r->state = RUN_REMOTE;
    atomic_store(&r->stage, PL_SEQ_REMOTE);
    pl_run_push(&e->remote, r);
    pl_run_push(&e->placed, r);
    e->moved = true;
    return true;
}

/* Nothing runs, and the first in line lacks blocks: another that waits may hold some. */
static bool relieve(pl_engine *e, const run *first)
{
    run *last = NULL;
    for (int32_t i = 0; i < e->waiting.n; i++) {
        run *r = e->waiting.items[i];
        if (r == first || !r->n_blocks) continue;
        if (!last || pl_run_is_before(e, last, r)) last = r;
    }
    if (e->running.n || !last) return false;
    pl_line_remove(e, last);
    pl_engine_drop(e, last);
    pl_line_push(e, last);
    return true;
}

static void admit(pl_engine *e, run *r, int32_t hits)
{
    pl_line_remove(e, r);
    r->state = RUN_RUNNING;
    r->seq->n_remote = 0; /* it is here already; once is enough */
    pl_run_push(&e->running, r);
    if (r->n_blocks == 0) {
        count_prefix(e, r, hits * e->block_size);
        r->n_blocks = r->n_named = hits;
        r->n_computed = hits * e->block_size;
    }
    if (r->n_cached >= 0) return;
    r->n_cached = PL_MIN(r->n_computed, r->seq->n_given);
    if (!r->seq->uncounted) {
        e->stats.prompt_tokens += r->seq->n_given;
        e->stats.cached_tokens += r->n_cached;
    }
    pl_run_push(&e->started, r);
}

/* The first in line: its tokens in the next step; 0: placed, or try again; -1: not
 * now. */
static int32_t plan_first(pl_engine *e, run *r, int32_t budget)
{
    if (!r->blocks) {
        r->blocks = pl_alloc((size_t)blocks_for(e, r->max_total) * sizeof *r->blocks);
        pl_seq_reserve(r->seq, r->max_total);
    }
    int32_t hits = r->n_blocks ? 0 : find_prefix(e, r);
    int32_t n_computed = r->n_blocks ? r->n_computed : hits * e->block_size;
    if (!r->n_blocks && r->seq->n_remote > n_computed) return place(e, r, hits) ? 0 : -1;
    int32_t n = want_tokens(e, r, n_computed);
    if (n > budget && !e->options.enable_chunked_prefill) return -1;
    n = PL_MIN(n, budget);
    int32_t had = PL_MAX(hits, r->n_blocks);
    int32_t n_new = PL_MAX(0, blocks_for(e, n_computed + n) - had);
    if (!pl_kv_take(e->kv, r->blocks, hits, n_new, r->blocks + had))
        return relieve(e, r) ? 0 : -1;
    admit(e, r, hits);
    r->n_blocks = had + n_new;
    pl_engine_name(e, r, n_computed + n);
    r->n_now = n;
    return n;
}

static void plan_waiting(pl_engine *e, int32_t budget)
{
    while (budget > 0 && e->running.n < e->options.max_num_seqs && e->waiting.n > 0) {
        int32_t n = plan_first(e, e->waiting.items[0], budget);
        if (n < 0) break;
        budget -= n;
    }
}

void pl_engine_plan(pl_engine *e)
{
    PL_ON(STEP);
    int32_t left = plan_running(e, e->options.max_num_batched_tokens);
    if (left > 0) plan_waiting(e, left);
}

/* ---- the step ------------------------------------------------------------------- */

static void build_seq(pl_engine *e, run *r, pl_step *s)
{
    const pl_seq *seq = r->seq;
    int32_t n_known = PL_MIN(r->n_now, seq->n_tokens - r->n_computed);
    pl_step_seq *q = pl_step_add(s, r->n_computed, seq->tokens + r->n_computed, n_known,
                                 r->blocks, r->n_blocks);
    if (n_known < r->n_now) pl_step_add_drawn(s, q, r->place);
    if (r->n_computed + r->n_now == seq->n_tokens + r->n_pending) {
        pl_step_want_token(s, q, pl_seq_sampler(r->seq));
        r->n_pending++;
    } else {
        e->stats.chunked++;
    }
    if (seq->params.prompt_logprobs >= 0 && !r->told && r->n_computed < seq->n_given)
        pl_step_want_rows(s, q, seq->tokens + r->n_computed + 1,
                          PL_MIN(r->n_now, seq->n_given - r->n_computed - 1),
                          seq->params.prompt_logprobs);
}

void pl_engine_build(pl_engine *e, flight *f)
{
    PL_ON(STEP);
    pl_step *s = f->step;
    pl_step_clear(s);
    for (int32_t i = 0; i < e->running.n; i++) {
        run *r = e->running.items[i];
        if (!r->n_now) continue;
        build_seq(e, r, s);
        r->place = s->n_seqs - 1;
        f->runs[r->place] = r;
        if (atomic_load_explicit(&r->stage, memory_order_relaxed) != PL_SEQ_ANSWERING)
            atomic_store(&r->stage, r->n_computed);
        r->n_computed += r->n_now;
        r->n_now = 0;
        r->n_flying++;
    }
}
