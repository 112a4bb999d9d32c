// SPDX-License-Identifier: Apache-2.0
//
// attend_hopper.cuh - attention on GPUs of compute capability 9.0.
#pragma once

#include "attend.cuh"
#include "hopper.cuh"

#if PL_HOPPER

// Zeros for what will be read before anything was copied there: it has no weight, but must be
// finite, as what older splits leave is.
__device__ __forceinline__ void clear(void *p, int bytes)
{
    for (int i = threadIdx.x * 16; i < bytes; i += blockDim.x * 16)
        *(uint4 *)((char *)p + i) = make_uint4(0, 0, 0, 0);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A warp asks for a split, a lane for 16 positions of it, up to the last one.
template <int W>
__device__ __forceinline__ void copy_split(const pl_cu_attention &a, const tile_of &o, int split, void *to,
                                           uint64_t *full)
{
    int lane = threadIdx.x % 32, position = split * SPLIT + lane * 16;
    int groups = min(o.last / 16 - split * GROUPS + 1, (int)GROUPS);
    const uint16_t *from = lane < groups ? run_at(a, o.t.table, position, o.kv_head, W) : NULL;
    if (lane == 0) arrive_and_expect(full, groups * W * 64);
    __syncwarp();
    if (from) copy_bulk((char *)to + lane * W * 64, from, W * 64, full);
}

#endif

// Tiles of up to PL_CU_MANY queries; whether this is such a GPU, and heads are not too wide.
bool pl_cu_hopper_attends(int width);
cudaError_t pl_cu_attend_hopper(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles,
                                int n, pl_cu_acts out);
