/* SPDX-License-Identifier: Apache-2.0
 *
 * direct_stress.c - links over sockets of their own, beside a bus that loses messages:
 * sockets cut in the middle of messages, the bus away, a process killed, strangers who
 * connect. See link_world.h for what must hold throughout.
 *
 *   direct_stress [ROUNDS [FIRST_SEED]]
 */
#include "link_socket.h"
#include "link_world.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static double metric(int kind, const char *name)
{
    return pl_metric_value(pl_metric_open(kind, name, "", "", NULL, 0));
}

static double n_sent(void)
{
    return metric(PL_COUNTER, "perilune_direct_frames_sent_total");
}

static double n_refused(void)
{
    return metric(PL_COUNTER, "perilune_direct_refused_total");
}

static double n_links(void)
{
    return metric(PL_GAUGE, "perilune_direct_links");
}

/* Each end of each link has a socket. */
static void wait_connected(world *w, int n_ends)
{
    int64_t until = pl_now_ns() + PATIENCE_MS * INT64_C(1000000);
    while (n_links() != n_ends) {
        MUST(pl_now_ns() < until);
        world_push(w, 10);
    }
}

/* How often the first process lost that one. */
static int n_lost(world *w, int other)
{
    pl_lock(&w->lock);
    int n = w->processes[0].ways[other].n_lost;
    pl_unlock(&w->lock);
    return n;
}

/* ---- cut --------------------------------------------------------------------------- */

static void cut_all(void *arg)
{
    const pl_direct *d = ((process *)arg)->links->direct;
    for (const pl_socket *s = d->sockets; s; s = s->next) {
        uv_os_fd_t fd;
        if (!uv_fileno((const uv_handle_t *)&s->h, &fd)) shutdown(fd, SHUT_RDWR);
    }
}

/* Whatever was on its way comes over the bus, or a new socket: nothing is lost, nothing
 * comes twice. */
static void test_cut(world *w)
{
    int before = world_lost(w);
    for (uint64_t i = 0; i < 12; i++) {
        w->goal += 40;
        w->max_bytes = i % 2 ? 5 << 20 : 20000;
        world_push(w, (int)(pl_random_at(w->seed, i, 1) % 60));
        process *p = &w->processes[i % (uint64_t)w->n];
        pl_loop_call(p->loop, cut_all, p);
        world_exchange(w, 1, w->max_bytes);
    }
    world_must_not_lose(w, before);
}

/* ---- the bus is away --------------------------------------------------------------- */

/* For longer than its patience; who has a socket does not mind. */
static void test_away(world *w, pl_hub *hub, int n_ends)
{
    int before = world_lost(w), lost = n_lost(w, 1);
    pl_hub_away(hub, 1);
    world_push(w, w->options.patience_ms + 500);
    world_exchange(w, 50, 1 << 20);
    world_must_not_lose(w, before);
    for (int i = 1; i < w->n; i++) MUST(w->processes[0].ways[i].why == 0);
    process *p = &w->processes[0]; /* now neither reaches: that is a loss */
    pl_loop_call(p->loop, cut_all, p);
    MUST(world_wait_lost(w, 0, 1, lost + 1) == PL_LOST_BUS);
    MUST(world_wait_gone(w, 0, 1) == PL_LOST_BUS);
    pl_hub_away(hub, 0);
    world_meet(w);
    world_exchange(w, 30, 100000);
    wait_connected(w, n_ends);
}

/* ---- who connects without being asked ---------------------------------------------- */

static int join_unix(const char *id)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int n = snprintf(to.sun_path + 1, sizeof to.sun_path - 1, "perilune-link-%s", id);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(fd >= 0);
    while (connect(fd, (struct sockaddr *)&to,
                   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n)))
        MUST(errno == EAGAIN || errno == EINTR);
    return fd;
}

static int join_tcp(const char *place)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)atoi(strchr(place, ':') + 1));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(fd >= 0);
    MUST(!connect(fd, (struct sockaddr *)&to, sizeof to));
    return fd;
}

/* Connects to the first process. */
static int join(const world *w)
{
    const process *p = &w->processes[0];
    return w->far ? join_tcp(p->links->direct->own.tcp) : join_unix(p->id);
}

/* Until they have closed it; what they say is not for a stranger. */
static void must_be_closed(int fd)
{
    char answer[64];
    struct pollfd p = {.fd = fd, .events = POLLIN};
    MUST(poll(&p, 1, PATIENCE_MS) == 1);
    ssize_t n = read(fd, answer, sizeof answer);
    if (n == 7) n = read(fd, answer, sizeof answer); /* TLS says why not */
    MUST(n <= 0);
    close(fd);
}

static void put(char *at, uint64_t v, int n)
{
    for (int i = 0; i < n; i++) at[i] = (char)(v >> (8 * i));
}

/* An introduction in which one thing is wrong. */
static void test_impostor(const world *w, int wrong)
{
    const pl_links *to = w->processes[0].links, *as = w->processes[1].links;
    char text[4 + 24 + PL_COOKIE];
    put(text, sizeof text - 4, 4);
    memcpy(text + 4, "pl-link\1", 8);
    put(text + 12, as->key, 8);
    put(text + 20, to->key, 8);
    memcpy(text + 28, to->direct->own.cookie, PL_COOKIE);
    if (wrong == 0) put(text, 0x7fffffff, 4);
    if (wrong == 1) text[4 + 7] = 2;
    if (wrong == 2) put(text + 12, 0xabcdef, 8); /* one that nobody knows */
    if (wrong == 3) put(text + 20, as->key, 8);
    if (wrong == 4) text[28 + PL_COOKIE - 1] ^= 1;
    if (wrong == 5) put(text, 0, 4);
    if (wrong == 6) put(text, sizeof text - 5, 4);
    int fd = join(w);
    MUST(write(fd, text, sizeof text) == sizeof text);
    must_be_closed(fd);
}

static void find_nothing(void *ctx, const char *name, pl_tls_secret *out)
{
    (void)ctx;
    (void)name;
    out->len = 0;
}

/* Who knows all but one of the cookies gets no further than shaking hands. */
static void test_wrong_secret(const world *w)
{
    const pl_links *to = w->processes[0].links, *as = w->processes[1].links;
    pl_tls_pairs *pairs = pl_tls_pairs_open(find_nothing, NULL);
    pl_tls_secret secret = {.len = 2 * PL_COOKIE};
    pl_buf hello = {0};
    char why[200];
    memcpy(secret.bytes, to->direct->own.cookie, PL_COOKIE);
    memcpy(secret.bytes + PL_COOKIE, as->direct->own.cookie, PL_COOKIE);
    secret.bytes[secret.len - 1] ^= 1;
    pl_tls *s = pl_tls_call(pairs, as->id, &secret);
    MUST(pl_tls_shake(s, why, sizeof why) == 0);
    pl_tls_unsent(s, &hello);
    int fd = join(w);
    MUST(write(fd, hello.data, hello.len) == (ssize_t)hello.len);
    must_be_closed(fd);
    pl_buf_fini(&hello);
    pl_tls_close(s);
    pl_tls_pairs_close(pairs);
}

static void test_strangers(world *w)
{
    enum {
        CROWD = 200
    };
    double before = n_refused();
    int before_lost = world_lost(w), crowd[CROWD];
    for (int i = 0; i < 7; i++) test_impostor(w, i);
    if (w->far) test_wrong_secret(w);
    for (uint64_t i = 0; i < 50; i++) {
        char noise[300];
        for (size_t k = 0; k < sizeof noise; k++)
            noise[k] = (char)pl_random_at(w->seed, i, k);
        if (i % 2) put(noise, i * 2, 4);
        int fd = join(w);
        MUST(write(fd, noise, sizeof noise) == sizeof noise);
        must_be_closed(fd);
    }
    for (int i = 0; i < CROWD; i++) crowd[i] = join(w);
    world_exchange(w, 20, 100000);
    for (int i = 0; i < CROWD; i++) must_be_closed(crowd[i]); /* they said nothing */
    MUST(n_refused() >= before + 7 + 50 + CROWD);
    world_must_not_lose(w, before_lost);
}

/* ---- rounds ------------------------------------------------------------------------ */

static void test_kill(world *w, int n_ends)
{
    int last = w->n - 1, before = n_lost(w, last);
    process_close(w, last);
    world_push(w, 20);
    MUST(world_wait_lost(w, 0, last, before + 1) == PL_LOST_GONE);
    MUST(world_wait_gone(w, 0, last) == PL_LOST_LEFT);
    process_open(w, last);
    world_meet(w);
    world_exchange(w, 30, 100000);
    wait_connected(w, n_ends);
}

static void run_round(uint64_t seed, const char *host)
{
    static world w;
    pl_bus_options o;
    pl_bus_options_init(&o);
    o.hub = pl_hub_open();
    o.lost_after_ms = 3000;
    o.patience_ms = 2000;
    o.direct = 1;
    o.direct_host = host;
    world_open(&w, seed, seed % 2 ? 2 : 3, &o);
    int n_ends = w.n * (w.n - 1);
    world_meet(&w);
    pl_hub_faults(o.hub, seed, 50, 50, 50);
    world_exchange(&w, 60, 5 << 20);
    wait_connected(&w, n_ends);
    double before = n_sent();
    world_exchange(&w, 100, 5 << 20);
    MUST(n_sent() >= before + 100 * n_ends);
    test_cut(&w);
    pl_hub_faults(o.hub, seed, 0, 0, 0);
    wait_connected(&w, n_ends);
    test_strangers(&w);
    test_kill(&w, n_ends);
    test_away(&w, o.hub, n_ends);
    printf("seed %llu, %s: %d processes, lost was told %d times\n",
           (unsigned long long)seed, host ? "TCP" : "Unix", w.n, world_lost(&w));
    world_close(&w);
    MUST(n_links() == 0);
    pl_hub_close(o.hub);
}

int main(int argc, char **argv)
{
    pl_log_level(getenv("DIRECT_STRESS_LOUD") ? PL_LOG_DEBUG : PL_LOG_ERROR + 1);
    setvbuf(stdout, NULL, _IOLBF, 0);
    int rounds = argc > 1 ? atoi(argv[1]) : 4;
    uint64_t first = argc > 2 ? (uint64_t)atoll(argv[2]) : 1;
    for (int i = 0; i < rounds; i++) {
        run_round(first + (uint64_t)i, NULL);
        run_round(first + (uint64_t)i, "127.0.0.1");
    }
    return 0;
}
