/* SPDX-License-Identifier: Apache-2.0
 *
 * stream.h - turns a sequence's tokens into text and events; looks for stop strings.
 *
 * Owns     the decoder; text that is held back; tokens until Lua takes them.
 * Ignores  sockets (http.h writes), where the sequence runs (course.h), the format of
 *          the answer.
 * Thread   io; pl_stream_* of perilune.h: lua.
 *
 * A stream ends once: with its sequence, a stop string, a cancel, or its client. Until
 * then its course may be lost and start again; the text goes on where it was.
 *
 * Text is held back only while it may be the beginning of a stop string: each stop string
 * is a Knuth-Morris-Pratt automaton whose state is the number of its bytes that the text
 * currently ends with. The stop string that ends first wins, regardless of token bounds.
 */
#ifndef PL_STREAM_H
#define PL_STREAM_H

#include "course.h"
#include "http.h"

typedef struct pl_streams pl_streams;
pl_streams *pl_streams_open(pl_loop *loop, pl_courses *courses); /* any */
void pl_streams_close(pl_streams *ss); /* after the loop's last reference */
void pl_streams_stop(pl_streams *ss);  /* ends all, and all to come */
pl_stream *pl_streams_make(pl_streams *ss, const pl_text *text, int mode,
                           pl_exchange *x); /* lua */

#endif
