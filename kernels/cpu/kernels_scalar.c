/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels for any CPU.
 */
#include "cpu/cpu.h"
#include "cpu/lanes_scalar.inl"

#include "math.inl"

#include "attend.inl"
#include "linear.inl"
#include "rows.inl"

const pl_cpu_kernels pl_cpu_scalar = {
    .name = "scalar",
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
