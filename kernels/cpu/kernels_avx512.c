/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels for AVX-512 with VNNI.
 */
#include "cpu/cpu.h"

#if defined(__x86_64__)
#include "cpu/lanes_avx512.inl"

#define KERNELS pl_cpu_avx512
#define KERNELS_NAME "avx512"
#define KERNELS_BF16 false
#include "table.inl"
#endif
