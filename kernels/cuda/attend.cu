// SPDX-License-Identifier: Apache-2.0
//
// Attention: heads to the cache, then queries over splits of positions.
#include "attend_head.cuh"
#include "attend_hopper.cuh"
#include "attend_split.cuh"

int pl_cu_head_width(int head_dim) { return width_of(head_dim); }

int pl_cu_partial(int head_dim) { return width_of(head_dim) + 2; }

int64_t pl_cu_kv_values(const pl_cu_attention *a)
{
    return (int64_t)a->n_layers * a->n_kv_heads * 2 * a->block_size * width_of(a->head_dim);
}

// ---- heads ---------------------------------------------------------------------------

enum { HEAD_WARPS = 8, MANY_ROWS = 512 };

// Moves the heads of a row, q, k and v in turn, to where attention reads them; HEADS per warp.
template <int W, int HEADS>
__global__ void __launch_bounds__(HEAD_WARPS * 32) heads(const __grid_constant__ pl_cu_attention a)
{
    __shared__ float values[HEAD_WARPS][W];
    int row = blockIdx.x, first = (blockIdx.y * HEAD_WARPS + threadIdx.x / 32) * HEADS;
    int n = a.n_heads + 2 * a.n_kv_heads, half = a.head_dim / 2, lane = threadIdx.x % 32;
    float *x = values[threadIdx.x / 32];
    lane_values<W> of[HEADS];
    started();
    int position = a.rows[row].position, table = a.rows[row].table;
    uint16_t *run = first + HEADS > a.n_heads ? run_at(a, table, position, 0, W) : NULL;
    const float *angles = a.rope + (size_t)position * a.head_dim;
    lane_values<W / 2> cosines = values_of<W / 2>(angles, half), sines = values_of<W / 2>(angles + half, half);
    wait_for_input();
#pragma unroll
    for (int i = 0; i < HEADS; i++)
        of[i] = values_of<W>(a.qkv + ((size_t)row * n + first + i) * a.head_dim, first + i < n ? a.head_dim : 0);
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        int head = first + i, kv_head = head - a.n_heads;
        if (head >= n) break;
        bool turns = kv_head < a.n_kv_heads;
        const float *norm = !turns ? NULL : kv_head < 0 ? a.q_norm : a.k_norm;
        norm_head<W>(a, of[i], norm, values_of<W>(norm, norm ? a.head_dim : 0), x);
        if (turns) turn_head<W>(a, cosines, sines, x);
        uint16_t *to = kv_head < 0 ? a.q + ((size_t)row * a.n_heads + head) * W
                                   : run + (size_t)(kv_head % a.n_kv_heads) * a.block_size * 2 * W +
                                         (turns ? 0 : 8 * W);
#pragma unroll
        for (int c = lane * 2; c < W; c += 64)
            *(uint32_t *)(to + (kv_head < 0 ? c : in_run(position, c))) = pack2<true>(x[c], x[c + 1]);
    }
}

template <int W, int HEADS>
static cudaError_t head_rows(cudaStream_t s, const pl_cu_attention *a)
{
    int n = a->n_heads + 2 * a->n_kv_heads, each = HEAD_WARPS * HEADS;
    return launch(s, dim3(a->n_rows, (n + each - 1) / each), HEAD_WARPS * 32)(heads<W, HEADS>, *a);
}

// With many rows a warp takes several heads of one, which share its lookups.
template <int W>
static cudaError_t head_rows(cudaStream_t s, const pl_cu_attention *a)
{
    return a->n_rows < MANY_ROWS ? head_rows<W, 1>(s, a) : head_rows<W, 4>(s, a);
}

cudaError_t pl_cu_heads(cudaStream_t s, const pl_cu_attention *a)
{
    switch (width_of(a->head_dim)) {
    case 64: return head_rows<64>(s, a);
    case 128: return head_rows<128>(s, a);
    case 192: return head_rows<192>(s, a);
    default: return head_rows<256>(s, a);
    }
}

// ---- few queries: a CTA per split ----------------------------------------------------

enum { THREADS = WARPS * 32 };

template <int W>
struct memory_of {
    group_of<W> kv[GROUPS];
    exchange x;
};

// The groups of a split in the cache, 16 positions each; NULL past the last position.
struct places { const uint16_t *of[GROUPS]; };

template <int W>
__device__ __forceinline__ places find_split(const pl_cu_attention &a, const tile_of &o, int split)
{
    places p;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        int position = split * SPLIT + i * 16;
        p.of[i] = position <= o.last ? run_at(a, o.t.table, position, o.kv_head, W) : NULL;
    }
    return p;
}

// Copies keys, then values, as two groups of copies; zeros past the last position.
template <int W>
__device__ __forceinline__ void fetch(const pl_cu_attention &a, const places &from, group_of<W> (&kv)[GROUPS])
{
    for (int v = 0; v < 2; v++) {
#pragma unroll
        for (int i = 0; i < SPLIT / 8; i++)
#pragma unroll
            for (int c = threadIdx.x * 8; c < W * 8; c += THREADS * 8) {
                const uint16_t *p = from.of[i / 2];
                copy16(kv[i / 2][i % 2][v] + c, p ? p + (i % 2 * 2 + v) * W * 8 + c : a.kv, p);
            }
        commit_copies();
    }
}

// Attends to a split that is being copied to shared memory.
template <int W>
__device__ __forceinline__ void attend_split(const pl_cu_attention &a, const tile_of &o, int split,
                                             memory_of<W> &s, const uint4 (&q)[W / 16],
                                             weighed (&of)[2], float (&c)[W / 32][4])
{
    float scores[4][4] = {};
    wait_copies<1>();
    __syncthreads();
    score<W>(a, o, split, [&](int i) { return s.kv[i]; }, q, scores);
    weigh_scores(a, s.x, scores, of);
    wait_copies<0>();
    __syncthreads();
    mix<W>(o, split, [&](int i) { return s.kv[i]; }, s.x, c);
}

__device__ __forceinline__ float *partial_at(const pl_cu_attention &a, const tile_of &o, int split, int width)
{
    size_t at = o.t.slot + ((size_t)split * a.n_kv_heads + o.kv_head) * o.t.n;
    return a.partial + at * (width + 2);
}

// Reads what other CTAs wrote, past this multiprocessor's cache, which may hold an older step.
__device__ __forceinline__ void merge_partials(const pl_cu_attention &a, const tile_of &o, int width,
                                               const pl_cu_acts &out)
{
    int pairs = width / 2, from = first_split(a, o);
    for (int i = threadIdx.x; i < o.t.n * pairs; i += THREADS) {
        int item = i / pairs, column = i % pairs * 2;
        merged_splits m = {-INFINITY, 0};
        float v = 0, w = 0;
#pragma unroll 4
        for (int split = from; split <= o.last / SPLIT; split++) {
            const float *p = partial_at(a, o, split, width) + item * (width + 2);
            float2 of = __ldcg((const float2 *)p), values = __ldcg((const float2 *)(p + 2 + column));
            factors f = merge(m, of.x, of.y);
            v = merged(v, values.x, f), w = merged(w, values.y, f);
        }
        put_result(a, out, result_at(a, o, item), column, __fdiv_rn(v, m.sum), __fdiv_rn(w, m.sum));
    }
}

// Whether this is the last CTA of its tile and head to finish.
__device__ __forceinline__ bool is_last(const pl_cu_attention &a, const tile_of &o)
{
    __shared__ int last;
    __syncthreads();
    if (threadIdx.x == 0) {
        int *count = a.counts + (size_t)blockIdx.x * a.n_kv_heads + o.kv_head;
        __threadfence();
        last = atomicAdd(count, 1) == o.last / SPLIT - first_split(a, o);
        if (last) *count = 0;
        __threadfence();
    }
    __syncthreads();
    return last;
}

template <int W>
__global__ void __launch_bounds__(THREADS)
    attend_few(const __grid_constant__ pl_cu_attention a, const pl_cu_queries *tiles, pl_cu_acts out)
{
    extern __shared__ __align__(1024) char memory[];
    memory_of<W> &s = *(memory_of<W> *)memory;
    started();
    tile_of o = open_tile(a, tiles[blockIdx.x], blockIdx.y);
    int split = blockIdx.z, lane = threadIdx.x % 32, column = threadIdx.x / 32 * (W / 4) + lane % 4 * 2;
    if (split < first_split(a, o) || split > o.last / SPLIT) return;
    places from = find_split<W>(a, o, split);
    uint4 q[W / 16];
    weighed of[2];
    float c[W / 32][4] = {};
    wait_for_input();
    fetch<W>(a, from, s.kv);
    read_queries<W>(a, o, q);
    attend_split<W>(a, o, split, s, q, of, c);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int item = h * 8 + lane / 4;
        if (item >= o.t.n) break;
        float *to = partial_at(a, o, split, W) + item * (W + 2);
        if (column == 0) *(float2 *)to = make_float2(of[h].top, of[h].sum);
#pragma unroll
        for (int j = 0; j < W / 32; j++)
            *(float2 *)(to + 2 + column + j * 8) = make_float2(c[j][2 * h], c[j][2 * h + 1]);
    }
    if (is_last(a, o)) merge_partials(a, o, W, out);
}

template <int W>
static cudaError_t few(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles, int n,
                       int splits, pl_cu_acts out)
{
    static const cudaError_t e = allow_shared(attend_few<W>, sizeof(memory_of<W>));
    if (e) return e;
    dim3 grid(n, a->n_kv_heads, splits);
    return launch(s, grid, THREADS, sizeof(memory_of<W>))(attend_few<W>, *a, tiles, out);
}

cudaError_t pl_cu_attend_few(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles,
                             int n, int splits, pl_cu_acts out)
{
    switch (width_of(a->head_dim)) {
    case 64: return few<64>(s, a, tiles, n, splits, out);
    case 128: return few<128>(s, a, tiles, n, splits, out);
    case 192: return few<192>(s, a, tiles, n, splits, out);
    default: return few<256>(s, a, tiles, n, splits, out);
    }
}

// ---- many queries: a CTA walks all splits ------------------------------------------------

// 16 queries of a tile.
template <int W>
__global__ void __launch_bounds__(THREADS)
    attend_many(const __grid_constant__ pl_cu_attention a, const pl_cu_queries *tiles, pl_cu_acts out)
{
    constexpr int PARTS = PL_CU_MANY / 16;
    extern __shared__ __align__(1024) char memory[];
    memory_of<W> &s = *(memory_of<W> *)memory;
    started();
    wait_for_input();
    int i = gridDim.y - 1 - blockIdx.y; // the longest first
    pl_cu_queries t = tiles[i / PARTS];
    t.first += i % PARTS * 16;
    t.n = min(t.n - i % PARTS * 16, 16);
    if (t.n <= 0) return;
    tile_of o = open_tile(a, t, blockIdx.x);
    uint4 q[W / 16];
    walk<W> so_far;
    read_queries<W>(a, o, q);
    for (int split = first_split(a, o); split <= o.last / SPLIT; split++) {
        weighed of[2];
        float c[W / 32][4] = {};
        __syncthreads();
        fetch<W>(a, find_split<W>(a, o, split), s.kv);
        attend_split<W>(a, o, split, s, q, of, c);
        so_far.add(c, of);
    }
    so_far.put(a, o, out);
}

template <int W>
static cudaError_t many(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles, int n,
                        pl_cu_acts out)
{
    static const cudaError_t e = allow_shared(attend_many<W>, sizeof(memory_of<W>));
    if (e) return e;
    dim3 grid(a->n_kv_heads, n * (PL_CU_MANY / 16));
    return launch(s, grid, THREADS, sizeof(memory_of<W>))(attend_many<W>, *a, tiles, out);
}

cudaError_t pl_cu_attend_many(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles,
                              int n, pl_cu_acts out)
{
    int width = width_of(a->head_dim);
    if (pl_cu_hopper_attends(width)) return pl_cu_attend_hopper(s, a, tiles, n, out);
    switch (width) {
    case 64: return many<64>(s, a, tiles, n, out);
    case 128: return many<128>(s, a, tiles, n, out);
    case 192: return many<192>(s, a, tiles, n, out);
    default: return many<256>(s, a, tiles, n, out);
    }
}
