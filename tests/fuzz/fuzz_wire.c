/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_wire.c - what another process may say: a sequence (first byte 0) or tokens.
 *
 * Checked besides memory: what was understood, written again, is read as the same.
 */
#include "wire.h"

#include <stdlib.h>
#include <string.h>

#define MUST(cond)            \
    do {                      \
        if (!(cond)) abort(); \
    } while (0)

static bool is_same(const pl_buf *a, const pl_buf *b)
{
    return a->len == b->len && (!a->len || !memcmp(a->data, b->data, a->len));
}

static void read_seq(const uint8_t *data, size_t size)
{
    pl_seq *s = NULL, *again = NULL;
    if (pl_wire_get_seq(data, size, &s) < 0) {
        MUST(*pl_error_text());
        return;
    }
    pl_buf first = {0}, second = {0};
    pl_wire_put_seq(&first, s);
    MUST(pl_wire_get_seq(first.data, first.len, &again) == 0);
    pl_seq *copy = pl_seq_copy(s);
    MUST(again->id != s->id && copy->id != s->id);
    pl_wire_put_seq(&second, again);
    MUST(is_same(&first, &second));
    second.len = 0;
    pl_wire_put_seq(&second, copy);
    MUST(is_same(&first, &second));
    pl_seq_check(s, 1000); /* walks all that is in it */
    pl_seq_sampler(s);
    pl_buf_fini(&first);
    pl_buf_fini(&second);
    pl_seq_close(again);
    pl_seq_close(copy);
    pl_seq_close(s);
}

static void read_token(const pl_token *t, int64_t waited_ns)
{
    pl_buf once = {0}, twice = {0}, tops = {0};
    pl_wire_put_token(&once, t, t->seq, waited_ns);
    const char *at = once.data;
    pl_token again;
    int64_t waited_again;
    MUST(pl_wire_get_token(&at, once.data + once.len, &again, &waited_again, &tops) == 0);
    MUST(at == once.data + once.len && waited_again == waited_ns);
    MUST(t->token >= 0 || t->finish);
    pl_wire_put_token(&twice, &again, again.seq, waited_again);
    MUST(is_same(&once, &twice));
    pl_buf_fini(&once);
    pl_buf_fini(&twice);
    pl_buf_fini(&tops);
}

static void read_tokens(const uint8_t *data, size_t size)
{
    const char *at = (const char *)data, *end = at + size;
    pl_buf tops = {0};
    while (at < end) {
        const char *before = at;
        pl_token t;
        int64_t waited_ns;
        if (pl_wire_get_token(&at, end, &t, &waited_ns, &tops) < 0) {
            MUST(at == before);
            break;
        }
        read_token(&t, waited_ns);
    }
    pl_buf_fini(&tops);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    if (data[0])
        read_tokens(data + 1, size - 1);
    else
        read_seq(data + 1, size - 1);
    return 0;
}
