/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_events.c - a publisher of KV events that says anything, in any order.
 *
 * The input is batches: number (one byte), length (two bytes), bytes. Checked besides
 * memory: what a worker is taken to hold is what a twin says, which takes each batch by
 * the decoder alone, and nothing after a gap.
 */
#include "events_own.h"

#include <stdlib.h>
#include <string.h>

#define MUST(cond)            \
    do {                      \
        if (!(cond)) abort(); \
    } while (0)

enum {
    N_KEYS = 256, /* the twin knows these, and counts the others */
};

static struct {
    bool held[N_KEYS];
    uint64_t next;
} twin;

static void ignore(void *ctx)
{
    (void)ctx;
}

static void clear_twin(uint64_t next)
{
    memset(twin.held, 0, sizeof twin.held);
    twin.next = next;
}

static void take_twin(uint64_t number, const uint8_t *data, size_t len)
{
    pl_change_log log = {0};
    if (pl_events_decode(data, len, &log) < 0) {
        MUST(*pl_error_text());
        clear_twin(number + 1);
    } else {
        twin.next = number + 1;
        const uint64_t *key = log.keys;
        for (int32_t i = 0; i < log.n_runs; i++) {
            const pl_change_run *run = &log.runs[i];
            if (run->kind == PL_CHANGE_CLEARED) clear_twin(twin.next);
            for (int32_t k = 0; k < run->n; k++, key++)
                if (*key < N_KEYS) twin.held[*key] = run->kind == PL_CHANGE_STORED;
        }
    }
    pl_change_log_fini(&log);
}

static void check(pl_route *x)
{
    int32_t depths[64];
    for (uint64_t key = 0; key < N_KEYS; key++) {
        MUST(pl_route_match(x, &key, 1, depths) == 64);
        MUST(depths[0] == twin.held[key]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const pl_source_hooks hooks = {ignore, ignore};
    pl_log_level(PL_LOG_ERROR + 1);
    pl_route *x = pl_route_open(1 << 20);
    pl_feed feed = {0};
    MUST(pl_route_join(x) == 0);
    MUST(pl_route_source(x, 0, &hooks, NULL, &feed.source) == 0);
    pl_feed_clear(&feed, 0);
    clear_twin(0);
    while (size >= 3) {
        uint64_t number = data[0];
        size_t len = PL_MIN((size_t)data[1] | (size_t)data[2] << 8, size - 3);
        if (number != feed.expected) {
            pl_feed_clear(&feed, number);
            clear_twin(number);
        }
        pl_feed_take(&feed, number, data + 3, len);
        take_twin(number, data + 3, len);
        MUST(feed.expected == twin.next);
        if (number & 1) check(x);
        data += 3 + len;
        size -= 3 + len;
    }
    check(x);
    pl_source_put(feed.source);
    pl_route_close(x);
    return 0;
}
