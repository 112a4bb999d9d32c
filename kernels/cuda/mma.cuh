// SPDX-License-Identifier: Apache-2.0
//
// mma.cuh - the one tensor-core step that everything here is made of, conversions, and how
// kernels are launched.
#pragma once

#include "kernels.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <float.h>

// ---- tensor cores --------------------------------------------------------------------

// c += a . b, 16 rows of a by 8 of b over 16 columns.
template <bool F16>
__device__ __forceinline__ void mma16(float (&c)[4], const uint4 &a, const uint2 &b)
{
    if (F16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

// The m operand of 16 weight rows: tiles of the upper and the lower 8, its first 16 columns or
// its last.
__device__ __forceinline__ uint4 rows_of(const uint4 &upper, const uint4 &lower, bool last)
{
    return last ? make_uint4(upper.z, lower.z, upper.w, lower.w)
                : make_uint4(upper.x, lower.x, upper.y, lower.y);
}

__device__ __forceinline__ uint32_t shared_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

// Four 8 x 8 matrices; lane l says where row l % 8 of matrix l / 8 is.
template <bool TRANS>
__device__ __forceinline__ uint4 load_matrices(uint32_t at)
{
    uint4 v;
    if (TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
}

__device__ __forceinline__ void copy16(void *to, const void *from, bool real)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_at(to)), "l"(from),
                 "r"(real ? 16 : 0) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N>
__device__ __forceinline__ void wait_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- values --------------------------------------------------------------------------

// Values beyond f16 become its largest: no infinity gets into a sum.
__device__ __forceinline__ uint16_t to_f16(float v)
{
    return __half_as_ushort(__float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f)));
}

__device__ __forceinline__ uint16_t to_bf16(float v)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
}

template <bool F16>
__device__ __forceinline__ uint32_t pack2(float low, float high)
{
    return F16 ? to_f16(low) | (uint32_t)to_f16(high) << 16
               : to_bf16(low) | (uint32_t)to_bf16(high) << 16;
}

__device__ __forceinline__ float from_16(uint16_t v, bool f16)
{
    return f16 ? __half2float(__ushort_as_half(v)) : __uint_as_float((uint32_t)v << 16);
}

__device__ __forceinline__ void put_act(const pl_cu_acts &out, size_t at, float v)
{
    if (out.bf16) ((uint16_t *)out.bf16)[at] = to_bf16(v);
    if (out.f16) ((uint16_t *)out.f16)[at] = to_f16(v);
}

// Two side by side; `at` is even.
__device__ __forceinline__ void put_acts(const pl_cu_acts &out, size_t at, float v, float w)
{
    if (out.bf16) *(uint32_t *)((uint16_t *)out.bf16 + at) = pack2<false>(v, w);
    if (out.f16) *(uint32_t *)((uint16_t *)out.f16 + at) = pack2<true>(v, w);
}

__device__ __forceinline__ float silu_of(float gate, float up)
{
    return __fmul_rn(__fdividef(gate, __fadd_rn(1.0f, __expf(-gate))), up);
}

// The sum over a warp, the same in all its lanes.
__device__ __forceinline__ float warp_sum(float v)
{
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    return v;
}

// N times four values of a row of k, a warp's 128 * N in all, from column `i` + 4 a lane on;
// zeros past its end. They are asked for at once.
template <int N>
struct piece { float4 v[N]; };

template <int N>
__device__ __forceinline__ piece<N> piece_of(const float *row, int i, int k)
{
    piece<N> p;
    i += threadIdx.x % 32 * 4;
    if (k % 4 == 0) {
#pragma unroll
        for (int j = 0; j < N; j++)
            p.v[j] = i + j * 128 < k ? *(const float4 *)(row + i + j * 128) : make_float4(0, 0, 0, 0);
    } else {
        for (int j = 0; j < N; j++, i += 128)
            p.v[j] = make_float4(i < k ? row[i] : 0, i + 1 < k ? row[i + 1] : 0,
                                 i + 2 < k ? row[i + 2] : 0, i + 3 < k ? row[i + 3] : 0);
    }
    return p;
}

// What a row of k whose squares have this sum is multiplied by.
__device__ __forceinline__ float norm_factor(float squares, int k, float eps)
{
    return __frcp_rn(__fsqrt_rn(squares / k + eps));
}

__device__ __forceinline__ float add_squares(float sum, const float4 &v)
{
    sum = __fmaf_rn(v.x, v.x, sum);
    sum = __fmaf_rn(v.y, v.y, sum);
    sum = __fmaf_rn(v.z, v.z, sum);
    return __fmaf_rn(v.w, v.w, sum);
}

// The same for a row that a warp reads; `first` is its first piece.
template <int N>
__device__ __forceinline__ float norm_factor(const piece<N> &first, const float *row, int k, float eps)
{
    float sum = 0;
    piece<N> p = first;
    for (int i = 0; i < k; i += 128 * N) {
        if (i) p = piece_of<N>(row, i, k);
#pragma unroll
        for (int j = 0; j < N; j++) sum = add_squares(sum, p.v[j]);
    }
    return norm_factor(warp_sum(sum), k, eps);
}

__device__ __forceinline__ float normed(float v, float by, float weight)
{
    return __fmul_rn(__fmul_rn(v, by), weight);
}

// A warp's: the norm of a row of k, filled with zeros to a multiple of 16, by four values:
// put(column, values).
template <int N, class F>
__device__ __forceinline__ void norm_row(const float *row, const float *weight, int k, float eps, const F &put)
{
    piece<N> p = piece_of<N>(row, 0, k), w = piece_of<N>(weight, 0, k);
    float by = norm_factor(p, row, k, eps);
    for (int i = 0; i < k; i += 128 * N) {
        if (i) p = piece_of<N>(row, i, k), w = piece_of<N>(weight, i, k);
#pragma unroll
        for (int j = 0; j < N; j++) {
            int at = i + j * 128 + threadIdx.x % 32 * 4;
            const float4 &v = p.v[j], &u = w.v[j];
            if (at < pl_cu_tiles(k) * 16)
                put(at, make_float4(normed(v.x, by, u.x), normed(v.y, by, u.y), normed(v.z, by, u.z),
                                    normed(v.w, by, u.w)));
        }
    }
}

// Where column k of row n lies.
__device__ __forceinline__ size_t packed_at(int n, int k, int pitch)
{
    int lane = n % 8 * 4 + k % 8 / 2;
    size_t tile = (size_t)(n / 8) * (pitch / 2) + k / 32;
    return tile * 256 + lane * 8 + k / 16 % 2 * 4 + k / 8 % 2 * 2 + k % 2;
}

// ---- the best token ------------------------------------------------------------------

// As sample.c counts them: no number is the lowest, infinities are the ends. A key has the
// value's bits in an order of unsigned numbers, then the id, lower ones higher.
__device__ __forceinline__ uint64_t key_of(float v, int id)
{
    float w = v == v ? fminf(fmaxf(v, -FLT_MAX), FLT_MAX) : -FLT_MAX;
    uint32_t bits = __float_as_uint(w + 0.0f); // no -0
    bits = bits >> 31 ? ~bits : bits | 1u << 31;
    return (uint64_t)bits << 32 | (uint32_t)~id;
}

// ---- launches ------------------------------------------------------------------------

// A kernel may start before the one ahead of it has ended, where GPUs can do so: it says
// with `started` that the next one may, and waits with `wait_for_input` before it touches
// what others write or read. Every kernel calls both.
__device__ __forceinline__ void started()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void wait_for_input()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

struct gpu { int major, sms; };

static inline const gpu &this_gpu()
{
    static const gpu g = [] {
        gpu v = {};
        cudaDeviceGetAttribute(&v.major, cudaDevAttrComputeCapabilityMajor, 0);
        cudaDeviceGetAttribute(&v.sms, cudaDevAttrMultiProcessorCount, 0);
        return v;
    }();
    return g;
}

struct launch {
    cudaStream_t stream;
    dim3 grid, block;
    size_t shared;
    int cluster = 1; // CTAs of a cluster

    launch(cudaStream_t stream, dim3 grid, int threads, size_t shared = 0)
        : stream(stream), grid(grid), block(threads), shared(shared)
    {
    }

    template <class... P, class... A>
    cudaError_t operator()(void (*kernel)(P...), A... args) const
    {
        cudaLaunchAttribute with[2] = {};
        cudaLaunchConfig_t c = {};
        c.gridDim = grid, c.blockDim = block, c.dynamicSmemBytes = shared, c.stream = stream;
        c.attrs = with;
        with[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        with[0].val.programmaticStreamSerializationAllowed = 1;
        with[1].id = cudaLaunchAttributeClusterDimension;
        with[1].val.clusterDim.x = cluster, with[1].val.clusterDim.y = with[1].val.clusterDim.z = 1;
        c.numAttrs = this_gpu().major < 9 ? 0 : cluster > 1 ? 2 : 1;
        return cudaLaunchKernelEx(&c, kernel, P(args)...);
    }
};

// Lets a kernel have that much shared memory, which is asked for once.
template <class F>
static inline cudaError_t allow_shared(F *kernel, size_t bytes)
{
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}
