/* SPDX-License-Identifier: Apache-2.0
 *
 * link_socket.h - a socket that carries frames, each behind its length.
 *
 * Owns     the handle, bytes that came in part, bytes that wait to be written, TLS.
 * Ignores  what a frame says, whose socket it is (link_direct.c).
 * Thread   io
 *
 * What one turn of the loop sends goes out in one write, right before the loop sleeps.
 */
#ifndef PL_LINK_SOCKET_H
#define PL_LINK_SOCKET_H

#include "link_direct.h"
#include "link_own.h"
#include "tls.h"

struct pl_socket {
    union {
        uv_stream_t stream;
        uv_pipe_t pipe;
        uv_tcp_t tcp;
    } h;
    pl_tls *tls; /* NULL: a Unix socket */
    bool shaken;
    pl_direct *all;
    pl_socket *next, **at;             /* of all of them */
    pl_socket *next_dirty, **dirty_at; /* of those with something to write */
    uint64_t key;                      /* whom it leads to; 0: a stranger */
    pl_link *link;   /* live: it has this one; connecting: it will have */
    bool live, ours; /* ours: we connected */
    int64_t since_ns;
    uv_write_t write;
    uv_connect_t connect;
    bool writing, full, broken, closed;
    pl_buf out, flying; /* what waits; what is being written */
    char *in;
    size_t in_len;
};

typedef struct pl_door { /* where others connect to us */
    union {
        uv_stream_t stream;
        uv_pipe_t pipe;
        uv_tcp_t tcp;
    } h;
    pl_direct *all;
    int fd;    /* until it is the handle's; -1: none */
    bool open; /* the handle is */
    int n_strangers;
} pl_door;

struct pl_direct {
    pl_links *links;
    pl_direct_address own;
    pl_door unix_door, tcp_door;
    pl_tls_pairs *pairs; /* NULL: no TCP */
    uv_prepare_t prepare;
    pl_socket *sockets, *dirty;
    char *raw; /* what TLS is to read; for all, for the time of a call */
    struct {
        int sent, received, refused, connected;
    } metrics;
};

pl_socket *pl_socket_make(pl_direct *d, bool tcp);
/* It is connected: begins to read, and to shake hands (over TLS, which it takes over);
 * pl_direct_shaken is called once that is done. False: it is closed. */
bool pl_socket_begin(pl_socket *s, pl_tls *tls);
void pl_socket_close(pl_socket *s);
pl_status pl_socket_send(pl_socket *s, const char *frame, size_t len);
void pl_socket_flush_all(pl_direct *d);

/* link_direct.c, called from here */
void pl_direct_shaken(pl_socket *s);
void pl_direct_frame(pl_socket *s, const char *data, size_t len);
void pl_direct_drained(pl_socket *s);
void pl_direct_closed(pl_socket *s);

#endif
