/* SPDX-License-Identifier: Apache-2.0
 *
 * link.h - messages of any size between two processes: in order, exactly once, or a loss
 *          that is reported.
 *
 * Owns     frame numbers, acknowledgements, what may have to be resent, pieces of long
 *          messages; presence (hellos, heartbeats, leases).
 * Ignores  what messages say.
 * Thread   io, except where noted.
 *
 * Each side of a link numbers its own half with an epoch, which only grows:
 *
 *   fresh --a frame of theirs--> up --silence, nobody there, their epoch grew--> lost
 *     ^                                                                            |
 *     +-----------------a new epoch of ours; all that was under way is void--------+
 *
 * A frame carries its sender's epoch, and the receiver's as far as the sender knows it;
 * frames to or from a past epoch are dropped. So a process that was stopped, counted as
 * lost and then resumed is ignored until it starts a new epoch.
 */
#ifndef PL_LINK_H
#define PL_LINK_H

#include "bus.h"

/* Versions of what is said on the wire: this one and the one before it are understood. */
enum {
    PL_WIRE = 1
};

typedef struct pl_links pl_links; /* all of this process */
typedef struct pl_link pl_link;   /* to one peer; lives until `lost`, and on if held */

typedef struct pl_links_hooks {
    void *ctx;
    void (*message)(void *ctx, pl_link *l, int kind, const void *data, size_t len);
    /* What was sent and may not have arrived is void, and nothing said before comes any
     * more. The link may be used again at once. `why`: PL_LOST_*. */
    void (*lost)(void *ctx, pl_link *l, int why);
    /* A peer's hello is new or changed (why 0), or it is not there any more. */
    void (*peer)(void *ctx, int32_t peer, int why);
    void (*state)(void *ctx, bool there);
    /* Appends what this process's engines count, for the heartbeat:
     * pl_wire_put_engine. */
    void (*stats)(void *ctx, pl_buf *out);
} pl_links_hooks;

/* lua. NULL says why. `id`: 16 hex digits. */
pl_links *pl_links_open(pl_loop *loop, const pl_bus_options *options, const char *id,
                        const pl_links_hooks *hooks);
void pl_links_stop(pl_links *ls);  /* says goodbye, closes its handles */
void pl_links_close(pl_links *ls); /* after the loop's last reference; frees */

void pl_links_hello(pl_links *ls, const char *json,
                    size_t len); /* lua; NULL: takes it back */
/* lua: pl_peer_hello, pl_peer_stats */
pl_status pl_links_peer(pl_links *ls, int32_t peer, pl_buf *out);
pl_status pl_links_stats(pl_links *ls, int32_t peer, int index, pl_engine_stats *out);

/* The link to a peer that said hello; NULL: there is none such (any more). */
pl_link *pl_links_find(pl_links *ls, int32_t peer);
/* The link to a process by its id, whether or not it has said hello; NULL: too many. */
pl_link *pl_links_of(pl_links *ls, uint64_t id);
uint64_t pl_links_key(pl_links *ls, int32_t peer); /* its id; 0: it is not there */
int32_t pl_link_peer(const pl_link *l);            /* 0: it has said no hello */
/* While held, a link is kept alive and watched: so many sequences and calls are under
 * way. */
void pl_link_hold(pl_link *l);
void pl_link_release(pl_link *l);
size_t pl_link_unacked(const pl_link *l); /* bytes that were sent, or wait to be */
/* kind: 0 to 255. Whatever becomes of it, `lost` tells; so it cannot fail. */
void pl_link_send(pl_link *l, int kind, const void *data, size_t len);

#endif
