/* SPDX-License-Identifier: Apache-2.0
 *
 * events_publish.c - an engine's KV events, published as vLLM does it.
 *
 * Owns     the numbers of batches, from 0, and the last of them, for who missed some.
 * Ignores  who listens.
 * Thread   hear: step; open, close: lua; the rest: its own.
 *
 * The step never waits. What the queue cannot take is left out, but keeps its number, so
 * that subscribers see that something is missing.
 */
#include "events_own.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

enum {
    MAX_ID = 256, /* bytes of a replay's asker */
    MAX_ENDPOINT = 512,
    IDLE_MS = 60000
};

typedef struct batch {
    pl_changes *changes;
    double time;
    uint64_t number;
} batch;

struct pl_events {
    pl_engine *engine; /* NULL: it is closed */
    pl_events_options o;
    char *topic;
    void *context, *pub, *router;
    int wake; /* an eventfd */
    pthread_t thread;

    pl_mutex lock; /* over: */
    batch *queue;
    int32_t n, cap;
    uint64_t n_made; /* numbers given */
    bool is_over;

    pl_buf *kept; /* a ring: batch `number` at number % buffer_steps */
    uint64_t *kept_number;
    uint64_t n_sent;
    int published, left_out; /* metrics */
};

/* ---- step -------------------------------------------------------------------------- */

static void wake(pl_events *p)
{
    uint64_t one = 1;
    if (write(p->wake, &one, sizeof one) < 0) return; /* it is awake already */
}

static void push(pl_events *p, pl_changes *c)
{
    if (p->n == p->cap) {
        p->cap = PL_MAX(16, 2 * p->cap);
        p->queue = pl_realloc(p->queue, (size_t)p->cap * sizeof *p->queue);
    }
    p->queue[p->n++] = (batch){c, (double)pl_wall_ns() * 1e-9, p->n_made};
}

static void hear(void *ctx, pl_changes *c)
{
    pl_events *p = ctx;
    if (!c) {
        p->engine = NULL;
        return;
    }
    if (c->is_whole) { /* what was there before: nobody can be told what it holds */
        pl_changes_put(c);
        return;
    }
    pl_lock(&p->lock);
    bool room = p->n < p->o.max_queue_size;
    if (room) push(p, c);
    p->n_made++;
    pl_unlock(&p->lock);
    if (room) {
        wake(p);
        return;
    }
    pl_changes_put(c);
    pl_metric_add(p->left_out, 1);
}

/* ---- its own thread ---------------------------------------------------------------- */

static void number_bytes(uint64_t v, uint8_t *out)
{
    for (int i = 0; i < 8; i++) out[i] = (uint8_t)(v >> 8 * (7 - i));
}

static pl_buf *keep(pl_events *p, uint64_t number)
{
    uint64_t at = number % (uint64_t)p->o.buffer_steps;
    p->kept_number[at] = number + 1; /* 0: none */
    p->kept[at].len = 0;
    return &p->kept[at];
}

static void publish(pl_events *p, const batch *b)
{
    uint8_t number[8];
    pl_buf *payload = keep(p, b->number);
    pl_events_encode(payload, b->time, b->changes, p->o.rank);
    number_bytes(b->number, number);
    /* DONTWAIT: a PUB socket drops what a slow subscriber cannot take, and never waits. */
    zmq_send(p->pub, p->topic, strlen(p->topic), ZMQ_SNDMORE | ZMQ_DONTWAIT);
    zmq_send(p->pub, number, sizeof number, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    zmq_send(p->pub, payload->data, payload->len, ZMQ_DONTWAIT);
    p->n_sent = b->number + 1;
    pl_metric_add(p->published, 1);
}

static bool publish_all(pl_events *p)
{
    uint64_t count;
    if (read(p->wake, &count, sizeof count) < 0 && errno != EAGAIN) return false;
    pl_lock(&p->lock);
    batch *queue = p->queue;
    int32_t n = p->n;
    p->queue = NULL;
    p->n = p->cap = 0;
    bool goes_on = !p->is_over;
    pl_unlock(&p->lock);
    for (int32_t i = 0; i < n; i++) {
        publish(p, &queue[i]);
        pl_changes_put(queue[i].changes);
    }
    pl_free(queue);
    return goes_on;
}

typedef struct request { /* a replay's */
    uint8_t id[MAX_ID], first[8];
    int id_len;
    bool has_delimiter, is_good;
} request;

static void answer(pl_events *p, const request *r, uint64_t number, const void *data,
                   size_t len)
{
    uint8_t bytes[8];
    number_bytes(number, bytes);
    zmq_send(p->router, r->id, (size_t)r->id_len, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    if (r->has_delimiter) zmq_send(p->router, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    zmq_send(p->router, bytes, sizeof bytes, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    zmq_send(p->router, data, len, ZMQ_DONTWAIT);
}

static bool read_request(pl_events *p, request *r)
{
    uint8_t frame[MAX_ID];
    int more = 1, len;
    size_t size = sizeof more;
    *r = (request){0};
    for (int i = 0; more; i++) {
        len = zmq_recv(p->router, frame, sizeof frame, ZMQ_DONTWAIT);
        if (len < 0) return false;
        zmq_getsockopt(p->router, ZMQ_RCVMORE, &more, &size);
        if (i == 0) {
            r->id_len = PL_MIN(len, MAX_ID);
            memcpy(r->id, frame, (size_t)r->id_len);
        } else if (i == 1 && len == 0 && more) {
            r->has_delimiter = true;
        } else {
            r->is_good = i == 1 + r->has_delimiter && len == 8 && !more;
            if (r->is_good) memcpy(r->first, frame, 8);
        }
    }
    return true;
}

/* All that are kept from a number on, then -1. What the asker does not read is dropped
 * beyond so many. */
static void replay(pl_events *p)
{
    request r;
    while (read_request(p, &r)) {
        uint64_t first = 0;
        if (!r.is_good) continue;
        for (int i = 0; i < 8; i++) first = first << 8 | r.first[i];
        uint64_t room = (uint64_t)p->o.buffer_steps;
        if (p->n_sent > room) first = PL_MAX(first, p->n_sent - room);
        for (; first < p->n_sent; first++) {
            uint64_t at = first % room;
            if (p->kept_number[at] == first + 1) /* else it was left out */
                answer(p, &r, first, p->kept[at].data, p->kept[at].len);
        }
        answer(p, &r, UINT64_MAX, "", 0);
    }
}

static void *run(void *arg)
{
    pl_events *p = arg;
    pl_thread_begin(PL_THREAD_OTHER, "pl-events");
    zmq_pollitem_t items[] = {{.fd = p->wake, .events = ZMQ_POLLIN},
                              {.socket = p->router, .events = ZMQ_POLLIN}};
    while (publish_all(p)) {
        if (zmq_poll(items, p->router ? 2 : 1, IDLE_MS) < 0 && errno != EINTR) break;
        if (p->router) replay(p);
    }
    return NULL;
}

/* ---- lua --------------------------------------------------------------------------- */

/* Of rank 1 and more: the port that follows, or a name of its own. */
static pl_status endpoint_of_rank(const char *endpoint, int rank, char *out)
{
    const char *colon = strrchr(endpoint, ':');
    char *end = NULL;
    size_t len = strlen(endpoint);
    if (len + 16 > MAX_ENDPOINT)
        return pl_fail(PL_EINVAL, "endpoint '%.40s...' is too long", endpoint);
    if (strncmp(endpoint, "tcp://", 6) != 0) {
        snprintf(out, MAX_ENDPOINT, rank ? "%s_dp%d" : "%s", endpoint, rank);
        return PL_OK;
    }
    long port = colon > endpoint + 4 ? strtol(colon + 1, &end, 10) : 0;
    if (colon > endpoint + 4 && !strcmp(colon, ":*") && !rank) {
        memcpy(out, endpoint, len + 1);
        return PL_OK;
    }
    if (port < 1 || *end || port + rank > 65535)
        return pl_fail(PL_EINVAL, "endpoint '%s': wanted tcp://HOST:PORT", endpoint);
    snprintf(out, MAX_ENDPOINT, "%.*s:%ld", (int)(colon - endpoint), endpoint,
             port + rank);
    return PL_OK;
}

/* As vLLM: one that names no host is ours to bind. */
static bool is_to_bind(const char *endpoint)
{
    return strchr(endpoint, '*') || strstr(endpoint, "::") ||
           !strncmp(endpoint, "ipc://", 6) || !strncmp(endpoint, "inproc://", 9);
}

static pl_status open_socket(pl_events *p, int type, const char *endpoint, int hwm,
                             bool binds, void **out)
{
    char own[MAX_ENDPOINT];
    PL_TRY(endpoint_of_rank(endpoint, p->o.rank, own));
    *out = zmq_socket(p->context, type);
    if (!*out) return pl_fail(PL_EIO, "no socket for events: %s", zmq_strerror(errno));
    zmq_setsockopt(*out, ZMQ_SNDHWM, &hwm, sizeof hwm);
    zmq_setsockopt(*out, ZMQ_LINGER, &(int){0}, sizeof(int));
    zmq_setsockopt(*out, ZMQ_IPV6, &(int){strstr(own, "::") != NULL}, sizeof(int));
    if ((binds ? zmq_bind : zmq_connect)(*out, own) == 0) return PL_OK;
    return pl_fail(PL_EIO, "events at '%s': %s", own, zmq_strerror(errno));
}

static pl_status open_sockets(pl_events *p)
{
    p->context = zmq_ctx_new();
    p->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (!p->context || p->wake < 0)
        return pl_fail(PL_EIO, "no context for events: %s", strerror(errno));
    PL_TRY(open_socket(p, ZMQ_PUB, p->o.endpoint, p->o.hwm, is_to_bind(p->o.endpoint),
                       &p->pub));
    if (!p->o.replay_endpoint) return PL_OK;
    return open_socket(p, ZMQ_ROUTER, p->o.replay_endpoint, p->o.buffer_steps + 2, true,
                       &p->router);
}

static void close_all(pl_events *p)
{
    if (p->pub) zmq_close(p->pub);
    if (p->router) zmq_close(p->router);
    if (p->context) zmq_ctx_term(p->context);
    if (p->wake >= 0) close(p->wake);
    for (int32_t i = 0; i < p->n; i++) pl_changes_put(p->queue[i].changes);
    for (int i = 0; p->kept && i < p->o.buffer_steps; i++) pl_buf_fini(&p->kept[i]);
    pl_free(p->queue);
    pl_free(p->kept);
    pl_free(p->kept_number);
    pl_free(p->topic);
    pl_mutex_fini(&p->lock);
    pl_free(p);
}

static pl_status check(const pl_events_options *o)
{
    if (!o->endpoint || o->hwm < 0 || o->buffer_steps < 1 || o->buffer_steps > 1 << 24 ||
        o->max_queue_size < 1 || o->rank < 0)
        return pl_fail(PL_EINVAL, "events: wanted an endpoint, a hwm of 0 or more, "
                                  "buffer_steps and max_queue_size of 1 or more");
    return PL_OK;
}

void pl_events_options_init(pl_events_options *o)
{
    *o = (pl_events_options){.endpoint = "tcp://*:5557",
                             .topic = "",
                             .hwm = 100000,
                             .buffer_steps = 10000,
                             .max_queue_size = 100000};
}

pl_events *pl_events_open(pl_engine *e, const pl_events_options *o)
{
    PL_ON(LUA);
    if (check(o) < 0) return NULL;
    pl_events *p = pl_alloc(sizeof *p);
    p->engine = e;
    p->o = *o;
    p->topic = pl_strndup(o->topic, strlen(o->topic));
    pl_mutex_init(&p->lock);
    p->kept = pl_alloc((size_t)o->buffer_steps * sizeof *p->kept);
    p->kept_number = pl_alloc((size_t)o->buffer_steps * sizeof *p->kept_number);
    p->published = pl_metric_open(PL_COUNTER, "perilune_kv_events_published_total", "",
                                  "Batches of KV events published.", NULL, 0);
    p->left_out = pl_metric_open(PL_COUNTER, "perilune_kv_events_dropped_total", "",
                                 "Batches of KV events that found no room.", NULL, 0);
    if (open_sockets(p) < 0 || pl_engine_tap(e, hear, p, true) < 0) {
        close_all(p);
        return NULL;
    }
    if (pthread_create(&p->thread, NULL, run, p) == 0) return p;
    pl_fail(PL_EIO, "cannot create a thread for events");
    pl_engine_untap(e, p);
    close_all(p);
    return NULL;
}

void pl_events_close(pl_events *p)
{
    PL_ON(LUA);
    if (!p) return;
    if (p->engine) pl_engine_untap(p->engine, p);
    pl_lock(&p->lock);
    p->is_over = true;
    pl_unlock(&p->lock);
    wake(p);
    pthread_join(p->thread, NULL);
    close_all(p);
}
