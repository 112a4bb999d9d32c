// SPDX-License-Identifier: Apache-2.0
//
// decode_stream.cuh - the warps of the single-kernel step that copy weights and the cache
// into shared memory.
#pragma once

#include "decode.cuh"

#if PL_HOPPER

// Copies a piece as soon as there is room for it and fewer than `most` are being copied. NULL
// stands for no piece, and arrives at once.
template <int W>
__device__ __forceinline__ void request(cta<W> &c, int most, const void *from, int bytes)
{
    int n = c.piece++, slot = c.slot(n);
    if (n >= c.ring()) wait_phase(c.s.empty + slot, c.phase(n) ^ 1);
    if (!from) return arrive(c.s.full + slot);
    if (n >= most) wait_phase(c.s.full + c.slot(n - most), c.phase(n - most));
    arrive_and_expect(c.s.full + slot, bytes);
    copy_bulk(c.memory + c.at.ring + slot * PIECE_BYTES, from, bytes, c.s.full + slot);
}

template <int W>
__device__ __forceinline__ void stream_layer(cta<W> &c, const pl_cu_decode_layer &l)
{
    int q = c.head_rows() / 8, kv = c.kv_rows() / 8;
#pragma unroll 1
    for (int op = QKV; op < PRODUCTS; op++) {
        product p = c.s.products[op];
        int each = op == GATE_UP ? 2 : 1, bytes = p.columns * 16;
#pragma unroll 1
        for (int i = p.units.from * each; i < p.units.to * each; i++) {
            const void *w = op == O ? l.o : op == DOWN ? l.down : i % 2 ? l.up : l.gate;
            int unit = op == GATE_UP ? i / 2 : i;
            if (op == QKV) {
                w = i < q ? l.q : i < q + kv ? l.k : l.v;
                unit -= i < q ? 0 : i < q + kv ? q : q + kv;
            }
            const char *from = (const char *)w + (size_t)unit * bytes;
#pragma unroll 1
            for (int at = 0; at < bytes; at += PIECE_BYTES)
                request(c, c.d.under_way, from + at, min(bytes - at, (int)PIECE_BYTES));
        }
    }
}

// Run by one thread. A unit of the head belongs to one warp; the pieces of eight units alternate.
template <int W>
__device__ __forceinline__ void stream_weights(cta<W> &c)
{
#pragma unroll 1
    for (int i = 0; i < c.d.n_layers; i++) stream_layer(c, c.layer(i));
    product p = c.s.products[HEAD];
    int bytes = p.columns * 16;
    if (!c.d.n_picks) return;
#pragma unroll 1
    for (int first = p.units.from; first < p.units.to; first += CONSUMER_WARPS)
#pragma unroll 1
        for (int at = 0; at < bytes; at += PIECE_BYTES) {
            const char *from = (const char *)c.d.head + (size_t)first * bytes + at;
#pragma unroll 1
            for (int i = 0; i < CONSUMER_WARPS; i++, from += bytes)
                request(c, UNDER_WAY_HEAD, first + i < p.units.to ? from : NULL, min(bytes - at, (int)PIECE_BYTES));
        }
}

// Copies the cached splits of one item after the other. Each lane looks up one group of
// positions; two groups are being copied at once.
template <int W>
__device__ __forceinline__ void stream_cache(const cta<W> &c)
{
    pl_cu_attention a = c.d.a;
    int lane = threadIdx.x % 32, items = 0;
    uint32_t phases = 0;
    split_item item;
#pragma unroll 1
    for (int layer = 0; layer < c.d.n_layers; layer++) {
        a.layer = layer, a.window = c.layer(layer).window;
#pragma unroll 1
        for (int i = blockIdx.x; find_item(a, c.s.rows, i, item); i += c.d.ctas) {
            tile_of o = tile_at(a, c.s.rows, item);
            int groups = count_groups(o, item.split);
            const uint16_t *from = NULL;
            if (lane < groups) from = run_at(a, o.t.table, item.split * SPLIT + lane * 16, o.kv_head, W);
            if (items) wait_phase(&c.s.kv_empty, items - 1 & 1);
            items++;
#pragma unroll 1
            for (int g = 0; g < groups; g++) {
                if (g >= 2) wait_phase(c.s.kv_full + g - 2, phases >> g - 2 & 1);
                if (lane != g) continue;
                arrive_and_expect(c.s.kv_full + g, W * 64);
                copy_bulk(c.memory + c.at.kv + g * W * 64, from, W * 64, c.s.kv_full + g);
            }
            __syncwarp();
            phases ^= (1 << groups) - 1;
        }
    }
}

#endif
