/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels for AVX2, FMA and F16C.
 */
#include "cpu/cpu.h"

#if defined(__x86_64__)
#include "cpu/lanes_avx2.inl"

#define KERNELS pl_cpu_avx2
#define KERNELS_NAME "avx2"
#define KERNELS_BF16 false
#include "table.inl"
#endif
