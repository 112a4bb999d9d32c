/* SPDX-License-Identifier: Apache-2.0
 *
 * What is wanted of a step's logits: which rows', how the GPU is to draw from them, and
 * what comes back. The host draws only where whole rows or many logprobs are asked for.
 */
#include "cuda_own.h"

#include "weight.h"

#include <string.h>

/* ---- which rows, and who draws ---------------------------------------------------- */

static bool is_wanted(const pl_step_seq *q, int32_t row)
{
    return (q->want & PL_WANT_LOGITS) ||
           (q->want & PL_WANT_ROWS && q->targets[row] >= 0) ||
           (q->want & PL_WANT_TOKEN && row == q->n_rows - 1);
}

static bool has_penalties(const pl_params *p)
{
    return p->repetition_penalty != 1 || p->presence_penalty != 0 ||
           p->frequency_penalty != 0;
}

static bool holds_back(const pl_sampler *s)
{
    return s->n_tokens - s->n_prompt < s->params.min_tokens;
}

static int kind_of(const pl_step_seq *q)
{
    const pl_sampler *s = &q->sampler;
    const pl_params *p = &s->params;
    if (q->want != PL_WANT_TOKEN || p->logprobs > PL_CU_BEST || s->n_bias > PL_CU_BIASED)
        return PL_CU_BY_HOST;
    bool plain = p->temperature < 1e-5f && p->logprobs < 0 && !has_penalties(p) &&
                 !s->allowed && !s->n_bias && !s->bad_words_len && !holds_back(s);
    return plain ? PL_CU_BEST_ONE : PL_CU_SAMPLED;
}

static int32_t words_of(const pl_planned *p)
{
    return (p->plan->vocab + 31) / 32;
}

/* int32s of its lists, at most */
static int64_t told_of(const pl_planned *p, const pl_sampler *s)
{
    return (has_penalties(&s->params) ? s->n_tokens : 0) + 2 * (int64_t)s->n_bias +
           2 * ((int64_t)s->bad_words_len + s->n_end_ids) +
           (s->allowed ? words_of(p) : 0);
}

void pl_cuda_list_draws(pl_planned *p, pl_cu_flight *f)
{
    f->n_draws = f->n_host = f->n_sampled = f->from = 0;
    f->told = 0;
    f->says = false;
    for (int32_t i = 0; i < f->step->n_seqs; i++) {
        const pl_step_seq *q = &f->step->seqs[i];
        for (int32_t row = 0; row < q->n_rows; row++) {
            if (!is_wanted(q, row)) continue;
            pl_cu_draw d = {i, row, kind_of(q)};
            f->draws[f->n_draws++] = d;
            f->n_host += d.kind == PL_CU_BY_HOST;
            if (d.kind != PL_CU_SAMPLED) continue;
            f->n_sampled++;
            f->told += told_of(p, &q->sampler);
            f->says = f->says || q->sampler.params.logprobs >= 0;
        }
    }
}

/* ---- what the GPU is told --------------------------------------------------------- */

/* Appends int32s to what the step tells. */
typedef struct teller {
    int32_t *meta;
    int64_t at;
} teller;

static void tell(teller *t, pl_cu_list *list, int32_t v)
{
    if (!list->n) list->at = (int32_t)t->at;
    t->meta[t->at++] = v;
    list->n++;
}

static void tell_bias(teller *t, const pl_sampler *s, pl_cu_list *list)
{
    for (int32_t i = 0; i < s->n_bias; i++) {
        int32_t bits;
        memcpy(&bits, &s->bias[i], sizeof bits);
        tell(t, list, s->bias_ids[i]);
        tell(t, list, bits);
    }
}

/* Bad words whose tokens but the last two stand there: the last one is masked if the one
 * before it is what was drawn last, which perhaps only the GPU knows. */
static void tell_bad_words(teller *t, const pl_sampler *s, pl_cu_list *list)
{
    int32_t n_output = s->n_tokens - s->n_prompt;
    for (int32_t i = 0; i < s->bad_words_len; i += 1 + s->bad_words[i]) {
        const int32_t *ids = s->bad_words + i + 1;
        int32_t before = s->bad_words[i] - 1;
        if (before > n_output) continue;
        const int32_t *from = s->tokens + s->n_tokens - before;
        if (before > 1 && memcmp(from, ids, (size_t)(before - 1) * sizeof *ids)) continue;
        tell(t, list, before ? ids[before - 1] : -1);
        tell(t, list, ids[before]);
    }
}

static void tell_masks(teller *t, const pl_sampler *s, pl_cu_list *list)
{
    tell_bad_words(t, s, list);
    for (int32_t i = 0; holds_back(s) && i < s->n_end_ids; i++) {
        tell(t, list, -1);
        tell(t, list, s->end_ids[i]);
    }
}

static void tell_allowed(teller *t, const pl_planned *p, const pl_sampler *s,
                         pl_cu_list *list)
{
    uint32_t *bits = (uint32_t *)t->meta + t->at;
    if (!s->allowed) return;
    memset(bits, 0, (size_t)words_of(p) * sizeof *bits);
    for (int32_t i = 0; i < s->n_allowed; i++)
        bits[s->allowed[i] / 32] |= 1u << s->allowed[i] % 32;
    *list = (pl_cu_list){(int32_t)t->at, words_of(p)};
    t->at += words_of(p);
}

static void tell_tokens(teller *t, const pl_sampler *s, pl_cu_list *list)
{
    if (!has_penalties(&s->params)) return;
    memcpy(t->meta + t->at, s->tokens, (size_t)s->n_tokens * sizeof *s->tokens);
    *list = (pl_cu_list){(int32_t)t->at, s->n_tokens};
    t->at += s->n_tokens;
}

static pl_cu_sampling sampling_of(const pl_planned *p, const pl_cu_flight *f,
                                  const pl_cu_draw *d, teller *t)
{
    const pl_step_seq *q = &f->step->seqs[d->seq];
    const pl_sampler *s = &q->sampler;
    const pl_params *o = &s->params;
    uint64_t bits = pl_random_at(o->seed, (uint64_t)s->position, 0);
    pl_cu_sampling out = {
        .u = (double)(bits >> 11) * 0x1p-53,
        .scale = o->temperature < 1e-5f ? 0 : 1 / PL_MAX(o->temperature, 0.01f),
        .least = pl_distance_of(o->min_p),
        .top_p = o->top_p,
        .repetition = o->repetition_penalty,
        .presence = o->presence_penalty,
        .frequency = o->frequency_penalty,
        .top_k = o->top_k,
        .n_best = PL_MIN(o->logprobs, p->plan->vocab),
        .row = (int32_t)(d - f->draws) % PL_CU_LOGIT_ROWS,
        .seq = d->seq,
        .last = f->step->tokens[q->first + d->row],
        .fallback = s->allowed ? s->allowed[0] : 0,
        .n_prompt = s->n_prompt,
    };
    tell_bias(t, s, &out.bias);
    tell_masks(t, s, &out.masks);
    tell_allowed(t, p, s, &out.allowed);
    tell_tokens(t, s, &out.tokens);
    return out;
}

int64_t pl_cuda_draws_size(const pl_cu_flight *f)
{
    return f->n_sampled * (int64_t)(sizeof(pl_cu_sampling) / sizeof(int32_t)) + f->told;
}

void pl_cuda_tell_draws(const pl_planned *p, pl_cu_flight *f, int64_t at)
{
    pl_cu_sampling *to = (pl_cu_sampling *)(f->meta + at);
    teller t = {f->meta, at + f->n_sampled * (int64_t)(sizeof *to / sizeof(int32_t))};
    f->samplings = at;
    for (int32_t i = 0; i < f->n_draws; i++)
        if (f->draws[i].kind == PL_CU_SAMPLED)
            *to++ = sampling_of(p, f, &f->draws[i], &t);
}

/* ---- draws ------------------------------------------------------------------------- */

static pl_status copy_logits(pl_planned *p, const pl_cu_flight *f, int32_t n)
{
    size_t vocab = (size_t)p->plan->vocab;
    for (int32_t i = 0; i < n; i++) {
        size_t at = (size_t)i * vocab;
        if (f->draws[f->from + i].kind != PL_CU_BY_HOST) continue;
        PL_TRY(pl_cuda_failed(cudaMemcpyAsync(p->host_logits + at, p->logits + at,
                                              vocab * sizeof(float),
                                              cudaMemcpyDeviceToHost, p->cuda->stream),
                              "logits"));
    }
    return PL_OK;
}

pl_status pl_cuda_draw(pl_planned *p, const pl_cu_flight *f, int32_t n,
                       const uint64_t *before)
{
    int32_t first = 0, count = 0;
    for (int32_t i = 0; i < f->from + n; i++) {
        if (f->draws[i].kind != PL_CU_SAMPLED) continue;
        *(i < f->from ? &first : &count) += 1;
    }
    pl_cu_sampler s = {.logits = p->logits,
                       .edited = p->edited,
                       .vocab = p->plan->vocab,
                       .n = count,
                       .rows = (const pl_cu_sampling *)(p->meta + f->samplings) + first,
                       .told = p->meta,
                       .before = before,
                       .drawn = f->drawn,
                       .said = p->tops};
    PL_TRY(copy_logits(p, f, n));
    return count ? pl_cuda_failed(pl_cu_sample(p->cuda->stream, &s), "sampling") : PL_OK;
}

pl_status pl_cuda_bring_draws(pl_planned *p, pl_cu_flight *f)
{
    size_t n = (size_t)f->step->n_seqs;
    if (f->n_draws > f->n_host)
        PL_TRY(
            pl_cuda_failed(cudaMemcpyAsync(f->drawn_host, f->drawn, n * sizeof *f->drawn,
                                           cudaMemcpyDeviceToHost, p->cuda->stream),
                           "tokens"));
    if (f->says)
        PL_TRY(pl_cuda_failed(cudaMemcpyAsync(f->tops_host, p->tops, n * sizeof *p->tops,
                                              cudaMemcpyDeviceToHost, p->cuda->stream),
                              "logprobs"));
    return PL_OK;
}

static void take_logprobs(const pl_planned *p, pl_step_seq *q, const pl_cu_said *said)
{
    double log_sum = pl_log_sum(said->best, said->total);
    int32_t n = PL_MIN(q->sampler.params.logprobs, p->plan->vocab);
    for (int32_t i = 0; i <= n; i++) {
        const pl_cu_top *t = &said->top[i];
        q->top[i] = pl_logprob_of(t->logit, t->token, t->rank, log_sum);
    }
}

void pl_cuda_take_draws(const pl_planned *p, pl_cu_flight *f)
{
    for (int32_t i = 0; i < f->n_draws; i++) {
        const pl_cu_draw *d = &f->draws[i];
        pl_step_seq *q = &f->step->seqs[d->seq];
        if (d->kind == PL_CU_BY_HOST) continue;
        q->sampled.token = PL_CU_TOKEN(f->drawn_host[d->seq]);
        if (d->kind == PL_CU_SAMPLED && q->sampler.params.logprobs >= 0)
            take_logprobs(p, q, &f->tops_host[d->seq]);
    }
}

/* What the host does with a row's logits; the sampler overwrites them. */
static void draw(pl_planned *p, const pl_cu_flight *f, const pl_cu_draw *d, float *logits)
{
    pl_step_seq *q = &f->step->seqs[d->seq];
    int32_t vocab = p->plan->vocab;
    if (q->want & PL_WANT_LOGITS)
        memcpy(q->logits + (size_t)d->row * (size_t)vocab, logits,
               (size_t)vocab * sizeof *logits);
    if (q->want & PL_WANT_ROWS && q->targets[d->row] >= 0)
        pl_logprobs(p->scratch, logits, vocab, q->targets[d->row], q->n_top,
                    q->rows + (size_t)d->row * (1 + (size_t)q->n_top));
    if (q->want & PL_WANT_TOKEN && d->row == q->n_rows - 1)
        q->sampled.token = pl_sample(p->scratch, logits, vocab, &q->sampler, q->top);
}

void pl_cuda_draw_on_host(pl_planned *p, pl_cu_flight *f, int32_t n)
{
    size_t vocab = (size_t)p->plan->vocab;
    for (int32_t i = 0; i < n; i++) {
        const pl_cu_draw *d = &f->draws[f->from + i];
        if (d->kind == PL_CU_BY_HOST) draw(p, f, d, p->host_logits + (size_t)i * vocab);
    }
    f->from += n;
}
