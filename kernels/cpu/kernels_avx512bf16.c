/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels for AVX-512 with VNNI and BF16.
 */
#include "cpu/cpu.h"

#if defined(__x86_64__)
#include "cpu/lanes_avx512.inl"

#include "math.inl"

#include "attend.inl"
#include "linear.inl"
#include "rows.inl"

const pl_cpu_kernels pl_cpu_avx512bf16 = {
    .name = "avx512bf16",
    .bf16 = true,
    .linear = linear,
    .reduce = reduce,
    .norm = norm,
    .gate = gate,
    .add = add,
    .softmax = softmax,
    .rope = rope,
    .kv_write = kv_write,
    .attend = attend,
    .merge = merge,
    .finish = finish,
};
#endif
