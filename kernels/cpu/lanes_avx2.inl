/* SPDX-License-Identifier: Apache-2.0
 *
 * lanes_avx2.inl - sixteen lanes in two registers; lanes_scalar.inl says what each means.
 */
#ifndef PL_LANES_H
#define PL_LANES_H

#include "base.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define PL_COLUMNS 4
#define PL_QUERIES 4
#define PL_WIDE(n) ((n) > 2 ? 1 : (n) > 1 ? 2 : 4)
#define PL_UNROLL _Pragma("GCC unroll 4")
#define PL_INLINE static inline __attribute__((always_inline))
#define PL_TILE PL_INLINE /* a copy for every type and width */

typedef struct vf {
    __m256 a, b;
} vf;
typedef struct vi {
    __m256i a, b;
} vi;

#define PL_PAIR(type, name, args, low, high) \
    PL_INLINE type name args                 \
    {                                        \
        return (type){low, high};            \
    }
#define PL_BOTH(type, name, op) \
    PL_PAIR(type, name, (type x, type y), op(x.a, y.a), op(x.b, y.b))

#define PL_16(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define PL_8(p) _mm_loadl_epi64((const __m128i *)(const void *)(p))

PL_PAIR(vf, vf_set1, (float x), _mm256_set1_ps(x), _mm256_set1_ps(x))
PL_PAIR(vf, vf_load, (const float *p), _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8))
PL_BOTH(vf, vf_add, _mm256_add_ps)
PL_BOTH(vf, vf_sub, _mm256_sub_ps)
PL_BOTH(vf, vf_mul, _mm256_mul_ps)
PL_BOTH(vf, vf_div, _mm256_div_ps)
PL_BOTH(vf, vf_max, _mm256_max_ps)
PL_BOTH(vf, vf_min, _mm256_min_ps)
PL_BOTH(vi, vi_add, _mm256_add_epi32)
PL_PAIR(vf, vf_fma, (vf x, vf y, vf z), _mm256_fmadd_ps(x.a, y.a, z.a),
        _mm256_fmadd_ps(x.b, y.b, z.b))
PL_PAIR(vf, vf_abs, (vf x), _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.a),
        _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.b))
PL_PAIR(vf, vf_from_f16, (const uint16_t *p), _mm256_cvtph_ps(PL_16(p)),
        _mm256_cvtph_ps(PL_16(p + 8)))
PL_PAIR(vf, vf_from_s16, (const int16_t *p),
        _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(PL_16(p))),
        _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(PL_16(p + 8))))
PL_PAIR(vf, vf_from_u8, (const uint8_t *p),
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(PL_8(p))),
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(PL_8(p + 8))))
PL_PAIR(vf, vf_from_s8, (const int8_t *p),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(PL_8(p))),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(PL_8(p + 8))))
PL_PAIR(vf, vf_from_i, (vi x), _mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b))
PL_PAIR(vf, vf_bits, (vi x), _mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b))
PL_PAIR(vi, vi_round, (vf x), _mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b))
PL_PAIR(vi, vi_set1, (int32_t x), _mm256_set1_epi32(x), _mm256_set1_epi32(x))
PL_PAIR(vi, vi_and, (vi x, int32_t y), _mm256_and_si256(x.a, _mm256_set1_epi32(y)),
        _mm256_and_si256(x.b, _mm256_set1_epi32(y)))
PL_PAIR(vi, vi_shl, (vi x, int n), _mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n))
PL_PAIR(vi, vi_shr, (vi x, int n), _mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n))
PL_PAIR(vi, vi_load, (const void *p), _mm256_loadu_si256(p),
        _mm256_loadu_si256((const __m256i *)p + 1))

/* All ones in lanes below n. */
PL_INLINE vi vi_first(int n)
{
    __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (vi){_mm256_cmpgt_epi32(_mm256_set1_epi32(n), at),
                _mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), at)};
}

PL_INLINE vf vf_load_n(const float *p, int n)
{
    vi m = vi_first(n);
    return (vf){_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}

PL_INLINE vf vf_keep(vf x, int lo, int hi, float other)
{
    vi l = vi_first(lo), h = vi_first(hi);
    vf o = vf_set1(other);
    return (vf){
        _mm256_blendv_ps(o.a, x.a, _mm256_castsi256_ps(_mm256_andnot_si256(l.a, h.a))),
        _mm256_blendv_ps(o.b, x.b, _mm256_castsi256_ps(_mm256_andnot_si256(l.b, h.b)))};
}

PL_INLINE vf vf_where_ge(vf a, float bound, vf x)
{
    vf b = vf_set1(bound);
    return (vf){_mm256_and_ps(_mm256_cmp_ps(a.a, b.a, _CMP_GE_OQ), x.a),
                _mm256_and_ps(_mm256_cmp_ps(a.b, b.b, _CMP_GE_OQ), x.b)};
}

PL_INLINE void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}

PL_INLINE void vf_store_n(float *p, vf x, int n)
{
    vi m = vi_first(n);
    _mm256_maskstore_ps(p, m.a, x.a);
    _mm256_maskstore_ps(p + 8, m.b, x.b);
}

PL_INLINE __m256i pack_s16(vi x)
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
}

PL_INLINE void vi_store_s16(int16_t *p, vi x)
{
    _mm256_storeu_si256((__m256i *)(void *)p, pack_s16(x));
}

PL_INLINE void vi_store_s8(int8_t *p, vi x)
{
    __m256i w = pack_s16(x);
    __m128i b =
        _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_si128((__m128i *)(void *)p, b);
}

PL_INLINE float vf_sum(vf x)
{
    __m256 b = _mm256_add_ps(x.a, x.b);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

PL_INLINE float vf_top(vf x)
{
    __m256 b = _mm256_max_ps(x.a, x.b);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

PL_INLINE __m256i four_256(const int8_t *a)
{
    int32_t x;
    memcpy(&x, a, 4);
    return _mm256_set1_epi32(x);
}

/* Exact: eight pairs of products stay below 2^15 (8 * 2 * 15 * 127). */
PL_INLINE void vi_dots_u4(vi *sums, const vi *w, int n, const int8_t *a, size_t stride,
                          int C)
{
    __m256i one = _mm256_set1_epi16(1);
    PL_UNROLL for (int c = 0; c < C; c++, a += stride)
    {
        __m256i x = four_256(a);
        __m256i l = _mm256_maddubs_epi16(w[0].a, x), h = _mm256_maddubs_epi16(w[0].b, x);
        for (int g = 1; g < n; g++) {
            x = four_256(a + g * 4);
            l = _mm256_add_epi16(l, _mm256_maddubs_epi16(w[g].a, x));
            h = _mm256_add_epi16(h, _mm256_maddubs_epi16(w[g].b, x));
        }
        sums[c].a = _mm256_add_epi32(sums[c].a, _mm256_madd_epi16(l, one));
        sums[c].b = _mm256_add_epi32(sums[c].b, _mm256_madd_epi16(h, one));
    }
}

PL_INLINE vi vi_code_s8(vi codes)
{
    __m256i half = _mm256_set1_epi8(-128);
    return (vi){_mm256_xor_si256(codes.a, half), _mm256_xor_si256(codes.b, half)};
}

PL_INLINE vi vi_start_s8(int32_t minus_sum)
{
    (void)minus_sum;
    return vi_set1(0);
}

/* |code| by the activation with the code's sign. Exact: one pair of products stays below
 * 2^15 (2 * 128 * 127). */
PL_INLINE __m256i dot_s8(__m256i acc, __m256i w, __m256i a)
{
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

PL_INLINE void vi_dots_s8(vi *sums, const vi *w, int n, const int8_t *a, size_t stride,
                          int C)
{
    PL_UNROLL for (int c = 0; c < C; c++, a += stride)
    {
        for (int g = 0; g < n; g++) {
            __m256i x = four_256(a + g * 4);
            sums[c] = (vi){dot_s8(sums[c].a, w[g].a, x), dot_s8(sums[c].b, w[g].b, x)};
        }
    }
}

#endif
