/* SPDX-License-Identifier: Apache-2.0
 *
 * remote_seq.c - sequences of ours that run in other processes, and theirs that run here.
 *
 * Owns     which they are, and a step's tokens until its batch ends.
 * Ignores  text; how far a sequence of ours has come (course.h).
 * Thread   io
 */
#include "remote_own.h"

#include <string.h>

enum {
    MAX_GATHERED = 1 << 20, /* bytes of a TOKENS message, before it is sent early */
    MAX_PROMPT_TOPS = 32 << 20,
    MAX_WHY = 1024
};

/* ---- ours, there ------------------------------------------------------------------- */

static void drop_away(pl_remote *r, away *a)
{
    pl_side *s = a->side;
    pl_map_remove(&r->aways, (uint64_t)a->seq);
    *a->link = a->next;
    if (a->next) a->next->link = a->link;
    pl_free(a);
    pl_side_put(s);
}

static void add_away(pl_side *s, int32_t seq)
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
    pl_side *s = pl_side_of(r, peer);
    if (!s) {
        pl_courses_lost(r->courses, seq, PL_LOST_GONE, PL_ENOTFOUND, NULL, 0);
        return;
    }
    add_away(s, seq);
    pl_buf *b = pl_remote_begin(r, index);
    pl_remote_i32(b, seq);
    pl_buf_add(b, parcel->data, parcel->len);
    pl_remote_send(s, PL_MSG_SUBMIT);
    pl_side_put(s);
}

static void cancel_away(void *ctx, int32_t seq, bool aborted)
{
    pl_remote *r = ctx;
    away *a = pl_map_find(&r->aways, (uint64_t)seq);
    if (!a) return;
    pl_side *s = a->side;
    s->n++;
    drop_away(r, a);
    pl_buf *b = pl_remote_begin(r, seq);
    pl_remote_i32(b, aborted);
    pl_remote_send(s, PL_MSG_CANCEL);
    pl_side_put(s);
}

static void withdraw_there(void *ctx, int32_t peer, uint64_t ticket)
{
    pl_remote *r = ctx;
    pl_side *s = pl_side_of(r, peer);
    if (!s) return;
    pl_buf *b = pl_remote_begin(r, (int32_t)(uint32_t)ticket);
    pl_remote_i32(b, (int32_t)(uint32_t)(ticket >> 32));
    pl_remote_send(s, PL_MSG_KV_WITHDRAW);
    pl_side_put(s);
}

static uint64_t process_of(void *ctx, int32_t peer)
{
    return pl_remote_process(ctx, peer);
}

static away *find_away(const pl_side *s, int32_t seq)
{
    away *a = seq > 0 ? pl_map_find(&s->r->aways, (uint64_t)seq) : NULL;
    return a && a->side == s ? a : NULL;
}

static void take_token(pl_side *s, const pl_token *t, int64_t waited_ns, int64_t ns)
{
    pl_remote *r = s->r;
    away *a = find_away(s, t->seq);
    if (!a) return; /* it was cancelled, or runs elsewhere by now */
    if (!a->started) pl_courses_waited(r->courses, t->seq, waited_ns);
    a->started = true;
    if (t->finish) drop_away(r, a);
    pl_courses_token(r->courses, t, ns);
}

static pl_status take_tokens(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    int64_t now = pl_now_ns(), waited_ns = 0;
    while (in.at < in.end) {
        pl_token t;
        PL_TRY(pl_wire_get_token(&in.at, in.end, &t, &waited_ns, &r->tops));
        take_token(s, &t, waited_ns, now);
    }
    return PL_OK;
}

static pl_status take_started(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    int32_t seq = 0;
    uint64_t waited = 0;
    PL_TRY(pl_reader_i32(&in, &seq));
    PL_TRY(pl_reader_u64(&in, &waited));
    away *a = find_away(s, seq);
    if (!a || a->started) return PL_OK;
    a->started = true;
    pl_courses_waited(r->courses, seq, (int64_t)PL_MIN(waited, (uint64_t)INT64_MAX));
    return PL_OK;
}

static pl_status take_refusal(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    int32_t seq = 0, status = 0;
    PL_TRY(pl_reader_i32(&in, &seq));
    PL_TRY(pl_reader_i32(&in, &status));
    away *a = find_away(s, seq);
    if (!a) return PL_OK;
    drop_away(r, a);
    if (status >= 0) status = PL_EINTERNAL;
    size_t len = PL_MIN((size_t)(in.end - in.at), (size_t)MAX_WHY);
    pl_courses_lost(r->courses, seq, PL_LOST_REFUSED, status, in.at, len);
    return PL_OK;
}

/* ---- theirs, here ------------------------------------------------------------------ */

static guest *find_guest(const pl_remote *r, int32_t seq)
{
    return pl_map_find(&r->guests, (uint64_t)seq);
}

static void add_guest(pl_side *s, guest *g)
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
    pl_side *s = g->side;
    if (!g->lends) pl_xfer_withdraw(s->r->xfer, s, g->ticket);
    pl_map_remove(&s->r->guests, (uint64_t)g->seq);
    pl_map_remove(&s->by_number, (uint64_t)g->number);
    *g->link = g->next;
    if (g->next) g->next->link = g->link;
    s->n_guests--;
    pl_buf_fini(&g->label);
    pl_free(g);
    pl_side_put(s);
}

static pl_status check_guest(const pl_side *s, int32_t index, int32_t number)
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

static pl_status take_in(pl_side *s, int32_t index, int32_t number, pl_reader in)
{
    PL_TRY(check_guest(s, index, number));
    pl_seq *seq;
    PL_TRY(pl_wire_get_seq(in.at, (size_t)(in.end - in.at), &seq));
    guest *g = pl_alloc(sizeof *g);
    *g = (guest){.side = s,
                 .engine = s->r->served[index],
                 .seq = pl_seq_id(seq),
                 .number = number,
                 .ticket = seq->ticket,
                 .lends = seq->lends,
                 .came_ns = pl_now_ns()};
    uint64_t lender = seq->lender;
    pl_buf_add(&g->label, seq->label, seq->label_len); /* the engine takes the rest */
    pl_status status = submit(g->engine, seq);
    if (status == PL_OK) {
        add_guest(s, g);
        if (g->lends)
            pl_xfer_begin(s->r->xfer, s, g->ticket, g->engine, g->seq);
        else
            pl_xfer_expect(s->r->xfer, s, g->ticket, lender);
        return PL_OK;
    }
    pl_buf_fini(&g->label);
    pl_free(g);
    pl_seq_close(seq);
    return status;
}

static pl_status take_submit(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    int32_t index = 0, number = 0;
    PL_TRY(pl_reader_i32(&in, &index));
    PL_TRY(pl_reader_i32(&in, &number));
    pl_status status = take_in(s, index, number, in);
    if (status == PL_OK) return PL_OK;
    pl_buf *b = pl_remote_begin(r, number);
    pl_remote_i32(b, status);
    pl_buf_add_str(b, pl_error_text());
    pl_remote_send(s, PL_MSG_REFUSED);
    return status == PL_EFORMAT ? status : PL_OK;
}

/* The label is names and values, the first value a request's id. */
static void tell_aborted(const guest *g)
{
    if (!g->label.len) return;
    const char *id = g->label.data + strlen(g->label.data) + 1;
    pl_log_with(PL_LOG_INFO, &g->label, "Aborted Request ID: %s", id);
}

static pl_status take_cancel(void *ctx, pl_side *s, pl_reader in)
{
    (void)ctx;
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

/* Who waits for its KV is called when it begins, and does not wait for its first token. */
static void tell_started(const guest *g)
{
    pl_buf *b = pl_remote_begin(g->side->r, g->number);
    pl_remote_u64(b, (uint64_t)g->waited_ns);
    pl_remote_send(g->side, PL_MSG_STARTED);
}

void pl_remote_started(pl_remote *r, int32_t seq, int64_t ns)
{
    PL_ON(IO);
    guest *g = find_guest(r, seq);
    if (!g) {
        pl_courses_started(r->courses, seq, ns);
        return;
    }
    g->waited_ns = PL_MAX(0, ns - g->came_ns);
    if (g->lends) tell_started(g);
}

static void send_gathered(pl_side *s)
{
    pl_buf out = s->out;
    s->out = (pl_buf){0};
    if (s->link) pl_link_send(s->link, PL_MSG_TOKENS, out.data, out.len);
    out.len = 0;
    if (!s->out.cap)
        s->out = out;
    else
        pl_buf_fini(&out);
}

static void gather(pl_side *s)
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
    PL_ON(IO);
    guest *g = find_guest(r, t->seq);
    if (!g) {
        pl_courses_token(r->courses, t, ns);
        return;
    }
    pl_side *s = g->side;
    gather(s);
    pl_wire_put_token(&s->out, t, g->number, g->waited_ns);
    if (t->finish) drop_guest(g);
    if (s->out.len > MAX_GATHERED) send_gathered(s);
}

void pl_remote_batch_end(pl_remote *r)
{
    PL_ON(IO);
    while (r->first_out) {
        pl_side *s = r->first_out;
        r->first_out = s->next_out;
        s->gathered = false;
        if (s->out.len) send_gathered(s);
        pl_side_put(s);
    }
}

/* ---- with remote ------------------------------------------------------------------- */

static void on_lost(void *ctx, pl_side *s, int why)
{
    pl_remote *r = ctx;
    s->out.len = 0;
    while (s->guests) {
        pl_engine_cancel(s->guests->engine, s->guests->seq);
        drop_guest(s->guests);
    }
    while (s->aways) {
        int32_t seq = s->aways->seq;
        drop_away(r, s->aways);
        pl_courses_lost(r->courses, seq, why, 0, NULL, 0);
    }
}

void pl_sequences_open(pl_remote *r)
{
    static const pl_message_kind kinds[] = {
        {PL_MSG_SUBMIT, "sequence", true, take_submit},
        {PL_MSG_CANCEL, "cancellation", false, take_cancel},
        {PL_MSG_TOKENS, "batch of tokens", false, take_tokens},
        {PL_MSG_STARTED, "start", false, take_started},
        {PL_MSG_REFUSED, "refusal", false, take_refusal},
    };
    pl_remote_register(r, &(pl_service){r, on_lost, NULL, kinds, PL_COUNT(kinds)});
}

void pl_sequences_join(pl_remote *r)
{
    pl_courses_sender(
        r->courses, &(pl_sender){r, send_away, cancel_away, withdraw_there, process_of});
}

void pl_sequences_close(pl_remote *r)
{
    pl_map_fini(&r->guests);
    pl_map_fini(&r->aways);
    pl_buf_fini(&r->tops);
}
