/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_remote.c - a process of a deployment that says anything: to one with an engine,
 * which has sent it a sequence, asked it something and follows its cache.
 *
 * The input is messages: kind, length (two bytes), bytes. A number 1 where an answer has
 * the number of what it answers becomes the right one. Checked besides memory: what is
 * told of a stream and a call, that the stream can end, and that what the cache is taken
 * to hold is what a lookup finds.
 */
#include "link.h"
#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUBMIT = 1,
    TOKENS = 3,
    REFUSED = 4,
    REPLY = 6,
    PATIENCE_MS = 10000,
    CALL_MS = 20,
    N_KINDS = 17,
    N_KEYS = 64
};

#define MUST(cond)                                                             \
    do {                                                                       \
        if (!(cond)) {                                                         \
            fprintf(stderr, "%s: %s (%s)\n", #cond, "false", pl_error_text()); \
            abort();                                                           \
        }                                                                      \
    } while (0)

static struct hostile {
    pl_loop *loop;
    pl_links *links;
    atomic_int peer;   /* the runtime, as it is known here */
    atomic_int number; /* of the sequence that came last */
} hostile;

static struct honest {
    pl_runtime *rt;
    pl_text *text;
    pl_engine *engine;
    int32_t peer; /* the hostile one, as it is known here */
    pl_route *index;
} honest;

/* ---- the hostile one --------------------------------------------------------------- */

static void on_message(void *ctx, pl_link *l, int kind, const void *data, size_t len)
{
    (void)ctx;
    (void)l;
    int32_t number = 0;
    if (kind != SUBMIT || len < 8) return;
    memcpy(&number, (const char *)data + 4, 4);
    atomic_store(&hostile.number, number);
}

static void on_lost(void *ctx, pl_link *l, int why)
{
    (void)ctx;
    (void)l;
    (void)why;
}

static void on_peer(void *ctx, int32_t peer, int why)
{
    (void)ctx;
    if (!why) atomic_store(&hostile.peer, peer);
}

static void on_state(void *ctx, bool there)
{
    (void)ctx;
    (void)there;
}

static void on_stats(void *ctx, pl_buf *out)
{
    (void)ctx;
    (void)out;
}

static void do_nothing(void *ctx)
{
    (void)ctx;
}

typedef struct talk {
    const uint8_t *data;
    size_t size;
    int32_t call;
} talk;

static void put_number(uint8_t *message, size_t len, int32_t number)
{
    int32_t was;
    if (len < 4) return;
    memcpy(&was, message, 4);
    if (was == 1) memcpy(message, &number, 4);
}

static void run_talk(void *arg)
{
    talk *t = arg;
    pl_link *l = pl_links_find(hostile.links, atomic_load(&hostile.peer));
    MUST(l);
    while (t->size >= 3) {
        int kind = t->data[0] % N_KINDS;
        size_t len = (size_t)t->data[1] | (size_t)t->data[2] << 8;
        len = PL_MIN(len, t->size - 3);
        uint8_t *message = pl_alloc(len + 1);
        memcpy(message, t->data + 3, len);
        if (kind == TOKENS && len > 4)
            put_number(message + 4, len - 4, atomic_load(&hostile.number));
        if (kind == REFUSED) put_number(message, len, atomic_load(&hostile.number));
        if (kind == REPLY) put_number(message, len, t->call);
        pl_link_send(l, kind, message, len);
        pl_free(message);
        t->data += 3 + len;
        t->size -= 3 + len;
    }
}

static void run_say(void *arg)
{
    const pl_buf *message = arg;
    pl_link *l = pl_links_find(hostile.links, atomic_load(&hostile.peer));
    MUST(l);
    pl_link_send(l, TOKENS, message->data, message->len);
}

/* ---- the honest one ---------------------------------------------------------------- */

static bool find_peer(void)
{
    pl_event ev;
    if (pl_poll(honest.rt, &ev, 1, 100) == 1 && ev.kind == PL_EV_PEER && !ev.a)
        honest.peer = ev.id;
    return honest.peer && atomic_load(&hostile.peer);
}

static void open_engine(void)
{
    pl_model_options m = {.n_layers = 1,
                          .hidden = 32,
                          .n_heads = 2,
                          .n_kv_heads = 1,
                          .head_dim = 16,
                          .ffn = 32,
                          .vocab = 64,
                          .max_positions = 256,
                          .norm_eps = 1e-5f,
                          .rope_theta = 10000,
                          .tied = 1,
                          .activations = PL_ACT_FLOAT32,
                          .kv_type = PL_KV_FLOAT32,
                          .block_size = 16};
    pl_engine_options e = {.n_blocks = 64,
                           .max_num_seqs = 8,
                           .max_num_batched_tokens = 64,
                           .max_model_len = 128,
                           .enable_prefix_caching = 1,
                           .enable_chunked_prefill = 1,
                           .max_waiting = 8};
    pl_model *model =
        pl_model_open(pl_device_open(&(pl_device_options){.name = "null"}), &m);
    MUST(model && pl_model_dummy(model) == 0 && pl_model_ready(model) == 0);
    honest.engine = pl_engine_open(model, &e);
    MUST(honest.engine && pl_runtime_attach(honest.rt, honest.engine) == 0);
    pl_bus_serve(honest.rt, 0, honest.engine);
}

static void open_text(void)
{
    pl_text_options o = {.kind = PL_TEXT_BYTES, .vocab_size = 64, .unk_id = -1};
    honest.text = pl_text_open(&o);
    for (int32_t i = 0; i < 64; i++) {
        char c = (char)('0' + i);
        MUST(pl_text_token(honest.text, i, &c, 1, PL_TOKEN_NORMAL, 0) == 0);
    }
    MUST(pl_text_ready(honest.text) == 0);
}

static void open_world(void)
{
    pl_log_level(PL_LOG_ERROR + 1);
    pl_bus_options o;
    pl_bus_options_init(&o);
    o.hub = pl_hub_open();
    o.lost_after_ms = 60000;
    honest.rt = pl_runtime_open(NULL);
    MUST(honest.rt && pl_bus_open(honest.rt, &o) == 0);
    open_engine();
    open_text();
    pl_bus_hello(honest.rt, "{}", 2);
    hostile.loop =
        pl_loop_open(&(pl_loop_hooks){NULL, do_nothing, do_nothing, do_nothing});
    hostile.links = pl_links_open(
        hostile.loop, &o, "00000000000000aa",
        &(pl_links_hooks){NULL, on_message, on_lost, on_peer, on_state, on_stats});
    MUST(hostile.links);
    pl_links_hello(hostile.links, "{}", 2);
    for (int i = 0; !find_peer(); i++) MUST(i < PATIENCE_MS / 100);
    honest.index = pl_route_open(1000);
    MUST(pl_route_join(honest.index) == 0);
    MUST(!pl_route_follow_peer(honest.index, 0, honest.rt, honest.peer, 0));
}

/* Of the first keys there are; the input may hold any. */
static void check_index(void)
{
    int64_t found = 0, held = 0;
    static int32_t depths[64];
    pl_route_apply(honest.index);
    held = pl_route_held(honest.index, 0);
    for (uint64_t key = 0; key < N_KEYS; key++) {
        MUST(pl_route_match(honest.index, &key, 1, depths) == 64);
        MUST(depths[0] == 0 || depths[0] == 1);
        found += depths[0];
    }
    MUST(held >= found);
    pl_route_stats stats;
    pl_route_stats_get(honest.index, &stats);
    MUST(stats.blocks >= held);
}

static pl_stream *send_stream(void)
{
    pl_params p;
    pl_params_init(&p);
    p.max_tokens = 40;
    pl_seq *seq = pl_seq_open((const int32_t[]){1, 2, 3}, 3, &p);
    int32_t id = pl_seq_id(seq);
    pl_stream *s = pl_stream_open(honest.rt, honest.text, PL_STREAM_PIECES, NULL);
    MUST(pl_stream_send(s, honest.peer, 0, seq) == 0);
    for (int64_t until = pl_now_ns() + PATIENCE_MS * 1000000LL;
         atomic_load(&hostile.number) != id;)
        MUST(pl_now_ns() < until);
    return s;
}

static void look(pl_stream *s, int32_t *n_heard)
{
    static atomic_llong sum; /* whatever it says must be there */
    size_t len;
    const pl_token *tokens;
    const int32_t *starts;
    pl_stream_take(s, &len);
    int n = pl_stream_tokens(s, &tokens, &starts);
    for (int i = 0; i < n; i++) {
        MUST(tokens[i].token >= 0 && starts[i] >= 0);
        MUST(tokens[i].index == (*n_heard)++);
        for (int k = 0; k < tokens[i].n_top; k++)
            atomic_fetch_add(&sum, tokens[i].top[k].rank);
        for (int k = 0; k < tokens[i].n_prompt_top; k++)
            atomic_fetch_add(&sum, tokens[i].prompt_top[k].rank);
    }
}

static void take_event(pl_stream *s, const pl_event *ev, int32_t *n_heard, bool *ended)
{
    if (ev->kind == PL_EV_CALL) {
        pl_call_answer(ev->object, "yes", 3);
        pl_call_close(ev->object);
    } else if (ev->kind == PL_EV_REPLY) {
        MUST(ev->object ? !ev->a : ev->a < 0);
        pl_call_close(ev->object);
    } else if (ev->kind == PL_EV_LOST) {
        MUST(ev->object == s && ev->b < 0 && !*ended);
        MUST(ev->a == PL_LOST_REFUSED || ev->a == PL_LOST_LEFT);
        MUST(strlen(pl_stream_why(s)) <= 1024);
        pl_stream_start(s, honest.engine, NULL); /* refused, it is cancelled below */
    } else if (ev->kind == PL_EV_PIECE || ev->kind == PL_EV_DONE) {
        MUST(ev->object == s && !*ended);
        look(s, n_heard);
        *ended = ev->kind == PL_EV_DONE;
    }
}

static bool take_events(pl_stream *s, int32_t *n_heard, int ms)
{
    pl_event ev;
    bool ended = false;
    while (!ended && pl_poll(honest.rt, &ev, 1, ms) == 1)
        take_event(s, &ev, n_heard, &ended);
    return ended;
}

/* Who leaves a token out is listened to no more: the stream would wait for ever. */
static void check_gap(void)
{
    pl_buf message = {0};
    pl_stream *s = send_stream();
    pl_wire_put_token(&message, &(pl_token){.token = 5, .index = 1, .stop_reason = -1},
                      atomic_load(&hostile.number), 0);
    pl_loop_call(hostile.loop, run_say, &message);
    pl_event ev = {0};
    while (ev.kind != PL_EV_LOST) MUST(pl_poll(honest.rt, &ev, 1, PATIENCE_MS) == 1);
    MUST(ev.object == s && ev.a == PL_LOST_REFUSED && ev.b == PL_EFORMAT);
    pl_stream_close(s);
    pl_buf_fini(&message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!honest.rt) {
        open_world();
        check_gap();
    }
    int32_t n_heard = 0;
    pl_stream *s = send_stream();
    int32_t call = pl_call_send(honest.rt, honest.peer, "?", 1, CALL_MS);
    pl_bus_serve(honest.rt, 1, NULL); /* waits until io has asked */
    talk t = {data, size, call};
    pl_loop_call(hostile.loop, run_talk, &t);
    pl_bus_serve(honest.rt, 1, NULL); /* and until io has heard */
    bool ended = take_events(s, &n_heard, 0);
    check_index();
    pl_stream_cancel(s);
    while (!ended) ended = take_events(s, &n_heard, PATIENCE_MS);
    pl_stream_close(s);
    return 0;
}
