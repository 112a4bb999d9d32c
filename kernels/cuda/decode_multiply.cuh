// SPDX-License-Identifier: Apache-2.0
//
// decode_multiply.cuh - the products of the single-kernel step: inputs, sums and publication.
#pragma once

#include "decode.cuh"

#if PL_HOPPER

// Where a lane's part of a piece is, once the piece is there.
template <int W>
__device__ __forceinline__ const uint4 *await_piece(const cta<W> &c, int piece)
{
    int slot = c.slot(piece);
    wait_phase(c.s.full + slot, c.phase(piece));
    return (const uint4 *)(c.memory + c.at.ring + slot * PIECE_BYTES) + c.tid % 32;
}

// Called when the warp has it in registers: the next one can come.
template <int W>
__device__ __forceinline__ void give_back(const cta<W> &c, int piece)
{
    __syncwarp();
    if (c.tid % 32 == 0) arrive(c.s.empty + c.slot(piece));
}

template <int W>
__device__ __forceinline__ void load_piece(const cta<W> &c, int piece, uint4 (&w)[16])
{
    const uint4 *from = await_piece(c, piece);
#pragma unroll
    for (int i = 0; i < 16; i++) w[i] = from[i * 32];
    give_back(c, piece);
}

// Both slices of a piece at once: weights are the m operand, of which the upper half is the
// first slice and the lower half the second; the n operand has the rows twice, with the first
// slice's columns and with the second's. Of each product those quarters count in which both
// are of the same slice. `x`: the lane's values from the piece's first column on. `next`: NULL,
// or where the weights of another piece are, which then are in w.
template <bool F16, bool WHOLE>
__device__ __forceinline__ void multiply(uint4 (&w)[16], const uint16_t *x, int columns, const uint4 *next,
                                         float (&c)[4])
{
    const uint4 none = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        bool first = WHOLE || i * 32 < columns, second = WHOLE || PL_CU_SLICE + i * 32 < columns;
        uint4 v = second || threadIdx.x % 32 < 16 ? *(const uint4 *)(x + i * 64) : none;
        uint4 upper = w[i], lower = second ? w[i + 8] : none;
        if (first) mma16<F16>(c, rows_of(upper, lower, false), make_uint2(v.x, v.y));
        if (first) mma16<F16>(c, rows_of(upper, lower, true), make_uint2(v.z, v.w));
        if (next) w[i] = next[i * 32], w[i + 8] = next[(i + 8) * 32];
    }
}

template <bool F16>
__device__ __forceinline__ void multiply(uint4 (&w)[16], const uint16_t *x, int columns, const uint4 *next,
                                         float (&c)[4])
{
    if (columns == PIECE) multiply<F16, true>(w, x, columns, next, c);
    else multiply<F16, false>(w, x, columns, next, c);
}

// The lane's values of the input. Where rows are fewer than there is room for, what these
// multiply is not looked at.
template <int W>
__device__ __forceinline__ const uint16_t *input_row(const cta<W> &c, int n_rows, int k)
{
    int n = c.tid % 32 / 4, row = min(n % 4, n_rows - 1);
    return c.input() + row * row_pitch(k) + n / 4 * 32 + c.tid % 4 * 8;
}

// A lane has sums of one weight row, c.tid % 32 / 4 of its unit, and one slice, for two rows:
// the first of them, and the two sums.
struct lane_sums { int slice, row; float v[2]; };

__device__ __forceinline__ lane_sums sums_in(int lane, const float (&c)[4])
{
    int slice = lane % 4 / 2;
    return {slice, lane % 2 * 2, {slice ? c[2] : c[0], slice ? c[3] : c[1]}};
}

// Where a slice's sums of a unit are: of 8 weight rows for each row.
__device__ __forceinline__ int sums_at(int unit, int slice, int pieces, int n_rows)
{
    return (unit * pieces * 2 + slice) * n_rows * 8;
}

// Leaves the sums of all slices of n_units in shared memory. `input` waits for the input, after
// the first piece has been loaded into registers.
template <bool F16, int W, class F>
__device__ __forceinline__ void multiply_units(cta<W> &c, const product &p, int n_units, const F &input)
{
    int warp = c.tid / 32, lane = c.tid % 32, n_rows = c.d.a.n_rows, n = n_units * p.pieces;
    int first = warp - c.piece & CONSUMER_WARPS - 1;
    const uint16_t *x = input_row(c, n_rows, p.columns);
    uint4 w[16];
    if (first < n) load_piece(c, c.piece + first, w);
    input();
#pragma unroll 1
    for (int i = first; i < n; i += CONSUMER_WARPS) {
        float sums[4] = {};
        int unit = i * p.per_unit >> 16, from = (i - unit * p.pieces) * PIECE, next = c.piece + i + CONSUMER_WARPS;
        bool more = i + CONSUMER_WARPS < n;
        multiply<F16>(w, x + from, min(p.columns - from, (int)PIECE), more ? await_piece(c, next) : NULL, sums);
        if (more) give_back(c, next);
        lane_sums l = sums_in(lane, sums);
        float *to = c.floats(c.at.sums) + sums_at(unit, from / PL_CU_SLICE + l.slice, p.pieces, n_rows) + lane / 4;
#pragma unroll
        for (int e = 0; e < 2; e++)
            if (l.row + e < n_rows) to[(l.row + e) * 8] = l.v[e];
    }
    c.piece += n;
    all_meet();
}

// n rows are as many as 2 to this, or fewer.
__device__ __forceinline__ int row_bits(int n) { return 32 - __clz(n - 1); }

// An output of a product: weight row n of a unit by a row.
struct output { int unit, row, n; bool real; };

// Rows are counted as if they were a power of two.
template <int W, class F>
__device__ __forceinline__ void for_outputs(const cta<W> &c, int n_units, const F &f)
{
    int n_rows = c.d.a.n_rows, bits = row_bits(n_rows), all = n_units * 8 << bits, lane = c.tid % 32;
#pragma unroll 1
    for (int i = c.tid - lane; i < all; i += CONSUMERS) {
        int at = i + lane, row = at >> 3 & (1 << bits) - 1;
        f(output{at >> 3 + bits, row, at & 7, at < all && row < n_rows});
    }
}

template <int W>
__device__ __forceinline__ float sum_of(const cta<W> &c, const output &o, int unit, const product &p)
{
    int n_rows = c.d.a.n_rows;
    const float *at = c.floats(c.at.sums) + sums_at(unit, 0, p.pieces, n_rows) + o.row * 8 + o.n;
    float v = at[0];
#pragma unroll 1
    for (int s = 1; s < p.slices; s += 4) {
        float more[4];
#pragma unroll
        for (int i = 0; i < 4; i++) more[i] = s + i < p.slices ? at[(s + i) * n_rows * 8] : 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (s + i < p.slices) v = __fadd_rn(v, more[i]);
    }
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

// Where the pair of columns from k on, a multiple of 4, is in a row of the input; the pair after
// it is NEXT_PAIR words on. Two steps of a lane's n operand are together, and both slices' after
// each other.
enum { NEXT_PAIR = 4 };

__device__ __forceinline__ int word_at(uint32_t k)
{
    return k / PIECE * (PIECE / 2) + k / 32 % 8 * 32 + k / PL_CU_SLICE % 2 * 16 + k % 8 / 2 * 4 + k / 8 % 4;
}

// Waits for an input of 16-bit values.
template <int W>
__device__ __forceinline__ void await_halves(const cta<W> &c, const uint64_t *from, const product &p, uint32_t epoch)
{
    int words = p.columns / 2, pitch = row_pitch(p.columns);
    await_all(c.tid, from, c.d.a.n_rows * words, epoch, [&](int i, uint32_t a, uint32_t b) {
        int row = c.d.a.n_rows == 1 ? 0 : __umulhi(i, p.per_words);
        uint32_t *to = (uint32_t *)(c.input() + row * pitch) + word_at((i - row * words) * 2);
        to[0] = a, to[NEXT_PAIR] = b;
    });
    all_meet();
}

// Waits for x and for the weights of the norm that follows. Behind x are zeros, where other
// inputs have been.
template <int W>
__device__ __forceinline__ void await_x(const cta<W> &c, const uint64_t *from, uint32_t epoch)
{
    float *x = c.floats(c.at.x);
    int k = c.d.hidden, gap = x_pitch(k) - k;
#pragma unroll 1
    for (int i = c.tid; i < c.d.a.n_rows * gap; i += CONSUMERS) x[i / gap * (k + gap) + k + i % gap] = 0;
    await_all(c.tid, from, c.d.a.n_rows * k, epoch, [&](int i, uint32_t a, uint32_t b) {
        int at = gap ? i + i / k * gap : i;
        *(float2 *)(x + at) = make_float2(__uint_as_float(a), __uint_as_float(b));
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
    float *to = c.floats(c.at.norms) + n % 2 * x_pitch(d.hidden);
    if (n <= 2 * d.n_layers)
#pragma unroll 1
        for (int i = c.tid * 4; i < d.hidden; i += CONSUMERS * 4) copy16(to + i, from + i, true);
    commit_copies();
}

// Norm number n of some rows of x to the input: warps share a row where rows are few. Behind a
// row, up to whole pieces, there are zeros.
template <bool F16, int W, class F>
__device__ __forceinline__ void norm_x(const cta<W> &c, int n, int n_rows, const F &source)
{
    int k = c.d.hidden, pitch = x_pitch(k), lane = c.tid % 32, warp = c.tid / 32;
    int share = 3 - row_bits(n_rows), row = warp >> share, part = warp & (1 << share) - 1; // of 8 warps
    if (row < n_rows) {
        const float *x = c.floats(c.at.x) + source(row) * pitch + lane * 4;
        const float *w = c.floats(c.at.norms) + (n & 1) * pitch + lane * 4;
        uint32_t *to = (uint32_t *)(c.input() + row * row_pitch(k));
        float sum = 0;
#pragma unroll 1
        for (int i = 0; i < pitch; i += PIECE) {
            float4 v[4];
#pragma unroll
            for (int j = 0; j < 4; j++) v[j] = *(const float4 *)(x + i + j * 128);
#pragma unroll
            for (int j = 0; j < 4; j++) sum = add_squares(sum, v[j]);
        }
        float by = norm_factor(warp_sum(sum), k, c.d.eps);
#pragma unroll 1
        for (int i = part * 128; i < pitch; i += 128 << share) {
            float4 v = *(const float4 *)(x + i), u = *(const float4 *)(w + i);
            uint32_t *at = to + word_at(i + lane * 4);
            at[0] = pack2<F16>(normed(v.x, by, u.x), normed(v.y, by, u.y));
            at[NEXT_PAIR] = pack2<F16>(normed(v.z, by, u.z), normed(v.w, by, u.w));
        }
    }
    all_meet();
    fetch_norm(c, n + 1);
}

#endif
