// SPDX-License-Identifier: Apache-2.0
//
// attend_head.cuh - a head of a row, by a warp: its norm and its rope.
#pragma once

#include "attend.cuh"

// A lane's values of a head that is W wide: i, i + 32 and so on, loaded together.
template <int W>
struct lane_values { float v[W / 32]; };

template <int W>
__device__ __forceinline__ lane_values<W> values_of(const float *x, int n)
{
    lane_values<W> r;
#pragma unroll
    for (int j = 0; j < W / 32; j++) {
        int i = j * 32 + threadIdx.x % 32;
        r.v[j] = i < n ? x[i] : 0;
    }
    return r;
}

// Run by a warp: writes a head to shared memory, normed by the weights w if `has_norm`.
template <int W>
__device__ __forceinline__ void norm_head(const pl_cu_attention &a, lane_values<W> x, bool has_norm,
                                          const lane_values<W> &w, float *to)
{
    int lane = threadIdx.x % 32;
    if (has_norm) {
        float sum = 0;
#pragma unroll
        for (int j = 0; j < W / 32; j++) sum = __fmaf_rn(x.v[j], x.v[j], sum);
        float by = __frcp_rn(__fsqrt_rn(warp_sum(sum) / a.head_dim + a.eps));
#pragma unroll
        for (int j = 0; j < W / 32; j++) x.v[j] = normed(x.v[j], by, w.v[j]);
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < W / 32; j++) to[j * 32 + lane] = x.v[j];
    __syncwarp();
}

template <int W>
__device__ __forceinline__ void turn_head(const pl_cu_attention &a, const lane_values<W / 2> &cosines,
                                          const lane_values<W / 2> &sines, float *x)
{
    int half = a.head_dim / 2;
#pragma unroll
    for (int j = 0; j < W / 64; j++) {
        int i = j * 32 + threadIdx.x % 32, p = a.pairs ? 2 * i : i, q = a.pairs ? 2 * i + 1 : i + half;
        if (i >= half) break;
        float u = x[p], v = x[q], c = cosines.v[j], s = sines.v[j];
        x[p] = __fsub_rn(__fmul_rn(u, c), __fmul_rn(v, s));
        x[q] = __fadd_rn(__fmul_rn(v, c), __fmul_rn(u, s));
    }
    __syncwarp();
}
