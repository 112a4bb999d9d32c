// SPDX-License-Identifier: Apache-2.0
//
// hopper.cuh - what only GPUs of compute capability 9.0 have: barriers that copies arrive at,
// bulk copies, and matrix products by four warps (wgmma).
#pragma once

#include "mma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define PL_HOPPER 1
#else
#define PL_HOPPER 0 // kernels are empty, and are not launched: see is_hopper
#endif

// Whether this kernel, whose body is for Hopper only, was compiled for this GPU.
template <class F>
static inline bool is_hopper(F *kernel)
{
    cudaFuncAttributes a;
    return this_gpu().major == 9 && !cudaFuncGetAttributes(&a, kernel) && a.ptxVersion / 10 == 9;
}

#if PL_HOPPER

// ---- barriers ------------------------------------------------------------------------

__device__ __forceinline__ void open_barrier(uint64_t *b, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(b)), "r"(arrivals)
                 : "memory");
}

__device__ __forceinline__ void barriers_opened()
{
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(b)) : "memory");
}

// Arrives, and expects so many bytes of copies before the phase is over.
__device__ __forceinline__ void arrive_and_expect(uint64_t *b, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(b)),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void wait_phase(uint64_t *b, uint32_t parity)
{
    asm volatile("{\n\t.reg .pred done;\n"
                 "again:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
                 "@!done bra again;\n\t}" ::"r"(shared_at(b)),
                 "r"(parity)
                 : "memory");
}

// Which stage of a ring is next, and which of its phases.
template <int STAGES>
struct ring {
    int at = 0;
    uint32_t phase = 0;

    __device__ __forceinline__ void next()
    {
        if (++at == STAGES) at = 0, phase ^= 1;
    }
};

// Registers go from the four warps that load to those that compute: each has N from here on.
template <int N>
__device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
__device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// ---- copies --------------------------------------------------------------------------

__device__ __forceinline__ void copy_bulk(void *to, const void *from, uint32_t bytes, uint64_t *b)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(shared_at(to)), "l"(from), "r"(bytes),
                 "r"(shared_at(b))
                 : "memory");
}

// A box of a table of two dimensions, from column x and row y on.
__device__ __forceinline__ void copy_box(void *to, const void *map, int x, int y, uint64_t *b)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_at(to)), "l"(map), "r"(x), "r"(y),
                 "r"(shared_at(b))
                 : "memory");
}

// ---- products ------------------------------------------------------------------------

// A matrix in shared memory, rows of 64 values whose groups of 8 are permuted by the row
// (swizzle of 128 bytes). `lead` and `stride`: bytes to the next group of 64 columns and of 8
// rows, for a matrix that is read across; else the latter alone counts.
__device__ __forceinline__ uint64_t matrix_at(const void *p, uint32_t lead, uint32_t stride)
{
    return (uint64_t)(shared_at(p) >> 4 & 0x3fff) | (uint64_t)(lead >> 4) << 16 |
           (uint64_t)(stride >> 4) << 32 | (uint64_t)1 << 62;
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until all but the last N groups of products are done.
template <int N>
__device__ __forceinline__ void products_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// What a wait is for: values that products wrote are not used before.
template <int N>
__device__ __forceinline__ void products_done(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define PL_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), \
                 "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define PL_D16(i) PL_D8(i), PL_D8(i + 8)
#define PL_D32(i) PL_D16(i), PL_D16(i + 16)
#define PL_D64(i) PL_D32(i), PL_D32(i + 32)
#define PL_R8 "{%0,%1,%2,%3,%4,%5,%6,%7}"
#define PL_R16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define PL_R32                                                                              \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"    \
    "%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define PL_R64                                                                              \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"    \
    "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,"   \
    "%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"

// d = a . b (+ d, if `add`), 64 rows of a by N of b over 16 columns; a from registers.
// A0 .. A5: the numbers of the operands after d.
#define PL_WGMMA(N, TYPE, REGS, D, A0, A1, A2, A3, A4, A5, TRANS)                           \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #A5 ", 0;\n\t"                     \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " " REGS   \
                 ", {%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "}, %" #A4 ", p, 1, 1, " #TRANS       \
                 ";\n\t}"                                                                   \
                 : D                                                                        \
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(add))

template <bool F16>
__device__ __forceinline__ void wgmma(float (&d)[8], const uint4 &a, uint64_t b, int add)
{
    if (F16) PL_WGMMA(16, "f16", PL_R8, PL_D8(0), 8, 9, 10, 11, 12, 13, 0);
    else PL_WGMMA(16, "bf16", PL_R8, PL_D8(0), 8, 9, 10, 11, 12, 13, 0);
}

template <bool F16>
__device__ __forceinline__ void wgmma(float (&d)[16], const uint4 &a, uint64_t b, int add)
{
    if (F16) PL_WGMMA(32, "f16", PL_R16, PL_D16(0), 16, 17, 18, 19, 20, 21, 0);
    else PL_WGMMA(32, "bf16", PL_R16, PL_D16(0), 16, 17, 18, 19, 20, 21, 0);
}

template <bool F16>
__device__ __forceinline__ void wgmma(float (&d)[32], const uint4 &a, uint64_t b, int add)
{
    if (F16) PL_WGMMA(64, "f16", PL_R32, PL_D32(0), 32, 33, 34, 35, 36, 37, 0);
    else PL_WGMMA(64, "bf16", PL_R32, PL_D32(0), 32, 33, 34, 35, 36, 37, 0);
}

template <bool F16>
__device__ __forceinline__ void wgmma(float (&d)[64], const uint4 &a, uint64_t b, int add)
{
    if (F16) PL_WGMMA(128, "f16", PL_R64, PL_D64(0), 64, 65, 66, 67, 68, 69, 0);
    else PL_WGMMA(128, "bf16", PL_R64, PL_D64(0), 64, 65, 66, 67, 68, 69, 0);
}

// The same in f16, b read across: its rows are columns.
__device__ __forceinline__ void wgmma_across(float (&d)[32], const uint4 &a, uint64_t b, int add)
{
    PL_WGMMA(64, "f16", PL_R32, PL_D32(0), 32, 33, 34, 35, 36, 37, 1);
}

// In f16, both from shared memory.
__device__ __forceinline__ void wgmma_shared(float (&d)[64], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %66, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " PL_R64
                 ", %64, %65, p, 1, 1, 0, 0;\n\t}"
                 : PL_D64(0)
                 : "l"(a), "l"(b), "r"(add));
}

#endif
