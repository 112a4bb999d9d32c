/* SPDX-License-Identifier: Apache-2.0
 *
 * http_listen.c - listeners, and whom they let in.
 */
#define _GNU_SOURCE
#include "client.h"
#include "http_own.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_LEAVING = 64, /* beyond max_connections: those told that we are full */
    MAX_LOCAL = 64,   /* connections of the owner's; they count apart */
    BACKLOG = 1024
};

/* ---- accepting --------------------------------------------------------------------- */

static void name_peer(pl_conn *c)
{
    struct sockaddr_storage a;
    int len = sizeof a;
    char ip[INET6_ADDRSTRLEN] = "?";
    if (uv_tcp_getpeername(&c->h.tcp, (struct sockaddr *)&a, &len)) return;
    if (a.ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&a;
        uv_ip6_name(v6, ip, sizeof ip);
        snprintf(c->peer, sizeof c->peer, "[%s]:%d", ip, ntohs(v6->sin6_port));
    } else {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)&a;
        uv_ip4_name(v4, ip, sizeof ip);
        snprintf(c->peer, sizeof c->peer, "%s:%d", ip, ntohs(v4->sin_port));
    }
}

/* Whether it is the owner's, or root's; the folder lets in nobody else either. */
static bool is_owner(pl_conn *c)
{
    struct ucred who;
    socklen_t len = sizeof who;
    uv_os_fd_t fd;
    if (uv_fileno((uv_handle_t *)&c->h, &fd) ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len))
        return false;
    snprintf(c->peer, sizeof c->peer, "process %d of user %u", (int)who.pid,
             (unsigned)who.uid);
    return who.uid == geteuid() || who.uid == 0;
}

static bool has_room(const pl_conn *c)
{
    const pl_http *h = c->http;
    return c->local ? h->n_local <= MAX_LOCAL
                    : h->n_conns <= h->options.max_connections + MAX_LEAVING;
}

static void on_connection(uv_stream_t *server, int status)
{
    pl_http *h = server->data;
    if (status < 0) {
        pl_log(PL_LOG_WARN, "a connection could not be accepted: %s",
               uv_strerror(status));
        return;
    }
    pl_conn *c = pl_conn_open(h, server->type == UV_NAMED_PIPE);
    if (uv_accept(server, &c->h.stream) || !has_room(c) || (c->local && !is_owner(c))) {
        pl_conn_close(c);
        return;
    }
    uv_update_time(c->h.stream.loop); /* the round may have been long */
    if (!c->local) {
        uv_tcp_nodelay(&c->h.tcp, 1);
        uv_tcp_keepalive(&c->h.tcp, 1, 60);
        name_peer(c);
        if (h->n_conns > h->options.max_connections) {
            pl_conn_refuse(c, 503, "too many connections");
            return;
        }
    }
    pl_conn_begin(c);
}

typedef struct listening {
    pl_http *http;
    struct sockaddr_storage address;
    int result;
} listening;

static int port_of(const uv_tcp_t *tcp)
{
    struct sockaddr_storage a;
    int len = sizeof a;
    int bad = uv_tcp_getsockname(tcp, (struct sockaddr *)&a, &len);
    if (bad) return bad;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

static void free_listener(uv_handle_t *handle)
{
    listener *l = (listener *)handle;
    pl_free(l->path);
    pl_free(l);
}

static void close_listener(listener *l)
{
    if (l->path) unlink(l->path);
    uv_close((uv_handle_t *)&l->h, free_listener);
}

static void add_listener(pl_http *h, listener *l)
{
    l->next = h->listeners;
    h->listeners = l;
}

static void run_listen(void *arg)
{
    listening *call = arg;
    listener *l = pl_alloc(sizeof *l);
    int bad = uv_tcp_init(pl_loop_uv(call->http->loop), &l->h.tcp);
    l->h.stream.data = call->http;
    if (!bad) bad = uv_tcp_bind(&l->h.tcp, (struct sockaddr *)&call->address, 0);
    if (!bad) bad = uv_listen(&l->h.stream, BACKLOG, on_connection);
    call->result = bad ? bad : port_of(&l->h.tcp);
    if (call->result < 0)
        close_listener(l);
    else
        add_listener(call->http, l);
}

int pl_http_listen(pl_http *h, const char *host, int port)
{
    if (port < 0 || port > 65535) return pl_fail(PL_EINVAL, "%d is not a port", port);
    char service[8];
    snprintf(service, sizeof service, "%d", port);
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
                             .ai_socktype = SOCK_STREAM},
                    *found;
    if (!host || !*host) host = "0.0.0.0";
    int bad = getaddrinfo(host, service, &hints, &found);
    if (bad)
        return pl_fail(PL_EINVAL, "'%s' is not an address to listen on: %s", host,
                       gai_strerror(bad));
    listening call = {.http = h};
    memcpy(&call.address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    pl_loop_call(h->loop, run_listen, &call);
    if (call.result < 0)
        return pl_fail(PL_EIO, "cannot listen on %s:%d: %s", host, port,
                       uv_strerror(call.result));
    return call.result;
}

typedef struct listening_local {
    pl_http *http;
    const char *path;
    int fd, result;
} listening_local;

static void run_listen_local(void *arg)
{
    listening_local *call = arg;
    listener *l = pl_alloc(sizeof *l);
    l->path = pl_strndup(call->path, strlen(call->path));
    uv_pipe_init(pl_loop_uv(call->http->loop), &l->h.pipe, 0);
    l->h.stream.data = call->http;
    call->result = uv_pipe_open(&l->h.pipe, call->fd);
    if (call->result)
        close(call->fd);
    else
        call->result = uv_listen(&l->h.stream, BACKLOG, on_connection);
    if (call->result < 0)
        close_listener(l);
    else
        add_listener(call->http, l);
}

pl_status pl_http_listen_local(pl_http *h, const char *path)
{
    int fd = pl_local_bind(path);
    if (fd < 0) return fd;
    listening_local call = {.http = h, .path = path, .fd = fd};
    pl_loop_call(h->loop, run_listen_local, &call);
    if (call.result < 0)
        return pl_fail(PL_EIO, "cannot listen at '%s': %s", path,
                       uv_strerror(call.result));
    return PL_OK;
}

void pl_http_close_listeners(pl_http *h, bool local_too)
{
    for (listener **at = &h->listeners; *at;) {
        listener *l = *at;
        if (l->path && !local_too) {
            at = &l->next;
            continue;
        }
        *at = l->next;
        close_listener(l);
    }
}
