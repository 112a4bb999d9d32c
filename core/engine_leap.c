/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_leap.c - many steps that are alike, taken at once: for the simulator, where most
 * steps draw one token for each sequence and change nothing else.
 *
 * Owns     what "alike" means: no block is taken, given back or named, nobody comes, goes
 *          or is moved.
 * Ignores  how long a step takes, and what a device would have drawn.
 * Thread   step, of an engine without a thread.
 */
#include "engine_state.h"

/* Steps that this one may take before one that fills a block, or brings its last token. */
static int32_t alike_for(const pl_engine *e, const run *r)
{
    const pl_seq *s = r->seq;
    bool decodes = r->told && !r->n_pending && r->n_computed == s->n_tokens - 1;
    if (!decodes || s->ends.n || s->uncounted) return 0;
    int32_t to_last = r->max_total - 1 - s->n_tokens;
    int32_t to_full = r->n_blocks * e->block_size - 1 - r->n_computed;
    return PL_MIN(to_last, to_full);
}

/* The same for all that run. */
static int32_t all_alike_for(const pl_engine *e)
{
    int32_t n = e->running.n ? INT32_MAX : 0;
    for (int32_t i = 0; i < e->running.n && n > 0; i++)
        n = PL_MIN(n, alike_for(e, e->running.items[i]));
    return PL_MAX(n, 0);
}

int32_t pl_engine_alike(const pl_engine *e, pl_step_info *first)
{
    if (e->sink || e->shared->inbox || e->shared->returned.n || e->n_flying ||
        e->waiting.n || e->remote.n)
        return 0;
    *first = (pl_step_info){.seqs = e->running.n,
                            .rows = e->running.n,
                            .blocks_used = pl_kv_size(e->kv) - pl_kv_free(e->kv)};
    for (int32_t i = 0; i < e->running.n; i++)
        first->looked_back += e->running.items[i]->n_computed;
    return all_alike_for(e);
}

void pl_engine_leap(pl_engine *e, int32_t n)
{
    pl_thread was = pl_thread_become(PL_THREAD_STEP);
    n = PL_MIN(n, all_alike_for(e)); /* who has come since then is not let in yet */
    for (int32_t i = 0; i < e->running.n; i++) {
        run *r = e->running.items[i];
        for (int32_t k = 0; k < n; k++) pl_seq_append(r->seq, 0);
        r->n_computed += n;
    }
    e->stats.steps += n;
    e->stats.generation_tokens += (int64_t)n * e->running.n;
    pl_thread_become(was);
}
