/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels for AVX-512 with VNNI and BF16.
 */
#include "cpu/cpu.h"

#if defined(__x86_64__)
#include "cpu/lanes_avx512.inl"

#define KERNELS pl_cpu_avx512bf16
#define KERNELS_NAME "avx512bf16"
#define KERNELS_BF16 true
#include "table.inl"
#endif
