/* SPDX-License-Identifier: Apache-2.0 */
#include "link_socket.h"

#include <string.h>

enum {
    PREFIX = 4,
    MAX_FRAME = PL_FRAME_HEAD + PL_FRAGMENT,
    ROOM = 256 << 10, /* for what comes: a few of the longest frames */
    RAW = 64 << 10,
    EARLY = 256 << 10, /* so much is written before the turn of the loop is over */
    MAX_UNSENT = 2 << 20
};

/* ---- out --------------------------------------------------------------------------- */

static void on_prepare(uv_prepare_t *prepare)
{
    pl_socket_flush_all(prepare->data);
}

static void mark(pl_socket *s)
{
    pl_direct *d = s->all;
    if (s->dirty_at) return;
    if (!d->dirty) uv_prepare_start(&d->prepare, on_prepare);
    s->next_dirty = d->dirty;
    s->dirty_at = &d->dirty;
    if (d->dirty) d->dirty->dirty_at = &s->next_dirty;
    d->dirty = s;
}

static void unmark(pl_socket *s)
{
    if (!s->dirty_at) return;
    *s->dirty_at = s->next_dirty;
    if (s->next_dirty) s->next_dirty->dirty_at = s->dirty_at;
    s->dirty_at = NULL;
}

static void flush(pl_socket *s);

static void on_written(uv_write_t *write, int status)
{
    pl_socket *s = write->data;
    s->writing = false;
    s->flying.len = 0;
    if (s->closed) return;
    if (status >= 0) flush(s);
    if (status < 0 || s->broken) {
        pl_socket_close(s);
        return;
    }
    if (s->full && s->out.len + s->flying.len <= MAX_UNSENT / 2) {
        s->full = false;
        pl_direct_drained(s);
    }
}

/* What is to be written now: `flying`, which is empty, gets it. */
static void take_out(pl_socket *s)
{
    if (s->tls) {
        if (s->out.len && !pl_tls_write(s->tls, s->out.data, s->out.len))
            s->broken = true;
        s->out.len = 0;
        pl_tls_unsent(s->tls, &s->flying);
    } else {
        pl_buf swap = s->flying;
        s->flying = s->out;
        s->out = swap;
    }
}

/* Never closes it, for its caller may be in the middle of sending. */
static void flush(pl_socket *s)
{
    if (s->writing || s->broken) return;
    take_out(s);
    if (!s->flying.len) return;
    uv_buf_t all = uv_buf_init(s->flying.data, (unsigned)s->flying.len);
    int n = uv_try_write(&s->h.stream, &all, 1);
    if (n < 0 && n != UV_EAGAIN) s->broken = true;
    size_t done = n > 0 ? (size_t)n : 0;
    if (done < s->flying.len && !s->broken) {
        all = uv_buf_init(s->flying.data + done, (unsigned)(s->flying.len - done));
        s->write.data = s;
        s->writing = !uv_write(&s->write, &s->h.stream, &all, 1, on_written);
        s->broken = !s->writing;
    }
    if (!s->writing) s->flying.len = 0;
}

void pl_socket_flush_all(pl_direct *d)
{
    for (pl_socket *s; (s = d->dirty);) {
        unmark(s);
        flush(s);
        if (s->broken) pl_socket_close(s);
    }
    uv_prepare_stop(&d->prepare);
}

pl_status pl_socket_send(pl_socket *s, const char *frame, size_t len)
{
    if (s->closed || s->broken || s->out.len + s->flying.len > MAX_UNSENT) {
        s->full = true;
        return PL_EAGAIN;
    }
    unsigned char prefix[PREFIX];
    for (int i = 0; i < PREFIX; i++) prefix[i] = (unsigned char)(len >> (8 * i));
    pl_buf_add(&s->out, prefix, PREFIX);
    pl_buf_add(&s->out, frame, len);
    mark(s);
    if (s->out.len >= EARLY) flush(s);
    return PL_OK;
}

/* ---- in ---------------------------------------------------------------------------- */

static void on_room(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    pl_socket *s = handle->data;
    (void)suggested;
    *buf = s->tls ? uv_buf_init(s->all->raw, RAW)
                  : uv_buf_init(s->in + s->in_len, (unsigned)(ROOM - s->in_len));
}

static void take_frames(pl_socket *s)
{
    size_t at = 0;
    while (!s->closed && s->in_len - at >= PREFIX) {
        const unsigned char *b = (const unsigned char *)s->in + at;
        size_t len = b[0] | (size_t)b[1] << 8 | (size_t)b[2] << 16 | (size_t)b[3] << 24;
        if (!len || len > MAX_FRAME) {
            pl_metric_add(s->all->metrics.refused, 1);
            pl_socket_close(s);
            return;
        }
        if (s->in_len - at - PREFIX < len) break;
        at += PREFIX;
        pl_direct_frame(s, s->in + at, len);
        at += len;
    }
    if (at) memmove(s->in, s->in + at, s->in_len - at);
    s->in_len -= at;
}

/* False: it is refused. */
static bool shake(pl_socket *s)
{
    char why[200];
    int done = pl_tls_shake(s->tls, why, sizeof why);
    mark(s);
    if (done < 0) pl_log(PL_LOG_DEBUG, "a socket between processes: %s", why);
    if (done <= 0) return done == 0;
    s->shaken = true;
    pl_direct_shaken(s);
    return true;
}

/* False: it is refused, or at its end. */
static bool decrypt(pl_socket *s, const char *data, size_t len)
{
    pl_tls_received(s->tls, data, len);
    if (!s->shaken && !shake(s)) return false;
    for (int n = 1; s->shaken && !s->closed && n > 0;) {
        n = pl_tls_read(s->tls, s->in + s->in_len, (int)(ROOM - s->in_len));
        if (n < 0) return false;
        s->in_len += (size_t)n;
        take_frames(s);
    }
    return true;
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    pl_socket *s = stream->data;
    if (s->closed || !n) return;
    if (n > 0 && s->live) s->link->socket_heard_ns = pl_now_ns();
    if (n > 0 && !s->tls) {
        s->in_len += (size_t)n;
        take_frames(s);
    } else if (n < 0 || !decrypt(s, buf->base, (size_t)n)) {
        if (n > 0) pl_metric_add(s->all->metrics.refused, 1);
        pl_socket_close(s);
    }
}

/* ---- life -------------------------------------------------------------------------- */

static void on_closed(uv_handle_t *handle)
{
    pl_socket *s = handle->data;
    pl_buf_fini(&s->out);
    pl_buf_fini(&s->flying);
    pl_tls_close(s->tls);
    pl_free(s->in);
    pl_free(s);
}

void pl_socket_close(pl_socket *s)
{
    PL_ON(IO);
    if (s->closed) return;
    s->closed = true;
    unmark(s);
    *s->at = s->next;
    if (s->next) s->next->at = s->at;
    uv_close((uv_handle_t *)&s->h, on_closed);
    pl_direct_closed(s);
}

pl_socket *pl_socket_make(pl_direct *d, bool tcp)
{
    pl_socket *s = pl_alloc(sizeof *s);
    if (tcp)
        uv_tcp_init(pl_loop_uv(d->links->loop), &s->h.tcp);
    else
        uv_pipe_init(pl_loop_uv(d->links->loop), &s->h.pipe, 0);
    s->h.stream.data = s;
    s->all = d;
    s->since_ns = pl_now_ns();
    s->in = pl_realloc(NULL, ROOM);
    s->next = d->sockets;
    s->at = &d->sockets;
    if (d->sockets) d->sockets->at = &s->next;
    d->sockets = s;
    return s;
}

bool pl_socket_begin(pl_socket *s, pl_tls *tls)
{
    s->tls = tls;
    if (tls && !s->all->raw) s->all->raw = pl_realloc(NULL, RAW);
    if (uv_read_start(&s->h.stream, on_room, on_read)) {
        pl_socket_close(s);
        return false;
    }
    if (!tls)
        pl_direct_shaken(s);
    else if (!shake(s))
        pl_socket_close(s);
    return !s->closed;
}
