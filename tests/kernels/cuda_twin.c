/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA kernels' products against a twin in C: the same bits, for any number of rows.
 *
 * One step of the tensor cores (measured on Hopper): 16 exact products and the sum so far
 * are cut towards zero to a multiple of 2^(e - 25), e the largest of their exponents,
 * added exactly, and cut to 24 bits. A product's exponent is the sum of its factors'.
 */
#include "base.h"
#include "kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FRACTION = 25,
    LEAST_EXPONENT = -126
};

/* ---- the twin -------------------------------------------------------------------- */

static float cut24(int64_t sum, int exponent)
{
    uint64_t m = (uint64_t)llabs(sum);
    int drop = m >> 24 ? 40 - __builtin_clzll(m) : 0;
    drop = PL_MAX(drop, -149 - exponent);
    if (drop > 63) return 0;
    if (drop > 0) m >>= drop, exponent += drop;
    return (float)ldexp(sum < 0 ? -(double)m : (double)m, exponent);
}

static float step16(float c, const float *a, const float *b)
{
    double terms[17];
    int exponents[17], e = INT32_MIN;
    for (int i = 0; i < 17; i++) {
        int ea = 0, eb = 1;
        terms[i] = i < 16 ? (double)a[i] * (double)b[i] : (double)c;
        (void)frexpf(i < 16 ? a[i] : c, &ea);
        if (i < 16) (void)frexpf(b[i], &eb);
        exponents[i] = ea + eb - 2;
        if (i == 16) exponents[i] = PL_MAX(exponents[i], LEAST_EXPONENT);
        if (terms[i] != 0) e = PL_MAX(e, exponents[i]);
    }
    if (e == INT32_MIN) return 0;
    int64_t sum = 0;
    for (int i = 0; i < 17; i++) sum += (int64_t)ldexp(terms[i], FRACTION - e);
    return cut24(sum, e - FRACTION);
}

static float dot(const float *a, const float *b, int k, int slice)
{
    float sum = 0;
    for (int from = 0; from < k; from += slice) {
        float chain = 0;
        for (int i = from; i < PL_MIN(from + slice, k); i += 16)
            chain = step16(chain, a + i, b + i);
        sum = from ? sum + chain : chain;
    }
    return sum;
}

/* ---- on the GPU ------------------------------------------------------------------ */

typedef struct shape {
    int n, k, rows, slice, f16;
} shape;

static void must(cudaError_t e)
{
    if (e == cudaSuccess) return;
    printf("CUDA: %s\n", cudaGetErrorString(e));
    exit(2);
}

static void *upload(const void *data, size_t bytes)
{
    void *p;
    must(cudaMalloc(&p, bytes));
    must(cudaMemcpy(p, data, bytes, cudaMemcpyHostToDevice));
    return p;
}

static float value_of(uint16_t bits, bool f16)
{
    uint32_t wide = (uint32_t)bits << 16;
    float v;
    memcpy(&v, &wide, 4);
    return f16 ? pl_f32_from_f16(bits) : v;
}

/* Rows of k values in 16 bits, filled with zeros to `width`; of several magnitudes. */
static void make_rows(const shape *s, int n, int width, uint64_t lane, uint16_t *bits,
                      float *values)
{
    for (int i = 0; i < n * s->k; i++) {
        uint64_t r = pl_random_at(7, (uint64_t)i, lane);
        float v = ldexpf((float)(r >> 40) * 0x1p-23f - 1, (int)(r & 7) - 5);
        uint32_t wide;
        memcpy(&wide, &v, 4);
        int at = i / s->k * width + i % s->k;
        bits[at] = s->f16 ? pl_f16_from_f32(v) : (uint16_t)(wide >> 16);
        values[at] = value_of(bits[at], s->f16);
    }
}

static void multiply(const shape *s, const uint16_t *w, const uint16_t *x, float *out)
{
    int width = pl_cu_tiles(s->k) * 16;
    size_t bytes = pl_cu_weight_bytes(s->n, s->k);
    size_t out_bytes = (size_t)s->n * (size_t)s->rows * sizeof(float);
    pl_cu_weights m = {NULL, s->n, s->k, s->f16};
    void *rows = upload(x, (size_t)s->rows * (size_t)width * 2), *to;
    void *plain = upload(w, (size_t)s->n * (size_t)s->k * 2);
    must(cudaMalloc(&m.data, bytes));
    must(cudaMemset(m.data, 0, bytes));
    must(cudaMalloc(&to, out_bytes));
    must(cudaMemset(to, 0xff, out_bytes));
    pl_cu_pack(NULL, &m, s->f16 ? PL_F16 : PL_BF16, plain, 0, s->n);
    pl_cu_gemm g = {.parts = {{m.data, NULL, to, s->n, s->n, 0}},
                    .n_parts = 1,
                    .f16 = s->f16,
                    .x = rows,
                    .n_rows = s->rows,
                    .k = s->k,
                    .slice = s->slice};
    must(pl_cu_multiply(NULL, &g));
    must(cudaMemcpy(out, to, out_bytes, cudaMemcpyDeviceToHost));
    void *all[] = {rows, to, plain, m.data};
    for (int i = 0; i < PL_COUNT(all); i++) cudaFree(all[i]);
}

static int check(const shape *s)
{
    int width = pl_cu_tiles(s->k) * 16, wrong = 0, slice = s->slice ? s->slice : width;
    uint16_t *w = pl_alloc((size_t)s->n * (size_t)width * 2),
             *x = pl_alloc((size_t)s->rows * (size_t)width * 2);
    float *wv = pl_alloc((size_t)s->n * (size_t)width * 4),
          *xv = pl_alloc((size_t)s->rows * (size_t)width * 4),
          *out = pl_alloc((size_t)s->n * (size_t)s->rows * 4);
    make_rows(s, s->n, s->k, 1, w, wv);
    make_rows(s, s->rows, width, 2, x, xv);
    multiply(s, w, x, out);
    for (int row = 0; row<s->rows; row += s->rows> 256 ? 13 : 1)
        for (int n = 0; n < s->n; n++) {
            float got = out[row * s->n + n], a[8192] = {0};
            memcpy(a, wv + (size_t)n * (size_t)s->k, (size_t)s->k * 4);
            float want = dot(a, xv + (size_t)row * (size_t)width, width, slice);
            if (memcmp(&got, &want, 4) && !wrong++)
                printf("row %d, column %d: %a, wanted %a\n", row, n, (double)got,
                       (double)want);
        }
    printf("%s, %d x %d by %d rows, slices of %d: %d differ\n", s->f16 ? "f16" : "bf16",
           s->n, s->k, s->rows, s->slice, wrong);
    void *all[] = {w, x, wv, xv, out};
    for (int i = 0; i < PL_COUNT(all); i++) pl_free(all[i]);
    return wrong;
}

int main(void)
{
    static const int rows[] = {1, 9, 31, 64, 65, 200, 1800};
    static const int sizes[][2] = {
        {16, 16}, {40, 72}, {33, 1100}, {130, 528}, {520, 528}};
    int wrong = 0;
    for (int i = 0; i < PL_COUNT(rows) * PL_COUNT(sizes) * 4; i++) {
        const int *size = sizes[i / 4 % PL_COUNT(sizes)];
        shape s = {size[0], size[1], rows[i / 4 / PL_COUNT(sizes)], i & 1 ? 256 : 0,
                   i >> 1 & 1};
        wrong += check(&s);
    }
    printf("%d differ\n", wrong);
    return wrong != 0;
}
