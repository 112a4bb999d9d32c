/* SPDX-License-Identifier: Apache-2.0
 *
 * events_subscribe.c - the KV events that a publisher elsewhere sends: vLLM, or perilune.
 *
 * Owns     a thread and its sockets for each worker that is followed so.
 * Ignores  what events say (events_feed.c).
 * Thread   ask, stop: lua; the rest: its own.
 *
 * What is missing is asked of the replay endpoint, if there is one and for REPLAY_MS; what
 * that does not bring is a gap. A number that does not grow is a publisher that began anew.
 * After IDLE_MS without a batch the endpoint is asked whether there was one after all: the
 * last one before a pause may be lost, or come before the subscription was made.
 */
#include "events_own.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

enum {
    MAX_MESSAGE = 64 << 20,
    MAX_LINE = 10000, /* messages that wait for us; more are lost, and so replayed */
    MAX_FRAMES = 4,
    REPLAY_MS = 2000,
    IDLE_MS = 1000,
    IDLE_REPLAY_MS = 100
};

typedef struct subscriber {
    pl_feed feed;
    char *replay_endpoint; /* NULL: none */
    void *context, *sub, *replay;
    int wake; /* an eventfd */
    pthread_t thread;
    bool has_thread;
    atomic_bool is_over, is_asked;
    bool has_heard;
    uint64_t heard; /* the last number that was published */
} subscriber;

typedef struct frames {
    zmq_msg_t at[MAX_FRAMES];
    int n;
} frames;

static void drop_frames(frames *f)
{
    for (int i = 0; i < f->n; i++) zmq_msg_close(&f->at[i]);
    f->n = 0;
}

/* The next message; false: none is there. One of more frames comes as its first ones. */
static bool receive(void *socket, frames *f)
{
    zmq_msg_t rest;
    f->n = 0;
    for (bool more = true; more;) {
        zmq_msg_t *m = f->n < MAX_FRAMES ? &f->at[f->n++] : &rest;
        zmq_msg_init(m);
        bool came = zmq_msg_recv(m, socket, ZMQ_DONTWAIT) >= 0;
        more = came && zmq_msg_more(m);
        if (m == &rest) zmq_msg_close(m);
        if (came) continue;
        drop_frames(f);
        return false;
    }
    return true;
}

/* The last two frames are a number and a batch. */
static bool read_number(frames *f, uint64_t *number)
{
    if (f->n < 2 || zmq_msg_size(&f->at[f->n - 2]) != 8) return false;
    const uint8_t *b = zmq_msg_data(&f->at[f->n - 2]);
    *number = 0;
    for (int i = 0; i < 8; i++) *number = *number << 8 | b[i];
    return true;
}

static void take(subscriber *s, frames *f, uint64_t number)
{
    zmq_msg_t *batch = &f->at[f->n - 1];
    pl_feed_take(&s->feed, number, zmq_msg_data(batch), zmq_msg_size(batch));
}

/* ---- replay ------------------------------------------------------------------------ */

/* One message of an answer; false: it was the last. */
static bool take_replayed(subscriber *s, frames *f, bool *is_first)
{
    uint64_t number = 0;
    if (!read_number(f, &number)) return true;
    if (number == UINT64_MAX || !zmq_msg_size(&f->at[f->n - 1])) return false;
    if (*is_first && number > s->feed.expected) pl_feed_clear(&s->feed, number);
    *is_first = false;
    if (number == s->feed.expected) take(s, f, number);
    return true;
}

static bool open_replay(subscriber *s)
{
    s->replay = zmq_socket(s->context, ZMQ_DEALER);
    if (!s->replay) return false;
    zmq_setsockopt(s->replay, ZMQ_LINGER, &(int){0}, sizeof(int));
    zmq_setsockopt(s->replay, ZMQ_MAXMSGSIZE, &(int64_t){MAX_MESSAGE}, sizeof(int64_t));
    return zmq_connect(s->replay, s->replay_endpoint) == 0;
}

static void close_replay(subscriber *s)
{
    if (s->replay) zmq_close(s->replay);
    s->replay = NULL;
}

/* Asks for what comes from the expected number on. A new socket for each time: what may
 * still come of an answer that was given up is none of the next. */
static void replay(subscriber *s, int ms)
{
    uint8_t first[8];
    bool is_first = true, goes_on = s->replay_endpoint && open_replay(s);
    for (int i = 0; i < 8; i++) first[i] = (uint8_t)(s->feed.expected >> 8 * (7 - i));
    if (goes_on) {
        zmq_send(s->replay, "", 0, ZMQ_SNDMORE);
        goes_on = zmq_send(s->replay, first, sizeof first, ZMQ_DONTWAIT) >= 0;
    }
    int64_t until = pl_now_ns() + ms * INT64_C(1000000);
    while (goes_on && pl_now_ns() < until && !atomic_load(&s->is_over)) {
        zmq_pollitem_t item = {.socket = s->replay, .events = ZMQ_POLLIN};
        frames f;
        if (zmq_poll(&item, 1, 20) < 0 && errno != EINTR) break;
        while (goes_on && receive(s->replay, &f)) {
            goes_on = take_replayed(s, &f, &is_first);
            drop_frames(&f);
        }
    }
    close_replay(s);
}

/* ---- what is published ------------------------------------------------------------- */

static void take_published(subscriber *s, frames *f)
{
    uint64_t number = 0;
    if (f->n != 3 || !read_number(f, &number)) return;
    if (s->has_heard && number <= s->heard) {
        pl_log(PL_LOG_INFO, "a publisher of KV events began anew");
        pl_feed_clear(&s->feed, 0);
    }
    s->has_heard = true;
    s->heard = number;
    if (number > s->feed.expected) replay(s, REPLAY_MS);
    if (number < s->feed.expected) return; /* it was replayed */
    if (number > s->feed.expected) pl_feed_clear(&s->feed, number);
    take(s, f, number);
}

static void begin_anew(subscriber *s)
{
    pl_feed_clear(&s->feed, 0);
    replay(s, REPLAY_MS);
}

static void *run(void *arg)
{
    subscriber *s = arg;
    pl_thread_begin(PL_THREAD_OTHER, "pl-events");
    zmq_pollitem_t items[] = {{.fd = s->wake, .events = ZMQ_POLLIN},
                              {.socket = s->sub, .events = ZMQ_POLLIN}};
    while (!atomic_load(&s->is_over)) {
        frames f;
        uint64_t count;
        int n = zmq_poll(items, 2, IDLE_MS);
        if (n < 0 && errno != EINTR) break;
        if (n == 0) replay(s, IDLE_REPLAY_MS);
        if (read(s->wake, &count, sizeof count) < 0 && errno != EAGAIN) break;
        if (atomic_exchange(&s->is_asked, false)) begin_anew(s);
        while (!atomic_load(&s->is_over) && receive(s->sub, &f)) {
            take_published(s, &f);
            drop_frames(&f);
        }
    }
    return NULL;
}

/* ---- lua --------------------------------------------------------------------------- */

static void wake(subscriber *s)
{
    uint64_t one = 1;
    if (write(s->wake, &one, sizeof one) < 0) return; /* it is awake already */
}

static void ask(void *ctx)
{
    subscriber *s = ctx;
    atomic_store(&s->is_asked, true);
    wake(s);
}

static void close_all(subscriber *s)
{
    if (s->sub) zmq_close(s->sub);
    if (s->context) zmq_ctx_term(s->context);
    if (s->wake >= 0) close(s->wake);
    if (s->feed.source) pl_source_put(s->feed.source);
    pl_free(s->replay_endpoint);
    pl_free(s);
}

static void stop(void *ctx)
{
    subscriber *s = ctx;
    atomic_store(&s->is_over, true);
    wake(s);
    if (s->has_thread) pthread_join(s->thread, NULL);
    close_all(s);
}

static pl_status open_sub(subscriber *s, const char *endpoint, const char *topic)
{
    s->context = zmq_ctx_new();
    s->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    s->sub = s->context ? zmq_socket(s->context, ZMQ_SUB) : NULL;
    if (!s->sub || s->wake < 0)
        return pl_fail(PL_EIO, "no socket for events: %s", zmq_strerror(errno));
    zmq_setsockopt(s->sub, ZMQ_LINGER, &(int){0}, sizeof(int));
    zmq_setsockopt(s->sub, ZMQ_RCVHWM, &(int){MAX_LINE}, sizeof(int));
    zmq_setsockopt(s->sub, ZMQ_MAXMSGSIZE, &(int64_t){MAX_MESSAGE}, sizeof(int64_t));
    zmq_setsockopt(s->sub, ZMQ_SUBSCRIBE, topic, strlen(topic));
    zmq_setsockopt(s->sub, ZMQ_IPV6, &(int){strchr(endpoint, '[') != NULL}, sizeof(int));
    if (zmq_connect(s->sub, endpoint) == 0) return PL_OK;
    return pl_fail(PL_EINVAL, "events at '%s': %s", endpoint, zmq_strerror(errno));
}

pl_status pl_route_subscribe(pl_route *x, int worker, const char *endpoint,
                             const char *replay_endpoint, const char *topic)
{
    static const pl_source_hooks hooks = {ask, stop};
    subscriber *s = pl_alloc(sizeof *s);
    s->wake = -1;
    if (replay_endpoint)
        s->replay_endpoint = pl_strndup(replay_endpoint, strlen(replay_endpoint));
    pl_status status = open_sub(s, endpoint, topic);
    if (status == PL_OK) status = pl_route_source(x, worker, &hooks, s, &s->feed.source);
    if (status < 0) {
        close_all(s);
        return status;
    }
    s->has_thread = pthread_create(&s->thread, NULL, run, s) == 0;
    if (s->has_thread) return PL_OK;
    pl_route_unfollow(x, worker);
    return pl_fail(PL_EIO, "cannot create a thread for events");
}
