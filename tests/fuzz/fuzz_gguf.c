/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_gguf.c - a GGUF file of any content opens or is refused, and leads nowhere
 * outside.
 *
 * The magic and a version are put before the input, so that it is the rest that varies.
 * Matrices are packed, as a model would, and multiplied by a row.
 */
#include "perilune.h"
#include "weights.h"

#include <stdlib.h>
#include <string.h>

static volatile uint64_t seen; /* so that what is read is really read */

static uint64_t touch(const void *data, size_t bytes)
{
    const unsigned char *p = data;
    return bytes ? (uint64_t)p[0] + p[bytes - 1] : 0;
}

static uint64_t read_meta(const pl_weights *w, const char *key)
{
    pl_meta m, item;
    uint64_t sum = 0;
    if (pl_weights_meta(w, key, &m) != PL_OK) abort();
    if (m.kind == PL_JSON_STRING) sum += touch(m.string, m.len);
    for (int i = 0; m.kind == PL_JSON_ARRAY && i < m.n; i++) {
        if (pl_weights_meta_item(w, key, i, &item) != PL_OK) abort();
        if (item.kind == PL_JSON_STRING) sum += touch(item.string, item.len);
    }
    return sum;
}

static void multiply(const pl_tensor *t)
{
    enum {
        MOST = 1 << 12
    };
    static float row[MOST], out[MOST];
    if (t->n_dims != 2 || t->dims[0] > MOST || t->dims[1] > MOST) return;
    if (pl_kernel_linear("scalar", 1, t, PL_ACT_INT8X2, row, 1, out) == PL_OK)
        seen += touch(out, (size_t)t->dims[0] * sizeof *out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char head[] = "GGUF\3\0\0";
    unsigned char *file = malloc(sizeof head + size);
    if (!file) return 0;
    memcpy(file, head, sizeof head);
    file[4] = size % 2 ? 2 : 3;
    if (size) memcpy(file + sizeof head, data, size);
    pl_weights *w = pl_weights_parse("input", file, sizeof head + size);
    for (int i = 0; w && i < pl_weights_count(w); i++) {
        const pl_tensor *t = pl_weights_get(w, i);
        if (pl_weights_find(w, t->name) != t) abort();
        seen += touch(t->data, (size_t)t->bytes);
        multiply(t);
    }
    for (int i = 0; w && i < w->n_metas; i++) seen += read_meta(w, w->metas[i].key);
    if (w) seen += pl_weights_fingerprint(w, "", 0, 0);
    pl_weights_close(w);
    free(file);
    return 0;
}
