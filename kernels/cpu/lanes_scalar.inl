/* SPDX-License-Identifier: Apache-2.0
 *
 * lanes_scalar.inl - sixteen lanes in plain C: what the other two must equal bit for bit.
 */
#ifndef PL_LANES_H
#define PL_LANES_H

#include "base.h"

#include <math.h>
#include <string.h>

#define PL_COLUMNS 2         /* rows of activations that share a read of weights */
#define PL_QUERIES 4         /* that share a read of K and V */
#define PL_WIDE(n) ((n) > 0) /* vectors of values that they take at once */
#define PL_UNROLL
#define PL_INLINE static inline
#define PL_TILE \
    static __attribute__((noinline)) /* one copy for all types: soon compiled */
#if defined(__clang__)
#define PL_EACH for (int i = 0; i < 16; i++)
#else
#define PL_EACH _Pragma("GCC unroll 1") for (int i = 0; i < 16; i++)
#endif

typedef struct vf {
    float v[16];
} vf;
typedef struct vi {
    int32_t v[16];
} vi;

#define PL_LANEWISE(type, name, args, expr) \
    PL_INLINE type name args                \
    {                                       \
        type r;                             \
        PL_EACH r.v[i] = expr;              \
        return r;                           \
    }

PL_LANEWISE(vf, vf_set1, (float x), x)
PL_LANEWISE(vf, vf_load, (const float *p), p[i])
PL_LANEWISE(vf, vf_load_n, (const float *p, int n), i < n ? p[i] : 0.0f)
PL_LANEWISE(vf, vf_add, (vf a, vf b), a.v[i] + b.v[i])
PL_LANEWISE(vf, vf_sub, (vf a, vf b), a.v[i] - b.v[i])
PL_LANEWISE(vf, vf_mul, (vf a, vf b), a.v[i] * b.v[i])
PL_LANEWISE(vf, vf_div, (vf a, vf b), a.v[i] / b.v[i])
PL_LANEWISE(vf, vf_fma, (vf a, vf b, vf c), fmaf(a.v[i], b.v[i], c.v[i]))
PL_LANEWISE(vf, vf_max, (vf a, vf b), a.v[i] > b.v[i] ? a.v[i] : b.v[i])
PL_LANEWISE(vf, vf_min, (vf a, vf b), a.v[i] < b.v[i] ? a.v[i] : b.v[i])
PL_LANEWISE(vf, vf_abs, (vf a), fabsf(a.v[i]))
PL_LANEWISE(vf, vf_from_f16, (const uint16_t *p), pl_f32_from_f16(p[i]))
PL_LANEWISE(vf, vf_from_s16, (const int16_t *p), (float)p[i])
PL_LANEWISE(vf, vf_from_u8, (const uint8_t *p), (float)p[i])
PL_LANEWISE(vf, vf_from_s8, (const int8_t *p), (float)p[i])
PL_LANEWISE(vf, vf_from_i, (vi a), (float)a.v[i])
/* Lanes lo <= i < hi stay, the rest become `other`. */
PL_LANEWISE(vf, vf_keep, (vf a, int lo, int hi, float other),
            i >= lo && i < hi ? a.v[i] : other)
/* x where a >= bound, else 0. */
PL_LANEWISE(vf, vf_where_ge, (vf a, float bound, vf x), a.v[i] >= bound ? x.v[i] : 0.0f)
/* To the nearest integer, ties to even; |a| < 2^22. */
PL_LANEWISE(vi, vi_round, (vf a), (int32_t)((a.v[i] + 0x1.8p23f) - 0x1.8p23f))
PL_LANEWISE(vi, vi_set1, (int32_t x), x)
PL_LANEWISE(vi, vi_add, (vi a, vi b), a.v[i] + b.v[i])
PL_LANEWISE(vi, vi_and, (vi a, int32_t b), a.v[i] & b)
PL_LANEWISE(vi, vi_shl, (vi a, int n), (int32_t)((uint32_t)a.v[i] << n))
PL_LANEWISE(vi, vi_shr, (vi a, int n), (int32_t)((uint32_t)a.v[i] >> n))

PL_INLINE void vf_store(float *p, vf a)
{
    memcpy(p, a.v, sizeof a.v);
}

PL_INLINE void vf_store_n(float *p, vf a, int n)
{
    memcpy(p, a.v, (size_t)n * sizeof *p);
}

PL_INLINE void vi_store_s16(int16_t *p, vi a)
{
    PL_EACH p[i] = (int16_t)a.v[i];
}

PL_INLINE void vi_store_s8(int8_t *p, vi a)
{
    PL_EACH p[i] = (int8_t)a.v[i];
}

PL_INLINE vi vi_load(const void *p)
{
    vi r;
    memcpy(r.v, p, sizeof r.v);
    return r;
}

PL_INLINE vf vf_bits(vi a)
{
    vf r;
    memcpy(r.v, a.v, sizeof r.v);
    return r;
}

/* The lanes' sum, in a fixed order: halves onto halves. */
PL_INLINE float vf_sum(vf a)
{
    for (int w = 8; w; w /= 2) {
        for (int i = 0; i < w; i++) a.v[i] += a.v[i + w];
    }
    return a.v[0];
}

PL_INLINE float vf_top(vf a)
{
    float m = a.v[0];
    PL_EACH m = a.v[i] > m ? a.v[i] : m;
    return m;
}

/* sums[c] += the products of n groups of four: bytes of w, codes 0..15, by those of row c
 * at a, for C rows. */
PL_INLINE void vi_dots_u4(vi *sums, const vi *w, int n, const int8_t *a, size_t stride,
                          int C)
{
    for (int c = 0; c < C; c++, a += stride) {
        for (int g = 0; g < n; g++) {
            PL_EACH for (int j = 0; j < 4; j++)
            {
                sums[c].v[i] += (w[g].v[i] >> (8 * j) & 255) * a[g * 4 + j];
            }
        }
    }
}

/* The same for codes 0..255 that mean code - 128: vi_code_s8 makes them ready, once for
 * many sums; vi_start_s8 begins one. */
PL_INLINE vi vi_code_s8(vi codes)
{
    return codes;
}

PL_INLINE vi vi_start_s8(int32_t minus_sum)
{
    return vi_set1(128 * minus_sum);
}

PL_INLINE void vi_dots_s8(vi *sums, const vi *w, int n, const int8_t *a, size_t stride,
                          int C)
{
    vi_dots_u4(sums, w, n, a, stride, C);
}

#endif
