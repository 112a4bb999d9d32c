// SPDX-License-Identifier: Apache-2.0
//
// gemm.cuh - what the kernels of matrix products share: which tile is whose, and results.
#pragma once

#include "mma.cuh"

__device__ __forceinline__ void put(const pl_cu_part &p, size_t row, int n, float v)
{
    if (p.bias) v = __fadd_rn(v, p.bias[n]);
    float *out = p.out + row * p.stride + n;
    *out = p.add ? __fadd_rn(*out, v) : v;
}

__device__ __forceinline__ void put_gated(const pl_cu_gemm &g, size_t row, int n, float gate, float up)
{
    put_act(g.gated, row * (pl_cu_tiles(g.parts[0].n) * 16) + n, silu_of(gate, up));
}

__host__ __device__ static inline bool is_gated(const pl_cu_gemm &g) { return g.gated.bf16 || g.gated.f16; }

// The part that holds tile `tile` of all parts' tiles of 16 * each rows; `tile` becomes the
// part's own. Where two parts are gated, a tile is of both.
__device__ __forceinline__ int find_part(const pl_cu_gemm &g, int &tile, int each)
{
    int part = 0;
    for (; !is_gated(g) && part < g.n_parts - 1; part++) {
        int n = (pl_cu_tiles(g.parts[part].n) + each - 1) / each;
        if (tile < n) break;
        tile -= n;
    }
    return part;
}

static inline int count_tiles(const pl_cu_gemm *g, int each)
{
    int n = 0, parts = is_gated(*g) ? 1 : g->n_parts;
    for (int i = 0; i < parts; i++) n += (pl_cu_tiles(g->parts[i].n) + each - 1) / each;
    return n;
}

static inline int count_slices(const pl_cu_gemm *g)
{
    return g->slice ? (g->k + PL_CU_SLICE - 1) / PL_CU_SLICE : 1;
}

// Products of more than 8 rows on GPUs of compute capability 9.0, and whether this is one.
bool pl_cu_hopper_multiplies();
cudaError_t pl_cu_multiply_hopper(cudaStream_t s, const pl_cu_gemm *g);
