// SPDX-License-Identifier: Apache-2.0
//
// Attention of many queries on GPUs of compute capability 9.0: a CTA walks all splits of a
// tile. One warp copies cached keys and values, a split ahead; two groups of four warps have
// 64 queries each, with scores, weights and outputs in registers.
#include "attend_hopper.cuh"
#include "hopper.cuh"

enum { ROWS = 64, CONSUMERS = 2 * PL_CU_MANY, THREADS = CONSUMERS + 128, STAGES = 2 };

template <int W>
struct memory_of { // rows of 64 values, permuted as in the cache
    uint16_t q[2][W / 64][ROWS][64];
    uint16_t kv[STAGES][SPLIT / 8][2][W / 64][8][64];
    uint64_t full[STAGES], empty[STAGES];
};

#if PL_HOPPER

// ---- loading ------------------------------------------------------------------

// Clears memory that is read before anything has been copied there. It has no weight, but
// must be finite; what older splits leave behind is.
__device__ __forceinline__ void clear(void *p, int bytes)
{
    for (int i = threadIdx.x * 16; i < bytes; i += blockDim.x * 16)
        *(uint4 *)((char *)p + i) = make_uint4(0, 0, 0, 0);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A warp copies a split up to the last position: each lane 16 positions.
template <int W>
__device__ __forceinline__ void copy_split(const pl_cu_attention &a, const tile_of &o, int split, void *to,
                                           uint64_t *full)
{
    int lane = threadIdx.x % 32, position = split * SPLIT + lane * 16;
    int groups = min(o.last / 16 - split * GROUPS + 1, (int)GROUPS);
    const uint16_t *from = lane < groups ? run_at(a, o.t.table, position, o.kv_head, W) : NULL;
    if (lane == 0) arrive_and_expect(full, groups * W * 64);
    __syncwarp();
    if (from) copy_bulk((char *)to + lane * W * 64, from, W * 64, full);
}

template <int W>
__device__ __forceinline__ void load(const pl_cu_attention &a, const tile_of &o, memory_of<W> &s)
{
    ring<STAGES> r;
    for (int split = first_split(a, o), n = 0; split <= o.last / SPLIT; split++, n++, r.next()) {
        if (n >= STAGES) wait_phase(s.empty + r.at, r.phase ^ 1);
        copy_split<W>(a, o, split, s.kv[r.at], s.full + r.at);
    }
}

// The queries of one group of four warps.
template <int W>
__device__ __forceinline__ void load_queries(const pl_cu_attention &a, const tile_of &o, int first,
                                             uint16_t (&q)[W / 64][ROWS][64])
{
    for (int i = threadIdx.x % 128; i < ROWS * W / 8; i += 128) {
        int item = i / (W / 8), c = i % (W / 8);
        uint4 v = make_uint4(0, 0, 0, 0);
        if (first + item < o.t.n) v = *(const uint4 *)(query_at(a, o, first + item, W) + c * 8);
        *(uint4 *)(q[c / 8][item] + (c ^ item) % 8 * 8) = v;
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync %0, 128;" ::"r"(1 + threadIdx.x / 128) : "memory");
}

// ---- a split -------------------------------------------------------------------------

struct query { int position, from; merged_splits m; }; // the last and the first position it sees

template <int W>
__device__ __forceinline__ void score(const uint16_t (&q)[W / 64][ROWS][64],
                                      const uint16_t (&kv)[SPLIT / 8][2][W / 64][8][64], float (&c)[64])
{
    products_begin();
#pragma unroll
    for (int i = 0; i < W / 16; i++)
        wgmma_shared(c, matrix_at(q[i / 4], 16, 1024) + i % 4 * 2, 
                     matrix_at(kv[0][0][i / 4], 16, W * 32) + i % 4 * 2, i);
    products_commit();
    products_wait<0>();
    products_done(c);
}

// Masks positions that are not seen, turns scores into weights, and merges their sum.
__device__ __forceinline__ factors weigh_row(const pl_cu_attention &a, query &q, int split, int h,
                                             float (&c)[64], uint4 (&p)[GROUPS])
{
    int t = threadIdx.x % 4;
    float top = -INFINITY, sum = 0;
    if (split * SPLIT + SPLIT - 1 > q.position || split * SPLIT < q.from) {
#pragma unroll
        for (int i = 0; i < 32; i++) {
            int at = split * SPLIT + i / 2 * 8 + 2 * t + i % 2;
            if (at < q.from || at > q.position) c[i / 2 * 4 + 2 * h + i % 2] = -INFINITY;
        }
    }
#pragma unroll
    for (int i = 0; i < 32; i++) top = fmaxf(top, c[i / 2 * 4 + 2 * h + i % 2]);
    top = quad_max(top);
    weighing w = weigh_by(a, top);
#pragma unroll
    for (int i = 0; i < 4; i++) { // in the order of the kernels with four warps
        float some = 0;
#pragma unroll
        for (int j = i * 4; j < i * 4 + 4; j++) {
            uint32_t both = weigh(w, c[j * 4 + 2 * h], c[j * 4 + 2 * h + 1], some);
            (&p[j / 2].x)[j % 2 * 2 + h] = both;
        }
        sum = i ? __fadd_rn(sum, some) : some;
    }
    return merge(q.m, top == -INFINITY ? top : w.off, quad_sum(sum));
}

// The output in 64 columns: a chain over the split's positions.
template <int W>
__device__ __forceinline__ void mix(const uint4 (&p)[GROUPS], int h,
                                    const uint16_t (&kv)[SPLIT / 8][2][W / 64][8][64], float (&c)[32])
{
#pragma unroll
    for (int i = 0; i < GROUPS; i++) wgmma_across(c, p[i], matrix_at(kv[i * 2][1][h], 16, W * 32), i);
    products_commit();
}

__device__ __forceinline__ void merge_values(float (&values)[32], const float (&c)[32], const factors (&f)[2])
{
#pragma unroll
    for (int i = 0; i < 32; i++) values[i] = merged(values[i], c[i], f[i / 2 % 2]);
}

// ---- all splits ----------------------------------------------------------------------

template <int W>
__device__ __forceinline__ void attend(const pl_cu_attention &a, const tile_of &o, memory_of<W> &s,
                                       const pl_cu_acts &out)
{
    constexpr int H = W / 64;
    int me = threadIdx.x / 128, lane = threadIdx.x % 32, item = threadIdx.x % 128 / 32 * 16 + lane / 4;
    int end = min(o.t.n - me * ROWS, (int)ROWS), last = end > 0 ? position_of(o, me * ROWS + end - 1) : -1;
    float values[H][32] = {};
    query q[2];
    load_queries<W>(a, o, me * ROWS, s.q[me]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int position = position_of(o, me * ROWS + item + h * 8);
        q[h] = {position, first_seen(a, position), {-INFINITY, 0}};
    }
    ring<STAGES> r;
    for (int split = first_split(a, o); split <= o.last / SPLIT; split++, r.next()) {
        float c[64], mixed[H][32];
        uint4 p[GROUPS];
        factors f[2];
        bool seen = split * SPLIT <= last;
        wait_phase(s.full + r.at, r.phase);
        if (seen) score<W>(s.q[me], s.kv[r.at], c);
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (seen) f[h] = weigh_row(a, q[h], split, h, c, p);
        if (seen) {
            products_begin();
#pragma unroll
            for (int h = 0; h < H; h++) mix<W>(p, h, s.kv[r.at], mixed[h]);
            products_wait<H - 1>();
            products_done(mixed[0]);
            merge_values(values[0], mixed[0], f);
            products_wait<0>();
            if (H > 1) products_done(mixed[H - 1]);
            if (H > 1) merge_values(values[H - 1], mixed[H - 1], f);
        }
        __syncwarp();
        if (lane == 0) arrive(s.empty + r.at);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (item + h * 8 >= end) break;
        size_t at = result_at(a, o, me * ROWS + item + h * 8);
#pragma unroll
        for (int i = 0; i < W / 8; i++) {
            const float *v = values[i / 8] + i % 8 * 4 + 2 * h;
            put_result(a, out, at, i * 8 + lane % 4 * 2, __fdiv_rn(v[0], q[h].m.sum), __fdiv_rn(v[1], q[h].m.sum));
        }
    }
}

#endif

template <int W>
__global__ void __launch_bounds__(THREADS, 1)
    attend_hopper(const __grid_constant__ pl_cu_attention a, const pl_cu_queries *tiles, pl_cu_acts out)
{
#if PL_HOPPER
    extern __shared__ __align__(1024) char memory[];
    memory_of<W> &s = *(memory_of<W> *)memory;
    clear(s.kv, sizeof s.kv);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) open_barrier(s.full + i, 1), open_barrier(s.empty + i, CONSUMERS / 32);
        barriers_opened();
    }
    __syncthreads();
    started();
    wait_for_input();
    tile_of o = open_tile(a, tiles[gridDim.y - 1 - blockIdx.y], blockIdx.x); // the longest first
    if (threadIdx.x >= CONSUMERS) {
        give_registers<40>();
        if (threadIdx.x < CONSUMERS + 32) load<W>(a, o, s);
    } else {
        take_registers<232>();
        attend<W>(a, o, s, out);
    }
#endif
}

template <int W>
static cudaError_t attend_tiles(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles, int n,
                                pl_cu_acts out)
{
    static const cudaError_t e = allow_shared(attend_hopper<W>, sizeof(memory_of<W>));
    if (e) return e;
    return launch(s, dim3(a->n_kv_heads, n), THREADS, sizeof(memory_of<W>))(attend_hopper<W>, *a, tiles, out);
}

bool pl_cu_hopper_attends(int width)
{
    static const bool yes = is_hopper(attend_hopper<128>);
    return yes && width <= 128;
}

cudaError_t pl_cu_attend_hopper(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles,
                                int n, pl_cu_acts out)
{
    return width_of(a->head_dim) == 64 ? attend_tiles<64>(s, a, tiles, n, out)
                                       : attend_tiles<128>(s, a, tiles, n, out);
}
