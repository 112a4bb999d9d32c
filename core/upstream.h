/* SPDX-License-Identifier: Apache-2.0
 *
 * upstream.h - the other side of HTTP/1.1: requests to other servers, and their answers
 * as they come.
 *
 * Owns     connections, kept ones too; deadlines; TLS (tls.h).
 * Ignores  what is asked and answered (relay.h).
 * Thread   io.
 *
 *   LOOKUP --> CONNECT --> (SHAKE) --> ASK --answered--> KEPT --another request--> ASK
 *      |          |           |         |                 |
 *      +----------+-----------+---------+--- deadline, EOF, error, dropped ---> (closed)
 *
 * A kept connection that the server closes before it has answered anything is opened again
 * once: the server had given it up before the request came.
 */
#ifndef PL_UPSTREAM_H
#define PL_UPSTREAM_H

#include "loop.h"

typedef struct pl_upstream pl_upstream; /* all connections of this process */
typedef struct pl_ask pl_ask;           /* a request; part of its owner */
typedef struct pl_up_conn pl_up_conn;

typedef struct pl_ask_hooks {
    void (*head)(pl_ask *a); /* status and fields are there */
    void (*body)(pl_ask *a, const char *data, size_t len);
    void (*rest)(pl_ask *a); /* that was all that has come so far */
    /* The last call. PL_OK: the whole answer has come. */
    void (*over)(pl_ask *a, pl_status status, const char *why);
} pl_ask_hooks;

struct pl_ask {
    const pl_ask_hooks *hooks;
    char host[256]; /* a name or an address */
    int port;
    bool tls;
    pl_buf text; /* the request's bytes */
    /* Milliseconds: until it is connected; until the answer begins; between its bytes. */
    int32_t connect_ms, first_ms, between_ms;

    int status;    /* of the answer */
    pl_buf fields; /* its headers: name\0value\0; names in lower case */

    pl_up_conn *conn; /* NULL: it is not under way */
    bool paused;
    bool sent; /* the server may have had it */
};

pl_upstream *pl_upstream_open(pl_loop *loop); /* any */
/* lua, before the first ask with TLS: whose certificates are believed, of that PEM file or
 * (NULL) the system's. */
pl_status pl_upstream_trust(pl_upstream *u, const char *ca);
void pl_upstream_stop(pl_upstream *u);  /* ends all, with PL_ECANCELED */
void pl_upstream_close(pl_upstream *u); /* after the loop's last reference */

/* It may be over before this returns. */
void pl_ask_begin(pl_upstream *u, pl_ask *a);
/* Closes its connection, by which the server learns that it may stop; no hook is called
 * any more. Also where it is not under way. */
void pl_ask_drop(pl_ask *a);
/* Nothing is read, and no deadline passes, while it is paused. */
void pl_ask_pause(pl_ask *a, bool paused);
/* Any thread. NULL: absent. */
const char *pl_fields_find(const pl_buf *fields, const char *name);
void pl_ask_fini(pl_ask *a);

#endif
