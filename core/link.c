/* SPDX-License-Identifier: Apache-2.0
 *
 * link.c - one link: frames out, frames in, what is sent again, and its loss.
 *
 * Owns     the numbers of frames and the epochs that they belong to.
 * Ignores  subjects, who is there (link_table.c, link_presence.c).
 * Thread   io
 *
 * A frame, little-endian:
 *    0 version   1 PING, PONG or DATA   2 kind of message   3 FIRST LAST GAP   4 zero
 *    8 epoch of its sender      16 of its receiver, as its sender knows it; 0: not at all
 *   24 number of DATA; of the others: of the next DATA   32 all below are acknowledged
 *   40 a piece of a message
 *
 * DATA goes only to a peer that has named our epoch, so whatever carries a message names
 * both epochs, and what is left of a former life of either side is known by them:
 *
 *      fresh --they name our epoch--> up --their epoch grew--> fresh
 *                                     |
 *                                     +--silent, nobody, too much--> fresh; ours grows
 *
 * What is lost on the way is sent again from the first that is missing on (go back n):
 * at once where the receiver sees a gap, else after RESEND without an acknowledgement,
 * and then one frame at a time until one comes.
 */
#include "link_own.h"

#include <string.h>

enum {
    HEAD = PL_FRAME_HEAD,
    PING = 1,
    PONG = 2,
    DATA = 3,
    FIRST = 1,
    LAST = 2,
    GAP = 4,
    ACK_EVERY = 16,   /* frames */
    WINDOW = 4 << 20, /* bytes under way */
    WINDOW_FRAMES = 1024
};
#define RESEND (250 * PL_MS)
#define KEEPALIVE (45 * PL_MS)
#define IDLE_ALIVE (500 * PL_MS) /* of a link with a socket and nothing under way */
#define AGAIN (50 * PL_MS)       /* between two requests for the same frame */
#define ANSWER (10 * PL_MS)

typedef struct frame {
    int version, type, kind, flags;
    uint64_t from, to, number, ack;
    const char *data;
    size_t len;
} frame;

/* ---- bytes ------------------------------------------------------------------------- */

static void put64(char *at, uint64_t v)
{
    for (int i = 0; i < 8; i++) at[i] = (char)(v >> (8 * i));
}

static uint64_t get64(const char *at)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | (unsigned char)at[i];
    return v;
}

int pl_link_frame_version(const char *data, size_t len)
{
    if (len < HEAD) return -1;
    return (unsigned char)data[0];
}

static bool read_frame(frame *f, const char *data, size_t len)
{
    if (len < HEAD || len > HEAD + PL_FRAGMENT) return false;
    const unsigned char *b = (const unsigned char *)data;
    *f = (frame){.version = b[0], .type = b[1], .kind = b[2], .flags = b[3]};
    f->from = get64(data + 8);
    f->to = get64(data + 16);
    f->number = get64(data + 24);
    f->ack = get64(data + 32);
    f->data = data + HEAD;
    f->len = len - HEAD;
    return f->from && f->type >= PING && f->type <= DATA && (f->type == DATA || !f->len);
}

/* ---- out --------------------------------------------------------------------------- */

static pl_status transmit(pl_link *l, char *bytes, size_t len)
{
    bytes[0] = (char)l->wire;
    put64(bytes + 8, l->mine);
    put64(bytes + 16, l->theirs);
    put64(bytes + 32, l->expected);
    PL_TRY(l->socket ? pl_direct_send(l, bytes, len) : pl_link_bus_send(l, bytes, len));
    l->sent_ns = pl_now_ns();
    l->ack_due = false;
    l->n_unacked = 0;
    return PL_OK;
}

static void say(pl_link *l, int type, int flags)
{
    char bytes[HEAD] = {0};
    bytes[1] = (char)type;
    bytes[3] = (char)flags;
    put64(bytes + 24, l->n_sent);
    transmit(l, bytes, sizeof bytes);
}

/* Tells it later: who sends is not told in the middle of it. */
static void doom(pl_link *l, int why)
{
    if (!l->why) l->why = why;
    pl_links_hurry(l->all);
}

static bool window_is_open(const pl_link *l)
{
    if (!l->flight_bytes) return true;
    return !l->probing && l->flight_bytes < WINDOW &&
           l->unsent->number - l->first->number < WINDOW_FRAMES;
}

static void pump(pl_link *l)
{
    while (l->up && !l->why && l->unsent && window_is_open(l)) {
        pl_out *o = l->unsent;
        pl_status status = transmit(l, o->bytes, o->len);
        if (status == PL_ELIMIT) doom(l, PL_LOST_RESET);
        if (status < 0) return;
        if (!l->flight_bytes) l->progress_ns = l->sent_ns;
        l->flight_bytes += o->len;
        l->unsent = o->next;
        if (o->number < l->n_sent) pl_metric_add(l->all->metrics.resent, 1);
        l->n_sent = PL_MAX(l->n_sent, o->number + 1);
    }
}

static void go_back(pl_link *l, int64_t now)
{
    l->unsent = l->first;
    l->flight_bytes = 0;
    l->back_ns = now;
}

static void push_frame(pl_link *l, int kind, int flags, const char *data, size_t len)
{
    pl_out *o = pl_realloc(NULL, sizeof *o + HEAD + len); /* not zeroed: it may be long */
    *o = (pl_out){.number = l->next_number++, .len = HEAD + len};
    memset(o->bytes, 0, HEAD);
    o->bytes[1] = DATA;
    o->bytes[2] = (char)kind;
    o->bytes[3] = (char)flags;
    put64(o->bytes + 24, o->number);
    if (len) memcpy(o->bytes + HEAD, data, len);
    *l->end = o;
    l->end = &o->next;
    if (!l->unsent) l->unsent = o;
    l->out_bytes += o->len;
}

void pl_link_send(pl_link *l, int kind, const void *data, size_t len)
{
    PL_ON(IO);
    /* Over a socket too: each frame may have to go over the bus in the end. */
    size_t max = PL_MIN((size_t)PL_FRAGMENT, pl_bus_max(l->all->bus) - HEAD);
    if (l->why) return; /* void, as what was sent before it */
    if (len > PL_LINK_BYTES - PL_MIN(l->out_bytes, PL_LINK_BYTES)) {
        doom(l, PL_LOST_RESET);
        return;
    }
    if (!l->first && !l->held) l->watched_ns = pl_now_ns();
    l->over = false;
    for (size_t at = 0, n = 0; !at || at < len; at += n) {
        n = PL_MIN(len - at, max);
        int flags = (at ? 0 : FIRST) | (at + n == len ? LAST : 0);
        push_frame(l, kind, flags, (const char *)data + at, n);
        if (!n) break;
    }
    if (!l->up && pl_now_ns() - l->sent_ns >= ANSWER) say(l, PING, 0);
    pump(l);
    pl_links_hurry(l->all);
}

size_t pl_link_unacked(const pl_link *l)
{
    return l->out_bytes;
}

/* ---- loss -------------------------------------------------------------------------- */

static const char *reason(int why)
{
    static const char *const words[] = {"",     "nobody listens", "silent",
                                        "left", "reset",          "bus away"};
    return why > 0 && why < PL_COUNT(words) ? words[why] : "";
}

static void clear(pl_link *l)
{
    while (l->first) {
        pl_out *o = l->first;
        l->first = o->next;
        pl_free(o);
    }
    l->end = &l->first;
    l->unsent = NULL;
    l->next_number = l->n_sent = l->expected = l->asked = 0;
    l->out_bytes = l->flight_bytes = 0;
    l->n_unacked = 0;
    l->probing = l->ack_due = l->in_message = l->up = false;
    l->why = 0;
    l->back_ns = l->answered_ns = 0;
    pl_buf_fini(&l->partial);
    l->partial = (pl_buf){0};
}

static void lose(pl_link *l, int why)
{
    pl_links *ls = l->all;
    bool watched = l->held || l->first;
    clear(l);
    l->generation++;
    l->over = true;
    l->watched_ns = pl_now_ns();
    if (watched) {
        pl_metric_add(ls->metrics.lost[why], 1);
        pl_log(l->held ? PL_LOG_WARN : PL_LOG_DEBUG, "the link to %016llx is lost: %s",
               (unsigned long long)l->key, reason(why));
    }
    ls->hooks.lost(ls->hooks.ctx, l, why);
}

void pl_link_lose(pl_link *l, int why)
{
    PL_ON(IO);
    pl_direct_drop(l);
    l->mine = pl_links_epoch(l->all);
    lose(l, why);
}

void pl_link_pump(pl_link *l)
{
    PL_ON(IO);
    pump(l);
}

void pl_link_rerouted(pl_link *l)
{
    PL_ON(IO);
    pl_links *ls = l->all;
    if (ls->stopped || l->why) return;
    if (!ls->there && ls->impatient) {
        doom(l, PL_LOST_BUS);
        return;
    }
    go_back(l, pl_now_ns());
    pump(l);
    if (l->held || l->first) say(l, PING, 0); /* the next frame, of a process that died */
}

void pl_link_fini(pl_link *l)
{
    pl_direct_drop(l);
    clear(l);
}

/* ---- in ---------------------------------------------------------------------------- */

static void take_ack(pl_link *l, const frame *f, int64_t now)
{
    if (f->ack > l->n_sent) {
        pl_links_malformed(l->all, "an acknowledgement of what was not sent", l->subject);
        return;
    }
    while (l->first && l->first->number < f->ack) {
        pl_out *o = l->first;
        bool flew = o != l->unsent;
        l->first = o->next;
        if (!flew) l->unsent = o->next;
        if (flew) l->flight_bytes -= o->len;
        l->out_bytes -= o->len;
        pl_free(o);
        l->progress_ns = now;
        l->probing = false;
        l->back_ns = 0;
    }
    if (!l->first) l->end = &l->first;
    if (f->flags & GAP && l->first && l->first->number == f->ack &&
        now - l->back_ns >= AGAIN)
        go_back(l, now);
}

static void ask(pl_link *l, int64_t now)
{
    if (l->asked == l->expected + 1 && now - l->asked_ns < AGAIN) return;
    l->asked = l->expected + 1;
    l->asked_ns = now;
    say(l, PONG, GAP);
}

static void take_message(pl_link *l, const frame *f)
{
    pl_links *ls = l->all;
    if (((f->flags & FIRST) != 0) == l->in_message ||
        f->len > PL_LINK_BYTES - PL_MIN(l->partial.len, PL_LINK_BYTES)) {
        pl_links_malformed(ls, "a piece of a message that fits none", l->subject);
        doom(l, PL_LOST_RESET);
        return;
    }
    if (f->flags & FIRST && f->flags & LAST) {
        ls->hooks.message(ls->hooks.ctx, l, f->kind, f->data, f->len);
        return;
    }
    if (f->flags & FIRST) l->kind = f->kind;
    l->in_message = !(f->flags & LAST);
    pl_buf_add(&l->partial, f->data, f->len);
    if (l->in_message) return;
    pl_buf whole = l->partial;
    l->partial = (pl_buf){0};
    ls->hooks.message(ls->hooks.ctx, l, l->kind, whole.data, whole.len);
    pl_buf_fini(&whole);
}

static void take_data(pl_link *l, const frame *f, int64_t now)
{
    if (f->number > l->expected) {
        ask(l, now);
        return;
    }
    l->ack_due = true;
    l->n_unacked++;
    if (f->number == l->expected) {
        l->expected++;
        take_message(l, f);
    }
    if (l->n_unacked >= ACK_EVERY) say(l, PONG, 0);
}

/* They do not know us yet, or know an epoch of ours that is over. */
static void answer(pl_link *l, int64_t now)
{
    if (now - l->answered_ns < ANSWER) return;
    l->answered_ns = now;
    say(l, PONG, 0);
}

void pl_link_frame(pl_link *l, const char *data, size_t len)
{
    PL_ON(IO);
    frame f;
    if (!read_frame(&f, data, len)) {
        pl_links_malformed(l->all, "a frame", l->subject);
        return;
    }
    int64_t now = pl_now_ns();
    if (f.from < l->theirs || l->why) return;
    l->wire = PL_MIN(f.version, PL_WIRE);
    if (f.from > l->theirs) {
        /* Their epoch alone tells what is over. If ours grew as well they would count us
         * as lost in turn, and so on for ever. */
        if (l->up) lose(l, PL_LOST_RESET);
        l->theirs = f.from;
    }
    if (f.to != l->mine) {
        answer(l, now);
        return;
    }
    bool fresh = !l->up;
    uint64_t generation = l->generation;
    l->up = true;
    l->over = false;
    l->heard_ns = now;
    l->sent_ns = fresh ? 0 : l->sent_ns;
    take_ack(l, &f, now);
    if (f.type == DATA) take_data(l, &f, now);
    if (f.type != DATA && f.number > l->expected) ask(l, now);
    if (generation != l->generation || l->why) return;
    pump(l);
    if (f.type == PING || (fresh && !l->sent_ns)) say(l, PONG, 0);
    if (pl_link_is_busy(l)) pl_links_hurry(l->all);
}

/* ---- time -------------------------------------------------------------------------- */

bool pl_link_is_busy(const pl_link *l)
{
    return l->held || l->first || l->ack_due || l->why;
}

static bool is_silent(const pl_link *l, int64_t now)
{
    int64_t since = PL_MAX(l->watched_ns, l->heard_ns);
    if (!l->socket) since = PL_MAX(since, pl_links_grace_ns(l->all));
    return now - since > l->all->o.lost_after_ms * PL_MS;
}

void pl_link_tick(pl_link *l, int64_t now)
{
    PL_ON(IO);
    bool watched = l->held || l->first;
    if (l->why) pl_link_lose(l, l->why);
    if (!l->all->there && !l->socket) return;
    if (watched && is_silent(l, now)) {
        pl_link_lose(l, PL_LOST_SILENT);
        return;
    }
    if (pl_link_is_busy(l)) pl_direct_want(l, now);
    if (l->up && l->flight_bytes && now - l->progress_ns >= RESEND) {
        go_back(l, now);
        l->progress_ns = now;
        l->probing = true;
    }
    pump(l);
    int64_t quiet = now - l->sent_ns;
    if ((watched && quiet >= KEEPALIVE) || (l->socket && quiet >= IDLE_ALIVE))
        say(l, PING, 0);
    else if (l->ack_due)
        say(l, PONG, 0);
}
