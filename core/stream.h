/* SPDX-License-Identifier: Apache-2.0
 *
 * stream.h - turns a sequence's tokens into text and events; looks for stop strings.
 *
 * Owns     the running streams by sequence; text that is held back; tokens until Lua
 *          takes them; the sequence so far, if it may have to continue elsewhere.
 * Ignores  sockets (http.h writes), where tokens come from, the format of the answer.
 * Thread   io; pl_stream_* of perilune.h: lua.
 *
 *               +--------- start, send ---------+
 *               v                               |
 *   open --start, send--> running --lost, recalled--> lost
 *                            |                          |
 *      finish, stop string,  |                          | cancel,
 *      cancel, client gone   v                          v client gone
 *                           over <----------------------+
 *
 * An engine and another process look the same to a stream: a place that sends tokens and
 * can be told to stop. Each start gets a new number, so anything that an earlier place
 * still sends is ignored. Everything else stays here: decoder, stop strings, text.
 *
 * Text is held back only while it may be the beginning of a stop string: each stop string
 * is a Knuth-Morris-Pratt automaton whose state is the number of its bytes that the text
 * currently ends with. The stop string that ends first wins, regardless of token bounds.
 */
#ifndef PL_STREAM_H
#define PL_STREAM_H

#include "http.h"

typedef struct pl_place { /* where a sequence runs */
    /* `aborted`: by its client or for it, not because it has all it wanted. */
    void (*cancel)(void *ctx, int32_t seq, bool aborted);
    void *ctx;
} pl_place;

typedef struct pl_sender { /* who brings sequences to other processes; io */
    void *ctx;
    /* As pl_wire_put_seq wrote it; tokens or pl_streams_lost will follow. */
    void (*send)(void *ctx, int32_t seq, int32_t peer, int index, const pl_buf *parcel);
    void (*cancel)(void *ctx, int32_t seq, bool aborted);
} pl_sender;

typedef struct pl_streams pl_streams;
pl_streams *pl_streams_open(pl_loop *loop);                      /* any */
void pl_streams_sender(pl_streams *ss, const pl_sender *sender); /* lua, before a send */
void pl_streams_close(pl_streams *ss); /* after the loop's last reference */
void pl_streams_stop(pl_streams *ss);  /* ends all, and all to come */
pl_stream *pl_streams_make(pl_streams *ss, const pl_text *text, int mode,
                           pl_exchange *x); /* lua */
/* Its first step began: then, or so long after it was sent away. */
void pl_streams_started(pl_streams *ss, int32_t seq, int64_t ns);
void pl_streams_waited(pl_streams *ss, int32_t seq, int64_t ns);
void pl_streams_token(pl_streams *ss, const pl_token *t, int64_t ns);
/* A sequence that was sent away runs no more: PL_LOST_*, a status, a text. */
void pl_streams_lost(pl_streams *ss, int32_t seq, int why, int status, const char *text,
                     size_t len);

#endif
