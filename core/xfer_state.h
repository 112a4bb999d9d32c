/* SPDX-License-Identifier: Apache-2.0
 *
 * xfer_state.h - what the files of xfer share.
 *
 * Owns     the shape of a prompt's KV on its way.
 * Thread   io
 */
#ifndef PL_XFER_STATE_H
#define PL_XFER_STATE_H

#include "xfer.h"
#include "xfer_own.h"

/* A prompt's KV on its way. It lives until the answer is over, or begins anew, no copy is
 * being made, and all that was lent has been returned. */
typedef struct crossing {
    pl_xfer *x;
    uint64_t ticket;
    pl_side *owner; /* held, as are the others */
    struct {
        pl_engine *engine; /* NULL: elsewhere; or all is returned */
        int32_t seq, n_tokens;
        int32_t *blocks, n_blocks, cap;
        bool over;
        uint64_t process; /* elsewhere; else 0 */
        pl_side *side;    /* asked there */
    } lender;
    struct {
        pl_engine *engine; /* NULL: nobody waits (yet, or any more); or elsewhere: */
        pl_side *side;
        int32_t seq, first, end;
        /* Tokens that have been copied, whole blocks but at the end; of a taker elsewhere:
         * that it was told are on loan. */
        int32_t n_done;
        int32_t *blocks;
        int32_t next, limit; /* of or for another process: blocks of the prompt */
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
    pl_carrier carrier;
    uv_timer_t timer;
    bool has_timer, stopped;
    bool stalled; /* a link had no room for what could be sent */
    struct {
        int loans, bytes, seconds, failed[PL_KV_ENDS];
    } metrics;
};

static inline int32_t blocks_for(int32_t n_tokens, int32_t block_size)
{
    return (n_tokens + block_size - 1) / block_size;
}

/* xfer.c */
crossing *pl_crossing_find(const pl_xfer *x, uint64_t ticket);
void pl_crossing_pump(crossing *c); /* does what can be done now; it may be gone then */
void pl_crossing_fail(crossing *c, pl_kv_end why); /* pump must follow */
void pl_crossing_give_back(crossing *c);
void pl_xfer_watch(pl_xfer *x); /* sets its timer */

/* xfer_far.c */
void pl_far_let_go(const crossing *c, pl_side **side); /* one of its */
/* The taker is elsewhere: sends what it wants, as far as it is there. */
void pl_far_feed(crossing *c);
void pl_far_feed_stalled(pl_xfer *x);
/* The lender is: asks it; once the taker is there. */
void pl_far_ask(crossing *c);
/* Tells both ends elsewhere that nothing more will come. */
void pl_far_leave(crossing *c);

#endif
