/* SPDX-License-Identifier: Apache-2.0
 *
 * events_own.h - what the files of events share.
 *
 * Owns     events as bytes (events_msgpack.c), and what a subscriber makes of those that
 *          come (events_feed.c).
 * Thread   any, one at a time
 */
#ifndef PL_EVENTS_OWN_H
#define PL_EVENTS_OWN_H

#include "events.h"

#pragma GCC visibility push(default) /* tests compare bytes */

/* A step's changes as vLLM's KVEventBatch; `time` in seconds since 1970. */
void pl_events_encode(pl_buf *out, double time, const pl_changes *c, int rank);
/* The changes of the main cache on the device in such a batch, in any version's form;
 * others are skipped. PL_EFORMAT. */
pl_status pl_events_decode(const void *data, size_t len, pl_change_log *log);

#pragma GCC visibility pop

typedef struct pl_feed { /* a publisher's batches, by number */
    pl_source *source;
    uint64_t expected; /* the next one */
} pl_feed;
/* What was told is void, and the next batch is that one. */
void pl_feed_clear(pl_feed *f, uint64_t next);
void pl_feed_take(pl_feed *f, uint64_t number, const void *data, size_t len);

#endif
