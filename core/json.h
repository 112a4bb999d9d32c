/* SPDX-License-Identifier: Apache-2.0
 *
 * json.h - JSON from outside, strict and in order.
 *
 * Owns     the documents that pl_json_open returned, each in two blocks of memory.
 * Ignores  what they mean; JSON that perilune writes (Lua does that).
 * Thread   any; a document belongs to one thread at a time, or to any number of readers.
 *
 * Its functions are all public: perilune/base.h, section "JSON". json_read.c makes values
 * of a text, json.c answers for them.
 */
#ifndef PL_JSON_H
#define PL_JSON_H

#include "base.h"

enum {
    PL_JSON_MAX_DEPTH = 512
}; /* arrays and objects inside each other */

/* A document is one array of values in the order of the text: the items of an array stand
 * behind it, in an object each key (a string) stands before its value. Equal keys are all
 * there. */
struct pl_json {
    uint8_t kind;
    bool is_long;  /* an integer beyond 64 bits: `bytes` has its digits */
    uint32_t n;    /* bytes of a string or of digits; items of an array or object */
    uint32_t span; /* how many values it takes, itself included */
    union {
        int64_t integer;
        double real;
        const char *bytes; /* ends in NUL */
    } as;
};

#endif
