/* SPDX-License-Identifier: Apache-2.0
 *
 * link_socket.h - a socket that carries frames, each behind its length.
 *
 * Owns     the handle, bytes that came in part, bytes that wait to be written.
 * Ignores  what a frame says, whose socket it is (link_direct.c).
 * Thread   io
 *
 * What one turn of the loop sends goes out in one write, right before the loop sleeps.
 */
#ifndef PL_LINK_SOCKET_H
#define PL_LINK_SOCKET_H

#include "link_direct.h"
#include "link_own.h"

struct pl_socket {
    union {
        uv_stream_t stream;
        uv_pipe_t pipe;
    } h;
    pl_direct *all;
    pl_socket *next, **at;             /* of all of them */
    pl_socket *next_dirty, **dirty_at; /* of those with something to write */
    uint64_t key;                      /* whom it leads to; 0: a stranger */
    pl_link *link;   /* live: it has this one; connecting: it will have */
    bool live, ours; /* ours: we connected */
    int64_t since_ns;
    uv_write_t write;
    bool writing, full, broken, closed;
    pl_buf out, flying; /* what waits; what is being written */
    char *in;
    size_t in_len;
};

struct pl_direct {
    pl_links *links;
    pl_direct_address own;
    union {
        uv_stream_t stream;
        uv_pipe_t pipe;
    } listener;
    int listen_fd; /* until it is the listener's; -1: none */
    bool listens;
    uv_prepare_t prepare;
    pl_socket *sockets, *dirty;
    int n_strangers;
    struct {
        int sent, received, refused, connected;
    } metrics;
};

pl_socket *pl_socket_make(pl_direct *d);
/* Begins to read; false: it is closed. `fd`: a connected socket, which it takes over. */
bool pl_socket_begin(pl_socket *s, int fd);
void pl_socket_close(pl_socket *s);
pl_status pl_socket_send(pl_socket *s, const char *frame, size_t len);
void pl_socket_flush_all(pl_direct *d);

/* link_direct.c, called from here */
void pl_direct_frame(pl_socket *s, const char *data, size_t len);
void pl_direct_drained(pl_socket *s);
void pl_direct_closed(pl_socket *s);

#endif
