/* SPDX-License-Identifier: Apache-2.0
 *
 * bus.c - what both forms of the bus do: options, subjects, the line of what came.
 *
 * Owns     the line, bounded by count and bytes.
 * Ignores  how messages travel.
 * Thread   said with each function in bus.h and bus_own.h.
 *
 *   some thread --push--> line --one note--> io: the hooks
 */
#include "bus_own.h"

#include <assert.h>
#include <string.h>

enum {
    TURN = 256 /* items that io takes before its sockets have a turn */
};

/* ---- lines ------------------------------------------------------------------------- */

pl_bus_item *pl_bus_item_open(int kind, const char *subject, const char *reply,
                              const void *data, size_t len)
{
    size_t n = strlen(subject) + 1, m = reply ? strlen(reply) + 1 : 1;
    pl_bus_item *item = pl_alloc(sizeof *item + n + m + len);
    item->kind = kind;
    item->len = len;
    item->subject = memcpy(item->bytes, subject, n);
    item->reply = memcpy(item->bytes + n, reply ? reply : "", m);
    item->data = item->bytes + n + m;
    if (len) memcpy(item->bytes + n + m, data, len);
    return item;
}

void pl_bus_line_init(pl_bus_line *l)
{
    *l = (pl_bus_line){.end = &l->first};
}

bool pl_bus_line_fits(const pl_bus_line *l, size_t len)
{
    return l->n < PL_BUS_LINE &&
           len <= PL_BUS_LINE_BYTES - PL_MIN(l->bytes, PL_BUS_LINE_BYTES);
}

void pl_bus_line_push(pl_bus_line *l, pl_bus_item *item)
{
    item->next = NULL;
    *l->end = item;
    l->end = &item->next;
    l->n++;
    l->bytes += item->len;
}

pl_bus_item *pl_bus_line_pop(pl_bus_line *l)
{
    pl_bus_item *item = l->first;
    if (!item) return NULL;
    l->first = item->next;
    if (!l->first) l->end = &l->first;
    l->n--;
    l->bytes -= item->len;
    return item;
}

void pl_bus_line_fini(pl_bus_line *l)
{
    for (pl_bus_item *item; (item = pl_bus_line_pop(l));) pl_free(item);
}

/* ---- from any thread to io --------------------------------------------------------- */

static void tell(pl_bus *b, const pl_bus_item *item)
{
    void *ctx = b->hooks.ctx;
    switch (item->kind) {
    case PL_ITEM_MESSAGE:
        b->hooks.message(ctx, item->subject, item->data, item->len);
        break;
    case PL_ITEM_NOBODY:
        b->hooks.nobody(ctx, item->subject);
        break;
    default:
        if (atomic_load(&b->there) == (item->kind == PL_ITEM_HERE)) break;
        atomic_store(&b->there, item->kind == PL_ITEM_HERE);
        b->hooks.state(ctx, item->kind == PL_ITEM_HERE);
    }
}

static void run_note(pl_note *note)
{
    pl_bus *b = (pl_bus *)((char *)note - offsetof(pl_bus, note));
    for (int i = 0; i < TURN; i++) {
        pl_lock(&b->lock);
        bool full = b->came.n >= PL_BUS_LINE || b->came.bytes >= PL_BUS_LINE_BYTES / 2;
        pl_bus_item *item = b->stopped ? NULL : pl_bus_line_pop(&b->came);
        pl_unlock(&b->lock);
        if (!item) return;
        if (full) pl_wake(&b->lock);
        tell(b, item);
        pl_free(item);
    }
    pl_loop_post(b->loop, note);
}

void pl_bus_push(pl_bus *b, pl_bus_item *item, int wait_ms)
{
    int64_t until = pl_now_ns() + wait_ms * INT64_C(1000000), left;
    bool must = item->kind == PL_ITEM_HERE || item->kind == PL_ITEM_AWAY;
    pl_lock(&b->lock);
    while (!b->stopped && !must && !pl_bus_line_fits(&b->came, item->len) &&
           (left = until - pl_now_ns()) > 0)
        pl_wait(&b->lock, (int)(left / 1000000) + 1);
    bool fits = must || pl_bus_line_fits(&b->came, item->len);
    if (!b->stopped && fits) {
        pl_bus_line_push(&b->came, item);
        /* With the lock held: once `stopped` is seen, the loop may be gone. */
        pl_loop_post(b->loop, &b->note);
        item = NULL;
    }
    pl_unlock(&b->lock);
    if (item && !fits) pl_metric_add(b->dropped, 1);
    pl_free(item);
}

void pl_bus_init(pl_bus *b, const pl_bus_form *form, pl_loop *loop,
                 const pl_bus_hooks *hooks)
{
    b->form = form;
    b->loop = loop;
    b->hooks = *hooks;
    b->note.run = run_note;
    b->dropped =
        pl_metric_open(PL_COUNTER, "perilune_bus_dropped_total", "",
                       "Bus messages dropped because malformed or too many.", NULL, 0);
    pl_mutex_init(&b->lock);
    pl_bus_line_init(&b->came);
    atomic_init(&b->there, false);
}

/* ---- subjects ---------------------------------------------------------------------- */

bool pl_bus_matches(const char *pattern, const char *subject)
{
    for (;;) {
        size_t p = strcspn(pattern, "."), s = strcspn(subject, ".");
        if (p == 1 && *pattern == '>') return s > 0;
        if (p == 1 && *pattern == '*') {
            if (!s) return false;
        } else if (p != s || memcmp(pattern, subject, p)) {
            return false;
        }
        if (!pattern[p] || !subject[s]) return pattern[p] == subject[s];
        pattern += p + 1;
        subject += s + 1;
    }
}

/* ---- the door ---------------------------------------------------------------------- */

void pl_bus_options_init(pl_bus_options *o)
{
    *o = (pl_bus_options){
        .name_space = "perilune", .lost_after_ms = 2000, .patience_ms = 30000};
}

bool pl_bus_is_space(const char *name)
{
    const char *ok = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
    return *name && strlen(name) <= PL_BUS_SPACE && !name[strspn(name, ok)];
}

static pl_status check(const pl_bus_options *o)
{
    const char *ns = o->name_space ? o->name_space : "";
    if (!pl_bus_is_space(ns))
        return pl_fail(PL_EINVAL, "namespace '%.80s': wanted up to %d of A-Z a-z 0-9 _ -",
                       ns, PL_BUS_SPACE);
    if (o->lost_after_ms < 100 || o->lost_after_ms > 3600000)
        return pl_fail(PL_EINVAL, "lost_after is %d ms: wanted 100 to 3600000",
                       o->lost_after_ms);
    if (o->patience_ms < 0)
        return pl_fail(PL_EINVAL, "patience is %d ms: wanted 0 or more", o->patience_ms);
    if (!o->hub && (!o->url || !*o->url))
        return pl_fail(PL_EINVAL, "no bus: wanted the URL of a NATS server");
    return PL_OK;
}

pl_bus *pl_bus_connect(pl_loop *loop, const pl_bus_options *options, const char *id,
                       const pl_bus_hooks *hooks)
{
    if (check(options) < 0) return NULL;
    return options->hub ? pl_bus_open_local(loop, options, id, hooks)
                        : pl_bus_open_nats(loop, options, id, hooks);
}

void pl_bus_stop(pl_bus *b)
{
    PL_ON(IO);
    b->form->stop(b);
    pl_lock(&b->lock);
    b->stopped = true;
    pl_wake(&b->lock);
    pl_unlock(&b->lock);
}

void pl_bus_close(pl_bus *b)
{
    if (!b) return;
    b->form->close(b);
    for (int i = 0; i < b->n_subjects; i++) pl_free(b->subjects[i]);
    pl_bus_line_fini(&b->came);
    pl_mutex_fini(&b->lock);
    pl_free(b);
}

void pl_bus_listen(pl_bus *b, const char *subject)
{
    assert(b->n_subjects < PL_BUS_SUBJECTS);
    b->subjects[b->n_subjects++] = pl_strndup(subject, strlen(subject));
}

void pl_bus_join(pl_bus *b)
{
    b->form->join(b);
}

pl_status pl_bus_send(pl_bus *b, const char *subject, const char *reply, const void *data,
                      size_t len)
{
    PL_ON(IO);
    if (!atomic_load(&b->there)) return PL_EAGAIN;
    size_t max = b->form->max(b);
    if (len > max)
        return pl_fail(PL_ELIMIT, "%zu bytes are more than the bus takes (%zu)", len,
                       max);
    return b->form->send(b, subject, reply, data, len);
}

bool pl_bus_is_there(const pl_bus *b)
{
    return atomic_load(&b->there);
}

size_t pl_bus_max(const pl_bus *b)
{
    return b->form->max(b);
}
