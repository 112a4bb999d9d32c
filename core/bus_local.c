/* SPDX-License-Identifier: Apache-2.0
 *
 * bus_local.c - the hub: a bus inside one process, with faults that can be asked for.
 *
 * Owns     who is on it and what each listens to; what waits for or from a stopped one.
 * Ignores  what messages say.
 * Thread   any. Locks are taken in this order: the hub's, a bus's, its loop's.
 *
 * It tells what NATS would: that nobody listens, that it is away. A stopped process is
 * still there for the hub, as a SIGSTOPped one's connection is: what comes for it waits.
 * Its timers run on in here, so what it says meanwhile waits as well.
 */
#include "bus_own.h"

#include <string.h>

typedef struct member {
    pl_bus bus;
    struct member *next;
    pl_hub *hub;
    char id[17];
    bool stopped;
    pl_bus_line in, out; /* what waits while it is stopped */
    pl_bus_item *late;   /* comes after the next one */
} member;

struct pl_hub {
    pl_mutex lock;
    member *members;
    bool away;
    uint64_t seed, counter;
    uint32_t drop, twice, late;
};

/* ---- delivery, all with the hub's lock held ---------------------------------------- */

static void hand_over(member *m, pl_bus_item *item)
{
    if (!m->stopped) {
        pl_bus_push(&m->bus, item, 0);
    } else if (pl_bus_line_fits(&m->in, item->len)) {
        pl_bus_line_push(&m->in, item);
    } else {
        pl_metric_add(m->bus.dropped, 1);
        pl_free(item);
    }
}

static pl_bus_item *copy_of(const pl_bus_item *item)
{
    return pl_bus_item_open(PL_ITEM_MESSAGE, item->subject, NULL, item->data, item->len);
}

static void deliver(pl_hub *h, member *m, const pl_bus_item *item)
{
    uint32_t fate = (uint32_t)(pl_random_at(h->seed, h->counter++, 0) % 1000);
    if (fate < h->drop) return;
    fate -= h->drop;
    if (fate >= h->twice && fate - h->twice < h->late && !m->late) {
        m->late = copy_of(item);
        return;
    }
    hand_over(m, copy_of(item));
    if (fate < h->twice) hand_over(m, copy_of(item));
    if (m->late) hand_over(m, m->late);
    m->late = NULL;
}

static bool listens(const pl_bus *b, const char *subject)
{
    for (int i = 0; i < b->n_subjects; i++)
        if (pl_bus_matches(b->subjects[i], subject)) return true;
    return false;
}

static void spread(pl_hub *h, member *from, const pl_bus_item *item)
{
    bool some = false;
    for (member *m = h->members; m; m = m->next) {
        if (m == from || !listens(&m->bus, item->subject)) continue;
        some = true;
        deliver(h, m, item);
    }
    if (!some && *item->reply)
        hand_over(from, pl_bus_item_open(PL_ITEM_NOBODY, item->reply, NULL, NULL, 0));
}

static void set_stopped(pl_hub *h, member *m, bool stopped)
{
    m->stopped = stopped;
    if (stopped) return;
    for (pl_bus_item *item; (item = pl_bus_line_pop(&m->in));)
        pl_bus_push(&m->bus, item, 0);
    for (pl_bus_item *item; (item = pl_bus_line_pop(&m->out));) {
        if (!h->away) spread(h, m, item);
        pl_free(item);
    }
}

static void tell_state(const pl_hub *h, member *m)
{
    pl_bus_push(
        &m->bus,
        pl_bus_item_open(h->away ? PL_ITEM_AWAY : PL_ITEM_HERE, "", NULL, NULL, 0), 0);
}

/* ---- the form of a bus ------------------------------------------------------------- */

static void stop(pl_bus *b)
{
    member *m = (member *)b;
    pl_hub *h = m->hub;
    pl_lock(&h->lock);
    for (member **at = &h->members; *at; at = &(*at)->next) {
        if (*at != m) continue;
        *at = m->next;
        break;
    }
    pl_unlock(&h->lock);
}

static void close_member(pl_bus *b)
{
    member *m = (member *)b;
    pl_bus_line_fini(&m->in);
    pl_bus_line_fini(&m->out);
    pl_free(m->late);
}

static void join(pl_bus *b)
{
    member *m = (member *)b;
    pl_lock(&m->hub->lock);
    m->next = m->hub->members;
    m->hub->members = m;
    if (!m->hub->away) tell_state(m->hub, m);
    pl_unlock(&m->hub->lock);
}

static pl_status send_item(pl_bus *b, const char *subject, const char *reply,
                           const void *data, size_t len)
{
    member *m = (member *)b;
    pl_hub *h = m->hub;
    pl_bus_item *item = pl_bus_item_open(PL_ITEM_MESSAGE, subject, reply, data, len);
    pl_status status = PL_OK;
    pl_lock(&h->lock);
    if (h->away) {
        status = PL_EAGAIN;
    } else if (!m->stopped) {
        spread(h, m, item);
    } else if (pl_bus_line_fits(&m->out, len)) {
        pl_bus_line_push(&m->out, item);
        item = NULL;
    } else {
        status = PL_EAGAIN;
    }
    pl_unlock(&h->lock);
    pl_free(item);
    return status;
}

static size_t max_bytes(const pl_bus *b)
{
    (void)b;
    return PL_BUS_MAX_DEFAULT;
}

pl_bus *pl_bus_open_local(pl_loop *loop, const pl_bus_options *o, const char *id,
                          const pl_bus_hooks *hooks)
{
    static const pl_bus_form form = {join, stop, close_member, send_item, max_bytes};
    member *m = pl_alloc(sizeof *m);
    pl_bus_init(&m->bus, &form, loop, hooks);
    pl_bus_line_init(&m->in);
    pl_bus_line_init(&m->out);
    strncpy(m->id, id, sizeof m->id - 1);
    m->hub = o->hub;
    return &m->bus;
}

/* ---- the hub ----------------------------------------------------------------------- */

pl_hub *pl_hub_open(void)
{
    pl_hub *h = pl_alloc(sizeof *h);
    pl_mutex_init(&h->lock);
    return h;
}

void pl_hub_close(pl_hub *h)
{
    if (!h) return;
    pl_mutex_fini(&h->lock);
    pl_free(h);
}

void pl_hub_faults(pl_hub *h, uint64_t seed, int drop, int twice, int late)
{
    pl_lock(&h->lock);
    h->seed = seed;
    h->counter = 0;
    h->drop = (uint32_t)PL_MAX(drop, 0);
    h->twice = (uint32_t)PL_MAX(twice, 0);
    h->late = (uint32_t)PL_MAX(late, 0);
    pl_unlock(&h->lock);
}

void pl_hub_stop(pl_hub *h, const char *id, int stopped)
{
    pl_lock(&h->lock);
    for (member *m = h->members; m; m = m->next)
        if (!strcmp(m->id, id) && m->stopped != (stopped != 0))
            set_stopped(h, m, stopped != 0);
    pl_unlock(&h->lock);
}

void pl_hub_away(pl_hub *h, int away)
{
    pl_lock(&h->lock);
    h->away = away != 0;
    for (member *m = h->members; m; m = m->next) tell_state(h, m);
    pl_unlock(&h->lock);
}
