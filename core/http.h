/* SPDX-License-Identifier: Apache-2.0
 *
 * http.h - HTTP/1.1: listeners, connections, exchanges.
 *
 * Owns     sockets, what has arrived and what is still to be sent; deadlines.
 * Ignores  the content of requests and answers, except for HTTP errors, and for health
 *          checks while Lua does not poll.
 * Thread   io, except pl_exchange_* in perilune.h (lua) and where noted.
 *
 * A connection:
 *
 *   READING --request--> ANSWERING --answered--> DRAINING --all is sent--> READING
 *      |                     |
 *      | refused             | answered, and not to be kept
 *      +-------> LEAVING <---+     sends what is left, then a FIN, then waits for the
 *                   |              client's: a close with bytes unread would destroy
 *                   v              the answer on its way
 *                 (closed)   <---- from anywhere: EOF, reset, deadline, slow reader
 *
 * EOF while a request is being answered counts as a disconnect, as in vLLM: a client that
 * still wants its answer does not shut down the socket, and there is no earlier sign.
 */
#ifndef PL_HTTP_H
#define PL_HTTP_H

#include "loop.h"

typedef struct pl_http pl_http;
pl_http *pl_http_open(pl_loop *loop, const pl_runtime_options *options);
/* lua: the port bound, or a status. */
int pl_http_listen(pl_http *h, const char *host, int port);
pl_status pl_http_listen_local(pl_http *h, const char *path); /* lua */
void pl_http_unlisten(pl_http *h);                            /* lua; local ones stay */
void pl_http_flush(pl_http *h); /* writes what the round has collected */
void pl_http_stop(pl_http *h);  /* closes all; what is unsent gets a moment */
void pl_http_close(pl_http *h); /* after the loop's last reference; frees */

/* Who wants to know of an exchange's client. Inside the one who watches. */
typedef struct pl_watch pl_watch;
struct pl_watch { /* io */
    pl_watch *next;
    void (*gone)(pl_watch *watch);    /* it is gone; nobody watches it any more */
    void (*drained)(pl_watch *watch); /* all is sent. May be NULL */
};
/* False: gone already, or answered. */
bool pl_exchange_watch(pl_exchange *x, pl_watch *watch);
void pl_exchange_unwatch(pl_exchange *x, pl_watch *watch);
/* Adds to an answer that has begun; sent by the next flush. */
void pl_exchange_piece(pl_exchange *x, const char *data, size_t len);
/* Sends it now. How many bytes the client has still to read. */
size_t pl_exchange_flush(pl_exchange *x);
void pl_exchange_take(pl_exchange *x); /* any */
void pl_exchange_put(pl_exchange *x);  /* any */

#endif
