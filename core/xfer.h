/* SPDX-License-Identifier: Apache-2.0
 *
 * xfer.h - KV blocks from the engine that computed them to one that goes on with them.
 *
 * Owns     what is on loan, what is being fetched, and the thread that copies.
 * Ignores  sequences and their tokens; which engine should read what.
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
 */
#ifndef PL_XFER_H
#define PL_XFER_H

#include "engine.h"
#include "loop.h"

typedef struct pl_xfer pl_xfer;
pl_xfer *pl_xfer_open(pl_loop *loop); /* lua */
void pl_xfer_stop(pl_xfer *x);
void pl_xfer_close(pl_xfer *x); /* any, once no engine is left and io has stopped */

uint64_t pl_xfer_ticket(void); /* any: a new one, not 0 */
/* This engine has taken the sequence that lends; before anything else of the ticket. */
void pl_xfer_begin(pl_xfer *x, uint64_t ticket, pl_engine *lender, int32_t seq);
/* The answer is over, or begins anew: nobody wants this KV any more. Unknown tickets are
 * ignored. */
void pl_xfer_withdraw(pl_xfer *x, uint64_t ticket);
/* What a step of this engine lent, and which sequences wait. */
void pl_xfer_step(pl_xfer *x, pl_engine *e, const pl_token_batch *batch);
/* The engine has stopped: its blocks are neither read nor written any more. */
void pl_xfer_forget(pl_xfer *x, const pl_engine *e);

#endif
