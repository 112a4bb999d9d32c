/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights into panels (cpu.h draws them), and a row out of them again for the embedding.
 */
#include "device_cpu.h"

#include <math.h>
#include <string.h>

/* How a quantized type lies in a file and in a panel. */
typedef struct layout {
    int block;         /* columns of a block in the file; 0: not quantized */
    int bits;          /* of a code in the panel */
    int scales, super; /* bytes for 16 rows: per 32 columns; per 256 */
} layout;

static const layout layouts[PL_N_TYPES] = {
    [PL_Q8_0] = {32, 8, 32, 0},   [PL_Q4_0] = {32, 4, 32, 0},
    [PL_Q4_1] = {32, 4, 64, 0},   [PL_Q4_K] = {256, 4, 32, 64},
    [PL_Q5_K] = {256, 8, 32, 64}, [PL_Q6_K] = {256, 8, 32, 32},
};

static uint16_t u16_at(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static void put_u16(char *p, uint16_t v)
{
    memcpy(p, &v, 2);
}

/* ---- one row's columns of a block: codes as the panel has them, one a byte --------- */

/* The six-bit factors of Q4_K and Q5_K: scale and minimum of 32 columns. */
static void k_factors(const uint8_t *s, int i, uint8_t *scale, uint8_t *min)
{
    if (i < 4) {
        *scale = s[i] & 63;
        *min = s[i + 4] & 63;
    } else {
        *scale = (uint8_t)((s[i + 4] & 15) | (s[i - 4] >> 6) << 4);
        *min = (uint8_t)((s[i + 4] >> 4) | (s[i] >> 6) << 4);
    }
}

static void nibbles(const uint8_t *p, uint8_t *codes)
{
    for (int i = 0; i < 16; i++) {
        codes[i] = p[i] & 15;
        codes[i + 16] = p[i] >> 4;
    }
}

/* Block `b` of 32 columns of a Q6_K row, codes + 128 - 32. */
static void q6_codes(const uint8_t *super, int b, uint8_t *codes)
{
    const uint8_t *low = super + b / 4 * 64 + b % 2 * 32,
                  *high = super + 128 + b / 4 * 32;
    for (int i = 0; i < 32; i++) {
        int l = b % 4 < 2 ? low[i] & 15 : low[i] >> 4;
        codes[i] = (uint8_t)((l | (high[i] >> (b % 4 * 2) & 3) << 4) + 96);
    }
}

/* 32 columns of the file's block `p` to codes, and its scales to their place among the
 * panel's. */
static void unpack_block(int type, const uint8_t *p, int b, int lane, char *scales,
                         char *super, uint8_t *codes)
{
    const layout *l = layouts + type;
    int in = b * 32 % l->block / 32; /* which 32 of the file's block */
    if (type == PL_Q8_0) {
        put_u16(scales + lane * 2, u16_at(p));
        for (int i = 0; i < 32; i++) codes[i] = (uint8_t)(p[2 + i] ^ 0x80);
    } else if (type == PL_Q4_0 || type == PL_Q4_1) {
        put_u16(scales + lane * 2, u16_at(p));
        if (type == PL_Q4_1) put_u16(scales + 32 + lane * 2, u16_at(p + 2));
        nibbles(p + (type == PL_Q4_1 ? 4 : 2), codes);
    } else if (type == PL_Q6_K) {
        put_u16(super + lane * 2, u16_at(p + 208));
        scales[lane] = (char)p[192 + in * 2];
        scales[16 + lane] = (char)p[192 + in * 2 + 1];
        q6_codes(p, in, codes);
    } else {
        uint8_t scale, min;
        k_factors(p + 4, in, &scale, &min);
        put_u16(super + lane * 2, u16_at(p));
        put_u16(super + 32 + lane * 2, u16_at(p + 2));
        scales[lane] = (char)scale;
        scales[16 + lane] = (char)min;
        const uint8_t *q = p + (type == PL_Q4_K ? 16 : 48) + in / 2 * 32;
        for (int i = 0; i < 32; i++) {
            int code = in % 2 ? q[i] >> 4 : q[i] & 15;
            if (type == PL_Q5_K) code += (p[16 + i] >> in & 1) * 16 + 128;
            codes[i] = (uint8_t)code;
        }
    }
}

/* ---- panels ------------------------------------------------------------------------ */

static void pack_quantized(pl_cpu_matrix *m, char *panel, const uint8_t *rows, int n)
{
    const layout *l = layouts + m->type;
    size_t row_bytes = pl_type_bytes(m->type, m->k);
    size_t block_bytes = pl_type_bytes(m->type, l->block);
    for (int lane = 0; lane < n; lane++) {
        for (int b = 0; b < m->k / 32; b++) {
            uint8_t codes[32];
            char *at = panel + b * l->bits * 64 + lane * 4;
            const uint8_t *from = rows + (size_t)lane * row_bytes +
                                  (size_t)(b * 32 / l->block) * block_bytes;
            unpack_block(m->type, from, b, lane,
                         panel + m->scales_at + (size_t)(b * l->scales),
                         panel + m->supers_at + (size_t)(b / 8 * l->super), codes);
            for (int i = 0; l->bits == 4 && i < 16; i++) codes[i] |= codes[i + 16] << 4;
            for (int g = 0; g < l->bits; g++) memcpy(at + g * 64, codes + g * 4, 4);
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

typedef struct packing {
    pl_cpu_matrix *m;
    const uint8_t *data;
} packing;

static void pack_panel(void *arg, int p, int thread)
{
    (void)thread;
    packing *job = arg;
    pl_cpu_matrix *m = job->m;
    int n = PL_MIN(m->n - p * PL_PANEL, PL_PANEL);
    char *panel = m->panels + (size_t)p * m->panel_bytes;
    const uint8_t *rows = job->data + (size_t)p * PL_PANEL * pl_type_bytes(m->type, m->k);
    if (layouts[m->type].block) {
        pack_quantized(m, panel, rows, n);
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
    const layout *l = layouts + type;
    if (l->block && k % l->block) {
        return pl_fail(PL_EUNSUPPORTED,
                       "%d columns of a quantized type, wanted a multiple of %d", (int)k,
                       l->block);
    }
    pl_matrix *w = pl_alloc(sizeof *w);
    pl_cpu_matrix *m = &w->m;
    *m = (pl_cpu_matrix){.type = type, .n = (int32_t)n, .k = (int32_t)k};
    m->n_panels = (int32_t)((n + PL_PANEL - 1) / PL_PANEL);
    if (l->block) {
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
    packing job = {m, data};
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
    float d[2], min = 0, offset = l->bits == 8 ? 128 : m->type == PL_Q4_0 ? 8 : 0;
    if (l->super == 32) {
        d[0] = f16_of(super, lane) * (float)(int8_t)scales[lane];
        d[1] = f16_of(super, lane) * (float)(int8_t)scales[16 + lane];
    } else if (l->super) {
        d[0] = d[1] = f16_of(super, lane) * (float)(uint8_t)scales[lane];
        min = -(f16_of(super + 32, lane) * (float)(uint8_t)scales[16 + lane]);
    } else {
        d[0] = d[1] = f16_of(scales, lane);
        if (m->type == PL_Q4_1) min = f16_of(scales + 32, lane);
    }
    for (int i = 0; i < 32; i++) {
        int low = l->bits == 4 && i >= 16;
        int at = (low ? i / 4 - 4 : i / 4) * 64 + lane * 4 + i % 4;
        int code = (uint8_t)panel[b * l->bits * 64 + at];
        if (l->bits == 4) code = low ? code >> 4 : code & 15;
        out[i] = fmaf((float)code - offset, d[i / 16], min);
    }
}

void pl_cpu_matrix_row(const pl_cpu_matrix *m, int row, float *out)
{
    const char *panel = m->panels + (size_t)(row / PL_PANEL) * m->panel_bytes;
    int lane = row % PL_PANEL;
    for (int b = 0; layouts[m->type].block && b < m->k / 32; b++) {
        row_block(m, panel, lane, b, out + b * 32);
    }
    for (int k = 0; !layouts[m->type].block && k < m->k; k++) {
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
