/* SPDX-License-Identifier: Apache-2.0 */
#include "loop.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct signal_watch {
    uv_signal_t handle;
    pl_news news;
} signal_watch;

enum {
    WATCH_MS = 250, /* how often io looks whether Lua polls */
    STALL_MS = 1000,
    LEAVE_MS = 5000, /* what a second signal leaves to an end in good order */
    EXIT_FORCED = 128 + SIGTERM
};

struct pl_loop {
    uv_loop_t uv;
    uv_timer_t watch;
    int stalls_metric;
    int64_t told_of, tell_ns; /* io: the poll whose stall is reported; when next */
    int n_stops;              /* io: signals that ask for the end */
    int64_t leave_ns;
    uv_async_t wake;
    signal_watch signals[3];
    pthread_t thread;
    pl_loop_hooks hooks;
    atomic_int refs;

    pl_mutex post; /* over the notes */
    pl_note *first, **end;
    bool woken; /* io will look at them */
    bool stopped;
    pl_note stop_note;

    pl_mutex tell; /* over the news */
    pl_news *news, **news_end;
    bool waiting; /* Lua sleeps in poll */
    bool deaf;    /* nobody will poll any more */
    bool polling, watched;
    int64_t polled_ns; /* when the last poll ended */
    char doing[256];
};

/* ---- notes: to io ------------------------------------------------------------------ */

/* With the lock held: whether the caller is to wake io. */
static bool must_wake(pl_loop *l)
{
    bool must = l->first && !l->woken && !l->stopped;
    l->woken = l->woken || must;
    return must;
}

/* There is no io thread any more. */
static void run_here(pl_note *note)
{
    pl_thread was = pl_thread_become(PL_THREAD_IO);
    note->run(note);
    pl_thread_become(was);
}

static bool add_note(pl_loop *l, pl_note *note, bool later)
{
    pl_lock(&l->post);
    if (note->queued) {
        bool wake = !later && must_wake(l);
        pl_unlock(&l->post);
        if (wake) uv_async_send(&l->wake);
        return false;
    }
    bool stopped = l->stopped;
    if (!stopped) {
        note->queued = true;
        note->next = NULL;
        *l->end = note;
        l->end = &note->next;
    }
    bool wake = !later && must_wake(l);
    pl_unlock(&l->post);
    if (stopped) run_here(note);
    if (wake) uv_async_send(&l->wake);
    return true;
}

bool pl_loop_post(pl_loop *l, pl_note *note)
{
    return add_note(l, note, false);
}

bool pl_loop_post_later(pl_loop *l, pl_note *note)
{
    return add_note(l, note, true);
}

static void wake_io(pl_loop *l)
{
    pl_lock(&l->post);
    bool wake = must_wake(l);
    pl_unlock(&l->post);
    if (wake) uv_async_send(&l->wake);
}

static pl_note *pop_note(pl_loop *l)
{
    pl_lock(&l->post);
    pl_note *note = l->first;
    if (note) {
        l->first = note->next;
        if (!l->first) l->end = &l->first;
        note->queued = false;
    }
    pl_unlock(&l->post);
    return note;
}

/* Those that had come when it began: later ones wake again, so that sockets get a
 * turn. */
static void run_notes(pl_loop *l)
{
    pl_lock(&l->post);
    pl_note *last =
        l->first ? (pl_note *)((char *)l->end - offsetof(pl_note, next)) : NULL;
    l->woken = false;
    pl_unlock(&l->post);
    for (pl_note *note = NULL; last && note != last;) {
        note = pop_note(l);
        note->run(note);
    }
}

static void on_wake(uv_async_t *wake)
{
    pl_loop *l = wake->data;
    run_notes(l);
    l->hooks.round(l->hooks.ctx);
    wake_io(l);
}

typedef struct call {
    pl_note note;
    void (*fn)(void *arg);
    void *arg;
    pl_mutex lock;
    bool done;
} call;

static void run_call(pl_note *note)
{
    call *c = (call *)note;
    c->fn(c->arg);
    pl_lock(&c->lock);
    c->done = true;
    pl_wake(&c->lock);
    pl_unlock(&c->lock);
}

void pl_loop_call(pl_loop *l, void (*fn)(void *arg), void *arg)
{
    call c = {.note.run = run_call, .fn = fn, .arg = arg};
    pl_mutex_init(&c.lock);
    pl_loop_post(l, &c.note);
    pl_lock(&c.lock);
    while (!c.done) pl_wait(&c.lock, 1000); /* io waits for nobody, so it will come */
    pl_unlock(&c.lock);
    pl_mutex_fini(&c.lock);
}

/* ---- news: to Lua ------------------------------------------------------------------ */

static bool tell(pl_loop *l, pl_news *news, const int32_t *words)
{
    pl_lock(&l->tell);
    bool deaf = l->deaf, fresh = !news->queued, wake = false;
    if (words) news->event.a = words[0], news->event.b = words[1];
    if (fresh && !deaf) {
        news->queued = true;
        news->next = NULL;
        *l->news_end = news;
        l->news_end = &news->next;
        wake = l->waiting;
        l->waiting = false;
    }
    pl_unlock(&l->tell);
    if (wake) pl_wake(&l->tell); /* who wakes finds the lock free */
    if (deaf && news->taken) news->taken(news, true);
    return fresh;
}

bool pl_loop_tell(pl_loop *l, pl_news *news)
{
    return tell(l, news, NULL);
}

bool pl_loop_tell_newest(pl_loop *l, pl_news *news, int32_t a, int32_t b)
{
    return tell(l, news, (int32_t[]){a, b});
}

/* With the lock held. The event is copied: once out of line, the news may be told
 * again. */
static pl_news *pop_news(pl_loop *l, pl_event *out)
{
    pl_news *news = l->news;
    if (!news) return NULL;
    l->news = news->next;
    if (!l->news) l->news_end = &l->news;
    news->queued = false;
    *out = news->event;
    return news;
}

static int drain_news(pl_loop *l, pl_event *out, int max, bool lost)
{
    int n = 0;
    while (n < max) {
        pl_lock(&l->tell);
        pl_news *news = pop_news(l, &out[n]);
        pl_unlock(&l->tell);
        if (!news) break;
        if ((!news->taken || news->taken(news, lost)) && !lost) n++;
    }
    return n;
}

static bool wait_news(pl_loop *l, int64_t until)
{
    pl_lock(&l->tell);
    int64_t left = 0;
    while (!l->news && (left = until - pl_now_ns()) > 0) {
        l->waiting = true;
        int64_t ms = (left + 999999) / 1000000;
        pl_wait(&l->tell, (int)PL_MIN(ms, 3600000));
    }
    l->waiting = false;
    bool some = l->news != NULL;
    pl_unlock(&l->tell);
    return some;
}

static void set_polling(pl_loop *l, bool polling)
{
    pl_lock(&l->tell);
    l->polling = polling;
    if (!polling) l->polled_ns = pl_now_ns();
    pl_unlock(&l->tell);
}

int pl_loop_poll(pl_loop *l, pl_event *out, int max, int timeout_ms)
{
    PL_ON(LUA);
    int64_t until =
        pl_now_ns() + (int64_t)(timeout_ms < 0 ? INT_MAX : timeout_ms) * 1000000;
    set_polling(l, true);
    wake_io(l);
    int n = drain_news(l, out, max, false);
    while (!n && max > 0 && wait_news(l, until)) n = drain_news(l, out, max, false);
    set_polling(l, false);
    return n;
}

/* ---- does Lua poll ----------------------------------------------------------------- */

void pl_loop_doing(pl_loop *l, const char *what)
{
    pl_lock(&l->tell);
    if (what && !l->watched) l->polled_ns = pl_now_ns();
    l->watched = what != NULL;
    snprintf(l->doing, sizeof l->doing, "%s", what ? what : "");
    pl_unlock(&l->tell);
}

/* When the last poll ended, if Lua ought to have come back since; else 0. */
static int64_t stalled_since(pl_loop *l, char *doing, size_t room)
{
    pl_lock(&l->tell);
    int64_t polled = l->watched && !l->polling ? l->polled_ns : 0;
    snprintf(doing, room, "%s%s", *l->doing ? "; it is in " : "", l->doing);
    pl_unlock(&l->tell);
    return pl_now_ns() - polled < (int64_t)STALL_MS * 1000000 ? 0 : polled;
}

bool pl_loop_stalled(pl_loop *l, char *why, size_t room)
{
    char doing[sizeof l->doing + 16];
    int64_t since = stalled_since(l, doing, sizeof doing);
    if (!since) return false;
    snprintf(why, room, "Lua has not polled for %.1f s: no request begins%s",
             (double)(pl_now_ns() - since) * 1e-9, doing);
    return true;
}

static _Noreturn void leave(const char *why)
{
    pl_log(PL_LOG_WARN, "a second signal ends the process: %s", why);
    _exit(EXIT_FORCED);
}

static void on_watch(uv_timer_t *timer)
{
    pl_loop *l = timer->data;
    char why[PL_STALL_TEXT];
    if (l->leave_ns && pl_now_ns() > l->leave_ns)
        leave("it has not come to an end in good order");
    int64_t since = stalled_since(l, why, sizeof why), now = pl_now_ns();
    if (!since || (since == l->told_of && now < l->tell_ns) ||
        !pl_loop_stalled(l, why, sizeof why))
        return;
    if (since != l->told_of) pl_metric_add(l->stalls_metric, 1);
    l->told_of = since;
    l->tell_ns = since + 4 * (now - since);
    pl_log(PL_LOG_WARN, "%s", why);
}

static void start_watch(pl_loop *l)
{
    l->stalls_metric =
        pl_metric_open(PL_COUNTER, "perilune_lua_stalls_total", "",
                       "Times that Lua did not poll for a second.", NULL, 0);
    uv_timer_init(&l->uv, &l->watch);
    l->watch.data = l;
    uv_timer_start(&l->watch, on_watch, WATCH_MS, WATCH_MS);
}

/* ---- the thread -------------------------------------------------------------------- */

/* Lua ends the process in good order. Where it does not come to that, as in a hook that
 * runs for ever, a second signal does without. */
static void ask_to_stop(pl_loop *l, int number)
{
    char why[PL_STALL_TEXT];
    bool stalled = pl_loop_stalled(l, why, sizeof why);
    if (l->n_stops++ == 0) {
        if (stalled)
            pl_log(PL_LOG_WARN, "signal %d: %s; a second signal ends the process", number,
                   why);
        return;
    }
    if (stalled) leave(why);
    if (!l->leave_ns) l->leave_ns = pl_now_ns() + (int64_t)LEAVE_MS * 1000000;
}

static void on_signal(uv_signal_t *handle, int number)
{
    signal_watch *w = (signal_watch *)handle;
    if (number != SIGHUP) ask_to_stop(handle->data, number);
    w->news.event.a = number;
    pl_loop_tell(handle->data, &w->news);
}

static void *run_thread(void *arg)
{
    pl_loop *l = arg;
    pl_thread_begin(PL_THREAD_IO, "pl-io");
    uv_run(&l->uv, UV_RUN_DEFAULT);
    return NULL;
}

static void run_stop(pl_note *note)
{
    pl_loop *l = (pl_loop *)((char *)note - offsetof(pl_loop, stop_note));
    l->hooks.stop(l->hooks.ctx);
    uv_close((uv_handle_t *)&l->wake, NULL);
    uv_close((uv_handle_t *)&l->watch, NULL);
    for (int i = 0; i < PL_COUNT(l->signals); i++)
        uv_close((uv_handle_t *)&l->signals[i], NULL);
}

static void watch_signals(pl_loop *l)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < PL_COUNT(l->signals); i++) {
        signal_watch *w = &l->signals[i];
        w->news.event = (pl_event){.kind = PL_EV_SIGNAL, .a = numbers[i]};
        uv_signal_init(&l->uv, &w->handle);
        w->handle.data = l;
        uv_signal_start(&w->handle, on_signal, numbers[i]);
    }
}

pl_loop *pl_loop_open(const pl_loop_hooks *hooks)
{
    pl_loop *l = pl_alloc(sizeof *l);
    l->hooks = *hooks;
    l->end = &l->first;
    l->news_end = &l->news;
    l->stop_note.run = run_stop;
    atomic_init(&l->refs, 1);
    int bad = uv_loop_init(&l->uv);
    if (!bad && (bad = uv_async_init(&l->uv, &l->wake, on_wake))) uv_loop_close(&l->uv);
    if (bad) {
        pl_fail(PL_EIO, "cannot create an event loop: %s", uv_strerror(bad));
        pl_free(l);
        return NULL;
    }
    l->wake.data = l;
    pl_mutex_init(&l->post);
    pl_mutex_init(&l->tell);
    watch_signals(l);
    start_watch(l);
    if (pthread_create(&l->thread, NULL, run_thread, l)) {
        fputs("perilune: no thread to be had\n", stderr);
        abort();
    }
    return l;
}

void pl_loop_stop(pl_loop *l)
{
    pl_loop_post(l, &l->stop_note);
    pthread_join(l->thread, NULL);
    pl_lock(&l->post);
    l->stopped = true;
    pl_unlock(&l->post);
    for (pl_note *note; (note = pop_note(l));) run_here(note);
    uv_loop_close(&l->uv);
    pl_lock(&l->tell);
    l->deaf = true;
    pl_unlock(&l->tell);
    pl_event none;
    drain_news(l, &none, 1, true);
}

void pl_loop_take(pl_loop *l)
{
    atomic_fetch_add(&l->refs, 1);
}

void pl_loop_put(pl_loop *l)
{
    if (atomic_fetch_sub(&l->refs, 1) > 1) return;
    pl_loop_hooks hooks = l->hooks;
    pl_mutex_fini(&l->post);
    pl_mutex_fini(&l->tell);
    pl_free(l);
    hooks.last(hooks.ctx);
}

uv_loop_t *pl_loop_uv(pl_loop *l)
{
    PL_ON(IO);
    return &l->uv;
}
