// SPDX-License-Identifier: Apache-2.0
//
// Matrix products. Two kernels with the same bits: one streams weights past few rows, with
// the slices of K on different warps; one is for many rows, over tiles in shared memory.
#include "mma.cuh"

enum { AHEAD = 8, MAX_SHARED = 160 << 10 };

// ---- out -----------------------------------------------------------------------------

__device__ __forceinline__ void put(const pl_cu_part &p, size_t row, int n, float v)
{
    if (p.bias) v = __fadd_rn(v, p.bias[n]);
    float *out = p.out + row * p.stride + n;
    *out = p.add ? __fadd_rn(*out, v) : v;
}

// The part that holds tile `tile` of all parts' tiles of 16 * each rows.
__device__ __forceinline__ int find_part(const pl_cu_gemm &g, int &tile, int each)
{
    int part = 0;
    for (; part < g.n_parts - 1; part++) {
        int n = ((g.parts[part].n + 15) / 16 + each - 1) / each;
        if (tile < n) break;
        tile -= n;
    }
    return part;
}

static int count_tiles(const pl_cu_gemm *g, int each)
{
    int n = 0;
    for (int i = 0; i < g->n_parts; i++) n += (pl_cu_tiles(g->parts[i].n) + each - 1) / each;
    return n;
}

// ---- few rows ------------------------------------------------------------------------

__device__ __forceinline__ uint4 stream16(const uint4 *p)
{
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

// One chain: tiles `from` to `to` of a row of tiles, by NT * 8 rows.
template <bool F16, int NT>
__device__ __forceinline__ void chain(const uint4 *w, const uint16_t *const (&rows)[NT], int from,
                                      int to, float (&c)[NT][4])
{
    int lane = threadIdx.x % 32, t = lane % 4;
    for (int k = from; k < to; k += AHEAD) {
        uint4 a[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; u++)
            if (k + u < to) a[u] = stream16(w + (size_t)(k + u) * 32 + lane);
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            if (k + u >= to) break;
#pragma unroll
            for (int j = 0; j < NT; j++) {
                uint2 b = make_uint2(0, 0);
                if (rows[j]) b = *(const uint2 *)(rows[j] + (k + u) * 16 + t * 4);
                mma16<F16>(c[j], a[u], b);
            }
        }
    }
}

// Warps of a CTA, as registers allow.
__host__ __device__ constexpr int warps_of(int nt) { return nt == 8 ? 12 : 16; }

// A CTA: `each` tiles of 16 weight rows, their slices on its warps; then sums in order.
template <bool F16, int NT>
__global__ void __launch_bounds__(32 * warps_of(NT)) multiply_few(pl_cu_gemm g, int each)
{
    extern __shared__ float sums[]; // [item][NT][32][4]
    int tile = blockIdx.x, first = blockIdx.y * NT * 8, n_rows = g.n_rows;
    const pl_cu_part &p = g.parts[find_part(g, tile, each)];
    const uint4 *w = (const uint4 *)p.w;
    if (g.tiles) {
        pl_cu_tile e = g.tiles[blockIdx.y];
        if (!e.n) return;
        first = e.first, n_rows = e.first + e.n;
        w = ((const uint4 *const *)p.w)[e.expert];
    }
    int kt = (g.k + 15) / 16, slice = g.slice ? g.slice / 16 : kt;
    int slices = (kt + slice - 1) / slice, tiles = (p.n + 15) / 16;
    int lane = threadIdx.x % 32, items = each * slices;
    const uint16_t *rows[NT];
#pragma unroll
    for (int j = 0; j < NT; j++) {
        int row = first + j * 8 + lane / 4;
        rows[j] = NULL;
        if (row < n_rows) {
            if (g.tiles) row = g.order[row] / g.share;
            rows[j] = (const uint16_t *)g.x + (size_t)row * kt * 16;
        }
    }
    for (int i = threadIdx.x / 32; i < items; i += blockDim.x / 32) {
        int m = tile * each + i / slices, from = i % slices * slice;
        float c[NT][4] = {};
        if (m < tiles)
            chain<F16, NT>(w + (size_t)m * kt * 32, rows, from, min(from + slice, kt), c);
#pragma unroll
        for (int j = 0; j < NT; j++)
            *(float4 *)(sums + ((i * NT + j) * 32 + lane) * 4) =
                make_float4(c[j][0], c[j][1], c[j][2], c[j][3]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < each * NT * 128; i += blockDim.x) {
        int m = i / (NT * 128), in = i % (NT * 128), l = in / 4 % 32, c = in % 4;
        int n = (tile * each + m) * 16 + l / 4 + c / 2 * 8;
        int row = first + in / 128 * 8 + l % 4 * 2 + c % 2;
        if (n >= p.n || row >= n_rows) continue;
        const float *at = sums + (size_t)m * slices * NT * 128 + in;
        float v = at[0];
        for (int s = 1; s < slices; s++) v = __fadd_rn(v, at[s * NT * 128]);
        put(p, g.tiles ? g.order[row] : row, n, v);
    }
}

template <bool F16, int NT>
static cudaError_t few(cudaStream_t s, const pl_cu_gemm *g)
{
    int kt = pl_cu_tiles(g->k), slice = g->slice ? g->slice / 16 : kt;
    int slices = (kt + slice - 1) / slice;
    int each = slices >= 8 ? 1 : 8 / slices, items = each * slices;
    size_t shared = (size_t)items * NT * 512;
    cudaError_t e = cudaFuncSetAttribute(multiply_few<F16, NT>,
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, MAX_SHARED);
    if (e) return e;
    dim3 grid(count_tiles(g, each),
              g->tiles ? g->n_tiles : (g->n_rows + NT * 8 - 1) / (NT * 8));
    int warps = items < warps_of(NT) ? items : warps_of(NT);
    multiply_few<F16, NT><<<grid, 32 * warps, shared, s>>>(*g, each);
    return cudaGetLastError();
}

// ---- many rows -----------------------------------------------------------------------

enum { TILE = 128, STEPS = 2, STAGES = 4, ROW = 48 }; // ROW: values of a row in a stage

struct stage {
    uint4 w[TILE / 16][STEPS][32];
    uint16_t x[TILE][ROW]; // 32 used: 96 bytes keep lanes of a half warp on different banks
};

__device__ __forceinline__ void copy16(void *to, const void *from, bool real)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                 "r"(real ? 16 : 0));
}

// Tiles k and k + 1 of the CTA's weights and rows into a stage; zeros past the end.
__device__ __forceinline__ void fetch(stage &s, const pl_cu_gemm &g, const pl_cu_part &p, int tile,
                                      int first, int k, int kt)
{
    int tiles = (p.n + 15) / 16;
    for (int i = threadIdx.x; i < TILE / 16 * STEPS * 32; i += blockDim.x) {
        int m = i / (STEPS * 32), u = i / 32 % STEPS, lane = i % 32;
        bool real = tile + m < tiles && k + u < kt;
        size_t at = real ? ((size_t)(tile + m) * kt + k + u) * 32 + lane : 0;
        copy16(&s.w[m][u][lane], (const uint4 *)p.w + at, real);
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
    for (int m = 0; m < 2; m++) a[m] = s.w[warp % 4 * 2 + m][u][lane];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        uint2 b = *(const uint2 *)&s.x[warp / 4 * 64 + j * 8 + lane / 4][u * 16 + lane % 4 * 4];
        for (int m = 0; m < 2; m++) mma16<F16>(c[m][j], a[m], b);
    }
}

template <bool F16>
__global__ void __launch_bounds__(256, 1) multiply_many(pl_cu_gemm g)
{
    extern __shared__ __align__(16) char memory[];
    stage *stages = (stage *)memory;
    int tile = blockIdx.y, first = blockIdx.x * TILE;
    const pl_cu_part &p = g.parts[find_part(g, tile, TILE / 16)];
    tile *= TILE / 16;
    int kt = (g.k + 15) / 16, n = (kt + STEPS - 1) / STEPS;
    int per = g.slice ? g.slice / 16 / STEPS : n; // stages of a slice
    float c[2][8][4] = {}, sum[2][8][4] = {};
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < n) fetch(stages[i], g, p, tile, first, i * STEPS, kt);
        asm volatile("cp.async.commit_group;");
    }
    for (int i = 0; i < n; i++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
        __syncthreads();
        int next = i + STAGES - 1;
        if (next < n) fetch(stages[next % STAGES], g, p, tile, first, next * STEPS, kt);
        asm volatile("cp.async.commit_group;");
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
    cudaError_t e = cudaFuncSetAttribute(multiply_many<F16>,
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (e) return e;
    dim3 grid((g->n_rows + TILE - 1) / TILE, count_tiles(g, TILE / 16));
    multiply_many<F16><<<grid, 256, shared, s>>>(*g);
    return cudaGetLastError();
}

template <bool F16>
static cudaError_t multiply(cudaStream_t s, const pl_cu_gemm *g)
{
    int rows = g->tiles ? g->tile_rows : g->n_rows;
    int kt = pl_cu_tiles(g->k), slice = g->slice ? g->slice / 16 : kt;
    int items = (kt + slice - 1) / slice < 8 ? 8 : (kt + slice - 1) / slice;
    if (!g->tiles && rows > PL_CU_ROWS) return many<F16>(s, g);
    if (rows <= 8) return few<F16, 1>(s, g);
    if (rows <= 16 || items * 4 * 512 > MAX_SHARED) return few<F16, 2>(s, g);
    if (rows <= 32 || items * 8 * 512 > MAX_SHARED) return few<F16, 4>(s, g);
    return few<F16, 8>(s, g);
}

cudaError_t pl_cu_multiply(cudaStream_t s, const pl_cu_gemm *g)
{
    return g->f16 ? multiply<true>(s, g) : multiply<false>(s, g);
}
