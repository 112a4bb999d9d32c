/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_stress.c - the engine with its thread, under everything at once: two clients
 * that submit, one that cancels, a transfer that brings KV (or does not), a device that
 * fails. Whatever happens, each sequence must end once, and what it was told must be what
 * its tokens say (fake_model.h). At the end no block may be in use.
 *
 *   engine_stress [ROUNDS [FIRST_SEED]]
 */
#include "engine.h"
#include "fake_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    N_CLIENTS = 2,
    N_EACH = 150,
    N = N_CLIENTS * N_EACH,
    MAX_PROMPT = 120,
    MAX_OUT = 60
};

#define MUST(cond)                                                         \
    do {                                                                   \
        if (!(cond)) {                                                     \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, \
                    pl_error_text());                                      \
            abort();                                                       \
        }                                                                  \
    } while (0)

typedef struct text { /* a sequence as its client knows it */
    int32_t tokens[MAX_PROMPT + MAX_OUT];
    int32_t n_prompt, n, max_tokens, n_remote;
    int32_t n_stops; /* the first so many ids end it */
    bool wants_rows, placed;
    int32_t id;
    int finish;
} text;

typedef struct world {
    uint64_t seed;
    pl_model model;
    pl_engine *engine;
    pl_mutex lock; /* of texts, by_id, placed */
    text texts[N];
    int32_t first_id;
    int32_t by_id[4 * N]; /* index + 1 */
    int n_ended;
    pl_token_batch *placed[N]; /* with something to bring: a ring */
    int first_placed, n_placed;
    atomic_bool over;
} world;

static uint32_t dice(const world *w, uint64_t a, uint64_t b, uint32_t n)
{
    return (uint32_t)(pl_random_at(w->seed, a, b) % n);
}

/* ---- what is told --------------------------------------------------------------- */

static text *find_text(world *w, int32_t id)
{
    return &w->texts[w->by_id[id - w->first_id] - 1];
}

static void check_rows(const text *t, const pl_token *token)
{
    uint64_t context = 0;
    MUST(token->n_prompt_top == (t->n_prompt - 1) * 2);
    for (int32_t i = 0; i + 1 < t->n_prompt; i++) {
        context = fake_next(context, t->tokens[i]);
        MUST(token->prompt_top[2 * i].token == t->tokens[i + 1]);
        MUST(token->prompt_top[2 * i].logprob == (float)(context >> 40));
        MUST(token->prompt_top[2 * i + 1].rank == 2);
    }
}

static void hear(world *w, const pl_token *token)
{
    text *t = find_text(w, token->seq);
    MUST(t->finish == PL_FINISH_NONE);
    if (token->token >= 0) {
        MUST(token->token == fake_expect(&w->model, t->tokens, t->n));
        if (t->n == t->n_prompt && t->wants_rows && t->n_prompt > 1)
            check_rows(t, token);
        else
            MUST(token->n_prompt_top == 0);
        t->tokens[t->n++] = token->token;
    }
    t->finish = token->finish;
    if (!token->finish) return;
    w->n_ended++;
    if (token->finish == PL_FINISH_LENGTH)
        MUST(t->n - t->n_prompt == t->max_tokens);
    else if (token->finish == PL_FINISH_STOP)
        MUST(t->n_stops && token->token < t->n_stops && token->stop_reason >= 0);
    else
        MUST(token->token < 0);
}

static void sink(void *ctx, pl_token_batch *batch)
{
    world *w = ctx;
    pl_lock(&w->lock);
    for (int32_t i = 0; i < batch->n; i++) hear(w, &batch->tokens[i]);
    if (batch->n_placed) {
        MUST(w->n_placed < N);
        w->placed[(w->first_placed + w->n_placed++) % N] = batch;
        batch = NULL;
    }
    pl_wake(&w->lock);
    pl_unlock(&w->lock);
    pl_token_batch_put(batch);
}

static pl_token_batch *pop_placed(world *w)
{
    pl_token_batch *batch = NULL;
    pl_lock(&w->lock);
    if (w->n_placed) {
        batch = w->placed[w->first_placed];
        w->first_placed = (w->first_placed + 1) % N;
        w->n_placed--;
    }
    pl_unlock(&w->lock);
    return batch;
}

/* ---- those around --------------------------------------------------------------- */

static pl_seq *open_seq(world *w, int at)
{
    text *t = &w->texts[at];
    uint64_t key = (uint64_t)at;
    t->n_prompt = t->n = 1 + (int32_t)dice(w, key, 1, MAX_PROMPT);
    t->max_tokens = 1 + (int32_t)dice(w, key, 2, MAX_OUT);
    /* A few texts, of which many share the beginning. */
    uint64_t from = dice(w, key, 3, 3), fork = dice(w, key, 4, MAX_PROMPT);
    for (uint64_t i = 0; i < (uint64_t)t->n_prompt; i++)
        t->tokens[i] = (int32_t)dice(w, i < fork ? from : key + 100, i + 10, 500);
    t->wants_rows = dice(w, key, 5, 8) == 0;
    t->n_remote = dice(w, key, 6, 4) == 0 ? (int32_t)dice(w, key, 7, MAX_PROMPT) : 0;
    pl_params p;
    pl_params_init(&p);
    p.max_tokens = t->max_tokens;
    p.priority = (int32_t)dice(w, key, 8, 3);
    p.prompt_logprobs = t->wants_rows ? 1 : -1;
    pl_seq *s = pl_seq_open(t->tokens, t->n_prompt, &p);
    MUST(s);
    pl_seq_remote(s, t->n_remote);
    int32_t stops[25];
    t->n_stops = dice(w, key, 50, 3) == 0 ? PL_COUNT(stops) : 0;
    for (int32_t i = 0; i < t->n_stops; i++) stops[i] = i;
    MUST(pl_seq_stop_ids(s, stops, t->n_stops) == PL_OK);
    t->id = pl_seq_id(s);
    return s;
}

typedef struct client {
    world *world;
    int first;
    pthread_t thread;
} client;

static void *run_client(void *arg)
{
    client *c = arg;
    world *w = c->world;
    for (int i = c->first; i < c->first + N_EACH; i++) {
        pl_lock(&w->lock);
        pl_seq *s = open_seq(w, i);
        w->by_id[w->texts[i].id - w->first_id] = i + 1;
        pl_unlock(&w->lock);
        pl_status status;
        while ((status = pl_engine_submit(w->engine, s)) == PL_ELIMIT) usleep(100);
        MUST(status == PL_OK);
        if (dice(w, (uint64_t)i, 9, 20) == 0) usleep(1000);
    }
    return NULL;
}

static void *run_canceller(void *arg)
{
    world *w = arg;
    for (uint64_t i = 0; !atomic_load(&w->over); i++) {
        pl_lock(&w->lock);
        int32_t id = w->texts[dice(w, i, 20, N)].id;
        pl_unlock(&w->lock);
        if (id && dice(w, i, 21, 4) == 0) pl_engine_cancel(w->engine, id);
        usleep(200);
    }
    return NULL;
}

/* Brings the KV of one sequence: right, or wrong and said to be so. */
static void bring(world *w, const pl_placed *p)
{
    int32_t size = w->model.block_size;
    bool ok = dice(w, (uint64_t)p->seq, 30, 3) > 0;
    pl_lock(&w->lock);
    text *t = find_text(w, p->seq);
    MUST(!t->placed && t->n == t->n_prompt);
    t->placed = true;
    uint64_t context = 0;
    for (int32_t i = 0; i < p->first + p->n_tokens; i++) {
        context = fake_next(context, t->tokens[i]);
        if (i < p->first) continue;
        size_t bytes;
        uint64_t *block =
            pl_model_block(&w->model, p->blocks[(i - p->first) / size], &bytes);
        MUST(bytes == (size_t)size * sizeof *block);
        block[i % size] = ok ? context : 666;
    }
    pl_unlock(&w->lock);
    pl_engine_arrived(w->engine, p->seq, ok);
}

static void *run_transfer(void *arg)
{
    world *w = arg;
    while (!atomic_load(&w->over)) {
        pl_token_batch *batch = pop_placed(w);
        usleep(20);
        for (int32_t i = 0; batch && i < batch->n_placed; i++)
            bring(w, &batch->placed[i]);
        pl_token_batch_put(batch);
    }
    return NULL;
}

/* ---- a round -------------------------------------------------------------------- */

static void open_world(world *w, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->model = (pl_model){.vocab = 500,
                          .block_size = 1 + (int32_t)dice(w, 0, 40, 8),
                          .max_positions = 1000,
                          .depth = 1 + (int32_t)dice(w, 0, 48, 2)};
    w->model.fail_submit = w->model.fail_collect = seed % 2 ? 20 : 0;
    int32_t room = (MAX_PROMPT + MAX_OUT) / w->model.block_size + 2;
    pl_engine_options o = {
        .n_blocks = room + (int32_t)dice(w, 0, 41, 2 * (uint32_t)room),
        .max_num_seqs = 2 + (int32_t)dice(w, 0, 42, 18),
        .max_num_batched_tokens = 20 + (int32_t)dice(w, 0, 43, 200),
        .max_model_len = MAX_PROMPT + MAX_OUT + 1,
        .enable_prefix_caching = dice(w, 0, 44, 4) > 0,
        .enable_chunked_prefill = 1,
        .long_prefill_token_threshold = (int32_t)dice(w, 0, 45, 2) * 30,
        .policy = (int32_t)dice(w, 0, 46, 2),
        .hash_algo = (int32_t)dice(w, 0, 47, 3),
        .max_waiting = 30,
    };
    w->engine = pl_engine_open(&w->model, &o);
    MUST(w->engine);
    pl_mutex_init(&w->lock);
    pl_params p;
    pl_params_init(&p);
    pl_seq *probe = pl_seq_open((int32_t[]){1}, 1, &p);
    w->first_id = pl_seq_id(probe);
    pl_seq_close(probe);
}

static void close_world(world *w)
{
    pl_engine_close(w->engine);
    pl_mutex_fini(&w->lock);
}

static void wait_for(world *w, int n)
{
    pl_lock(&w->lock);
    while (w->n_ended < n) MUST(pl_wait(&w->lock, 60000));
    pl_unlock(&w->lock);
    pl_engine_stats s = {.blocks_used = 1};
    for (int i = 0; i < 20000 && s.blocks_used; i++) { /* orphans, still to arrive */
        usleep(500);
        pl_engine_stats_get(w->engine, &s);
    }
    MUST(s.blocks_used == 0 && s.running + s.waiting + s.waiting_remote == 0);
    MUST(pl_engine_check(w->engine) == PL_OK);
}

static void run_round(world *w, uint64_t seed, bool cut_short)
{
    client clients[N_CLIENTS];
    pthread_t canceller, transfer;
    open_world(w, seed);
    MUST(pl_engine_start(w->engine, sink, w) == PL_OK);
    MUST(pl_engine_step(w->engine) == PL_EINVAL);
    for (int i = 0; i < N_CLIENTS; i++) {
        clients[i] = (client){w, i * N_EACH, 0};
        pthread_create(&clients[i].thread, NULL, run_client, &clients[i]);
    }
    pthread_create(&canceller, NULL, run_canceller, w);
    pthread_create(&transfer, NULL, run_transfer, w);
    for (int i = 0; i < N_CLIENTS; i++) pthread_join(clients[i].thread, NULL);
    if (!cut_short) wait_for(w, N);
    atomic_store(&w->over, true);
    pthread_join(canceller, NULL);
    pthread_join(transfer, NULL);
    pl_engine_stop(w->engine);
    MUST(w->n_ended == N);
    pl_engine_stats s;
    pl_engine_stats_get(w->engine, &s);
    printf("seed %llu, depth %d: %lld steps, %lld rows, %lld preempted, %lld cached, "
           "%lld aborted\n",
           (unsigned long long)seed, w->model.depth, (long long)s.steps,
           (long long)w->model.n_rows, (long long)s.preemptions,
           (long long)s.cached_tokens, (long long)s.aborted);
    for (pl_token_batch *b; (b = pop_placed(w));) pl_token_batch_put(b);
    close_world(w);
}

static int step_until_told(pl_engine *e, const pl_token **out)
{
    for (int i = 0; i < 4; i++) {
        MUST(pl_engine_step(e) == PL_OK);
        if (pl_engine_tokens(e, out)) break;
    }
    return pl_engine_tokens(e, out);
}

/* A step fails that was to fill blocks which another sequence, placed in the same step,
 * has found already: what comes from elsewhere for that one must not be built upon. With
 * two steps in flight it has come before the first one fails, but the rest of a long
 * prompt goes first. */
static void test_spoiled(int depth)
{
    pl_model m = {.vocab = 500,
                  .block_size = 4,
                  .max_positions = 100,
                  .depth = depth,
                  .fail_collect = 1};
    pl_engine_options o = {.n_blocks = 20,
                           .max_num_seqs = 4,
                           .max_num_batched_tokens = 21,
                           .max_model_len = 50,
                           .enable_prefix_caching = 1,
                           .enable_chunked_prefill = 1,
                           .max_waiting = 4};
    pl_engine *e = pl_engine_open(&m, &o);
    int32_t tokens[20] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4};
    pl_params p;
    pl_params_init(&p);
    pl_seq *a = pl_seq_open(tokens, 20, &p), *b = pl_seq_open(tokens, 20, &p);
    pl_seq *rest = pl_seq_open((int32_t[40]){1}, 40, &p);
    int32_t id = pl_seq_id(b);
    pl_seq_remote(b, 20);
    MUST(pl_engine_submit(e, a) == PL_OK && pl_engine_submit(e, b) == PL_OK);
    MUST(pl_engine_submit(e, rest) == PL_OK);
    const pl_token *out;
    MUST(pl_engine_step(e) == PL_OK);
    if (depth == 2) {
        MUST(pl_engine_tokens(e, &out) == 0);
        pl_engine_arrived(e, id, 1);
        MUST(pl_engine_step(e) == PL_OK);
    }
    MUST(pl_engine_tokens(e, &out) == 2);
    MUST(out[0].finish == PL_FINISH_ERROR && out[1].finish == PL_FINISH_ERROR);
    m.fail_collect = 0;
    if (depth == 1) pl_engine_arrived(e, id, 1);
    MUST(step_until_told(e, &out) == 1 && out->seq == id);
    MUST(out->token == fake_expect(&m, tokens, 20) && out->n_cached == 0);
    pl_engine_stop(e);
    MUST(pl_engine_tokens(e, &out) == depth && out[depth - 1].finish == PL_FINISH_ABORT);
    pl_seq *late = pl_seq_open(tokens, 20, &p);
    MUST(pl_engine_submit(e, late) == PL_ECANCELED);
    pl_seq_close(late);
    pl_engine_close(e);
}

static void count_end(void *ctx, pl_token_batch *batch)
{
    atomic_fetch_add((atomic_int *)ctx, batch->n);
    pl_token_batch_put(batch);
}

/* Whoever asks while a sequence ends sees it there or gone, not half. */
static void test_counts(void)
{
    pl_model m = {.vocab = 500, .block_size = 4, .max_positions = 100, .depth = 2};
    pl_engine_options o = {.n_blocks = 20,
                           .max_num_seqs = 4,
                           .max_num_batched_tokens = 50,
                           .max_model_len = 50,
                           .enable_chunked_prefill = 1,
                           .max_waiting = 4};
    pl_engine *e = pl_engine_open(&m, &o);
    atomic_int n_told = 0;
    MUST(pl_engine_start(e, count_end, &n_told) == PL_OK);
    for (int i = 0; i < 4000; i++) {
        pl_params p;
        pl_params_init(&p);
        p.max_tokens = 2;
        MUST(pl_engine_submit(e, pl_seq_open((int32_t[]){1}, 1, &p)) == PL_OK);
        pl_engine_stats s = {.running = 1};
        while (s.running + s.waiting || atomic_load(&n_told) < 2 * (i + 1)) {
            pl_engine_stats_get(e, &s);
            MUST(s.running >= 0 && s.waiting >= 0 && s.running + s.waiting <= 1);
        }
    }
    pl_engine_close(e);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 8;
    uint64_t first = argc > 2 ? (uint64_t)atoll(argv[2]) : 1;
    world *w = pl_alloc(sizeof *w);
    pl_log_level(PL_LOG_ERROR + 1);
    test_spoiled(1);
    test_spoiled(2);
    test_counts();
    for (int i = 0; i < rounds; i++) run_round(w, first + (uint64_t)i, i % 4 == 3);
    pl_free(w);
    return 0;
}
