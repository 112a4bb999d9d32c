/* SPDX-License-Identifier: Apache-2.0
 *
 * device_cpu.h - the parts of the CPU device among themselves.
 *
 * Owns     the worker threads, scratch for one step.
 * Thread   step; its workers run only while it waits for them.
 */
#ifndef PL_DEVICE_CPU_H
#define PL_DEVICE_CPU_H

#include "cpu/cpu.h"
#include "device.h"

/* Workers. A run calls fn for every task 0 .. n - 1 and returns when all are done; thread
 * says which of the pool's threads is at it (the caller is 0). In a run denormals are
 * zero: they would cost much and mean nothing. */
typedef void pl_work(void *arg, int task, int thread);
typedef struct pl_pool pl_pool;
pl_pool *pl_pool_open(int n_threads);
void pl_pool_close(pl_pool *p);
int pl_pool_threads(const pl_pool *p);
void pl_pool_run(pl_pool *p, pl_work *fn, void *arg, int n);

struct pl_matrix {
    pl_cpu_matrix m;
    size_t bytes;
};

struct pl_acts {
    pl_cpu_rows rows;
    int n, cap; /* rows written; room */
};

typedef struct pl_cpu {
    pl_device device;
    const pl_cpu_kernels *k;
    pl_pool *pool;
    const pl_rows *rows;
    int32_t vocab;
    pl_sample_scratch **samplers; /* one a thread */
    float *scratch;               /* grows; whoever needs it, one op at a time */
    size_t scratch_bytes;
    pl_acts *gathered, *gated; /* an expert's rows */
} pl_cpu;

static inline pl_cpu *pl_cpu_of(pl_device *d)
{
    return (pl_cpu *)(void *)d;
}

float *pl_cpu_scratch(pl_cpu *c, size_t floats); /* what was in it is lost */

pl_status pl_cpu_matrix_open(pl_device *d, int type, int64_t n, int64_t k,
                             const void *data, pl_matrix **out);
void pl_cpu_matrix_close(pl_device *d, pl_matrix *w);
void pl_cpu_matrix_row(const pl_cpu_matrix *m, int row, float *out);

pl_status pl_cpu_acts_open(pl_device *d, int n_rows, int k, int activations,
                           pl_acts **out);
void pl_cpu_acts_close(pl_device *d, pl_acts *a);
void pl_cpu_linear_run(pl_device *d, const pl_linear *parts, int n_parts,
                       const pl_acts *x);

pl_status pl_cpu_kv_check(pl_device *d, const pl_attention *a);
size_t pl_cpu_kv_bytes(pl_device *d, const pl_attention *a);
void pl_cpu_heads(pl_device *d, const pl_heads *h);
void pl_cpu_attend(pl_device *d, const pl_heads *h, pl_acts *out);
void pl_cpu_experts(pl_device *d, const pl_experts *e, const pl_acts *x, float *out,
                    int stride);

#endif
