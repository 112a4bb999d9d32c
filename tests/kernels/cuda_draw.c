/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokens and logprobs that a GPU draws against core/sample.c: the same, bit for bit, for
 * rows and samplers of every kind, among them tokens that the host does not know yet.
 */
#include "cuda_own.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SEQS = 48,
    TOKENS = 60,
    LIST = 40
};

static uint64_t dice(uint64_t of, uint64_t lane)
{
    return pl_random_at(11, of, lane) >> 8;
}

static void must(cudaError_t e)
{
    if (e == cudaSuccess) return;
    printf("CUDA: %s\n", cudaGetErrorString(e));
    exit(2);
}

/* ---- rows ------------------------------------------------------------------------ */

/* Like logits; flat; of few values; nearly one token; and with what is no number. */
static void make_row(float *row, int32_t vocab, uint64_t seed)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 0, -0.0f};
    int kind = (int)(dice(seed, 0) % 5);
    for (int32_t i = 0; i < vocab; i++) {
        uint64_t r = pl_random_at(seed, (uint64_t)i, 1);
        float a = (float)(r >> 40) * 0x1p-24f, b = (float)(r & 0xffffff) * 0x1p-24f;
        float normal = sqrtf(-2 * logf(a + 1e-9f)) * cosf(6.2831853f * b);
        row[i] = kind == 0   ? 3 * normal
                 : kind == 1 ? 0
                 : kind == 2 ? floorf(2 * normal)
                 : kind == 3 ? normal - (i == vocab / 3 ? -20 : 10)
                 : r % 9     ? normal
                             : odd[r / 16 % PL_COUNT(odd)];
    }
}

/* ---- samplers -------------------------------------------------------------------- */

typedef struct lists {
    int32_t tokens[TOKENS], allowed[LIST], bias_ids[LIST], bad_words[LIST], ends[2];
    float bias[LIST];
} lists;

static int32_t id_at(int32_t vocab, uint64_t seed, uint64_t lane)
{
    return (int32_t)(dice(seed, lane) % (uint64_t)PL_MIN(vocab, 50));
}

static pl_params params_of(uint64_t seed, int32_t vocab)
{
    static const float temperatures[] = {0, 0.005f, 0.7f, 1, 3};
    static const int32_t top_k[] = {0, 0, 1, 20, 700, 5000};
    static const float top_p[] = {1, 1, 0.95f, 0.5f, 1e-7f}, min_p[] = {0, 0, 0.02f, 1};
    pl_params p = {0};
    pl_params_init(&p);
    p.seed = seed;
    p.temperature = temperatures[dice(seed, 2) % PL_COUNT(temperatures)];
    p.top_k = top_k[dice(seed, 3) % PL_COUNT(top_k)];
    p.top_p = top_p[dice(seed, 4) % PL_COUNT(top_p)];
    p.min_p = min_p[dice(seed, 5) % PL_COUNT(min_p)];
    p.logprobs = (int32_t)PL_MIN(dice(seed, 6) % 23, (uint64_t)vocab) - 1;
    p.repetition_penalty = dice(seed, 7) % 2 ? 1 : 1.3f;
    p.presence_penalty = dice(seed, 8) % 3 ? 0 : 0.7f;
    p.frequency_penalty = dice(seed, 9) % 3 ? 0 : -0.2f;
    p.min_tokens = dice(seed, 10) % 4 ? 0 : TOKENS;
    return p;
}

static pl_sampler sampler_of(uint64_t seed, int32_t vocab, lists *l)
{
    pl_sampler s = {
        .params = params_of(seed, vocab), .n_prompt = 20, .tokens = l->tokens};
    for (int i = 0; i < TOKENS; i++) l->tokens[i] = id_at(vocab, seed, 100 + i);
    for (int i = 0; i < LIST; i++) {
        l->allowed[i] = id_at(vocab, seed, 200 + i);
        l->bias_ids[i] = id_at(vocab, seed, 300 + i);
        l->bias[i] = (float)(dice(seed, 400 + i) % 9) - 4;
    }
    l->ends[0] = id_at(vocab, seed, 500), l->ends[1] = id_at(vocab, seed, 501);
    /* One alone, what came last before it, and what did not. */
    int32_t *w = l->bad_words, last = l->tokens[TOKENS - 1];
    w[0] = 1, w[1] = id_at(vocab, seed, 502);
    w[2] = 3, w[3] = l->tokens[TOKENS - 2], w[4] = last, w[5] = id_at(vocab, seed, 503);
    w[6] = 2, w[7] = last + 1, w[8] = id_at(vocab, seed, 504);
    if (dice(seed, 11) % 4 == 0) s.allowed = l->allowed, s.n_allowed = LIST;
    if (dice(seed, 12) % 3 == 0)
        s.bias_ids = l->bias_ids, s.bias = l->bias, s.n_bias = LIST;
    if (dice(seed, 13) % 3 == 0) s.bad_words = w, s.bad_words_len = 9;
    s.end_ids = l->ends, s.n_end_ids = 2;
    return s;
}

/* ---- both ------------------------------------------------------------------------ */

typedef struct bench {
    pl_plan plan;
    pl_cuda cuda;
    pl_planned planned;
    pl_cu_flight flight;
    pl_step *step;
    uint64_t before[SEQS]; /* keys of what the step before drew: the last tokens */
    float *rows;           /* on the host */
} bench;

static void *on_gpu(size_t bytes)
{
    void *p;
    must(cudaMalloc(&p, bytes));
    must(cudaMemset(p, 0xff, bytes));
    return p;
}

static void open_bench(bench *b, int32_t vocab)
{
    size_t bytes = (size_t)SEQS * (size_t)vocab * sizeof(float);
    *b = (bench){.plan.vocab = vocab};
    pl_planned *p = &b->planned;
    p->cuda = &b->cuda, p->plan = &b->plan;
    p->logits = on_gpu(bytes), p->edited = on_gpu(bytes);
    p->tops = on_gpu(SEQS * sizeof *p->tops);
    b->flight.drawn = on_gpu(SEQS * sizeof(uint64_t));
    b->flight.drawn_host = pl_alloc(SEQS * sizeof(uint64_t));
    b->flight.tops_host = pl_alloc(SEQS * sizeof *p->tops);
    b->flight.draws = pl_alloc(SEQS * sizeof *b->flight.draws);
    p->host_logits = pl_alloc(bytes);
    p->scratch = pl_sample_scratch_open(vocab);
    b->flight.step = b->step = pl_step_open(SEQS, SEQS);
    b->rows = pl_alloc(bytes);
}

static void close_bench(bench *b)
{
    pl_planned *p = &b->planned;
    void *gpu[] = {p->logits, p->edited, p->tops, b->flight.drawn};
    void *host[] = {b->flight.drawn_host, b->flight.tops_host, b->flight.draws,
                    p->host_logits, b->rows};
    for (int i = 0; i < PL_COUNT(gpu); i++) cudaFree(gpu[i]);
    for (int i = 0; i < PL_COUNT(host); i++) pl_free(host[i]);
    pl_sample_scratch_close(p->scratch);
    pl_step_close(b->step);
}

static void draw_on_gpu(bench *b)
{
    pl_planned *p = &b->planned;
    pl_cu_flight *f = &b->flight;
    size_t bytes = (size_t)SEQS * (size_t)b->plan.vocab * sizeof(float);
    uint64_t *before = on_gpu(sizeof b->before);
    must(cudaMemcpy(p->logits, b->rows, bytes, cudaMemcpyHostToDevice));
    must(cudaMemcpy(before, b->before, sizeof b->before, cudaMemcpyHostToDevice));
    pl_cuda_list_draws(p, f);
    size_t told = (size_t)pl_cuda_draws_size(f) * sizeof(int32_t);
    f->meta = pl_alloc(told + 1);
    pl_cuda_tell_draws(p, f, 0);
    p->meta = on_gpu(told + 1);
    must(cudaMemcpy(p->meta, f->meta, told, cudaMemcpyHostToDevice));
    bool ok = pl_cuda_draw(p, f, f->n_draws, before) == PL_OK &&
              pl_cuda_bring_draws(p, f) == PL_OK;
    must(cudaStreamSynchronize(NULL));
    if (!ok) exit(2);
    pl_cuda_take_draws(p, f);
    pl_free(f->meta);
    cudaFree(p->meta);
    cudaFree(before);
}

/* Sequence i of a step, as the host would draw it: 0 if the GPU did the same. */
static int compare(bench *b, int i, const pl_sampler *sampler, int *counts)
{
    pl_step_seq *q = &b->step->seqs[i];
    pl_logprob want[1 + PL_CU_BEST + 2];
    int32_t vocab = b->plan.vocab;
    float *row = b->rows + (size_t)i * (size_t)vocab;
    const pl_cu_draw *d = &b->flight.draws[i];
    counts[d->kind]++;
    if (d->kind != PL_CU_SAMPLED) return 0;
    int32_t token = pl_sample(b->planned.scratch, row, vocab, sampler, want);
    bool same = token == q->sampled.token;
    int n = PL_MIN(sampler->params.logprobs, vocab) + 1;
    for (int k = 0; k < n; k++)
        same = same && memcmp(&want[k], &q->top[k], sizeof *want) == 0;
    if (!same)
        printf("vocab %d, row %d: %d, wanted %d (temperature %g, k %d, p %g, min %g, "
               "%d logprobs)\n",
               vocab, i, q->sampled.token, token, (double)sampler->params.temperature,
               sampler->params.top_k, (double)sampler->params.top_p,
               (double)sampler->params.min_p, sampler->params.logprobs);
    return !same;
}

static int check(int32_t vocab, uint64_t seed, int *counts)
{
    static bench b;
    static lists all[SEQS];
    pl_sampler samplers[SEQS];
    int wrong = 0;
    open_bench(&b, vocab);
    for (int i = 0; i < SEQS; i++) {
        uint64_t own = seed * 1000 + (uint64_t)i;
        samplers[i] = sampler_of(own, vocab, &all[i]);
        make_row(b.rows + (size_t)i * (size_t)vocab, vocab, own);
        pl_step_seq *q = pl_step_add(b.step, TOKENS - 1, NULL, 0, NULL, 0);
        pl_step_add_drawn(b.step, q, i);
        pl_step_want_token(b.step, q, &samplers[i]);
        samplers[i].position = samplers[i].n_tokens = TOKENS;
        b.before[i] = (uint32_t)~all[i].tokens[TOKENS - 1];
    }
    draw_on_gpu(&b);
    for (int i = 0; i < SEQS; i++) wrong += compare(&b, i, &samplers[i], counts);
    close_bench(&b);
    return wrong;
}

int main(void)
{
    static const int32_t vocabs[] = {1, 2, 31, 33, 600, 3001, 50257, 151936};
    int wrong = 0, counts[3] = {0};
    for (int i = 0; i < PL_COUNT(vocabs); i++)
        for (uint64_t seed = 1; seed <= 4; seed++)
            wrong += check(vocabs[i], seed, counts);
    printf("%d sampled, %d differ\n", counts[PL_CU_SAMPLED], wrong);
    return wrong || !counts[PL_CU_SAMPLED];
}
