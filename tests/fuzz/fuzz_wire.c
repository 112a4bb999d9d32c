/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_wire.c - what another process may say: a sequence (first byte 0), a heartbeat (2),
 * changes of a cache (3), or tokens.
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
    s->ticket = 0; /* which a copy does not have: KV is on its way to one sequence only */
    first.len = 0;
    pl_wire_put_seq(&first, s);
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

static void put_beat(pl_buf *out, const pl_beat *b)
{
    pl_wire_put_beat(out, b->serial);
    for (uint32_t i = 0; i < PL_BEAT_ENGINES; i++)
        if (b->there >> i & 1) pl_wire_put_engine(out, i, &b->engines[i], b->now_ns);
}

static void read_beat(const uint8_t *data, size_t size)
{
    enum {
        NOW = 1000000000
    };
    pl_beat b, again;
    pl_buf first = {0}, second = {0};
    if (pl_wire_get_beat(data, size, NOW, &b) < 0) return;
    for (int i = 0; i < PL_BEAT_ENGINES; i++) {
        const pl_engine_stats *st = &b.engines[i];
        MUST(st->running >= 0 && st->waiting >= 0 && st->blocks >= 0 && st->steps >= 0);
        MUST(st->last_step_ns >= 0 && st->last_step_ns <= NOW);
    }
    put_beat(&first, &b);
    MUST(pl_wire_get_beat(first.data, first.len, NOW, &again) == 0);
    MUST(again.serial == b.serial && again.there == b.there);
    put_beat(&second, &again);
    MUST(is_same(&first, &second));
    pl_buf_fini(&first);
    pl_buf_fini(&second);
}

static void read_changes(const uint8_t *data, size_t size)
{
    pl_changes *c, *again;
    pl_buf first = {0}, second = {0};
    if (pl_wire_get_changes(data, size, &c) < 0) {
        MUST(*pl_error_text());
        return;
    }
    int64_t n = 0;
    for (int32_t i = 0; i < c->n_runs; i++) n += c->runs[i].n;
    MUST(n == c->n_keys && c->before <= c->after && !c->blocks);
    pl_wire_put_changes(&first, c);
    MUST(pl_wire_get_changes(first.data, first.len, &again) == 0);
    MUST(again->is_whole == c->is_whole);
    pl_wire_put_changes(&second, again);
    MUST(is_same(&first, &second));
    pl_buf_fini(&first);
    pl_buf_fini(&second);
    pl_changes_put(c);
    pl_changes_put(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    if (data[0] == 2)
        read_beat(data + 1, size - 1);
    else if (data[0] == 3)
        read_changes(data + 1, size - 1);
    else if (data[0])
        read_tokens(data + 1, size - 1);
    else
        read_seq(data + 1, size - 1);
    return 0;
}
