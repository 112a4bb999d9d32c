/* SPDX-License-Identifier: Apache-2.0
 *
 * wire.h - sequences, tokens, heartbeats and changes of a cache as bytes between
 *          processes.
 *
 * Owns     the encoding: little-endian. A sequence is parts, each with its tag and
 *          length. An absent part means the default. A reader skips a part it does not
 *          know if the tag permits that (PL_TAG_ADVICE) and otherwise refuses the
 *          sequence: ignoring an option would give a wrong answer. A token may grow at
 *          its end.
 * Ignores  how bytes travel, and who they are for.
 * Thread   any
 *
 * Input comes from outside: every count and length is checked against the bytes present
 * before it is used.
 */
#ifndef PL_WIRE_H
#define PL_WIRE_H

#include "change.h"
#include "seq.h"

#pragma GCC visibility push(default) /* tests decode frozen bytes */

/* The whole of a sequence as it stands now, to be continued elsewhere. */
void pl_wire_put_seq(pl_buf *out, const pl_seq *s);
/* PL_EFORMAT; PL_EUNSUPPORTED: it has a part that this version must know and does not. */
pl_status pl_wire_get_seq(const void *data, size_t len, pl_seq **out);
/* A token under the number that the peer gave its sequence; waited_ns: what the sequence
 * waited in line there, with its first token. */
void pl_wire_put_token(pl_buf *out, const pl_token *t, int32_t seq, int64_t waited_ns);
/* Reads the token at *at and moves it on. `tops`: scratch that t->top points into until
 * the next call. PL_EFORMAT. */
pl_status pl_wire_get_token(const char **at, const char *end, pl_token *t,
                            int64_t *waited_ns, pl_buf *tops);

enum {
    PL_BEAT_ENGINES = 64 /* of a process, at most */
};
typedef struct pl_beat {                      /* what a process counts */
    uint64_t serial;                          /* of the hello it goes with */
    int64_t now_ns;                           /* when it came */
    uint64_t there;                           /* a bit for each engine that it has */
    pl_engine_stats engines[PL_BEAT_ENGINES]; /* moments: by the reader's clock */
} pl_beat;
/* The head of a heartbeat, then each engine. */
void pl_wire_put_beat(pl_buf *out, uint64_t serial);
void pl_wire_put_engine(pl_buf *out, uint32_t index, const pl_engine_stats *st,
                        int64_t now_ns);
pl_status pl_wire_get_beat(const void *data, size_t len, int64_t now_ns,
                           pl_beat *out); /* PL_EFORMAT */

/* Without what the blocks hold. */
void pl_wire_put_changes(pl_buf *out, const pl_changes *c);
pl_status pl_wire_get_changes(const void *data, size_t len, pl_changes **out);

#pragma GCC visibility pop

#endif
