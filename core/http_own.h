/* SPDX-License-Identifier: Apache-2.0
 *
 * http_own.h - what http.c (connections) and http_listen.c (who may connect) share.
 *
 * Thread   io.
 */
#ifndef PL_HTTP_OWN_H
#define PL_HTTP_OWN_H

#include "http_exchange.h"

enum {
    PL_READ_BYTES = 65536
}; /* one read */

enum {
    READING = 0,
    ANSWERING,
    DRAINING,
    LEAVING
};

typedef union any_stream {
    uv_stream_t stream;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
} any_stream;

struct pl_conn {
    any_stream h;
    uv_timer_t timer;
    uv_write_t write;
    uv_shutdown_t shutdown;
    pl_http *http;
    pl_conn *next, *prev, *next_dirty;
    pl_exchange *x; /* ANSWERING */
    pl_parser parser;
    pl_buf ahead;   /* read while ANSWERING or DRAINING */
    pl_buf out;     /* to be sent */
    pl_buf sending; /* being sent by libuv */
    int state, n_handles;
    bool dirty, writing, reading, eof, shut, closing, local;
    int64_t deadline;    /* loop time; 0: none */
    size_t last_sending; /* when the deadline for a write was set */
    char peer[64];
};

typedef struct listener {
    any_stream h;
    struct listener *next;
    char *path; /* of a local one: removed at its end */
} listener;

struct pl_http {
    pl_loop *loop;
    pl_runtime_options options;
    pl_http_limits limits;
    listener *listeners;
    pl_conn *conns, *dirty;
    int n_conns, n_local;
    int32_t last_id;
    bool stopping;
    int64_t refused_since; /* the second that n_refused is of */
    int n_refused;
    pl_http_shared shared;
    char input[PL_READ_BYTES];
};

/* A connection that was just accepted: h is initialized with its loop. */
pl_conn *pl_conn_open(pl_http *h, bool local);
void pl_conn_begin(pl_conn *c);                               /* it may send requests */
void pl_conn_refuse(pl_conn *c, int status, const char *why); /* and closes it */
void pl_conn_close(pl_conn *c);
void pl_http_close_listeners(pl_http *h, bool local_too);

#endif
