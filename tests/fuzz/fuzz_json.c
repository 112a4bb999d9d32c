/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_json.c - libFuzzer: any bytes to the JSON reader; what it accepts is walked.
 */
#include "perilune.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void walk(const pl_json *v, int depth)
{
    size_t len = 0;
    int32_t ids[64];
    if (depth > 512) abort();
    switch (pl_json_kind(v)) {
    case PL_JSON_STRING:
        if (strlen(pl_json_string(v, &len)) > len) abort();
        break;
    case PL_JSON_ARRAY: {
        int n = 0;
        pl_json_ints(v, ids, 64);
        for (const pl_json *at = NULL; (at = pl_json_next(v, at)); n++) {
            if (n < 64 && pl_json_item(v, n) != at) abort();
            walk(at, depth + 1);
        }
        if (n != pl_json_size(v)) abort();
        break;
    }
    case PL_JSON_OBJECT: {
        int n = 0;
        for (const pl_json *at = NULL; (at = pl_json_next(v, at)); n++) {
            const char *key = pl_json_string(at, &len);
            if (strlen(key) != len) abort();
            if (n < 64 && pl_json_find(v, key) < pl_json_value(at)) abort();
            walk(pl_json_value(at), depth + 1);
        }
        if (n != pl_json_size(v)) abort();
        break;
    }
    default:
        if (pl_json_kind(v) == PL_JSON_INTEGER) pl_json_integer(v);
        if (pl_json_digits(v) && pl_json_kind(v) != PL_JSON_INTEGER) abort();
        pl_json_number(v);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    pl_json *doc = pl_json_open((const char *)data, size);
    if (!doc && !*pl_error_text()) abort();
    if (doc) walk(doc, 0);
    pl_json_close(doc);
    return 0;
}
