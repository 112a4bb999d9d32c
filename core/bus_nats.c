/* SPDX-License-Identifier: Apache-2.0
 *
 * bus_nats.c - a bus over NATS, by nats.c.
 *
 * Owns     the connection, a thread that connects and publishes, what waits for it.
 * Ignores  what messages say; JetStream.
 * Thread   said with each function; nats.c's own threads only push into the line.
 *
 *   io --send--> out --publisher--> nats.c --> server --> nats.c's threads --push--> io
 *
 * nats.c holds the connection's lock while it connects again, for as long as a server
 * that does not answer lets it, and a publish waits for that lock, or for a full socket.
 * So io never calls it: the publisher does.
 *
 *   unconnected --Connect--> connected <--lost, found--> reconnecting --refused--> closed
 *     |      ^                                                                        |
 *     +refused+------------------------anew, after a pause----------------------------+
 */
#include "bus_own.h"

#include <nats/nats.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CONNECT_MS = 2000,
    RECONNECT_MS = 100,
    RECONNECT_JITTER_MS = 50,
    PING_MS = 600, /* a server that does not answer two of them is away */
    WRITE_MS = 1000,
    RETRY_MS = 100, /* before the next attempt to connect; doubled each time, up to: */
    RETRY_MAX_MS = 1000,
    WARN_MS = 1000, /* between two warnings that it is away; doubled each time, up to: */
    WARN_MAX_MS = 60000,
    CALLBACK_MS = 500, /* a callback waits for room so long */
    FAREWELL_MS = 500, /* what was sent before the end has so long to go out */
    CLOSE_MS = 5000,
    PENDING = 65536, /* messages that nats.c keeps for us, then it drops */
    PENDING_BYTES = 64 << 20,
    WHY = 256, /* bytes of a reason */
    MAX_URLS = 32
};

typedef struct nats {
    pl_bus bus;
    natsOptions *options;
    pthread_t thread;
    bool started;
    atomic_llong max;
    pl_mutex lock; /* over: */
    pl_bus_line out;
    bool asleep, leaving;
    bool closed;           /* nats.c has given the connection up */
    bool connected;        /* there is one, and no callback said otherwise */
    char why[WHY];         /* nats.c's last word on why there is none; "": none */
    int64_t away_ns;       /* since when there is none */
    int64_t warn_ns;       /* when to warn of that next */
    int warn_ms;           /* and how much later again */
    uint64_t n_reconnects; /* as of when io was last told that the bus is there */
    int n_live; /* connections and subscriptions whose callbacks may still come */
    int64_t logged_ns;
    char *url; /* the publisher's */
} nats;

/* ---- the library: opened by the first bus, closed by the last ---------------------- */

static pl_mutex library = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER};
static int n_buses;

static void take_library(void)
{
    pl_lock(&library);
    if (!n_buses++) {
        nats_Open(-1);
        nats_SetMessageDeliveryPoolSize(1);
    }
    pl_unlock(&library);
}

static void put_library(void)
{
    pl_lock(&library);
    if (!--n_buses) nats_CloseAndWait(CLOSE_MS);
    pl_unlock(&library);
}

/* ---- what nats.c calls, on its threads --------------------------------------------- */

static void complain(nats *n, const char *what, const char *why)
{
    int64_t now = pl_now_ns();
    pl_lock(&n->lock);
    bool quiet = n->logged_ns && now - n->logged_ns < INT64_C(1000000000);
    if (!quiet) n->logged_ns = now;
    pl_unlock(&n->lock);
    if (!quiet) pl_log(PL_LOG_WARN, "NATS: %s: %s", what, why ? why : "");
}

static uint64_t count_reconnects(natsConnection *nc)
{
    natsStatistics *stats = NULL;
    uint64_t in, in_bytes, out, out_bytes, reconnects = 0;
    if (natsStatistics_Create(&stats) == NATS_OK &&
        natsConnection_GetStats(nc, stats) == NATS_OK)
        natsStatistics_GetCounts(stats, &in, &in_bytes, &out, &out_bytes, &reconnects);
    natsStatistics_Destroy(stats);
    return reconnects;
}

/* The server is back, and those who are not yet are missed; io, which would have
 * patience with them, has not been told of it: another thread of nats.c does that. */
static bool is_premature(nats *n, natsConnection *nc)
{
    uint64_t now = count_reconnects(nc);
    pl_lock(&n->lock);
    bool premature = now != n->n_reconnects || !n->connected;
    pl_unlock(&n->lock);
    return premature;
}

static void on_message(natsConnection *nc, natsSubscription *sub, natsMsg *msg, void *arg)
{
    nats *n = arg;
    (void)sub;
    int kind = natsMsg_IsNoResponders(msg) ? PL_ITEM_NOBODY : PL_ITEM_MESSAGE;
    if (kind == PL_ITEM_NOBODY && is_premature(n, nc)) {
        natsMsg_Destroy(msg);
        return;
    }
    int len = natsMsg_GetDataLength(msg);
    pl_bus_item *item = pl_bus_item_open(kind, natsMsg_GetSubject(msg), NULL,
                                         natsMsg_GetData(msg), len > 0 ? (size_t)len : 0);
    natsMsg_Destroy(msg);
    pl_bus_push(&n->bus, item, CALLBACK_MS);
}

/* why: where it is not there; NULL or "": nats.c does not say. */
static void tell(nats *n, bool there, const char *why)
{
    pl_lock(&n->lock);
    if (!there && n->connected) {
        n->away_ns = n->warn_ns = pl_now_ns();
        n->warn_ms = WARN_MS;
        n->why[0] = 0;
    }
    n->connected = there;
    if (why && *why) snprintf(n->why, sizeof n->why, "%s", why);
    pl_wake(&n->lock); /* the publisher: it warns */
    pl_unlock(&n->lock);
    int kind = there ? PL_ITEM_HERE : PL_ITEM_AWAY;
    pl_bus_push(&n->bus, pl_bus_item_open(kind, "", NULL, NULL, 0), 0);
}

static void on_connected(natsConnection *nc, void *arg)
{
    nats *n = arg;
    int64_t max = natsConnection_GetMaxPayload(nc);
    char url[512], place[PL_BUS_PLACE];
    if (max > 0) atomic_store(&n->max, max);
    if (natsConnection_GetConnectedUrl(nc, url, sizeof url) == NATS_OK) {
        pl_bus_place(url, strlen(url), place);
        pl_log(PL_LOG_INFO, "the bus is connected: %s", place);
    }
    tell(n, true, NULL);
    /* Only now: io hears of what comes from here on after it was told. */
    uint64_t reconnects = count_reconnects(nc);
    pl_lock(&n->lock);
    n->n_reconnects = reconnects;
    pl_unlock(&n->lock);
}

static void on_disconnected(natsConnection *nc, void *arg)
{
    const char *why = NULL;
    natsConnection_GetLastError(nc, &why);
    tell(arg, false, why);
}

static void one_less(void *arg)
{
    nats *n = arg;
    pl_lock(&n->lock);
    n->n_live--;
    pl_wake(&n->lock);
    pl_unlock(&n->lock);
}

static void on_closed(natsConnection *nc, void *arg)
{
    nats *n = arg;
    const char *why = NULL;
    natsConnection_GetLastError(nc, &why);
    pl_lock(&n->lock);
    n->closed = true;
    pl_unlock(&n->lock);
    tell(n, false, why);
    one_less(n);
}

static void on_error(natsConnection *nc, natsSubscription *sub, natsStatus status,
                     void *arg)
{
    (void)nc;
    if (status == NATS_SLOW_CONSUMER && sub) pl_metric_add(((nats *)arg)->bus.dropped, 1);
    complain(arg, "trouble", natsStatus_GetText(status));
}

/* ---- the publisher ----------------------------------------------------------------- */

static bool subscribe(nats *n, natsConnection *nc, natsSubscription **subs)
{
    for (int i = 0; i < n->bus.n_subjects; i++) {
        natsStatus s =
            natsConnection_Subscribe(&subs[i], nc, n->bus.subjects[i], on_message, n);
        if (s != NATS_OK) {
            complain(n, "cannot listen", natsStatus_GetText(s));
            return false;
        }
        pl_lock(&n->lock);
        n->n_live++;
        pl_unlock(&n->lock);
        natsSubscription_SetOnCompleteCB(subs[i], one_less, n);
        natsSubscription_SetPendingLimits(subs[i], PENDING, PENDING_BYTES);
    }
    return true;
}

/* What nats.c says without the place in its source, "(conn.c:1905): ". */
static const char *last_error(void)
{
    const char *text = nats_GetLastError(NULL), *at = text ? strstr(text, "): ") : NULL;
    return text && *text == '(' && at ? at + 3 : text;
}

/* NULL: the server refuses us, or there is none that could be. */
static natsConnection *connect_now(nats *n, natsSubscription **subs)
{
    natsConnection *nc = NULL;
    pl_lock(&n->lock);
    n->closed = false;
    n->n_live++; /* until on_closed */
    pl_unlock(&n->lock);
    if (natsConnection_Connect(&nc, n->options) != NATS_OK) {
        tell(n, false, last_error());
        one_less(n);
        return NULL;
    }
    if (!subscribe(n, nc, subs))
        natsConnection_Close(nc);
    else
        on_connected(nc, n);
    return nc;
}

static void disconnect(nats *n, natsConnection *nc, natsSubscription **subs)
{
    natsConnection_Close(nc);
    for (int i = 0; i < n->bus.n_subjects; i++) natsSubscription_Destroy(subs[i]);
    natsConnection_Destroy(nc);
    int64_t until = pl_now_ns() + CLOSE_MS * INT64_C(1000000), left;
    pl_lock(&n->lock);
    while (n->n_live > 0 && (left = until - pl_now_ns()) > 0)
        pl_wait(&n->lock, (int)(left / 1000000) + 1);
    pl_unlock(&n->lock);
}

static void publish(nats *n, natsConnection *nc, const pl_bus_item *item)
{
    natsStatus s =
        *item->reply
            ? natsConnection_PublishRequest(nc, item->subject, item->reply, item->data,
                                            (int)item->len)
            : natsConnection_Publish(nc, item->subject, item->data, (int)item->len);
    if (s != NATS_OK && s != NATS_INSUFFICIENT_BUFFER)
        complain(n, "cannot publish", natsStatus_GetText(s));
}

/* Warns, less and less often, while the bus is away. To look for the reason may take
 * seconds, so the lock is not held meanwhile. */
static void warn_away(nats *n)
{
    char why[WHY];
    int64_t now = pl_now_ns();
    pl_lock(&n->lock);
    bool due = !n->connected && !n->leaving && now >= n->warn_ns;
    if (due) {
        n->warn_ns = now + n->warn_ms * INT64_C(1000000);
        n->warn_ms = PL_MIN(2 * n->warn_ms, WARN_MAX_MS);
    }
    int seconds = (int)((now - n->away_ns) / INT64_C(1000000000));
    snprintf(why, sizeof why, "%s", n->why);
    pl_unlock(&n->lock);
    if (!due) return;
    pl_buf text = {0};
    pl_bus_diagnose(n->url, *why ? why : "the connection was lost", &text);
    if (seconds)
        pl_log(PL_LOG_WARN, "the bus has been away for %d s: %.*s", seconds,
               (int)text.len, text.data);
    else
        pl_log(PL_LOG_WARN, "the bus is away: %.*s; trying again", (int)text.len,
               text.data);
    pl_buf_fini(&text);
}

/* The next to publish; NULL: it is time to leave, or to connect anew. */
static pl_bus_item *next_item(nats *n)
{
    pl_bus_item *item = NULL;
    pl_lock(&n->lock);
    while (!n->closed && !(item = pl_bus_line_pop(&n->out)) && !n->leaving) {
        if (!n->connected) {
            pl_unlock(&n->lock);
            warn_away(n);
            pl_lock(&n->lock);
            if (n->closed || n->leaving || n->out.first) continue;
        }
        n->asleep = true;
        pl_wait(&n->lock, 1000);
        n->asleep = false;
    }
    pl_unlock(&n->lock);
    return item;
}

static bool pause_or_leave(nats *n, int ms)
{
    int64_t until = pl_now_ns() + ms * INT64_C(1000000), left;
    pl_lock(&n->lock);
    while (!n->leaving && (left = until - pl_now_ns()) > 0)
        pl_wait(&n->lock, (int)(left / 1000000) + 1);
    bool leave = n->leaving;
    pl_unlock(&n->lock);
    return leave;
}

static void *run_publisher(void *arg)
{
    nats *n = arg;
    pl_thread_begin(PL_THREAD_OTHER, "pl-nats");
    bool leave = false;
    for (int pause = RETRY_MS; !leave; pause = PL_MIN(2 * pause, RETRY_MAX_MS)) {
        natsSubscription *subs[PL_BUS_SUBJECTS] = {NULL};
        int64_t began = pl_now_ns(), until = 0;
        natsConnection *nc = connect_now(n, subs);
        for (pl_bus_item *item; nc && (item = next_item(n));) {
            publish(n, nc, item);
            pl_free(item);
            pl_lock(&n->lock);
            if (n->leaving && !until)
                until = pl_now_ns() + FAREWELL_MS * INT64_C(1000000);
            pl_unlock(&n->lock);
            if (until && pl_now_ns() > until) break;
        }
        if (nc) disconnect(n, nc, subs);
        warn_away(n);
        if (pl_now_ns() - began > CLOSE_MS * INT64_C(1000000)) pause = RETRY_MS;
        leave = pause_or_leave(n, pause);
    }
    nats_ReleaseThreadMemory();
    return NULL;
}

/* ---- the form of a bus ------------------------------------------------------------- */

static void join(pl_bus *b)
{
    nats *n = (nats *)b;
    if (pthread_create(&n->thread, NULL, run_publisher, n)) {
        fputs("perilune: no thread to be had\n", stderr);
        abort();
    }
    n->started = true;
}

static void stop(pl_bus *b)
{
    nats *n = (nats *)b;
    pl_lock(&n->lock);
    n->leaving = true;
    pl_wake(&n->lock);
    pl_unlock(&n->lock);
}

static void close_nats(pl_bus *b)
{
    nats *n = (nats *)b;
    if (n->started) pthread_join(n->thread, NULL);
    natsOptions_Destroy(n->options);
    put_library();
    pl_bus_line_fini(&n->out);
    pl_mutex_fini(&n->lock);
    pl_free(n->url);
}

static pl_status send_item(pl_bus *b, const char *subject, const char *reply,
                           const void *data, size_t len)
{
    nats *n = (nats *)b;
    pl_bus_item *item = pl_bus_item_open(PL_ITEM_MESSAGE, subject, reply, data, len);
    pl_lock(&n->lock);
    bool fits = n->connected && pl_bus_line_fits(&n->out, len), wake = false;
    if (fits) {
        pl_bus_line_push(&n->out, item);
        wake = n->asleep;
        n->asleep = false;
    }
    pl_unlock(&n->lock);
    if (wake) pl_wake(&n->lock);
    if (!fits) pl_free(item);
    return fits ? PL_OK : PL_EAGAIN;
}

static size_t max_bytes(const pl_bus *b)
{
    return (size_t)atomic_load(&((const nats *)b)->max);
}

/* ---- options ----------------------------------------------------------------------- */

static pl_status set_urls(natsOptions *o, const char *url, bool *tls)
{
    char *copy = pl_strndup(url, strlen(url)), *save = NULL;
    const char *urls[MAX_URLS];
    int n = 0;
    pl_status status = PL_OK;
    for (char *at = strtok_r(copy, ", ", &save); at; at = strtok_r(NULL, ", ", &save)) {
        const char *scheme = strstr(at, "://");
        if (n == MAX_URLS) status = pl_fail(PL_EINVAL, "more than %d servers", MAX_URLS);
        if (scheme && strncmp(at, "nats://", 7) && strncmp(at, "tls://", 6))
            status = pl_fail(PL_EINVAL, "bus '%.100s': wanted nats://HOST:PORT", at);
        if (scheme && !scheme[3])
            status = pl_fail(PL_EINVAL, "bus '%.100s' names no host", at);
        if (status < 0) break;
        *tls = *tls || !strncmp(at, "tls://", 6);
        urls[n++] = at;
    }
    if (status == PL_OK && !n)
        status = pl_fail(PL_EINVAL, "bus '%.100s' names no host", url);
    if (status == PL_OK && natsOptions_SetServers(o, urls, n) != NATS_OK)
        status = pl_fail(PL_EINVAL, "bus '%.100s': %s", url, nats_GetLastError(NULL));
    pl_free(copy);
    return status;
}

static pl_status checked(natsStatus s, const char *what, const char *value)
{
    if (s == NATS_OK) return PL_OK;
    return pl_fail(PL_EINVAL, "%s '%.200s' cannot be used: %s", what, value,
                   nats_GetLastError(NULL));
}

static pl_status readable(const char *what, const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f) return pl_fail(PL_EINVAL, "%s '%.200s' cannot be read", what, path);
    fclose(f);
    return PL_OK;
}

static pl_status set_identity(natsOptions *o, const pl_bus_options *from)
{
    char key[PL_NKEY_LEN + 1];
    if (from->user)
        PL_TRY(checked(
            natsOptions_SetUserInfo(o, from->user, from->password ? from->password : ""),
            "user", from->user));
    if (from->token)
        PL_TRY(checked(natsOptions_SetToken(o, from->token), "token", "..."));
    if (from->nkey_seed) {
        PL_TRY(pl_nkey_public(from->nkey_seed, key));
        PL_TRY(checked(natsOptions_SetNKeyFromSeed(o, key, from->nkey_seed), "nkey seed",
                       from->nkey_seed));
    }
    if (from->credentials) {
        PL_TRY(readable("credentials", from->credentials));
        PL_TRY(
            checked(natsOptions_SetUserCredentialsFromFiles(o, from->credentials, NULL),
                    "credentials", from->credentials));
    }
    return PL_OK;
}

static pl_status set_tls(natsOptions *o, const pl_bus_options *from, bool tls)
{
    if (!from->tls_cert != !from->tls_key)
        return pl_fail(PL_EINVAL,
                       "a TLS certificate needs its key, and a key its certificate");
    if (tls || from->tls_ca || from->tls_cert)
        PL_TRY(checked(natsOptions_SetSecure(o, true), "TLS", "on"));
    if (from->tls_ca) {
        PL_TRY(readable("TLS CA", from->tls_ca));
        PL_TRY(checked(natsOptions_LoadCATrustedCertificates(o, from->tls_ca), "TLS CA",
                       from->tls_ca));
    }
    if (from->tls_cert) {
        PL_TRY(readable("TLS certificate", from->tls_cert));
        PL_TRY(readable("TLS key", from->tls_key));
        PL_TRY(
            checked(natsOptions_LoadCertificatesChain(o, from->tls_cert, from->tls_key),
                    "TLS certificate", from->tls_cert));
    }
    return PL_OK;
}

static void set_behaviour(nats *n, natsOptions *o, const char *id)
{
    char name[48];
    snprintf(name, sizeof name, "perilune %s", id);
    natsOptions_SetName(o, name);
    natsOptions_SetTimeout(o, CONNECT_MS);
    natsOptions_SetNoEcho(o, true);
    natsOptions_SetSendAsap(o, true);
    natsOptions_SetWriteDeadline(o, WRITE_MS);
    natsOptions_SetPingInterval(o, PING_MS);
    natsOptions_SetMaxPingsOut(o, 2);
    natsOptions_SetMaxReconnect(o, -1);
    natsOptions_SetReconnectWait(o, RECONNECT_MS);
    natsOptions_SetReconnectJitter(o, RECONNECT_JITTER_MS, RECONNECT_JITTER_MS);
    natsOptions_SetReconnectBufSize(o, 1); /* 0 is 8 MiB; links send again themselves */
    natsOptions_UseGlobalMessageDelivery(o, true);
    natsOptions_SetReconnectedCB(o, on_connected, n);
    natsOptions_SetDisconnectedCB(o, on_disconnected, n);
    natsOptions_SetClosedCB(o, on_closed, n);
    natsOptions_SetErrorHandler(o, on_error, n);
}

static pl_status configure(nats *n, const pl_bus_options *o, const char *id)
{
    bool tls = false;
    if (natsOptions_Create(&n->options) != NATS_OK)
        return pl_fail(PL_ENOMEM, "NATS: %s", nats_GetLastError(NULL));
    set_behaviour(n, n->options, id);
    PL_TRY(set_urls(n->options, o->url, &tls));
    PL_TRY(set_identity(n->options, o));
    return set_tls(n->options, o, tls);
}

pl_bus *pl_bus_open_nats(pl_loop *loop, const pl_bus_options *o, const char *id,
                         const pl_bus_hooks *hooks)
{
    static const pl_bus_form form = {join, stop, close_nats, send_item, max_bytes};
    nats *n = pl_alloc(sizeof *n);
    pl_bus_init(&n->bus, &form, loop, hooks);
    pl_mutex_init(&n->lock);
    pl_bus_line_init(&n->out);
    atomic_init(&n->max, PL_BUS_MAX_DEFAULT);
    n->url = pl_strndup(o->url, strlen(o->url));
    n->away_ns = n->warn_ns = pl_now_ns();
    n->warn_ms = WARN_MS;
    take_library();
    if (configure(n, o, id) == PL_OK) return &n->bus;
    pl_bus_close(&n->bus);
    return NULL;
}
