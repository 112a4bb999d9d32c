// SPDX-License-Identifier: Apache-2.0
//
// decode_attend.cuh - attention in the single-kernel step.
#pragma once

#include "attend_head.cuh"
#include "decode.cuh"

#if PL_HOPPER

// Waits for a head of q, k or v, and leaves it in shared memory with norm and rope applied.
template <int W>
__device__ __forceinline__ float *prepare_head(const cta<W> &c, const pl_cu_attention &a, const split_item &item,
                                              int which, uint32_t epoch)
{
    int group = a.n_heads / a.n_kv_heads, all = a.n_heads + 2 * a.n_kv_heads;
    bool turns = which <= group;
    int head = which < group ? item.kv_head * group + which
                             : a.n_heads + (which - group) * a.n_kv_heads + item.kv_head;
    const float *norm = which < group ? a.q_norm : turns ? a.k_norm : NULL;
    const float *angles = a.rope + (size_t)item.position * W;
    lane_values<W> x, w = values_of<W>(norm, norm ? W : 0);
    lane_values<W / 2> cosines = values_of<W / 2>(angles, W / 2), sines = values_of<W / 2>(angles + W / 2, W / 2);
    uint32_t values[W / 32];
    await<W / 32>(c.d.qkv + ((size_t)item.row * all + head) * W + threadIdx.x % 32, 32, W / 32, epoch, values);
#pragma unroll
    for (int i = 0; i < W / 32; i++) x.v[i] = __uint_as_float(values[i]);
    float *to = c.s.heads[threadIdx.x / 32];
    norm_head<W>(a, x, norm != NULL, w, to);
    if (turns) turn_head<W>(a, cosines, sines, to);
    return to;
}

// Puts the item's queries into shared memory and, if it has the last position, that position's
// key and value into the cache and into the copy of the split in shared memory.
template <int W>
__device__ __forceinline__ void prepare_heads(const cta<W> &c, const pl_cu_attention &a, const split_item &item,
                                             uint32_t kv_phases, uint32_t epoch)
{
    int group = a.n_heads / a.n_kv_heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int n = group + (item.split == item.last ? 2 : 0), at = item.position % SPLIT / 16;
    uint16_t *run = run_at(a, c.s.rows[item.row].table, item.position, item.kv_head, W);
#pragma unroll 1
    for (int i = warp; i < n; i += WARPS) {
        const float *x = prepare_head(c, a, item, i, epoch);
        uint16_t *here = (uint16_t *)(c.memory + c.at.kv) + at * W * 32 + item.position % 16 / 8 * W * 16;
        int v = i - group;
        if (v >= 0) wait_phase(c.s.kv_full + at, kv_phases >> at & 1);
#pragma unroll
        for (int k = lane * 2; k < W; k += 64) {
            uint32_t both = pack2<true>(x[k], x[k + 1]);
            if (v < 0) {
                *(uint32_t *)(c.s.queries[i] + k) = both;
            } else {
                *(uint32_t *)(run + v * 8 * W + in_run(item.position, k)) = both;
                *(uint32_t *)(here + v * 8 * W + in_run(item.position, k)) = both;
            }
        }
        __syncwarp();
    }
}

template <int W>
__device__ __forceinline__ void queries_of(const cta<W> &c, int n, uint4 (&q)[W / 16])
{
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t *upper = (const uint32_t *)c.s.queries[g] + t, *lower = (const uint32_t *)c.s.queries[g + 8] + t;
#pragma unroll
    for (int k = 0; k < W / 16; k++) {
        q[k] = make_uint4(0, 0, 0, 0);
        if (g < n) q[k].x = upper[k * 8], q[k].z = upper[k * 8 + 4];
        if (g + 8 < n) q[k].y = lower[k * 8], q[k].w = lower[k * 8 + 4];
    }
}

template <bool F16, int W>
__device__ __forceinline__ void publish_attended(const cta<W> &c, int row, int head, int column, float v, float w,
                                              uint32_t epoch)
{
    uint64_t *to = c.d.attended + ((size_t)row * c.head_rows() + head * W + column) / 2;
    publish(to, packet_of(pack2<F16>(v, w), epoch));
}

// A row's only split is the result; otherwise it is published to be merged.
template <bool F16, int W>
__device__ __forceinline__ void publish_split(const cta<W> &c, const pl_cu_attention &a, const split_item &item,
                                           const float (&values)[W / 32][4], const weighed (&of)[2],
                                           uint32_t epoch)
{
    int lane = threadIdx.x % 32, group = a.n_heads / a.n_kv_heads;
    int column = threadIdx.x / 32 * (W / 4) + lane % 4 * 2;
    bool alone = item.from == item.last;
    walk<W> w;
    if (alone) w.add(values, of);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int i = h * 8 + lane / 4, head = item.kv_head * group + i;
        if (i >= group) break;
        uint64_t *to = c.d.partials + ((size_t)item.slot * a.n_heads + head) * (W + 2);
        if (!alone && column == 0)
            publish2(to, packet_of(__float_as_uint(of[h].top), epoch), packet_of(__float_as_uint(of[h].sum), epoch));
#pragma unroll
        for (int j = 0; j < W / 32; j++) {
            const float *v = alone ? w.values[j] + 2 * h : values[j] + 2 * h;
            if (alone)
                publish_attended<F16>(c, item.row, head, column + j * 8, __fdiv_rn(v[0], w.m[h].sum),
                                   __fdiv_rn(v[1], w.m[h].sum), epoch);
            else
                publish2(to + 2 + column + j * 8, packet_of(__float_as_uint(v[0]), epoch),
                      packet_of(__float_as_uint(v[1]), epoch));
        }
    }
}

template <bool F16, int W>
__device__ __forceinline__ void attend_item(const cta<W> &c, const pl_cu_attention &a, const split_item &item,
                                            uint32_t kv_phases, uint32_t epoch)
{
    tile_of o = tile_at(a, c.s.rows, item);
    const group_of<W> *kv = (const group_of<W> *)(c.memory + c.at.kv);
    uint4 q[W / 16];
    float scores[4][4] = {}, values[W / 32][4] = {};
    weighed of[2];
    prepare_heads(c, a, item, kv_phases, epoch);
    int group = threadIdx.x % 32;
    if (group < count_groups(o, item.split)) wait_phase(c.s.kv_full + group, kv_phases >> group & 1);
    warps_meet();
    queries_of(c, o.group, q);
    auto groups = [&](int i) { return kv[i]; };
    score<W>(a, o, item.split, groups, q, scores);
    weigh_scores(a, c.s.x, scores, of);
    mix<W>(o, item.split, groups, c.s.x, values);
    publish_split<F16>(c, a, item, values, of, epoch);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    warps_meet();
    if (threadIdx.x == 0) arrive(&c.s.kv_empty);
}

// Merges the splits of a query, a column per thread.
template <bool F16, int W>
__device__ __forceinline__ void merge_query(const cta<W> &c, const pl_cu_attention &a, int row, int head, int slot,
                                            int n, uint32_t epoch)
{
    constexpr int SOME = 6;
    int column = threadIdx.x, step = a.n_heads * (W + 2);
    const uint64_t *from = c.d.partials + ((size_t)slot * a.n_heads + head) * (W + 2);
    merged_splits m = {-INFINITY, 0};
    float v = 0;
    if (column >= W) return;
#pragma unroll 1
    for (; n > 0; n -= SOME, from += SOME * step) {
        ulonglong2 of[SOME];
        uint64_t values[SOME];
        deadline limit;
        uint32_t differ;
        do {
            differ = 0;
#pragma unroll
            for (int i = 0; i < SOME; i++) {
                const uint64_t *at = from + i * step;
                of[i].x = of[i].y = values[i] = packet_of(0, epoch);
                if (i < n) of[i] = poll2(at), values[i] = poll(at + 2 + column);
            }
#pragma unroll
            for (int i = 0; i < SOME; i++)
                differ |= ((uint32_t)(of[i].x >> 32) ^ epoch) | ((uint32_t)(of[i].y >> 32) ^ epoch) |
                          ((uint32_t)(values[i] >> 32) ^ epoch);
            limit.check();
        } while (differ);
#pragma unroll
        for (int i = 0; i < SOME; i++) {
            if (i >= n) continue;
            factors f = merge(m, __uint_as_float((uint32_t)of[i].x), __uint_as_float((uint32_t)of[i].y));
            v = merged(v, __uint_as_float((uint32_t)values[i]), f);
        }
    }
    v = __fdiv_rn(v, m.sum);
    float next = __shfl_xor_sync(~0u, v, 1);
    if (column % 2 == 0) publish_attended<F16>(c, row, head, column, v, next, epoch);
}

template <bool F16, int W>
__device__ __forceinline__ void attend_layer(const cta<W> &c, const pl_cu_attention &a, uint32_t &kv_phases,
                                             uint32_t epoch)
{
    split_item item;
#pragma unroll 1
    for (int i = blockIdx.x; find_item(a, c.s.rows, i, item); i += c.d.ctas) {
        attend_item<F16>(c, a, item, kv_phases, epoch);
        kv_phases ^= (1 << count_groups(tile_at(a, c.s.rows, item), item.split)) - 1;
    }
#pragma unroll 1
    for (int row = 0, slot = 0, query = c.d.ctas - 1 - blockIdx.x; row < a.n_rows; row++) {
        range r = splits_of(a, c.s.rows, row);
#pragma unroll 1
        for (; query < (row + 1) * a.n_heads; query += c.d.ctas)
            if (r.to - r.from > 1)
                merge_query<F16>(c, a, row, query - row * a.n_heads, slot, r.to - r.from, epoch);
        slot += r.to - r.from;
    }
}

// Four warps attend to the CTA's splits, then merge its share of queries. Splits never wait
// for merging, so this cannot deadlock.
template <bool F16, int W>
__device__ __forceinline__ void attend_step(const cta<W> &c)
{
    pl_cu_attention a = c.d.a;
    uint32_t kv_phases = 0;
#pragma unroll 1
    for (int i = 0; i < c.d.n_layers; i++) {
        const pl_cu_decode_layer &l = c.layer(i);
        a.layer = i, a.window = l.window, a.q_norm = l.q_norm, a.k_norm = l.k_norm;
        attend_layer<F16>(c, a, kv_phases, c.d.epoch + i);
    }
}

#endif
