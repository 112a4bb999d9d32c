// SPDX-License-Identifier: Apache-2.0
//
// mma.cuh - the one tensor-core step that everything here is made of, and conversions.
#pragma once

#include "cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// c += a . b, 16 weight rows by 8 rows over 16 columns. The order of the 16 columns changes
// no bit, so lane t has columns 4t .. 4t + 3 of both operands.
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

// Values beyond f16 become its largest: no infinity gets into a sum.
__device__ __forceinline__ uint16_t to_f16(float v)
{
    return __half_as_ushort(__float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f)));
}

__device__ __forceinline__ uint16_t to_bf16(float v)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
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

// The sum over a warp, the same in all its lanes.
__device__ __forceinline__ float warp_sum(float v)
{
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    return v;
}
