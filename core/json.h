/* SPDX-License-Identifier: Apache-2.0
 *
 * json.h - JSON from outside, strict and in order; over Jansson.
 *
 * Owns     the documents that pl_json_open returned, as trees.
 * Ignores  what they mean; JSON that perilune writes (Lua does that).
 * Thread   any; a document belongs to one thread at a time, or to any number of readers.
 *
 * Its functions are all public: perilune/base.h, section "JSON".
 */
#ifndef PL_JSON_H
#define PL_JSON_H

#include "base.h"

enum {
    PL_JSON_MAX_DEPTH = 512
}; /* arrays and objects inside each other */

#endif
