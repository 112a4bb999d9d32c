/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU device's threads. One word says what there is to do: how many tasks, and which
 * is next. Whoever adds one to it has taken a task (if it was below the count), so a
 * job's function and argument can be read safely until that task is reported done. A
 * worker that wakes up late finds nothing left, and nobody waits for it.
 *
 *      looks for a task --none for 40 us--> asleep --a new job--> looks for a task
 */
#include "device_cpu.h"

#include <pthread.h>
#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    SPIN_NS = 40000,
    SPINS = 64,
    DENORMALS_ZERO = 0x8040 /* FTZ and DAZ of MXCSR */
};
#define COUNT_SHIFT 32
#define NEXT_MASK 0xffffffffu

struct pl_pool {
    int n_threads;
    pl_work *fn;
    void *arg;
    _Alignas(64) _Atomic uint64_t claim; /* tasks << 32 | next */
    _Alignas(64) atomic_int done;
    _Alignas(64) atomic_int sleepers;
    atomic_bool closing;
    pl_mutex mutex;
    struct worker {
        pl_pool *pool;
        pthread_t thread;
        int index;
    } * workers;
};

/* Sets denormals to zero for this thread; returns what to give float_end. */
static uint64_t float_begin(void)
{
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    if ((before & DENORMALS_ZERO) != DENORMALS_ZERO) _mm_setcsr(before | DENORMALS_ZERO);
    return before;
#elif defined(__aarch64__)
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | 1u << 24));
    return before;
#else
    return 0;
#endif
}

static void float_end(uint64_t before)
{
#if defined(__x86_64__)
    if ((before & DENORMALS_ZERO) != DENORMALS_ZERO) _mm_setcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

static void relax(void)
{
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static bool work(pl_pool *p, int thread)
{
    bool any = false;
    for (;;) {
        uint64_t c = atomic_load_explicit(&p->claim, memory_order_acquire);
        if ((c & NEXT_MASK) >= c >> COUNT_SHIFT) return any;
        c = atomic_fetch_add_explicit(&p->claim, 1, memory_order_acq_rel);
        if ((c & NEXT_MASK) >= c >> COUNT_SHIFT) return any;
        p->fn(p->arg, (int)(c & NEXT_MASK), thread);
        atomic_fetch_add_explicit(&p->done, 1, memory_order_release);
        any = true;
    }
}

static void sleep_until_work(pl_pool *p)
{
    pl_lock(&p->mutex);
    atomic_fetch_add(&p->sleepers, 1);
    for (;;) {
        uint64_t c = atomic_load(&p->claim);
        if ((c & NEXT_MASK) < c >> COUNT_SHIFT || atomic_load(&p->closing)) break;
        pl_wait(&p->mutex, 1000);
    }
    atomic_fetch_sub(&p->sleepers, 1);
    pl_unlock(&p->mutex);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    pl_pool *p = w->pool;
    pl_thread_begin(PL_THREAD_STEP, "pl-cpu/%d", w->index);
    float_begin();
    while (!atomic_load_explicit(&p->closing, memory_order_relaxed)) {
        if (work(p, w->index)) continue;
        int64_t since = pl_now_ns();
        bool found = false;
        while (!found && pl_now_ns() - since < SPIN_NS) {
            for (int i = 0; i < SPINS && !found; i++) {
                relax();
                uint64_t c = atomic_load_explicit(&p->claim, memory_order_relaxed);
                found = (c & NEXT_MASK) < c >> COUNT_SHIFT;
            }
        }
        if (!found) sleep_until_work(p);
    }
    return NULL;
}

pl_pool *pl_pool_open(int n_threads)
{
    pl_pool *p = pl_alloc_big(sizeof *p);
    if (!p) return NULL;
    pl_mutex_init(&p->mutex);
    p->workers = pl_alloc((size_t)n_threads * sizeof *p->workers);
    p->n_threads = 1;
    for (int i = 1; i < n_threads; i++) {
        struct worker *w = p->workers + i;
        *w = (struct worker){.pool = p, .index = i};
        if (pthread_create(&w->thread, NULL, worker_main, w)) break;
        p->n_threads++;
    }
    return p;
}

void pl_pool_close(pl_pool *p)
{
    if (!p) return;
    pl_lock(&p->mutex);
    atomic_store(&p->closing, true);
    pl_wake(&p->mutex);
    pl_unlock(&p->mutex);
    for (int i = 1; i < p->n_threads; i++) pthread_join(p->workers[i].thread, NULL);
    pl_free(p->workers);
    pl_mutex_fini(&p->mutex);
    pl_free_big(p, sizeof *p);
}

int pl_pool_threads(const pl_pool *p)
{
    return p->n_threads;
}

static void share(pl_pool *p, pl_work *fn, void *arg, int n)
{
    p->fn = fn;
    p->arg = arg;
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    atomic_store(&p->claim, (uint64_t)n << COUNT_SHIFT);
    if (atomic_load(&p->sleepers)) {
        pl_lock(&p->mutex);
        pl_wake(&p->mutex);
        pl_unlock(&p->mutex);
    }
    work(p, 0);
    /* A worker may have lost its core in the middle of a task: then let others have
     * ours. */
    for (int i = 0; atomic_load_explicit(&p->done, memory_order_acquire) < n; i++) {
        relax();
        if (i > 20000) sched_yield();
    }
}

void pl_pool_run(pl_pool *p, pl_work *fn, void *arg, int n)
{
    uint64_t before = float_begin();
    if (n <= 1 || p->n_threads == 1) {
        for (int i = 0; i < n; i++) fn(arg, i, 0);
    } else {
        share(p, fn, arg, n);
    }
    float_end(before);
}
