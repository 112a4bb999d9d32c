// SPDX-License-Identifier: Apache-2.0
//
// attend.cuh - how keys and values lie in the cache, and the arithmetic of a split.
//
// Each split of PL_CU_SPLIT positions is computed by itself: scores are chains over the head's
// values, probabilities have 16 bits and are relative to the split's largest score, and the
// output is a chain over the split's positions. Splits are then merged in order. So a query
// gets the same bits from every kernel, whether one CTA walks all its splits or each split has
// a CTA of its own.
//
// A block of the cache holds, for each layer and KV head, runs of 8 positions: their keys, then
// their values, as [group of 64 columns][position][64 columns]. Within those 64, groups of 8
// are permuted by the position, so that tensor cores and ldmatrix read shared memory without
// bank conflicts and 16 positions can be fetched with one copy. Heads are padded with zeros to
// a multiple of 64.
#pragma once

#include "attend.h"
#include "mma.cuh"

enum { SPLIT = PL_CU_SPLIT, GROUPS = SPLIT / 16 }; // the latter: of 16 positions

__host__ __device__ static inline int width_of(int head_dim) { return (head_dim + 63) / 64 * 64; }

// The offset of value i of a position among its run's keys or values.
__device__ __forceinline__ int in_run(uint32_t position, uint32_t i)
{
    return i / 64 * 512 + position % 8 * 64 + ((i / 8 ^ position) % 8) * 8 + i % 8;
}

// The run that holds the position: keys, then values, 8 * width of each.
__device__ __forceinline__ uint16_t *run_at(const pl_cu_attention &a, int table, int position,
                                            int kv_head, int width)
{
    int64_t block = a.tables[table + position / a.block_size];
    int64_t at = ((block * a.n_layers + a.layer) * a.n_kv_heads + kv_head) * (a.block_size / 8) +
                 position % a.block_size / 8;
    return a.kv + at * 16 * width;
}

// ---- tiles of queries ----------------------------------------------------------------

struct tile_of { // the queries a CTA works on
    pl_cu_queries t;
    int kv_head, group, last; // the last position that any query sees
    bool one_row;             // they are all of it
};

__device__ __forceinline__ tile_of open_tile(const pl_cu_attention &a, const pl_cu_queries &t, int kv_head)
{
    int group = a.n_heads / a.n_kv_heads;
    return {t, kv_head, group, t.position + (t.first + t.n - 1) / group, t.first + t.n <= group};
}

__device__ __forceinline__ int position_of(const tile_of &o, int item)
{
    return o.one_row ? o.t.position : o.t.position + (o.t.first + item) / o.group;
}

__device__ __forceinline__ int first_seen(const pl_cu_attention &a, int position)
{
    return a.window && position + 1 > a.window ? position + 1 - a.window : 0;
}

__device__ __forceinline__ int first_split(const pl_cu_attention &a, const tile_of &o)
{
    return first_seen(a, position_of(o, 0)) / SPLIT;
}

// Items are ordered by row, and within a row by head.
__device__ __forceinline__ const uint16_t *query_at(const pl_cu_attention &a, const tile_of &o, int item,
                                                    int width)
{
    int i = o.t.first + item;
    size_t row = o.t.row + i / o.group, head = o.kv_head * o.group + i % o.group;
    return a.q + (row * a.n_heads + head) * width;
}

__device__ __forceinline__ size_t result_at(const pl_cu_attention &a, const tile_of &o, int item)
{
    int i = o.t.first + item;
    size_t row = o.t.row + i / o.group, head = o.kv_head * o.group + i % o.group;
    return row * (pl_cu_tiles(a.n_heads * a.head_dim) * 16) + head * a.head_dim;
}

__device__ __forceinline__ void put_result(const pl_cu_attention &a, const pl_cu_acts &out, size_t at,
                                           int i, float v, float w)
{
    if (i + 1 < a.head_dim) {
        if (at + i & 1) put_act(out, at + i, v), put_act(out, at + i + 1, w);
        else put_acts(out, at + i, v, w);
    } else if (i < a.head_dim) {
        put_act(out, at + i, v);
    }
}

// ---- softmax ------------------------------------------------------------------------

__device__ __forceinline__ float power_of_2(float v)
{
    float p;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(v));
    return p;
}

// Over the quad of lanes that holds a query's scores: the largest, and the sum.
__device__ __forceinline__ float quad_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(~0u, v, 1));
    return fmaxf(v, __shfl_xor_sync(~0u, v, 2));
}

__device__ __forceinline__ float quad_sum(float v)
{
    v += __shfl_xor_sync(~0u, v, 1);
    return v + __shfl_xor_sync(~0u, v, 2);
}

// For a query in a split: the factor of a score and what is then subtracted, so that the
// largest score has the weight 1. Positions that are not seen score -INFINITY.
struct weighing { float by, off; };

__device__ __forceinline__ weighing weigh_by(const pl_cu_attention &a, float top)
{
    float by = __fmul_rn(a.scale, 1.4426950408889634f);
    return {by, top == -INFINITY ? 0 : __fmul_rn(top, by)};
}

// Two weights rounded to 16 bits, which are added to `sum` as rounded.
__device__ __forceinline__ uint32_t weigh(const weighing &w, float s, float t, float &sum)
{
    __half2 p = __floats2half2_rn(power_of_2(__fmaf_rn(s, w.by, -w.off)),
                                  power_of_2(__fmaf_rn(t, w.by, -w.off)));
    sum = __fadd_rn(__fadd_rn(sum, __low2float(p)), __high2float(p));
    return *(uint32_t *)&p;
}

// ---- merging -------------------------------------------------------------------------

// A query's splits so far: the largest score (scaled as `off` above) and the sum of weights.
struct merged_splits { float top, sum; };
struct factors { float before, added; };

// Merges a split, and returns the factors for merging its values.
__device__ __forceinline__ factors merge(merged_splits &m, float top, float sum)
{
    if (top == -INFINITY) return {1, 0};
    float higher = fmaxf(m.top, top);
    factors f = {m.top == -INFINITY ? 0 : power_of_2(m.top - higher), power_of_2(top - higher)};
    m.top = higher;
    m.sum = __fmaf_rn(sum, f.added, __fmul_rn(m.sum, f.before));
    return f;
}

__device__ __forceinline__ float merged(float so_far, float split, const factors &f)
{
    return __fmaf_rn(split, f.added, __fmul_rn(so_far, f.before));
}
