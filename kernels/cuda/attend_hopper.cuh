// SPDX-License-Identifier: Apache-2.0
//
// attend_hopper.cuh - attention on GPUs of compute capability 9.0.
#pragma once

#include "attend.cuh"

// Tiles of up to PL_CU_MANY queries; whether this is such a GPU, and heads are not too wide.
bool pl_cu_hopper_attends(int width);
cudaError_t pl_cu_attend_hopper(cudaStream_t s, const pl_cu_attention *a, const pl_cu_queries *tiles,
                                int n, pl_cu_acts out);
