/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels for any CPU.
 */
#include "cpu/cpu.h"
#include "cpu/lanes_scalar.inl"

#define KERNELS pl_cpu_scalar
#define KERNELS_NAME "scalar"
#define KERNELS_BF16 false
#include "table.inl"
