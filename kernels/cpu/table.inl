/* SPDX-License-Identifier: Apache-2.0
 *
 * All kernels over the lanes that the including file has chosen, as one table: KERNELS is
 * its name in C, KERNELS_NAME the variant's, KERNELS_BF16 whether rows may be bf16.
 */
#include "math.inl"

#include "attend.inl"
#include "linear.inl"
#include "rows.inl"

const pl_cpu_kernels KERNELS = {
    .name = KERNELS_NAME,
    .bf16 = KERNELS_BF16,
    .linear = linear,
    .reduce = reduce,
    .norm = norm,
    .gate = {[PL_GATE_SILU] = gate_silu, [PL_GATE_GELU_TANH] = gate_gelu_tanh},
    .cap = cap,
    .add = add,
    .softmax = softmax,
    .rope = rope,
    .kv_write = kv_write,
    .attend = attend,
    .merge = merge,
    .finish = finish,
};
