/* SPDX-License-Identifier: Apache-2.0
 *
 * Matrix by rows of activations: a tile is one panel by C rows. The weights are read (and
 * unpacked) once a tile.
 */

PL_INLINE void finish_tile(const pl_cpu_linear *l, int row, int panel, const vf *acc,
                           int C)
{
    int left = PL_MIN(l->w->n - panel * PL_PANEL, PL_PANEL);
    float *out = l->out + (size_t)row * l->out_stride + (size_t)panel * PL_PANEL;
    vf bias = l->bias ? vf_load_n(l->bias + panel * PL_PANEL, left) : vf_set1(0.0f);
    for (int c = 0; c < C; c++, out += l->out_stride) {
        vf v = l->bias ? vf_add(acc[c], bias) : acc[c];
        if (left == PL_PANEL) {
            vf_store(out, l->add ? vf_add(vf_load(out), v) : v);
        } else {
            vf_store_n(out, l->add ? vf_add(vf_load_n(out, left), v) : v, left);
        }
    }
}

/* ---- the scales of a block --------------------------------------------------------- */

/* Where they are kept. */
enum {
    SCALES_D,
    SCALES_DM,
    SCALES_SUPER_DM,
    SCALES_SUPER_HALVES,
    SCALES_SUPER_DM_HALVES
};

/* m is what is added to a code times d; of HALVES the second 16 columns have their
 * own. */
typedef struct scales {
    vf d, m, d_high, m_high;
} scales;

PL_INLINE scales read_scales(const pl_cpu_matrix *w, const char *panel, int block,
                             int kind)
{
    const char *at = panel + w->scales_at;
    const char *super = panel + w->supers_at;
    vf zero = vf_set1(0.0f);
    if (kind == SCALES_D) {
        vf d = vf_from_f16((const uint16_t *)(const void *)at + block * 16);
        return (scales){d, zero, d, zero};
    }
    if (kind == SCALES_DM) {
        const uint16_t *p = (const uint16_t *)(const void *)at + block * 32;
        vf d = vf_from_f16(p), m = vf_from_f16(p + 16);
        return (scales){d, m, d, m};
    }
    if (kind == SCALES_SUPER_HALVES) {
        vf s = vf_from_f16((const uint16_t *)(const void *)super + block / 8 * 16);
        const int8_t *p = (const int8_t *)at + block * 32;
        return (scales){vf_mul(s, vf_from_s8(p)), zero, vf_mul(s, vf_from_s8(p + 16)),
                        zero};
    }
    const uint16_t *s = (const uint16_t *)(const void *)super + block / 8 * 32;
    bool halves = kind == SCALES_SUPER_DM_HALVES;
    const uint8_t *p = (const uint8_t *)at + block * (halves ? 64 : 32);
    vf ds = vf_from_f16(s), ms = vf_sub(zero, vf_from_f16(s + 16));
    if (!halves) {
        vf d = vf_mul(ds, vf_from_u8(p)), m = vf_mul(ms, vf_from_u8(p + 16));
        return (scales){d, m, d, m};
    }
    return (scales){vf_mul(ds, vf_from_u8(p)), vf_mul(ms, vf_from_u8(p + 32)),
                    vf_mul(ds, vf_from_u8(p + 16)), vf_mul(ms, vf_from_u8(p + 48))};
}

/* The eight groups of a block, a byte a code. */
PL_INLINE void read_codes(const char *panel, int block, int bits, vi *codes)
{
    if (bits == 8) {
        for (int g = 0; g < 8; g++) codes[g] = vi_load(panel + block * 512 + g * 64);
        return;
    }
    for (int g = 0; g < 4; g++) {
        vi v = vi_load(panel + block * 256 + g * 64);
        codes[g] = vi_and(v, 0x0f0f0f0f);
        codes[g + 4] = vi_and(vi_shr(v, 4), 0x0f0f0f0f);
    }
}

/* Asks for what comes soon: few rows wait for memory, not for arithmetic. */
PL_INLINE void ahead(const char *panel, int block, int bits)
{
    enum {
        AHEAD = 3072
    };
    for (int i = 0; i < bits; i++) {
        __builtin_prefetch(panel + (block * bits + i) * 64 + AHEAD);
    }
}

/* Whether codes have a minimum; else they mean 128 less, or 8 less, than they say. */
PL_INLINE bool has_min(int kind)
{
    return kind == SCALES_DM || kind == SCALES_SUPER_DM || kind == SCALES_SUPER_DM_HALVES;
}

/* ---- quantized by quantized: integers are exact, then one fma a block -------------- */

PL_INLINE void dots(vi *sums, const vi *codes, int n, const int8_t *q, size_t stride,
                    int C, int bits)
{
    if (bits == 8) vi_dots_s8(sums, codes, n, q, stride, C);
    if (bits == 4) vi_dots_u4(sums, codes, n, q, stride, C);
}

/* sums += n groups of codes by C rows at q. The second term of a block lies 32 bytes
 * behind the first, which counts 256 times as much. Integers: no order is wrong, so many
 * columns save an addition, and few do not wait for one sum. */
PL_INLINE void add_dots(vi *sums, const vi *codes, int n, const int8_t *q, size_t stride,
                        int C, int bits, int terms)
{
    if (terms == 1) {
        dots(sums, codes, n, q, stride, C, bits);
        return;
    }
    vi high[PL_COLUMNS];
    PL_UNROLL for (int c = 0; c < C; c++) high[c] = vi_set1(0);
    dots(high, codes, n, q, stride, C, bits);
    if (C <= 2) dots(sums, codes, n, q + 32, stride, C, bits);
    PL_UNROLL for (int c = 0; c < C; c++) sums[c] = vi_add(vi_shl(high[c], 8), sums[c]);
    if (C > 2) dots(sums, codes, n, q + 32, stride, C, bits);
}

/* Where a block's sums start: what codes that are too high by 128 or 8 bring is taken off
 * here, unless there is a minimum to do it. */
PL_INLINE vi start_at(const int32_t *minus_sum, int n, int bits, int kind)
{
    int32_t sum = n == 8 ? minus_sum[0] + minus_sum[1] : minus_sum[0];
    if (bits == 8) return vi_start_s8(sum);
    return has_min(kind) ? vi_set1(0) : vi_shl(vi_set1(sum), 3);
}

PL_TILE void tile_int(const pl_cpu_linear *l, const pl_cpu_rows *x, int row, int p, int C,
                      int bits, int kind, int terms)
{
    const pl_cpu_matrix *w = l->w;
    const char *panel = w->panels + (size_t)p * w->panel_bytes;
    size_t stride = x->stride * (size_t)terms, per_row = x->stride / 32;
    const int8_t *q = x->q + (size_t)row * stride;
    const float *d = x->d + (size_t)row * per_row, *ds = x->ds + (size_t)row * per_row;
    const int32_t *minus = x->minus_sum + (size_t)row * per_row * 2;
    bool halves = kind >= SCALES_SUPER_HALVES;
    int n = halves ? 4 : 8; /* groups under one scale */
    vf acc[PL_COLUMNS];
    PL_UNROLL for (int c = 0; c < C; c++) acc[c] = vf_set1(0.0f);
    for (int b = 0; b < w->k / 32; b++, q += 32 * terms, minus += 2) {
        vi codes[8];
        scales s = read_scales(w, panel, b, kind);
        read_codes(panel, b, bits, codes);
        if (C <= 4) ahead(panel, b, bits);
        for (int g = 0; bits == 8 && g < 8; g++) codes[g] = vi_code_s8(codes[g]);
        for (int g = 0; g < 8; g += n) {
            vi sums[PL_COLUMNS];
            PL_UNROLL for (int c = 0; c < C; c++)
            {
                sums[c] =
                    start_at(minus + (size_t)c * per_row * 2 + g / 4, n, bits, kind);
            }
            add_dots(sums, codes + g, n, q + g * 4, stride, C, bits, terms);
            vf by = g ? s.d_high : s.d;
            PL_UNROLL for (int c = 0; c < C; c++)
            {
                vf da = vf_set1(d[(size_t)c * per_row + (size_t)b]);
                acc[c] = vf_fma(vf_from_i(sums[c]), vf_mul(by, da), acc[c]);
            }
        }
        if (!has_min(kind)) continue;
        PL_UNROLL for (int c = 0; c < C; c++)
        {
            if (halves) {
                const int32_t *ms = minus + (size_t)c * per_row * 2;
                vf da = vf_set1(d[(size_t)c * per_row + (size_t)b]);
                vf low = vf_from_i(vi_set1(-ms[0])), high = vf_from_i(vi_set1(-ms[1]));
                acc[c] = vf_fma(s.m, vf_mul(low, da), acc[c]);
                acc[c] = vf_fma(s.m_high, vf_mul(high, da), acc[c]);
                continue;
            }
            vf sum = vf_set1(ds[(size_t)c * per_row + (size_t)b]);
            acc[c] = vf_fma(s.m, sum, acc[c]);
        }
    }
    finish_tile(l, row, p, acc, C);
}

/* ---- in f32: quantized weights are expanded a block at a time ---------------------- */

/* Value k of a block: code * d + m in one rounding. */
PL_INLINE vf expand(const vi *codes, int k, int32_t mask, vf d, vf m)
{
    vi code = k % 4 ? vi_shr(codes[k / 4], k % 4 * 8) : codes[k / 4];
    if (k % 4 < 3 || mask != 255) code = vi_and(code, mask);
    return vf_fma(vf_from_i(code), d, m);
}

/* A minimum takes the place of the offset 128 (the codes have it in their top bit). Else
 * -offset * d is exact, so code * d - offset * d is rounded as (code - offset) * d. */
PL_INLINE void expand_block(const pl_cpu_matrix *w, const char *panel, int b, int bits,
                            int kind, vf *out)
{
    vi codes[8];
    scales s = read_scales(w, panel, b, kind);
    read_codes(panel, b, bits, codes);
    bool min = has_min(kind);
    vf offset = vf_set1(bits == 8 ? -128.0f : -8.0f);
    vf low = min ? s.m : vf_mul(offset, s.d);
    vf high = min ? s.m_high : vf_mul(offset, s.d_high);
    int32_t mask = min && bits == 8 ? 127 : 255;
    for (int k = 0; k < 16; k++) out[k] = expand(codes, k, mask, s.d, low);
    for (int k = 16; k < 32; k++) out[k] = expand(codes, k, mask, s.d_high, high);
}

PL_TILE void tile_expanded(const pl_cpu_linear *l, const pl_cpu_rows *x, int row, int p,
                           int C, int bits, int kind)
{
    const pl_cpu_matrix *w = l->w;
    const char *panel = w->panels + (size_t)p * w->panel_bytes;
    const float *f = x->f + (size_t)row * x->stride;
    vf acc[PL_COLUMNS], block[32];
    for (int c = 0; c < C; c++) acc[c] = vf_set1(0.0f);
    for (int b = 0; b < w->k / 32; b++) {
        expand_block(w, panel, b, bits, kind, block);
        for (int k = 0; k < 32; k++) {
            for (int c = 0; c < C; c++) {
                vf a = vf_set1(f[(size_t)c * x->stride + (size_t)(b * 32 + k)]);
                acc[c] = vf_fma(block[k], a, acc[c]);
            }
        }
    }
    finish_tile(l, row, p, acc, C);
}

PL_TILE void tile_plain(const pl_cpu_linear *l, const pl_cpu_rows *x, int row, int p,
                        int C, int type)
{
    const pl_cpu_matrix *w = l->w;
    const char *panel = w->panels + (size_t)p * w->panel_bytes;
    const float *f = x->f + (size_t)row * x->stride;
    vf acc[PL_COLUMNS];
    for (int c = 0; c < C; c++) acc[c] = vf_set1(0.0f);
    for (int k = 0; k < w->k; k++) {
        vf v;
        if (type == PL_F32) {
            v = vf_load((const float *)(const void *)panel + (size_t)k * 16);
        } else if (type == PL_F16) {
            v = vf_from_f16((const uint16_t *)(const void *)panel + (size_t)k * 16);
        } else {
            vi two = vi_load(panel + (size_t)(k / 2) * 64);
            v = vf_bits(k % 2 ? vi_and(two, (int32_t)0xffff0000) : vi_shl(two, 16));
        }
        for (int c = 0; c < C; c++) {
            acc[c] = vf_fma(v, vf_set1(f[(size_t)c * x->stride + (size_t)k]), acc[c]);
        }
    }
    finish_tile(l, row, p, acc, C);
}

#if defined(__AVX512BF16__)
/* acc += the products of column pair `pair`. */
PL_INLINE void add_pair(vf *acc, const char *panel, const uint16_t *h, size_t stride,
                        int pair, int C)
{
    __m512bh two = (__m512bh)vi_load(panel + (size_t)pair * 64);
    for (int c = 0; c < C; c++) {
        int32_t a;
        memcpy(&a, h + (size_t)c * stride + (size_t)pair * 2, sizeof a);
        acc[c] = _mm512_dpbf16_ps(acc[c], two, (__m512bh)vi_set1(a));
    }
}

/* bf16 by bf16, in two chains: even pairs and odd ones. */
PL_TILE void tile_pairs(const pl_cpu_linear *l, const pl_cpu_rows *x, int row, int p,
                        int C)
{
    const pl_cpu_matrix *w = l->w;
    const char *panel = w->panels + (size_t)p * w->panel_bytes;
    const uint16_t *h = x->h + (size_t)row * x->stride;
    int n_pairs = (w->k + 1) / 2, pair = 0;
    vf even[PL_COLUMNS], odd[PL_COLUMNS];
    for (int c = 0; c < C; c++) even[c] = odd[c] = vf_set1(0.0f);
    for (; pair + 2 <= n_pairs; pair += 2) {
        add_pair(even, panel, h, x->stride, pair, C);
        add_pair(odd, panel, h, x->stride, pair + 1, C);
    }
    if (pair < n_pairs) add_pair(even, panel, h, x->stride, pair, C);
    for (int c = 0; c < C; c++) even[c] = vf_add(even[c], odd[c]);
    finish_tile(l, row, p, even, C);
}
#endif

/* ---- which tile -------------------------------------------------------------------- */

/* One function per type and width: all that the tiles ask is then known when compiled. */
#define TILES(name, call)                                                             \
    static void name(const pl_cpu_linear *l, const pl_cpu_rows *x, int row, int n,    \
                     int p)                                                           \
    {                                                                                 \
        for (; n >= PL_COLUMNS; n -= PL_COLUMNS, row += PL_COLUMNS) call(PL_COLUMNS); \
        if (PL_COLUMNS > 4 && n >= 4) {                                               \
            call(4);                                                                  \
            n -= 4, row += 4;                                                         \
        }                                                                             \
        for (; n >= 2; n -= 2, row += 2) call(2);                                     \
        if (n) call(1);                                                               \
    }

#define QUANT_TILES(type)                     \
    TILES(linear_x2_##type, CALL_X2_##type)   \
    TILES(linear_int8_##type, CALL_X1_##type) \
    TILES(linear_f32_##type, CALL_F32_##type)

#define CALL_X1_q8_0(C) tile_int(l, x, row, p, C, 8, SCALES_D, 1)
#define CALL_X2_q8_0(C) tile_int(l, x, row, p, C, 8, SCALES_D, 2)
#define CALL_X1_q4_0(C) tile_int(l, x, row, p, C, 4, SCALES_D, 1)
#define CALL_X2_q4_0(C) tile_int(l, x, row, p, C, 4, SCALES_D, 2)
#define CALL_X1_q4_1(C) tile_int(l, x, row, p, C, 4, SCALES_DM, 1)
#define CALL_X2_q4_1(C) tile_int(l, x, row, p, C, 4, SCALES_DM, 2)
#define CALL_X1_q5_1(C) tile_int(l, x, row, p, C, 8, SCALES_DM, 1)
#define CALL_X2_q5_1(C) tile_int(l, x, row, p, C, 8, SCALES_DM, 2)
#define CALL_X1_q2_k(C) tile_int(l, x, row, p, C, 4, SCALES_SUPER_DM_HALVES, 1)
#define CALL_X2_q2_k(C) tile_int(l, x, row, p, C, 4, SCALES_SUPER_DM_HALVES, 2)
#define CALL_X1_q3_k(C) tile_int(l, x, row, p, C, 4, SCALES_SUPER_HALVES, 1)
#define CALL_X2_q3_k(C) tile_int(l, x, row, p, C, 4, SCALES_SUPER_HALVES, 2)
#define CALL_X1_q4_k(C) tile_int(l, x, row, p, C, 4, SCALES_SUPER_DM, 1)
#define CALL_X2_q4_k(C) tile_int(l, x, row, p, C, 4, SCALES_SUPER_DM, 2)
#define CALL_X1_q5_k(C) tile_int(l, x, row, p, C, 8, SCALES_SUPER_DM, 1)
#define CALL_X2_q5_k(C) tile_int(l, x, row, p, C, 8, SCALES_SUPER_DM, 2)
#define CALL_X1_q6_k(C) tile_int(l, x, row, p, C, 8, SCALES_SUPER_HALVES, 1)
#define CALL_X2_q6_k(C) tile_int(l, x, row, p, C, 8, SCALES_SUPER_HALVES, 2)
#define CALL_F32_q8_0(C) tile_expanded(l, x, row, p, C, 8, SCALES_D)
#define CALL_F32_q4_0(C) tile_expanded(l, x, row, p, C, 4, SCALES_D)
#define CALL_F32_q4_1(C) tile_expanded(l, x, row, p, C, 4, SCALES_DM)
#define CALL_F32_q5_1(C) tile_expanded(l, x, row, p, C, 8, SCALES_DM)
#define CALL_F32_q2_k(C) tile_expanded(l, x, row, p, C, 4, SCALES_SUPER_DM_HALVES)
#define CALL_F32_q3_k(C) tile_expanded(l, x, row, p, C, 4, SCALES_SUPER_HALVES)
#define CALL_F32_q4_k(C) tile_expanded(l, x, row, p, C, 4, SCALES_SUPER_DM)
#define CALL_F32_q5_k(C) tile_expanded(l, x, row, p, C, 8, SCALES_SUPER_DM)
#define CALL_F32_q6_k(C) tile_expanded(l, x, row, p, C, 8, SCALES_SUPER_HALVES)
#define CALL_f32(C) tile_plain(l, x, row, p, C, PL_F32)
#define CALL_f16(C) tile_plain(l, x, row, p, C, PL_F16)
#define CALL_bf16(C) tile_plain(l, x, row, p, C, PL_BF16)

TILES(linear_f32, CALL_f32)
TILES(linear_f16, CALL_f16)
TILES(linear_bf16, CALL_bf16)
#if defined(__AVX512BF16__)
#define CALL_pairs(C) tile_pairs(l, x, row, p, C)
TILES(linear_pairs, CALL_pairs)
#else
#define linear_pairs linear_bf16
#endif
QUANT_TILES(q8_0)
QUANT_TILES(q4_0)
QUANT_TILES(q4_1)
QUANT_TILES(q5_1)
QUANT_TILES(q2_k)
QUANT_TILES(q3_k)
QUANT_TILES(q4_k)
QUANT_TILES(q5_k)
QUANT_TILES(q6_k)

static void linear(const pl_cpu_linear *l, const pl_cpu_rows *x, int first, int n,
                   int panel, int n_panels)
{
    typedef void tiles(const pl_cpu_linear *, const pl_cpu_rows *, int, int, int);
    static tiles *const table[][PL_N_ACTIVATIONS] = {
        [PL_F32] = {linear_f32, linear_f32, linear_f32},
        [PL_F16] = {linear_f16, linear_f16, linear_f16},
        [PL_BF16] = {linear_bf16, linear_bf16, linear_pairs},
        [PL_Q8_0] = {linear_f32_q8_0, linear_x2_q8_0, linear_int8_q8_0},
        [PL_Q4_0] = {linear_f32_q4_0, linear_x2_q4_0, linear_int8_q4_0},
        [PL_Q4_1] = {linear_f32_q4_1, linear_x2_q4_1, linear_int8_q4_1},
        [PL_Q5_1] = {linear_f32_q5_1, linear_x2_q5_1, linear_int8_q5_1},
        [PL_Q2_K] = {linear_f32_q2_k, linear_x2_q2_k, linear_int8_q2_k},
        [PL_Q3_K] = {linear_f32_q3_k, linear_x2_q3_k, linear_int8_q3_k},
        [PL_Q4_K] = {linear_f32_q4_k, linear_x2_q4_k, linear_int8_q4_k},
        [PL_Q5_K] = {linear_f32_q5_k, linear_x2_q5_k, linear_int8_q5_k},
        [PL_Q6_K] = {linear_f32_q6_k, linear_x2_q6_k, linear_int8_q6_k},
    };
    tiles *tile = table[l->w->type][x->activations];
    for (int p = panel; p < panel + n_panels; p++) tile(l, x, first, n, p);
}
