/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune.h - the only way into the engine. C, C++ and LuaJIT's FFI read the same text.
 *
 * The text between the two marks in each header included below is compiled as C and also
 * embedded in the library: `pl_cdef()` returns it, and lua/perilune/ffi.lua passes it to
 * ffi.cdef. So it contains declarations only: enums for constants, pointers to structs,
 * no macros. A header uses only what those above it declare.
 *
 * Conventions. A function that can fail returns a pl_status (negative means failure) or
 * NULL; pl_error_text() then says why, per thread. Outputs are written on success only.
 * Strings come with their length; functions copy the strings they are given unless noted.
 * `close` accepts NULL. Section headings say which thread may call the functions below.
 */
#ifndef PERILUNE_H
#define PERILUNE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#include "perilune/base.h"
#include "perilune/text.h"
#include "perilune/model.h"
#include "perilune/engine.h"
#include "perilune/serve.h"
#include "perilune/fleet.h"
#include "perilune/decide.h"
#include "perilune/relay.h"
#include "perilune/sim.h"
#include "perilune/tools.h"

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
