/* SPDX-License-Identifier: Apache-2.0
 *
 * nats_stress.c - links over a real nats-server: restarted, stopped, asking for
 * passwords, keys and certificates. See link_world.h for what must hold throughout.
 *
 *   nats_stress [ROUNDS]           nats-server and openssl must be on the PATH
 *   nats_stress member URL NAME DIRECT   one process, that hears and says hello until it
 *                                        is killed
 */
#define _GNU_SOURCE /* memmem */
#include "link_world.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/nats_stress.XXXXXX";
static const char *self;
static int port;
static pid_t server;
static char url[64];
static int direct; /* 1: with sockets between the processes as well */

/* ---- programs ---------------------------------------------------------------------- */

static pid_t start(char *const *argv)
{
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* of the thread that started it */
    int null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    dup2(null, 1);
    if (!getenv("NATS_STRESS_LOUD")) dup2(null, 2);
    execvp(argv[0], argv);
    _exit(127);
}

static void end(pid_t pid, int number)
{
    kill(pid, number);
    MUST(waitpid(pid, NULL, 0) == pid);
}

static void must_run(const char *command)
{
    char *argv[] = {"sh", "-c", (char *)command, NULL};
    int status;
    MUST(waitpid(start(argv), &status, 0) > 0);
    MUST(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static const char *path_of(const char *name)
{
    static char paths[64][64];
    static int next;
    char *path = paths[next++ % 64];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

static void write_file(const char *name, const char *text)
{
    FILE *f = fopen(path_of(name), "w");
    MUST(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

static void find_port(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int s = socket(AF_INET, SOCK_STREAM, 0);
    MUST(s >= 0 && !bind(s, (struct sockaddr *)&at, len));
    MUST(!getsockname(s, (struct sockaddr *)&at, &len));
    port = ntohs(at.sin_port);
    close(s);
    snprintf(url, sizeof url, "nats://127.0.0.1:%d", port);
}

static void start_server(void)
{
    char *argv[] = {"nats-server", "-c", (char *)path_of("nats.conf"), NULL};
    server = start(argv);
}

static void configure(const char *more)
{
    char text[2048];
    snprintf(text, sizeof text,
             "listen: 127.0.0.1:%d\njetstream { store_dir: \"%s\" }\n%s\n", port,
             path_of("js"), more);
    write_file("nats.conf", text);
}

/* ---- what is done to the server ---------------------------------------------------- */

static void open_options(pl_bus_options *o)
{
    pl_bus_options_init(o);
    o->url = url;
    o->lost_after_ms = 3000;
    o->direct = direct;
}

static void test_plain(world *w)
{
    world_exchange(w, 60, 5 << 20);
    process_close(w, 2);
    world_push(w, 20);
    MUST(world_wait_lost(w, 0, 2, 1) == PL_LOST_GONE);
    process_open(w, 2);
    world_meet(w);
    world_exchange(w, 60, 100000);
}

/* Messages are on their way while the server dies; a pause, and no more. */
static void test_restart(world *w)
{
    usleep(3200000); /* the other test's process was missed; now all have settled */
    int before = world_lost(w);
    for (int i = 0; i < 2; i++) {
        w->goal += 200;
        world_push(w, 30);
        end(server, SIGKILL);
        world_push(w, 300);
        start_server();
        world_exchange(w, 20, 100000);
    }
    world_must_not_lose(w, before);
}

/* It takes our bytes and answers nothing. */
static void test_stuck(world *w)
{
    kill(server, SIGSTOP);
    world_push(w, 3000);
    kill(server, SIGCONT);
    world_meet(w);
    world_exchange(w, 100, 1 << 20);
}

static void run_round(uint64_t seed)
{
    static world w;
    pl_bus_options o;
    configure("");
    open_options(&o);
    world_open(&w, seed, 3, &o); /* before there is a server */
    start_server();
    world_meet(&w);
    test_plain(&w);
    test_restart(&w);
    test_stuck(&w);
    printf("seed %llu: lost was told %d times\n", (unsigned long long)seed,
           world_lost(&w));
    world_close(&w);
    end(server, SIGTERM);
}

/* ---- who may come ------------------------------------------------------------------ */

static bool is_there(world *w, int i)
{
    pl_lock(&w->lock);
    bool there = w->processes[i].there;
    pl_unlock(&w->lock);
    return there;
}

/* The first of them is let in, the second is not, until the server thinks otherwise. */
static void admit(const char *what, const char *conf, const pl_bus_options *good,
                  const pl_bus_options *bad)
{
    static world w;
    configure(conf);
    start_server();
    world_open(&w, 1, 2, good);
    world_meet(&w);
    world_exchange(&w, 10, 100000);
    process_close(&w, 1);
    w.options = *bad;
    process_open(&w, 1);
    usleep(1500000);
    MUST(!is_there(&w, 1) && is_there(&w, 0));
    world_close(&w);
    end(server, SIGTERM);
    printf("%s: let in, and kept out\n", what);
}

static void test_passwords(void)
{
    pl_bus_options good, bad;
    open_options(&good);
    open_options(&bad);
    good.user = bad.user = "ann";
    good.password = "secret";
    bad.password = "guess";
    admit("user", "authorization { user: ann, password: secret }", &good, &bad);
    open_options(&good);
    open_options(&bad);
    good.token = "s3cr3t";
    admit("token", "authorization { token: s3cr3t }", &good, &bad);
}

/* A seed as NATS writes it: base32 of prefix, 32 bytes and their CRC-16. */
static void write_seed(const char *name, uint64_t dice)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    unsigned char raw[36] = {0x90 | 160 >> 5, (160 & 31) << 3}; /* a seed; of a user */
    unsigned crc = 0, bits = 0, have = 0;
    char text[64], *at = text;
    for (int i = 2; i < 34; i++)
        raw[i] = (unsigned char)pl_random_at(dice, (uint64_t)i, 0);
    for (int i = 0; i < 34; i++) {
        crc ^= (unsigned)raw[i] << 8;
        for (int b = 0; b < 8; b++)
            crc = (crc << 1 ^ (crc & 0x8000 ? 0x1021 : 0)) & 0xffff;
    }
    raw[34] = (unsigned char)(crc & 255);
    raw[35] = (unsigned char)(crc >> 8);
    for (int i = 0; i < 36; i++) {
        bits = bits << 8 | raw[i];
        for (have += 8; have >= 5; have -= 5) *at++ = letters[bits >> (have - 5) & 31];
    }
    if (have) *at++ = letters[bits << (5 - have) & 31];
    *at = 0;
    write_file(name, text);
}

pl_status pl_nkey_public(const char *path, char out[57]);

static void test_nkey(void)
{
    pl_bus_options good, bad;
    char key[57], conf[128];
    write_seed("ann.nk", 1);
    write_seed("eve.nk", 2);
    MUST(pl_nkey_public(path_of("ann.nk"), key) == PL_OK);
    snprintf(conf, sizeof conf, "authorization { users: [ { nkey: %s } ] }", key);
    open_options(&good);
    open_options(&bad);
    good.nkey_seed = path_of("ann.nk");
    bad.nkey_seed = path_of("eve.nk");
    admit("nkey", conf, &good, &bad);
}

static void make_certificates(void)
{
    char command[2048];
    snprintf(
        command, sizeof command,
        "cd %s && for ca in ca stranger; do openssl req -x509 -newkey ec -pkeyopt "
        "ec_paramgen_curve:P-256 -nodes -keyout $ca.key -out $ca.pem -days 2 "
        "-subj /CN=$ca; done; "
        "echo subjectAltName=IP:127.0.0.1,DNS:localhost >san; "
        "make() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
        "-keyout $1.key -out $1.csr -subj /CN=$1 && openssl x509 -req -in $1.csr "
        "-CA $2.pem -CAkey $2.key -CAcreateserial -days 2 -extfile san -out $1.pem; }; "
        "make server ca && make client ca && make other stranger",
        dir);
    must_run(command);
}

static void test_tls(void)
{
    pl_bus_options good, bad;
    char conf[512];
    make_certificates();
    snprintf(conf, sizeof conf, "tls { cert_file: \"%s\", key_file: \"%s\" }",
             path_of("server.pem"), path_of("server.key"));
    open_options(&good);
    open_options(&bad);
    good.tls_ca = path_of("ca.pem");
    bad.tls_ca = path_of("stranger.pem");
    admit("TLS", conf, &good, &bad);
    snprintf(conf, sizeof conf,
             "tls { cert_file: \"%s\", key_file: \"%s\", ca_file: \"%s\", verify: true }",
             path_of("server.pem"), path_of("server.key"), path_of("ca.pem"));
    bad.tls_ca = good.tls_ca;
    good.tls_cert = path_of("client.pem");
    good.tls_key = path_of("client.key");
    bad.tls_cert = path_of("other.pem");
    bad.tls_key = path_of("other.key");
    admit("mutual TLS", conf, &good, &bad);
}

static void refuse(pl_bus_options *o, const char *why)
{
    pl_loop *none = NULL;
    const pl_bus_hooks hooks = {0};
    MUST(!pl_bus_connect(none, o, "00000000000000aa", &hooks));
    if (!strstr(pl_error_text(), why)) fprintf(stderr, "'%s'\n", pl_error_text());
    MUST(strstr(pl_error_text(), why));
}

static void refuse_links(const pl_bus_options *o, const char *why)
{
    MUST(!pl_links_open(NULL, o, "00000000000000aa", &(pl_links_hooks){0}));
    if (!strstr(pl_error_text(), why)) fprintf(stderr, "'%s'\n", pl_error_text());
    MUST(strstr(pl_error_text(), why));
}

/* What can never connect is said at once. */
static void test_refused(void)
{
    pl_bus_options o;
    open_options(&o);
    o.name_space = "a.b";
    refuse(&o, "namespace");
    open_options(&o);
    o.url = "http://127.0.0.1";
    refuse(&o, "nats://");
    o.url = " , ";
    refuse(&o, "no host");
    open_options(&o);
    o.nkey_seed = path_of("nats.conf");
    refuse(&o, "nkey");
    open_options(&o);
    o.tls_ca = path_of("none.pem");
    refuse(&o, "TLS CA");
    open_options(&o);
    o.tls_cert = path_of("client.pem");
    refuse(&o, "needs its key");
    open_options(&o);
    o.credentials = path_of("none.creds");
    refuse(&o, "credentials");
    open_options(&o);
    o.direct = 1;
    o.direct_host = "0.0.0.0";
    refuse_links(&o, "wanted an address");
    o.direct_host = "127.0.0.1";
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int taken = socket(AF_INET, SOCK_STREAM, 0);
    MUST(!bind(taken, (struct sockaddr *)&at, len) && !listen(taken, 1));
    MUST(!getsockname(taken, (struct sockaddr *)&at, &len));
    o.direct_port = ntohs(at.sin_port);
    refuse_links(&o, "in use");
    close(taken);
    o.direct_port = 70000;
    refuse_links(&o, "70000");
    o.direct_host = "no.such.host.invalid";
    o.direct_port = 0;
    refuse_links(&o, "no.such.host.invalid");
}

/* ---- the bucket -------------------------------------------------------------------- */

typedef struct asker {
    pl_loop *loop;
    pl_bus *bus;
    atomic_bool found;
} asker;

static void on_answer(void *ctx, const char *subject, const void *data, size_t len)
{
    asker *a = ctx;
    (void)subject;
    const char *wanted = "\"num_subjects\":2"; /* a key for each of two processes */
    if (memmem(data, len, "KV_perilune_perilune", 20) &&
        memmem(data, len, wanted, strlen(wanted)))
        atomic_store(&a->found, true);
}

static void on_nobody(void *ctx, const char *reply)
{
    (void)ctx;
    (void)reply;
}

static void on_bus(void *ctx, bool there)
{
    (void)ctx;
    (void)there;
}

static void on_round(void *ctx)
{
    (void)ctx;
}

static void on_stop(void *ctx)
{
    pl_bus_stop(((asker *)ctx)->bus);
}

static void ask(void *arg)
{
    asker *a = arg;
    pl_bus_send(a->bus, "$JS.API.STREAM.INFO.KV_perilune_perilune", "asker.answer", "",
                0);
}

/* Who is there can be read with NATS's own tools. */
static void test_bucket(void)
{
    static world w;
    pl_bus_options o;
    asker a = {0};
    const pl_bus_hooks hooks = {&a, on_answer, on_nobody, on_bus};
    configure("");
    start_server();
    open_options(&o);
    world_open(&w, 1, 2, &o);
    world_meet(&w);
    a.loop = pl_loop_open(&(pl_loop_hooks){&a, on_round, on_stop, on_round});
    a.bus = pl_bus_connect(a.loop, &o, "00000000000000aa", &hooks);
    pl_bus_listen(a.bus, "asker.answer");
    pl_bus_join(a.bus);
    for (int i = 0; i < 600 && !atomic_load(&a.found); i++) {
        pl_loop_call(a.loop, ask, &a);
        usleep(50000);
    }
    MUST(atomic_load(&a.found));
    pl_loop_stop(a.loop);
    pl_loop_put(a.loop);
    pl_bus_close(a.bus);
    world_close(&w);
    end(server, SIGTERM);
    printf("the bucket holds who is there\n");
}

/* ---- kill -9 ----------------------------------------------------------------------- */

static void run_member(char **argv)
{
    static world w;
    pl_bus_options o;
    pl_bus_options_init(&o);
    o.url = argv[2];
    o.direct = atoi(argv[4]);
    w.seed = strtoull(argv[3], NULL, 10);
    w.options = o;
    w.n = 2;
    pl_mutex_init(&w.lock);
    process_open(&w, 1);
    for (;;) pause();
}

/* Begins a member, and holds a link to it. */
static pid_t start_member(world *w, int number)
{
    char seed[16];
    w->seed = (uint64_t)number;
    snprintf(seed, sizeof seed, "%d", number);
    snprintf(w->processes[1].id, 17, "%08x%04x%04x", (unsigned)number, 1, 2);
    char *argv[] = {(char *)self, "member", url, seed, direct ? "1" : "0", NULL};
    pid_t pid = start(argv);
    for (int k = 0; k < 20000 && !w->processes[0].ways[1].link; k++) world_push(w, 1);
    MUST(w->processes[0].ways[1].link);
    return pid;
}

static void open_alone(world *w, int lost_after_ms)
{
    pl_bus_options o;
    configure("");
    start_server();
    open_options(&o);
    o.lost_after_ms = lost_after_ms;
    *w = (world){.n = 2, .options = o};
    pl_mutex_init(&w->lock);
    process_open(w, 0);
}

/* One that is stopped keeps its connection; it is lost by its silence, and may come
 * back. */
static void test_stopped(void)
{
    static world w;
    open_alone(&w, 1000);
    pid_t pid = start_member(&w, 99);
    kill(pid, SIGSTOP);
    MUST(world_wait_lost(&w, 0, 1, 1) == PL_LOST_SILENT);
    MUST(world_wait_gone(&w, 0, 1) == PL_LOST_SILENT);
    kill(pid, SIGCONT);
    while (!w.processes[0].ways[1].link) world_push(&w, 10);
    world_push(&w, 1500);
    world_must_not_lose(&w, 1);
    end(pid, SIGKILL);
    MUST(world_wait_lost(&w, 0, 1, 2) == PL_LOST_GONE);
    world_close(&w);
    end(server, SIGTERM);
    printf("SIGSTOP: lost, and back\n");
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A process that dies says nothing: the next frame to it does. */
static void test_killed(int times)
{
    static world w;
    double ms[64];
    open_alone(&w, 3000);
    for (int i = 0; i < times; i++) {
        pid_t pid = start_member(&w, 100 + i);
        world_push(&w, 100 + (int)(pl_random_at(9, (uint64_t)i, 0) % 50));
        int64_t began = pl_now_ns();
        end(pid, SIGKILL);
        MUST(world_wait_lost(&w, 0, 1, i + 1) == PL_LOST_GONE);
        ms[i] = (double)(pl_now_ns() - began) / 1e6;
    }
    qsort(ms, (size_t)times, sizeof *ms, by_size);
    printf("kill -9 is noticed after %.1f ms (median), %.1f ms (longest of %d)\n",
           ms[times / 2], ms[times - 1], times);
    world_close(&w);
    end(server, SIGTERM);
}

int main(int argc, char **argv)
{
    pl_log_level(getenv("NATS_STRESS_LOUD") ? PL_LOG_INFO : PL_LOG_ERROR + 1);
    if (argc == 5 && !strcmp(argv[1], "member")) run_member(argv);
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    self = argv[0];
    setvbuf(stdout, NULL, _IOLBF, 0);
    MUST(mkdtemp(dir));
    find_port();
    test_bucket();
    test_killed(20);
    test_stopped();
    test_passwords();
    test_nkey();
    test_tls();
    test_refused();
    for (int i = 0; i < rounds; i++) run_round((uint64_t)i + 1);
    direct = 1;
    test_killed(20);
    test_stopped();
    for (int i = 0; i < rounds; i++) run_round((uint64_t)i + 1);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", dir);
    must_run(command);
    return 0;
}
