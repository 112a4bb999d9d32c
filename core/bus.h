/* SPDX-License-Identifier: Apache-2.0
 *
 * bus.h - messages between processes, by subject: NATS, or a hub inside one process.
 *
 * Owns     the connection; messages that have arrived but io has not seen yet.
 * Ignores  what messages say; whether they arrive (link.h takes care of that).
 * Thread   io; open: lua. NATS's threads only copy messages into a bounded queue.
 *
 * Delivery is at most once, and in order per sender as long as nothing is lost. Subjects
 * are NATS's: words separated by dots; subscriptions may use `*` for one word and `>` for
 * the rest.
 */
#ifndef PL_BUS_H
#define PL_BUS_H

#include "loop.h"

typedef struct pl_bus pl_bus;

typedef struct pl_bus_hooks {
    void *ctx;
    void (*message)(void *ctx, const char *subject, const void *data, size_t len);
    /* Nobody listens to what was sent with this `reply`. */
    void (*nobody)(void *ctx, const char *reply);
    void (*state)(void *ctx, bool there);
} pl_bus_hooks;

enum {
    PL_BUS_SPACE = 64 /* bytes of a namespace's name */
};
bool pl_bus_is_space(const char *name); /* whether it may be one */

/* NULL says why: what can never connect. `id`: of this process. No hook is called before
 * `join`, which connects on its own; `state` tells. */
pl_bus *pl_bus_connect(pl_loop *loop, const pl_bus_options *options, const char *id,
                       const pl_bus_hooks *hooks);
void pl_bus_stop(
    pl_bus *b); /* what was sent still goes out; no hook is called any more */
void pl_bus_close(pl_bus *b); /* lua, after stop and after the loop's end; frees */
void pl_bus_listen(pl_bus *b, const char *subject); /* before join; up to 8 */
void pl_bus_join(pl_bus *b);
/* reply: NULL, or a subject of ours: `nobody` is called with it where nobody listens.
 * PL_EAGAIN: the bus is away; PL_ELIMIT: more than pl_bus_max bytes. */
pl_status pl_bus_send(pl_bus *b, const char *subject, const char *reply, const void *data,
                      size_t len);
bool pl_bus_is_there(const pl_bus *b);
size_t pl_bus_max(const pl_bus *b); /* bytes of a message */

#endif
