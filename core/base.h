/* SPDX-License-Identifier: Apache-2.0
 *
 * base.h - what every module stands on: errors, memory, bytes, locks, time, metrics.
 *
 * Owns     the last error of each thread, the log (log.c), the metrics (metrics.c).
 * Ignores  tokens, sockets, models.
 * Thread   any. The only module that may lock.
 */
#ifndef PL_BASE_H
#define PL_BASE_H

#include "perilune.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>

/* For plug-ins (device.h); the rest of core is hidden from them. */
#define PL_PLUGIN __attribute__((visibility("default")))
#define PL_PRINTF(a, b) __attribute__((format(printf, a, b)))
#define PL_COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))
#define PL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define PL_MAX(a, b) ((a) > (b) ? (a) : (b))

/* Records why, for this thread, and returns `code`. Only the function that decides that
 * it is an error says so; those above pass the code up with PL_TRY. */
#define pl_fail(code, ...) pl_fail_at(__FILE__, __LINE__, code, __VA_ARGS__)
PL_PLUGIN pl_status pl_fail_at(const char *file, int line, pl_status code,
                               const char *fmt, ...) PL_PRINTF(4, 5);
#define PL_TRY(expr)                                 \
    do {                                             \
        pl_status pl_try_status = (expr);            \
        if (pl_try_status < 0) return pl_try_status; \
    } while (0)

#define pl_log(level, ...) pl_log_at(level, __VA_ARGS__)
PL_PLUGIN void pl_log_at(int level, const char *fmt, ...) PL_PRINTF(2, 3);
/* With fields (pl_log_fields); NULL: none. */
void pl_log_with(int level, const pl_buf *fields, const char *fmt, ...) PL_PRINTF(3, 4);

/* Small host allocations: they abort when memory is exhausted. pl_free takes NULL. */
PL_PLUGIN void *pl_alloc(size_t bytes);                 /* zeroed */
PL_PLUGIN void *pl_realloc(void *p, size_t bytes);      /* what is added is not zeroed */
char *pl_strndup(const char *s, size_t len);            /* ends in NUL */
PL_PLUGIN void *pl_memdup(const void *p, size_t bytes); /* NULL for 0 bytes */
PL_PLUGIN void pl_free(void *p);
/* Aligned to 64 bytes, zeroed; NULL when exhausted (big pools report). */
PL_PLUGIN void *pl_alloc_big(size_t bytes);
PL_PLUGIN void pl_free_big(void *p, size_t bytes);

/* Whose a thread is (core/README.md). Lua's is the one that never said otherwise. */
typedef enum pl_thread {
    PL_THREAD_LUA,
    PL_THREAD_IO,
    PL_THREAD_STEP,
    PL_THREAD_POOL,
    PL_THREAD_OTHER
} pl_thread;
/* At a thread's start: whose it is, and its name (15 bytes at most), as `top -H` shows
 * it. */
PL_PLUGIN void pl_thread_begin(pl_thread thread, const char *fmt, ...) PL_PRINTF(2, 3);
/* From now on this thread is another one, which does not run; returns what it was. */
pl_thread pl_thread_become(pl_thread thread);
/* First in a function that belongs to one thread. Checked except in release builds. */
#ifdef NDEBUG
#define PL_ON(thread) ((void)0)
#else
#define PL_ON(thread) pl_thread_check(PL_THREAD_##thread, __func__)
PL_PLUGIN void pl_thread_check(pl_thread wanted, const char *function);
#endif

/* Growing bytes. */
void pl_buf_reserve(pl_buf *b, size_t more);
void pl_buf_add(pl_buf *b, const void *data, size_t len);
void pl_buf_add_str(pl_buf *b, const char *s);
void pl_buf_add_i32(pl_buf *b, int32_t v);
void pl_buf_printf(pl_buf *b, const char *fmt, ...) PL_PRINTF(2, 3);

/* Things by number. A zeroed one is empty; no value is NULL. */
typedef struct pl_map {
    struct pl_map_cell *cells; /* open addressing, linear, never more than half full */
    uint32_t mask, n;
} pl_map;
void pl_map_fini(pl_map *m);
void *pl_map_find(const pl_map *m, uint64_t key);
void pl_map_put(pl_map *m, uint64_t key, void *value); /* a key that is not there yet */
void *pl_map_remove(pl_map *m, uint64_t key);
/* Walks it while it stands still: starts at 0, returns NULL at the end. */
void *pl_map_next(const pl_map *m, uint32_t *at);

/* UTF-8. The length of the character at s, or 0 where the bytes are not one; `need`
 * (may be NULL) is set to how many bytes it would take if it is only cut short, else 0.
 */
int pl_utf8_len(const unsigned char *s, size_t len, int *need);
bool pl_utf8_valid(const char *s, size_t len);

/* A lock and a condition; pl_wait returns false when timeout_ms have passed. */
typedef struct pl_mutex {
    pthread_mutex_t lock;
    pthread_cond_t cond;
} pl_mutex;
void pl_mutex_init(pl_mutex *m);
void pl_mutex_fini(pl_mutex *m);
void pl_lock(pl_mutex *m);
void pl_unlock(pl_mutex *m);
bool pl_wait(pl_mutex *m, int timeout_ms);
void pl_wake(pl_mutex *m); /* all that wait */

int64_t pl_clock_now(const pl_clock *clock); /* NULL: pl_now_ns */

/* How rows of a pl_type are stored: so many values in so many bytes. */
typedef struct pl_packing {
    const char *name;
    int32_t values, bytes, gguf; /* gguf: its number in GGUF files */
} pl_packing;
extern const pl_packing pl_packings[PL_N_TYPES];

uint16_t pl_f16_from_f32(float v); /* round to nearest even */
float pl_f32_from_f16(uint16_t v);

#endif
