/* SPDX-License-Identifier: Apache-2.0 */
#include "xfer_state.h"

#include <stdio.h>
#include <string.h>

enum {
    LATE_MS = 30000, /* without anything new from the lender */
    TICK_MS = 1000,
    RETRY_MS = 2 /* where a link had no room */
};

static const char *const names[PL_KV_ENDS] = {"ended", "late", "layout", "lost",
                                              "corrupt"};
static const char *const texts[PL_KV_ENDS] = {
    "its engine ended before it had read all of it",
    "nothing new came for 30 s",
    "the blocks of the two engines differ in layout",
    "the process that read it is gone",
    "the bytes that came are not those that were sent",
};

/* ---- ends -------------------------------------------------------------------------- */

void pl_crossing_give_back(crossing *c)
{
    if (c->copy || !c->lender.engine) return;
    pl_engine_return(c->lender.engine, c->lender.seq);
    c->lender.engine = NULL;
    c->lender.over = true; /* what it may still lend is returned at once */
}

static void settle(crossing *c)
{
    if (c->copy || c->taker.engine || !c->withdrawn) return;
    pl_far_leave(c);
    pl_crossing_give_back(c);
    pl_far_let_go(c, &c->owner);
    pl_map_remove(&c->x->crossings, c->ticket);
    pl_metric_add(c->x->metrics.loans, -1);
    pl_free(c->lender.blocks);
    pl_free(c->taker.blocks);
    pl_free(c);
}

/* The taker's engine goes on: with the KV, or without. */
static void finish(crossing *c, bool ok)
{
    pl_engine *e = c->taker.engine;
    c->taker.engine = NULL;
    pl_engine_arrived(e, c->taker.seq, ok);
    pl_far_leave(c);
    pl_crossing_give_back(c);
}

void pl_crossing_fail(crossing *c, pl_kv_end why)
{
    char from[40] = "";
    pl_metric_add(c->x->metrics.failed[why], 1);
    if (c->lender.process)
        snprintf(from, sizeof from, " from %016llx",
                 (unsigned long long)c->lender.process);
    pl_log(PL_LOG_WARN, "the KV of %d tokens did not come%s: %s", c->taker.end, from,
           texts[why]);
    finish(c, false);
}

static void succeed(crossing *c)
{
    pl_metric_observe(c->x->metrics.seconds, (double)(pl_now_ns() - c->ready_ns) * 1e-9);
    finish(c, true);
}

/* ---- copies ------------------------------------------------------------------------ */

static void on_copied(pl_note *note)
{
    pl_copy *copy = (pl_copy *)note;
    crossing *c = copy->of;
    pl_free(copy);
    c->copy = NULL;
    c->taker.n_done = c->n_copied;
    pl_crossing_pump(c);
}

/* What was lent since the last copy. Neighbours on both sides are one piece. */
static void copy_more(crossing *c, int32_t n_tokens, const pl_engine_kv *kv)
{
    pl_xfer *x = c->x;
    int32_t i = c->taker.n_done / kv->block_size, skip = c->taker.first / kv->block_size;
    int32_t end = blocks_for(n_tokens, kv->block_size);
    size_t n = (size_t)(end - i);
    pl_copy *copy = pl_alloc(sizeof *copy + n * sizeof copy->pieces[0]);
    copy->note.run = on_copied;
    copy->of = c;
    struct pl_piece *last = NULL;
    for (size_t bytes = kv->block_bytes; i < end; i++) {
        const char *from = pl_engine_block(c->lender.engine, c->lender.blocks[i]);
        char *to = pl_engine_block(c->taker.engine, c->taker.blocks[i - skip]);
        if (last && (const char *)last->from + last->bytes == from &&
            (char *)last->to + last->bytes == to) {
            last->bytes += bytes;
        } else {
            last = &copy->pieces[copy->n++];
            *last = (struct pl_piece){from, to, bytes};
        }
    }
    pl_metric_add(x->metrics.bytes, (double)(n * kv->block_bytes));
    c->copy = copy;
    c->n_copied = n_tokens;
    pl_copier_push(x->copier, c->copy);
}

static bool fits(const crossing *c, pl_engine_kv *out)
{
    pl_engine_kv there;
    pl_engine_kv_get(c->lender.engine, &there);
    pl_engine_kv_get(c->taker.engine, out);
    return c->x->copier && there.is_local && out->is_local &&
           there.block_size == out->block_size && there.block_bytes == out->block_bytes &&
           strcmp(there.layout, out->layout) == 0;
}

/* Both ends are here, and the taker waits. */
static void copy(crossing *c)
{
    pl_engine_kv kv;
    if (!c->lender.engine) {
        pl_crossing_fail(c, PL_KV_ENDED);
        return;
    }
    if (!fits(c, &kv)) {
        pl_crossing_fail(c, PL_KV_LAYOUT);
        return;
    }
    int32_t n = PL_MIN(c->lender.n_tokens, c->taker.end);
    if (n == c->taker.end && !c->ready_ns) c->ready_ns = pl_now_ns();
    if (n > c->taker.n_done)
        copy_more(c, n, &kv);
    else if (c->lender.over)
        pl_crossing_fail(c, PL_KV_ENDED);
}

void pl_crossing_pump(crossing *c)
{
    if (c->copy) return;
    if (c->taker.side && !c->withdrawn) pl_far_feed(c);
    if (c->taker.engine && c->withdrawn)
        finish(c, false);
    else if (c->taker.engine && c->taker.n_done >= c->taker.end)
        succeed(c);
    else if (c->taker.engine && c->lender.process)
        pl_far_ask(c);
    else if (c->taker.engine)
        copy(c);
    settle(c);
}

/* ---- deadlines --------------------------------------------------------------------- */

static void on_tick(uv_timer_t *timer)
{
    pl_xfer *x = timer->data;
    int64_t since = pl_now_ns() - (int64_t)LATE_MS * 1000000;
    crossing *late = NULL;
    do { /* one at a time: the map changes */
        uint32_t at = 0;
        late = NULL;
        for (crossing *c; !late && (c = pl_map_next(&x->crossings, &at));)
            if (c->taker.engine && !c->copy && c->news_ns < since) late = c;
        if (late) {
            pl_crossing_fail(late, PL_KV_LATE);
            settle(late);
        }
    } while (late);
    pl_far_feed_stalled(x);
    pl_xfer_watch(x);
}

void pl_xfer_watch(pl_xfer *x)
{
    if (x->stopped) return;
    if (!x->has_timer) {
        uv_timer_init(pl_loop_uv(x->loop), &x->timer);
        x->timer.data = x;
        x->has_timer = true;
    }
    if (!x->crossings.n)
        uv_timer_stop(&x->timer);
    else if (x->stalled || !uv_is_active((uv_handle_t *)&x->timer))
        uv_timer_start(&x->timer, on_tick, x->stalled ? RETRY_MS : TICK_MS, 0);
}

/* ---- what is said of tickets ------------------------------------------------------- */

crossing *pl_crossing_find(const pl_xfer *x, uint64_t ticket)
{
    return ticket ? pl_map_find(&x->crossings, ticket) : NULL;
}

uint64_t pl_xfer_ticket(void)
{
    uint64_t ticket = pl_entropy();
    return ticket ? ticket : 1;
}

static crossing *make(pl_xfer *x, pl_side *owner, uint64_t ticket)
{
    crossing *c = pl_alloc(sizeof *c);
    c->x = x;
    c->ticket = ticket;
    c->owner = owner;
    if (owner) x->carrier.hold(owner);
    c->news_ns = pl_now_ns();
    pl_map_put(&x->crossings, ticket, c);
    pl_metric_add(x->metrics.loans, 1);
    pl_xfer_watch(x);
    return c;
}

void pl_xfer_begin(pl_xfer *x, pl_side *owner, uint64_t ticket, pl_engine *lender,
                   int32_t seq)
{
    PL_ON(IO);
    if (!ticket || pl_crossing_find(x, ticket)) return; /* what it lends is returned */
    crossing *c = make(x, owner, ticket);
    c->lender.engine = lender;
    c->lender.seq = seq;
    if (!x->copier) x->copier = pl_copier_open(x->loop);
}

void pl_xfer_expect(pl_xfer *x, pl_side *owner, uint64_t ticket, uint64_t process)
{
    PL_ON(IO);
    bool elsewhere = process && process != x->carrier.self;
    if (!ticket || !elsewhere || pl_crossing_find(x, ticket)) return;
    make(x, owner, ticket)->lender.process = process;
}

void pl_xfer_withdraw(pl_xfer *x, const pl_side *owner, uint64_t ticket)
{
    PL_ON(IO);
    crossing *c = pl_crossing_find(x, ticket);
    if (!c || c->owner != owner) return;
    c->withdrawn = true;
    pl_crossing_pump(c);
}

static void take_lent(pl_xfer *x, pl_engine *e, const pl_lent *l)
{
    crossing *c = pl_crossing_find(x, l->ticket);
    if (!c || c->lender.engine != e || c->lender.seq != l->seq) { /* nobody wants it */
        pl_engine_return(e, l->seq);
        return;
    }
    int32_t n = c->lender.n_blocks + l->n_blocks;
    if (n > c->lender.cap) {
        c->lender.cap = PL_MAX(n, 2 * c->lender.cap);
        c->lender.blocks =
            pl_realloc(c->lender.blocks, (size_t)c->lender.cap * sizeof *l->blocks);
    }
    if (l->n_blocks)
        memcpy(c->lender.blocks + c->lender.n_blocks, l->blocks,
               (size_t)l->n_blocks * sizeof *l->blocks);
    c->lender.n_blocks = n;
    c->lender.n_tokens = l->n_tokens;
    c->lender.over = l->over;
    c->news_ns = pl_now_ns();
    pl_crossing_pump(c);
}

static void take_placed(pl_xfer *x, pl_engine *e, const pl_placed *p)
{
    crossing *c = pl_crossing_find(x, p->ticket);
    if (!c || c->taker.blocks || c->taker.side) { /* nothing will come */
        pl_engine_arrived(e, p->seq, false);
        return;
    }
    c->taker.engine = e;
    c->taker.seq = p->seq;
    c->taker.first = c->taker.n_done = p->first;
    c->taker.end = p->first + p->n_tokens;
    c->taker.blocks = pl_memdup(p->blocks, (size_t)p->n_blocks * sizeof *p->blocks);
    c->news_ns = pl_now_ns();
    pl_crossing_pump(c);
}

void pl_xfer_step(pl_xfer *x, pl_engine *e, const pl_token_batch *batch)
{
    PL_ON(IO);
    for (int32_t i = 0; i < batch->n_lent; i++) take_lent(x, e, &batch->lent[i]);
    for (int32_t i = 0; i < batch->n_placed; i++) take_placed(x, e, &batch->placed[i]);
}

/* ---- life -------------------------------------------------------------------------- */

/* What of this engine is under way ends; true: look again, the map has changed. */
static bool forget_one(pl_xfer *x, const pl_engine *e)
{
    uint32_t at = 0;
    for (crossing *c; (c = pl_map_next(&x->crossings, &at));) {
        bool lends = c->lender.engine == e, takes = c->taker.engine == e;
        if (!lends && !takes) continue;
        if (lends) {
            c->lender.engine = NULL;
            c->lender.over = true;
        }
        if (takes) c->taker.engine = NULL;
        pl_crossing_pump(c);
        return true;
    }
    return false;
}

void pl_xfer_forget(pl_xfer *x, const pl_engine *e)
{
    PL_ON(IO);
    if (x->copier) pl_copier_drain(x->copier);
    while (forget_one(x, e)) {
    }
}

void pl_xfer_carrier(pl_xfer *x, const pl_carrier *carrier)
{
    x->carrier = *carrier;
}

void pl_xfer_stop(pl_xfer *x)
{
    PL_ON(IO);
    x->stopped = true;
    if (x->has_timer) uv_close((uv_handle_t *)&x->timer, NULL);
}

pl_xfer *pl_xfer_open(pl_loop *loop)
{
    static const double seconds[] = {1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1, 3};
    pl_xfer *x = pl_alloc(sizeof *x);
    x->loop = loop;
    x->metrics.loans =
        pl_metric_open(PL_GAUGE, "perilune_kv_transfer_prompts", "",
                       "prompts whose KV is, or may be, on its way", NULL, 0);
    x->metrics.bytes =
        pl_metric_open(PL_COUNTER, "perilune_kv_transfer_bytes_total", "",
                       "bytes of KV copied from the engine that read a prompt", NULL, 0);
    x->metrics.seconds = pl_metric_open(
        PL_HISTOGRAM, "perilune_kv_transfer_seconds", "",
        "from when a prompt was read and its blocks had a place until they were there",
        seconds, PL_COUNT(seconds));
    for (int i = 0; i < PL_KV_ENDS; i++) {
        char label[40];
        snprintf(label, sizeof label, "reason=\"%s\"", names[i]);
        x->metrics.failed[i] =
            pl_metric_open(PL_COUNTER, "perilune_kv_transfer_failures_total", label,
                           "prompts read again because their KV did not come", NULL, 0);
    }
    return x;
}

void pl_xfer_close(pl_xfer *x)
{
    pl_copier_close(x->copier);
    uint32_t at = 0;
    for (crossing *c; (c = pl_map_next(&x->crossings, &at));) {
        pl_free(c->lender.blocks);
        pl_free(c->taker.blocks);
        pl_free(c);
    }
    pl_map_fini(&x->crossings);
    pl_free(x);
}
