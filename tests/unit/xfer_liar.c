/* SPDX-License-Identifier: Apache-2.0
 *
 * xfer_liar.c - processes that say what they should not about KV on its way; xfer_spec.lua
 * runs it, once for each lie.
 *
 * An honest process has a prompt read by a liar and goes on with it, or has one read that
 * a liar takes. Whatever that one says, and another one besides, the answer is the same as
 * alone, or the loan stands.
 */
#include "link.h"
#include "remote.h"
#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    LIAR,
    STRANGER,
    N_PROMPT = 100,
    N_ANSWER = 20,
    BLOCK = 16,
    PATIENCE_MS = 20000,
    SETTLE_US = 100000
};

#define MUST(cond)                                                             \
    do {                                                                       \
        if (!(cond)) {                                                         \
            fprintf(stderr, "%s: %s (%s)\n", #cond, "false", pl_error_text()); \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

static struct other {
    pl_links *links;
    atomic_int peer; /* the honest one, as it is known there */
    int32_t known;   /* as that one knows it */
} others[2];

static pl_loop *loop; /* of both */

static struct heard { /* by the liar */
    atomic_int number, kind;
    uint64_t ticket, block_bytes;
    int32_t first, end;
} heard;

static struct honest {
    pl_runtime *rt;
    pl_text *text;
    pl_engine *engine;
} honest;

/* ---- the others -------------------------------------------------------------------- */

static uint32_t get32(const char *at)
{
    const uint8_t *b = (const uint8_t *)at;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 |
           (uint32_t)b[3] << 24;
}

static uint64_t get64(const char *at)
{
    return get32(at) | (uint64_t)get32(at + 4) << 32;
}

static void hear_sequence(const char *at, size_t len)
{
    pl_seq *s;
    MUST(len > 8 && pl_wire_get_seq(at + 8, len - 8, &s) == PL_OK && s->ticket);
    heard.ticket = s->ticket;
    pl_seq_close(s);
    atomic_store(&heard.number, (int)get32(at + 4));
}

static void hear_want(const char *at, size_t len)
{
    MUST(len > 32 && get64(at) == heard.ticket);
    heard.first = (int32_t)get32(at + 8);
    heard.end = (int32_t)get32(at + 12);
    heard.block_bytes = get64(at + 24);
}

static void on_message(void *ctx, pl_link *l, int kind, const void *data, size_t len)
{
    (void)l;
    if (ctx != &others[LIAR]) return;
    if (kind == PL_MSG_SUBMIT) hear_sequence(data, len);
    if (kind == PL_MSG_KV_WANT) hear_want(data, len);
    atomic_store(&heard.kind, kind);
}

static void on_lost(void *ctx, pl_link *l, int why)
{
    (void)ctx;
    (void)l;
    MUST(!why);
}

static void on_peer(void *ctx, int32_t peer, int why)
{
    struct other *o = ctx;
    char mine[] = "\"id\":\"00000000000000a";
    pl_buf hello = {0};
    if (why || pl_links_peer(o->links, peer, &hello) < 0) return;
    pl_buf_add(&hello, "", 1);
    if (!strstr(hello.data, mine)) atomic_store(&o->peer, peer);
    pl_buf_fini(&hello);
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

static struct message {
    int from, kind;
    pl_buf bytes;
} message;

static void run_send(void *arg)
{
    const struct message *m = arg;
    struct other *o = &others[m->from];
    pl_link *l = pl_links_find(o->links, atomic_load(&o->peer));
    MUST(l);
    pl_link_send(l, m->kind, m->bytes.data, m->bytes.len);
}

static void put32(uint32_t v)
{
    char bytes[] = {(char)v, (char)(v >> 8), (char)(v >> 16), (char)(v >> 24)};
    pl_buf_add(&message.bytes, bytes, sizeof bytes);
}

static void put64(uint64_t v)
{
    put32((uint32_t)v);
    put32((uint32_t)(v >> 32));
}

static void begin(int from, int kind)
{
    message.from = from;
    message.kind = kind;
    message.bytes.len = 0;
}

static void say(void)
{
    pl_loop_call(loop, run_send, &message);
    usleep(SETTLE_US);
}

static void await(int kind)
{
    int64_t until = pl_now_ns() + PATIENCE_MS * INT64_C(1000000);
    while (atomic_load(&heard.kind) != kind) MUST(pl_now_ns() < until);
}

/* ---- the honest one ---------------------------------------------------------------- */

static void open_engine(void)
{
    pl_model_options m = {.n_layers = 2,
                          .hidden = 64,
                          .n_heads = 2,
                          .n_kv_heads = 1,
                          .head_dim = 32,
                          .ffn = 64,
                          .vocab = 64,
                          .max_positions = 256,
                          .norm_eps = 1e-5f,
                          .rope_theta = 10000,
                          .tied = 1,
                          .dummy_seed = 3,
                          .activations = PL_ACT_FLOAT32,
                          .kv_type = PL_KV_FLOAT32,
                          .block_size = BLOCK};
    pl_engine_options e = {.n_blocks = 64,
                           .max_num_seqs = 8,
                           .max_num_batched_tokens = 64,
                           .max_model_len = 200,
                           .enable_prefix_caching = 1,
                           .enable_chunked_prefill = 1,
                           .max_waiting = 8};
    pl_model *model =
        pl_model_open(pl_device_open(&(pl_device_options){.name = "cpu"}), &m);
    MUST(model && pl_model_dummy(model) == 0 && pl_model_ready(model) == 0);
    honest.engine = pl_engine_open(model, &e);
    MUST(honest.engine && pl_runtime_attach(honest.rt, honest.engine) == 0);
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

static void find_peers(void)
{
    pl_event ev;
    pl_buf hello = {0};
    if (pl_poll(honest.rt, &ev, 1, 100) != 1 || ev.kind != PL_EV_PEER || ev.a) return;
    if (pl_peer_hello(honest.rt, ev.id, &hello) < 0) return;
    pl_buf_add(&hello, "", 1);
    if (strstr(hello.data, "00000000000000a0")) others[LIAR].known = ev.id;
    if (strstr(hello.data, "00000000000000a1")) others[STRANGER].known = ev.id;
    pl_buf_fini(&hello);
}

static bool all_known(void)
{
    return others[0].known && others[1].known && atomic_load(&others[0].peer) &&
           atomic_load(&others[1].peer);
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
    loop = pl_loop_open(&(pl_loop_hooks){NULL, do_nothing, do_nothing, do_nothing});
    for (int i = 0; i < 2; i++) {
        const char *ids[] = {"00000000000000a0", "00000000000000a1"};
        pl_links_hooks hooks = {&others[i], on_message, on_lost,
                                on_peer,    on_state,   on_stats};
        others[i].links = pl_links_open(loop, &o, ids[i], &hooks);
        MUST(others[i].links);
        pl_links_hello(others[i].links, "{}", 2);
    }
    for (int i = 0; !all_known(); i++) {
        MUST(i < PATIENCE_MS / 100);
        find_peers();
    }
}

static pl_seq *prompt(void)
{
    int32_t ids[N_PROMPT];
    for (int32_t i = 0; i < N_PROMPT; i++) ids[i] = (i * 37 + 11) % 64;
    pl_params p;
    pl_params_init(&p);
    p.max_tokens = N_ANSWER;
    p.temperature = 0;
    p.ignore_eos = 1;
    return pl_seq_open(ids, N_PROMPT, &p);
}

static pl_stream *open_stream(void)
{
    return pl_stream_open(honest.rt, honest.text, PL_STREAM_WHOLE, NULL);
}

/* Its end, and its text: `bytes` of it. */
static void finish(pl_stream *s, char *text, size_t bytes)
{
    pl_event ev = {0};
    size_t len;
    while (ev.kind != PL_EV_DONE) {
        MUST(pl_poll(honest.rt, &ev, 1, PATIENCE_MS) == 1);
        MUST(ev.kind != PL_EV_LOST);
    }
    const char *all = pl_stream_take(s, &len);
    MUST(len < bytes);
    memcpy(text, all, len);
    text[len] = 0;
    pl_stream_close(s);
}

static double failures(const char *label)
{
    return pl_metric_value(pl_metric_open(
        PL_COUNTER, "perilune_kv_transfer_failures_total", label, "", NULL, 0));
}

/* ---- lies -------------------------------------------------------------------------- */

/* Blocks of nonsense; `off` is added to their hash. */
static void lie(int from, int32_t first, int32_t n, size_t bytes, uint64_t off)
{
    char *blocks = pl_alloc(bytes + 1);
    memset(blocks, 0x3f, bytes);
    begin(from, PL_MSG_KV_PIECE);
    put64(heard.ticket);
    put32((uint32_t)first);
    put32((uint32_t)n);
    put64(XXH3_64bits(blocks, bytes) + off);
    pl_buf_add(&message.bytes, blocks, bytes);
    say();
    pl_free(blocks);
}

static void over(int from, uint32_t why)
{
    begin(from, PL_MSG_KV_OVER);
    put64(heard.ticket);
    put32(why);
    say();
}

static void another_hash(void)
{
    lie(LIAR, 0, 1, heard.block_bytes, 1);
}

static void another_block(void)
{
    lie(LIAR, 1, 1, heard.block_bytes, 0);
}

static void too_many(void)
{
    lie(LIAR, 0, 8, 8 * heard.block_bytes, 0); /* there are seven */
}

static void too_short(void)
{
    lie(LIAR, 0, 2, heard.block_bytes, 0);
}

static void no_blocks(void)
{
    lie(LIAR, 0, -1, 0, 0);
}

static void by_a_stranger(void)
{
    lie(STRANGER, 0, 7, 7 * heard.block_bytes, 0);
    over(LIAR, PL_KV_ENDED);
}

static void after_the_end(void)
{
    over(LIAR, 99);
    lie(LIAR, 0, 7, 7 * heard.block_bytes, 0);
    over(LIAR, PL_KV_LAYOUT);
}

static void run_lie(void (*tell)(void), const char *reason)
{
    char want[100], got[100];
    pl_stream *s = open_stream();
    MUST(pl_stream_start(s, honest.engine, prompt()) == 0);
    finish(s, want, sizeof want);
    while (pl_engine_reset_cache(honest.engine) != PL_OK) usleep(1000);
    s = open_stream();
    pl_target reader = {.peer = others[LIAR].known}, taker = {.engine = honest.engine};
    MUST(pl_stream_split(s, &reader, &taker, prompt()) == 0);
    await(PL_MSG_SUBMIT);
    double before = failures(reason);
    begin(LIAR, PL_MSG_STARTED);
    put32((uint32_t)atomic_load(&heard.number));
    put64(0);
    say();
    await(PL_MSG_KV_WANT);
    MUST(heard.first == 0 && heard.end == N_PROMPT - 1);
    tell();
    finish(s, got, sizeof got);
    MUST(!strcmp(want, got));
    MUST(failures(reason) == before + 1);
}

/* Something is under way with the stranger too, else nothing it says is looked at. */
static void get_acquainted(void)
{
    begin(STRANGER, PL_MSG_CALL);
    put32(1);
    put32(0);
    say();
}

/* Only who gave a ticket can take it back. */
static void run_withdrawal(void)
{
    pl_engine_kv kv;
    char text[100];
    pl_engine_kv_get(honest.engine, &kv);
    pl_stream *s = open_stream();
    pl_target reader = {.engine = honest.engine}, taker = {.peer = others[LIAR].known};
    MUST(pl_stream_split(s, &reader, &taker, prompt()) == 0);
    await(PL_MSG_SUBMIT);
    begin(STRANGER, PL_MSG_KV_WITHDRAW);
    put64(heard.ticket);
    say();
    begin(LIAR, PL_MSG_KV_WANT);
    put64(heard.ticket);
    put32(0);
    put32(N_PROMPT - 1);
    put32(100);
    put32(BLOCK);
    put64(kv.block_bytes);
    pl_buf_add(&message.bytes, kv.layout, strlen(kv.layout));
    say();
    await(PL_MSG_KV_PIECE);
    pl_stream_cancel(s);
    finish(s, text, sizeof text);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name, *reason;
        void (*tell)(void);
    } lies[] = {
        {"another hash", "reason=\"corrupt\"", another_hash},
        {"another block", "reason=\"corrupt\"", another_block},
        {"too many", "reason=\"corrupt\"", too_many},
        {"too short", "reason=\"corrupt\"", too_short},
        {"no blocks", "reason=\"corrupt\"", no_blocks},
        {"by a stranger", "reason=\"ended\"", by_a_stranger},
        {"after the end", "reason=\"ended\"", after_the_end},
    };
    MUST(argc == 2);
    open_world();
    get_acquainted();
    if (!strcmp(argv[1], "withdrawal")) {
        run_withdrawal();
        return 0;
    }
    for (size_t i = 0; i < PL_COUNT(lies); i++) {
        if (strcmp(argv[1], lies[i].name) != 0) continue;
        run_lie(lies[i].tell, lies[i].reason);
        return 0;
    }
    fprintf(stderr, "no lie '%s'\n", argv[1]);
    return 2;
}
