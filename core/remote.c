/* SPDX-License-Identifier: Apache-2.0 */
#include "remote_own.h"

#include "wire.h"

#include <stdio.h>
#include <string.h>

enum {
    MAX_GATHERED = 1 << 20, /* bytes of a TOKENS message, before it is sent early */
    MAX_PROMPT_TOPS = 32 << 20,
    MAX_WHY = 1024
};

/* ---- messages ---------------------------------------------------------------------- */

pl_status pl_reader_i32(reader *in, int32_t *out)
{
    if (in->end - in->at < 4) return pl_fail(PL_EFORMAT, "the message ends too early");
    const uint8_t *b = (const uint8_t *)in->at;
    *out = (int32_t)((uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 |
                     (uint32_t)b[3] << 24);
    in->at += 4;
    return PL_OK;
}

void pl_remote_i32(pl_buf *b, int32_t v)
{
    uint32_t u = (uint32_t)v;
    uint8_t bytes[4] = {(uint8_t)u, (uint8_t)(u >> 8), (uint8_t)(u >> 16),
                        (uint8_t)(u >> 24)};
    pl_buf_add(b, bytes, sizeof bytes);
}

pl_buf *pl_remote_begin(pl_remote *r, int32_t first)
{
    r->message.len = 0;
    pl_remote_i32(&r->message, first);
    return &r->message;
}

void pl_remote_send(side *s, int kind)
{
    if (s->link) pl_link_send(s->link, kind, s->r->message.data, s->r->message.len);
}

void pl_remote_malformed(pl_remote *r, const char *what)
{
    pl_metric_add(r->malformed, 1);
    int64_t now = pl_now_ns();
    if (now - r->complained_ns < 1000000000) return;
    r->complained_ns = now;
    pl_log(PL_LOG_WARN, "dropped a %s of another process: %s", what, pl_error_text());
}

/* ---- sides ------------------------------------------------------------------------- */

side *pl_side_take(pl_remote *r, pl_link *l, bool make)
{
    side *s = pl_map_find(&r->sides, (uintptr_t)l);
    if (!s && make) {
        s = pl_alloc(sizeof *s);
        s->r = r;
        s->link = l;
        pl_link_hold(l);
        pl_map_put(&r->sides, (uintptr_t)l, s);
    }
    if (s) s->n++;
    return s;
}

static void let_go_of_link(side *s)
{
    pl_link *l = s->link;
    if (!l) return;
    s->link = NULL;
    pl_map_remove(&s->r->sides, (uintptr_t)l);
    pl_link_release(l);
}

void pl_side_put(side *s)
{
    if (--s->n) return;
    let_go_of_link(s);
    pl_map_fini(&s->by_number);
    pl_buf_fini(&s->out);
    pl_free(s);
}

/* ---- ours, there ------------------------------------------------------------------- */

static void drop_away(pl_remote *r, away *a)
{
    side *s = a->side;
    pl_map_remove(&r->aways, (uint64_t)a->seq);
    *a->link = a->next;
    if (a->next) a->next->link = a->link;
    pl_free(a);
    pl_side_put(s);
}

static void add_away(side *s, int32_t seq)
{
    away *a = pl_alloc(sizeof *a);
    *a = (away){.side = s, .seq = seq, .next = s->aways, .link = &s->aways};
    if (a->next) a->next->link = &a->next;
    s->aways = a;
    s->n++;
    pl_map_put(&s->r->aways, (uint64_t)seq, a);
}

static void send_away(void *ctx, int32_t seq, int32_t peer, int index,
                      const pl_buf *parcel)
{
    pl_remote *r = ctx;
    pl_link *l = r->stopped ? NULL : pl_links_find(r->links, peer);
    if (!l) {
        pl_streams_lost(r->streams, seq, PL_LOST_GONE, PL_ENOTFOUND, NULL, 0);
        return;
    }
    side *s = pl_side_take(r, l, true);
    add_away(s, seq);
    pl_buf *b = pl_remote_begin(r, index);
    pl_remote_i32(b, seq);
    pl_buf_add(b, parcel->data, parcel->len);
    pl_remote_send(s, MSG_SUBMIT);
    pl_side_put(s);
}

static void cancel_away(void *ctx, int32_t seq, bool aborted)
{
    pl_remote *r = ctx;
    away *a = pl_map_find(&r->aways, (uint64_t)seq);
    if (!a) return;
    side *s = a->side;
    s->n++;
    drop_away(r, a);
    pl_buf *b = pl_remote_begin(r, seq);
    pl_remote_i32(b, aborted);
    pl_remote_send(s, MSG_CANCEL);
    pl_side_put(s);
}

static away *find_away(const side *s, int32_t seq)
{
    away *a = seq > 0 ? pl_map_find(&s->r->aways, (uint64_t)seq) : NULL;
    return a && a->side == s ? a : NULL;
}

static void take_token(side *s, const pl_token *t, int64_t waited_ns, int64_t ns)
{
    pl_remote *r = s->r;
    away *a = find_away(s, t->seq);
    if (!a) return; /* it was cancelled, or runs elsewhere by now */
    if (!a->started) pl_streams_waited(r->streams, t->seq, waited_ns);
    a->started = true;
    if (t->finish) drop_away(r, a);
    pl_streams_token(r->streams, t, ns);
}

static pl_status take_tokens(side *s, reader in)
{
    int64_t now = pl_now_ns(), waited_ns = 0;
    while (in.at < in.end) {
        pl_token t;
        PL_TRY(pl_wire_get_token(&in.at, in.end, &t, &waited_ns, &s->r->tops));
        take_token(s, &t, waited_ns, now);
    }
    return PL_OK;
}

static pl_status take_refusal(side *s, reader in)
{
    int32_t seq = 0, status = 0;
    PL_TRY(pl_reader_i32(&in, &seq));
    PL_TRY(pl_reader_i32(&in, &status));
    away *a = find_away(s, seq);
    if (!a) return PL_OK;
    drop_away(s->r, a);
    if (status >= 0) status = PL_EINTERNAL;
    size_t len = PL_MIN((size_t)(in.end - in.at), (size_t)MAX_WHY);
    pl_streams_lost(s->r->streams, seq, PL_LOST_REFUSED, status, in.at, len);
    return PL_OK;
}

/* ---- theirs, here ------------------------------------------------------------------ */

static guest *find_guest(const pl_remote *r, int32_t seq)
{
    return pl_map_find(&r->guests, (uint64_t)seq);
}

static void add_guest(side *s, guest *g)
{
    g->next = s->guests;
    g->link = &s->guests;
    if (g->next) g->next->link = &g->next;
    s->guests = g;
    s->n++;
    s->n_guests++;
    pl_map_put(&s->r->guests, (uint64_t)g->seq, g);
    pl_map_put(&s->by_number, (uint64_t)g->number, g);
}

static void drop_guest(guest *g)
{
    side *s = g->side;
    pl_map_remove(&s->r->guests, (uint64_t)g->seq);
    pl_map_remove(&s->by_number, (uint64_t)g->number);
    *g->link = g->next;
    if (g->next) g->next->link = g->link;
    s->n_guests--;
    pl_buf_fini(&g->label);
    pl_free(g);
    pl_side_put(s);
}

static pl_status check_guest(const side *s, int32_t index, int32_t number)
{
    if (index < 0 || index >= MAX_SERVED || !s->r->served[index])
        return pl_fail(PL_ENOTFOUND, "no engine %d is served here", index);
    if (s->n_guests >= MAX_GUESTS)
        return pl_fail(PL_ELIMIT, "more than %d sequences of one process", MAX_GUESTS);
    if (number < 1 || pl_map_find(&s->by_number, (uint64_t)number))
        return pl_fail(PL_EINVAL, "a sequence with number %d, which is in use or invalid",
                       number);
    return PL_OK;
}

static pl_status submit(pl_engine *e, pl_seq *seq)
{
    int64_t tops = (int64_t)seq->n_given * ((int64_t)seq->params.prompt_logprobs + 1) *
                   (int64_t)sizeof(pl_logprob);
    if (tops > MAX_PROMPT_TOPS)
        return pl_fail(PL_ELIMIT, "prompt_logprobs %d of %d tokens: too much to send",
                       seq->params.prompt_logprobs, seq->n_given);
    return pl_engine_submit(e, seq);
}

static pl_status take_in(side *s, int32_t index, int32_t number, reader in)
{
    PL_TRY(check_guest(s, index, number));
    pl_seq *seq;
    PL_TRY(pl_wire_get_seq(in.at, (size_t)(in.end - in.at), &seq));
    guest *g = pl_alloc(sizeof *g);
    *g = (guest){.side = s,
                 .engine = s->r->served[index],
                 .seq = pl_seq_id(seq),
                 .number = number,
                 .came_ns = pl_now_ns()};
    pl_buf_add(&g->label, seq->label, seq->label_len); /* the engine takes the rest */
    pl_status status = submit(g->engine, seq);
    if (status == PL_OK) {
        add_guest(s, g);
        return PL_OK;
    }
    pl_buf_fini(&g->label);
    pl_free(g);
    pl_seq_close(seq);
    return status;
}

static pl_status take_submit(side *s, reader in)
{
    int32_t index = 0, number = 0;
    PL_TRY(pl_reader_i32(&in, &index));
    PL_TRY(pl_reader_i32(&in, &number));
    pl_status status = take_in(s, index, number, in);
    if (status == PL_OK) return PL_OK;
    pl_buf *b = pl_remote_begin(s->r, number);
    pl_remote_i32(b, status);
    pl_buf_add_str(b, pl_error_text());
    pl_remote_send(s, MSG_REFUSED);
    return status == PL_EFORMAT ? status : PL_OK;
}

/* The label is names and values, the first value a request's id. */
static void tell_aborted(const guest *g)
{
    if (!g->label.len) return;
    const char *id = g->label.data + strlen(g->label.data) + 1;
    pl_log_with(PL_LOG_INFO, &g->label, "Aborted Request ID: %s", id);
}

static pl_status take_cancel(side *s, reader in)
{
    int32_t number = 0, aborted = 0;
    PL_TRY(pl_reader_i32(&in, &number));
    PL_TRY(pl_reader_i32(&in, &aborted));
    guest *g = pl_map_find(&s->by_number, (uint64_t)number);
    if (!g) return PL_OK; /* it has ended */
    if (aborted) tell_aborted(g);
    pl_engine_cancel(g->engine, g->seq);
    drop_guest(g);
    return PL_OK;
}

/* ---- a step's tokens --------------------------------------------------------------- */

void pl_remote_started(pl_remote *r, int32_t seq, int64_t ns)
{
    guest *g = find_guest(r, seq);
    if (g)
        g->waited_ns = PL_MAX(0, ns - g->came_ns);
    else
        pl_streams_started(r->streams, seq, ns);
}

static void send_gathered(side *s)
{
    pl_buf out = s->out;
    s->out = (pl_buf){0};
    if (s->link) pl_link_send(s->link, MSG_TOKENS, out.data, out.len);
    out.len = 0;
    if (!s->out.cap)
        s->out = out;
    else
        pl_buf_fini(&out);
}

static void gather(side *s)
{
    if (s->gathered) return;
    pl_remote *r = s->r;
    s->gathered = true;
    s->next_out = r->first_out;
    r->first_out = s;
    s->n++;
}

void pl_remote_token(pl_remote *r, const pl_token *t, int64_t ns)
{
    guest *g = find_guest(r, t->seq);
    if (!g) {
        pl_streams_token(r->streams, t, ns);
        return;
    }
    side *s = g->side;
    gather(s);
    pl_wire_put_token(&s->out, t, g->number, g->waited_ns);
    if (t->finish) drop_guest(g);
    if (s->out.len > MAX_GATHERED) send_gathered(s);
}

void pl_remote_batch_end(pl_remote *r)
{
    while (r->first_out) {
        side *s = r->first_out;
        r->first_out = s->next_out;
        s->gathered = false;
        if (s->out.len) send_gathered(s);
        pl_side_put(s);
    }
}

/* ---- what a link brings ------------------------------------------------------------ */

static void on_message(void *ctx, pl_link *l, int kind, const void *data, size_t len)
{
    static const struct {
        const char *name;
        pl_status (*take)(side *s, reader in);
        bool begins; /* something; the others speak of what is under way */
    } kinds[] = {
        [MSG_SUBMIT] = {"sequence", take_submit, true},
        [MSG_CANCEL] = {"cancellation", take_cancel, false},
        [MSG_TOKENS] = {"batch of tokens", take_tokens, false},
        [MSG_REFUSED] = {"refusal", take_refusal, false},
        [MSG_CALL] = {"call", pl_calls_asked, true},
        [MSG_REPLY] = {"reply", pl_calls_replied, false},
    };
    pl_remote *r = ctx;
    if (kind < 0 || kind >= PL_COUNT(kinds) || !kinds[kind].take || r->stopped) return;
    side *s = pl_side_take(r, l, kinds[kind].begins);
    if (!s) return;
    reader in = {data, (const char *)data + len};
    if (kinds[kind].take(s, in) < 0) pl_remote_malformed(r, kinds[kind].name);
    pl_side_put(s);
}

static void on_lost(void *ctx, pl_link *l, int why)
{
    pl_remote *r = ctx;
    side *s = pl_side_take(r, l, false);
    if (!s) return;
    let_go_of_link(s);
    s->out.len = 0;
    while (s->guests) {
        pl_engine_cancel(s->guests->engine, s->guests->seq);
        drop_guest(s->guests);
    }
    while (s->aways) {
        int32_t seq = s->aways->seq;
        drop_away(r, s->aways);
        pl_streams_lost(r->streams, seq, why, 0, NULL, 0);
    }
    pl_calls_lost(r, s);
    pl_side_put(s);
}

static void add_engine(const pl_engine *e, pl_buf *out)
{
    pl_engine_stats st;
    pl_engine_stats_get(e, &st);
    int64_t since = PL_MAX(st.busy_since_ns, st.last_step_ns);
    int64_t busy = st.busy_since_ns ? PL_MAX(0, pl_now_ns() - since) / 1000000 : 0;
    pl_buf_printf(out,
                  "{\"running\":%d,\"waiting\":%d,\"blocks\":%d,\"blocks_used\":%d,"
                  "\"blocks_cached\":%d,\"steps\":%lld,\"busy_ms\":%lld,"
                  "\"prompt_tokens\":%lld,\"generation_tokens\":%lld,"
                  "\"prefill_tokens\":%lld}",
                  st.running, st.waiting, st.blocks, st.blocks_used, st.blocks_cached,
                  (long long)st.steps, (long long)busy, (long long)st.prompt_tokens,
                  (long long)st.generation_tokens, (long long)st.prefill_tokens);
}

static void on_stats(void *ctx, pl_buf *out)
{
    pl_remote *r = ctx;
    int n = MAX_SERVED;
    while (n && !r->served[n - 1]) n--;
    pl_buf_add_str(out, "[");
    for (int i = 0; i < n; i++) {
        if (i) pl_buf_add_str(out, ",");
        if (r->served[i])
            add_engine(r->served[i], out);
        else
            pl_buf_add_str(out, "null");
    }
    pl_buf_add_str(out, "]");
}

/* ---- news for Lua ------------------------------------------------------------------ */

static void on_state(void *ctx, bool there)
{
    pl_remote *r = ctx;
    pl_loop_tell_newest(r->loop, &r->bus_news, there, 0);
}

typedef struct known { /* what Lua is to hear of a process */
    pl_news news;
    atomic_int refs; /* of the line, and while it is there */
} known;

static void put_known(known *p)
{
    if (atomic_fetch_sub(&p->refs, 1) == 1) pl_free(p);
}

static bool known_taken(pl_news *news, bool lost)
{
    put_known((known *)news);
    return !lost;
}

static void on_peer(void *ctx, int32_t id, int why)
{
    pl_remote *r = ctx;
    known *p = pl_map_find(&r->peers, (uint64_t)id);
    if (!p) {
        p = pl_alloc(sizeof *p);
        p->news.event = (pl_event){.kind = PL_EV_PEER, .id = id};
        p->news.taken = known_taken;
        atomic_init(&p->refs, 1);
        pl_map_put(&r->peers, (uint64_t)id, p);
    }
    atomic_fetch_add(&p->refs, 1);
    if (!pl_loop_tell_newest(r->loop, &p->news, why, 0)) put_known(p);
    if (!why) return;
    pl_map_remove(&r->peers, (uint64_t)id);
    put_known(p);
}

/* ---- lua --------------------------------------------------------------------------- */

static void run_begin(void *arg)
{
    pl_calls_begin(arg);
}

pl_status pl_remote_join(pl_remote *r, const pl_bus_options *options)
{
    if (r->links) return pl_fail(PL_EINVAL, "this process is on a bus already");
    pl_loop_call(r->loop, run_begin, r);
    pl_links *links = pl_links_open(
        r->loop, options, r->id,
        &(pl_links_hooks){r, on_message, on_lost, on_peer, on_state, on_stats});
    if (!links) return PL_EINVAL;
    r->links = links;
    pl_streams_sender(r->streams, &(pl_sender){r, send_away, cancel_away});
    return PL_OK;
}

const char *pl_remote_id(const pl_remote *r)
{
    return r->id;
}

void pl_remote_hello(pl_remote *r, const char *json, size_t len)
{
    if (r->links) pl_links_hello(r->links, json, len);
}

pl_status pl_remote_peer(pl_remote *r, int32_t peer, pl_buf *out)
{
    if (!r->links) return pl_fail(PL_ENOTFOUND, "no process %d: there is no bus", peer);
    return pl_links_peer(r->links, peer, out);
}

typedef struct serving {
    pl_remote *r;
    int index;
    pl_engine *engine;
} serving;

static void run_serve(void *arg)
{
    const serving *s = arg;
    s->r->served[s->index] = s->engine;
}

void pl_remote_serve(pl_remote *r, int index, pl_engine *e)
{
    if (index < 0 || index >= MAX_SERVED) {
        pl_log(PL_LOG_ERROR, "no engine can be served as %d: wanted 0 to %d", index,
               MAX_SERVED - 1);
        return;
    }
    pl_loop_call(r->loop, run_serve, &(serving){r, index, e});
}

void pl_remote_forget(pl_remote *r, const pl_engine *e)
{
    for (int i = 0; i < MAX_SERVED; i++)
        if (r->served[i] == e) r->served[i] = NULL;
}

/* ---- life -------------------------------------------------------------------------- */

pl_remote *pl_remote_open(pl_loop *loop, pl_streams *streams)
{
    pl_remote *r = pl_alloc(sizeof *r);
    r->loop = loop;
    r->streams = streams;
    snprintf(r->id, sizeof r->id, "%016llx", (unsigned long long)pl_entropy());
    r->bus_news.event.kind = PL_EV_BUS;
    r->malformed = pl_metric_open(PL_COUNTER, "perilune_bus_malformed_messages_total", "",
                                  "Malformed messages from other processes.", NULL, 0);
    return r;
}

void pl_remote_stop(pl_remote *r)
{
    r->stopped = true;
    pl_calls_stop(r);
    uint32_t at = 0;
    for (side *s; (s = pl_map_next(&r->sides, &at)); at = 0) on_lost(r, s->link, 0);
    if (r->links) pl_links_stop(r->links);
}

void pl_remote_close(pl_remote *r)
{
    if (r->links) pl_links_close(r->links);
    uint32_t at = 0;
    for (known *k; (k = pl_map_next(&r->peers, &at));) put_known(k);
    pl_map_fini(&r->peers);
    pl_map_fini(&r->sides);
    pl_map_fini(&r->guests);
    pl_map_fini(&r->aways);
    pl_map_fini(&r->asked);
    pl_buf_fini(&r->message);
    pl_buf_fini(&r->tops);
    pl_free(r);
}
