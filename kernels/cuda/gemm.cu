// SPDX-License-Identifier: Apache-2.0
//
// Matrix products. Kernels with the same bits: one streams weights past few rows, with the
// slices of K on different warps; others are for many rows, over tiles in shared memory.
#include "gemm.cuh"

enum { MAX_SHARED = 160 << 10, SLICE = PL_CU_SLICE / 16 };

// ---- few rows ------------------------------------------------------------------------

__device__ __forceinline__ uint4 stream16(const uint4 *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

// Warps of a CTA, as registers allow, and how many tiles of weights are on their way.
__host__ __device__ constexpr int warps_of(int nt) { return nt == 8 ? 12 : 16; }
__host__ __device__ constexpr int ahead_of(int nt) { return nt == 1 ? 16 : 8; }

// Steps k to k + N of 16 rows: the tiles of the upper and the lower 8 in turn.
template <int N>
__device__ __forceinline__ void stream(uint4 (&a)[N], const uint4 *w, int pitch, int k, int to)
{
#pragma unroll
    for (int u = 0; u < N; u++)
        if (k + (u & ~1) < to) a[u] = stream16(w + u % 2 * pitch * 16 + (k + u) / 2 * 32 + threadIdx.x % 32);
}

// One chain: tiles `from` to `to` of a row of tiles, by NT * 8 rows; the first tiles are
// there already. As many of the rows' values as there are registers for are read at once.
template <bool F16, int NT, int N>
__device__ __forceinline__ void chain(uint4 (&a)[N], const uint4 *w, int pitch,
                                      const uint16_t *const (&rows)[NT], int from, int to,
                                      float (&c)[NT][4])
{
    constexpr int SOME = NT == 8 ? 2 : 8 / NT;
    int t = threadIdx.x % 4;
    for (int k = from; k < to; k += N) {
        if (k != from) stream(a, w, pitch, k, to);
#pragma unroll
        for (int first = 0; first < N; first += SOME) {
            uint2 b[SOME][NT];
#pragma unroll
            for (int u = 0; u < SOME; u++)
#pragma unroll
                for (int j = 0; j < NT; j++) {
                    const uint32_t *at = (const uint32_t *)(rows[j] + (k + first + u) * 16) + t;
                    bool real = rows[j] && k + first + u < to;
                    b[u][j].x = real ? at[0] : 0;
                    b[u][j].y = real ? at[4] : 0;
                }
#pragma unroll
            for (int u = 0; u < SOME; u++)
                if (k + first + u < to) {
                    int pair = (first + u) & ~1;
                    uint4 w16 = rows_of(a[pair], a[pair + 1], u % 2);
#pragma unroll
                    for (int j = 0; j < NT; j++) mma16<F16>(c[j], w16, b[u][j]);
                }
        }
    }
}

__host__ __device__ static inline int normed_pitch(int k) { return pl_cu_tiles(k) * 16 + 8; }

// The norms of the rows, a warp each, in 16 bits.
template <bool F16>
__device__ __forceinline__ void norm_rows(const pl_cu_gemm &g, uint16_t *out)
{
    for (int r = threadIdx.x / 32; r < g.n_rows; r += blockDim.x / 32) {
        uint16_t *to = out + r * normed_pitch(g.k);
        norm_row<4>(g.unnormed + (size_t)r * g.k, g.norm, g.k, g.eps, [&](int i, const float4 &v) {
            *(uint2 *)(to + i) = make_uint2(pack2<F16>(v.x, v.y), pack2<F16>(v.z, v.w));
        });
    }
    __syncthreads();
}

struct few_tile { // what a CTA works on
    const pl_cu_part *p;
    int tile, each, first, n_rows, kt, slice, slices;
    const uint4 *expert; // its weights, if it is an expert's
    bool gated;
};

// An item: a slice of 16 weight rows.
struct few_item { const uint4 *w; int from, to; };

__device__ __forceinline__ few_item item_of(const few_tile &f, int pitch, int i)
{
    int m = i / f.slices, from = i % f.slices * f.slice;
    const pl_cu_part *p = f.p + (f.gated ? m % 2 : 0);
    m = f.tile * f.each + (f.gated ? m / 2 : m);
    const uint4 *w = f.expert ? f.expert : (const uint4 *)p->w;
    int to = m < pl_cu_tiles(p->n) ? min(from + f.slice, f.kt) : from;
    return {w + (size_t)m * pitch * 32, from, to};
}

__device__ __forceinline__ float sum_slices(const float *at, int slices, int nt)
{
    float v = at[0];
    for (int s = 1; s < slices; s++) v = __fadd_rn(v, at[s * nt * 128]);
    return v;
}

template <int NT>
__device__ __forceinline__ void put_few(const pl_cu_gemm &g, const few_tile &f, const float *sums)
{
    int tiles = f.each * NT * 128, of_tile = f.slices * NT * 128;
    for (int i = threadIdx.x; i < tiles; i += blockDim.x) {
        int m = i / (NT * 128), in = i % (NT * 128), l = in / 4 % 32, c = in % 4;
        int n = (f.tile * f.each + m) * 16 + l / 4 + c / 2 * 8;
        int row = f.first + in / 128 * 8 + l % 4 * 2 + c % 2;
        if (n >= f.p->n || row >= f.n_rows) continue;
        if (f.gated) {
            const float *at = sums + 2 * m * of_tile + in;
            put_gated(g, row, n, sum_slices(at, f.slices, NT),
                      sum_slices(at + of_tile, f.slices, NT));
        } else {
            float v = sum_slices(sums + m * of_tile + in, f.slices, NT);
            put(*f.p, g.tiles ? g.order[row] : row, n, v);
        }
    }
}

// A CTA: `each` tiles of 16 weight rows, their slices on its warps; then sums in order. All
// but experts' weights are asked for before the input is there.
template <bool F16, int NT>
__global__ void __launch_bounds__(32 * warps_of(NT))
    multiply_few(const __grid_constant__ pl_cu_gemm g, int each)
{
    extern __shared__ __align__(16) float sums[]; // [item][NT][32][4]; then normed rows
    int tile = blockIdx.x, kt = pl_cu_tiles(g.k), slice = g.slice ? SLICE : kt;
    const pl_cu_part &p = g.parts[find_part(g, tile, each)];
    few_tile f = {&p, tile, each, (int)blockIdx.y * NT * 8, g.n_rows, kt, slice,
                  (kt + slice - 1) / slice, NULL, is_gated(g)};
    int items = each * f.slices * (f.gated ? 2 : 1), lane = threadIdx.x % 32;
    uint16_t *normed = (uint16_t *)(sums + items * NT * 128);
    started();
    if (g.tiles) {
        wait_for_input();
        pl_cu_tile e = g.tiles[blockIdx.y];
        if (!e.n) return;
        f.first = e.first, f.n_rows = e.first + e.n;
        f.expert = ((const uint4 *const *)p.w)[e.expert];
    }
    int i = threadIdx.x / 32, pitch = pl_cu_pitch(g.k);
    uint4 a[ahead_of(NT)];
    few_item item = item_of(f, pitch, i);
    stream(a, item.w, pitch, item.from, item.to);
    wait_for_input();
    if (g.unnormed) norm_rows<F16>(g, normed);
    const uint16_t *rows[NT];
#pragma unroll
    for (int j = 0; j < NT; j++) {
        int row = f.first + j * 8 + lane / 4;
        rows[j] = NULL;
        if (row >= f.n_rows) continue;
        if (g.tiles) row = g.order[row] / g.share;
        rows[j] = g.unnormed ? normed + row * normed_pitch(g.k)
                             : (const uint16_t *)g.x + (size_t)row * kt * 16;
    }
    while (i < items) {
        float c[NT][4] = {};
        chain<F16, NT>(a, item.w, pitch, rows, item.from, item.to, c);
#pragma unroll
        for (int j = 0; j < NT; j++)
            *(float4 *)(sums + ((i * NT + j) * 32 + lane) * 4) =
                make_float4(c[j][0], c[j][1], c[j][2], c[j][3]);
        if ((i += blockDim.x / 32) >= items) break;
        item = item_of(f, pitch, i);
        stream(a, item.w, pitch, item.from, item.to);
    }
    __syncthreads();
    put_few<NT>(g, f, sums);
}

template <bool F16, int NT>
static cudaError_t few(cudaStream_t s, const pl_cu_gemm *g)
{
    int per = count_slices(g) * (is_gated(*g) ? 2 : 1), wanted = is_gated(*g) ? 16 : 8;
    int each = per >= wanted ? 1 : wanted / per, items = each * per;
    size_t shared = (size_t)items * NT * 512;
    if (g->unnormed) shared += (size_t)g->n_rows * normed_pitch(g->k) * 2;
    static const cudaError_t e = allow_shared(multiply_few<F16, NT>, MAX_SHARED);
    if (e) return e;
    dim3 grid(count_tiles(g, each), g->tiles ? g->n_tiles : (g->n_rows + NT * 8 - 1) / (NT * 8));
    int warps = items < warps_of(NT) ? items : warps_of(NT);
    return launch(s, grid, 32 * warps, shared)(multiply_few<F16, NT>, *g, each);
}

// ---- many rows -----------------------------------------------------------------------

enum { TILE = 128, STEPS = 2, STAGES = 4, ROW = 40 }; // ROW: values of a row in a stage

struct stage {
    uint4 w[TILE / 8][32];
    uint16_t x[TILE][ROW]; // 32 used: 80 bytes keep a warp's lanes on different banks
};

// Tiles k and k + 1 of the CTA's weights and rows into a stage; zeros past the end.
__device__ __forceinline__ void fetch(stage &s, const pl_cu_gemm &g, const pl_cu_part &p, int tile,
                                      int first, int k, int kt)
{
    int tiles = pl_cu_tiles(p.n), pitch = pl_cu_pitch(g.k);
    for (int i = threadIdx.x; i < TILE / 8 * 32; i += blockDim.x) {
        int m = i / 32, lane = i % 32;
        bool real = tile + m / 2 < tiles;
        size_t at = real ? ((size_t)(tile * 2 + m) * (pitch / 2) + k / 2) * 32 + lane : 0;
        copy16(&s.w[m][lane], (const uint4 *)p.w + at, real);
    }
    for (int i = threadIdx.x; i < TILE * 4; i += blockDim.x) {
        int row = first + i / 4, c = i % 4;
        bool real = row < g.n_rows && k + c / 2 < kt;
        size_t at = real ? ((size_t)row * kt + k) * 16 + c * 8 : 0;
        copy16(&s.x[i / 4][c * 8], (const uint16_t *)g.x + at, real);
    }
}

// 8 warps, 4 by 2: each 32 weight rows by 64 rows.
template <bool F16>
__device__ __forceinline__ void step(const stage &s, int u, float (&c)[2][8][4])
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint4 a[2];
#pragma unroll
    for (int m = 0; m < 2; m++) {
        const auto *w = s.w + (warp % 4 * 2 + m) * 2;
        a[m] = rows_of(w[0][lane], w[1][lane], u);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const uint16_t *row = s.x[warp / 4 * 64 + j * 8 + lane / 4] + u * 16 + lane % 4 * 2;
        uint2 b = make_uint2(*(const uint32_t *)row, *(const uint32_t *)(row + 8));
        for (int m = 0; m < 2; m++) mma16<F16>(c[m][j], a[m], b);
    }
}

template <bool F16>
__global__ void __launch_bounds__(256, 1)
    multiply_many(const __grid_constant__ pl_cu_gemm g)
{
    extern __shared__ __align__(16) char memory[];
    stage *stages = (stage *)memory;
    int tile = blockIdx.y, first = blockIdx.x * TILE;
    const pl_cu_part &p = g.parts[find_part(g, tile, TILE / 16)];
    tile *= TILE / 16;
    int kt = pl_cu_tiles(g.k), n = (kt + STEPS - 1) / STEPS;
    int per = g.slice ? SLICE / STEPS : n; // stages of a slice
    float c[2][8][4] = {}, sum[2][8][4] = {};
    started();
    wait_for_input();
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < n) fetch(stages[i], g, p, tile, first, i * STEPS, kt);
        commit_copies();
    }
    for (int i = 0; i < n; i++) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        int next = i + STAGES - 1;
        if (next < n) fetch(stages[next % STAGES], g, p, tile, first, next * STEPS, kt);
        commit_copies();
#pragma unroll
        for (int u = 0; u < STEPS; u++) step<F16>(stages[i % STAGES], u, c);
        if ((i + 1) % per && i + 1 < n) continue;
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    sum[m][j][e] = i < per ? c[m][j][e] : __fadd_rn(sum[m][j][e], c[m][j][e]);
                    c[m][j][e] = 0;
                }
    }
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int col = (tile + warp % 4 * 2 + m) * 16 + lane / 4 + e / 2 * 8;
                int row = first + warp / 4 * 64 + j * 8 + lane % 4 * 2 + e % 2;
                if (col < p.n && row < g.n_rows) put(p, row, col, sum[m][j][e]);
            }
}

template <bool F16>
static cudaError_t many(cudaStream_t s, const pl_cu_gemm *g)
{
    size_t shared = STAGES * sizeof(stage);
    static const cudaError_t e = allow_shared(multiply_many<F16>, shared);
    if (e) return e;
    dim3 grid((g->n_rows + TILE - 1) / TILE, count_tiles(g, TILE / 16));
    return launch(s, grid, 256, shared)(multiply_many<F16>, *g);
}

// ---- which ---------------------------------------------------------------------------

enum { ROWS = 64 }; // at most that many rows: the kernel that streams weights

bool pl_cu_gates(int n_rows)
{
    return n_rows <= ROWS || pl_cu_hopper_multiplies();
}

template <bool F16>
static cudaError_t multiply(cudaStream_t s, const pl_cu_gemm *g)
{
    int rows = g->tiles ? g->tile_rows : g->n_rows, items = count_slices(g);
    if (items < 8) items = 8;
    // One chain is more than a warp can stream.
    bool few_slices = rows <= 8 && (g->slice || g->unnormed);
    if (!g->tiles && !few_slices && pl_cu_hopper_multiplies()) return pl_cu_multiply_hopper(s, g);
    if (!g->tiles && rows > ROWS) return many<F16>(s, g);
    if (rows <= 8) return few<F16, 1>(s, g);
    if (rows <= 16 || items * 4 * 512 > MAX_SHARED) return few<F16, 2>(s, g);
    if (rows <= 32 || items * 8 * 512 > MAX_SHARED) return few<F16, 4>(s, g);
    return few<F16, 8>(s, g);
}

cudaError_t pl_cu_multiply(cudaStream_t s, const pl_cu_gemm *g)
{
    return g->f16 ? multiply<true>(s, g) : multiply<false>(s, g);
}
