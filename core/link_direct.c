/* SPDX-License-Identifier: Apache-2.0
 *
 * link_direct.c - which links have a socket: who connects, who is let in, when again.
 *
 * Owns     the doors, and the rule who connects to whom.
 * Ignores  bytes (link_socket.c), frames (link.c).
 * Thread   io; open: lua
 *
 * The first frame on a socket, either way, introduces who says it, little-endian:
 *    0 "pl-link" and the number 1   8 id of who says it   16 id of whom it is said to
 *   24 the cookie in the hello of whom it is said to
 * Whoever connected speaks first. Until then it is a stranger: so many at a time, so long.
 *
 * Over TCP all that is said within TLS, whose secret is both cookies: nobody else has read
 * both hellos.
 */
#define _GNU_SOURCE
#include "link_direct.h"

#include "json.h"
#include "link_presence.h"
#include "link_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    BACKLOG = 128,
    MAX_STRANGERS = 64,
    INTRODUCTION = 24 + PL_COOKIE
};
#define MIN_SILENCE (1500 * PL_MS) /* sockets with nothing to say speak each 500 ms */
#define INTRODUCE (2000 * PL_MS)   /* so long a stranger may take */
#define RETRY (100 * PL_MS) /* before the next attempt; doubled each time, up to: */
#define MAX_RETRY (30000 * PL_MS)
static const char magic[8] = "pl-link\1";

/* ---- where we are ------------------------------------------------------------------ */

/* What an abstract socket's name is unique in: this boot's network namespace. And whose
 * processes may talk there. */
static void find_net(char out[PL_UNIX_NET])
{
    char boot[40] = "";
    struct stat st;
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    bool known = f && fgets(boot, sizeof boot, f) && !stat("/proc/self/ns/net", &st);
    if (f) fclose(f);
    boot[strcspn(boot, "\n")] = 0;
    if (known)
        snprintf(out, PL_UNIX_NET, "%s-%llu-%u", boot, (unsigned long long)st.st_ino,
                 (unsigned)geteuid());
}

static socklen_t name_socket(struct sockaddr_un *out, uint64_t key)
{
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    int n = snprintf(out->sun_path + 1, sizeof out->sun_path - 1, "perilune-link-%016llx",
                     (unsigned long long)key);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

/* -1: refused. */
static int listen_unix(uint64_t key)
{
    struct sockaddr_un at;
    socklen_t len = name_socket(&at, key);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    if (!bind(fd, (struct sockaddr *)&at, len) && !listen(fd, BACKLOG)) return fd;
    close(fd);
    return -1;
}

static int bind_tcp(const struct addrinfo *at)
{
    int yes = 1,
        fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (!bind(fd, at->ai_addr, at->ai_addrlen) && !listen(fd, BACKLOG)) return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

/* The others are told the address, so it must be one that leads here. */
static bool is_any(const struct sockaddr *a)
{
    static const struct in6_addr any = IN6ADDR_ANY_INIT;
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr == INADDR_ANY;
    return !memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr, &any, sizeof any);
}

/* "ADDRESS:PORT" of where it listens. */
static bool tell_place(int fd, char out[PL_TCP_PLACE])
{
    struct sockaddr_storage at;
    socklen_t len = sizeof at;
    char host[NI_MAXHOST], port[NI_MAXSERV];
    if (getsockname(fd, (struct sockaddr *)&at, &len) ||
        getnameinfo((struct sockaddr *)&at, len, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV))
        return false;
    const char *form = at.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s";
    return snprintf(out, PL_TCP_PLACE, form, host, port) < PL_TCP_PLACE;
}

static pl_status listen_tcp(pl_direct *d, const char *host, int port)
{
    char service[16];
    struct addrinfo hints = {.ai_flags = AI_NUMERICSERV, .ai_socktype = SOCK_STREAM},
                    *found;
    if (port < 0 || port > 65535)
        return pl_fail(PL_EINVAL, "direct port %d: wanted 0 to 65535", port);
    snprintf(service, sizeof service, "%d", port);
    int bad = getaddrinfo(host, service, &hints, &found);
    if (bad)
        return pl_fail(PL_EINVAL, "direct host '%.100s': %s", host, gai_strerror(bad));
    pl_status status = PL_OK;
    if (is_any(found->ai_addr))
        status = pl_fail(PL_EINVAL,
                         "direct host '%.100s': wanted an address at which "
                         "other processes reach this one",
                         host);
    else if ((d->tcp_door.fd = bind_tcp(found)) < 0)
        status = pl_fail(PL_EIO, "direct host '%.100s', port %d: %s", host, port,
                         strerror(errno));
    else if (!tell_place(d->tcp_door.fd, d->own.tcp))
        status = pl_fail(PL_EINVAL, "direct host '%.100s' has no address", host);
    freeaddrinfo(found);
    return status;
}

/* -1: nobody is there, or not now; a Unix socket never makes us wait. */
static int connect_unix(uint64_t key)
{
    struct sockaddr_un to;
    socklen_t len = name_socket(&to, key);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    if (!connect(fd, (struct sockaddr *)&to, len)) return fd;
    close(fd);
    return -1;
}

static bool is_same_user(const pl_socket *s)
{
    struct ucred who;
    socklen_t len = sizeof who;
    uv_os_fd_t fd;
    return !uv_fileno((const uv_handle_t *)&s->h, &fd) &&
           !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) && who.uid == geteuid();
}

/* ---- hello ------------------------------------------------------------------------- */

void pl_direct_hello(const pl_direct *d, pl_buf *out)
{
    pl_buf_printf(out, "\"direct\":{\"cookie\":\"%s\",\"net\":\"%s\",\"tcp\":\"%s\"}",
                  d->own.cookie, d->own.net, d->own.tcp);
}

static bool take_text(const pl_json *from, const char *name, const char *alphabet,
                      char *out, size_t room)
{
    size_t len = 0;
    const pl_json *value = pl_json_find(from, name);
    if (pl_json_kind(value) != PL_JSON_STRING) return !value;
    const char *text = pl_json_string(value, &len);
    if (len >= room || strspn(text, alphabet) != len) return false;
    memcpy(out, text, len + 1);
    return true;
}

/* "ADDRESS:PORT", where the address is a number: whoever says it must know its own, and
 * looking up names would wait. */
static bool read_place(const char *place, struct sockaddr_storage *out)
{
    char host[PL_TCP_PLACE];
    const char *colon = strrchr(place, ':');
    if (!colon || strlen(colon + 1) > 5 ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1))
        return false;
    int port = atoi(colon + 1), len = (int)(colon - place);
    if (port < 1 || port > 65535) return false;
    bool six = *place == '[' && len > 2 && colon[-1] == ']';
    snprintf(host, sizeof host, "%.*s", six ? len - 2 : len, place + six);
    return !(six ? uv_ip6_addr(host, port, (struct sockaddr_in6 *)out)
                 : uv_ip4_addr(host, port, (struct sockaddr_in *)out));
}

bool pl_direct_parse(const pl_json *hello, pl_direct_address *out)
{
    const pl_json *said = pl_json_find(hello, "direct");
    struct sockaddr_storage place;
    *out = (pl_direct_address){0};
    if (!said) return true;
    return pl_json_kind(said) == PL_JSON_OBJECT &&
           take_text(said, "cookie", "0123456789abcdef", out->cookie,
                     sizeof out->cookie) &&
           strlen(out->cookie) == PL_COOKIE &&
           take_text(said, "net", "0123456789abcdef-", out->net, sizeof out->net) &&
           take_text(said, "tcp", "0123456789abcdef.:[]%", out->tcp, sizeof out->tcp) &&
           (!*out->tcp || read_place(out->tcp, &place));
}

/* ---- introductions ----------------------------------------------------------------- */

static void put_key(char *at, uint64_t key)
{
    for (int i = 0; i < 8; i++) at[i] = (char)(key >> (8 * i));
}

static uint64_t get_key(const char *at)
{
    uint64_t key = 0;
    for (int i = 7; i >= 0; i--) key = key << 8 | (unsigned char)at[i];
    return key;
}

/* In a time that does not depend on where they differ. */
static bool is_equal(const char *a, const char *b, size_t len)
{
    unsigned differ = 0;
    for (size_t i = 0; i < len; i++) differ |= (unsigned)(a[i] ^ b[i]);
    return !differ;
}

static void introduce(pl_socket *s, const char *cookie)
{
    char text[INTRODUCTION];
    memcpy(text, magic, sizeof magic);
    put_key(text + 8, s->all->links->key);
    put_key(text + 16, s->key);
    memcpy(text + 24, cookie, PL_COOKIE);
    pl_socket_send(s, text, sizeof text);
}

static void count_live(pl_direct *d, int n)
{
    pl_metric_add(d->metrics.connected, n);
}

static pl_door *door_of(const pl_socket *s)
{
    return s->h.stream.type == UV_TCP ? &s->all->tcp_door : &s->all->unix_door;
}

/* From now on the link's frames travel here; a newer socket takes an older one's place. */
static void settle(pl_socket *s, pl_link *l)
{
    pl_direct *d = s->all;
    if (l->attempt == s) l->attempt = NULL;
    if (!s->ours) door_of(s)->n_strangers--;
    pl_direct_drop(l);
    s->link = l;
    s->live = true;
    s->since_ns = l->socket_heard_ns = pl_now_ns();
    l->socket = s;
    count_live(d, 1);
    pl_log(PL_LOG_DEBUG, "the link to %016llx has a socket (%s)",
           (unsigned long long)l->key, s->tls ? "TCP" : "Unix");
    pl_link_pump(l);
}

/* Whether they are who they say, and know us: NULL if not. */
static pl_link *meet(pl_socket *s, const char *text, size_t len)
{
    pl_links *ls = s->all->links;
    pl_direct_address theirs;
    if (len != INTRODUCTION || memcmp(text, magic, sizeof magic)) return NULL;
    uint64_t from = get_key(text + 8);
    if (get_key(text + 16) != ls->key || (s->ours && from != s->key) ||
        !is_equal(text + 24, s->all->own.cookie, PL_COOKIE) ||
        !pl_presence_direct(ls, from, &theirs))
        return NULL;
    s->key = from;
    if (!s->ours) introduce(s, theirs.cookie);
    return pl_links_make(ls, from);
}

/* As their hello says, if it is still known. */
static bool find_peer(const pl_socket *s, pl_direct_address *out)
{
    return pl_presence_direct(s->all->links, s->key, out);
}

void pl_direct_shaken(pl_socket *s)
{
    pl_direct_address to;
    if (s->ours && find_peer(s, &to)) introduce(s, to.cookie);
}

void pl_direct_frame(pl_socket *s, const char *data, size_t len)
{
    if (s->live) {
        pl_metric_add(s->all->metrics.received, 1);
        pl_links_frame(s->all->links, s->key, data, len);
        return;
    }
    pl_link *l = meet(s, data, len);
    if (l) {
        settle(s, l);
        return;
    }
    pl_metric_add(s->all->metrics.refused, 1);
    pl_socket_close(s);
}

/* ---- who connects ------------------------------------------------------------------ */

static void put_off(pl_link *l, int64_t now)
{
    l->retry_ns = now + l->retry_pause_ns;
    l->retry_pause_ns = PL_MIN(2 * l->retry_pause_ns, MAX_RETRY);
}

typedef enum way {
    NONE,
    UNIX,
    TCP
} way;

/* How we connect to them; NONE: not at all, for they cannot be reached or are to connect
 * to us, which both sides know alike. */
static way choose(const pl_direct *d, uint64_t key, const pl_direct_address *to)
{
    bool lower = d->links->key < key;
    if (*to->net && !strcmp(to->net, d->own.net)) return lower ? UNIX : NONE;
    if (!*to->tcp || !d->pairs) return NONE;
    return lower || !*d->own.tcp ? TCP : NONE;
}

static pl_socket *begin_attempt(pl_link *l, bool tcp)
{
    pl_socket *s = l->attempt = pl_socket_make(l->all->direct, tcp);
    s->ours = true;
    s->key = l->key;
    s->link = l;
    return s;
}

static void call_unix(pl_link *l)
{
    int fd = connect_unix(l->key);
    if (fd < 0) return;
    pl_socket *s = begin_attempt(l, false);
    if (uv_pipe_open(&s->h.pipe, fd)) {
        close(fd);
        pl_socket_close(s);
    } else if (is_same_user(s)) {
        pl_socket_begin(s, NULL);
    } else {
        pl_socket_close(s);
    }
}

static void set_secret(pl_tls_secret *out, const char *answers, const char *calls)
{
    out->len = 2 * PL_COOKIE;
    memcpy(out->bytes, answers, PL_COOKIE);
    memcpy(out->bytes + PL_COOKIE, calls, PL_COOKIE);
}

static void on_connected(uv_connect_t *connect, int status)
{
    pl_socket *s = connect->data;
    pl_direct_address to;
    pl_tls_secret secret;
    if (s->closed) return;
    pl_tls *tls = NULL;
    if (!status && find_peer(s, &to)) {
        set_secret(&secret, to.cookie, s->all->own.cookie);
        tls = pl_tls_call(s->all->pairs, s->all->links->id, &secret);
    }
    if (!tls) {
        pl_socket_close(s);
        return;
    }
    uv_tcp_nodelay(&s->h.tcp, 1);
    pl_socket_begin(s, tls);
}

static void call_tcp(pl_link *l, const char *place)
{
    struct sockaddr_storage to;
    if (!read_place(place, &to)) return;
    pl_socket *s = begin_attempt(l, true);
    s->connect.data = s;
    if (uv_tcp_connect(&s->connect, &s->h.tcp, (struct sockaddr *)&to, on_connected))
        pl_socket_close(s);
}

void pl_direct_want(pl_link *l, int64_t now)
{
    pl_direct *d = l->all->direct;
    pl_direct_address to;
    if (!d || l->socket || l->attempt || now < l->retry_ns) return;
    if (!l->retry_pause_ns) l->retry_pause_ns = RETRY;
    put_off(l, now);
    if (!pl_presence_direct(l->all, l->key, &to)) return;
    way how = choose(d, l->key, &to);
    if (how == UNIX) call_unix(l);
    if (how == TCP) call_tcp(l, to.tcp);
}

/* ---- who is let in ----------------------------------------------------------------- */

static void find_secret(void *ctx, const char *name, pl_tls_secret *out)
{
    const pl_direct *d = ctx;
    pl_direct_address theirs;
    uint64_t key;
    if (pl_link_id_key(name, strlen(name), &key) &&
        pl_presence_direct(d->links, key, &theirs))
        set_secret(out, d->own.cookie, theirs.cookie);
}

static bool let_in(pl_socket *s)
{
    if (s->h.stream.type != UV_TCP) return is_same_user(s) && pl_socket_begin(s, NULL);
    uv_tcp_nodelay(&s->h.tcp, 1);
    pl_tls *tls = pl_tls_answer(s->all->pairs);
    return tls && pl_socket_begin(s, tls);
}

static void on_connection(uv_stream_t *listener, int status)
{
    pl_door *door = listener->data;
    pl_direct *d = door->all;
    if (status < 0) return;
    pl_socket *s = pl_socket_make(d, door == &d->tcp_door);
    door->n_strangers++;
    if (!uv_accept(listener, &s->h.stream) && door->n_strangers <= MAX_STRANGERS &&
        let_in(s))
        return;
    pl_metric_add(d->metrics.refused, 1);
    pl_socket_close(s);
}

/* ---- for links --------------------------------------------------------------------- */

pl_status pl_direct_send(pl_link *l, const char *frame, size_t len)
{
    PL_TRY(pl_socket_send(l->socket, frame, len));
    pl_metric_add(l->all->direct->metrics.sent, 1);
    return PL_OK;
}

void pl_direct_drained(pl_socket *s)
{
    if (s->live) pl_link_pump(s->link);
}

void pl_direct_closed(pl_socket *s)
{
    pl_direct *d = s->all;
    pl_link *l = s->link;
    int64_t now = pl_now_ns();
    if (s->live) count_live(d, -1);
    if (!s->live && !s->ours) door_of(s)->n_strangers--;
    if (!l) return;
    if (l->attempt == s) l->attempt = NULL;
    if (l->socket != s) return;
    l->socket = NULL;
    if (now - s->since_ns > MAX_RETRY) l->retry_pause_ns = RETRY;
    put_off(l, now);
    pl_link_rerouted(l);
}

void pl_direct_drop(pl_link *l)
{
    pl_socket *of[] = {l->socket, l->attempt};
    l->socket = l->attempt = NULL;
    for (int i = 0; i < PL_COUNT(of); i++) {
        if (!of[i]) continue;
        of[i]->link = NULL;
        pl_socket_close(of[i]);
    }
}

static bool is_overdue(const pl_socket *s, int64_t now)
{
    int64_t silence = PL_MAX(s->all->links->o.lost_after_ms * PL_MS, MIN_SILENCE);
    return s->live ? now - s->link->socket_heard_ns > silence
                   : now - s->since_ns > INTRODUCE;
}

void pl_direct_tick(pl_direct *d, int64_t now)
{
    for (pl_socket *s = d->sockets, *next; s; s = next) {
        next = s->next;
        if (!is_overdue(s, now)) continue;
        if (!s->live) pl_metric_add(d->metrics.refused, 1);
        pl_socket_close(s);
    }
}

/* ---- life -------------------------------------------------------------------------- */

static void open_metrics(pl_direct *d)
{
    d->metrics.sent =
        pl_metric_open(PL_COUNTER, "perilune_direct_frames_sent_total", "",
                       "Frames sent over sockets between processes.", NULL, 0);
    d->metrics.received =
        pl_metric_open(PL_COUNTER, "perilune_direct_frames_received_total", "",
                       "Frames received over sockets between processes.", NULL, 0);
    d->metrics.refused = pl_metric_open(
        PL_COUNTER, "perilune_direct_refused_total", "",
        "Sockets closed for what came, or did not come, over them.", NULL, 0);
    d->metrics.connected =
        pl_metric_open(PL_GAUGE, "perilune_direct_links", "",
                       "Links to other processes that have a socket.", NULL, 0);
}

/* Where Unix sockets cannot be had, there is still the bus. */
static void open_unix(pl_direct *d)
{
    find_net(d->own.net);
    d->unix_door.fd = *d->own.net ? listen_unix(d->links->key) : -1;
    if (d->unix_door.fd >= 0) return;
    pl_log(PL_LOG_WARN, "no Unix sockets to other processes: %s", strerror(errno));
    *d->own.net = 0;
}

pl_direct *pl_direct_open(pl_links *ls, const char *host, int port)
{
    pl_direct *d = pl_alloc(sizeof *d);
    d->links = ls;
    d->unix_door = d->tcp_door = (pl_door){.all = d, .fd = -1};
    pl_entropy_hex(d->own.cookie, PL_COOKIE);
    d->pairs = pl_tls_pairs_open(find_secret, d);
    if (!d->pairs || (host && listen_tcp(d, host, port) < 0)) {
        pl_direct_close(d);
        return NULL;
    }
    open_unix(d);
    open_metrics(d);
    return d;
}

static void open_door(pl_door *door, bool tcp)
{
    uv_loop_t *loop = pl_loop_uv(door->all->links->loop);
    if (door->fd < 0) return;
    int bad =
        tcp ? uv_tcp_init(loop, &door->h.tcp) : uv_pipe_init(loop, &door->h.pipe, 0);
    door->h.stream.data = door;
    door->open = true;
    if (!bad)
        bad = tcp ? uv_tcp_open(&door->h.tcp, door->fd)
                  : uv_pipe_open(&door->h.pipe, door->fd);
    if (!bad) {
        door->fd = -1;
        bad = uv_listen(&door->h.stream, BACKLOG, on_connection);
    }
    if (bad) pl_log(PL_LOG_WARN, "no sockets from other processes: %s", uv_strerror(bad));
}

void pl_direct_start(pl_direct *d)
{
    uv_prepare_init(pl_loop_uv(d->links->loop), &d->prepare);
    d->prepare.data = d;
    open_door(&d->unix_door, false);
    open_door(&d->tcp_door, true);
}

void pl_direct_stop(pl_direct *d)
{
    pl_socket_flush_all(d);
    while (d->sockets) pl_socket_close(d->sockets);
    uv_close((uv_handle_t *)&d->prepare, NULL);
    if (d->unix_door.open) uv_close((uv_handle_t *)&d->unix_door.h, NULL);
    if (d->tcp_door.open) uv_close((uv_handle_t *)&d->tcp_door.h, NULL);
}

void pl_direct_close(pl_direct *d)
{
    if (!d) return;
    if (d->unix_door.fd >= 0) close(d->unix_door.fd);
    if (d->tcp_door.fd >= 0) close(d->tcp_door.fd);
    pl_tls_pairs_close(d->pairs);
    pl_free(d->raw);
    pl_free(d);
}
