// SPDX-License-Identifier: Apache-2.0
//
// Attention of many sequences with few queries each on GPUs of compute capability 9.0. As many
// CTAs as the GPU holds take one tile after the other and walk all its splits; a warp of each
// copies keys and values ahead, also those of the next tile, which keeps the memory busy.
#include "attend_split.cuh"
#include "hopper.cuh"

enum { CONSUMERS = WARPS * 32, THREADS = CONSUMERS + 32 };

// CTAs per multiprocessor, and how many groups of 16 positions each keeps in shared memory: at
// least a split.
__host__ __device__ constexpr int ctas_of(int width) { return width <= 128 ? 2 : 1; }
__host__ __device__ constexpr int groups_of(int width) { return 208 / ctas_of(width) * 16 / width; }

template <int W>
struct memory_of {
    group_of<W> kv[groups_of(W)];
    exchange x;
    uint64_t full[groups_of(W)], empty[groups_of(W)];
};

#if PL_HOPPER

// Run by one warp: lanes look up a split's groups, the first copies them as room appears.
template <int W>
__device__ __forceinline__ void load(const pl_cu_attention &a, const pl_cu_queries *tiles, int n, memory_of<W> &s)
{
    constexpr int R = groups_of(W);
    int lane = threadIdx.x % 32, asked = 0;
    for (int i = blockIdx.x; i < n * a.n_kv_heads; i += gridDim.x) {
        tile_of o = open_tile(a, tiles[i / a.n_kv_heads], i % a.n_kv_heads);
        for (int split = first_split(a, o); split <= o.last / SPLIT; split++) {
            int groups = count_groups(o, split);
            const uint16_t *from = NULL;
            if (lane < groups) from = run_at(a, o.t.table, split * SPLIT + lane * 16, o.kv_head, W);
            for (int g = 0; g < groups; g++, asked++) {
                const uint16_t *p = (const uint16_t *)__shfl_sync(~0u, (uint64_t)from, g);
                int at = asked % R;
                if (lane) continue;
                if (asked >= R) wait_phase(s.empty + at, asked / R - 1 & 1);
                arrive_and_expect(s.full + at, W * 64);
                copy_bulk(s.kv[at], p, W * 64, s.full + at);
            }
        }
    }
}

template <int W>
__device__ __forceinline__ void attend(const pl_cu_attention &a, const pl_cu_queries *tiles, int n,
                                       const pl_cu_acts &out, memory_of<W> &s)
{
    constexpr int R = groups_of(W);
    int lane = threadIdx.x % 32, used = 0;
    auto groups = [&](int i) {
        wait_phase(s.full + (used + i) % R, (used + i) / R & 1);
        return s.kv[(used + i) % R];
    };
    for (int i = blockIdx.x; i < n * a.n_kv_heads; i += gridDim.x) {
        tile_of o = open_tile(a, tiles[i / a.n_kv_heads], i % a.n_kv_heads);
        uint4 q[W / 16];
        walk<W> so_far;
        read_queries<W>(a, o, q);
        for (int split = first_split(a, o); split <= o.last / SPLIT; split++) {
            float scores[4][4] = {}, c[W / 32][4] = {};
            weighed of[2];
            score<W>(a, o, split, groups, q, scores);
            weigh_scores(a, s.x, scores, of);
            mix<W>(o, split, groups, s.x, c);
            __syncwarp();
            if (lane < count_groups(o, split)) arrive(s.empty + (used + lane) % R);
            used += count_groups(o, split);
            so_far.add(c, of);
        }
        so_far.put(a, o, out);
    }
}

#endif

template <int W>
__global__ void __launch_bounds__(THREADS, ctas_of(W))
    walk_hopper(const __grid_constant__ pl_cu_attention a, const pl_cu_queries *tiles, int n, pl_cu_acts out)
{
#if PL_HOPPER
    extern __shared__ __align__(1024) char memory[];
    memory_of<W> &s = *(memory_of<W> *)memory;
    if (threadIdx.x == 0) {
        for (int i = 0; i < groups_of(W); i++) open_barrier(s.full + i, 1), open_barrier(s.empty + i, WARPS);
        barriers_opened();
    }
    __syncthreads();
    started();
    wait_for_input();
    if (threadIdx.x >= CONSUMERS) load<W>(a, tiles, n, s);
    else attend<W>(a, tiles, n, out, s);
#endif
}

template <int W>
static cudaError_t walk_tiles(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles, int n,
                              pl_cu_acts out)
{
    static const cudaError_t e = allow_shared(walk_hopper<W>, sizeof(memory_of<W>));
    if (e) return e;
    return launch(s, this_gpu().sms * ctas_of(W), THREADS, sizeof(memory_of<W>))(walk_hopper<W>, *a, tiles, n, out);
}

cudaError_t pl_cu_attend_walk(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles, int n,
                              pl_cu_acts out)
{
    switch (width_of(a->head_dim)) {
    case 64: return walk_tiles<64>(s, a, tiles, n, out);
    case 128: return walk_tiles<128>(s, a, tiles, n, out);
    case 192: return walk_tiles<192>(s, a, tiles, n, out);
    default: return walk_tiles<256>(s, a, tiles, n, out);
    }
}

int pl_cu_walkers()
{
    static const int n = is_hopper(walk_hopper<128>) ? this_gpu().sms : 0;
    return n;
}
