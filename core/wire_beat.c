/* SPDX-License-Identifier: Apache-2.0
 *
 * wire_beat.c - what a process's engines count, as it says twice a second.
 *
 * Owns     the tags of counters: a new one is a row, and a reader skips one it does not
 *          know.
 * Ignores  who says it.
 * Thread   any
 *
 * A heartbeat is the serial of the hello that it goes with (u64), then parts, each a tag,
 * its length and its bytes. A part ENGINE is the engine's index (u32), then for each
 * counter that is not 0 its tag (u32) and value (u64). A moment travels as how long ago
 * it was, for clocks differ.
 */
#include "wire_own.h"

#include <string.h>

enum {
    PART_ENGINE = 1,
    COUNTER_BYTES = 12
};

typedef enum kind {
    COUNT32,
    COUNT64,
    MOMENT
} kind;

static const struct row {
    uint32_t tag;
    kind kind;
    size_t offset;
} rows[] = {
    {1, COUNT32, offsetof(pl_engine_stats, running)},
    {2, COUNT32, offsetof(pl_engine_stats, waiting)},
    {3, COUNT32, offsetof(pl_engine_stats, waiting_remote)},
    {4, COUNT32, offsetof(pl_engine_stats, blocks)},
    {5, COUNT32, offsetof(pl_engine_stats, blocks_used)},
    {6, COUNT32, offsetof(pl_engine_stats, blocks_cached)},
    {7, COUNT64, offsetof(pl_engine_stats, steps)},
    {8, COUNT64, offsetof(pl_engine_stats, preemptions)},
    {9, COUNT64, offsetof(pl_engine_stats, prompt_tokens)},
    {10, COUNT64, offsetof(pl_engine_stats, generation_tokens)},
    {11, COUNT64, offsetof(pl_engine_stats, cached_tokens)},
    {12, COUNT64, offsetof(pl_engine_stats, prefix_queries)},
    {13, COUNT64, offsetof(pl_engine_stats, prefix_hits)},
    {14, COUNT64, offsetof(pl_engine_stats, chunked)},
    {15, COUNT64, offsetof(pl_engine_stats, finished)},
    {16, COUNT64, offsetof(pl_engine_stats, aborted)},
    {17, COUNT64, offsetof(pl_engine_stats, prefill_tokens)},
    {18, MOMENT, offsetof(pl_engine_stats, last_step_ns)},
    {19, MOMENT, offsetof(pl_engine_stats, busy_since_ns)},
    {20, COUNT64, offsetof(pl_engine_stats, blocks_changed)},
};

/* As it travels; 0 and below: it does not. */
static int64_t value_of(const struct row *r, const pl_engine_stats *st, int64_t now_ns)
{
    const char *field = (const char *)st + r->offset;
    int64_t v = r->kind == COUNT32 ? *(const int32_t *)field : *(const int64_t *)field;
    return v && r->kind == MOMENT ? PL_MAX(1, now_ns - v) : v;
}

void pl_wire_put_beat(pl_buf *out, uint64_t serial)
{
    put_u64(out, serial);
}

void pl_wire_put_engine(pl_buf *out, uint32_t index, const pl_engine_stats *st,
                        int64_t now_ns)
{
    uint32_t n = 0;
    for (int i = 0; i < PL_COUNT(rows); i++) n += value_of(&rows[i], st, now_ns) > 0;
    put_u32(out, PART_ENGINE);
    put_u32(out, 4 + n * COUNTER_BYTES);
    put_u32(out, index);
    for (int i = 0; i < PL_COUNT(rows); i++) {
        int64_t v = value_of(&rows[i], st, now_ns);
        if (v <= 0) continue;
        put_u32(out, rows[i].tag);
        put_u64(out, (uint64_t)v);
    }
}

static pl_status take_counter(pl_engine_stats *st, uint32_t tag, uint64_t v,
                              int64_t now_ns)
{
    for (int i = 0; i < PL_COUNT(rows); i++) {
        const struct row *r = &rows[i];
        char *field = (char *)st + r->offset;
        if (r->tag != tag) continue;
        if (v > (r->kind == COUNT32 ? (uint64_t)INT32_MAX : (uint64_t)INT64_MAX))
            return pl_fail(PL_EFORMAT, "counter %u of an engine is out of range", tag);
        if (r->kind == COUNT32)
            *(int32_t *)field = (int32_t)v;
        else
            *(int64_t *)field =
                r->kind == COUNT64 ? (int64_t)v : PL_MAX(1, now_ns - (int64_t)v);
        return PL_OK;
    }
    return PL_OK; /* newer than we are */
}

static pl_status take_engine(part p, pl_beat *out)
{
    if (p.len < 4 || (p.len - 4) % COUNTER_BYTES)
        return pl_fail(PL_EFORMAT, "counters of an engine in %zu bytes", p.len);
    uint32_t index = get_u32(&p);
    if (index >= PL_BEAT_ENGINES)
        return pl_fail(PL_EFORMAT, "engine %u: wanted 0 to %d", index,
                       PL_BEAT_ENGINES - 1);
    pl_engine_stats st = {0};
    while (p.len) {
        uint32_t tag = get_u32(&p);
        PL_TRY(take_counter(&st, tag, get_u64(&p), out->now_ns));
    }
    out->engines[index] = st;
    out->there |= UINT64_C(1) << index;
    return PL_OK;
}

pl_status pl_wire_get_beat(const void *data, size_t len, int64_t now_ns, pl_beat *out)
{
    part p = {data, len};
    *out = (pl_beat){.now_ns = now_ns};
    if (len < 8) return pl_fail(PL_EFORMAT, "a heartbeat of %zu bytes", len);
    out->serial = get_u64(&p);
    while (p.len) {
        if (p.len < 8) return pl_fail(PL_EFORMAT, "a heartbeat ends in a part's head");
        uint32_t tag = get_u32(&p), n = get_u32(&p);
        if (n > p.len)
            return pl_fail(PL_EFORMAT,
                           "part %u of a heartbeat has %u bytes, but %zu came", tag, n,
                           p.len);
        if (tag == PART_ENGINE) PL_TRY(take_engine((part){p.at, n}, out));
        p.at += n;
        p.len -= n;
    }
    return PL_OK;
}
