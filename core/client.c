/* SPDX-License-Identifier: Apache-2.0
 *
 * client.c - a TCP connection to some server: bytes there, bytes back, each wait bounded.
 *
 * Owns     the socket.
 * Ignores  HTTP (client.lua has it), names of hosts beyond what the system resolves.
 * Thread   any, one at a time for each connection.
 *
 *      open --connected--> usable --close--> gone
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
#include <unistd.h>

enum {
    MAX_POLLED = 4096
};

struct pl_client {
    int fd;
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

/* Waits for `events` on one socket. Signals do not end it: see wait_readable. */
static pl_status wait_until(int fd, short events, int64_t until)
{
    struct pollfd p = {.fd = fd, .events = events};
    for (;;) {
        int n = poll(&p, 1, remaining_ms(until));
        if (n > 0) return PL_OK;
        if (n == 0) return PL_ETIMEOUT;
        if (errno != EINTR) return pl_fail(PL_EIO, "poll: %s", strerror(errno));
    }
}

/* One address of the host: a connected socket, or the errno that forbids it, negative. */
static int connect_to(const struct addrinfo *to, int64_t until)
{
    int fd = socket(to->ai_family, to->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC,
                    to->ai_protocol);
    if (fd < 0) return -errno;
    int error = connect(fd, to->ai_addr, to->ai_addrlen) < 0 ? errno : 0;
    if (error == EINPROGRESS) {
        socklen_t size = sizeof error;
        if (wait_until(fd, POLLOUT, until) < 0) {
            error = ETIMEDOUT;
        } else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) {
            error = errno;
        }
    }
    if (error) {
        close(fd);
        return -error;
    }
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

pl_client *pl_client_open(const char *host, int port, int timeout_ms)
{
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
    int fd = -ENOENT;
    for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next)
        fd = connect_to(a, until);
    freeaddrinfo(found);
    if (fd < 0) {
        pl_fail(PL_EIO, "cannot connect to %s:%d: %s", host, port, strerror(-fd));
        return NULL;
    }
    pl_client *c = pl_alloc(sizeof *c);
    c->fd = fd;
    return c;
}

void pl_client_close(pl_client *c)
{
    if (!c) return;
    close(c->fd);
    pl_free(c);
}

pl_status pl_client_send(pl_client *c, const char *data, size_t len, int timeout_ms)
{
    int64_t until = deadline(timeout_ms);
    while (len) {
        ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL);
        if (n >= 0) {
            data += n, len -= (size_t)n;
        } else if (errno == EAGAIN) {
            pl_status status = wait_until(c->fd, POLLOUT, until);
            if (status == PL_ETIMEOUT)
                return pl_fail(status, "the server takes no more for %d ms", timeout_ms);
            PL_TRY(status);
        } else if (errno != EINTR) {
            return pl_fail(PL_EIO, "send: %s", strerror(errno));
        }
    }
    return PL_OK;
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
    for (int i = 0; i < n; i++)
        polled[i] = (struct pollfd){.fd = clients[i]->fd, .events = POLLIN};
    int count = poll(polled, (nfds_t)n, PL_MAX(timeout_ms, 0));
    if (count < 0)
        return pl_fail(errno == EINTR ? PL_ECANCELED : PL_EIO, "poll: %s",
                       strerror(errno));
    for (int i = 0; i < n; i++) ready[i] = polled[i].revents != 0;
    return count;
}
