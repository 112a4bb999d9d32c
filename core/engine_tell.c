/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_tell.c - what a step brought: tokens, ends, and the batch that carries them
 * away.
 *
 * Owns     that each sequence ends once, and is told so.
 * Ignores  who listens.
 * Thread   step.
 */
#include "engine_state.h"

#include <string.h>

static pl_token *push_out(pl_engine *e, run *r, int32_t token, int finish)
{
    if (e->n_outs == e->outs_cap) {
        e->outs_cap = PL_MAX(16, 2 * e->outs_cap);
        e->outs = pl_realloc(e->outs, (size_t)e->outs_cap * sizeof *e->outs);
    }
    outcome *o = &e->outs[e->n_outs++];
    *o = (outcome){.run = r};
    int32_t n_made = r->seq->n_tokens - r->seq->n_prompt;
    o->token = (pl_token){
        .seq = r->id,
        .token = token,
        .index = token < 0 ? n_made : n_made - 1,
        .finish = finish,
        .stop_reason = -1,
        .n_cached = PL_MAX(0, r->n_cached),
    };
    return &o->token;
}

static void count_end(pl_engine *e, const run *r, int finish)
{
    if (r->seq->uncounted) return;
    e->stats.finished++;
    e->stats.aborted += finish == PL_FINISH_ABORT;
    pl_metric_observe(e->metrics[PL_OBSERVE_SECONDS],
                      (double)(pl_clock_now(e->options.clock) - r->since_ns) * 1e-9);
}

/* Tells of its end, without a token. */
static void push_end(pl_engine *e, run *r, int finish)
{
    push_out(e, r, -1, finish);
    count_end(e, r, finish);
}

static void leave(pl_engine *e, run *r)
{
    if (r->state == RUN_WAITING)
        pl_line_remove(e, r);
    else if (r->state == RUN_RUNNING)
        pl_run_remove(&e->running, r);
    else if (r->state != RUN_INBOX)
        pl_run_remove(&e->remote, r);
}

static void retire(pl_engine *e, run *r)
{
    pl_engine_end_loan(e, r);
    pl_engine_drop(e, r);
    r->state = RUN_ENDED;
    pl_run_push(&e->ended, r);
}

void pl_engine_end(pl_engine *e, run *r, int finish)
{
    PL_ON(STEP);
    leave(e, r);
    if (r->state != RUN_ORPHAN) push_end(e, r, finish);
    retire(e, r);
}

void pl_engine_orphan(pl_engine *e, run *r)
{
    push_end(e, r, PL_FINISH_ABORT);
    r->state = RUN_ORPHAN;
}

/* ---- results -------------------------------------------------------------------- */

/* A prompt's logprobs come in as many parts as its computing took; they lie by
 * position. */
static void keep_rows(run *r, const pl_step_seq *q)
{
    size_t width = 1 + (size_t)q->n_top, n = (size_t)r->seq->n_given - 1;
    if (!r->prompt_top && n) r->prompt_top = pl_alloc(n * width * sizeof *q->rows);
    for (int32_t i = 0; i < q->n_rows && q->targets[i] >= 0; i++)
        memcpy(r->prompt_top + (size_t)(q->position + i) * width,
               q->rows + (size_t)i * width, width * sizeof *q->rows);
}

static void tell_token(pl_engine *e, run *r, const pl_sampled *sampled)
{
    if (sampled->token < 0 || sampled->token >= e->vocab) {
        pl_log(PL_LOG_ERROR, "the model answered token %d of %d", sampled->token,
               e->vocab);
        pl_engine_end(e, r, PL_FINISH_ERROR);
        return;
    }
    pl_seq_append(r->seq, sampled->token);
    pl_token *t = push_out(e, r, sampled->token, PL_FINISH_NONE);
    t->finish = pl_seq_finish(r->seq, r->max_total, &t->stop_reason);
    t->n_top = sampled->n_top;
    t->top = sampled->n_top ? sampled->top : NULL;
    if (!r->told && r->prompt_top) {
        t->n_prompt_top = (r->seq->n_given - 1) * (1 + r->seq->params.prompt_logprobs);
        t->prompt_top = r->prompt_top;
    }
    r->told = true;
    if (r->state ==
        RUN_RUNNING) /* else it lost its place while this step was in flight */
        atomic_store_explicit(&r->stage, PL_SEQ_ANSWERING, memory_order_relaxed);
    e->stats.generation_tokens += !r->seq->uncounted;
    if (t->finish == PL_FINISH_NONE) return;
    count_end(e, r, t->finish);
    if (r->state == RUN_RUNNING) pl_engine_name(e, r, r->n_computed);
    leave(e, r);
    retire(e, r);
}

/* One step less has it; false when it has ended meanwhile, or did so now. */
static bool lands(run *r, const pl_step_seq *q)
{
    r->n_flying--;
    r->n_stale -= r->n_stale > 0;
    r->n_pending -= (q->want & PL_WANT_TOKEN) != 0;
    if (r->state == RUN_GONE && !r->n_flying)
        pl_run_free(r);
    else if (r->state != RUN_GONE && r->state != RUN_ENDED)
        return true;
    return false;
}

void pl_engine_tell(pl_engine *e, const flight *f)
{
    PL_ON(STEP);
    for (int32_t i = 0; i < f->step->n_seqs; i++) {
        const pl_step_seq *q = &f->step->seqs[i];
        run *r = f->runs[i];
        bool is_stale = r->n_stale > 0;
        if (!lands(r, q)) continue;
        if (!is_stale) pl_engine_lend(e, r, q->position + q->n_rows);
        if (q->want & PL_WANT_ROWS) keep_rows(r, q);
        if (q->want & PL_WANT_TOKEN) tell_token(e, r, &q->sampled);
    }
}

/* The blocks that it was to fill are not found any more: nobody knows what is in them. */
static void fail_step(pl_engine *e, const flight *f)
{
    for (int32_t i = 0; i < f->step->n_seqs; i++) {
        const pl_step_seq *q = &f->step->seqs[i];
        for (int32_t k = q->position / e->block_size; k < q->n_blocks; k++)
            pl_kv_forget(e->kv, q->blocks[k]);
        if (lands(f->runs[i], q)) pl_engine_end(e, f->runs[i], PL_FINISH_ERROR);
    }
}

/* Whoever was placed while a failed step was in flight may have found its blocks in the
 * cache. Those whose KV has arrived since stand first in line. */
static void spoil(pl_engine *e)
{
    for (int32_t i = 0; i < e->remote.n; i++) e->remote.items[i]->spoiled = true;
    while (e->waiting.n && e->waiting.items[0]->n_blocks) {
        run *r = e->waiting.items[0];
        pl_line_remove(e, r);
        pl_engine_drop(e, r);
        pl_line_push(e, r);
    }
}

void pl_engine_tell_failure(pl_engine *e, int32_t first, int32_t n)
{
    PL_ON(STEP);
    pl_log(PL_LOG_ERROR, "a step of %d tokens failed: %s (%s)",
           pl_engine_flight(e, first)->step->n_rows, pl_error_text(), pl_error_where());
    for (int32_t i = 0; i < n; i++) fail_step(e, pl_engine_flight(e, first + i));
    spoil(e);
}

/* ---- the batch: one allocation -------------------------------------------------- */

static size_t batch_size(const pl_engine *e)
{
    size_t n = sizeof(pl_token_batch) + (size_t)e->n_outs * sizeof(pl_token) +
               (size_t)e->placed.n * sizeof(pl_placed) + pl_engine_lent_size(e) +
               (size_t)e->started.n * sizeof(int32_t);
    for (int32_t i = 0; i < e->n_outs; i++) {
        const pl_token *t = &e->outs[i].token;
        n += ((size_t)t->n_top + (size_t)t->n_prompt_top) * sizeof(pl_logprob);
    }
    for (int32_t i = 0; i < e->placed.n; i++)
        n += (size_t)e->placed.items[i]->n_blocks * sizeof(int32_t);
    return n;
}

/* Copies n bytes to where `room` stands, and moves that on. */
static const void *add(char **room, const void *data, size_t bytes)
{
    void *at = *room;
    if (bytes) memcpy(at, data, bytes);
    *room += bytes;
    return at;
}

static void add_tokens(const pl_engine *e, pl_token *tokens, char **room)
{
    for (int32_t i = 0; i < e->n_outs; i++) {
        pl_token *t = &tokens[i];
        *t = e->outs[i].token;
        if (t->n_top) t->top = add(room, t->top, (size_t)t->n_top * sizeof *t->top);
        if (!t->n_prompt_top) continue;
        t->prompt_top =
            add(room, t->prompt_top, (size_t)t->n_prompt_top * sizeof *t->top);
        pl_free(e->outs[i].run->prompt_top);
        e->outs[i].run->prompt_top = NULL;
    }
}

static void add_placed(const pl_engine *e, pl_placed *placed, char **room)
{
    for (int32_t i = 0; i < e->placed.n; i++) {
        const run *r = e->placed.items[i];
        int32_t first = r->n_computed, skip = first / e->block_size;
        size_t n = (size_t)(r->n_blocks - skip);
        placed[i] =
            (pl_placed){r->id,      r->seq->ticket,
                        first,      r->seq->n_remote - first,
                        (int32_t)n, add(room, r->blocks + skip, n * sizeof *r->blocks)};
    }
}

pl_token_batch *pl_engine_batch(pl_engine *e)
{
    PL_ON(STEP);
    pl_token_batch *b = NULL;
    if (e->n_outs || e->placed.n || e->lent.n || e->started.n) {
        /* What holds pointers comes first, then what is made of int32s. */
        b = pl_alloc(batch_size(e));
        char *room = (char *)(b + 1);
        pl_token *tokens = (pl_token *)room;
        pl_placed *placed = (pl_placed *)(tokens + e->n_outs);
        pl_lent *lent = (pl_lent *)(placed + e->placed.n);
        int32_t *started = (int32_t *)(lent + e->lent.n);
        room = (char *)(started + e->started.n);
        for (int32_t i = 0; i < e->started.n; i++) started[i] = e->started.items[i]->id;
        *b = (pl_token_batch){1,
                              e->began_ns,
                              pl_clock_now(e->options.clock),
                              e->n_outs,
                              e->placed.n,
                              e->lent.n,
                              e->started.n,
                              tokens,
                              placed,
                              lent,
                              started};
        add_tokens(e, tokens, &room);
        add_placed(e, placed, &room);
        pl_engine_add_lent(e, lent, (int32_t *)room);
    }
    e->n_outs = e->placed.n = e->started.n = 0;
    return b;
}

void pl_token_batch_take(pl_token_batch *b)
{
    atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
}

void pl_token_batch_put(pl_token_batch *b)
{
    if (b && atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1)
        pl_free(b);
}
