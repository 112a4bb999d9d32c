/* SPDX-License-Identifier: Apache-2.0
 *
 * remote.h - what this process has under way with others: messages by kind, sequences
 * that run there, theirs that run here, calls, caches that are followed.
 *
 * Owns     who serves which kind of message; which sequence runs where; calls under way;
 *          what Lua hears of the bus.
 * Ignores  text, HTTP, how messages travel.
 * Thread   io, except where noted.
 *
 *   outgoing   lua --encode--> io --SUBMIT--> peer
 *              peer --TOKENS--> io --> the course
 *   incoming   SUBMIT --> engine --a step's batch--> one TOKENS message per peer
 *   both       CANCEL follows SUBMIT
 *   caches     index --FOLLOW--> peer --CHANGES, step by step--> the index
 *
 * It exists without a bus too: then all tokens belong to this process.
 */
#ifndef PL_REMOTE_H
#define PL_REMOTE_H

#include "course.h"
#include "loop.h"
#include "route.h"

typedef struct pl_remote pl_remote;
pl_remote *pl_remote_open(pl_loop *loop, pl_courses *courses, pl_xfer *xfer); /* lua */
void pl_remote_stop(pl_remote *r);
void pl_remote_close(pl_remote *r); /* after the loop's last reference; frees */

/* pl_bus_*, pl_peer_*, pl_call_send; lua */
pl_status pl_remote_join(pl_remote *r, const pl_bus_options *options);
const char *pl_remote_id(const pl_remote *r);
void pl_remote_hello(pl_remote *r, const char *json,
                     size_t len); /* NULL: takes it back */
pl_status pl_remote_peer(pl_remote *r, int32_t peer, pl_buf *out);
pl_status pl_remote_stats(pl_remote *r, int32_t peer, int index, pl_engine_stats *out);
void pl_remote_serve(pl_remote *r, int index, pl_engine *e);
int32_t pl_remote_call(pl_remote *r, int32_t peer, const char *text, size_t len,
                       int timeout_ms);

pl_status pl_remote_follow(pl_remote *r, pl_route *x, int worker, int32_t peer,
                           int index); /* pl_route_follow_peer */

void pl_remote_forget(pl_remote *r, const pl_engine *e); /* it takes no more */
/* A step's tokens: those of sequences that were taken in are gathered for their peers,
 * the others go to the courses. `batch_end`: what was gathered is sent. */
void pl_remote_started(pl_remote *r, int32_t seq, int64_t ns);
void pl_remote_token(pl_remote *r, const pl_token *t, int64_t ns);
void pl_remote_batch_end(pl_remote *r);

/* ---- messages: a kind belongs to the module that serves it ---- */

/* Numbers on the wire: never used for something else. Little-endian; a tail without a
 * length goes to the message's end. */
enum {
    PL_MSG_SUBMIT =
        1,          /* index u32, number i32, a sequence (wire.h): frontend to worker */
    PL_MSG_CANCEL,  /* number i32, aborted i32: frontend to worker */
    PL_MSG_TOKENS,  /* tokens (wire.h): worker to frontend */
    PL_MSG_REFUSED, /* number i32, status i32, why: worker to frontend */
    PL_MSG_CALL,    /* number i32, text: anyone */
    PL_MSG_REPLY,   /* number i32, status i32, text: anyone */
    PL_MSG_FOLLOW, /* index u32, 1: tell all that is cached, then changes, or 0: no more */
    PL_MSG_CHANGES, /* index u32, changes (wire.h): worker to frontend */
    PL_MSG_STARTED, /* number i32, ns it waited u64, of one that lends: worker to frontend */
    /* From here on of a ticket, u64; xfer.h. Taker to lender: */
    PL_MSG_KV_WANT, /* first, end, limit, block size i32, block bytes u64, layout */
    PL_MSG_KV_MORE, /* limit i32 */
    PL_MSG_KV_GIVE_BACK,
    PL_MSG_KV_LENT,     /* tokens i32: lender to taker */
    PL_MSG_KV_PIECE,    /* first, n i32, hash u64, the blocks: lender to taker */
    PL_MSG_KV_OVER,     /* why i32: lender to taker */
    PL_MSG_KV_WITHDRAW, /* frontend to lender */
    PL_MSG_KINDS = 64
};

typedef struct pl_side
    pl_side; /* what is under way with one peer; gone when nothing is */

typedef struct pl_reader { /* of a message */
    const char *at, *end;
} pl_reader;
/* PL_EFORMAT where it ends too early. */
pl_status pl_reader_i32(pl_reader *in, int32_t *out);
pl_status pl_reader_u64(pl_reader *in, uint64_t *out);

typedef struct pl_message_kind {
    int kind;
    const char *name; /* for the log */
    bool begins;      /* something; the others speak of what is under way */
    /* A failure says why the message is malformed. */
    pl_status (*take)(void *ctx, pl_side *s, pl_reader in);
} pl_message_kind;

typedef struct pl_link pl_link;
typedef struct pl_service {
    void *ctx;
    /* What was under way with the peer is void: PL_LOST_*; 0: this process closes. May be
     * NULL, as may be: */
    void (*lost)(void *ctx, pl_side *s, int why);
    /* The same of any link, whether or not something is under way. */
    void (*link_lost)(void *ctx, pl_link *l);
    const pl_message_kind *kinds; /* stay */
    int n_kinds;
} pl_service;
void pl_remote_register(pl_remote *r, const pl_service *service); /* lua, before join */

/* The side of a peer, with a hold on it; NULL: it is not there. A hold also keeps the link
 * watched. */
pl_side *pl_side_of(pl_remote *r, int32_t peer);
void pl_side_put(pl_side *s);
/* A message that begins with this, and more; then it is sent (the side may be lost). */
pl_buf *pl_remote_begin(pl_remote *r, int32_t first);
void pl_remote_i32(pl_buf *message, int32_t v);
void pl_remote_u64(pl_buf *message, uint64_t v);
void pl_remote_send(pl_side *s, int kind);

#endif
