// SPDX-License-Identifier: Apache-2.0
//
// Matrix products for GPUs of compute capability 9.0 and more than 8 rows.
//
// A CTA has tiles of 128 weight rows by NT rows. A thread asks for stages of 64 columns, two
// groups of four warps multiply: weights from registers, as they are packed, rows from shared
// memory. Where tiles are few, a tile has a cluster of CTAs: each has some of its slices, which
// then are added in order.
#include "gemm.cuh"
#include "hopper.cuh"

#include <cuda.h>

enum {
    M = 128, CONSUMERS = 256, THREADS = CONSUMERS + 128, QUARTERS = 4 // stages of a slice
};

template <int NT>
struct stage {
    uint4 w[M / 8][2][32];
    uint16_t x[NT][64];
};

__host__ __device__ constexpr int stages_of(int nt) { return nt == 128 ? 6 : 8; }

struct maps { CUtensorMap w[3], x; }; // how the copy engine reads the parts and the rows
struct work { int m_tiles, n_tiles, slices; };

enum { // of tiles that have clusters
    EACH = 2, // slices of a CTA
    MOST_CTAS = 8, SPLIT_STAGES = QUARTERS, SPLIT_ROWS = 64,
};

#if PL_HOPPER

// ---- what is loaded ------------------------------------------------------------------

// Where the stages of a CTA come from, one after the other: what there is to divide, once a
// tile.
struct cursor {
    int tile, column, m, part, row; // the column in tiles of 16, m in rows of tiles

    __device__ __forceinline__ void open(const pl_cu_gemm &g, const work &w, int nt)
    {
        m = tile / w.n_tiles, row = tile % w.n_tiles * nt, column = 0;
        part = find_part(g, m, M / 16);
        m *= is_gated(g) ? M / 32 : M / 16;
    }

    __device__ __forceinline__ void next(const pl_cu_gemm &g, const work &w, int nt)
    {
        if ((column += 4) < w.slices * QUARTERS * 4) return;
        tile += gridDim.x;
        open(g, w, nt);
    }
};

// One thread's. Zeros past the last row and column.
template <int NT>
__device__ __forceinline__ void load_weights(const pl_cu_gemm &g, const maps &m, const cursor &c, stage<NT> &to,
                                             uint64_t *full)
{
    arrive_and_expect(full, sizeof to);
    copy_box(to.w, &m.w[c.part], c.column * 32, c.m * 2, full);
    if (is_gated(g)) copy_box(to.w[M / 16], &m.w[1], c.column * 32, c.m * 2, full);
}

// n stages from c on. Weights are asked for before the input is there.
template <int NT, int STAGES>
__device__ __forceinline__ void load(const pl_cu_gemm &g, const maps &m, const work &w, cursor c, int n,
                                     stage<NT> *stages, uint64_t *full, uint64_t *empty)
{
    int early = min(n, STAGES);
    cursor first = c;
    ring<STAGES> r;
    for (int i = 0; i < early; i++, c.next(g, w, NT)) load_weights<NT>(g, m, c, stages[i], full + i);
    wait_for_input();
    for (int i = 0; i < early; i++, first.next(g, w, NT))
        copy_box(stages[i].x, &m.x, first.column * 16, first.row, full + i);
    for (int i = early; i < n; i++, r.next(), c.next(g, w, NT)) {
        wait_phase(empty + r.at, r.phase);
        load_weights<NT>(g, m, c, stages[r.at], full + r.at);
        copy_box(stages[r.at].x, &m.x, c.column * 16, c.row, full + r.at);
    }
}

// ---- what is multiplied --------------------------------------------------------------

// A slice onto c: from zero, unless `on`. Lets go of its stages.
template <bool F16, int NT, int STAGES>
__device__ __forceinline__ void slice_of(float (&c)[NT / 2], const stage<NT> *stages, uint64_t *full,
                                         uint64_t *empty, ring<STAGES> &r, bool on)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, before = 0;
    uint4 a[2][4];
#pragma unroll
    for (int q = 0; q < QUARTERS; q++) {
        const stage<NT> &s = stages[r.at];
        wait_phase(full + r.at, r.phase);
#pragma unroll
        for (int u = 0; u < 4; u += 2) {
            uint4 upper = s.w[warp * 2][u / 2][lane], lower = s.w[warp * 2 + 1][u / 2][lane];
            a[q % 2][u] = rows_of(upper, lower, false);
            a[q % 2][u + 1] = rows_of(upper, lower, true);
        }
        uint64_t x = matrix_at(s.x, 16, 1024);
        products_begin();
#pragma unroll
        for (int u = 0; u < 4; u++) wgmma<F16>(c, a[q % 2][u], x + u * 2, on || q || u);
        products_commit();
        if (q) products_wait<1>();
        if (q && lane == 0) arrive(empty + before);
        before = r.at;
        r.next();
    }
    products_wait<0>();
    products_done(c);
    if (lane == 0) arrive(empty + before);
}

// Where the thread's value i of a tile belongs.
struct place { int n, row; };

__device__ __forceinline__ place place_of(const work &w, int tile, int nt, int each, int i, int tid)
{
    int lane = tid % 32, warp = tid / 32 % 4, m = tile / w.n_tiles * each;
    if (each == M) m += tid / 128 * 64;
    return {m + warp * 16 + lane / 4 + i % 4 / 2 * 8,
            tile % w.n_tiles * nt + i / 4 * 8 + lane % 4 * 2 + i % 2};
}

__device__ __forceinline__ void consumers_meet() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// What is read is asked for before anything is written, as far as there are registers.
template <int NT>
__device__ __forceinline__ void put_tile(const pl_cu_gemm &g, const work &w, int tile, const float (&sum)[NT / 2])
{
    constexpr int PIECE = NT < 64 ? NT / 2 : 32;
    int m = tile / w.n_tiles, part = find_part(g, m, M / 16);
    const pl_cu_part &p = g.parts[part];
    place at = place_of(w, m * w.n_tiles + tile % w.n_tiles, NT, M, 0, threadIdx.x);
    float *out = p.out + (size_t)at.row * p.stride + at.n, bias[2] = {};
    int left = g.n_rows - at.row, below = at.n + 8 < p.n;
    if (at.n >= p.n) return;
    if (p.bias) bias[0] = p.bias[at.n], bias[1] = below ? p.bias[at.n + 8] : 0;
#pragma unroll
    for (int first = 0; first < NT / 2; first += PIECE) {
        float old[PIECE] = {};
#pragma unroll
        for (int i = first; i < first + PIECE; i++) {
            int row = i / 4 * 8 + i % 2, n = i / 2 % 2;
            if (p.add && row < left && (!n || below)) old[i - first] = out[(size_t)row * p.stride + n * 8];
        }
#pragma unroll
        for (int i = first; i < first + PIECE; i++) {
            int row = i / 4 * 8 + i % 2, n = i / 2 % 2;
            float v = p.bias ? __fadd_rn(sum[i], bias[n]) : sum[i];
            if (row < left && (!n || below))
                out[(size_t)row * p.stride + n * 8] = p.add ? __fadd_rn(old[i - first], v) : v;
        }
    }
}

// Gates are half of the threads', what they gate the other half's: each does half of both, and
// lanes of neighbouring columns swap rows, so that they write two columns each.
template <int NT>
__device__ __forceinline__ void put_gated_tile(const pl_cu_gemm &g, const work &w, int tile,
                                               const float (&sum)[NT / 2], float *shared)
{
    int tid = threadIdx.x % 128, half = threadIdx.x / 128, odd = tid / 4 % 2;
    place at = place_of(w, tile, NT, M / 2, half * NT / 4, tid);
    size_t pitch = pl_cu_tiles(g.parts[0].n) * 16;
#pragma unroll
    for (int i = 0; i < NT / 4; i++)
        shared[((1 - half) * NT / 4 + i) * 128 + tid] = half ? sum[i] : sum[NT / 4 + i];
    consumers_meet();
#pragma unroll
    for (int i = 0; i < NT / 4; i += 2) {
        float v[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float other = shared[(half * NT / 4 + i + e) * 128 + tid];
            v[e] = half ? silu_of(other, sum[NT / 4 + i + e]) : silu_of(sum[i + e], other);
        }
        float swapped = __shfl_xor_sync(~0u, v[1 - odd], 4);
        int row = at.row + i / 4 * 8 + odd, n = at.n + i / 2 % 2 * 8 - odd;
        if (n < pitch && row < g.n_rows)
            put_acts(g.gated, row * pitch + n, odd ? swapped : v[0], odd ? v[1] : swapped);
    }
    consumers_meet();
}

#endif

// ---- the kernel ----------------------------------------------------------------------

template <bool F16, int NT>
__global__ void __launch_bounds__(THREADS, 1)
    multiply_hopper(const __grid_constant__ pl_cu_gemm g, const work w, const __grid_constant__ maps m)
{
#if PL_HOPPER
    constexpr int STAGES = stages_of(NT);
    extern __shared__ __align__(1024) char memory[];
    __shared__ uint64_t full[STAGES], empty[STAGES];
    stage<NT> *stages = (stage<NT> *)memory;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) open_barrier(full + i, 1), open_barrier(empty + i, CONSUMERS / 32);
        barriers_opened();
    }
    __syncthreads();
    started();
    if (threadIdx.x >= CONSUMERS) {
        give_registers<40>();
        cursor c = {(int)blockIdx.x};
        int tiles = (w.m_tiles * w.n_tiles - c.tile + (int)gridDim.x - 1) / (int)gridDim.x;
        c.open(g, w, NT);
        if (threadIdx.x == CONSUMERS) load<NT, STAGES>(g, m, w, c, tiles * w.slices * QUARTERS, stages, full, empty);
        return;
    }
    take_registers<232>();
    ring<STAGES> r;
    wait_for_input();
    for (int tile = blockIdx.x; tile < w.m_tiles * w.n_tiles; tile += gridDim.x) {
        float c[NT / 2], sum[NT / 2];
        for (int i = 0; i < w.slices; i++) {
            slice_of<F16, NT, STAGES>(c, stages, full, empty, r, !g.slice && i);
#pragma unroll
            for (int e = 0; e < NT / 2; e++) sum[e] = g.slice && i ? __fadd_rn(sum[e], c[e]) : c[e];
        }
        if (is_gated(g)) put_gated_tile<NT>(g, w, tile, sum, (float *)(stages + STAGES));
        else put_tile<NT>(g, w, tile, sum);
    }
#endif
}

// ---- the same by clusters --------------------------------------------------------------

__host__ __device__ static inline int ctas_of(const work &w) { return (w.slices + EACH - 1) / EACH; }

// A thread's values of a tile are shared out among the CTAs of its cluster: each adds up some.
__host__ __device__ constexpr int share_of(int nt, int ctas) { return (nt / 2 + ctas - 1) / ctas; }

#if PL_HOPPER

// All threads of a cluster that have not left arrive; who waits sees what was written before.
__device__ __forceinline__ void cluster_arrives()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_waits() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Writes to the shared memory of the cluster's CTA number `rank`.
__device__ __forceinline__ void write_to(float *p, int rank, float v)
{
    uint32_t at;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_at(p)), "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
}

// Hands a slice out.
template <int NT>
__device__ __forceinline__ void hand_out(const float (&c)[NT / 2], int slice, int ctas, float *parts)
{
    int rank = 0, share = share_of(NT, ctas);
    float *to = parts + slice * share * CONSUMERS + threadIdx.x;
#pragma unroll
    for (int e = 0; e < NT / 2; e++) {
        write_to(to, rank, c[e]);
        if (++rank == ctas) rank = 0, to += CONSUMERS;
    }
}

// Adds up what the CTA is handed; what the results are added to is asked for meanwhile.
template <int NT>
__device__ __forceinline__ void put_sums(const pl_cu_gemm &g, const work &w, int tile, int rank, int ctas,
                                         const float *parts)
{
    constexpr int MOST = share_of(NT, 2);
    int m = tile / w.n_tiles, part = find_part(g, m, M / 16), share = share_of(NT, ctas);
    const pl_cu_part &p = g.parts[part];
    float *out[MOST], old[MOST], bias[MOST];
#pragma unroll
    for (int j = 0; j < MOST; j++) {
        int e = rank + j * ctas;
        place at = place_of(w, m * w.n_tiles + tile % w.n_tiles, NT, M, e, threadIdx.x);
        bool real = e < NT / 2 && at.n < p.n && at.row < g.n_rows;
        out[j] = real ? p.out + (size_t)at.row * p.stride + at.n : NULL;
        old[j] = real && p.add ? *out[j] : 0;
        bias[j] = real && p.bias ? p.bias[at.n] : 0;
    }
    cluster_waits();
    parts += threadIdx.x;
#pragma unroll
    for (int j = 0; j < MOST; j++) {
        if (!out[j]) continue;
        float sum = parts[j * CONSUMERS];
#pragma unroll 4
        for (int i = 1; i < w.slices; i++) sum = __fadd_rn(sum, parts[(i * share + j) * CONSUMERS]);
        if (p.bias) sum = __fadd_rn(sum, bias[j]);
        *out[j] = p.add ? __fadd_rn(old[j], sum) : sum;
    }
}

#endif

template <bool F16, int NT>
__global__ void __launch_bounds__(THREADS, 2)
    multiply_split(const __grid_constant__ pl_cu_gemm g, const work w, const __grid_constant__ maps m)
{
#if PL_HOPPER
    constexpr int STAGES = SPLIT_STAGES;
    extern __shared__ __align__(1024) char memory[];
    __shared__ uint64_t full[STAGES], empty[STAGES];
    stage<NT> *stages = (stage<NT> *)memory;
    float *parts = (float *)(stages + STAGES);
    int ctas = ctas_of(w), rank = blockIdx.x % ctas, tile = blockIdx.x / ctas;
    int n = min((int)EACH, w.slices - rank * EACH);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) open_barrier(full + i, 1), open_barrier(empty + i, CONSUMERS / 32);
        barriers_opened();
    }
    __syncthreads();
    started();
    cluster_arrives();
    if (threadIdx.x == CONSUMERS) {
        cursor c = {tile};
        c.open(g, w, NT);
        c.column = rank * EACH * QUARTERS * 4;
        load<NT, STAGES>(g, m, w, c, n * QUARTERS, stages, full, empty);
    }
    if (threadIdx.x >= CONSUMERS) return;
    ring<STAGES> r;
    wait_for_input();
    for (int i = 0; i < n; i++) {
        float c[NT / 2];
        slice_of<F16, NT, STAGES>(c, stages, full, empty, r, false);
        if (i == 0) cluster_waits(); // all are there
        hand_out<NT>(c, rank * EACH + i, ctas, parts);
    }
    cluster_arrives();
    put_sums<NT>(g, w, tile, rank, ctas, parts);
#endif
}

// ---- launches ------------------------------------------------------------------------

// A table that is read in boxes of `width` by `height` values.
struct table {
    CUtensorMapDataType type;
    const void *data;
    size_t columns, rows, pitch; // the latter in bytes
    int width, height;
    CUtensorMapSwizzle swizzle;
};

static cudaError_t map_table(CUtensorMap *map, const table &t)
{
    static void *encode;
    cudaDriverEntryPointQueryResult found;
    if (!encode) {
        cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000,
                                                         cudaEnableDefault, &found);
        if (e || !encode) return e ? e : cudaErrorSymbolNotFound;
    }
    cuuint64_t size[2] = {t.columns, t.rows}, pitch[1] = {t.pitch};
    cuuint32_t box[2] = {(cuuint32_t)t.width, (cuuint32_t)t.height}, step[2] = {1, 1};
    CUresult r = ((decltype(&cuTensorMapEncodeTiled))encode)(
        map, t.type, 2, (void *)t.data, size, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
        t.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Weights as two tiles of 64 values of 8 bytes by groups of 8 rows; rows by 64 columns.
static cudaError_t map_all(maps *m, const pl_cu_gemm *g, int nt)
{
    size_t pitch = (size_t)pl_cu_pitch(g->k) * 256, columns = (size_t)pl_cu_tiles(g->k) * 16;
    for (int i = 0; i < g->n_parts; i++) {
        table w = {CU_TENSOR_MAP_DATA_TYPE_UINT64, g->parts[i].w, pitch / 8,
                   (size_t)pl_cu_tiles(g->parts[i].n) * 2, pitch, 128,
                   is_gated(*g) ? M / 16 : M / 8, CU_TENSOR_MAP_SWIZZLE_NONE};
        cudaError_t e = map_table(&m->w[i], w);
        if (e) return e;
    }
    table x = {CU_TENSOR_MAP_DATA_TYPE_UINT16, g->x, columns, (size_t)g->n_rows, columns * 2, 64, nt,
               CU_TENSOR_MAP_SWIZZLE_128B};
    return map_table(&m->x, x);
}

template <bool F16, int NT>
static cudaError_t send(cudaStream_t s, const pl_cu_gemm *g, work w)
{
    auto *kernel = multiply_hopper<F16, NT>;
    size_t shared = stages_of(NT) * sizeof(stage<NT>) + NT / 2 * 128 * sizeof(float);
    static const cudaError_t allowed = allow_shared(kernel, shared);
    maps m = {};
    cudaError_t e = allowed ? allowed : map_all(&m, g, NT);
    if (e) return e;
    w.n_tiles = (g->n_rows + NT - 1) / NT;
    int tiles = w.m_tiles * w.n_tiles, sms = this_gpu().sms;
    return launch(s, tiles < sms ? tiles : sms, THREADS, shared)(kernel, *g, w, m);
}

template <bool F16, int NT>
static cudaError_t send_split(cudaStream_t s, const pl_cu_gemm *g, work w)
{
    constexpr size_t FIXED = SPLIT_STAGES * sizeof(stage<NT>), VALUE = CONSUMERS * sizeof(float);
    auto *kernel = multiply_split<F16, NT>;
    static const cudaError_t allowed = allow_shared(kernel, FIXED + MOST_CTAS * EACH * share_of(NT, 2) * VALUE);
    maps m = {};
    cudaError_t e = allowed ? allowed : map_all(&m, g, NT);
    if (e) return e;
    w.n_tiles = (g->n_rows + NT - 1) / NT;
    int ctas = ctas_of(w);
    launch l(s, w.m_tiles * w.n_tiles * ctas, THREADS, FIXED + w.slices * share_of(NT, ctas) * VALUE);
    l.cluster = ctas;
    return l(kernel, *g, w, m);
}

// Whether a tile's slices are divided: where tiles would occupy few multiprocessors.
static bool is_split(const pl_cu_gemm *g, const work &w)
{
    int tiles = w.m_tiles * ((g->n_rows + 31) / 32);
    return g->slice && !is_gated(*g) && g->n_rows <= SPLIT_ROWS && w.slices > EACH &&
           w.slices <= MOST_CTAS * EACH && tiles * 4 <= this_gpu().sms;
}

// What a width takes: a tile's weights and rows, as often as multiprocessors load them, or as
// the L2 cache gives them, which is not quite as fast.
static int64_t price(const pl_cu_gemm *g, const work &w, int nt)
{
    int64_t tiles = w.m_tiles * ((g->n_rows + nt - 1) / nt), sms = this_gpu().sms;
    int64_t loads = (tiles + sms - 1) / sms * sms, cached = tiles * 5 / 4;
    return (M + nt) * (loads > cached ? loads : cached);
}

template <bool F16>
static cudaError_t multiply(cudaStream_t s, const pl_cu_gemm *g)
{
    work w = {count_tiles(g, is_gated(*g) ? M / 32 : M / 16), 0, (g->k + PL_CU_SLICE - 1) / PL_CU_SLICE};
    int best = 16;
    if (is_split(g, w)) return g->n_rows <= 16 ? send_split<F16, 16>(s, g, w) : send_split<F16, 32>(s, g, w);
    for (int nt = 32; nt <= 128; nt *= 2)
        if (price(g, w, nt) < price(g, w, best)) best = nt;
    switch (best) {
    case 16: return send<F16, 16>(s, g, w);
    case 32: return send<F16, 32>(s, g, w);
    case 64: return send<F16, 64>(s, g, w);
    default: return send<F16, 128>(s, g, w);
    }
}

bool pl_cu_hopper_multiplies()
{
    static const bool yes = is_hopper(multiply_hopper<false, 64>);
    return yes;
}

cudaError_t pl_cu_multiply_hopper(cudaStream_t s, const pl_cu_gemm *g)
{
    return g->f16 ? multiply<true>(s, g) : multiply<false>(s, g);
}
