/* SPDX-License-Identifier: Apache-2.0 */
#include "xfer.h"

#include "xfer_own.h"

#include <string.h>

enum {
    LATE_MS = 30000, /* without anything new from the lender */
    TICK_MS = 1000
};

typedef enum reason {
    ENDED,
    LATE,
    LAYOUT,
    N_REASONS
} reason;
static const char *const names[N_REASONS] = {"ended", "late", "layout"};
static const char *const texts[N_REASONS] = {
    "its engine ended before it had read all of it",
    "nothing new came for 30 s",
    "the blocks of the two engines differ in layout",
};

/* A prompt's KV on its way. It lives until the answer is over, or begins anew, no copy is
 * being made, and all that was lent has been returned. */
typedef struct crossing {
    pl_xfer *x;
    uint64_t ticket;
    struct {
        pl_engine *engine; /* NULL: all is returned */
        int32_t seq, n_tokens;
        int32_t *blocks, n_blocks, cap;
        bool over;
    } lender;
    struct {
        pl_engine *engine; /* NULL: nobody waits (yet, or any more) */
        int32_t seq, first, end;
        int32_t n_done; /* tokens that have been copied, whole blocks but at the end */
        int32_t *blocks;
    } taker;
    pl_copy *copy; /* being made: up to n_copied */
    int32_t n_copied;
    bool withdrawn;
    int64_t news_ns, ready_ns; /* when something new was lent; when all was, and wanted */
} crossing;

struct pl_xfer {
    pl_loop *loop;
    pl_map crossings; /* by ticket */
    pl_copier *copier;
    uv_timer_t timer;
    bool has_timer, stopped;
    struct {
        int loans, bytes, seconds, failed[N_REASONS];
    } metrics;
};

/* ---- ends -------------------------------------------------------------------------- */

static void give_back(crossing *c)
{
    if (c->copy || !c->lender.engine) return;
    pl_engine_return(c->lender.engine, c->lender.seq);
    c->lender.engine = NULL;
    c->lender.over = true; /* what it may still lend is returned at once */
}

static void settle(crossing *c)
{
    if (c->copy || c->taker.engine || !c->withdrawn) return;
    give_back(c);
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
    give_back(c);
}

static void fail(crossing *c, reason why)
{
    pl_metric_add(c->x->metrics.failed[why], 1);
    pl_log(PL_LOG_WARN, "the KV of %d tokens did not come, so it is computed again: %s",
           c->taker.end, texts[why]);
    finish(c, false);
}

static void succeed(crossing *c)
{
    pl_metric_observe(c->x->metrics.seconds, (double)(pl_now_ns() - c->ready_ns) * 1e-9);
    finish(c, true);
}

/* ---- copies ------------------------------------------------------------------------ */

static void pump(crossing *c);

static void on_copied(pl_note *note)
{
    pl_copy *copy = (pl_copy *)note;
    crossing *c = copy->of;
    pl_free(copy);
    c->copy = NULL;
    c->taker.n_done = c->n_copied;
    pump(c);
}

static int32_t blocks_for(int32_t n_tokens, int32_t block_size)
{
    return (n_tokens + block_size - 1) / block_size;
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

/* Whatever can be done now. */
static void pump(crossing *c)
{
    pl_engine_kv kv;
    if (c->copy) return;
    if (c->taker.engine && c->withdrawn) {
        finish(c, false);
    } else if (c->taker.engine && c->taker.n_done >= c->taker.end) {
        succeed(c);
    } else if (c->taker.engine && !c->lender.engine) {
        fail(c, ENDED);
    } else if (c->taker.engine && !fits(c, &kv)) {
        fail(c, LAYOUT);
    } else if (c->taker.engine) {
        int32_t n = PL_MIN(c->lender.n_tokens, c->taker.end);
        if (n == c->taker.end && !c->ready_ns) c->ready_ns = pl_now_ns();
        if (n > c->taker.n_done)
            copy_more(c, n, &kv);
        else if (c->lender.over)
            fail(c, ENDED);
    }
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
            fail(late, LATE);
            settle(late);
        }
    } while (late);
    if (!x->crossings.n) uv_timer_stop(timer);
}

static void watch(pl_xfer *x)
{
    if (x->stopped) return;
    if (!x->has_timer) {
        uv_timer_init(pl_loop_uv(x->loop), &x->timer);
        x->timer.data = x;
        x->has_timer = true;
    }
    if (!uv_is_active((uv_handle_t *)&x->timer))
        uv_timer_start(&x->timer, on_tick, TICK_MS, TICK_MS);
}

/* ---- what is said of tickets ------------------------------------------------------- */

static crossing *find(const pl_xfer *x, uint64_t ticket)
{
    return ticket ? pl_map_find(&x->crossings, ticket) : NULL;
}

uint64_t pl_xfer_ticket(void)
{
    static atomic_ullong last;
    return atomic_fetch_add(&last, 1) + 1;
}

void pl_xfer_begin(pl_xfer *x, uint64_t ticket, pl_engine *lender, int32_t seq)
{
    PL_ON(IO);
    crossing *c = pl_alloc(sizeof *c);
    c->x = x;
    c->ticket = ticket;
    c->lender.engine = lender;
    c->lender.seq = seq;
    c->news_ns = pl_now_ns();
    pl_map_put(&x->crossings, ticket, c);
    pl_metric_add(x->metrics.loans, 1);
    if (!x->copier) x->copier = pl_copier_open(x->loop);
    watch(x);
}

void pl_xfer_withdraw(pl_xfer *x, uint64_t ticket)
{
    PL_ON(IO);
    crossing *c = find(x, ticket);
    if (!c) return;
    c->withdrawn = true;
    pump(c);
}

static void take_lent(pl_xfer *x, pl_engine *e, const pl_lent *l)
{
    crossing *c = find(x, l->ticket);
    if (!c || !c->lender.engine) { /* nobody wants it any more */
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
    pump(c);
}

static void take_placed(pl_xfer *x, pl_engine *e, const pl_placed *p)
{
    crossing *c = find(x, p->ticket);
    if (!c || c->taker.blocks) { /* nothing will come */
        pl_engine_arrived(e, p->seq, false);
        return;
    }
    c->taker.engine = e;
    c->taker.seq = p->seq;
    c->taker.first = c->taker.n_done = p->first;
    c->taker.end = p->first + p->n_tokens;
    c->taker.blocks = pl_memdup(p->blocks, (size_t)p->n_blocks * sizeof *p->blocks);
    c->news_ns = pl_now_ns();
    pump(c);
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
        pump(c);
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
    for (int i = 0; i < N_REASONS; i++) {
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
