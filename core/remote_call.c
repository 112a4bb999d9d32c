/* SPDX-License-Identifier: Apache-2.0
 *
 * remote_call.c - questions to other processes, and theirs to this one.
 *
 * Owns     calls under way, both ways, and when ours are over.
 * Ignores  what is asked: Lua answers.
 * Thread   io; pl_call_* of perilune.h: lua.
 *
 *   asked:     send --CALL--> under way --REPLY, time over, peer lost--> news, Lua closes
 *   answering: CALL --news--> Lua --answer, close--> REPLY
 */
#include "remote_own.h"

enum {
    MAX_TEXT = 32 << 20,       /* of a question or an answer */
    MAX_CALL_BYTES = 64 << 20, /* of a peer's questions that Lua has not answered */
    MAX_TIMEOUT_MS = 24 * 3600 * 1000
};

struct pl_call {
    int32_t number; /* the asker's */
    bool ours;
    atomic_int refs; /* of Lua, of the line or what is under way, of the note */
    pl_remote *r;
    pl_loop *loop;
    pl_buf text;

    /* io */
    pl_call *next, **link; /* among r->calls; NULL: it is over */
    pl_side *side;
    int64_t until_ns; /* ours */
    size_t len;       /* theirs: of the question */

    /* lua sets it, then posts the note */
    int32_t peer;
    bool answered;
    int status;
    pl_buf answer;

    pl_note note;
    pl_news news;
};

static void put(pl_call *c)
{
    if (atomic_fetch_sub(&c->refs, 1) > 1) return;
    pl_loop *loop = c->loop;
    pl_buf_fini(&c->text);
    pl_buf_fini(&c->answer);
    pl_free(c);
    pl_loop_put(loop);
}

static bool taken(pl_news *news, bool lost)
{
    pl_call *c = (pl_call *)((char *)news - offsetof(pl_call, news));
    if (c->ours) atomic_fetch_sub(&c->r->n_asked, 1);
    if (lost || !news->event.object) put(c); /* else it is Lua's to close */
    return true;
}

static pl_call *make(pl_remote *r, int32_t number, bool ours, const char *text,
                     size_t len)
{
    pl_call *c = pl_alloc(sizeof *c);
    c->number = number;
    c->ours = ours;
    c->r = r;
    c->loop = r->loop;
    pl_loop_take(c->loop);
    atomic_init(&c->refs, 1);
    pl_buf_add(&c->text, text, len);
    c->news.event = (pl_event){.kind = ours ? PL_EV_REPLY : PL_EV_CALL, .id = number};
    c->news.taken = taken;
    return c;
}

static void enter(pl_call *c, pl_side *s)
{
    pl_remote *r = c->r;
    c->next = r->calls;
    c->link = &r->calls;
    if (c->next) c->next->link = &c->next;
    r->calls = c;
    c->side = s;
    s->n++;
}

static void leave(pl_call *c)
{
    if (!c->link) return;
    *c->link = c->next;
    if (c->next) c->next->link = c->link;
    c->link = NULL;
    pl_side *s = c->side;
    c->side = NULL;
    if (c->ours) {
        pl_map_remove(&c->r->asked, (uint64_t)c->number);
    } else {
        s->n_calls--;
        s->call_bytes -= c->len;
    }
    pl_side_put(s);
}

/* ---- ours -------------------------------------------------------------------------- */

static void end_ours(pl_call *c, int status)
{
    leave(c);
    c->news.event.a = status;
    c->news.event.object = status < 0 ? NULL : c;
    pl_loop_tell(c->loop, &c->news);
}

static void on_time(uv_timer_t *timer);

static void wake_by(pl_remote *r, int64_t ns)
{
    if (r->wakes_ns && r->wakes_ns <= ns) return;
    r->wakes_ns = ns;
    int64_t left = PL_MAX(0, ns - pl_now_ns());
    uv_timer_start(&r->timer, on_time, (uint64_t)(left + 999999) / 1000000, 0);
}

static void on_time(uv_timer_t *timer)
{
    pl_remote *r = timer->data;
    int64_t now = pl_now_ns();
    r->wakes_ns = 0;
    for (pl_call *c = r->calls, *next; c; c = next) {
        next = c->next;
        if (!c->ours) continue;
        if (c->until_ns <= now)
            end_ours(c, PL_ETIMEOUT);
        else
            wake_by(r, c->until_ns);
    }
}

static void ask(pl_call *c)
{
    pl_remote *r = c->r;
    pl_side *s = pl_side_of(r, c->peer);
    if (!s) {
        end_ours(c, PL_ENOTFOUND);
        return;
    }
    enter(c, s);
    pl_map_put(&r->asked, (uint64_t)c->number, c);
    wake_by(r, c->until_ns);
    pl_buf *b = pl_remote_begin(r, c->number);
    pl_buf_add(b, c->text.data, c->text.len);
    pl_buf_fini(&c->text);
    pl_remote_send(s, PL_MSG_CALL);
    pl_side_put(s);
}

static pl_status take_reply(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    int32_t number = 0, status = 0;
    PL_TRY(pl_reader_i32(&in, &number));
    PL_TRY(pl_reader_i32(&in, &status));
    pl_call *c = pl_map_find(&r->asked, (uint64_t)number);
    if (!c || c->side != s) return PL_OK; /* its time is over */
    if (status >= 0) pl_buf_add(&c->text, in.at, (size_t)(in.end - in.at));
    end_ours(c, PL_MIN(status, 0));
    return PL_OK;
}

/* ---- theirs ------------------------------------------------------------------------ */

static void reply(pl_side *s, int32_t number, int status, const pl_buf *text)
{
    pl_buf *b = pl_remote_begin(s->r, number);
    pl_remote_i32(b, status);
    if (text) pl_buf_add(b, text->data, text->len);
    pl_remote_send(s, PL_MSG_REPLY);
}

static pl_status take_call(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    int32_t number = 0;
    PL_TRY(pl_reader_i32(&in, &number));
    size_t len = (size_t)(in.end - in.at);
    if (s->n_calls >= MAX_CALLS || s->call_bytes + len > MAX_CALL_BYTES) {
        reply(s, number, PL_ELIMIT, NULL);
        return PL_OK;
    }
    pl_call *c = make(r, number, false, in.at, len);
    c->len = len;
    s->n_calls++;
    s->call_bytes += len;
    enter(c, s);
    atomic_fetch_add(&c->refs, 1); /* Lua's */
    c->news.event.object = c;
    pl_loop_tell(c->loop, &c->news);
    return PL_OK;
}

static void answer(pl_call *c)
{
    pl_side *s = c->side;
    if (!s) return; /* who asked is lost */
    s->n++;
    leave(c);
    reply(s, c->number, c->status, &c->answer);
    pl_side_put(s);
    put(c);
}

static void run_note(pl_note *note)
{
    pl_call *c = (pl_call *)((char *)note - offsetof(pl_call, note));
    if (c->ours) {
        ask(c);
    } else {
        answer(c);
        put(c);
    }
}

static void on_lost(void *ctx, pl_side *s, int why)
{
    pl_remote *r = ctx;
    (void)why;
    for (pl_call *c = r->calls, *next; c; c = next) {
        next = c->next;
        if (c->side != s) continue;
        if (c->ours) {
            end_ours(c, PL_ENOTFOUND);
        } else {
            leave(c);
            put(c);
        }
    }
}

/* ---- lua --------------------------------------------------------------------------- */

int32_t pl_remote_call(pl_remote *r, int32_t peer, const char *text, size_t len,
                       int timeout_ms)
{
    PL_ON(LUA);
    if (!r->links) return pl_fail(PL_EINVAL, "there is no bus to ask by");
    if (timeout_ms < 0 || timeout_ms > MAX_TIMEOUT_MS)
        return pl_fail(PL_EINVAL, "a call of %d ms: wanted 0 to %d", timeout_ms,
                       MAX_TIMEOUT_MS);
    if (len > MAX_TEXT)
        return pl_fail(PL_ELIMIT, "a call of %zu bytes: wanted at most %d", len,
                       MAX_TEXT);
    if (atomic_load(&r->n_asked) >= MAX_CALLS)
        return pl_fail(PL_ELIMIT, "%d calls are under way already", MAX_CALLS);
    atomic_fetch_add(&r->n_asked, 1);
    r->last_call = r->last_call == INT32_MAX ? 1 : r->last_call + 1;
    pl_call *c = make(r, r->last_call, true, text, len);
    c->peer = peer;
    c->until_ns = pl_now_ns() + (int64_t)timeout_ms * 1000000;
    c->note.run = run_note;
    pl_loop_post(r->loop, &c->note);
    return r->last_call;
}

const char *pl_call_text(const pl_call *c, size_t *len)
{
    *len = c->text.len;
    return c->text.len ? c->text.data : "";
}

static void give(pl_call *c, int status, const char *text, size_t len)
{
    if (c->ours || c->answered) return;
    c->answered = true;
    c->status = status;
    pl_buf_add(&c->answer, text, len);
    c->note.run = run_note;
    atomic_fetch_add(&c->refs, 1);
    pl_loop_post(c->loop, &c->note);
}

void pl_call_answer(pl_call *c, const char *text, size_t len)
{
    PL_ON(LUA);
    if (len > MAX_TEXT)
        give(c, PL_ELIMIT, NULL, 0);
    else
        give(c, PL_OK, text, len);
}

void pl_call_close(pl_call *c)
{
    PL_ON(LUA);
    if (!c) return;
    give(c, PL_ECANCELED, NULL, 0);
    put(c);
}

/* ---- life -------------------------------------------------------------------------- */

void pl_calls_open(pl_remote *r)
{
    static const pl_message_kind kinds[] = {
        {PL_MSG_CALL, "call", true, take_call},
        {PL_MSG_REPLY, "reply", false, take_reply},
    };
    pl_remote_register(r, &(pl_service){r, on_lost, NULL, kinds, PL_COUNT(kinds)});
}

void pl_calls_begin(pl_remote *r)
{
    PL_ON(IO);
    if (r->timing) return;
    r->timing = true;
    uv_timer_init(pl_loop_uv(r->loop), &r->timer);
    r->timer.data = r;
}

void pl_calls_stop(pl_remote *r)
{
    PL_ON(IO);
    if (r->timing) uv_close((uv_handle_t *)&r->timer, NULL);
}
