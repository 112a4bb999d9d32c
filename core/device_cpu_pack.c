/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights into panels (cpu.h draws them), and a row out of them again for the embedding.
 */
#include "device_cpu.h"

#include <math.h>
#include <string.h>

static uint16_t u16_at(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static void put_u16(char *p, int lane, uint16_t v)
{
    memcpy(p + lane * 2, &v, 2);
}

/* ---- a lane of a block: 32 columns of a row ---------------------------------------- */

/* Where they go: the block's scales, its super-block's, and the codes, one a byte. */
typedef struct block {
    int lane;
    char *scales, *super;
    uint8_t codes[32];
} block;

/* Takes 32 columns out of a block of the file; `part` says which 32 of a longer one. */
typedef void unpacker(const uint8_t *p, int part, block *to);

static void put_scales(block *to, uint16_t d, uint16_t m)
{
    put_u16(to->scales, to->lane, d);
    put_u16(to->scales + 32, to->lane, m);
}

static void put_super(block *to, uint16_t d, uint16_t m)
{
    put_u16(to->super, to->lane, d);
    put_u16(to->super + 32, to->lane, m);
}

static void put_factor(block *to, int which, int v)
{
    to->scales[which * 16 + to->lane] = (char)v;
}

static int nibble(const uint8_t *p, int i)
{
    return i < 16 ? p[i] & 15 : p[i - 16] >> 4;
}

/* The fifth bit of code i. */
static int fifth(const uint8_t *p, int i)
{
    return (p[i / 8] >> i % 8 & 1) << 4;
}

static void unpack_q8_0(const uint8_t *p, int part, block *to)
{
    (void)part;
    put_u16(to->scales, to->lane, u16_at(p));
    for (int i = 0; i < 32; i++) to->codes[i] = (uint8_t)(p[2 + i] ^ 0x80);
}

static void unpack_q4_0(const uint8_t *p, int part, block *to)
{
    (void)part;
    put_u16(to->scales, to->lane, u16_at(p));
    for (int i = 0; i < 32; i++) to->codes[i] = (uint8_t)nibble(p + 2, i);
}

static void unpack_q4_1(const uint8_t *p, int part, block *to)
{
    (void)part;
    put_scales(to, u16_at(p), u16_at(p + 2));
    for (int i = 0; i < 32; i++) to->codes[i] = (uint8_t)nibble(p + 4, i);
}

static void unpack_q5_0(const uint8_t *p, int part, block *to)
{
    (void)part;
    put_u16(to->scales, to->lane, u16_at(p));
    for (int i = 0; i < 32; i++)
        to->codes[i] = (uint8_t)(nibble(p + 6, i) + fifth(p + 2, i) - 16 + 128);
}

static void unpack_q5_1(const uint8_t *p, int part, block *to)
{
    (void)part;
    put_scales(to, u16_at(p), u16_at(p + 2));
    for (int i = 0; i < 32; i++)
        to->codes[i] = (uint8_t)(nibble(p + 8, i) + fifth(p + 4, i) + 128);
}

/* Two bits a code: 64 bytes hold 256 columns, a byte one of each 32 of 128. */
static int two_bits(const uint8_t *p, int part, int i)
{
    return p[part / 4 * 32 + i] >> part % 4 * 2 & 3;
}

static void unpack_q2_k(const uint8_t *p, int part, block *to)
{
    put_super(to, u16_at(p + 80), u16_at(p + 82));
    for (int half = 0; half < 2; half++) {
        put_factor(to, half, p[part * 2 + half] & 15);
        put_factor(to, 2 + half, p[part * 2 + half] >> 4);
    }
    for (int i = 0; i < 32; i++) to->codes[i] = (uint8_t)two_bits(p + 16, part, i);
}

/* Factor i of 16 of six bits: the low four of all, two a byte, then the high two,
 * four. */
static int q3_factor(const uint8_t *s, int i)
{
    int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
    return (low | (s[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32;
}

/* The third bit of a code lowers it by 4 where it is not set; a panel's nibbles mean 8
 * less than they say. */
static void unpack_q3_k(const uint8_t *p, int part, block *to)
{
    put_u16(to->super, to->lane, u16_at(p + 108));
    for (int half = 0; half < 2; half++)
        put_factor(to, half, q3_factor(p + 96, part * 2 + half));
    for (int i = 0; i < 32; i++) {
        int third = (p[i] >> part & 1) << 2;
        to->codes[i] = (uint8_t)(two_bits(p + 32, part, i) + third + 4);
    }
}

/* The six-bit factors of Q4_K and Q5_K: scale and minimum of 32 columns. */
static void put_k_factors(const uint8_t *s, int i, block *to)
{
    int scale = s[i] & 63, min = s[i + 4] & 63;
    if (i >= 4) {
        scale = (s[i + 4] & 15) | (s[i - 4] >> 6) << 4;
        min = (s[i + 4] >> 4) | (s[i] >> 6) << 4;
    }
    put_factor(to, 0, scale);
    put_factor(to, 1, min);
}

static int k_nibble(const uint8_t *p, int part, int i)
{
    int pair = p[part / 2 * 32 + i];
    return part % 2 ? pair >> 4 : pair & 15;
}

static void unpack_q4_k(const uint8_t *p, int part, block *to)
{
    put_super(to, u16_at(p), u16_at(p + 2));
    put_k_factors(p + 4, part, to);
    for (int i = 0; i < 32; i++) to->codes[i] = (uint8_t)k_nibble(p + 16, part, i);
}

static void unpack_q5_k(const uint8_t *p, int part, block *to)
{
    put_super(to, u16_at(p), u16_at(p + 2));
    put_k_factors(p + 4, part, to);
    for (int i = 0; i < 32; i++) {
        int high = (p[16 + i] >> part & 1) << 4;
        to->codes[i] = (uint8_t)(k_nibble(p + 48, part, i) + high + 128);
    }
}

static void unpack_q6_k(const uint8_t *p, int part, block *to)
{
    const uint8_t *low = p + part / 4 * 64 + part % 2 * 32;
    put_u16(to->super, to->lane, u16_at(p + 208));
    put_factor(to, 0, p[192 + part * 2]);
    put_factor(to, 1, p[192 + part * 2 + 1]);
    for (int i = 0; i < 32; i++) {
        int l = part % 4 < 2 ? low[i] & 15 : low[i] >> 4;
        to->codes[i] = (uint8_t)((l | two_bits(p + 128, part, i) << 4) - 32 + 128);
    }
}

/* What the sixteen codes of IQ4_NL and IQ4_XS stand for. */
static uint8_t iq4_code(int i)
{
    static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
    return (uint8_t)(values[i] + 128);
}

static void unpack_iq4_nl(const uint8_t *p, int part, block *to)
{
    (void)part;
    put_u16(to->scales, to->lane, u16_at(p));
    for (int i = 0; i < 32; i++) to->codes[i] = iq4_code(nibble(p + 2, i));
}

/* One factor for 32 columns: four bits of it here, two there. */
static void unpack_iq4_xs(const uint8_t *p, int part, block *to)
{
    int low = p[4 + part / 2] >> part % 2 * 4 & 15, high = u16_at(p + 2) >> part * 2 & 3;
    put_u16(to->super, to->lane, u16_at(p));
    put_factor(to, 0, (low | high << 4) - 32);
    put_factor(to, 1, (low | high << 4) - 32);
    for (int i = 0; i < 32; i++) to->codes[i] = iq4_code(nibble(p + 8 + part * 16, i));
}

/* A quantized type: the type whose panels can hold it without loss, and how it gets
 * there. */
static const struct {
    int panel;
    unpacker *unpack;
} quantized[PL_N_TYPES] = {
    [PL_Q8_0] = {PL_Q8_0, unpack_q8_0},     [PL_Q4_0] = {PL_Q4_0, unpack_q4_0},
    [PL_Q4_1] = {PL_Q4_1, unpack_q4_1},     [PL_Q5_0] = {PL_Q8_0, unpack_q5_0},
    [PL_Q5_1] = {PL_Q5_1, unpack_q5_1},     [PL_Q2_K] = {PL_Q2_K, unpack_q2_k},
    [PL_Q3_K] = {PL_Q3_K, unpack_q3_k},     [PL_Q4_K] = {PL_Q4_K, unpack_q4_k},
    [PL_Q5_K] = {PL_Q5_K, unpack_q5_k},     [PL_Q6_K] = {PL_Q6_K, unpack_q6_k},
    [PL_IQ4_NL] = {PL_Q8_0, unpack_iq4_nl}, [PL_IQ4_XS] = {PL_Q6_K, unpack_iq4_xs},
};

/* How panels lie: bits of a code, bytes of scales for 16 rows per 32 columns and per 256,
 * whether codes have a minimum, and whether 16 columns have factors of their own. */
typedef struct layout {
    int bits, scales, super;
    bool min, halves;
} layout;

static const layout layouts[PL_N_TYPES] = {
    [PL_Q8_0] = {8, 32, 0, false, false}, [PL_Q4_0] = {4, 32, 0, false, false},
    [PL_Q4_1] = {4, 64, 0, true, false},  [PL_Q5_1] = {8, 64, 0, true, false},
    [PL_Q2_K] = {4, 64, 64, true, true},  [PL_Q3_K] = {4, 32, 32, false, true},
    [PL_Q4_K] = {4, 32, 64, true, false}, [PL_Q5_K] = {8, 32, 64, true, false},
    [PL_Q6_K] = {8, 32, 32, false, true},
};

/* ---- panels ------------------------------------------------------------------------ */

typedef struct packing {
    pl_cpu_matrix *m;
    int type; /* as the file has it */
    const uint8_t *data;
} packing;

static void pack_quantized(const packing *j, char *panel, const uint8_t *rows, int n)
{
    const pl_cpu_matrix *m = j->m;
    const layout *l = layouts + m->type;
    int columns = pl_packings[j->type].values;
    size_t row_bytes = pl_type_bytes(j->type, m->k);
    for (int lane = 0; lane < n; lane++) {
        for (int b = 0; b < m->k / 32; b++) {
            block to = {.lane = lane,
                        .scales = panel + m->scales_at + (size_t)(b * l->scales),
                        .super = panel + m->supers_at + (size_t)(b / 8 * l->super)};
            char *at = panel + b * l->bits * 64 + lane * 4;
            const uint8_t *from = rows + (size_t)lane * row_bytes +
                                  pl_type_bytes(j->type, b * 32 / columns * columns);
            quantized[j->type].unpack(from, b * 32 % columns / 32, &to);
            for (int i = 0; l->bits == 4 && i < 16; i++)
                to.codes[i] |= (uint8_t)(to.codes[i + 16] << 4);
            for (int g = 0; g < l->bits; g++) memcpy(at + g * 64, to.codes + g * 4, 4);
        }
    }
}

static void pack_plain(pl_cpu_matrix *m, char *panel, const uint8_t *rows, int n)
{
    size_t size = m->type == PL_F32 ? 4 : 2;
    for (int lane = 0; lane < n; lane++) {
        for (int k = 0; k < m->k; k++) {
            size_t at = m->type == PL_BF16 ? (size_t)(k / 2 * 32 + lane * 2 + k % 2)
                                           : (size_t)(k * 16 + lane);
            memcpy(panel + at * size,
                   rows + ((size_t)lane * (size_t)m->k + (size_t)k) * size, size);
        }
    }
}

static void pack_panel(void *arg, int p, int thread)
{
    (void)thread;
    packing *job = arg;
    pl_cpu_matrix *m = job->m;
    int n = PL_MIN(m->n - p * PL_PANEL, PL_PANEL);
    char *panel = m->panels + (size_t)p * m->panel_bytes;
    const uint8_t *rows =
        job->data + (size_t)p * PL_PANEL * pl_type_bytes(job->type, m->k);
    if (layouts[m->type].bits) {
        pack_quantized(job, panel, rows, n);
    } else {
        pack_plain(m, panel, rows, n);
    }
}

static size_t align64(size_t n)
{
    return (n + 63) / 64 * 64;
}

pl_status pl_cpu_matrix_open(pl_device *d, int type, int64_t n, int64_t k,
                             const void *data, pl_matrix **out)
{
    int panel = quantized[type].unpack ? quantized[type].panel : type;
    const layout *l = layouts + panel;
    if (k % pl_packings[type].values) {
        return pl_fail(PL_EUNSUPPORTED,
                       "%d columns of a quantized type, wanted a multiple of %d", (int)k,
                       pl_packings[type].values);
    }
    pl_matrix *w = pl_alloc(sizeof *w);
    pl_cpu_matrix *m = &w->m;
    *m = (pl_cpu_matrix){.type = panel, .n = (int32_t)n, .k = (int32_t)k};
    m->n_panels = (int32_t)((n + PL_PANEL - 1) / PL_PANEL);
    if (l->bits) {
        m->scales_at = (size_t)(k / 32 * l->bits * 64);
        m->supers_at = m->scales_at + (size_t)(k / 32 * l->scales);
        m->panel_bytes = align64(m->supers_at + (size_t)(k / 256 * l->super));
    } else {
        m->panel_bytes =
            align64((size_t)((k + 1) / 2 * 2) * PL_PANEL * (type == PL_F32 ? 4 : 2));
    }
    w->bytes = (size_t)m->n_panels * m->panel_bytes;
    m->panels = pl_alloc_big(w->bytes);
    if (!m->panels) {
        size_t bytes = w->bytes;
        pl_free(w);
        return pl_fail(PL_ENOMEM, "no %zu bytes for weights", bytes);
    }
    packing job = {m, type, data};
    pl_pool_run(pl_cpu_of(d)->pool, pack_panel, &job, m->n_panels);
    *out = w;
    return PL_OK;
}

void pl_cpu_matrix_close(pl_device *d, pl_matrix *w)
{
    (void)d;
    if (!w) return;
    pl_free_big(w->m.panels, w->bytes);
    pl_free(w);
}

/* ---- a row out of them ------------------------------------------------------------- */

static float f16_of(const char *p, int lane)
{
    uint16_t v;
    memcpy(&v, p + lane * 2, 2);
    return pl_f32_from_f16(v);
}

static void row_block(const pl_cpu_matrix *m, const char *panel, int lane, int b,
                      float *out)
{
    const layout *l = layouts + m->type;
    const char *scales = panel + m->scales_at + (size_t)(b * l->scales);
    const char *super = panel + m->supers_at + (size_t)(b / 8 * l->super);
    int step = l->halves ? 16 : 0; /* to the other half's factors */
    float d[2], min[2] = {0, 0}, offset = l->bits == 8 ? 128 : l->min ? 0 : 8;
    for (int half = 0; half < 2; half++) {
        const char *at = scales + half * step + lane;
        if (!l->super) {
            d[half] = f16_of(scales, lane);
            if (l->min) min[half] = f16_of(scales + 32, lane);
            continue;
        }
        /* With a minimum factors are unsigned, else of either sign. */
        float factor = l->min ? (float)(uint8_t)*at : (float)(int8_t)*at;
        d[half] = f16_of(super, lane) * factor;
        if (l->min)
            min[half] = -(f16_of(super + 32, lane) * (float)(uint8_t)at[16 + step]);
    }
    for (int i = 0; i < 32; i++) {
        int low = l->bits == 4 && i >= 16;
        int at = (low ? i / 4 - 4 : i / 4) * 64 + lane * 4 + i % 4;
        int code = (uint8_t)panel[b * l->bits * 64 + at];
        if (l->bits == 4) code = low ? code >> 4 : code & 15;
        out[i] = fmaf((float)code - offset, d[i / 16], min[i / 16]);
    }
}

void pl_cpu_matrix_row(const pl_cpu_matrix *m, int row, float *out)
{
    const char *panel = m->panels + (size_t)(row / PL_PANEL) * m->panel_bytes;
    int lane = row % PL_PANEL;
    for (int b = 0; layouts[m->type].bits && b < m->k / 32; b++) {
        row_block(m, panel, lane, b, out + b * 32);
    }
    for (int k = 0; !layouts[m->type].bits && k < m->k; k++) {
        if (m->type == PL_F32) {
            memcpy(out + k, panel + (size_t)(k * 16 + lane) * 4, 4);
        } else if (m->type == PL_F16) {
            out[k] = f16_of(panel + (size_t)k * 32, lane);
        } else {
            char *to = (char *)(out + k);
            out[k] = 0;
            memcpy(to + 2, panel + (size_t)(k / 2 * 32 + lane * 2 + k % 2) * 2, 2);
        }
    }
}

/* Through a panel that has no other rows, a block of the file at a time. */
void pl_type_row(int type, const void *row, int32_t n, float *out)
{
    enum {
        LONGEST = 256,
        ROOM = (LONGEST + LONGEST / 8 + 4) * PL_PANEL /* codes, scales, super */
    };
    char panel[ROOM];
    const layout *l = layouts + quantized[type].panel;
    int columns = pl_packings[type].values;
    pl_cpu_matrix m = {.type = quantized[type].panel, .n = 1, .k = columns};
    packing job = {&m, type, NULL};
    m.scales_at = (size_t)(columns / 32 * l->bits * 64);
    m.supers_at = m.scales_at + (size_t)(columns / 32 * l->scales);
    for (int32_t at = 0; at < n; at += columns) {
        pack_quantized(&job, panel, (const uint8_t *)row + pl_type_bytes(type, at), 1);
        for (int b = 0; b < columns / 32; b++)
            row_block(&m, panel, 0, b, out + at + b * 32);
    }
}
