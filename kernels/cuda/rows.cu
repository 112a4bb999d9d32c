// SPDX-License-Identifier: Apache-2.0
//
// What is done to rows: packing, embedding, norms, the gate, experts' choice, the best token.
#include "mma.cuh"


enum { THREADS = 256, F32 = 0, F16 = 1 };

// ---- weights -------------------------------------------------------------------------

__global__ void pack(uint16_t *to, bool f16, int k, int type, const void *values,
                     int64_t first, int64_t n)
{
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i >= n * k) return;
    uint16_t v;
    if (type == F32) {
        float f = ((const float *)values)[i];
        v = f16 ? to_f16(f) : to_bf16(f);
    } else {
        v = ((const uint16_t *)values)[i];
        if (f16 != (type == F16)) v = f16 ? to_f16(from_16(v, false)) : to_bf16(from_16(v, true));
    }
    to[packed_at((int)(first + i / k), (int)(i % k), pl_cu_pitch(k))] = v;
}

cudaError_t pl_cu_usable(void)
{
    cudaFuncAttributes a;
    return cudaFuncGetAttributes(&a, pack);
}

void pl_cu_pack(cudaStream_t s, const pl_cu_weights *w, int type, const void *values,
                int64_t first, int64_t n)
{
    int64_t blocks = (n * w->k + THREADS - 1) / THREADS;
    pack<<<(unsigned)blocks, THREADS, 0, s>>>((uint16_t *)w->data, w->f16, w->k, type, values,
                                              first, n);
}

__global__ void rope(float *table, const double *inv_freq, double scale, int half, int n)
{
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i >= (int64_t)n * half) return;
    int position = (int)(i / half), pair = (int)(i % half);
    double angle = position * inv_freq[pair];
    table[(int64_t)position * 2 * half + pair] = (float)(cos(angle) * scale);
    table[(int64_t)position * 2 * half + half + pair] = (float)(sin(angle) * scale);
}

void pl_cu_rope(cudaStream_t s, float *table, const double *inv_freq, double scale, int half,
                int positions)
{
    int64_t blocks = ((int64_t)half * positions + THREADS - 1) / THREADS;
    rope<<<(unsigned)blocks, THREADS, 0, s>>>(table, inv_freq, scale, half, positions);
}

__global__ void embed(const uint16_t *w, bool f16, int k, const pl_cu_row *rows,
                      const uint64_t *drawn, float *x)
{
    started();
    wait_for_input();
    int token = rows[blockIdx.x].token;
    if (token < 0) token = PL_CU_TOKEN(drawn[-1 - token]);
    for (int i = threadIdx.x; i < k; i += blockDim.x)
        x[(size_t)blockIdx.x * k + i] = from_16(w[packed_at(token, i, pl_cu_pitch(k))], f16);
}

cudaError_t pl_cu_embed(cudaStream_t s, const pl_cu_weights *w, const pl_cu_row *rows, int n,
                        const uint64_t *drawn, float *x)
{
    return launch(s, n, THREADS)(embed, (const uint16_t *)w->data, w->f16, w->k, rows, drawn, x);
}

// ---- rows ----------------------------------------------------------------------------

// A warp a row.
__global__ void norm(const float *x, const int32_t *picks, int n, int k, const float *weight,
                     float eps, pl_cu_acts out)
{
    int i = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    started();
    wait_for_input();
    if (i >= n) return;
    size_t at = (size_t)i * pl_cu_tiles(k) * 16;
    norm_row<8>(x + (size_t)(picks ? picks[i] : i) * k, weight, k, eps, [&](int c, const float4 &v) {
        put_acts(out, at + c, v.x, v.y);
        put_acts(out, at + c + 2, v.z, v.w);
    });
}

cudaError_t pl_cu_norm(cudaStream_t s, const float *x, const int32_t *picks, int n, int k,
                       const float *weight, float eps, pl_cu_acts out)
{
    int rows = THREADS / 32;
    return launch(s, (n + rows - 1) / rows, THREADS)(norm, x, picks, n, k, weight, eps, out);
}

// Rows of a grid's dimension, which is bounded.
enum { GATED = 32768 };

__global__ void gate(const float *g, const float *up, int stride, int n, int k, pl_cu_acts out)
{
    int i = blockIdx.x * THREADS + threadIdx.x;
    started();
    wait_for_input();
    if (i >= k) return;
    for (size_t row = blockIdx.y; row < n; row += GATED)
        put_act(out, row * pl_cu_tiles(k) * 16 + i, silu_of(g[row * stride + i], up[row * stride + i]));
}

cudaError_t pl_cu_gate(cudaStream_t s, const float *g, const float *up, int stride, int n, int k,
                       pl_cu_acts out)
{
    dim3 grid((k + THREADS - 1) / THREADS, n < GATED ? n : GATED);
    return launch(s, grid, THREADS)(gate, g, up, stride, n, k, out);
}

// ---- experts -------------------------------------------------------------------------

// Whether (v, i) comes before (w, j): the larger, then the lower id; what is no number, last.
__device__ __forceinline__ bool is_before(float v, int i, float w, int j)
{
    return v > w || (v == w && i < j);
}

__device__ void warp_best(float &v, int &i)
{
    for (int d = 16; d; d /= 2) {
        float w = __shfl_xor_sync(~0u, v, d);
        int j = __shfl_xor_sync(~0u, i, d);
        if (is_before(w, j, v, i)) v = w, i = j;
    }
}

// A warp a row. The softmax's sum is over lanes in a fixed order.
__global__ void choose(pl_cu_moe m)
{
    extern __shared__ float p[];
    const float *logits = m.logits + (size_t)blockIdx.x * m.n;
    int lane = threadIdx.x;
    started();
    wait_for_input();
    float top = -FLT_MAX, sum = 0, all = 0;
    for (int i = lane; i < m.n; i += 32) top = fmaxf(top, logits[i]);
    for (int d = 16; d; d /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
    for (int i = lane; i < m.n; i += 32) {
        p[i] = expf(logits[i] - top);
        if (!(p[i] >= 0)) p[i] = 0;
        sum += p[i];
    }
    sum = warp_sum(sum);
    __syncwarp();
    for (int u = 0; u < m.n_used; u++) {
        float v = -2;
        int best = m.n;
        for (int i = lane; i < m.n; i += 32)
            if (is_before(p[i], i, v, best)) v = p[i], best = i;
        warp_best(v, best);
        if (best % 32 == lane) p[best] = -1;
        if (lane == 0) m.chosen[blockIdx.x * m.n_used + u] = best;
        if (lane == 0) m.weights[blockIdx.x * m.n_used + u] = v / sum;
        all += v / sum;
        __syncwarp();
    }
    for (int u = lane; m.renormalize && u < m.n_used; u += 32)
        m.weights[blockIdx.x * m.n_used + u] /= all;
}

// One CTA. Rows by expert; which place a row has among its expert's changes no bit.
__global__ void group(pl_cu_moe m)
{
    extern __shared__ int32_t counts[]; // then: where each expert's rows begin
    int slots = m.n_rows * m.n_used;
    started();
    wait_for_input();
    for (int i = threadIdx.x; i < m.n; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < slots; i += blockDim.x) atomicAdd(&counts[m.chosen[i]], 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        int first = 0, n = 0;
        for (int e = 0; e < m.n; e++) {
            int count = counts[e];
            for (int at = 0; at < count; at += m.tile_rows)
                m.tiles[n++] = {e, first + at, min(m.tile_rows, count - at)};
            counts[e] = first;
            first += count;
        }
        while (n < m.n_tiles) m.tiles[n++] = {0, 0, 0};
    }
    __syncthreads();
    for (int i = threadIdx.x; i < slots; i += blockDim.x)
        m.order[atomicAdd(&counts[m.chosen[i]], 1)] = i;
}

cudaError_t pl_cu_choose(cudaStream_t s, const pl_cu_moe *m)
{
    cudaError_t e = launch(s, m->n_rows, 32, (size_t)m->n * sizeof(float))(choose, *m);
    if (e) return e;
    return launch(s, 1, 1024, (size_t)m->n * sizeof(int32_t))(group, *m);
}

__global__ void combine(pl_cu_moe m, const float *said, int hidden, float *x)
{
    started();
    wait_for_input();
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
        float v = x[(size_t)blockIdx.x * hidden + i];
        for (int u = 0; u < m.n_used; u++) {
            size_t slot = (size_t)blockIdx.x * m.n_used + u;
            v = __fmaf_rn(m.weights[slot], said[slot * hidden + i], v);
        }
        x[(size_t)blockIdx.x * hidden + i] = v;
    }
}

cudaError_t pl_cu_combine(cudaStream_t s, const pl_cu_moe *m, const float *said, int hidden, float *x)
{
    return launch(s, m->n_rows, THREADS)(combine, *m, said, hidden, x);
}

// ---- the best token ------------------------------------------------------------------

__global__ void argmax(const float *logits, int vocab, const int32_t *draws, uint64_t *out)
{
    started();
    wait_for_input();
    if (draws[blockIdx.x] < 0) return;
    const float *row = logits + (size_t)blockIdx.x * vocab;
    int each = (vocab + gridDim.y - 1) / gridDim.y, from = blockIdx.y * each;
    uint64_t best = 0;
#pragma unroll 4
    for (int i = from + threadIdx.x; i < min(from + each, vocab); i += THREADS) {
        best = max(best, key_of(row[i], i));
    }
    for (int d = 16; d; d /= 2) best = max(best, __shfl_xor_sync(~0u, best, d));
    if (threadIdx.x % 32 == 0)
        atomicMax((unsigned long long *)&out[draws[blockIdx.x]], (unsigned long long)best);
}

cudaError_t pl_cu_argmax(cudaStream_t s, const float *logits, int vocab, const int32_t *draws, int n,
                         uint64_t *out)
{
    int parts = (vocab + THREADS * 16 - 1) / (THREADS * 16);
    return launch(s, dim3(n, parts), THREADS)(argmax, logits, vocab, draws, out);
}
