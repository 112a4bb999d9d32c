// SPDX-License-Identifier: Apache-2.0
//
// decode_multiply.cuh - the products of the single-kernel step: inputs, sums and publication.
#pragma once

#include "decode.cuh"

#if PL_HOPPER

// A piece into registers, so that the next one can come.
template <int W>
__device__ __forceinline__ void load_piece(const cta<W> &c, int piece, int columns, uint4 (&w)[16])
{
    int slot = c.slot(piece), lane = c.tid % 32;
    const uint4 *from = (const uint4 *)(c.memory + c.at.ring + slot * PIECE_BYTES) + lane;
    wait_phase(c.s.full + slot, c.phase(piece));
#pragma unroll
    for (int i = 0; i < 16; i++)
        if (i * 32 < columns) w[i] = from[i * 32];
    __syncwarp();
    if (lane == 0) arrive(c.s.empty + slot);
}

// Its two slices at once: the upper half of the m operand has the first slice's columns, the
// lower half the second's, and of each product that half counts whose slice the weights are.
// `row`: the lane's values from the piece's first column on.
template <bool F16, bool WHOLE>
__device__ __forceinline__ void multiply(const uint4 (&w)[16], const uint16_t *row, int columns,
                                         float (&c)[2][4])
{
#pragma unroll
    for (int i = 0; i < 16; i++) {
        if (!WHOLE && i * 16 >= columns) continue;
        uint4 x = *(const uint4 *)(row + i * 32);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const uint4 &v = w[s * 8 + i / 2];
            if (WHOLE || s * PL_CU_SLICE + i * 16 < columns)
                mma16<F16>(c[s], x, i % 2 ? make_uint2(v.z, v.w) : make_uint2(v.x, v.y));
        }
    }
}

template <bool F16>
__device__ __forceinline__ void multiply(const uint4 (&w)[16], const uint16_t *row, int columns,
                                         float (&c)[2][4])
{
    if (columns == PIECE) multiply<F16, true>(w, row, columns, c);
    else multiply<F16, false>(w, row, columns, c);
}

// The lane's values of the input. Where rows are fewer than lanes have room for, what these
// multiply is not looked at.
template <int W>
__device__ __forceinline__ const uint16_t *input_row(const cta<W> &c, int n_rows, int k)
{
    int row = min((int)c.tid % 32 / 4, n_rows - 1);
    return c.input() + row * row_pitch(k) + c.tid % 4 * 8;
}

// Where a slice's sums of a unit are: of 8 weight rows for each row.
__device__ __forceinline__ int sums_at(int unit, int slice, int k, int n_rows)
{
    return (unit * pieces_of(k) * 2 + slice) * n_rows * 8;
}

// Leaves the sums of all slices of n_units in shared memory. `input` waits for the input, after
// the first piece has been loaded into registers.
template <bool F16, int W, class F>
__device__ __forceinline__ void multiply_units(cta<W> &c, const product &p, int n_units, const F &input)
{
    int warp = c.tid / 32, lane = c.tid % 32, n_rows = c.d.a.n_rows, n = n_units * p.pieces;
    int first = warp - c.piece & CONSUMER_WARPS - 1;
    const uint16_t *row = input_row(c, n_rows, p.columns);
#pragma unroll 1
    for (int i = first; i < n || i == first; i += CONSUMER_WARPS) {
        uint4 w[16];
        float sums[2][4] = {};
        int unit = i * p.per_unit >> 16, from = (i - unit * p.pieces) * PIECE;
        int columns = min(p.columns - from, (int)PIECE);
        if (i < n) load_piece(c, c.piece + i, columns, w);
        if (i == first) input();
        if (i >= n) break;
        multiply<F16>(w, row + from, columns, sums);
        float *to = c.floats(c.at.sums) + sums_at(unit, from / PL_CU_SLICE, p.columns, n_rows) + lane / 4 * 8 + lane % 4 * 2;
#pragma unroll
        for (int s = 0; s < 2; s++)
            if (lane / 4 < n_rows) *(float2 *)(to + s * n_rows * 8) = make_float2(sums[s][2 * s], sums[s][2 * s + 1]);
    }
    c.piece += n;
    all_meet();
}

// An output of a product: weight row n of a unit by a row.
struct output { int unit, row, n; bool real; };

// Rows are counted as if they were a power of two.
template <int W, class F>
__device__ __forceinline__ void for_outputs(const cta<W> &c, int n_units, const F &f)
{
    int n_rows = c.d.a.n_rows, bits = 32 - __clz(n_rows - 1), all = n_units * 8 << bits, lane = c.tid % 32;
#pragma unroll 1
    for (int i = c.tid - lane; i < all; i += CONSUMERS) {
        int at = i + lane, row = at >> 3 & (1 << bits) - 1;
        f(output{at >> 3 + bits, row, at & 7, at < all && row < n_rows});
    }
}

template <int W>
__device__ __forceinline__ float sum_of(const cta<W> &c, const output &o, int unit, int k)
{
    int n_rows = c.d.a.n_rows, slices = (k + PL_CU_SLICE - 1) / PL_CU_SLICE;
    const float *at = c.floats(c.at.sums) + sums_at(unit, 0, k, n_rows) + o.row * 8 + o.n;
    float v = at[0];
#pragma unroll 4
    for (int s = 1; s < slices; s++) v = __fadd_rn(v, at[s * n_rows * 8]);
    return v;
}

// Neighbouring outputs belong to neighbouring lanes; the even lane publishes both.
__device__ __forceinline__ void publish_floats(uint64_t *to, const output &o, float v, uint32_t epoch)
{
    float next = __shfl_xor_sync(~0u, v, 1);
    if (o.real && o.n % 2 == 0)
        publish2(to, packet_of(__float_as_uint(v), epoch), packet_of(__float_as_uint(next), epoch));
}

template <bool F16>
__device__ __forceinline__ void publish_halves(uint64_t *to, const output &o, float v, uint32_t epoch)
{
    uint32_t both = pack2<F16>(v, __shfl_xor_sync(~0u, v, 1)), next = __shfl_xor_sync(~0u, both, 2);
    if (o.real && o.n % 4 == 0) publish2(to, packet_of(both, epoch), packet_of(next, epoch));
}

// ---- inputs --------------------------------------------------------------------------------

// Where the pair of columns from k on, which is even, is in a row of the input: a lane's m
// operand of two slices together, step by step.
__device__ __forceinline__ int word_at(int k)
{
    return k / PIECE * (PIECE / 2) + k / 16 % 16 * 16 + k % 8 / 2 * 4 + k / 8 % 2 * 2 + k / PL_CU_SLICE % 2;
}

// Waits for an input of 16-bit values.
template <int W>
__device__ __forceinline__ void await_halves(const cta<W> &c, const uint64_t *from, const product &p, uint32_t epoch)
{
    int k = p.columns, words = k / 2;
    await_all(c.tid, from, c.d.a.n_rows * words, epoch, [&](int i, uint32_t a, uint32_t b) {
        int row = __umulhi(i, p.per_words), column = (i - row * words) * 2;
        uint32_t *to = (uint32_t *)(c.input() + row * row_pitch(k));
        to[word_at(column)] = a, to[word_at(column + 2)] = b;
    });
    all_meet();
}

// Waits for x and for the weights of the norm that follows.
template <int W>
__device__ __forceinline__ void await_x(const cta<W> &c, const uint64_t *from, uint32_t epoch)
{
    float *x = c.floats(c.at.x);
    await_all(c.tid, from, c.d.a.n_rows * c.d.hidden, epoch, [&](int i, uint32_t a, uint32_t b) {
        *(float2 *)(x + i) = make_float2(__uint_as_float(a), __uint_as_float(b));
    });
    wait_copies<0>();
    all_meet();
}

// Weights of norm number n, which is not the next but the one after it.
template <int W>
__device__ __forceinline__ void fetch_norm(const cta<W> &c, int n)
{
    const pl_cu_decode &d = c.d;
    const float *from = n >= 2 * d.n_layers ? d.norm : n % 2 ? c.layer(n / 2).ffn_norm : c.layer(n / 2).attn_norm;
    float *to = c.floats(c.at.norms) + n % 2 * d.hidden;
    if (n <= 2 * d.n_layers)
#pragma unroll 1
        for (int i = c.tid * 4; i < d.hidden; i += CONSUMERS * 4) copy16(to + i, from + i, true);
    commit_copies();
}

// Norm number n of some rows of x to the input: warps share a row where rows are few.
template <bool F16, int W, class F>
__device__ __forceinline__ void norm_x(const cta<W> &c, int n, int n_rows, const F &source)
{
    int warp = c.tid / 32, lane = c.tid % 32, k = c.d.hidden;
    int each = n_rows == 1 ? 8 : n_rows == 2 ? 4 : n_rows <= 4 ? 2 : 1, row = warp / each;
    if (row < n_rows) {
        const float *x = c.floats(c.at.x) + source(row) * k, *w = c.floats(c.at.norms) + n % 2 * k;
        uint32_t *to = (uint32_t *)(c.input() + row * row_pitch(k));
        float sum = 0;
#pragma unroll 1
        for (int first = lane * 4; first < k; first += 512) {
            float4 v[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                v[i] = first + i * 128 < k ? *(const float4 *)(x + first + i * 128) : make_float4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < 4; i++) sum = add_squares(sum, v[i]);
        }
        float by = norm_factor(warp_sum(sum), k, c.d.eps);
#pragma unroll 1
        for (int i = warp % each * 128 + lane * 4; i < k; i += each * 128) {
            float4 v = *(const float4 *)(x + i), u = *(const float4 *)(w + i);
            to[word_at(i)] = pack2<F16>(normed(v.x, by, u.x), normed(v.y, by, u.y));
            to[word_at(i + 2)] = pack2<F16>(normed(v.z, by, u.z), normed(v.w, by, u.w));
        }
    }
    all_meet();
    fetch_norm(c, n + 1);
}

#endif
