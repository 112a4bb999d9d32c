/* SPDX-License-Identifier: Apache-2.0
 *
 * http_exchange.h - what connections and exchanges know of each other. Part of http.
 *
 * Owns     a request that has come, and its answer until the connection has it.
 * Ignores  sockets, how a request was read.
 * Thread   said with each field; the connection's side: io.
 */
#ifndef PL_HTTP_EXCHANGE_H
#define PL_HTTP_EXCHANGE_H

#include "http.h"
#include "http_parse.h"

typedef struct pl_conn pl_conn;
enum {
    PL_ANSWER_NONE = 0,
    PL_ANSWER_BEGUN,
    PL_ANSWER_ENDED
};

typedef struct pl_http_shared { /* of a pl_http, for its exchanges on any thread */
    atomic_int n_exchanges;     /* not freed yet */
    atomic_llong body_bytes;    /* held, of requests that have come or are coming */
    atomic_bool closing;        /* connections are not kept any more */
} pl_http_shared;

struct pl_exchange {
    int32_t id;
    atomic_int refs;
    pl_loop *loop;
    pl_http_shared *shared;
    pl_request request; /* does not change */
    char peer[64];
    bool local; /* does not change either */
    int64_t arrived_ns;

    pl_conn *conn;     /* io; NULL: answered, or gone */
    pl_watch *watches; /* io */
    bool logged;       /* io */

    int answer;           /* lua: PL_ANSWER_* */
    atomic_bool released; /* lua writes */
    atomic_bool gone;     /* io writes */

    pl_mutex lock; /* over what lua hands to io: */
    pl_buf out;
    pl_buf label; /* fields of its line in the log */
    int status;
    bool ended, cut, keep_alive;
    pl_note note;

    pl_news request_news, gone_news;
};

/* Takes the request's content over. One reference is the connection's, one is Lua's. */
pl_exchange *pl_exchange_open(pl_loop *loop, pl_http_shared *shared, pl_conn *conn,
                              pl_request *request, int32_t id, const char *peer);
/* io: the connection is gone; drops its reference. */
void pl_exchange_lost(pl_exchange *x);
void pl_exchange_drained(pl_exchange *x); /* io: all of it so far is sent */
/* A whole answer of JSON, after which the connection is closed. */
void pl_exchange_answer(pl_buf *out, int status, const pl_buf *body, bool head_only);
void pl_exchange_answer_error(pl_buf *out, int status, const char *message,
                              bool head_only);

/* The connection's side, io. */
pl_buf *pl_conn_out(pl_conn *c);  /* to append to; sent by the next flush */
size_t pl_conn_flush(pl_conn *c); /* now; how many bytes are left */
void pl_conn_answered(pl_conn *c, bool keep_alive);
void pl_conn_cut(pl_conn *c); /* closes at once; the exchange is forgotten */

#endif
