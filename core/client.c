/* SPDX-License-Identifier: Apache-2.0
 *
 * client.c - a connection to some server, TCP or local: bytes there, bytes back, each
 * wait bounded.
 *
 * Owns     the socket, and what it did not take yet.
 * Ignores  HTTP (tools/http_client.lua has it), names of hosts beyond what the system
 *          resolves.
 * Thread   any, one at a time for each connection.
 *
 *      open ---------connected---> usable --close--> gone
 *                                    ^
 *      another --> connecting -------+
 */
#define _GNU_SOURCE
#include "base.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    MAX_POLLED = 4096,
    MAX_UNSENT = 64 << 20
};

struct pl_client {
    int fd;
    pl_buf unsent; /* from `sent` on */
    size_t sent;
    struct sockaddr_storage address;
    socklen_t address_len;
};

static int64_t deadline(int timeout_ms)
{
    return pl_now_ns() + (int64_t)PL_MAX(timeout_ms, 0) * 1000000;
}

static int remaining_ms(int64_t until)
{
    int64_t left = (until - pl_now_ns() + 999999) / 1000000;
    return (int)PL_MIN(PL_MAX(left, 0), INT32_MAX);
}

/* Waits until bytes can be sent. Signals do not end it: see wait_readable. */
static pl_status wait_writable(int fd, int64_t until)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    for (;;) {
        int n = poll(&p, 1, remaining_ms(until));
        if (n > 0) return PL_OK;
        if (n == 0) return PL_ETIMEOUT;
        if (errno != EINTR) return pl_fail(PL_EIO, "poll: %s", strerror(errno));
    }
}

/* Begins to connect: a socket, or the errno that forbids it, negative. */
static int begin_connect(const struct sockaddr *to, socklen_t len)
{
    int fd = socket(to->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, to, len) == 0 || errno == EINPROGRESS) return fd;
    int error = errno;
    close(fd);
    return -error;
}

/* Why a socket did not become connected in time: an errno, or 0. */
static int end_connect(int fd, int64_t until)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (wait_writable(fd, until) < 0) return ETIMEDOUT;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) return errno;
    return error;
}

static pl_client *make_client(int fd, const struct sockaddr *address, socklen_t len)
{
    pl_client *c = pl_alloc(sizeof *c);
    c->fd = fd;
    memcpy(&c->address, address, len);
    c->address_len = len;
    return c;
}

/* The first of a host's addresses that answers, or NULL and the last one's errno. */
static pl_client *connect_any(const struct addrinfo *found, int64_t until, int *why)
{
    for (const struct addrinfo *a = found; a; a = a->ai_next) {
        int fd = begin_connect(a->ai_addr, a->ai_addrlen);
        *why = fd < 0 ? -fd : end_connect(fd, until);
        if (*why == 0) return make_client(fd, a->ai_addr, a->ai_addrlen);
        if (fd >= 0) close(fd);
    }
    return NULL;
}

/* A Unix socket's connect is done at once, or refused. */
static pl_client *connect_unix(const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    if (len == 0 || len >= sizeof to.sun_path) {
        pl_fail(PL_EINVAL, "'%s' is not a path of a socket: wanted 1 to %zu bytes", path,
                sizeof to.sun_path - 1);
        return NULL;
    }
    memcpy(to.sun_path, path, len);
    int fd = begin_connect((const struct sockaddr *)&to, sizeof to);
    if (fd >= 0) return make_client(fd, (const struct sockaddr *)&to, sizeof to);
    pl_fail(fd == -ENOENT || fd == -ECONNREFUSED ? PL_ENOTFOUND : PL_EIO,
            "cannot connect to '%s': %s", path, strerror(-fd));
    return NULL;
}

pl_client *pl_client_open(const char *host, int port, int timeout_ms)
{
    if (strncmp(host, "unix:", 5) == 0) return connect_unix(host + 5);
    if (port < 1 || port > 65535) {
        pl_fail(PL_EINVAL, "port %d is not from 1 to 65535", port);
        return NULL;
    }
    char service[8];
    snprintf(service, sizeof service, "%d", port);
    int64_t until = deadline(timeout_ms);
    struct addrinfo want = {.ai_socktype = SOCK_STREAM}, *found;
    /* The one wait that is not ours to bound: the system's resolver has limits of its
     * own. */
    int bad = getaddrinfo(host, service, &want, &found);
    if (bad) {
        pl_fail(PL_ENOTFOUND, "host '%s': %s", host, gai_strerror(bad));
        return NULL;
    }
    int why = ENOENT;
    pl_client *c = connect_any(found, until, &why);
    freeaddrinfo(found);
    if (!c) pl_fail(PL_EIO, "cannot connect to %s:%d: %s", host, port, strerror(why));
    return c;
}

pl_client *pl_client_another(const pl_client *c)
{
    const struct sockaddr *to = (const struct sockaddr *)&c->address;
    int fd = begin_connect(to, c->address_len);
    if (fd >= 0) return make_client(fd, to, c->address_len);
    pl_fail(PL_EIO, "cannot connect: %s", strerror(-fd));
    return NULL;
}

void pl_client_close(pl_client *c)
{
    if (!c) return;
    close(c->fd);
    pl_buf_fini(&c->unsent);
    pl_free(c);
}

/* Sends what the socket takes now. */
static pl_status flush(pl_client *c)
{
    while (c->sent < c->unsent.len) {
        const char *data = c->unsent.data + c->sent;
        ssize_t n = send(c->fd, data, c->unsent.len - c->sent, MSG_NOSIGNAL);
        if (n >= 0) {
            c->sent += (size_t)n;
        } else if (errno == EAGAIN || errno == ENOTCONN) {
            return PL_OK;
        } else if (errno != EINTR) {
            return pl_fail(PL_EIO, "send: %s", strerror(errno));
        }
    }
    c->sent = c->unsent.len = 0;
    return PL_OK;
}

pl_status pl_client_send(pl_client *c, const char *data, size_t len, int timeout_ms)
{
    int64_t until = deadline(timeout_ms);
    if (c->unsent.len > MAX_UNSENT || len > MAX_UNSENT - c->unsent.len)
        return pl_fail(PL_ELIMIT, "%zu bytes to send; at most %d may wait", len,
                       MAX_UNSENT);
    pl_buf_add(&c->unsent, data, len);
    for (;;) {
        PL_TRY(flush(c));
        if (c->unsent.len == 0 || timeout_ms <= 0) return PL_OK;
        pl_status status = wait_writable(c->fd, until);
        if (status == PL_ETIMEOUT)
            return pl_fail(status, "the server accepted no more data for %d ms",
                           timeout_ms);
        PL_TRY(status);
    }
}

/* A signal ends this wait: a person may have had enough of the answer. */
static pl_status wait_readable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int n = poll(&p, 1, timeout_ms);
    if (n > 0) return PL_OK;
    if (n == 0)
        return pl_fail(PL_ETIMEOUT, "nothing came from the server for %d ms", timeout_ms);
    return pl_fail(errno == EINTR ? PL_ECANCELED : PL_EIO, "poll: %s", strerror(errno));
}

int pl_client_recv(pl_client *c, char *out, int max, int timeout_ms)
{
    if (max < 1) return pl_fail(PL_EINVAL, "room for %d bytes; it wants 1", max);
    for (int waited = 0;; waited = 1) {
        ssize_t n = recv(c->fd, out, (size_t)max, 0);
        if (n >= 0) return (int)n;
        if (errno == EINTR) continue;
        if (errno != EAGAIN) return pl_fail(PL_EIO, "receive: %s", strerror(errno));
        if (waited || timeout_ms <= 0) return PL_EAGAIN;
        PL_TRY(wait_readable(c->fd, timeout_ms));
    }
}

int pl_client_poll(pl_client *const *clients, int n, uint8_t *ready, int timeout_ms)
{
    if (n < 0 || n > MAX_POLLED)
        return pl_fail(PL_ELIMIT, "%d connections at once; at most %d", n, MAX_POLLED);
    struct pollfd polled[MAX_POLLED];
    for (int i = 0; i < n; i++) {
        short events = clients[i]->unsent.len ? POLLIN | POLLOUT : POLLIN;
        polled[i] = (struct pollfd){.fd = clients[i]->fd, .events = events};
    }
    int got = poll(polled, (nfds_t)n, PL_MAX(timeout_ms, 0)), count = 0;
    if (got < 0)
        return pl_fail(errno == EINTR ? PL_ECANCELED : PL_EIO, "poll: %s",
                       strerror(errno));
    for (int i = 0; i < n; i++) {
        bool broken = (polled[i].revents & POLLOUT) && flush(clients[i]) < 0;
        ready[i] = broken || (polled[i].revents & ~POLLOUT); /* recv says what broke */
        count += ready[i];
    }
    return count;
}
