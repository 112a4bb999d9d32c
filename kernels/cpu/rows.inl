/* SPDX-License-Identifier: Apache-2.0
 *
 * What is done to one row of activations.
 */

enum {
    MOST_INT8 = 127,
    MOST_INT8X2 = 127 * 256 + 127
};

/* Sixteen values, already in units of a code, to one term or two; their sum as it was
 * kept: sums of such integers are exact in f32. */
PL_INLINE float quantize_half(vf v, int8_t *q, int terms)
{
    if (terms == 1) {
        vi i = vi_round(v);
        vi_store_s8(q, i);
        return vf_sum(vf_from_i(i));
    }
    vi high = vi_round(vf_mul(v, vf_set1(1.0f / 256.0f)));
    vf rest = vf_fma(vf_from_i(high), vf_set1(-256.0f), v);
    vi low = vi_round(bounded(rest, 127.0f)); /* a tie is 128: 127 is near enough */
    vi_store_s8(q, high);
    vi_store_s8(q + 32, low);
    return vf_sum(vf_fma(vf_from_i(high), vf_set1(256.0f), vf_from_i(low)));
}

static void quantize(const pl_cpu_rows *x, int row)
{
    const float *f = x->f + (size_t)row * x->stride;
    int terms = x->activations == PL_ACT_INT8X2 ? 2 : 1;
    float most = terms == 2 ? MOST_INT8X2 : MOST_INT8;
    int8_t *q = x->q + (size_t)row * x->stride * (size_t)terms;
    size_t first = (size_t)row * (x->stride / 32);
    for (int b = 0; b < x->k / 32; b++, q += 32 * terms) {
        vf lo = vf_load(f + b * 32), hi = vf_load(f + b * 32 + 16);
        float top = vf_top(vf_max(vf_abs(lo), vf_abs(hi)));
        top = top > 0x1p-100f ? top : 0.0f; /* or most / top might be infinite */
        vf by = vf_set1(top > 0.0f ? most / top : 0.0f);
        float d = top / most;
        float si = quantize_half(bounded(vf_mul(lo, by), most), q, terms);
        float sj = quantize_half(bounded(vf_mul(hi, by), most), q + 16, terms);
        x->d[first + (size_t)b] = d;
        x->ds[first + (size_t)b] = d * (si + sj);
        x->minus_sum[(first + (size_t)b) * 2] = -(int32_t)si;
        x->minus_sum[(first + (size_t)b) * 2 + 1] = -(int32_t)sj;
    }
}

static void reduce(const pl_cpu_rows *x, int row)
{
#if defined(__AVX512BF16__)
    for (int i = 0; x->h && i < x->k; i += 16) {
        size_t at = (size_t)row * x->stride + (size_t)i;
        vf v = vf_load_n(x->f + at, PL_MIN(x->k - i, 16));
        _mm256_storeu_si256((__m256i *)(void *)(x->h + at),
                            (__m256i)_mm512_cvtneps_pbh(v));
    }
#endif
    if (x->q) quantize(x, row);
}

static void norm(const float *x, const float *weight, float eps, int n, float *out)
{
    vf acc = vf_set1(0.0f);
    for (int i = 0; i < n; i += 16) {
        vf v = vf_load_n(x + i, PL_MIN(n - i, 16));
        acc = vf_fma(v, v, acc);
    }
    vf inverse = vf_set1(1.0f / sqrtf(vf_sum(acc) / (float)n + eps));
    for (int i = 0; i < n; i += 16) {
        int left = PL_MIN(n - i, 16);
        vf v = vf_mul(vf_load_n(x + i, left), inverse);
        vf_store_n(out + i, vf_mul(v, vf_load_n(weight + i, left)), left);
    }
}

static void gate_silu(const float *g, const float *up, int n, float *out)
{
    vf one = vf_set1(1.0f);
    for (int i = 0; i < n; i += 16) {
        int left = PL_MIN(n - i, 16);
        vf v = vf_load_n(g + i, left);
        vf e = vf_exp(vf_sub(vf_set1(0.0f), v));
        v = vf_mul(vf_div(v, vf_add(one, e)), vf_load_n(up + i, left));
        vf_store_n(out + i, v, left);
    }
}

/* v * (1 + tanh(u)) / 2 is v / (1 + e^-2u); u = sqrt(2 / pi) * (v + 0.044715 v^3) */
static void gate_gelu_tanh(const float *g, const float *up, int n, float *out)
{
    vf one = vf_set1(1.0f), cubic = vf_set1(0.044715f);
    vf minus_two_root = vf_set1(-0x1.988454p+0f); /* -2 * sqrt(2 / pi) */
    for (int i = 0; i < n; i += 16) {
        int left = PL_MIN(n - i, 16);
        vf v = vf_load_n(g + i, left);
        vf u = vf_mul(v, vf_fma(vf_mul(v, v), cubic, one));
        vf e = vf_exp(vf_mul(u, minus_two_root));
        v = vf_mul(vf_div(v, vf_add(one, e)), vf_load_n(up + i, left));
        vf_store_n(out + i, v, left);
    }
}

static void cap(float *x, float most, int n)
{
    for (int i = 0; i < n; i += 16) {
        int left = PL_MIN(n - i, 16);
        vf_store_n(x + i, vf_cap(vf_load_n(x + i, left), most), left);
    }
}

static void add(float *x, const float *y, float factor, int n)
{
    vf f = vf_set1(factor);
    for (int i = 0; i < n; i += 16) {
        int left = PL_MIN(n - i, 16);
        vf_store_n(x + i, vf_fma(f, vf_load_n(y + i, left), vf_load_n(x + i, left)),
                   left);
    }
}

static void softmax(float *x, int n)
{
    vf top = vf_set1(-INFINITY), sum = vf_set1(0.0f);
    for (int i = 0; i < n; i += 16) {
        int left = PL_MIN(n - i, 16);
        top = vf_max(top, vf_keep(vf_load_n(x + i, left), 0, left, -INFINITY));
    }
    vf most = vf_set1(vf_top(top));
    for (int i = 0; i < n; i += 16) {
        int left = PL_MIN(n - i, 16);
        vf e = vf_exp(vf_sub(vf_load_n(x + i, left), most));
        vf_store_n(x + i, e, left);
        sum = vf_add(sum, vf_keep(e, 0, left, 0.0f));
    }
    vf all = vf_set1(vf_sum(sum));
    for (int i = 0; i < n; i += 16) {
        int left = PL_MIN(n - i, 16);
        vf_store_n(x + i, vf_div(vf_load_n(x + i, left), all), left);
    }
}

/* Turns a head of n values: value i goes with i + n/2, or (pairs) 2i with 2i + 1. */
static void rope(float *x, const float *cos, const float *sin, int n, int pairs)
{
    int half = n / 2;
    for (int i = 0; pairs && i < half; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cos[i] - b * sin[i];
        x[2 * i + 1] = b * cos[i] + a * sin[i];
    }
    for (int i = 0; !pairs && i < half; i += 16) {
        int left = PL_MIN(half - i, 16);
        vf a = vf_load_n(x + i, left), b = vf_load_n(x + half + i, left);
        vf c = vf_load_n(cos + i, left), s = vf_load_n(sin + i, left);
        vf_store_n(x + i, vf_sub(vf_mul(a, c), vf_mul(b, s)), left);
        vf_store_n(x + half + i, vf_add(vf_mul(b, c), vf_mul(a, s)), left);
    }
}
