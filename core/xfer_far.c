/* SPDX-License-Identifier: Apache-2.0
 *
 * xfer_far.c - the ends of a crossing that are in other processes.
 *
 * Owns     what was asked for and sent, of each.
 * Ignores  how a message looks (remote_xfer.c).
 * Thread   io
 *
 * What is sent to a taker elsewhere is copied out of blocks on loan, here and now. So a
 * late or lost message harms nobody: blocks of a ticket that is not waited for any more
 * are not looked at.
 */
#include "xfer_state.h"

#include <string.h>
#include <xxhash.h>

enum {
    PIECE = 1 << 20,  /* bytes of a message, if a block is not longer */
    WINDOW = 16 << 20 /* bytes that a taker has room for */
};

static int32_t blocks_in(size_t bytes, size_t block_bytes)
{
    return (int32_t)PL_MAX(1, bytes / block_bytes);
}

void pl_far_let_go(const crossing *c, pl_side **side)
{
    pl_side *s = *side;
    *side = NULL;
    if (s) c->x->carrier.let_go(s);
}

void pl_far_leave(crossing *c)
{
    const pl_carrier *to = &c->x->carrier;
    if (c->taker.side) to->over(c->taker.side, c->ticket, PL_KV_ENDED);
    if (c->lender.side && c->taker.n_done < c->taker.end)
        to->give_back(c->lender.side, c->ticket);
    pl_far_let_go(c, &c->taker.side);
    pl_far_let_go(c, &c->lender.side);
}

/* ---- the lender's process ---------------------------------------------------------- */

static void refuse(crossing *c, pl_kv_end why)
{
    c->x->carrier.over(c->taker.side, c->ticket, why);
    pl_far_let_go(c, &c->taker.side);
}

/* Blocks of the prompt that are on loan and full, or all there are. */
static int32_t n_ready(const crossing *c, int32_t block_size)
{
    if (c->lender.n_tokens >= c->taker.end) return blocks_for(c->taker.end, block_size);
    return c->lender.n_tokens / block_size;
}

static void send_piece(crossing *c, int32_t n, const pl_engine_kv *kv)
{
    const void *blocks[PIECE / 1024];
    n = PL_MIN(n, (int32_t)PL_COUNT(blocks));
    for (int32_t i = 0; i < n; i++)
        blocks[i] =
            pl_engine_block(c->lender.engine, c->lender.blocks[c->taker.next + i]);
    c->x->carrier.piece(c->taker.side, c->ticket, c->taker.next, blocks, n,
                        kv->block_bytes);
    pl_metric_add(c->x->metrics.bytes, (double)((size_t)n * kv->block_bytes));
    c->taker.next += n;
}

void pl_far_feed(crossing *c)
{
    pl_xfer *x = c->x;
    pl_engine_kv kv;
    if (!c->lender.engine) {
        refuse(c, PL_KV_ENDED);
        return;
    }
    pl_engine_kv_get(c->lender.engine, &kv);
    if (c->lender.n_tokens > c->taker.n_done) {
        c->taker.n_done = c->lender.n_tokens;
        x->carrier.lent(c->taker.side, c->ticket, c->lender.n_tokens);
    }
    int32_t ready = n_ready(c, kv.block_size), end = PL_MIN(ready, c->taker.limit);
    int32_t most = blocks_in(PIECE, kv.block_bytes);
    while (c->taker.next < end && x->carrier.has_room(c->taker.side))
        send_piece(c, PL_MIN(most, end - c->taker.next), &kv);
    if (c->taker.next == blocks_for(c->taker.end, kv.block_size)) {
        pl_far_let_go(c, &c->taker.side);
        pl_crossing_give_back(c);
    } else if (c->taker.next < end) {
        x->stalled = true;
        pl_xfer_watch(x);
    } else if (c->lender.over && c->taker.next >= ready) {
        refuse(c, PL_KV_ENDED);
    }
}

void pl_far_feed_stalled(pl_xfer *x)
{
    uint32_t at = 0;
    x->stalled = false;
    for (crossing *c; (c = pl_map_next(&x->crossings, &at));)
        if (c->taker.side && !c->withdrawn) pl_far_feed(c);
}

static bool agrees(const pl_engine_kv *kv, const pl_kv_want *w)
{
    return kv->is_local && w->block_size == kv->block_size &&
           w->block_bytes == kv->block_bytes && w->layout_len == strlen(kv->layout) &&
           !memcmp(w->layout, kv->layout, w->layout_len);
}

void pl_xfer_wanted(pl_xfer *x, pl_side *s, uint64_t ticket, const pl_kv_want *w)
{
    PL_ON(IO);
    pl_engine_kv kv;
    crossing *c = pl_crossing_find(x, ticket);
    if (!c || !c->lender.engine || c->withdrawn || c->taker.blocks || c->taker.side ||
        c->taker.next) {
        x->carrier.over(s, ticket, PL_KV_ENDED);
        return;
    }
    pl_engine_kv_get(c->lender.engine, &kv);
    if (!agrees(&kv, w) || w->first < 0 || w->first % kv.block_size ||
        w->end <= w->first) {
        x->carrier.over(s, ticket, PL_KV_LAYOUT);
        return;
    }
    x->carrier.hold(s);
    c->taker.side = s;
    c->taker.end = w->end;
    c->taker.next = w->first / kv.block_size;
    c->taker.limit = w->limit;
    pl_crossing_pump(c);
}

void pl_xfer_more(pl_xfer *x, const pl_side *s, uint64_t ticket, int32_t limit)
{
    PL_ON(IO);
    crossing *c = pl_crossing_find(x, ticket);
    if (!c || c->taker.side != s) return;
    c->taker.limit = limit;
    pl_crossing_pump(c);
}

void pl_xfer_given_back(pl_xfer *x, const pl_side *s, uint64_t ticket)
{
    PL_ON(IO);
    crossing *c = pl_crossing_find(x, ticket);
    if (!c || c->taker.side != s) return;
    pl_far_let_go(c, &c->taker.side);
    pl_crossing_give_back(c);
}

/* ---- the taker's process ----------------------------------------------------------- */

void pl_far_ask(crossing *c)
{
    pl_engine_kv kv;
    if (c->lender.side) return;
    pl_engine_kv_get(c->taker.engine, &kv);
    if (!kv.is_local) {
        pl_crossing_fail(c, PL_KV_LAYOUT);
        return;
    }
    c->lender.side = c->x->carrier.reach(c->x->carrier.ctx, c->lender.process);
    if (!c->lender.side) {
        pl_crossing_fail(c, PL_KV_LOST);
        return;
    }
    c->taker.next = c->taker.first / kv.block_size;
    c->taker.limit = c->taker.next + blocks_in(WINDOW, kv.block_bytes);
    c->x->carrier.want(c->lender.side, c->ticket,
                       &(pl_kv_want){c->taker.first, c->taker.end, c->taker.limit,
                                     kv.block_size, kv.block_bytes, kv.layout,
                                     strlen(kv.layout)});
}

/* One that an engine here waits for, and that process brings. */
static crossing *find_waiting(const pl_xfer *x, const pl_side *s, uint64_t ticket)
{
    crossing *c = pl_crossing_find(x, ticket);
    return c && c->taker.engine && c->lender.side == s ? c : NULL;
}

void pl_xfer_lent(pl_xfer *x, const pl_side *s, uint64_t ticket, int32_t n_tokens)
{
    PL_ON(IO);
    crossing *c = find_waiting(x, s, ticket);
    if (!c) return;
    c->news_ns = pl_now_ns();
    if (n_tokens >= c->taker.end && !c->ready_ns) c->ready_ns = c->news_ns;
}

static pl_status check(const crossing *c, const pl_kv_piece *p, const pl_engine_kv *kv)
{
    int32_t end = PL_MIN(c->taker.limit, blocks_for(c->taker.end, kv->block_size));
    if (p->first != c->taker.next || p->n < 1 || p->n > end - p->first)
        return pl_fail(PL_EFORMAT, "blocks %d to %d of a prompt, wanted %d to %d",
                       p->first, p->first + p->n, c->taker.next, end);
    if (p->len != (size_t)p->n * kv->block_bytes)
        return pl_fail(PL_EFORMAT, "%d blocks in %zu bytes, wanted %zu each", p->n,
                       p->len, kv->block_bytes);
    return PL_OK;
}

static void store(crossing *c, const pl_kv_piece *p, const pl_engine_kv *kv)
{
    int32_t skip = c->taker.first / kv->block_size;
    for (int32_t i = 0; i < p->n; i++)
        memcpy(pl_engine_block(c->taker.engine, c->taker.blocks[p->first + i - skip]),
               p->bytes + (size_t)i * kv->block_bytes, kv->block_bytes);
    c->taker.next += p->n;
    c->taker.n_done = PL_MIN(c->taker.next * kv->block_size, c->taker.end);
    c->news_ns = pl_now_ns();
}

pl_status pl_xfer_piece(pl_xfer *x, const pl_side *s, uint64_t ticket,
                        const pl_kv_piece *p)
{
    PL_ON(IO);
    pl_engine_kv kv;
    crossing *c = find_waiting(x, s, ticket);
    if (!c) return PL_OK; /* it has ended */
    pl_engine_kv_get(c->taker.engine, &kv);
    pl_status status = check(c, p, &kv);
    if (status < 0 || XXH3_64bits(p->bytes, p->len) != p->hash) {
        pl_crossing_fail(c, PL_KV_CORRUPT);
        pl_crossing_pump(c);
        return status;
    }
    store(c, p, &kv);
    int32_t window = blocks_in(WINDOW, kv.block_bytes);
    if (c->taker.n_done < c->taker.end && c->taker.limit - c->taker.next <= window / 2) {
        c->taker.limit = c->taker.next + window;
        x->carrier.more(c->lender.side, ticket, c->taker.limit);
    }
    pl_crossing_pump(c);
    return PL_OK;
}

void pl_xfer_over(pl_xfer *x, const pl_side *s, uint64_t ticket, pl_kv_end why)
{
    PL_ON(IO);
    crossing *c = find_waiting(x, s, ticket);
    if (!c) return;
    pl_far_let_go(c, &c->lender.side);
    pl_crossing_fail(c, why);
    pl_crossing_pump(c);
}

/* ---- loss -------------------------------------------------------------------------- */

/* Whether something of it was under way; then the map may have changed. */
static bool lose_one(pl_xfer *x, const pl_side *s)
{
    uint32_t at = 0;
    for (crossing *c; (c = pl_map_next(&x->crossings, &at));) {
        bool owns = c->owner == s, lends = c->lender.side == s,
             takes = c->taker.side == s;
        if (!owns && !lends && !takes) continue;
        if (takes) pl_far_let_go(c, &c->taker.side);
        if (lends) pl_far_let_go(c, &c->lender.side);
        if (owns) pl_far_let_go(c, &c->owner);
        if (takes) pl_crossing_give_back(c);
        if (lends && c->taker.engine) pl_crossing_fail(c, PL_KV_LOST);
        c->withdrawn = c->withdrawn || owns;
        pl_crossing_pump(c);
        return true;
    }
    return false;
}

void pl_xfer_lost(pl_xfer *x, const pl_side *s)
{
    PL_ON(IO);
    while (lose_one(x, s)) {
    }
}
