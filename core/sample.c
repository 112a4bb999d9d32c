/* SPDX-License-Identifier: Apache-2.0
 *
 * sample.c - from logits to a token.
 *
 * The same logits give the same token on every machine and device: values are computed in
 * a written order, and weights are integers (weight.h). Order among tokens is by logit,
 * then by id: the lower id first. Masked tokens are -inf. Logits that are no numbers count as the lowest number
 * there is, infinite ones as the greatest or lowest: no row can break the draw.
 *
 * Top-k and top-p need the best tokens, not all of them in order. Tokens are counted and
 * weighed in buckets by their distance from the best one; whole buckets are in or out,
 * and only the one where the cut falls is ordered, by a heap, up to the cut. A token is
 * drawn by the running sum of the weights of those kept, in the order of their ids.
 */
#include "sample.h"

#include "weight.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    LANES = 8,
    CHUNK = 1024,
    N_BUCKETS = 1024,
    PER_UNIT =
        32,     /* buckets of a distance of 1; the last one holds all that is farther */
    FEW = 1024, /* top_k up to here is found by one heap */
};

struct pl_sample_scratch {
    int32_t vocab;
    float *raw;      /* the row as it came, for logprobs */
    float *odds;     /* e^((logit - best) / temperature) */
    int32_t *heap;   /* ids */
    int32_t *counts; /* of a token; all 0 between calls */
    uint64_t sums[N_BUCKETS];
    int32_t sizes[N_BUCKETS];
};

pl_sample_scratch *pl_sample_scratch_open(int32_t vocab)
{
    pl_sample_scratch *s = pl_alloc(sizeof *s);
    s->vocab = vocab;
    s->raw = pl_alloc((size_t)vocab * sizeof *s->raw);
    s->odds = pl_alloc((size_t)vocab * sizeof *s->odds);
    s->heap = pl_alloc((size_t)vocab * sizeof *s->heap);
    s->counts = pl_alloc((size_t)vocab * sizeof *s->counts);
    return s;
}

void pl_sample_scratch_close(pl_sample_scratch *s)
{
    if (!s) return;
    pl_free(s->raw);
    pl_free(s->odds);
    pl_free(s->heap);
    pl_free(s->counts);
    pl_free(s);
}

/* ---- rows ----------------------------------------------------------------------- */

static inline float as_number(float v)
{
    v = v > -FLT_MAX ? v : -FLT_MAX; /* NaN too */
    return v < FLT_MAX ? v : FLT_MAX;
}

static float find_best(const float *row, int32_t n)
{
    float lanes[LANES], best = -INFINITY;
    int32_t i = 0;
    for (int j = 0; j < LANES; j++) lanes[j] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] = row[i + j] > lanes[j] ? row[i + j] : lanes[j];
    for (; i < n; i++) best = row[i] > best ? row[i] : best;
    for (int j = 0; j < LANES; j++) best = lanes[j] > best ? lanes[j] : best;
    return best;
}

static int32_t find_first(const float *row, int32_t n, float value)
{
    int32_t i = 0;
    while (i < n && row[i] != value) i++;
    return i < n ? i : 0; /* nothing but NaN: 0 */
}

static uint64_t sum_weights(const float *odds, int32_t n)
{
    uint64_t sum = 0;
    for (int32_t i = 0; i < n; i++) sum += pl_weight(odds[i]);
    return sum;
}

/* e^((logit - best) * scale) of each; in two loops, for both are to become SIMD */
static void find_odds(const float *row, int32_t n, float best, float scale, float *odds)
{
    for (int32_t i = 0; i < n; i++) odds[i] = pl_distance(row[i], best, scale);
    for (int32_t i = 0; i < n; i++) odds[i] = pl_exp(odds[i]);
}

/* ln(sum of e^v) of a row */
static double log_sum_exp(const float *row, int32_t n)
{
    float best = find_best(row, n), odds[CHUNK];
    uint64_t sum = 0;
    for (int32_t at = 0; at < n; at += CHUNK) {
        int32_t m = PL_MIN(CHUNK, n - at);
        find_odds(row + at, m, best, 1, odds);
        sum += sum_weights(odds, m);
    }
    return pl_log_sum(best, sum);
}

/* ---- the best few: a heap of ids, the worst kept one (or the best left one) on top  */

static bool is_before(const float *row, int32_t a, int32_t b)
{
    return row[a] > row[b] || (row[a] == row[b] && a < b);
}

static void sift_down(const float *row, int32_t *heap, int32_t n, int32_t at,
                      bool best_on_top)
{
    int32_t id = heap[at];
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= n) break;
        if (child + 1 < n && is_before(row, heap[child + 1], heap[child]) == best_on_top)
            child++;
        if (is_before(row, heap[child], id) != best_on_top) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = id;
}

static void make_heap(const float *row, int32_t *heap, int32_t n, bool best_on_top)
{
    for (int32_t i = n / 2 - 1; i >= 0; i--) sift_down(row, heap, n, i, best_on_top);
}

/* The k best ids, best first, into `heap`. */
static void select_best(const float *row, int32_t n, int32_t k, int32_t *heap)
{
    if (k == 0) return;
    for (int32_t i = 0; i < k; i++) heap[i] = i;
    make_heap(row, heap, k, false);
    float bar = row[heap[0]]; /* equals come later, so they lose */
    for (int32_t i = k; i < n; i++) {
        if (row[i] <= bar) continue;
        heap[0] = i;
        sift_down(row, heap, k, 0, false);
        bar = row[heap[0]];
    }
    for (int32_t left = k - 1; left > 0; left--) {
        int32_t worst = heap[0];
        heap[0] = heap[left];
        heap[left] = worst;
        sift_down(row, heap, left, 0, false);
    }
}

pl_logprob pl_logprob_of(float logit, int32_t token, int32_t rank, double log_sum)
{
    double logprob = PL_MAX((double)logit - log_sum, -(double)FLT_MAX);
    return (pl_logprob){token, rank, (float)logprob};
}

static pl_logprob describe(const float *row, int32_t token, int32_t rank, double log_sum)
{
    return pl_logprob_of(row[token], token, rank, log_sum);
}

static int32_t find_rank(const float *row, int32_t n, int32_t token)
{
    float v = row[token];
    int32_t above = 0;
    for (int32_t i = 0; i < n; i++) above += row[i] > v;
    for (int32_t i = 0; i < token; i++) above += row[i] == v;
    return above + 1;
}

void pl_logprobs(pl_sample_scratch *s, const float *logits, int32_t vocab, int32_t token,
                 int32_t n_best, pl_logprob *out)
{
    for (int32_t i = 0; i < vocab; i++) s->raw[i] = as_number(logits[i]);
    double norm = log_sum_exp(s->raw, vocab);
    n_best = PL_MIN(n_best, vocab);
    select_best(s->raw, vocab, n_best, s->heap);
    for (int32_t i = 0; i < n_best; i++)
        out[1 + i] = describe(s->raw, s->heap[i], i + 1, norm);
    out[0] = describe(s->raw, token, find_rank(s->raw, vocab, token), norm);
}

/* ---- what steers the choice ----------------------------------------------------- */

static void keep_allowed(pl_sample_scratch *s, float *row, int32_t vocab,
                         const pl_sampler *p)
{
    for (int32_t i = 0; i < p->n_allowed; i++)
        s->odds[p->allowed[i]] = row[p->allowed[i]];
    for (int32_t i = 0; i < vocab; i++) row[i] = -INFINITY;
    for (int32_t i = 0; i < p->n_allowed; i++)
        row[p->allowed[i]] = s->odds[p->allowed[i]];
}

static void mask_bad_words(float *row, const pl_sampler *p)
{
    if (!p->bad_words_len) return;
    const int32_t *end = p->tokens + p->n_tokens;
    int32_t n_output = p->n_tokens - p->n_prompt;
    for (int32_t i = 0; i < p->bad_words_len; i += 1 + p->bad_words[i]) {
        const int32_t *ids = p->bad_words + i + 1;
        int32_t before = p->bad_words[i] - 1;
        if (before > n_output) continue;
        if (!before || memcmp(end - before, ids, (size_t)before * sizeof *ids) == 0)
            row[ids[before]] = -INFINITY;
    }
}

static void apply_penalties(pl_sample_scratch *s, float *row, const pl_sampler *p)
{
    float repetition = p->params.repetition_penalty;
    float presence = p->params.presence_penalty, frequency = p->params.frequency_penalty;
    if (repetition == 1 && presence == 0 && frequency == 0) return;
    for (int32_t i = 0; i < p->n_tokens && repetition != 1; i++) {
        float *v = &row[p->tokens[i]];
        if (s->counts[p->tokens[i]]++ > 0) continue;
        *v = *v > 0 ? PL_MIN(*v / repetition, FLT_MAX) : *v * repetition;
    }
    for (int32_t i = 0; i < p->n_tokens; i++) s->counts[p->tokens[i]] = 0;
    for (int32_t i = p->n_prompt; i < p->n_tokens; i++) s->counts[p->tokens[i]]++;
    for (int32_t i = p->n_prompt; i < p->n_tokens; i++) {
        int32_t id = p->tokens[i];
        if (s->counts[id]) row[id] -= frequency * (float)s->counts[id] + presence;
        s->counts[id] = 0;
    }
}

static void steer(pl_sample_scratch *s, float *row, int32_t vocab, const pl_sampler *p)
{
    for (int32_t i = 0; i < vocab; i++) row[i] = as_number(row[i]);
    if (p->allowed) keep_allowed(s, row, vocab, p);
    mask_bad_words(row, p);
    if (p->n_tokens - p->n_prompt < p->params.min_tokens)
        for (int32_t i = 0; i < p->n_end_ids; i++) row[p->end_ids[i]] = -INFINITY;
    for (int32_t i = 0; i < p->n_bias; i++) row[p->bias_ids[i]] += p->bias[i];
    apply_penalties(s, row, p);
}

/* ---- the cut -------------------------------------------------------------------- */

typedef struct view { /* a row as it is drawn from */
    float *row;
    int32_t vocab;
    float best, scale; /* 1 / temperature */
} view;

typedef struct cut { /* the last token that is kept */
    float logit;
    int32_t id;
    uint64_t weight; /* of all kept ones */
} cut;

static inline int bucket_of(const view *v, float logit)
{
    float at = (v->best - logit) * v->scale * PER_UNIT;
    return at < N_BUCKETS - 1 ? (int)at : N_BUCKETS - 1;
}

static bool is_kept(const cut *c, float logit, int32_t id)
{
    return logit > c->logit || (logit == c->logit && id <= c->id);
}

static void fill_buckets(pl_sample_scratch *s, const view *v)
{
    memset(s->sums, 0, sizeof s->sums);
    memset(s->sizes, 0, sizeof s->sizes);
    for (int32_t i = 0; i < v->vocab; i++) {
        if (v->row[i] == -INFINITY) continue;
        int b = bucket_of(v, v->row[i]);
        s->sums[b] += pl_weight(s->odds[i]);
        s->sizes[b]++;
    }
}

/* Orders bucket `b` of those that `c` keeps, until `n` tokens or a weight of `goal` are
 * reached: what comes before it counts. */
static void cut_bucket(pl_sample_scratch *s, const view *v, int b, int32_t n,
                       uint64_t goal, uint64_t before, cut *c)
{
    const float *row = v->row;
    int32_t size = 0;
    for (int32_t i = 0; i < v->vocab; i++)
        if (row[i] != -INFINITY && bucket_of(v, row[i]) == b && is_kept(c, row[i], i))
            s->heap[size++] = i;
    make_heap(row, s->heap, size, true);
    c->weight = before;
    for (int32_t taken = 0; size > 0;) {
        int32_t id = s->heap[0];
        c->logit = row[id], c->id = id;
        c->weight += pl_weight(s->odds[id]);
        if (++taken == n || c->weight >= goal) break;
        s->heap[0] = s->heap[--size];
        sift_down(row, s->heap, size, 0, true);
    }
}

static void cut_top_k(pl_sample_scratch *s, const view *v, int32_t k, cut *c)
{
    int32_t n = 0;
    uint64_t before = 0;
    for (int b = 0; b < N_BUCKETS; b++) {
        if (n + s->sizes[b] >= k) {
            cut_bucket(s, v, b, k - n, UINT64_MAX, before, c);
            return;
        }
        n += s->sizes[b];
        before += s->sums[b];
    }
    c->weight = before; /* there are fewer than k */
}

static void cut_top_p(pl_sample_scratch *s, const view *v, double top_p, cut *c)
{
    uint64_t goal = pl_weight_share(top_p, c->weight), before = 0;
    for (int b = 0; b < N_BUCKETS; b++) {
        bool last = c->logit != -INFINITY && b == bucket_of(v, c->logit);
        if (last || before + s->sums[b] >= goal) {
            cut_bucket(s, v, b, INT32_MAX, goal, before, c);
            return;
        }
        before += s->sums[b];
    }
}

/* ---- the draw ------------------------------------------------------------------- */

/* The token at which the running sum of the weights, in order of ids, passes `at`, which
 * is below the sum of all. */
static int32_t find_at(const float *odds, int32_t vocab, uint64_t at)
{
    int32_t i = 0;
    for (; i + CHUNK < vocab; i += CHUNK) {
        uint64_t sum = sum_weights(odds + i, CHUNK);
        if (at < sum) break;
        at -= sum;
    }
    for (; i < vocab - 1; i++) {
        uint64_t weight = pl_weight(odds[i]);
        if (at < weight) break;
        at -= weight;
    }
    return i;
}

static int compare_ids(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

/* The best top_k are ordered, and nothing else is weighed. */
static int32_t draw_few(pl_sample_scratch *s, const view *v, const pl_params *p, double u)
{
    uint64_t total = 0;
    float least = pl_distance_of(p->min_p);
    int32_t n = 0, i = 0;
    select_best(v->row, v->vocab, p->top_k, s->heap);
    for (; n < p->top_k && v->row[s->heap[n]] != -INFINITY; n++) {
        int32_t id = s->heap[n];
        if ((v->row[id] - v->best) * v->scale < least) break;
        s->odds[id] = pl_exp(pl_distance(v->row[id], v->best, v->scale));
        total += pl_weight(s->odds[id]);
    }
    if (p->top_p < 1) {
        uint64_t goal = pl_weight_share((double)p->top_p, total);
        int32_t kept = 0;
        for (total = 0; total < goal; kept++) total += pl_weight(s->odds[s->heap[kept]]);
        n = kept;
    }
    uint64_t at = pl_weight_point(u, total);
    qsort(s->heap, (size_t)n, sizeof *s->heap, compare_ids);
    for (; i < n - 1; i++) {
        uint64_t weight = pl_weight(s->odds[s->heap[i]]);
        if (at < weight) break;
        at -= weight;
    }
    return s->heap[i];
}

static int32_t draw_many(pl_sample_scratch *s, const view *v, const pl_params *p,
                         double u)
{
    uint64_t total = 0;
    float least = pl_distance_of(p->min_p);
    for (int32_t at = 0; at < v->vocab; at += CHUNK) /* while they are in the cache */
        find_odds(v->row + at, PL_MIN(CHUNK, v->vocab - at), v->best, v->scale,
                  s->odds + at);
    for (int32_t i = 0; p->min_p > 0 && i < v->vocab; i++)
        if ((v->row[i] - v->best) * v->scale < least)
            v->row[i] = -INFINITY, s->odds[i] = 0;
    bool some_k = p->top_k > 0 && p->top_k < v->vocab;
    if (some_k || p->top_p < 1) {
        cut c = {-INFINITY, -1, 0};
        fill_buckets(s, v);
        cut_top_k(s, v, some_k ? p->top_k : INT32_MAX, &c);
        if (p->top_p < 1) cut_top_p(s, v, (double)p->top_p, &c);
        for (int32_t i = 0; i < v->vocab; i++)
            if (!is_kept(&c, v->row[i], i)) s->odds[i] = 0;
    }
    total = sum_weights(s->odds, v->vocab);
    return find_at(s->odds, v->vocab, pl_weight_point(u, total));
}

static int32_t draw(pl_sample_scratch *s, float *row, int32_t vocab, float best,
                    const pl_sampler *p)
{
    view v = {row, vocab, best, 1 / PL_MAX(p->params.temperature, 0.01f)};
    uint64_t bits = pl_random_at(p->params.seed, (uint64_t)p->position, 0);
    double u = (double)(bits >> 11) * 0x1p-53;
    bool few = p->params.top_k > 0 && p->params.top_k <= PL_MIN(FEW, vocab);
    return few ? draw_few(s, &v, &p->params, u) : draw_many(s, &v, &p->params, u);
}

int32_t pl_sample(pl_sample_scratch *s, float *row, int32_t vocab, const pl_sampler *p,
                  pl_logprob *top)
{
    int32_t n_best = PL_MIN(p->params.logprobs, vocab);
    double norm = 0;
    if (n_best >= 0) {
        for (int32_t i = 0; i < vocab; i++) s->raw[i] = as_number(row[i]);
        norm = log_sum_exp(s->raw, vocab);
        select_best(s->raw, vocab, n_best, s->heap);
        for (int32_t i = 0; i < n_best; i++)
            top[1 + i] = describe(s->raw, s->heap[i], i + 1, norm);
    }
    steer(s, row, vocab, p);
    int32_t token;
    float best = find_best(row, vocab);
    if (best == -INFINITY) /* the masks left nothing */
        token = p->allowed ? p->allowed[0] : 0;
    else if (p->params.temperature < 1e-5f)
        token = find_first(row, vocab, best);
    else
        token = draw(s, row, vocab, best, p);
    if (n_best >= 0)
        top[0] = describe(s->raw, token, find_rank(s->raw, vocab, token), norm);
    return token;
}
