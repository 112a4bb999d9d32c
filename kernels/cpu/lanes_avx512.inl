/* SPDX-License-Identifier: Apache-2.0
 *
 * lanes_avx512.inl - sixteen lanes in one register; lanes_scalar.inl says what each
 * means.
 */
#ifndef PL_LANES_H
#define PL_LANES_H

#include "base.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define PL_COLUMNS 8
#define PL_QUERIES 8
#define PL_WIDE(n) ((n) > 4 ? 2 : 4)
#define PL_UNROLL _Pragma("GCC unroll 16")
#define PL_INLINE static inline __attribute__((always_inline))
#define PL_TILE PL_INLINE /* a copy for every type and width */

typedef __m512 vf;
typedef __m512i vi;

#define PL_AS(type, name, args, expr) \
    PL_INLINE type name args          \
    {                                 \
        return expr;                  \
    }

#define PL_FIRST(n) ((__mmask16)((1u << (n)) - 1))

PL_AS(vf, vf_set1, (float x), _mm512_set1_ps(x))
PL_AS(vf, vf_load, (const float *p), _mm512_loadu_ps(p))
PL_AS(vf, vf_load_n, (const float *p, int n), _mm512_maskz_loadu_ps(PL_FIRST(n), p))
PL_AS(vf, vf_add, (vf a, vf b), _mm512_add_ps(a, b))
PL_AS(vf, vf_sub, (vf a, vf b), _mm512_sub_ps(a, b))
PL_AS(vf, vf_mul, (vf a, vf b), _mm512_mul_ps(a, b))
PL_AS(vf, vf_div, (vf a, vf b), _mm512_div_ps(a, b))
PL_AS(vf, vf_fma, (vf a, vf b, vf c), _mm512_fmadd_ps(a, b, c))
PL_AS(vf, vf_max, (vf a, vf b), _mm512_max_ps(a, b))
PL_AS(vf, vf_min, (vf a, vf b), _mm512_min_ps(a, b))
PL_AS(vf, vf_abs, (vf a), _mm512_abs_ps(a))
PL_AS(vf, vf_from_f16, (const uint16_t *p),
      _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)))
PL_AS(vf, vf_from_s16, (const int16_t *p),
      _mm512_cvtepi32_ps(
          _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p))))
PL_AS(vf, vf_from_u8, (const uint8_t *p),
      _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p))))
PL_AS(vf, vf_from_s8, (const int8_t *p),
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p))))
PL_AS(vf, vf_from_i, (vi a), _mm512_cvtepi32_ps(a))
PL_AS(vf, vf_keep, (vf a, int lo, int hi, float other),
      _mm512_mask_mov_ps(_mm512_set1_ps(other), (__mmask16)(PL_FIRST(hi) & ~PL_FIRST(lo)),
                         a))
PL_AS(vf, vf_where_ge, (vf a, float bound, vf x),
      _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, _mm512_set1_ps(bound), _CMP_GE_OQ), x))
PL_AS(vi, vi_round, (vf a), _mm512_cvtps_epi32(a))
PL_AS(vi, vi_set1, (int32_t x), _mm512_set1_epi32(x))
PL_AS(vi, vi_add, (vi a, vi b), _mm512_add_epi32(a, b))
PL_AS(vi, vi_and, (vi a, int32_t b), _mm512_and_si512(a, _mm512_set1_epi32(b)))
PL_AS(vi, vi_shl, (vi a, int n), _mm512_slli_epi32(a, (unsigned)n))
PL_AS(vi, vi_shr, (vi a, int n), _mm512_srli_epi32(a, (unsigned)n))
PL_AS(vi, vi_load, (const void *p), _mm512_loadu_si512(p))
PL_AS(vf, vf_bits, (vi a), _mm512_castsi512_ps(a))

PL_INLINE void vf_store(float *p, vf a)
{
    _mm512_storeu_ps(p, a);
}

PL_INLINE void vf_store_n(float *p, vf a, int n)
{
    _mm512_mask_storeu_ps(p, PL_FIRST(n), a);
}

PL_INLINE void vi_store_s16(int16_t *p, vi a)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(a));
}

PL_INLINE void vi_store_s8(int8_t *p, vi a)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(a));
}

PL_INLINE float vf_sum(vf a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

PL_INLINE float vf_top(vf a)
{
    return _mm512_reduce_max_ps(a);
}

PL_INLINE int32_t vi_four(const int8_t *a)
{
    int32_t x;
    memcpy(&x, a, 4);
    return x;
}

PL_INLINE void vi_dots_u4(vi *sums, const vi *w, int n, const int8_t *a, size_t stride,
                          int C)
{
    PL_UNROLL for (int g = 0; g < n; g++)
    {
        PL_UNROLL for (int c = 0; c < C; c++)
        {
            vi four = vi_set1(vi_four(a + (size_t)c * stride + g * 4));
            sums[c] = _mm512_dpbusd_epi32(sums[c], w[g], four);
        }
    }
}

PL_INLINE vi vi_code_s8(vi codes)
{
    return codes;
}

PL_INLINE vi vi_start_s8(int32_t minus_sum)
{
    return _mm512_slli_epi32(_mm512_set1_epi32(minus_sum), 7);
}

PL_INLINE void vi_dots_s8(vi *sums, const vi *w, int n, const int8_t *a, size_t stride,
                          int C)
{
    vi_dots_u4(sums, w, n, a, stride, C);
}

#endif
