// SPDX-License-Identifier: Apache-2.0
//
// Attention: heads to the cache, then queries over splits of PL_CU_SPLIT positions.
//
// A split's result is computed alone: scores are chains over the head, probabilities of 16
// bits are weighed by the split's own largest score, values are a chain over its positions.
// Then it is merged onto those before it. So a query has the same bits whether one CTA walks
// all its splits or each split has a CTA of its own.
//
// A block of the cache, each layer, each KV head: K as [position][width], then V in groups of
// 16 positions as [width][16]. Heads are filled with zeros to a multiple of 16.
#include "mma.cuh"

enum { SPLIT = PL_CU_SPLIT, STEPS = SPLIT / 16, SCORES = SPLIT + 4, CHANCES = SPLIT + 8 };

int pl_cu_head_width(int head_dim) { return (head_dim + 15) / 16 * 16; }

int pl_cu_partial(int head_dim) { return pl_cu_head_width(head_dim) + 2; }

int64_t pl_cu_kv_values(const pl_cu_attention *a)
{
    return (int64_t)a->n_layers * a->n_kv_heads * 2 * a->block_size * pl_cu_head_width(a->head_dim);
}

__device__ __forceinline__ int width_of(const pl_cu_attention &a) { return (a.head_dim + 15) / 16 * 16; }

// The K of a head in the block that holds the position; V follows.
__device__ __forceinline__ uint16_t *block_at(const pl_cu_attention &a, int table, int position,
                                              int kv_head)
{
    int64_t block = a.tables[table + position / a.block_size];
    return a.kv + ((block * a.n_layers + a.layer) * a.n_kv_heads + kv_head) * 2 * a.block_size *
                      width_of(a);
}

// ---- heads ---------------------------------------------------------------------------

__device__ __forceinline__ void put_head(const pl_cu_attention &a, int row, int head, int i, float v)
{
    int width = width_of(a), kv_head = head - a.n_heads;
    if (kv_head < 0) {
        a.q[((size_t)row * a.n_heads + head) * width + i] = to_f16(v);
        return;
    }
    int position = a.rows[row].position, in = position % a.block_size;
    if (kv_head < a.n_kv_heads) {
        block_at(a, a.rows[row].table, position, kv_head)[in * width + i] = to_f16(v);
    } else {
        uint16_t *v_at = block_at(a, a.rows[row].table, position, kv_head - a.n_kv_heads) +
                         a.block_size * width;
        v_at[(in / 16 * width + i) * 16 + in % 16] = to_f16(v);
    }
}

// A warp a head: of q, k and v in turn.
__global__ void heads(pl_cu_attention a)
{
    __shared__ float values[8][PL_CU_MAX_DIM];
    int row = blockIdx.x, head = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    int n = a.n_heads + 2 * a.n_kv_heads, dim = a.head_dim, half = dim / 2;
    if (head >= n) return;
    float *x = values[threadIdx.x / 32];
    const float *from = a.qkv + ((size_t)row * n + head) * dim, *by = NULL;
    bool turns = head < a.n_heads + a.n_kv_heads;
    if (turns) by = head < a.n_heads ? a.q_norm : a.k_norm;
    float sum = 0;
    for (int i = lane; i < dim; i += 32) {
        x[i] = from[i];
        sum = __fmaf_rn(x[i], x[i], sum);
    }
    sum = warp_sum(sum);
    float inverse = __frcp_rn(__fsqrt_rn(sum / dim + a.eps));
    for (int i = lane; by && i < dim; i += 32) x[i] = __fmul_rn(__fmul_rn(x[i], inverse), by[i]);
    __syncwarp();
    if (!turns) {
        for (int i = lane; i < dim; i += 32) put_head(a, row, head, i, x[i]);
        return;
    }
    const float *cosines = a.rope + (size_t)a.rows[row].position * dim, *sines = cosines + half;
    for (int i = lane; i < half; i += 32) {
        int p = a.pairs ? 2 * i : i, q = a.pairs ? 2 * i + 1 : i + half;
        float u = x[p], v = x[q], c = cosines[i], s = sines[i];
        put_head(a, row, head, p, __fsub_rn(__fmul_rn(u, c), __fmul_rn(v, s)));
        put_head(a, row, head, q, __fadd_rn(__fmul_rn(v, c), __fmul_rn(u, s)));
    }
}

void pl_cu_heads(cudaStream_t s, const pl_cu_attention *a)
{
    int n = a->n_heads + 2 * a->n_kv_heads;
    heads<<<dim3(a->n_rows, (n + 7) / 8), 256, 0, s>>>(*a);
}

// ---- one split -----------------------------------------------------------------------

struct tile_of { // what a CTA works on
    pl_cu_queries t;
    int kv_head, group, last; // the last position that any query sees
};

__device__ __forceinline__ tile_of open_tile(const pl_cu_attention &a, const pl_cu_queries &t, int kv_head)
{
    int group = a.n_heads / a.n_kv_heads;
    return {t, kv_head, group, t.position + (t.first + t.n - 1) / group};
}

__device__ __forceinline__ int position_of(const tile_of &o, int item)
{
    return o.t.position + (o.t.first + item) / o.group;
}

__device__ __forceinline__ int first_seen(const pl_cu_attention &a, int position)
{
    return a.window && position + 1 > a.window ? position + 1 - a.window : 0;
}

__device__ __forceinline__ const uint16_t *query_at(const pl_cu_attention &a, const tile_of &o, int item)
{
    if (item >= o.t.n) return NULL;
    int i = o.t.first + item;
    size_t row = o.t.row + i / o.group, head = o.kv_head * o.group + i % o.group;
    return a.q + (row * a.n_heads + head) * width_of(a);
}

__device__ __forceinline__ uint2 pair_at(const uint16_t *p, int i)
{
    return p ? *(const uint2 *)(p + i) : make_uint2(0, 0);
}

// A head's width, where it is known when this is compiled.
template <int W>
__device__ __forceinline__ int width_in(const pl_cu_attention &a)
{
    return W ? W : width_of(a);
}

// Scores of MI * 16 queries, the split's positions shared out among the warps.
template <int MI, int W, int WARPS>
__device__ __forceinline__ void score(const pl_cu_attention &a, const tile_of &o, int split,
                                      float *scores)
{
    constexpr int NJ = SPLIT / WARPS / 8;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, at = threadIdx.x / 32 * NJ * 8;
    const uint16_t *keys[NJ], *queries[MI][2];
    float c[MI][NJ][4] = {};
#pragma unroll
    for (int j = 0; j < NJ; j++) {
        int p = split * SPLIT + at + j * 8 + g;
        keys[j] = NULL;
        if (p <= o.last)
            keys[j] = block_at(a, o.t.table, p, o.kv_head) + p % a.block_size * width_in<W>(a);
    }
#pragma unroll
    for (int m = 0; m < MI; m++)
        for (int h = 0; h < 2; h++) queries[m][h] = query_at(a, o, m * 16 + h * 8 + g);
#pragma unroll(MI == 1 ? 8 : 2)
    for (int k = 0; k < width_in<W>(a); k += 16) {
        uint2 b[NJ];
#pragma unroll
        for (int j = 0; j < NJ; j++) b[j] = pair_at(keys[j], k + 4 * t);
#pragma unroll
        for (int m = 0; m < MI; m++) {
            uint2 low = pair_at(queries[m][0], k + 4 * t), high = pair_at(queries[m][1], k + 4 * t);
            uint4 q = make_uint4(low.x, high.x, low.y, high.y);
#pragma unroll
            for (int j = 0; j < NJ; j++) mma16<true>(c[m][j], q, b[j]);
        }
    }
#pragma unroll
    for (int m = 0; m < MI; m++)
        for (int j = 0; j < NJ; j++)
            for (int h = 0; h < 2; h++)
                *(float2 *)(scores + (m * 16 + h * 8 + g) * SCORES + at + j * 8 + 2 * t) =
                    make_float2(c[m][j][2 * h], c[m][j][2 * h + 1]);
}

// A warp a query: its largest score, its probabilities over that and their sum.
template <int WARPS>
__device__ void weigh(const pl_cu_attention &a, const tile_of &o, int split, const float *scores,
                      uint16_t *chances, float *tops, float *sums)
{
    int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < o.t.n; i += WARPS) {
        int position = position_of(o, i), from = first_seen(a, position);
        float s[SPLIT / 32], top = -INFINITY, sum = 0;
#pragma unroll
        for (int j = 0; j < SPLIT / 32; j++) {
            int p = split * SPLIT + j * 32 + lane;
            bool seen = p >= from && p <= position;
            s[j] = seen ? __fmul_rn(scores[i * SCORES + j * 32 + lane], a.scale) : -INFINITY;
            top = fmaxf(top, s[j]);
        }
        for (int d = 16; d; d /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
#pragma unroll
        for (int j = 0; j < SPLIT / 32; j++) {
            uint16_t p = s[j] == -INFINITY ? 0 : to_f16(expf(s[j] - top));
            chances[i * CHANCES + j * 32 + lane] = p;
            sum += from_16(p, true);
        }
        sum = warp_sum(sum);
        if (lane == 0) tops[i] = top, sums[i] = sum;
    }
}

// Where the lane's values of the split's positions are, 16 positions each; NULL past the last.
template <int W>
__device__ __forceinline__ void find_values(const pl_cu_attention &a, const tile_of &o, int split,
                                            const uint16_t *(&values)[STEPS])
{
    int width = width_in<W>(a), lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        int p = split * SPLIT + k * 16;
        values[k] = NULL;
        if (p <= o.last)
            values[k] = block_at(a, o.t.table, p, o.kv_head) + a.block_size * width +
                        (p % a.block_size / 16 * width + lane / 4) * 16 + lane % 4 * 4;
    }
}

__device__ __forceinline__ void read_values(const uint16_t *const (&values)[STEPS], int column,
                                            uint2 (&b)[STEPS])
{
#pragma unroll
    for (int k = 0; k < STEPS; k++) b[k] = pair_at(values[k], column * 16);
}

// Values of MI * 16 queries, 8 of the head's columns: a chain over the split's positions.
template <int MI>
__device__ __forceinline__ void mix(const uint16_t *chances, const uint2 (&b)[STEPS],
                                    float (&c)[MI][4])
{
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < STEPS; k++)
#pragma unroll
        for (int m = 0; m < MI; m++) {
            uint2 low = pair_at(chances + (m * 16 + g) * CHANCES, k * 16 + 4 * t);
            uint2 high = pair_at(chances + (m * 16 + 8 + g) * CHANCES, k * 16 + 4 * t);
            mma16<true>(c[m], make_uint4(low.x, high.x, low.y, high.y), b[k]);
        }
}

// ---- merging -------------------------------------------------------------------------

struct factors { float before, added; };

// Merges a split's top and sum onto those so far; values are to be merged by the factors.
__device__ __forceinline__ factors merge(float &top, float &sum, float split_top, float split_sum)
{
    if (split_top == -INFINITY) return {1, 0};
    float higher = fmaxf(top, split_top);
    factors f = {top == -INFINITY ? 0 : expf(top - higher), expf(split_top - higher)};
    top = higher;
    sum = __fmaf_rn(split_sum, f.added, __fmul_rn(sum, f.before));
    return f;
}

__device__ __forceinline__ float merged(float so_far, float split, const factors &f)
{
    return f.added == 0 ? __fmul_rn(so_far, f.before)
                        : __fmaf_rn(split, f.added, __fmul_rn(so_far, f.before));
}

__device__ __forceinline__ void finish(const pl_cu_attention &a, const tile_of &o, int item, int i,
                                       float value, float sum, const pl_cu_acts &out)
{
    int at = o.t.first + item, head = o.kv_head * o.group + at % o.group;
    size_t row = o.t.row + at / o.group, stride = (a.n_heads * a.head_dim + 15) / 16 * 16;
    put_act(out, row * stride + head * a.head_dim + i, __fdiv_rn(value, sum));
}

// ---- many queries: a CTA walks all splits ----------------------------------------------

template <int MI>
struct shared_of {
    float scores[MI * 16 * SCORES];
    uint16_t chances[MI * 16 * CHANCES];
    float tops[MI * 16], sums[MI * 16], top[MI * 16], sum[MI * 16];
    factors by[MI * 16];
    float values[1]; // [query][width]
};

enum { MANY_WARPS = 8, FEW_WARPS = 4 };

template <int MI, int W>
__global__ void __launch_bounds__(MANY_WARPS * 32, 2)
    attend_many(pl_cu_attention a, const pl_cu_queries *tiles, pl_cu_acts out)
{
    extern __shared__ __align__(16) char memory[];
    shared_of<MI> &s = *(shared_of<MI> *)memory;
    tile_of o = open_tile(a, tiles[gridDim.x - 1 - blockIdx.x], blockIdx.y); // the longest first
    int lane = threadIdx.x % 32, width = width_in<W>(a), tid = threadIdx.x;
    for (int i = tid; i < MI * 16 * width; i += blockDim.x) s.values[i] = 0;
    for (int i = tid; i < MI * 16; i += blockDim.x) s.top[i] = -INFINITY, s.sum[i] = 0;
    int from = first_seen(a, position_of(o, 0)) / SPLIT;
    for (int split = from; split <= o.last / SPLIT; split++) {
        const uint16_t *values[STEPS];
        __syncthreads();
        score<MI, W, MANY_WARPS>(a, o, split, s.scores);
        find_values<W>(a, o, split, values);
        __syncthreads();
        weigh<MANY_WARPS>(a, o, split, s.scores, s.chances, s.tops, s.sums);
        __syncthreads();
        for (int i = tid; i < MI * 16; i += blockDim.x)
            s.by[i] = merge(s.top[i], s.sum[i], s.tops[i], s.sums[i]);
        __syncthreads();
        for (int column = tid / 32 * 8; column < width; column += MANY_WARPS * 8) {
            float c[MI][4] = {};
            uint2 b[STEPS];
            read_values(values, column, b);
            mix<MI>(s.chances, b, c);
#pragma unroll
            for (int m = 0; m < MI; m++)
                for (int e = 0; e < 4; e++) {
                    int item = m * 16 + e / 2 * 8 + lane / 4;
                    float *v = s.values + item * width + column + lane % 4 * 2 + e % 2;
                    *v = merged(*v, c[m][e], s.by[item]);
                }
        }
    }
    __syncthreads();
    for (int i = tid; i < o.t.n * width; i += blockDim.x)
        if (i % width < a.head_dim) finish(a, o, i / width, i % width, s.values[i], s.sum[i / width], out);
}

template <int W>
static cudaError_t many(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles, int n,
                        pl_cu_acts out)
{
    constexpr int MI = PL_CU_MANY / 16;
    int shared = (int)sizeof(shared_of<MI>) + PL_CU_MANY * pl_cu_head_width(a->head_dim) * 4;
    cudaError_t e = cudaFuncSetAttribute(attend_many<MI, W>,
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (e) return e;
    attend_many<MI, W><<<dim3(n, a->n_kv_heads), MANY_WARPS * 32, shared, s>>>(*a, tiles, out);
    return cudaGetLastError();
}

cudaError_t pl_cu_attend_many(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles,
                              int n, pl_cu_acts out)
{
    switch (pl_cu_head_width(a->head_dim)) {
    case 64: return many<64>(s, a, tiles, n, out);
    case 128: return many<128>(s, a, tiles, n, out);
    default: return many<0>(s, a, tiles, n, out);
    }
}

// ---- few queries: a CTA has one split ----------------------------------------------------

__device__ __forceinline__ float *partial_at(const pl_cu_attention &a, const tile_of &o, int split)
{
    size_t at = o.t.slot + ((size_t)split * a.n_kv_heads + o.kv_head) * o.t.n;
    return a.partial + at * (width_of(a) + 2);
}

// All that a split needs of the cache is asked for before anything is waited for.
template <int W>
__global__ void __launch_bounds__(FEW_WARPS * 32)
    attend_split(pl_cu_attention a, const pl_cu_queries *tiles)
{
    constexpr int AHEAD = W ? W / 8 / FEW_WARPS : 1; // of the warp's groups of 8 columns
    __shared__ __align__(16) float scores[16 * SCORES];
    __shared__ __align__(16) uint16_t chances[16 * CHANCES];
    __shared__ float tops[16], sums[16];
    tile_of o = open_tile(a, tiles[blockIdx.x], blockIdx.y);
    int split = blockIdx.z, lane = threadIdx.x % 32, width = width_in<W>(a);
    if (split < first_seen(a, position_of(o, 0)) / SPLIT || split > o.last / SPLIT) return;
    const uint16_t *values[STEPS];
    uint2 b[AHEAD][STEPS];
    int first = threadIdx.x / 32 * 8;
    find_values<W>(a, o, split, values);
#pragma unroll
    for (int i = 0; W && i < AHEAD; i++) read_values(values, first + i * FEW_WARPS * 8, b[i]);
    score<1, W, FEW_WARPS>(a, o, split, scores);
    __syncthreads();
    weigh<FEW_WARPS>(a, o, split, scores, chances, tops, sums);
    __syncthreads();
    float *out = partial_at(a, o, split);
#pragma unroll
    for (int i = 0; i < (W ? AHEAD : 8); i++) {
        int column = first + i * FEW_WARPS * 8;
        if (column >= width) break;
        float c[1][4] = {};
        if (!W) read_values(values, column, b[0]);
        mix<1>(chances, b[W ? i : 0], c);
        for (int e = 0; e < 4; e++) {
            int item = e / 2 * 8 + lane / 4;
            if (item < o.t.n) out[item * (width + 2) + 2 + column + lane % 4 * 2 + e % 2] = c[0][e];
        }
    }
    if (threadIdx.x < o.t.n) {
        out[threadIdx.x * (width + 2)] = tops[threadIdx.x];
        out[threadIdx.x * (width + 2) + 1] = sums[threadIdx.x];
    }
}

__global__ void merge_splits(pl_cu_attention a, const pl_cu_queries *tiles, pl_cu_acts out)
{
    tile_of o = open_tile(a, tiles[blockIdx.x], blockIdx.y);
    int width = width_of(a), from = first_seen(a, position_of(o, 0)) / SPLIT;
    for (int i = threadIdx.x; i < o.t.n * width; i += blockDim.x) {
        int item = i / width;
        float top = -INFINITY, sum = 0, value = 0;
        for (int split = from; split <= o.last / SPLIT; split++) {
            const float *p = partial_at(a, o, split) + item * (width + 2);
            factors f = merge(top, sum, p[0], p[1]);
            value = merged(value, p[2 + i % width], f);
        }
        if (i % width < a.head_dim) finish(a, o, item, i % width, value, sum, out);
    }
}

cudaError_t pl_cu_attend_few(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles,
                             int n, int splits, pl_cu_acts out)
{
    dim3 grid(n, a->n_kv_heads, splits);
    switch (pl_cu_head_width(a->head_dim)) {
    case 64: attend_split<64><<<grid, FEW_WARPS * 32, 0, s>>>(*a, tiles); break;
    case 128: attend_split<128><<<grid, FEW_WARPS * 32, 0, s>>>(*a, tiles); break;
    default: attend_split<0><<<grid, FEW_WARPS * 32, 0, s>>>(*a, tiles);
    }
    merge_splits<<<dim3(n, a->n_kv_heads), 256, 0, s>>>(*a, tiles, out);
    return cudaGetLastError();
}
