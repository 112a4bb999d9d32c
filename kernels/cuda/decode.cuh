// SPDX-License-Identifier: Apache-2.0
//
// decode.cuh - shared by the parts of the single-kernel step: a CTA's memory, how work is
// divided, and how values get from one CTA to all others.
#pragma once

#include "attend_split.cuh"
#include "decode.h"
#include "hopper.cuh"

// A piece is 8 weight rows by 512 columns, two slices. The eight multiplying warps take
// pieces in turn.
enum {
    CONSUMER_WARPS = 8,
    CONSUMERS = CONSUMER_WARPS * 32,
    DECODE_THREADS = WARPS * 32 + CONSUMERS + 128, // attending, multiplying, streaming
    PIECE = 512,
    PIECE_BYTES = PIECE * 16,
    DEPTH = 2, // pieces buffered for each warp, at most
    SECONDS = 10, // until a wait gives up
    UNDER_WAY = 4, // pieces being copied at once: more would delay packets between CTAs
    UNDER_WAY_SMALL = 2, // where exchanges take longer than these copies, and the bytes a CTA:
    SMALL = 400 << 10,
    UNDER_WAY_HEAD = 8,
};

__host__ __device__ constexpr int pieces_of(int k) { return (k + PIECE - 1) / PIECE; }

struct range { int from, to; };

// The CTA's share of so many units.
__host__ __device__ inline range share_of(int n, int cta, int ctas)
{
    return {(int)((int64_t)n * cta / ctas), (int)((int64_t)n * (cta + 1) / ctas)};
}

// Products of a step; all but the last are in each layer.
enum { QKV, O, GATE_UP, DOWN, PRODUCTS, HEAD = PRODUCTS };

// The CTA's part of a product: units of 8 weight rows.
struct product {
    range units;
    int columns, pieces, slices;  // of a unit
    uint32_t per_unit, per_words; // reciprocals of pieces and of pairs of columns
    uint64_t *published;          // where results go, rows `stride` apart
    int stride;
};

// Offsets in a CTA's memory, in bytes.
struct layout {
    int ring, kv, rows, input, x, norms, sums, residual, layers, end;
};

// Of inputs, in values; of x and of norms.
__host__ __device__ inline int row_pitch(int k) { return pieces_of(k) * PIECE + 32; }
__host__ __device__ inline int x_pitch(int k) { return pieces_of(k) * PIECE; }

__host__ __device__ inline layout lay_out(const pl_cu_decode &d, int n_rows, int depth)
{
    int heads = d.a.n_heads * d.a.head_dim, qkv = heads + 2 * d.a.n_kv_heads * d.a.head_dim;
    auto most = [&](int n) { return (n + d.ctas - 1) / d.ctas; };
    auto max2 = [](int a, int b) { return a > b ? a : b; };
    auto up = [](int n) { return (n + 127) / 128 * 128; };
    int pieces = max2(max2(most(qkv / 8) * pieces_of(d.hidden), most(d.hidden / 8) * pieces_of(heads)),
                      max2(2 * most(d.ffn / 8) * pieces_of(d.hidden), most(d.hidden / 8) * pieces_of(d.ffn)));
    int normed = n_rows * row_pitch(d.hidden) * 2, x = n_rows * x_pitch(d.hidden) * 4;
    int wide = n_rows * row_pitch(max2(heads, d.ffn)) * 2;
    layout l = {};
    l.ring = 0;
    l.kv = l.ring + depth * CONSUMER_WARPS * PIECE_BYTES;
    l.input = l.kv + GROUPS * width_of(d.a.head_dim) * 64;
    l.x = l.input + up(normed);
    l.norms = l.input + up(max2(up(normed) + x, wide));
    l.sums = l.norms + up(2 * x_pitch(d.hidden) * 4);
    l.residual = l.sums + up(pieces * 2 * n_rows * 8 * 4);
    l.layers = l.residual + up(most(d.hidden / 8) * n_rows * 8 * 4);
    l.end = l.layers + up(d.n_layers * (int)sizeof(pl_cu_decode_layer));
    return l;
}

// The parts of fixed size.
template <int W>
struct fixed_memory {
    exchange x;
    uint16_t queries[16][W + 8];
    float heads[WARPS][W];
    uint64_t full[DEPTH * CONSUMER_WARPS], empty[DEPTH * CONSUMER_WARPS];
    uint64_t kv_full[GROUPS], kv_empty;
    uint64_t best[PL_CU_DECODE_ROWS];
    pl_cu_row rows[PL_CU_DECODE_ROWS];
    product products[PRODUCTS + 1];
};

#if PL_HOPPER

// ---- packets between CTAs ------------------------------------------------------------------

__device__ __forceinline__ uint64_t packet_of(uint32_t value, uint32_t epoch) { return (uint64_t)epoch << 32 | value; }

__device__ __forceinline__ void publish(uint64_t *to, uint64_t packet)
{
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(packet) : "memory");
}

__device__ __forceinline__ void publish2(uint64_t *to, uint64_t a, uint64_t b)
{
    asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(a), "l"(b) : "memory");
}

__device__ __forceinline__ uint64_t poll(const uint64_t *at)
{
    uint64_t v;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(at) : "memory");
    return v;
}

__device__ __forceinline__ ulonglong2 poll2(const uint64_t *at)
{
    ulonglong2 v;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(v.x), "=l"(v.y) : "l"(at) : "memory");
    return v;
}

// Ends the kernel with an error when a packet does not arrive for too long.
struct deadline {
    int polls = 0;
    int64_t until = 0;

    __device__ __forceinline__ void check()
    {
        if (++polls % 1024) return;
        int64_t now;
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
        if (!until) until = now + SECONDS * 1000000000LL;
        if (now > until) __trap();
    }
};

// Waits for the first n of N packets at from, from + step and so on.
template <int N>
__device__ __forceinline__ void await(const uint64_t *from, int step, int n, uint32_t epoch, uint32_t (&out)[N])
{
    deadline limit;
    uint32_t differ;
    do {
        uint64_t v[N];
        differ = 0;
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = i < n ? poll(from + i * step) : packet_of(0, epoch);
#pragma unroll
        for (int i = 0; i < N; i++) {
            differ |= (uint32_t)(v[i] >> 32) ^ epoch; // no branches: they take longer
            out[i] = (uint32_t)v[i];
        }
        limit.check();
    } while (differ);
}

// Called by all multiplying warps: passes n packets, two at a time, to put(index of the first,
// values).
template <class F>
__device__ __forceinline__ void await_all(int tid, const uint64_t *from, int n, uint32_t epoch, const F &put)
{
    constexpr int N = 4, STEP = CONSUMERS * 2;
#pragma unroll 1
    for (int first = tid * 2; first < n; first += STEP * N) {
        ulonglong2 v[N];
        deadline limit;
        uint32_t differ;
        do {
            differ = 0;
#pragma unroll
            for (int i = 0; i < N; i++) {
                v[i].x = v[i].y = packet_of(0, epoch);
                if (first + i * STEP < n) v[i] = poll2(from + first + i * STEP);
            }
#pragma unroll
            for (int i = 0; i < N; i++)
                differ |= ((uint32_t)(v[i].x >> 32) ^ epoch) | ((uint32_t)(v[i].y >> 32) ^ epoch);
            limit.check();
        } while (differ);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (first + i * STEP < n) put(first + i * STEP, (uint32_t)v[i].x, (uint32_t)v[i].y);
    }
}

__device__ __forceinline__ void all_meet() { asm volatile("bar.sync 2, 256;" ::: "memory"); }

// ---- attention's items -----------------------------------------------------------------------

// A split of a KV head of a row. `slot` numbers the splits of all rows.
struct split_item { int row, position, split, from, last, kv_head, slot; };

__device__ __forceinline__ range splits_of(const pl_cu_attention &a, const pl_cu_row *rows, int row)
{
    int position = rows[row].position;
    return {first_seen(a, position) / SPLIT, position / SPLIT + 1};
}

__device__ __forceinline__ bool find_item(const pl_cu_attention &a, const pl_cu_row *rows, int i, split_item &out)
{
    int slot = 0;
#pragma unroll 1
    for (int row = 0; row < a.n_rows; row++) {
        range r = splits_of(a, rows, row);
        int n = (r.to - r.from) * a.n_kv_heads;
        if (i < n) {
            int split = i / a.n_kv_heads;
            out = {row, rows[row].position, r.from + split, r.from, r.to - 1, i % a.n_kv_heads, slot + split};
            return true;
        }
        i -= n;
        slot += r.to - r.from;
    }
    return false;
}

__device__ __forceinline__ tile_of tile_at(const pl_cu_attention &a, const pl_cu_row *rows, const split_item &s)
{
    int group = a.n_heads / a.n_kv_heads;
    return {{s.row, s.position, 0, group, rows[s.row].table, 0}, s.kv_head, group, s.position, true};
}

// ---- a CTA -----------------------------------------------------------------------------------

template <int W>
struct cta {
    const pl_cu_decode &d;
    fixed_memory<W> &s;
    char *memory; // laid out by `at`
    const layout &at;
    int tid = threadIdx.x - WARPS * 32; // among the multiplying warps
    int piece = 0; // pieces before the next product

    // The ring of pieces, whose size is a power of two: a piece's slot and its barrier's phase.
    __device__ __forceinline__ int ring() const { return CONSUMER_WARPS << d.depth - 1; }
    __device__ __forceinline__ int slot(int piece) const { return piece & ring() - 1; }
    __device__ __forceinline__ uint32_t phase(int piece) const { return piece >> 2 + d.depth & 1; }
    __device__ __forceinline__ const pl_cu_decode_layer &layer(int i) const
    {
        return ((const pl_cu_decode_layer *)(memory + at.layers))[i];
    }
    __device__ __forceinline__ float *floats(int offset) const { return (float *)(memory + offset); }
    __device__ __forceinline__ uint16_t *input() const { return (uint16_t *)(memory + at.input); }
    __device__ __forceinline__ int head_rows() const { return d.a.n_heads * d.a.head_dim; }
    __device__ __forceinline__ int kv_rows() const { return d.a.n_kv_heads * d.a.head_dim; }
};

#endif
