/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_text.c - a tokenizer built from bytes reads a text made of bytes.
 *
 * The input is a list of records, a tag and a length before each: tokens, merges, a
 * pre-tokenizer; what follows the tag 0 is the text. Checked besides memory: the stream
 * decodes to what the whole does, and ids stay in range.
 */
#include "text.h"

#include <stdlib.h>
#include <string.h>

typedef struct input {
    const uint8_t *p;
    size_t len;
} input;

static uint8_t take(input *in)
{
    if (!in->len) return 0;
    in->len--;
    return *in->p++;
}

static input take_string(input *in)
{
    size_t n = (size_t)take(in) & 63;
    n = PL_MIN(n, in->len);
    input s = {in->p, n};
    in->p += n;
    in->len -= n;
    return s;
}

static pl_text *open_text(input *in)
{
    uint8_t a = take(in), b = take(in);
    pl_text_options o = {.kind = a & 1,
                         .vocab_size = 300,
                         .nfc = a >> 1 & 1,
                         .ignore_merges = a >> 2 & 1,
                         .fuse_unk = a >> 3 & 1,
                         .unk_id = (a >> 4 & 1) - 1,
                         .prefix_space = b & 3};
    if (o.kind == PL_TEXT_PIECES) {
        o.byte_fallback = a >> 5 & 1;
        o.by_score = a >> 6 & 1;
        o.metaspace = a >> 7;
        o.strip_left = (b >> 2 & 3) - 1;
    }
    return pl_text_open(&o);
}

static void fill(pl_text *t, input *in)
{
    int32_t id = 0;
    for (uint8_t tag; (tag = take(in)) != 0;) {
        input s = take_string(in);
        const char *p = (const char *)s.p;
        if (tag < 160) {
            pl_text_token(t, id++, p, s.len, tag & 0xf3, (float)take(in));
        } else if (tag < 240) {
            size_t left = (size_t)take(in) & 15;
            left = PL_MIN(left, s.len);
            pl_text_merge(t, p, left, p + left, s.len - left);
        } else {
            pl_text_split(t, p, s.len);
        }
    }
}

static void check_stream(const pl_text *t, const int32_t *ids, int n, int skip)
{
    pl_buf whole = {0}, parts = {0};
    if (pl_text_decode(t, ids, n, skip, &whole) < 0) abort();
    pl_detok *d = pl_detok_open(t, skip);
    for (int i = 0; i < n; i++) pl_detok_push(d, ids[i], &parts);
    pl_detok_flush(d, &parts);
    pl_detok_close(d);
    if (whole.len != parts.len ||
        (whole.len && memcmp(whole.data, parts.data, whole.len) != 0))
        abort();
    if (!pl_utf8_valid(whole.data, whole.len)) abort();
    pl_buf_fini(&whole);
    pl_buf_fini(&parts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    pl_text *t = open_text(&in);
    if (!t) return 0;
    fill(t, &in);
    pl_buf ids = {0};
    if (pl_text_ready(t) >= 0 &&
        pl_text_encode(t, (const char *)in.p, in.len, data[0] & 1, &ids) >= 0) {
        const int32_t *p = (const int32_t *)ids.data;
        int n = (int)(ids.len / sizeof *p);
        for (int i = 0; i < n; i++)
            if (pl_text_token_kind(t, p[i]) < 0) abort();
        check_stream(t, p, n, 0);
    }
    if (pl_text_size(t) && in.len >= sizeof(int32_t) * 2) {
        int32_t odd[16];
        int n = (int)PL_MIN(in.len, 16);
        for (int i = 0; i < n; i++) odd[i] = in.p[i] - 2;
        pl_buf any = {0};
        if (pl_text_decode(t, odd, n, 1, &any) >= 0) check_stream(t, odd, n, 1);
        pl_buf_fini(&any);
    }
    pl_buf_fini(&ids);
    pl_text_close(t);
    return 0;
}
