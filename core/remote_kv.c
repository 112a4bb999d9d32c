/* SPDX-License-Identifier: Apache-2.0
 *
 * remote_kv.c - caches elsewhere that an index here follows, and those here that others
 * follow.
 *
 * Owns     who follows which engine; what a step changed, until it is sent.
 * Ignores  what becomes of it (route.h).
 * Thread   io, except where noted.
 *
 *   following:  FOLLOW --> ... CHANGES (whole), CHANGES, CHANGES ... --> FOLLOW 0
 *   told:       step --queue--> io --one message each--> all that follow
 *
 * Nobody waits for a follower: what it or io is too slow for is left out, and it finds
 * that its count does not fit and asks for all again. A link is not held for this, so an
 * idle deployment is silent; if it is lost, the following is as well, and begins anew.
 */
#include "remote_own.h"

enum {
    MAX_QUEUE = 4 << 20,    /* keys that wait for io */
    MAX_UNACKED = 24 << 20, /* bytes on a link, above which changes are left out */
    MAX_INDEX = MAX_SERVED
};
#define ASKED_LATELY INT64_C(50000000)

typedef struct follower {
    struct follower *next;
    pl_link *link;
    int64_t asked_ns;
    bool is_due; /* is to be told all */
} follower;

typedef struct told { /* an engine that is served */
    pl_remote *r;
    int index;
    pl_engine *engine; /* tapped; NULL: nobody follows it */
    follower *followers;

    pl_mutex lock; /* over: */
    pl_changes **queue;
    int32_t n, cap;
    int64_t n_keys;
    pl_note note;
} told;

typedef struct following {
    pl_note note;  /* asks; it may be running when lua posts: */
    pl_note ended; /* lua has no use for it any more; comes after the last of those */
    pl_loop *loop;
    pl_remote *r;
    int32_t peer;
    int index;
    pl_source *source;

    struct following *next;
    bool is_listed;
    pl_link *link; /* NULL: it was not asked, or is lost */
} following;

/* ---- ours: what is told ------------------------------------------------------------- */

/* step */
static void hear(void *ctx, pl_changes *c)
{
    told *t = ctx;
    if (!c) return;
    pl_lock(&t->lock);
    if (t->n_keys + c->n_keys > MAX_QUEUE && !c->is_whole) {
        pl_changes_put(c);
    } else {
        if (t->n == t->cap) {
            t->cap = PL_MAX(16, 2 * t->cap);
            t->queue = pl_realloc(t->queue, (size_t)t->cap * sizeof *t->queue);
        }
        t->queue[t->n++] = c;
        t->n_keys += c->n_keys;
    }
    pl_unlock(&t->lock);
    pl_loop_post(t->r->loop, &t->note);
}

static void send_to(told *t, follower *f, const pl_changes *c, pl_buf **message)
{
    if (c->is_whole != f->is_due || pl_link_unacked(f->link) > MAX_UNACKED) return;
    f->is_due = false;
    if (!*message) {
        *message = pl_remote_begin(t->r, t->index);
        pl_wire_put_changes(*message, c);
    }
    pl_link_send(f->link, PL_MSG_CHANGES, (*message)->data, (*message)->len);
}

static void run_told(pl_note *note)
{
    told *t = (told *)((char *)note - offsetof(told, note));
    pl_lock(&t->lock);
    pl_changes **queue = t->queue;
    int32_t n = t->n;
    t->queue = NULL;
    t->n = t->cap = 0;
    t->n_keys = 0;
    pl_unlock(&t->lock);
    for (int32_t i = 0; i < n; i++) {
        pl_buf *message = NULL;
        for (follower *f = t->followers; f; f = f->next)
            send_to(t, f, queue[i], &message);
        pl_changes_put(queue[i]);
    }
    pl_free(queue);
}

static void untap(told *t)
{
    if (t->engine) pl_engine_untap(t->engine, t);
    t->engine = NULL;
}

static void drop_follower(told *t, const pl_link *l)
{
    for (follower **at = &t->followers; *at;) {
        follower *f = *at;
        if (l && f->link != l) {
            at = &f->next;
            continue;
        }
        *at = f->next;
        pl_free(f);
    }
    if (!t->followers) untap(t);
}

void pl_followers_drop(pl_remote *r, int index)
{
    PL_ON(IO);
    drop_follower(&r->told[index], NULL);
}

static follower *follower_of(told *t, pl_link *l)
{
    follower *f = t->followers;
    while (f && f->link != l) f = f->next;
    if (f) return f;
    f = pl_alloc(sizeof *f);
    *f = (follower){.next = t->followers, .link = l};
    t->followers = f;
    return f;
}

static pl_status take_follow(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    int32_t index = 0, on = 0;
    PL_TRY(pl_reader_i32(&in, &index));
    PL_TRY(pl_reader_i32(&in, &on));
    if (index < 0 || index >= MAX_INDEX)
        return pl_fail(PL_EFORMAT, "no engine has the index %d", index);
    told *t = &r->told[index];
    if (!on) drop_follower(t, s->link);
    if (!on || !r->served[index]) return PL_OK; /* who asks hears nothing */
    follower *f = follower_of(t, s->link);
    int64_t now = pl_now_ns();
    if (f->asked_ns && now - f->asked_ns < ASKED_LATELY) return PL_OK;
    f->asked_ns = now;
    f->is_due = true;
    t->engine = r->served[index];
    return pl_engine_tap(t->engine, hear, t, false);
}

/* ---- theirs: what is followed ------------------------------------------------------- */

static void tell_peer(const following *f, int on)
{
    pl_remote *r = f->r;
    pl_buf *b = pl_remote_begin(r, f->index);
    pl_remote_i32(b, on);
    pl_link_send(f->link, PL_MSG_FOLLOW, b->data, b->len);
}

static void run_ended(pl_note *note)
{
    following *f = (following *)((char *)note - offsetof(following, ended));
    for (following **at = &f->r->followings; *at; at = &(*at)->next)
        if (*at == f) {
            *at = f->next;
            break;
        }
    if (f->link && !f->r->stopped) tell_peer(f, 0);
    pl_source_put(f->source);
    pl_loop *loop = f->loop;
    pl_free(f);
    pl_loop_put(loop);
}

static void run_following(pl_note *note)
{
    following *f = (following *)((char *)note - offsetof(following, note));
    pl_remote *r = f->r;
    if (r->stopped || !r->links) return;
    if (!f->link) f->link = pl_links_find(r->links, f->peer);
    if (!f->link) return; /* it is asked for again in a while */
    if (!f->is_listed) {
        f->is_listed = true;
        f->next = r->followings;
        r->followings = f;
    }
    tell_peer(f, 1);
}

static pl_status take_changes(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    int32_t index = 0;
    PL_TRY(pl_reader_i32(&in, &index));
    following *f = r->followings;
    while (f && (f->link != s->link || f->index != index)) f = f->next;
    if (!f) return PL_OK; /* it is not followed any more */
    pl_changes *c;
    pl_status status = pl_wire_get_changes(in.at, (size_t)(in.end - in.at), &c);
    if (status == PL_OK)
        pl_source_push(f->source, c);
    else
        pl_source_lost(f->source);
    return status;
}

/* lua */
static void ask(void *ctx)
{
    following *f = ctx;
    pl_loop_post(f->loop, &f->note);
}

/* lua */
static void stop(void *ctx)
{
    following *f = ctx;
    pl_loop_post(f->loop, &f->ended);
}

pl_status pl_remote_follow(pl_remote *r, pl_route *x, int worker, int32_t peer, int index)
{
    PL_ON(LUA);
    static const pl_source_hooks hooks = {ask, stop};
    if (index < 0 || index >= MAX_INDEX)
        return pl_fail(PL_EINVAL, "no engine has the index %d", index);
    following *f = pl_alloc(sizeof *f);
    *f = (following){.note.run = run_following,
                     .ended.run = run_ended,
                     .loop = r->loop,
                     .r = r,
                     .peer = peer,
                     .index = index};
    pl_loop_take(r->loop);
    pl_status status = pl_route_source(x, worker, &hooks, f, &f->source);
    if (status == PL_OK) return PL_OK;
    pl_free(f);
    pl_loop_put(r->loop);
    return status;
}

/* ---- both ---------------------------------------------------------------------------- */

static void on_link_lost(void *ctx, pl_link *l)
{
    pl_remote *r = ctx;
    for (int i = 0; i < MAX_INDEX; i++) drop_follower(&r->told[i], l);
    for (following *f = r->followings; f; f = f->next) {
        if (f->link != l) continue;
        f->link = NULL;
        pl_source_lost(f->source);
    }
}

void pl_followers_open(pl_remote *r)
{
    static const pl_message_kind kinds[] = {
        {PL_MSG_FOLLOW, "wish to follow a cache", true, take_follow},
        {PL_MSG_CHANGES, "batch of a cache's changes", true, take_changes},
    };
    r->told = pl_alloc(MAX_INDEX * sizeof *r->told);
    for (int i = 0; i < MAX_INDEX; i++) {
        r->told[i] = (told){.r = r, .index = i, .note.run = run_told};
        pl_mutex_init(&r->told[i].lock);
    }
    pl_remote_register(r, &(pl_service){r, NULL, on_link_lost, kinds, PL_COUNT(kinds)});
}

void pl_followers_stop(pl_remote *r)
{
    PL_ON(IO);
    for (int i = 0; i < MAX_INDEX; i++) drop_follower(&r->told[i], NULL);
    for (following *f = r->followings; f; f = f->next) {
        f->link = NULL;
        pl_source_lost(f->source);
    }
}

void pl_followers_close(pl_remote *r)
{
    for (int i = 0; i < MAX_INDEX; i++) {
        told *t = &r->told[i];
        for (int32_t k = 0; k < t->n; k++) pl_changes_put(t->queue[k]);
        pl_free(t->queue);
        pl_mutex_fini(&t->lock);
    }
    pl_free(r->told);
}
