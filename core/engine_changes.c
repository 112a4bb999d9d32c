/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_changes.c - what a step changed in the cache, told to those who tapped it.
 *
 * Owns     the taps, and that each hears everything from its first batch on, in order.
 * Ignores  what they do with it.
 * Thread   tap, untap: any. The rest: step.
 *
 * Without taps nothing is logged. A new tap, or one that asks again, first gets a batch
 * with all that is there; the next one continues it.
 */
#include "engine_state.h"

/* ---- any ------------------------------------------------------------------------ */

static tap *find_tap(shared *s, const void *ctx)
{
    for (int i = 0; i < s->n_taps; i++)
        if (s->taps[i].ctx == ctx) return &s->taps[i];
    return NULL;
}

pl_status pl_engine_tap(pl_engine *e, pl_engine_teller tell, void *ctx, bool blocks)
{
    shared *s = e->shared;
    pl_status status = PL_OK;
    pl_lock(&s->tap_lock);
    tap *t = find_tap(s, ctx);
    if (!t && s->n_taps == PL_COUNT(s->taps))
        status = pl_fail(PL_ELIMIT, "%d follow the engine's cache already", s->n_taps);
    if (!t && status == PL_OK) {
        t = &s->taps[s->n_taps++];
        *t = (tap){tell, ctx, .blocks = blocks};
    }
    if (t) t->is_due = true;
    pl_unlock(&s->tap_lock);
    if (status == PL_OK) pl_engine_nudge(e);
    return status;
}

void pl_engine_untap(pl_engine *e, const void *ctx)
{
    shared *s = e->shared;
    pl_lock(&s->tap_lock);
    tap *t = find_tap(s, ctx);
    if (t) *t = s->taps[--s->n_taps];
    pl_unlock(&s->tap_lock);
    if (t) pl_engine_nudge(e); /* it need not log for nobody */
}

/* ---- step ----------------------------------------------------------------------- */

static void tell(const tap *t, pl_changes *c)
{
    pl_changes_take(c);
    t->tell(t->ctx, c);
}

/* The log begins or ends here, where nothing has changed since the last batch. */
static void set_log(pl_engine *e)
{
    e->logs_blocks = false;
    for (int i = 0; i < e->shared->n_taps; i++)
        e->logs_blocks |= e->shared->taps[i].blocks;
    pl_kv_log(e->kv, e->shared->n_taps ? &e->log : NULL);
    e->is_logging = e->shared->n_taps > 0;
}

void pl_engine_serve_taps(pl_engine *e)
{
    PL_ON(STEP);
    pl_engine_tell_changes(e); /* of a cleared cache, between steps */
    shared *s = e->shared;
    pl_lock(&s->tap_lock);
    pl_changes *whole = NULL;
    for (int i = 0; i < s->n_taps; i++) {
        if (!s->taps[i].is_due) continue;
        s->taps[i].is_due = false;
        if (!whole) whole = pl_kv_whole(e->kv);
        tell(&s->taps[i], whole);
    }
    pl_changes_put(whole);
    set_log(e);
    e->n_told = pl_kv_changes(e->kv);
    pl_unlock(&s->tap_lock);
}

void pl_engine_log_block(pl_engine *e, const run *r, int32_t i)
{
    if (!e->logs_blocks) return;
    pl_change_block block = {.is_first = i == 0, .salt_len = -1};
    if (i == 0 && r->seq->salt) block.salt_len = (int32_t)r->seq->salt_len;
    if (i > 0) block.parent = pl_name_key(&e->namer, &r->names[i - 1]);
    pl_change_log_block(&e->log, &block, r->seq->tokens + i * e->block_size,
                        e->block_size, r->seq->salt);
}

void pl_engine_tell_changes(pl_engine *e)
{
    PL_ON(STEP);
    if (!e->is_logging || !e->log.n_runs) return;
    shared *s = e->shared;
    uint64_t after = pl_kv_changes(e->kv);
    pl_changes *c = pl_change_log_take(&e->log, e->n_told, after);
    e->n_told = after;
    pl_lock(&s->tap_lock);
    for (int i = 0; i < s->n_taps; i++) tell(&s->taps[i], c);
    pl_unlock(&s->tap_lock);
    pl_changes_put(c);
}

void pl_engine_close_taps(pl_engine *e)
{
    shared *s = e->shared;
    pl_lock(&s->tap_lock);
    for (int i = 0; i < s->n_taps; i++) s->taps[i].tell(s->taps[i].ctx, NULL);
    s->n_taps = 0;
    pl_unlock(&s->tap_lock);
    pl_change_log_fini(&e->log);
}
