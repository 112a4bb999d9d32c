/* SPDX-License-Identifier: Apache-2.0
 *
 * link_direct.h - sockets between two processes, for the other files of links.
 *
 * Owns     the listener, the sockets, what waits to be written to them.
 * Ignores  what a frame says; numbers, epochs and loss, which are link.c's.
 * Thread   io, except where noted.
 *
 * A link that carries messages gets a socket of its own as soon as both processes know
 * each other's hello, and loses it without being lost: its frames travel over the bus
 * before, after, and wherever there is none.
 *
 *   bus --a link is busy: the lower id connects--> introduced to each other --> socket
 *    ^                                                   |                        |
 *    +----------------refused, too slow------------------+--closed, silent--------+
 */
#ifndef PL_LINK_DIRECT_H
#define PL_LINK_DIRECT_H

#include "link.h"

enum {
    PL_COOKIE = 32, /* hex digits */
    PL_UNIX_NET = 80,
    PL_TCP_PLACE = 64
};

/* Where a process can be reached, as its hello says. */
typedef struct pl_direct_address {
    char cookie[PL_COOKIE + 1]; /* who knows it has heard the hello; "": no sockets */
    char net[PL_UNIX_NET];      /* within which Unix sockets reach it; "": none do */
    char tcp[PL_TCP_PLACE];     /* "10.0.0.1:5600", "[fe80::1]:5600"; "": not by TCP */
} pl_direct_address;

typedef struct pl_direct pl_direct; /* of all links of a process */
typedef struct pl_socket pl_socket;

/* lua. NULL says why. `host`: an address for TCP, too; NULL: none. */
pl_direct *pl_direct_open(pl_links *ls, const char *host, int port);
void pl_direct_start(pl_direct *d);
void pl_direct_stop(pl_direct *d); /* closes its handles */
void pl_direct_close(
    pl_direct *d); /* never started, or ended with the loop; takes NULL */
void pl_direct_tick(pl_direct *d, int64_t now);

void pl_direct_hello(const pl_direct *d, pl_buf *out); /* a member for an object */
/* That member of theirs, which may be absent; false: it is malformed. */
bool pl_direct_parse(const pl_json *hello, pl_direct_address *out);

void pl_direct_want(pl_link *l, int64_t now); /* it carries messages */
void pl_direct_drop(pl_link *l);              /* closes its socket, if it has one */
/* PL_EAGAIN: not now; pl_link_pump is called when there is room again. */
pl_status pl_direct_send(pl_link *l, const char *frame, size_t len);

#endif
