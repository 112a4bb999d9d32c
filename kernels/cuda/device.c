/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA device: one GPU, its memory, and weights as its kernels want them.
 */
#include "cuda_own.h"

#include <stdio.h>
#include <string.h>

enum {
    STAGING = 64 << 20, /* bytes of weights on their way, at most */
    LEAST_MAJOR = 8     /* compute capability: bf16 on tensor cores */
};

static pl_cuda *cuda_of(pl_device *d)
{
    return (pl_cuda *)d;
}

pl_status pl_cuda_failed(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return PL_OK;
    return pl_fail(e == cudaErrorMemoryAllocation ? PL_ENOMEM : PL_EINTERNAL,
                   "CUDA: %s: %s", what, cudaGetErrorString(e));
}

/* ---- memory ---------------------------------------------------------------------- */

/* All is done on the device's one stream, and waited for: kernels of that stream would
 * not wait for what is still under way on another. */
static cudaError_t send(pl_cuda *c, void *to, const void *from, size_t bytes)
{
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, c->stream);
    return e == cudaSuccess ? cudaStreamSynchronize(c->stream) : e;
}

static cudaError_t clear(pl_cuda *c, void *p, size_t bytes)
{
    cudaError_t e = cudaMemsetAsync(p, 0, bytes, c->stream);
    return e == cudaSuccess ? cudaStreamSynchronize(c->stream) : e;
}

static void *cuda_alloc(pl_device *d, size_t bytes)
{
    void *p = NULL;
    bytes = PL_MAX(bytes, 1);
    if (cudaMalloc(&p, bytes) != cudaSuccess) {
        cudaGetLastError(); /* or the next call would seem to have failed */
        return NULL;
    }
    if (clear(cuda_of(d), p, bytes) == cudaSuccess) return p;
    cudaFree(p);
    return NULL;
}

static void cuda_free(pl_device *d, void *p, size_t bytes)
{
    (void)d, (void)bytes;
    cudaFree(p);
}

static void cuda_write(pl_device *d, void *to, const void *from, size_t bytes)
{
    send(cuda_of(d), to, from, bytes);
}

static pl_status cuda_memory(pl_device *d, int64_t *left, int64_t *all)
{
    size_t some = 0, total = 0;
    (void)d;
    PL_TRY(pl_cuda_failed(cudaMemGetInfo(&some, &total), "memory"));
    *left = (int64_t)some;
    *all = (int64_t)total;
    return PL_OK;
}

/* ---- KV -------------------------------------------------------------------------- */

static pl_status cuda_kv_check(pl_device *d, const pl_attention *a)
{
    (void)d;
    if (a->block_size % 16)
        return pl_fail(PL_EUNSUPPORTED,
                       "block_size is %d, wanted a multiple of 16 on a GPU",
                       a->block_size);
    if (a->head_dim > PL_CU_MAX_DIM)
        return pl_fail(PL_EUNSUPPORTED, "head_dim is %d, at most %d on a GPU",
                       a->head_dim, PL_CU_MAX_DIM);
    if (a->kv_type == PL_KV_FLOAT32)
        return pl_fail(PL_EUNSUPPORTED,
                       "kv_cache_dtype is float32, wanted auto on a GPU");
    return PL_OK;
}

static size_t cuda_kv_bytes(pl_device *d, const pl_attention *a)
{
    pl_cu_attention s = {.n_layers = a->n_layers,
                         .n_kv_heads = a->n_kv_heads,
                         .block_size = a->block_size,
                         .head_dim = a->head_dim};
    (void)d;
    return (size_t)pl_cu_kv_values(&s) * sizeof(uint16_t);
}

/* ---- weights --------------------------------------------------------------------- */

static void cuda_matrix_close(pl_device *d, pl_matrix *m)
{
    (void)d;
    cudaFree(m->w.data);
    pl_free(m);
}

static size_t cuda_matrix_bytes(const pl_matrix *m)
{
    return m->bytes;
}

/* Rows from `first` on to the GPU and into their tiles. */
static cudaError_t put_rows(pl_cuda *c, const pl_matrix *m, int type, const void *rows,
                            int64_t first, int64_t n, void *staging)
{
    size_t bytes = (size_t)(n * m->w.k) * (type == PL_F32 ? 4 : 2);
    cudaError_t e = send(c, staging, rows, bytes);
    if (e != cudaSuccess) return e;
    pl_cu_pack(c->stream, &m->w, type, staging, first, n);
    return cudaStreamSynchronize(c->stream);
}

static cudaError_t put_matrix(pl_cuda *c, const pl_matrix *m, int type, const char *data)
{
    bool plain = type <= PL_BF16;
    size_t row = pl_type_bytes(type, m->w.k), wide = (size_t)m->w.k * 4;
    int64_t some = PL_MAX(STAGING / (int64_t)wide, 1);
    some = PL_MIN(some, m->w.n);
    float *values = plain ? NULL : pl_alloc((size_t)some * wide);
    void *staging = NULL;
    cudaError_t e = cudaMalloc(&staging, (size_t)some * wide);
    for (int64_t at = 0; e == cudaSuccess && at < m->w.n; at += some) {
        int64_t n = PL_MIN(some, m->w.n - at);
        const char *rows = data + (size_t)at * row;
        for (int64_t i = 0; values && i < n; i++)
            pl_type_row(type, rows + (size_t)i * row, m->w.k, values + i * m->w.k);
        e = put_rows(c, m, plain ? type : PL_F32, values ? (const void *)values : rows,
                     at, n, staging);
    }
    cudaFree(staging);
    pl_free(values);
    return e;
}

/* bf16 stays bf16, and so do values of 32 bits, whose range it has; what is quantized in
 * terms of f16 becomes f16. */
static pl_status cuda_matrix_open(pl_device *d, int type, int64_t n, int64_t k,
                                  const void *data, pl_matrix **out)
{
    pl_matrix *m = pl_alloc(sizeof *m);
    m->w = (pl_cu_weights){
        .n = (int32_t)n, .k = (int32_t)k, .f16 = type != PL_F32 && type != PL_BF16};
    m->bytes = pl_cu_weight_bytes(m->w.n, m->w.k);
    m->w.data = cuda_alloc(d, m->bytes);
    if (!m->w.data) {
        size_t bytes = m->bytes;
        pl_free(m);
        return pl_fail(PL_ENOMEM, "no %zu bytes for weights on the GPU", bytes);
    }
    pl_status s = pl_cuda_failed(put_matrix(cuda_of(d), m, type, data), "weights");
    if (s < 0) {
        cuda_matrix_close(d, m);
        return s;
    }
    *out = m;
    return PL_OK;
}

/* ---- the device ------------------------------------------------------------------ */

static const char *cuda_kernels(const pl_device *d)
{
    return ((const pl_cuda *)d)->kernels;
}

static const char *cuda_numerics(const pl_device *d, int activations, bool bf16)
{
    (void)activations, (void)bf16;
    return ((const pl_cuda *)d)->numerics;
}

static const char *cuda_kv_layout(const pl_device *d)
{
    (void)d;
    return "cuda f16 in rows of 64";
}

static void cuda_close(pl_device *d)
{
    cudaStreamDestroy(cuda_of(d)->stream);
    pl_free(d);
}

static pl_status open_gpu(pl_cuda *c)
{
    struct cudaDeviceProp p;
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n == 0) e = cudaErrorNoDevice;
    if (e == cudaSuccess) e = cudaGetDeviceProperties(&p, 0);
    if (e != cudaSuccess)
        return pl_fail(PL_EUNSUPPORTED, "no GPU: %s", cudaGetErrorString(e));
    if (p.major < LEAST_MAJOR || pl_cu_usable() != cudaSuccess)
        return pl_fail(PL_EUNSUPPORTED, "no kernels for '%s' of compute capability %d.%d",
                       p.name, p.major, p.minor);
    snprintf(c->kernels, sizeof c->kernels, "sm_%d%d", p.major, p.minor);
    /* Tensor cores of one generation cut their sums alike. k256: see slice_of. a2: the
     * second way in which attention sums and takes exponents (attend_split.cuh); the
     * number rises with every change of it. */
    snprintf(c->numerics, sizeof c->numerics, "cuda%d-k256-a2", p.major);
    return pl_cuda_failed(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking),
                          "stream");
}

static pl_device *cuda_open(const pl_device_options *o)
{
    static const pl_device_ops ops = {
        .close = cuda_close,
        .kernels = cuda_kernels,
        .numerics = cuda_numerics,
        .kv_layout = cuda_kv_layout,
        .alloc = cuda_alloc,
        .free = cuda_free,
        .write = cuda_write,
        .memory = cuda_memory,
        .kv_check = cuda_kv_check,
        .kv_bytes = cuda_kv_bytes,
        .matrix_open = cuda_matrix_open,
        .matrix_close = cuda_matrix_close,
        .matrix_bytes = cuda_matrix_bytes,
        .prepare = pl_cuda_prepare,
        .discard = pl_cuda_discard,
        .run = pl_cuda_run,
        .wait = pl_cuda_wait,
    };
    pl_cuda *c = pl_alloc(sizeof *c);
    c->base = (pl_device){.ops = &ops, .depth = o->depth ? o->depth : 2};
    c->eager = o->eager;
    if (open_gpu(c) < 0) {
        pl_free(c);
        return NULL;
    }
    return &c->base;
}

PL_PLUGIN const pl_backend perilune_backend = {PL_DEVICE_ABI, "cuda", cuda_open};
