/* SPDX-License-Identifier: Apache-2.0
 *
 * stream.h - what becomes of a sequence's tokens: text, stop strings, events.
 *
 * Owns     the running streams by sequence; text that is held back; tokens until Lua
 *          takes them.
 * Ignores  sockets (http.h writes), how tokens come about, what the answer looks like.
 * Thread   io; pl_stream_* of perilune.h: lua.
 *
 *   open --start--> running --finish, stop string--> over --close--> (freed)
 *                      |                              ^
 *                      +------ cancel, client gone ---+
 *
 * Text is held back only as far as it may be the beginning of a stop string: each stop
 * string is an automaton (Knuth, Morris, Pratt) whose state says how many of its bytes
 * the text ends in. The stop string that ends first wins, wherever tokens begin or end.
 */
#ifndef PL_STREAM_H
#define PL_STREAM_H

#include "http.h"

typedef struct pl_streams pl_streams;
pl_streams *pl_streams_open(pl_loop *loop); /* any */
void pl_streams_close(pl_streams *ss);      /* after the loop's last reference */
void pl_streams_stop(pl_streams *ss);       /* ends all, and all to come */
pl_stream *pl_streams_make(pl_streams *ss, const pl_text *text, int mode,
                           pl_exchange *x); /* lua */
/* Its first step began. */
void pl_streams_started(pl_streams *ss, int32_t seq, int64_t ns);
void pl_streams_token(pl_streams *ss, const pl_token *t, int64_t ns);

#endif
