/* SPDX-License-Identifier: Apache-2.0
 *
 * events_feed.c - a publisher's batches, by number, into a worker's inbox.
 *
 * Owns     which batch comes next.
 * Ignores  sockets.
 * Thread   any, one at a time
 *
 * A publisher cannot be asked for all that it holds. So a cache is taken to hold what was
 * told since the last gap: less than it does, never more.
 */
#include "events_own.h"

void pl_feed_clear(pl_feed *f, uint64_t next)
{
    uint64_t *keys;
    f->expected = next;
    pl_source_push(f->source, pl_changes_whole(next, 0, &keys));
}

void pl_feed_take(pl_feed *f, uint64_t number, const void *data, size_t len)
{
    pl_change_log log = {0};
    if (pl_events_decode(data, len, &log) == PL_OK) {
        f->expected = number + 1;
        pl_source_push(f->source, pl_change_log_take(&log, number, number + 1));
    } else {
        pl_log(PL_LOG_WARN, "dropped batch %llu: %s", (unsigned long long)number,
               pl_error_text());
        pl_feed_clear(f, number + 1);
    }
    pl_change_log_fini(&log);
}
