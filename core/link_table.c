/* SPDX-License-Identifier: Apache-2.0
 *
 * link_table.c - all links of a process: whose frame it is, time, the bus's coming and
 * going.
 *
 * Owns     the bus, the table of links, the timer.
 * Ignores  what a frame says (link.c), which way it came (link_bus.c, link_direct.c), what
 *          a hello says (link_presence.c).
 * Thread   io; open and close: lua
 */
#include "link_own.h"
#include "link_presence.h"

#include <stdio.h>
#include <string.h>

enum {
    FAST_MS = 25, /* something is under way */
    SLOW_MS = 100
};
#define SETTLE (1000 * PL_MS) /* the others come back to the bus as well */
#define STALL (1000 * PL_MS)  /* a tick so late: it was we who stood still */

bool pl_link_id_key(const char *id, size_t len, uint64_t *out)
{
    uint64_t key = 0;
    if (len != PL_ID_LEN) return false;
    for (size_t i = 0; i < len; i++) {
        const char *digits = "0123456789abcdef", *at = memchr(digits, id[i], 16);
        if (!at) return false;
        key = key << 4 | (uint64_t)(at - digits);
    }
    *out = key;
    return key != 0;
}

void pl_links_malformed(pl_links *ls, const char *what, const char *from)
{
    int64_t now = pl_now_ns();
    pl_metric_add(ls->metrics.dropped, 1);
    if (ls->logged_ns && now - ls->logged_ns < 1000 * PL_MS) return;
    ls->logged_ns = now;
    pl_log(PL_LOG_WARN, "dropped %s that is malformed (%s)", what, from);
}

/* ---- the table --------------------------------------------------------------------- */

static pl_link *find(const pl_links *ls, uint64_t key)
{
    return pl_map_find(&ls->by_key, key);
}

uint64_t pl_links_epoch(pl_links *ls)
{
    uint64_t wall = (uint64_t)pl_wall_ns();
    return ls->last_epoch = PL_MAX(wall, ls->last_epoch + 1);
}

pl_link *pl_links_make(pl_links *ls, uint64_t key)
{
    PL_ON(IO);
    pl_link *l = find(ls, key);
    if (l) return l;
    if (ls->by_key.n == PL_MAX_LINKS || key == ls->key) return NULL;
    l = pl_alloc(sizeof *l);
    int wire = PL_WIRE;
    *l = (pl_link){.all = ls, .next = ls->links, .key = key, .end = &l->first};
    l->generation = 1;
    l->mine = pl_links_epoch(ls);
    l->peer = pl_presence_find(ls, key, &wire);
    l->wire = wire;
    l->watched_ns = pl_now_ns();
    pl_link_bus_address(l);
    pl_map_put(&ls->by_key, key, l);
    ls->links = l;
    return l;
}

pl_link *pl_links_of(pl_links *ls, uint64_t id)
{
    PL_ON(IO);
    pl_link *l = id ? pl_links_make(ls, id) : NULL;
    if (!l) return NULL;
    if (!l->held && !l->first) l->watched_ns = pl_now_ns();
    l->over = false;
    return l;
}

pl_link *pl_links_find(pl_links *ls, int32_t peer)
{
    pl_link *l = pl_links_of(ls, pl_presence_key(ls, peer));
    if (l) l->peer = peer;
    return l;
}

uint64_t pl_links_key(pl_links *ls, int32_t peer)
{
    return pl_presence_key(ls, peer);
}

int32_t pl_link_peer(const pl_link *l)
{
    return l->peer;
}

void pl_link_hold(pl_link *l)
{
    PL_ON(IO);
    if (!l->held++ && !l->first) l->watched_ns = pl_now_ns();
    l->over = false;
    pl_links_hurry(l->all);
}

void pl_link_release(pl_link *l)
{
    PL_ON(IO);
    l->held--;
}

/* One to a process that is there stays: if we let it go and they have not yet, what they
 * send next would be answered by a link that knows nothing of theirs, and so be lost. */
static bool is_idle(pl_links *ls, const pl_link *l, int64_t now)
{
    int wire;
    int64_t used = PL_MAX(PL_MAX(l->heard_ns, l->sent_ns), l->watched_ns);
    return !pl_link_is_busy(l) && !l->over && now - used > PL_IDLE &&
           !pl_presence_find(ls, l->key, &wire);
}

static void let_go(pl_links *ls, int64_t now)
{
    for (pl_link **at = &ls->links; *at;) {
        pl_link *l = *at;
        if (is_idle(ls, l, now)) pl_link_lose(l, PL_LOST_SILENT);
        if (pl_link_is_busy(l) || !l->over) {
            at = &l->next;
            continue;
        }
        *at = l->next;
        pl_map_remove(&ls->by_key, l->key);
        pl_link_fini(l);
        pl_free(l);
    }
}

/* The bus is away for too long: for all who can only be reached over it, now and when
 * they lose their socket (pl_link_rerouted). */
static void lose_patience(pl_links *ls)
{
    for (pl_link *l = ls->links; l && !ls->impatient; l = l->next)
        if (!l->socket) pl_link_lose(l, PL_LOST_BUS);
    ls->impatient = true;
    pl_presence_gone(ls, 0, PL_LOST_BUS);
}

/* ---- time -------------------------------------------------------------------------- */

int64_t pl_links_grace_ns(const pl_links *ls)
{
    return ls->there_ns + PL_MAX(PL_BUS_GRACE - ls->o.lost_after_ms * PL_MS, SETTLE);
}

/* Having been stopped ourselves, we have not listened: what came meanwhile is yet to be
 * read, so nobody was silent. */
static void forgive(pl_links *ls, int64_t now)
{
    for (pl_link *l = ls->links; l; l = l->next) l->heard_ns = l->socket_heard_ns = now;
    pl_presence_forgive(ls, now);
}

static void on_tick(uv_timer_t *timer)
{
    pl_links *ls = timer->data;
    int64_t now = pl_now_ns();
    bool busy = false;
    if (ls->tick_ns && now - ls->tick_ns > STALL) forgive(ls, now);
    ls->tick_ns = now;
    if (!ls->there && now - ls->away_ns > ls->o.patience_ms * PL_MS) lose_patience(ls);
    for (pl_link *l = ls->links; l; l = l->next) {
        pl_link_tick(l, now);
        busy = busy || pl_link_is_busy(l);
    }
    if (ls->direct) pl_direct_tick(ls->direct, now);
    let_go(ls, now);
    pl_presence_tick(ls, now);
    if (busy || !ls->hasty) return;
    ls->hasty = false;
    uv_timer_start(&ls->timer, on_tick, SLOW_MS, SLOW_MS);
}

void pl_links_hurry(pl_links *ls)
{
    if (ls->hasty || ls->stopped) return;
    ls->hasty = true;
    uv_timer_start(&ls->timer, on_tick, FAST_MS, FAST_MS);
}

/* ---- what comes -------------------------------------------------------------------- */

void pl_links_frame(pl_links *ls, uint64_t from, const char *data, size_t len)
{
    PL_ON(IO);
    int version = pl_link_frame_version(data, len);
    if (version < PL_WIRE - 1 || version > PL_WIRE) {
        pl_links_malformed(ls, "a frame of another version", "bus");
        return;
    }
    pl_link *l = pl_links_make(ls, from);
    if (l) pl_link_frame(l, data, len);
}

void pl_links_nobody(pl_links *ls, uint64_t key)
{
    if (pl_now_ns() - ls->there_ns < PL_BUS_GRACE) return;
    pl_link *l = find(ls, key);
    if (l && l->socket) return; /* it has lost the bus, and not us */
    if (l && !l->over) pl_link_lose(l, PL_LOST_GONE);
    pl_presence_gone(ls, key, PL_LOST_GONE);
}

void pl_links_there(pl_links *ls, bool there)
{
    PL_ON(IO);
    int64_t now = pl_now_ns();
    bool first = !ls->there_ns;
    ls->there = there;
    pl_metric_set(ls->metrics.connected, there);
    if (there) {
        ls->impatient = false;
        ls->there_ns = first ? 1 : now; /* nothing was missed before the first time */
        pl_presence_here(ls);
        for (pl_link *l = ls->links; l; l = l->next) l->progress_ns = 0;
        pl_links_hurry(ls);
    } else {
        ls->away_ns = now;
    }
    ls->hooks.state(ls->hooks.ctx, there);
}

/* ---- life -------------------------------------------------------------------------- */

static void open_metrics(pl_links *ls)
{
    static const char *const reasons[] = {"",      "gone", "silent", "left",
                                          "reset", "bus",  "refused"};
    char label[32];
    ls->metrics.sent = pl_metric_open(PL_COUNTER, "perilune_bus_messages_sent_total", "",
                                      "Messages sent to the bus.", NULL, 0);
    ls->metrics.received =
        pl_metric_open(PL_COUNTER, "perilune_bus_messages_received_total", "",
                       "Messages received from the bus.", NULL, 0);
    ls->metrics.resent = pl_metric_open(PL_COUNTER, "perilune_bus_resent_total", "",
                                        "Messages sent again after a loss.", NULL, 0);
    ls->metrics.dropped =
        pl_metric_open(PL_COUNTER, "perilune_bus_dropped_total", "",
                       "Bus messages dropped because malformed or too many.", NULL, 0);
    ls->metrics.connected = pl_metric_open(PL_GAUGE, "perilune_bus_connected", "",
                                           "1 while the bus is connected.", NULL, 0);
    for (int i = PL_LOST_GONE; i <= PL_LOST_BUS; i++) {
        snprintf(label, sizeof label, "reason=\"%s\"", reasons[i]);
        ls->metrics.lost[i] = pl_metric_open(PL_COUNTER, "perilune_bus_lost_total", label,
                                             "Links to other processes lost.", NULL, 0);
    }
}

static void start(void *arg)
{
    pl_links *ls = arg;
    uv_timer_init(pl_loop_uv(ls->loop), &ls->timer);
    ls->timer.data = ls;
    uv_timer_start(&ls->timer, on_tick, SLOW_MS, SLOW_MS);
    if (ls->direct) pl_direct_start(ls->direct);
}

pl_links *pl_links_open(pl_loop *loop, const pl_bus_options *options, const char *id,
                        const pl_links_hooks *hooks)
{
    pl_links *ls = pl_alloc(sizeof *ls);
    ls->loop = loop;
    ls->hooks = *hooks;
    ls->o = *options;
    strncpy(ls->id, id, PL_ID_LEN);
    bool ok = pl_link_id_key(id, strlen(id), &ls->key);
    if (!ok) pl_fail(PL_EINVAL, "the id '%.40s': wanted 16 hex digits", id);
    if (ok && options->direct) {
        ls->direct = pl_direct_open(ls, options->direct_host, options->direct_port);
        ok = ls->direct != NULL;
    }
    if (!ok || !pl_link_bus_open(ls, options)) {
        pl_direct_close(ls->direct);
        pl_free(ls);
        return NULL;
    }
    open_metrics(ls);
    pl_presence_open(ls);
    ls->away_ns = pl_now_ns();
    pl_loop_call(loop, start, ls);
    pl_bus_join(ls->bus);
    return ls;
}

void pl_links_stop(pl_links *ls)
{
    PL_ON(IO);
    pl_presence_stop(ls);
    ls->stopped = true;
    uv_close((uv_handle_t *)&ls->timer, NULL);
    if (ls->direct) pl_direct_stop(ls->direct);
    pl_bus_stop(ls->bus);
}

void pl_links_close(pl_links *ls)
{
    if (!ls) return;
    pl_bus_close(ls->bus);
    while (ls->links) {
        pl_link *l = ls->links;
        ls->links = l->next;
        pl_link_fini(l);
        pl_free(l);
    }
    pl_map_fini(&ls->by_key);
    pl_presence_close(ls);
    pl_direct_close(ls->direct);
    pl_free(ls);
}
