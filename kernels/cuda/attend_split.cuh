// SPDX-License-Identifier: Apache-2.0
//
// attend_split.cuh - a split of attention for up to 16 queries, by four warps.
#pragma once

#include "attend.cuh"

enum { WARPS = 4, WEIGHTS = SPLIT + 8 };

// 16 positions as they lie in the cache: two runs, each of keys and then values. Below,
// `groups(i)` waits for a split's group i and returns it.
template <int W>
using group_of = uint16_t[2][2][W * 8];

// The number of groups of a split that have positions up to the last one.
__device__ __forceinline__ int count_groups(const tile_of &o, int split)
{
    return min(o.last / 16 - split * GROUPS + 1, (int)GROUPS);
}

struct exchange { // between the warps
    uint16_t weights[16][WEIGHTS];
    float tops[WARPS][16], sums[WARPS][16][4];
};

// Synchronizes the four warps; the CTA may have others.
__device__ __forceinline__ void warps_meet() { asm volatile("bar.sync 1, 128;" ::: "memory"); }

// The queries of a tile as the m operand.
template <int W>
__device__ __forceinline__ void read_queries(const pl_cu_attention &a, const tile_of &o, uint4 (&q)[W / 16])
{
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t *low = (const uint32_t *)query_at(a, o, g, W) + t;
    const uint32_t *high = (const uint32_t *)query_at(a, o, g + 8, W) + t;
#pragma unroll
    for (int k = 0; k < W / 16; k++) {
        q[k] = make_uint4(0, 0, 0, 0);
        if (g < o.t.n) q[k].x = low[k * 8], q[k].z = low[k * 8 + 4];
        if (g + 8 < o.t.n) q[k].y = high[k * 8], q[k].w = high[k * 8 + 4];
    }
}

// Scores of the warp's 32 positions; -INFINITY where a query does not see one.
template <int W, class F>
__device__ __forceinline__ void score(const pl_cu_attention &a, const tile_of &o, int split,
                                      const F &groups, const uint4 (&q)[W / 16], float (&c)[4][4])
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (warp * 2 + i >= count_groups(o, split)) break;
        const uint16_t *run = groups(warp * 2 + i)[lane / 16][0];
#pragma unroll
        for (int k = 0; k < W; k += 16) {
            uint4 b = load_matrices<false>(shared_at(run + in_run(lane, k + lane / 8 % 2 * 8)));
            mma16<true>(c[2 * i], q[k / 16], make_uint2(b.x, b.y));
            mma16<true>(c[2 * i + 1], q[k / 16], make_uint2(b.z, b.w));
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int position = position_of(o, h * 8 + g), from = first_seen(a, position);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            int p = split * SPLIT + warp * 32 + e / 2 * 8 + 2 * t + e % 2;
            if (p < from || p > position) c[e / 2][2 * h + e % 2] = -INFINITY;
        }
    }
}

struct weighed { float top, sum; }; // of a query in a split

// Turns scores into weights. Each quad gets the results of its two queries.
__device__ __forceinline__ void weigh_scores(const pl_cu_attention &a, exchange &s, const float (&c)[4][4],
                                             weighed (&out)[2])
{
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = -INFINITY;
#pragma unroll
        for (int e = 0; e < 8; e++) top = fmaxf(top, c[e / 2][2 * h + e % 2]);
        top = quad_max(top);
        if (t == 0) s.tops[warp][h * 8 + g] = top;
    }
    warps_meet();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int item = h * 8 + g;
        float top = s.tops[0][item], sum = 0;
        for (int i = 1; i < WARPS; i++) top = fmaxf(top, s.tops[i][item]);
        weighing w = weigh_by(a, top);
#pragma unroll
        for (int j = 0; j < 4; j++)
            *(uint32_t *)(s.weights[item] + warp * 32 + j * 8 + 2 * t) =
                weigh(w, c[j][2 * h], c[j][2 * h + 1], sum);
        s.sums[warp][item][t] = sum;
        out[h].top = top == -INFINITY ? top : w.off;
    }
    warps_meet();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int item = h * 8 + g;
        float sum = s.sums[0][item][t];
        for (int i = 1; i < WARPS; i++) sum = __fadd_rn(sum, s.sums[i][item][t]);
        out[h].sum = quad_sum(sum);
    }
}

// The part of a group of positions in the output.
template <int W, class F>
__device__ __forceinline__ void mix_group(int k, const F &groups, const exchange &x, float (&c)[W / 32][4])
{
    int lane = threadIdx.x % 32, column = threadIdx.x / 32 * (W / 4);
    const uint16_t *run = groups(k)[lane / 8 % 2][1];
    uint4 p = load_matrices<false>(shared_at(x.weights[lane % 16] + k * 16 + lane / 16 * 8));
#pragma unroll
    for (int j = 0; j < W / 32; j += 2) {
        uint4 b = load_matrices<true>(shared_at(run + in_run(lane, column + j * 8 + lane / 16 * 8)));
        mma16<true>(c[j], p, make_uint2(b.x, b.y));
        mma16<true>(c[j + 1], p, make_uint2(b.z, b.w));
    }
}

// The output in the warp's columns of the head: a chain over positions.
template <int W, class F>
__device__ __forceinline__ void mix(const tile_of &o, int split, const F &groups, const exchange &x,
                                    float (&c)[W / 32][4])
{
    int n = count_groups(o, split);
    if (n == GROUPS) { // without a branch at each group
#pragma unroll
        for (int k = 0; k < GROUPS; k++) mix_group<W>(k, groups, x, c);
    } else {
#pragma unroll 1
        for (int k = 0; k < n; k++) mix_group<W>(k, groups, x, c);
    }
}

// A tile's queries merged over the splits so far. Each quad has two queries, and its warp's
// columns of them.
template <int W>
struct walk {
    float values[W / 32][4] = {};
    merged_splits m[2] = {{-INFINITY, 0}, {-INFINITY, 0}};

    __device__ __forceinline__ void add(const float (&c)[W / 32][4], const weighed (&of)[2])
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            factors f = merge(m[h], of[h].top, of[h].sum);
#pragma unroll
            for (int i = 0; i < W / 16; i++) {
                float &v = values[i / 2][2 * h + i % 2];
                v = merged(v, c[i / 2][2 * h + i % 2], f);
            }
        }
    }

    __device__ __forceinline__ void put(const pl_cu_attention &a, const tile_of &o, const pl_cu_acts &out)
    {
        int lane = threadIdx.x % 32, column = threadIdx.x / 32 * (W / 4) + lane % 4 * 2;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (h * 8 + lane / 4 >= o.t.n) break;
            size_t at = result_at(a, o, h * 8 + lane / 4);
#pragma unroll
            for (int j = 0; j < W / 32; j++)
                put_result(a, out, at, column + j * 8, __fdiv_rn(values[j][2 * h], m[h].sum),
                           __fdiv_rn(values[j][2 * h + 1], m[h].sum));
        }
    }
};
