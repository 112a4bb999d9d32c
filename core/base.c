/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "base.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

/* ---- errors ------------------------------------------------------------------------ */

static _Thread_local char error_text[1024];
static _Thread_local char error_where[64];
static _Thread_local pl_status error_status;

pl_status pl_fail_at(const char *file, int line, pl_status code, const char *fmt, ...)
{
    const char *slash = strrchr(file, '/');
    snprintf(error_where, sizeof error_where, "%s:%d", slash ? slash + 1 : file, line);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(error_text, sizeof error_text, fmt, ap);
    va_end(ap);
    error_status = code;
    return code;
}

int pl_error_status(void)
{
    return error_status;
}

const char *pl_error_text(void)
{
    return error_text;
}

const char *pl_error_where(void)
{
    return error_where;
}

const char *pl_status_name(int status)
{
    static const char *const names[] = {
        "PL_OK",           "PL_EINVAL",    "PL_ENOMEM",   "PL_EIO",
        "PL_EFORMAT",      "PL_EAGAIN",    "PL_ELIMIT",   "PL_ENOTFOUND",
        "PL_EUNSUPPORTED", "PL_ECANCELED", "PL_ETIMEOUT", "PL_EINTERNAL",
    };
    int i = status < 0 ? -status : 0;
    return i < PL_COUNT(names) ? names[i] : "PL_UNKNOWN";
}

/* ---- threads ----------------------------------------------------------------------- */

static _Thread_local pl_thread this_thread;

void pl_thread_begin(pl_thread thread, const char *fmt, ...)
{
    char name[16];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    pthread_setname_np(pthread_self(), name);
    this_thread = thread;
}

pl_thread pl_thread_become(pl_thread thread)
{
    pl_thread was = this_thread;
    this_thread = thread;
    return was;
}

#ifndef NDEBUG
void pl_thread_check(pl_thread wanted, const char *function)
{
    static const char *const names[] = {"lua", "io", "step", "pool", "other"};
    if (this_thread == wanted) return;
    fprintf(stderr, "perilune: %s runs on a thread of kind '%s', wanted '%s'\n", function,
            names[this_thread], names[wanted]);
    abort();
}
#endif

/* ---- memory ------------------------------------------------------------------------ */

static void *or_abort(void *p)
{
    if (p) return p;
    fputs("perilune: out of memory\n", stderr);
    abort();
}

void *pl_alloc(size_t bytes)
{
    return or_abort(calloc(1, bytes ? bytes : 1));
}

void *pl_realloc(void *p, size_t bytes)
{
    return or_abort(realloc(p, bytes ? bytes : 1));
}

char *pl_strndup(const char *s, size_t len)
{
    char *p = pl_alloc(len + 1);
    if (len) memcpy(p, s, len);
    return p;
}

void *pl_memdup(const void *p, size_t bytes)
{
    return bytes ? memcpy(pl_alloc(bytes), p, bytes) : NULL;
}

void pl_free(void *p)
{
    free(p);
}

void *pl_alloc_big(size_t bytes)
{
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

void pl_free_big(void *p, size_t bytes)
{
    if (p) munmap(p, bytes ? bytes : 1);
}

/* ---- bytes ------------------------------------------------------------------------- */

void pl_buf_fini(pl_buf *b)
{
    free(b->data);
    *b = (pl_buf){0};
}

void pl_buf_reserve(pl_buf *b, size_t more)
{
    if (b->cap - b->len >= more) return;
    size_t cap = PL_MAX(b->cap * 2, (size_t)64);
    while (cap - b->len < more) cap *= 2;
    b->data = pl_realloc(b->data, cap);
    b->cap = cap;
}

void pl_buf_add(pl_buf *b, const void *data, size_t len)
{
    if (!len) return;
    pl_buf_reserve(b, len);
    memcpy(b->data + b->len, data, len);
    b->len += len;
}

void pl_buf_add_str(pl_buf *b, const char *s)
{
    pl_buf_add(b, s, strlen(s));
}

void pl_buf_add_i32(pl_buf *b, int32_t v)
{
    pl_buf_add(b, &v, sizeof v);
}

void pl_buf_printf(pl_buf *b, const char *fmt, ...)
{
    va_list ap;
    pl_buf_reserve(b, 64); /* for most it is enough: they are formatted once */
    for (;;) {
        size_t room = b->cap - b->len;
        va_start(ap, fmt);
        size_t n = (size_t)vsnprintf(b->data + b->len, room, fmt, ap);
        va_end(ap);
        if (n < room) {
            b->len += n;
            return;
        }
        pl_buf_reserve(b, n + 1);
    }
}

int pl_utf8_len(const unsigned char *s, size_t len, int *need)
{
    if (need) *need = 0;
    if (!len) return 0;
    if (s[0] < 0x80) return 1;
    int n = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
            : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
            : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                          : 0;
    if (!n) return 0;
    unsigned low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    unsigned high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    for (int i = 1; i < n; i++) {
        if ((size_t)i == len) {
            if (need) *need = n;
            return 0;
        }
        if (s[i] < low || s[i] > high) return 0;
        low = 0x80, high = 0xbf;
    }
    return n;
}

bool pl_utf8_valid(const char *s, size_t len)
{
    const unsigned char *p = (const unsigned char *)s;
    for (size_t i = 0; i < len;) {
        int n = pl_utf8_len(p + i, len - i, NULL);
        if (!n) return false;
        i += (size_t)n;
    }
    return true;
}

static void add_escape(pl_buf *b, unsigned char c)
{
    static const char *const shorts[] = {
        ['\b'] = "\\b", ['\t'] = "\\t", ['\n'] = "\\n", ['\f'] = "\\f", ['\r'] = "\\r"};
    if (c == '"' || c == '\\') {
        char e[2] = {'\\', (char)c};
        pl_buf_add(b, e, 2);
    } else if (c < PL_COUNT(shorts) && shorts[c]) {
        pl_buf_add(b, shorts[c], 2);
    } else {
        pl_buf_printf(b, "\\u%04x", c);
    }
}

void pl_buf_add_json(pl_buf *b, const char *s, size_t len)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t plain = 0, i = 0;
    while (i < len) {
        int n = p[i] >= 0x20 && p[i] < 0x80 && p[i] != '"' && p[i] != '\\' ? 1
                : p[i] < 0x80                                              ? -1
                              : pl_utf8_len(p + i, len - i, NULL);
        if (n > 0) {
            i += (size_t)n;
            continue;
        }
        pl_buf_add(b, p + plain, i - plain);
        if (n < 0)
            add_escape(b, p[i]);
        else
            pl_buf_add(b, "\xef\xbf\xbd", 3);
        plain = ++i;
    }
    pl_buf_add(b, p + plain, len - plain);
}

/* ---- maps -------------------------------------------------------------------------- */

typedef struct pl_map_cell {
    uint64_t key;
    void *value;
} pl_map_cell;

void pl_map_fini(pl_map *m)
{
    pl_free(m->cells);
    *m = (pl_map){0};
}

static uint32_t home_of(const pl_map *m, uint64_t key)
{
    return (uint32_t)(key * 0x9e3779b97f4a7c15u >> 32) & m->mask;
}

static uint32_t find_cell(const pl_map *m, uint64_t key)
{
    uint32_t at = home_of(m, key);
    while (m->cells[at].value && m->cells[at].key != key) at = (at + 1) & m->mask;
    return at;
}

void *pl_map_find(const pl_map *m, uint64_t key)
{
    return m->n ? m->cells[find_cell(m, key)].value : NULL;
}

static void grow(pl_map *m)
{
    pl_map old = *m;
    m->mask = old.cells ? 2 * old.mask + 1 : 15;
    m->cells = pl_alloc((m->mask + 1u) * sizeof *m->cells);
    for (uint32_t i = 0; old.cells && i <= old.mask; i++)
        if (old.cells[i].value) m->cells[find_cell(m, old.cells[i].key)] = old.cells[i];
    pl_free(old.cells);
}

void pl_map_put(pl_map *m, uint64_t key, void *value)
{
    if (2 * ++m->n > m->mask) grow(m);
    m->cells[find_cell(m, key)] = (pl_map_cell){key, value};
}

/* What follows in the run moves up, so that no gap hides it. */
void *pl_map_remove(pl_map *m, uint64_t key)
{
    if (!m->n) return NULL;
    uint32_t gap = find_cell(m, key);
    void *value = m->cells[gap].value;
    if (!value) return NULL;
    for (uint32_t i = (gap + 1) & m->mask; m->cells[i].value; i = (i + 1) & m->mask) {
        uint32_t home = home_of(m, m->cells[i].key);
        if (((i - home) & m->mask) < ((i - gap) & m->mask)) continue;
        m->cells[gap] = m->cells[i];
        gap = i;
    }
    m->cells[gap].value = NULL;
    m->n--;
    return value;
}

void *pl_map_next(const pl_map *m, uint32_t *at)
{
    while (m->cells && *at <= m->mask) {
        void *value = m->cells[(*at)++].value;
        if (value) return value;
    }
    return NULL;
}

/* ---- lock -------------------------------------------------------------------------- */

void pl_mutex_init(pl_mutex *m)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->cond, &attr);
    pthread_condattr_destroy(&attr);
}

void pl_mutex_fini(pl_mutex *m)
{
    pthread_mutex_destroy(&m->lock);
    pthread_cond_destroy(&m->cond);
}

void pl_lock(pl_mutex *m)
{
    pthread_mutex_lock(&m->lock);
}

void pl_unlock(pl_mutex *m)
{
    pthread_mutex_unlock(&m->lock);
}

bool pl_wait(pl_mutex *m, int timeout_ms)
{
    int64_t until = pl_now_ns() + (int64_t)timeout_ms * 1000000;
    struct timespec ts = {until / 1000000000, until % 1000000000};
    return pthread_cond_timedwait(&m->cond, &m->lock, &ts) != ETIMEDOUT;
}

void pl_wake(pl_mutex *m)
{
    pthread_cond_broadcast(&m->cond);
}

/* ---- time, chance ------------------------------------------------------------------ */

static int64_t read_clock(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t pl_now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

int64_t pl_wall_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}

struct pl_clock {
    _Atomic int64_t ns;
};

pl_clock *pl_clock_open(void)
{
    return pl_alloc(sizeof(pl_clock));
}

void pl_clock_set(pl_clock *clock, int64_t ns)
{
    atomic_store(&clock->ns, ns);
}

void pl_clock_close(pl_clock *clock)
{
    pl_free(clock);
}

int64_t pl_clock_now(const pl_clock *clock)
{
    return clock ? atomic_load(&clock->ns) : pl_now_ns();
}

void pl_list_folder(const char *path, const char *ending, int max, pl_buf *out)
{
    struct dirent **found;
    size_t n_ending = strlen(ending);
    int n = scandir(path, &found, NULL, versionsort), listed = 0;
    for (int i = 0; i < n; i++) {
        const char *name = found[i]->d_name;
        size_t len = strlen(name);
        bool wanted = len > n_ending && !strcmp(name + len - n_ending, ending) &&
                      !strchr(name, '\n');
        if (wanted && listed++ < max) pl_buf_printf(out, "%s/%s\n", path, name);
        free(found[i]);
    }
    if (n >= 0) free(found);
}

/* Taken from the system 256 bytes at a time, as much as one call surely gives. */
uint64_t pl_entropy(void)
{
    static _Thread_local uint64_t pool[32];
    static _Thread_local int n_left;
    if (!n_left) {
        while (getrandom(pool, sizeof pool, 0) != sizeof pool) continue;
        n_left = PL_COUNT(pool);
    }
    uint64_t v = pool[--n_left];
    pool[n_left] = 0;
    return v;
}

void pl_entropy_hex(char *out, int n)
{
    uint64_t v = 0;
    for (int i = 0; i < n; i++, v >>= 4) {
        if (i % 16 == 0) v = pl_entropy();
        out[i] = "0123456789abcdef"[v & 15];
    }
}

/* Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011. */
uint64_t pl_random_at(uint64_t seed, uint64_t position, uint64_t lane)
{
    uint32_t c[4] = {(uint32_t)position, (uint32_t)(position >> 32), (uint32_t)lane,
                     (uint32_t)(lane >> 32)};
    uint32_t k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int i = 0; i < 10; i++) {
        uint64_t a = (uint64_t)0xD2511F53 * c[0], b = (uint64_t)0xCD9E8D57 * c[2];
        uint32_t n[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k[0], (uint32_t)b,
                         (uint32_t)(a >> 32) ^ c[3] ^ k[1], (uint32_t)a};
        memcpy(c, n, sizeof c);
        k[0] += 0x9E3779B9, k[1] += 0xBB67AE85;
    }
    return (uint64_t)c[1] << 32 | c[0];
}

/* ---- weights' types ---------------------------------------------------------------- */

const pl_packing pl_packings[PL_N_TYPES] = {
    [PL_F32] = {"float32", 1, 4, 0},        [PL_F16] = {"float16", 1, 2, 1},
    [PL_BF16] = {"bfloat16", 1, 2, 30},     [PL_Q8_0] = {"q8_0", 32, 34, 8},
    [PL_Q4_0] = {"q4_0", 32, 18, 2},        [PL_Q4_1] = {"q4_1", 32, 20, 3},
    [PL_Q5_0] = {"q5_0", 32, 22, 6},        [PL_Q5_1] = {"q5_1", 32, 24, 7},
    [PL_Q2_K] = {"q2_k", 256, 84, 10},      [PL_Q3_K] = {"q3_k", 256, 110, 11},
    [PL_Q4_K] = {"q4_k", 256, 144, 12},     [PL_Q5_K] = {"q5_k", 256, 176, 13},
    [PL_Q6_K] = {"q6_k", 256, 210, 14},     [PL_IQ4_NL] = {"iq4_nl", 32, 18, 20},
    [PL_IQ4_XS] = {"iq4_xs", 256, 136, 23}, [PL_I32] = {"int32", 1, 4, 26},
};

const char *pl_type_name(int type)
{
    return type >= 0 && type < PL_N_TYPES ? pl_packings[type].name : "unknown";
}

float pl_f32_from_f16(uint16_t v)
{
    uint32_t sign = (uint32_t)(v & 0x8000) << 16, exp = (v >> 10) & 31, frac = v & 0x3ff,
             bits;
    if (exp == 31) {
        bits = sign | 0x7f800000 | frac << 13;
    } else if (exp) {
        bits = sign | (exp + 112) << 23 | frac << 13;
    } else {
        float f = (float)frac * 0x1p-24f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    }
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

uint16_t pl_f16_from_f32(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t mag = bits & 0x7fffffff;
    if (mag > 0x7f800000) return sign | 0x7e00;
    if (mag >= 0x477ff000) return sign | 0x7c00;
    if (mag < 0x38800000) { /* subnormal: let the adder round */
        float f;
        memcpy(&f, &mag, 4);
        f += 0.5f;
        memcpy(&mag, &f, 4);
        return (uint16_t)(sign | (mag - 0x3f000000));
    }
    uint32_t odd = mag >> 13 & 1;
    return (uint16_t)(sign | (mag + 0xc8000fff + odd) >> 13);
}
