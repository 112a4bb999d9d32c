/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_safetensors.c - a safetensors file of any content opens or is refused.
 *
 * The input's first two bytes are the header's length (so that it is plausible more often
 * than eight would be), then come the header and the tensors' bytes.
 */
#include "weights.h"

#include <stdlib.h>
#include <string.h>

static volatile uint64_t seen; /* so that what is read is really read */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    unsigned char *file = calloc(1, size + 6);
    if (!file) return 0;
    memcpy(file, data, 2);
    memcpy(file + 8, data + 2, size - 2);
    pl_weights *w = pl_weights_parse("input", file, size + 6);
    for (int i = 0; w && i < pl_weights_count(w); i++) {
        const pl_tensor *t = pl_weights_get(w, i);
        const unsigned char *p = t->data;
        if (pl_weights_find(w, t->name) != t) abort();
        if (t->bytes) seen += (uint64_t)p[0] + p[t->bytes - 1];
    }
    if (w) seen += pl_weights_fingerprint(w, "", 0, 0);
    pl_weights_close(w);
    free(file);
    return 0;
}
