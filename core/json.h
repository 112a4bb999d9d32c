/* SPDX-License-Identifier: Apache-2.0
 *
 * json.h - JSON from outside, strict and in order; over Jansson.
 *
 * Owns     the documents that pl_json_open gave out, as trees.
 * Ignores  what they mean; JSON of perilune's own making (Lua writes that).
 * Thread   any; a document belongs to one thread at a time, or to all who only read.
 *
 * Its functions are all public: perilune.h, section "JSON".
 */
#ifndef PL_JSON_H
#define PL_JSON_H

#include "base.h"

enum {
    PL_JSON_MAX_DEPTH = 512
}; /* arrays and objects inside each other */

#endif
