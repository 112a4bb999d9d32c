/* SPDX-License-Identifier: Apache-2.0
 *
 * route.h - which worker holds which blocks of the KV cache.
 *
 * Owns     an index from a block's key to the workers that hold the block (route_index.c),
 *          and what workers tell of themselves until it is in there (route_follow.c).
 * Ignores  how it travels, and which worker is chosen.
 * Thread   lua; a source: any.
 *
 * Workers are numbered; each 64 of them share a plane, a table of its own:
 *
 *      key, mixed -> one bit for each worker of the plane that holds the block
 *
 * A plane is an array sorted by mixed keys, with gaps: an entry stands at the place that
 * its key, as a fraction of all keys, has in the array, rounded down to a cache line, or as
 * few places after that as keep the order. So a search looks at one line or two, whether it
 * finds or not; all lines of a prompt's blocks are known before the first is read, and are
 * fetched together; growing copies from front to back.
 *
 * What a worker holds is learnt from its source, which any thread fills:
 *
 *      unknown --all that it holds--> known --changes, each continuing the last--> known
 *         ^                             |
 *         +---- a gap, too many, lost --+      then it is asked for all, again and again
 *
 * While it is unknown the worker holds nothing, as far as anybody is told.
 */
#ifndef PL_ROUTE_H
#define PL_ROUTE_H

#include "change.h"

#pragma GCC visibility push(default) /* for tests */

typedef struct pl_source pl_source;

typedef struct pl_source_hooks { /* lua */
    void (*ask)(void *ctx);      /* for all that it holds: to be pushed */
    void (*stop)(void *ctx);     /* nothing is wanted any more; the last call */
} pl_source_hooks;

/* lua. What tells of a worker from now on; it is asked at once. PL_ENOTFOUND, PL_EINVAL: it
 * has one. The source is held for the caller. */
pl_status pl_route_source(pl_route *x, int worker, const pl_source_hooks *hooks,
                          void *ctx, pl_source **out);
/* any; takes the changes over. */
void pl_source_push(pl_source *s, pl_changes *c);
void pl_source_lost(pl_source *s); /* any: what it holds is not known any more */
void pl_source_put(pl_source *s);  /* any */

#pragma GCC visibility pop

void pl_route_unfollow(pl_route *x, int worker); /* lua */

#endif
