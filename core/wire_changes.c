/* SPDX-License-Identifier: Apache-2.0
 *
 * wire_changes.c - what the cache of an engine gained and lost, as it tells those who
 * follow it.
 *
 * Owns     the encoding.
 * Ignores  who follows.
 * Thread   any
 *
 * Changes are the count before and after them (u64 each), flags (u32; 1: this is all that
 * is held), then parts in order, each a tag, its length and its bytes: STORED and REMOVED
 * are keys (u64), CLEARED is empty. A reader skips a part that it does not know if the tag
 * permits that (PL_TAG_ADVICE).
 */
#include "params.h"
#include "wire_own.h"

enum {
    HEAD_BYTES = 20,
    WHOLE = 1,
    MAX_RUN = (64 << 20) / 8
};

void pl_wire_put_changes(pl_buf *b, const pl_changes *c)
{
    const uint64_t *key = c->keys;
    pl_buf_reserve(b, HEAD_BYTES + 8 * ((size_t)c->n_runs + (size_t)c->n_keys));
    put_u64(b, c->before);
    put_u64(b, c->after);
    put_u32(b, c->is_whole ? WHOLE : 0);
    for (int32_t i = 0; i < c->n_runs; i++) {
        put_u32(b, (uint32_t)c->runs[i].kind);
        put_u32(b, 8 * (uint32_t)c->runs[i].n);
        for (int32_t k = 0; k < c->runs[i].n; k++) put_u64(b, *key++);
    }
}

static pl_status take_run(part p, uint32_t tag, pl_change_log *log)
{
    bool has_keys = tag == PL_CHANGE_STORED || tag == PL_CHANGE_REMOVED;
    if (tag & PL_TAG_ADVICE) return PL_OK;
    if (!has_keys && tag != PL_CHANGE_CLEARED)
        return pl_fail(PL_EUNSUPPORTED, "changes of a kind %u, which is not known here",
                       tag);
    if (p.len % 8 || p.len / 8 > MAX_RUN || (!has_keys && p.len))
        return pl_fail(PL_EFORMAT, "changes of kind %u in %zu bytes", tag, p.len);
    if (!has_keys) pl_change_log_add(log, PL_CHANGE_CLEARED, 0);
    while (p.len) pl_change_log_add(log, (pl_change)tag, get_u64(&p));
    return PL_OK;
}

static pl_status take_runs(part p, pl_change_log *log)
{
    while (p.len) {
        if (p.len < 8) return pl_fail(PL_EFORMAT, "changes end in a part's head");
        uint32_t tag = get_u32(&p), n = get_u32(&p);
        if (n > p.len)
            return pl_fail(PL_EFORMAT, "part %u of changes has %u bytes, but %zu came",
                           tag, n, p.len);
        PL_TRY(take_run((part){p.at, n}, tag, log));
        p.at += n;
        p.len -= n;
    }
    return PL_OK;
}

pl_status pl_wire_get_changes(const void *data, size_t len, pl_changes **out)
{
    part p = {data, len};
    if (len < HEAD_BYTES) return pl_fail(PL_EFORMAT, "changes in %zu bytes", len);
    uint64_t before = get_u64(&p), after = get_u64(&p);
    uint32_t flags = get_u32(&p);
    if (before > after)
        return pl_fail(PL_EFORMAT, "changes %llu to %llu", (unsigned long long)before,
                       (unsigned long long)after);
    pl_change_log log = {0};
    pl_status status = take_runs(p, &log);
    if (status == PL_OK) {
        *out = pl_change_log_take(&log, before, after);
        (*out)->is_whole = flags & WHOLE;
    }
    pl_change_log_fini(&log);
    return status;
}
