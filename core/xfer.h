/* SPDX-License-Identifier: Apache-2.0
 *
 * xfer.h - KV blocks from the engine that computed them to one that goes on with them.
 *
 * Owns     what is on loan, what is being fetched, and the thread that copies.
 * Ignores  sequences and their tokens; which engine should read what; how other processes
 *          are spoken to.
 * Thread   io; the copying has a thread of its own (xfer_copy.c).
 *
 * A ticket names the KV of one prompt. It is given to two sequences: one that reads the
 * prompt and lends (pl_lent), and one that waits for it elsewhere (pl_placed).
 *
 *   lender   begin --its blocks, as steps land--> over
 *   taker              placed --> copying, while more is lent --all is there--> arrived
 *                        |           |
 *                        +-----------+--the lender ended early, late, withdrawn--> failed
 *
 * Blocks on loan keep what they hold until they are returned, and they are returned only
 * when no copy reads them. So what has arrived is what was computed, or nothing has, and
 * the taker's engine computes the prompt itself.
 *
 * Either end may be in another process (xfer_far.c). Then the taker's process asks the
 * lender's for the blocks, which come in messages, each with a hash of its bytes:
 *
 *   taker    want ---------> lender     what it lacks, and so many blocks it has room for
 *            <-- lent, piece, piece     as steps land
 *            more --------->            room for further ones
 *            <-- over                   or: there will be no more
 *            give back ---->            or: it does not want them any more
 *
 * A loan to another process lasts as long as the link to that process, and no longer.
 */
#ifndef PL_XFER_H
#define PL_XFER_H

#include "engine.h"
#include "loop.h"

typedef struct pl_xfer pl_xfer;
typedef struct pl_side pl_side; /* another process (remote.h); NULL: this one */

pl_xfer *pl_xfer_open(pl_loop *loop); /* lua */
void pl_xfer_stop(pl_xfer *x);
void pl_xfer_close(pl_xfer *x); /* any, once no engine is left and io has stopped */

uint64_t pl_xfer_ticket(void); /* any: a new one, random, not 0 */
/* This engine has taken the sequence that lends, for `owner`; before anything else of the
 * ticket. */
void pl_xfer_begin(pl_xfer *x, pl_side *owner, uint64_t ticket, pl_engine *lender,
                   int32_t seq);
/* An engine here has taken the sequence that waits, for `owner`. Its lender is in that
 * process: an id, this process's own too. */
void pl_xfer_expect(pl_xfer *x, pl_side *owner, uint64_t ticket, uint64_t process);
/* The answer is over, or begins anew: nobody wants this KV any more. Tickets that are not
 * known, or another's, are ignored. */
void pl_xfer_withdraw(pl_xfer *x, const pl_side *owner, uint64_t ticket);
/* What a step of this engine lent, and which sequences wait. */
void pl_xfer_step(pl_xfer *x, pl_engine *e, const pl_token_batch *batch);
/* The engine has stopped: its blocks are neither read nor written any more. */
void pl_xfer_forget(pl_xfer *x, const pl_engine *e);

/* ---- other processes --------------------------------------------------------------- */

typedef struct pl_kv_want { /* by a taker */
    int32_t first, end;     /* tokens of the prompt; first: whole blocks */
    int32_t limit; /* blocks of the prompt that may be sent, until it wants more */
    int32_t block_size;
    uint64_t block_bytes;
    const char *layout;
    size_t layout_len;
} pl_kv_want;

typedef struct pl_kv_piece { /* some blocks of a prompt */
    int32_t first, n;
    uint64_t hash; /* XXH3, 64 bits, of the bytes */
    const char *bytes;
    size_t len;
} pl_kv_piece;

typedef enum pl_kv_end { /* why no more comes; numbers on the wire */
    PL_KV_ENDED,         /* the lender's sequence has, or nobody knows the ticket */
    PL_KV_LATE,
    PL_KV_LAYOUT,
    PL_KV_LOST,    /* the lender's process */
    PL_KV_CORRUPT, /* the bytes are not those that were sent */
    PL_KV_ENDS
} pl_kv_end;

typedef struct pl_carrier { /* who brings word to other processes: remote_xfer.c */
    void *ctx;
    uint64_t self;
    /* With a hold, as `hold` gives it; NULL: there is no such process. */
    pl_side *(*reach)(void *ctx, uint64_t process);
    void (*hold)(pl_side *s);
    void (*let_go)(pl_side *s);
    bool (*has_room)(const pl_side *s); /* for a piece more */
    void (*want)(pl_side *s, uint64_t ticket, const pl_kv_want *w);
    void (*more)(pl_side *s, uint64_t ticket, int32_t limit);
    void (*lent)(pl_side *s, uint64_t ticket, int32_t n_tokens);
    /* n blocks from block `first` of the prompt on; each `bytes` long. */
    void (*piece)(pl_side *s, uint64_t ticket, int32_t first, const void *const *blocks,
                  int32_t n, size_t bytes);
    void (*over)(pl_side *s, uint64_t ticket, pl_kv_end why);
    void (*give_back)(pl_side *s, uint64_t ticket);
} pl_carrier;
void pl_xfer_carrier(pl_xfer *x, const pl_carrier *carrier); /* before any of these: */

void pl_xfer_wanted(pl_xfer *x, pl_side *s, uint64_t ticket, const pl_kv_want *w);
void pl_xfer_more(pl_xfer *x, const pl_side *s, uint64_t ticket, int32_t limit);
void pl_xfer_lent(pl_xfer *x, const pl_side *s, uint64_t ticket, int32_t n_tokens);
/* PL_EFORMAT: it is not what was to come next. */
pl_status pl_xfer_piece(pl_xfer *x, const pl_side *s, uint64_t ticket,
                        const pl_kv_piece *p);
void pl_xfer_over(pl_xfer *x, const pl_side *s, uint64_t ticket, pl_kv_end why);
void pl_xfer_given_back(pl_xfer *x, const pl_side *s, uint64_t ticket);
void pl_xfer_lost(pl_xfer *x, const pl_side *s);

#endif
