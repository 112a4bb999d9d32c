// SPDX-License-Identifier: Apache-2.0
//
// draw.cu - draws tokens: penalties, masks, temperature, min-p, top-k, top-p, logprobs.
//
// A row belongs to a team of CTAs, each of which has a share of its tokens: a cluster, where GPUs
// have them and rows are few, else a single CTA. Tokens are kept down to a cut, a key (logit,
// then id); where it is follows from sums over buckets of tokens. Weights are integers
// (core/weight.h), so no order of adding changes anything.
//
// Compiled without contraction (-fmad=false): values are to be the host's.
#include "mma.cuh"
#include "draw.h"
#include "weight.h"

#include <cooperative_groups.h>

enum {
    SAMPLERS = 512, // threads of a CTA
    RESIDENT = 2, // CTAs of a multiprocessor
    BUCKETS = 2 * SAMPLERS,
    PER_UNIT = 32, // buckets of a distance of 1; the last one has all that is farther
    FEW_TOKENS = SAMPLERS, // a thread each
    FEW_BEST = FEW_TOKENS / 2, // so many best ones are among few tokens
    AT_ONCE = 8, // values that a thread asks for
};

constexpr uint32_t IN_PROMPT = 1u << 31;

struct bucket { int at; uint32_t size; uint64_t before; }; // the latter: what those ahead of it hold

struct sample_memory {
    uint64_t warps[SAMPLERS / 32], part[2], keys[FEW_TOKENS], all[FEW_TOKENS], weights[FEW_TOKENS], found;
    uint32_t low[BUCKETS], high[BUCKETS], sizes[BUCKETS], n;
    bucket chosen;
};

// A row as tokens are drawn from it, and the CTA's share. Values of `raw` rows may be anything;
// in others -inf is a masked token.
struct row_view {
    const float *row;
    bool raw;
    int from, to, vocab;
    float best, scale, least;
    float bar; // what is below it is out, and of its equals what has a higher id
    int bar_id;
};

// ---- keys ----------------------------------------------------------------------------

__device__ __forceinline__ float as_number(float v)
{
    v = v > -FLT_MAX ? v : -FLT_MAX;
    return v < FLT_MAX ? v : FLT_MAX;
}

__device__ __forceinline__ float value_at(const row_view &v, int i)
{
    float x = __ldcg(v.row + i);
    return v.raw ? as_number(x) : x;
}

__device__ __forceinline__ uint64_t order_of(float v, int id)
{
    uint32_t bits = __float_as_uint(v + 0.0f); // no -0
    return (uint64_t)(bits >> 31 ? ~bits : bits | 1u << 31) << 32 | (uint32_t)~id;
}

__device__ __forceinline__ int id_of(uint64_t key) { return (int)~(uint32_t)key; }

__device__ __forceinline__ float logit_of(uint64_t key)
{
    uint32_t bits = key >> 32;
    return __uint_as_float(bits >> 31 ? bits & ~(1u << 31) : ~bits);
}

__device__ __forceinline__ uint64_t weight_of(const row_view &v, float x)
{
    return pl_weight(pl_exp(pl_distance(x, v.best, v.scale)));
}

__device__ __forceinline__ int bucket_of(const row_view &v, float x)
{
    float at = (v.best - x) * v.scale * PER_UNIT;
    return at < BUCKETS - 1 ? (int)at : BUCKETS - 1;
}

__device__ __forceinline__ bool is_kept(const row_view &v, float x, int id)
{
    return (x > v.bar || (x == v.bar && id <= v.bar_id)) && (x - v.best) * v.scale >= v.least;
}

// f(value, id) of each token of the share that is kept.
template <class F>
__device__ __forceinline__ void for_kept(const row_view &v, const F &f)
{
#pragma unroll 1
    for (int first = v.from + threadIdx.x; first < v.to; first += SAMPLERS * AT_ONCE) {
        float x[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            x[k] = first + k * SAMPLERS < v.to ? value_at(v, first + k * SAMPLERS) : -INFINITY;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (is_kept(v, x[k], first + k * SAMPLERS)) f(x[k], first + k * SAMPLERS);
    }
}

__device__ __forceinline__ void set_bar(row_view &v, uint64_t key)
{
    v.bar = logit_of(key), v.bar_id = id_of(key);
}

// ---- the team ------------------------------------------------------------------------

template <int C>
struct team {
    sample_memory &s;
    int turn = 0;

    __device__ __forceinline__ int rank() const { return C > 1 ? blockIdx.x : 0; }

    __device__ __forceinline__ void meet() const
    {
#if __CUDA_ARCH__ >= 900
        if (C > 1) cooperative_groups::this_cluster().sync();
#endif
        if (C == 1) __syncthreads();
    }

    __device__ __forceinline__ const sample_memory &of(int rank) const
    {
#if __CUDA_ARCH__ >= 900
        if (C > 1) return *cooperative_groups::this_cluster().map_shared_rank(&s, rank);
#endif
        return s;
    }

    // op over all threads; 0 is its neutral element.
    template <class F>
    __device__ __forceinline__ uint64_t reduce(uint64_t v, const F &op)
    {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        for (int d = 16; d; d /= 2) v = op(v, __shfl_xor_sync(~0u, v, d));
        if (lane == 0) s.warps[warp] = v;
        __syncthreads();
        if (warp == 0) {
            v = lane < SAMPLERS / 32 ? s.warps[lane] : 0;
            for (int d = 16; d; d /= 2) v = op(v, __shfl_xor_sync(~0u, v, d));
            if (lane == 0) s.part[turn] = v;
        }
        meet();
        v = 0;
        for (int r = 0; r < C; r++) v = op(v, of(r).part[turn]);
        turn ^= 1; // the next one writes elsewhere, and the one after it is behind a meeting
        return v;
    }

    __device__ __forceinline__ uint64_t sum(uint64_t v)
    {
        return reduce(v, [](uint64_t a, uint64_t b) { return a + b; });
    }

    __device__ __forceinline__ uint64_t most(uint64_t v)
    {
        return reduce(v, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
    }
};

// ---- cuts ----------------------------------------------------------------------------

__device__ __forceinline__ void clear_buckets(sample_memory &s)
{
    for (int i = threadIdx.x; i < BUCKETS; i += SAMPLERS) s.low[i] = s.high[i] = s.sizes[i] = 0;
    __syncthreads();
}

// There are no sums of 64 bits in shared memory: the lower half is carried into the upper.
__device__ __forceinline__ void add_weight(sample_memory &s, int b, uint64_t weight)
{
    uint32_t low = (uint32_t)weight, high = weight >> 32;
    if (low) high += atomicAdd(&s.low[b], low) + low < low;
    if (high) atomicAdd(&s.high[b], high);
}

// The sum of all buckets of the team, of weights or of tokens, and the bucket in which the
// running sum reaches goal_of(total); where none does, s.chosen stays as it is.
template <bool WEIGHED, int C, class F>
__device__ __forceinline__ uint64_t choose_bucket(team<C> &t, const F &goal_of)
{
    sample_memory &s = t.s;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t amount[2] = {}, run, ahead = 0, total = 0;
    uint32_t size[2] = {};
    t.meet();
    for (int r = 0; r < C; r++)
        for (int i = 0; i < 2; i++) {
            const sample_memory &from = t.of(r);
            int b = threadIdx.x * 2 + i;
            amount[i] += WEIGHED ? (uint64_t)from.high[b] << 32 | from.low[b] : from.sizes[b];
            size[i] += from.sizes[b];
        }
    run = amount[0] + amount[1];
    for (int d = 1; d < 32; d *= 2) {
        uint64_t other = __shfl_up_sync(~0u, run, d);
        if (lane >= d) run += other;
    }
    if (lane == 31) s.warps[warp] = run;
    __syncthreads();
    for (int i = 0; i < SAMPLERS / 32; i++) {
        if (i < warp) ahead += s.warps[i];
        total += s.warps[i];
    }
    run += ahead - amount[0] - amount[1];
    uint64_t goal = goal_of(total);
    for (int i = 0; i < 2; run += amount[i++])
        if (run < goal && goal <= run + amount[i]) s.chosen = {(int)threadIdx.x * 2 + i, size[i], run};
    t.meet();
    return total;
}

// Buckets by distance of what is kept: weights, or how many.
template <int C, bool WEIGHED>
__device__ __forceinline__ void fill_buckets(team<C> &t, const row_view &v)
{
    sample_memory &s = t.s;
    uint32_t far = 0;
    clear_buckets(s);
    for_kept(v, [&](float x, int) {
        int at = bucket_of(v, x);
        if (at == BUCKETS - 1) { // perhaps nearly all, and their weights are 0
            far++;
            return;
        }
        if (WEIGHED) add_weight(s, at, weight_of(v, x));
        atomicAdd(&s.sizes[at], 1);
    });
    if (far) atomicAdd(&s.sizes[BUCKETS - 1], far);
}

// The keys of up to FEW_TOKENS kept tokens that f(value, id) is true of, into s.all, all of the
// team's; returns how many.
template <int C, class F>
__device__ __forceinline__ int gather(team<C> &t, const row_view &v, const F &f)
{
    sample_memory &s = t.s;
    int n = 0;
    if (threadIdx.x == 0) s.n = 0;
    __syncthreads();
    for_kept(v, [&](float x, int id) {
        if (f(x, id)) s.keys[atomicAdd(&s.n, 1)] = order_of(x, id);
    });
    t.meet();
    for (int r = 0; r < C; r++) {
        int m = t.of(r).n;
        if ((int)threadIdx.x < m) s.all[n + threadIdx.x] = t.of(r).keys[threadIdx.x];
        n += m;
    }
    t.meet();
    return n;
}

// Divides the tokens of a bucket anew, by keys, until it has at most `most`, whose keys are
// from `low` to `high`.
template <int C, bool WEIGHED>
__device__ __noinline__ void narrow(team<C> &t, const row_view &v, uint64_t goal, uint32_t most, bucket &b,
                                    uint64_t &low, uint64_t &high)
{
    sample_memory &s = t.s;
    uint64_t least = 0, greatest = 0;
    for_kept(v, [&](float x, int id) {
        uint64_t key = order_of(x, id);
        if (bucket_of(v, x) == b.at) least = max(least, ~key), greatest = max(greatest, key);
    });
    low = ~t.most(least), high = t.most(greatest);
    while (b.size > most) {
        int shift = max(0, 64 - __clzll((long long)(high - low)) - 10);
        uint64_t before = b.before;
        clear_buckets(s);
        for_kept(v, [&](float x, int id) {
            uint64_t key = order_of(x, id);
            if (key < low || key > high) return;
            int at = (int)(high - key >> shift);
            if (WEIGHED) add_weight(s, at, weight_of(v, x));
            atomicAdd(&s.sizes[at], 1);
        });
        choose_bucket<WEIGHED>(t, [&](uint64_t) { return goal - before; });
        b = s.chosen;
        b.before += before;
        high -= (uint64_t)b.at << shift;
        low = max(low, high - (((uint64_t)1 << shift) - 1));
    }
}

// The key at which the running sum, best first, reaches the share p of all weights or, not
// WEIGHED, p tokens; 0 where these are not so many.
template <int C, bool WEIGHED>
__device__ __noinline__ uint64_t find_cut(team<C> &t, const row_view &v, double p)
{
    sample_memory &s = t.s;
    auto goal_of = [&](uint64_t total) { return WEIGHED ? pl_weight_share(p, total) : (uint64_t)p; };
    fill_buckets<C, WEIGHED>(t, v);
    uint64_t total = choose_bucket<WEIGHED>(t, goal_of), goal = goal_of(total), low = 1, high = 0;
    bucket b = s.chosen;
    if (goal > total) return 0;
    if (b.size > FEW_TOKENS) narrow<C, WEIGHED>(t, v, goal, FEW_TOKENS, b, low, high);
    int n = gather(t, v, [&](float x, int id) {
        uint64_t key = order_of(x, id);
        return low > high ? bucket_of(v, x) == b.at : low <= key && key <= high;
    });
    uint64_t key = (int)threadIdx.x < n ? s.all[threadIdx.x] : 0, sum = b.before;
    if ((int)threadIdx.x < n) s.weights[threadIdx.x] = WEIGHED ? weight_of(v, logit_of(key)) : 1;
    __syncthreads();
    if ((int)threadIdx.x < n) {
        for (int i = 0; i < n; i++)
            if (s.all[i] > key) sum += s.weights[i];
        if (sum < goal && goal <= sum + s.weights[threadIdx.x]) s.found = key;
    }
    __syncthreads();
    return s.found;
}

// At most FEW_TOKENS tokens, among which are the k best ones, at most FEW_BEST, or all that are
// kept, into s.all; returns how many.
template <int C>
__device__ __noinline__ int gather_best(team<C> &t, const row_view &v, uint32_t k)
{
    sample_memory &s = t.s;
    if (threadIdx.x == 0) s.chosen = {BUCKETS - 1, 0, 0}; // fewer are kept
    fill_buckets<C, false>(t, v);
    choose_bucket<false>(t, [&](uint64_t) { return (uint64_t)k; });
    bucket b = s.chosen;
    if (b.before + b.size <= FEW_TOKENS) return gather(t, v, [&](float x, int) { return bucket_of(v, x) <= b.at; });
    uint64_t low, high;
    narrow<C, false>(t, v, k, FEW_BEST, b, low, high);
    return gather(t, v, [&](float x, int id) { return order_of(x, id) >= low; });
}

// ---- edits ---------------------------------------------------------------------------

__device__ __forceinline__ float penalized(const pl_cu_sampling &p, float v, uint32_t count)
{
    uint32_t n = count & ~IN_PROMPT;
    if (count && p.repetition != 1) v = v > 0 ? fminf(v / p.repetition, FLT_MAX) : v * p.repetition;
    return n ? v - (p.frequency * (float)n + p.presence) : v;
}

__device__ __forceinline__ float edited_value(const pl_cu_sampler &k, const pl_cu_sampling &p, float v,
                                              uint32_t count, int id)
{
    if (p.allowed.n && !(k.told[p.allowed.at + id / 32] >> id % 32 & 1)) return -INFINITY;
    return p.tokens.n ? penalized(p, v, count) : v;
}

__device__ __forceinline__ int token_of(const pl_cu_sampler &k, int token)
{
    return token < 0 ? PL_CU_TOKEN(k.before[-1 - token]) : token;
}

// The biased value of the thread's id, at -1 where it has none or an id that was before it.
__device__ __forceinline__ float biased(const pl_cu_sampler &k, const pl_cu_sampling &p, const row_view &v,
                                        const uint32_t *counts, int &id)
{
    const int32_t *pairs = k.told + p.bias.at;
    int mine = threadIdx.x * 2;
    id = mine < p.bias.n ? pairs[mine] : -1;
    for (int i = 0; i < min(mine, p.bias.n); i += 2)
        if (pairs[i] == id) id = -1;
    if (id < 0) return 0;
    float x = value_at(v, id);
    for (int i = mine; i < p.bias.n; i += 2)
        if (pairs[i] == id) x += __int_as_float(pairs[i + 1]);
    return edited_value(k, p, x, __ldcg(counts + id), id);
}

// The row as it is drawn from. It counts tokens first, where its values will be.
template <int C>
__device__ __noinline__ void edit(team<C> &t, const pl_cu_sampler &k, const pl_cu_sampling &p, const row_view &v,
                                  float *to)
{
    uint32_t *counts = (uint32_t *)to;
    int first = t.rank() * SAMPLERS + threadIdx.x, id = -1;
    float x = 0;
    for (int i = v.from + threadIdx.x; i < v.to; i += SAMPLERS) __stcg(counts + i, 0);
    t.meet();
    for (int i = first; i < p.tokens.n; i += C * SAMPLERS) {
        uint32_t *count = counts + token_of(k, k.told[p.tokens.at + i]);
        if (i < p.n_prompt) atomicOr(count, IN_PROMPT);
        else atomicAdd(count, 1);
    }
    t.meet();
    if (t.rank() == 0) x = biased(k, p, v, counts, id);
    t.meet();
    for (int i = v.from + threadIdx.x; i < v.to; i += SAMPLERS)
        __stcg(to + i, edited_value(k, p, value_at(v, i), __ldcg(counts + i), i));
    t.meet();
    if (id >= 0) __stcg(to + id, x);
    __syncthreads();
    if (t.rank() == 0) {
        const int32_t *masks = k.told + p.masks.at;
        int last = token_of(k, p.last);
        for (int i = threadIdx.x * 2; i < p.masks.n; i += SAMPLERS * 2)
            if (masks[i] < 0 || masks[i] == last) __stcg(to + masks[i + 1], -INFINITY);
    }
    t.meet();
}

// ---- the draw ------------------------------------------------------------------------

// The token, in order of ids, at which the running sum of weights passes the share u of all of
// them. At first each of the team's warps has a part of the row; then all CTAs do the same.
template <int C>
__device__ __noinline__ int find_token(team<C> &t, const row_view &v, double u)
{
    enum { WARPS_OF_ROW = SAMPLERS / 32 };
    sample_memory &s = t.s;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = threadIdx.x, from = 0, to = v.vocab;
    uint64_t at = 0;
    auto weight = [&](int i) {
        float x = i < to ? value_at(v, i) : -INFINITY;
        return is_kept(v, x, i) ? weight_of(v, x) : 0;
    };
    for (int parts = C * WARPS_OF_ROW, first = 1; first || to - from > 32; parts = WARPS_OF_ROW, first = 0) {
        int each = (to - from + parts - 1) / parts, mine = from + each * (first ? t.rank() * WARPS_OF_ROW + warp : warp);
        uint64_t sum = 0, ahead = 0, total = 0;
#pragma unroll 4
        for (int i = mine + lane; i < min(mine + each, to); i += 32) sum += weight(i);
        for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
        if (lane == 0) s.warps[warp] = sum;
        t.meet();
        if (part < parts) s.weights[part] = t.of(first ? part / WARPS_OF_ROW : t.rank()).warps[part % WARPS_OF_ROW];
        t.meet();
        for (int i = 0; i < parts; i++) {
            if (i < part) ahead += s.weights[i];
            total += s.weights[i];
        }
        if (first) at = pl_weight_point(u, total);
        if (part < parts && ahead <= at && at - ahead < s.weights[part]) s.chosen = {part, 0, ahead};
        __syncthreads();
        from += each * s.chosen.at, to = min(from + each, to), at -= s.chosen.before;
        __syncthreads();
    }
    uint64_t run = weight(from + lane);
    for (int d = 1; d < 32; d *= 2) {
        uint64_t other = __shfl_up_sync(~0u, run, d);
        if (lane >= d) run += other;
    }
    uint32_t behind = __ballot_sync(~0u, at < run);
    return behind ? from + __ffs(behind) - 1 : to - 1;
}

// The same among the best top_k, which are few.
template <int C>
__device__ __noinline__ int draw_few(team<C> &t, const pl_cu_sampling &p, const row_view &v)
{
    sample_memory &s = t.s;
    int n = gather_best(t, v, p.top_k), me = threadIdx.x, ahead = 0;
    uint64_t key = me < n ? s.all[me] : 0, before = 0, total = 0, run = 0;
    uint64_t weight = me < n ? weight_of(v, logit_of(key)) : 0;
    s.weights[me] = weight;
    __syncthreads();
    for (int i = 0; i < n; i++)
        if (s.all[i] > key) ahead++, before += s.weights[i];
    bool kept = me < n && ahead < p.top_k;
    __syncthreads();
    s.weights[me] = kept ? weight : 0;
    __syncthreads();
    for (int i = 0; i < n; i++) total += s.weights[i];
    if (p.top_p < 1) { // what comes before a token is kept if it is
        kept = kept && before < pl_weight_share(p.top_p, total);
        __syncthreads();
        s.weights[me] = kept ? weight : 0;
        __syncthreads();
        total = 0;
        for (int i = 0; i < n; i++) total += s.weights[i];
    }
    uint64_t at = pl_weight_point(p.u, total);
    for (int i = 0; i < n; i++)
        if (id_of(s.all[i]) < id_of(key)) run += s.weights[i];
    if (kept && run <= at && at - run < weight) s.found = key;
    __syncthreads();
    return id_of(s.found);
}

template <int C>
__device__ __forceinline__ int draw(team<C> &t, const pl_cu_sampling &p, row_view &v)
{
    if (p.top_k > 0 && p.top_k <= FEW_BEST) return draw_few(t, p, v);
    if (p.top_k > 0) {
        uint64_t key = find_cut<C, false>(t, v, p.top_k);
        if (key) set_bar(v, key);
    }
    if (p.top_p < 1) set_bar(v, find_cut<C, true>(t, v, p.top_p));
    return find_token(t, v, p.u);
}

// The best tokens and the sum of all.
template <int C>
__device__ __forceinline__ void say_best(team<C> &t, const pl_cu_sampling &p, const row_view &v, pl_cu_said *said)
{
    uint64_t sum = 0;
    for_kept(v, [&](float x, int) { sum += weight_of(v, x); });
    sum = t.sum(sum);
    if (t.rank() == 0 && threadIdx.x == 0) said->total = sum, said->best = v.best;
    if (!p.n_best) return;
    int n = gather_best(t, v, p.n_best), ahead = 0;
    if (t.rank() || (int)threadIdx.x >= n) return;
    uint64_t key = t.s.all[threadIdx.x];
    for (int i = 0; i < n; i++) ahead += t.s.all[i] > key;
    if (ahead < p.n_best) said->top[1 + ahead] = {id_of(key), ahead + 1, logit_of(key)};
}

template <int C>
__device__ __forceinline__ void say_token(team<C> &t, const row_view &v, int token, pl_cu_said *said)
{
    float x = value_at(v, token);
    uint64_t ahead = 0;
    for_kept(v, [&](float other, int id) { ahead += other > x || (other == x && id < token); });
    ahead = t.sum(ahead);
    if (t.rank() == 0 && threadIdx.x == 0) said->top[0] = {token, (int)ahead + 1, x};
}

template <int C>
__device__ __forceinline__ uint64_t find_best(team<C> &t, const row_view &v)
{
    uint64_t best = 0;
    for_kept(v, [&](float x, int id) { best = max(best, order_of(x, id)); });
    return t.most(best);
}

template <int C>
__global__ void __launch_bounds__(SAMPLERS, RESIDENT) sample(const __grid_constant__ pl_cu_sampler k)
{
    __shared__ sample_memory memory;
    team<C> t = {memory};
    started();
    wait_for_input();
    const pl_cu_sampling p = k.rows[blockIdx.y];
    int share = (k.vocab + C - 1) / C, from = min(t.rank() * share, k.vocab), token;
    size_t at = (size_t)p.row * k.vocab;
    row_view raw = {k.logits + at, true, from, min(from + share, k.vocab), k.vocab, 0, 1, -INFINITY, -FLT_MAX, k.vocab};
    uint64_t best = find_best(t, raw);
    raw.best = logit_of(best);
    if (p.n_best >= 0) say_best(t, p, raw, k.said + p.seq);
    row_view v = raw;
    if (p.tokens.n || p.bias.n || p.masks.n || p.allowed.n) {
        edit(t, k, p, raw, k.edited + at);
        v.row = k.edited + at, v.raw = false, v.best = 0;
        best = find_best(t, v);
        v.best = logit_of(best);
    }
    if (!best) token = p.fallback;
    else if (!p.scale) token = id_of(best);
    else v.scale = p.scale, v.least = p.least, token = draw(t, p, v);
    if (p.n_best >= 0) say_token(t, raw, token, k.said + p.seq);
    if (t.rank() == 0 && threadIdx.x == 0) k.drawn[p.seq] = (uint32_t)~token;
    t.meet(); // nobody leaves while its memory is read
}

template <int C>
static cudaError_t sample_with(cudaStream_t s, const pl_cu_sampler *p)
{
    launch l(s, dim3(C, p->n), SAMPLERS);
    l.cluster = C;
    return l(sample<C>, *p);
}

cudaError_t pl_cu_sample(cudaStream_t s, const pl_cu_sampler *p)
{
    int room = this_gpu().major >= 9 ? this_gpu().sms * RESIDENT / p->n : 1; // all at once
    return room >= 8 ? sample_with<8>(s, p) : room >= 4 ? sample_with<4>(s, p) : sample_with<1>(s, p);
}
