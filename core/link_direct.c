/* SPDX-License-Identifier: Apache-2.0
 *
 * link_direct.c - which links have a socket: who connects, who is let in, when again.
 *
 * Owns     the listener, and the rule who connects to whom.
 * Ignores  bytes (link_socket.c), frames (link.c).
 * Thread   io; open: lua
 *
 * The first frame on a socket, either way, introduces who says it, little-endian:
 *    0 "pl-link" and the number 1   8 id of who says it   16 id of whom it is said to
 *   24 the cookie in the hello of whom it is said to
 * Whoever connected speaks first. Until then it is a stranger: so many at a time, so long.
 */
#define _GNU_SOURCE
#include "link_direct.h"

#include "json.h"
#include "link_presence.h"
#include "link_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
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

/* What an abstract socket's name is unique in: this boot's network namespace. */
static void find_net(char out[PL_UNIX_NET])
{
    char boot[40] = "";
    struct stat st;
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    bool known = f && fgets(boot, sizeof boot, f) && !stat("/proc/self/ns/net", &st);
    if (f) fclose(f);
    boot[strcspn(boot, "\n")] = 0;
    if (known) snprintf(out, PL_UNIX_NET, "%s-%llu", boot, (unsigned long long)st.st_ino);
}

static socklen_t name_socket(struct sockaddr_un *out, uint64_t key)
{
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    int n = snprintf(out->sun_path + 1, sizeof out->sun_path - 1, "perilune-link-%016llx",
                     (unsigned long long)key);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

/* -1: refused. */
static int open_listener(uint64_t key)
{
    struct sockaddr_un at;
    socklen_t len = name_socket(&at, key);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    if (!bind(fd, (struct sockaddr *)&at, len) && !listen(fd, BACKLOG)) return fd;
    close(fd);
    return -1;
}

/* -1: nobody is there, or not now; a Unix socket never makes us wait. */
static int connect_to(uint64_t key)
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
    pl_buf_printf(out, "\"direct\":{\"cookie\":\"%s\",\"net\":\"%s\"}", d->own.cookie,
                  d->own.net);
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

bool pl_direct_parse(const pl_json *hello, pl_direct_address *out)
{
    const pl_json *said = pl_json_find(hello, "direct");
    *out = (pl_direct_address){0};
    if (!said) return true;
    return pl_json_kind(said) == PL_JSON_OBJECT &&
           take_text(said, "cookie", "0123456789abcdef", out->cookie,
                     sizeof out->cookie) &&
           strlen(out->cookie) == PL_COOKIE &&
           take_text(said, "net", "0123456789abcdef-", out->net, sizeof out->net);
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

/* From now on the link's frames travel here; a newer socket takes an older one's place. */
static void settle(pl_socket *s, pl_link *l)
{
    pl_direct *d = s->all;
    if (l->attempt == s) l->attempt = NULL;
    if (!s->ours) d->n_strangers--;
    pl_direct_drop(l);
    s->link = l;
    s->live = true;
    s->since_ns = l->socket_heard_ns = pl_now_ns();
    l->socket = s;
    count_live(d, 1);
    pl_log(PL_LOG_DEBUG, "the link to %016llx has a socket", (unsigned long long)l->key);
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

void pl_direct_want(pl_link *l, int64_t now)
{
    pl_direct *d = l->all->direct;
    pl_direct_address to;
    if (!d || l->socket || l->attempt || now < l->retry_ns || d->links->key > l->key)
        return;
    if (!l->retry_pause_ns) l->retry_pause_ns = RETRY;
    put_off(l, now);
    if (!pl_presence_direct(l->all, l->key, &to) || !*to.net ||
        strcmp(to.net, d->own.net) != 0)
        return;
    int fd = connect_to(l->key);
    if (fd < 0) return;
    pl_socket *s = l->attempt = pl_socket_make(d);
    s->ours = true;
    s->key = l->key;
    s->link = l;
    if (!pl_socket_begin(s, fd)) return;
    if (is_same_user(s))
        introduce(s, to.cookie);
    else
        pl_socket_close(s);
}

static void on_connection(uv_stream_t *listener, int status)
{
    pl_direct *d = listener->data;
    if (status < 0) return;
    pl_socket *s = pl_socket_make(d);
    d->n_strangers++;
    bool accepted = !uv_accept(listener, &s->h.stream);
    if (accepted && d->n_strangers <= MAX_STRANGERS && is_same_user(s)) {
        pl_socket_begin(s, -1);
        return;
    }
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
    if (!s->live && !s->ours) d->n_strangers--;
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

pl_direct *pl_direct_open(pl_links *ls)
{
    pl_direct *d = pl_alloc(sizeof *d);
    d->links = ls;
    pl_entropy_hex(d->own.cookie, PL_COOKIE);
    find_net(d->own.net);
    d->listen_fd = *d->own.net ? open_listener(ls->key) : -1;
    if (d->listen_fd < 0) {
        pl_log(PL_LOG_WARN, "no sockets to other processes: %s", strerror(errno));
        *d->own.net = 0;
    }
    open_metrics(d);
    return d;
}

void pl_direct_start(pl_direct *d)
{
    uv_loop_t *loop = pl_loop_uv(d->links->loop);
    uv_prepare_init(loop, &d->prepare);
    d->prepare.data = d;
    if (d->listen_fd < 0) return;
    uv_pipe_init(loop, &d->listener.pipe, 0);
    d->listener.stream.data = d;
    d->listens = true;
    if (uv_pipe_open(&d->listener.pipe, d->listen_fd) ||
        uv_listen(&d->listener.stream, BACKLOG, on_connection))
        pl_log(PL_LOG_WARN, "no sockets from other processes: it cannot listen");
}

void pl_direct_stop(pl_direct *d)
{
    pl_socket_flush_all(d);
    while (d->sockets) pl_socket_close(d->sockets);
    uv_close((uv_handle_t *)&d->prepare, NULL);
    if (d->listens) uv_close((uv_handle_t *)&d->listener, NULL);
}

void pl_direct_close(pl_direct *d)
{
    pl_free(d);
}
