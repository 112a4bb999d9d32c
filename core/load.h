/* SPDX-License-Identifier: Apache-2.0
 *
 * load.h - what each worker has to do, as far as this process knows.
 *
 * Owns     per worker: what the sequences that were sent there add up to (a charge each),
 *          and how much of what the worker itself reports comes from others.
 * Ignores  which worker that is, and what is decided by it.
 * Thread   charges begin on lua and go on on io, so sums are atomic; reports are lua's.
 *
 * A report is of the past, and a charge is not: so a report is only asked what others
 * than this process have sent there, and that is added to what is known here.
 */
#ifndef PL_LOAD_H
#define PL_LOAD_H

#include "base.h"

typedef struct pl_charge { /* part of its sequence's owner; all zero: none */
    pl_load *load;
    int32_t prefill, unread; /* prompt tokens: to be computed; to be read or found */
    int32_t blocks, n_tokens;
    bool started, heard;
    int64_t sent_ns, last_ns;
} pl_charge;

/* lua: a sequence of so many tokens, the first n_cached of which are thought to be cached,
 * goes there. */
void pl_charge_begin(pl_charge *c, pl_load *to, int32_t n_tokens, int32_t n_cached);
void pl_charge_unread(pl_charge *c);  /* lua, then: the others are read elsewhere */
void pl_charge_started(pl_charge *c); /* io: it left the line */
void pl_charge_token(pl_charge *c, int64_t ns);
void pl_charge_end(pl_charge *c); /* also where there is none */

typedef struct pl_load_view { /* lua: blocks, requests, seconds */
    int32_t prefilling, decoding, free, capacity, waiting, running;
    float ttft, itl;
} pl_load_view;
void pl_load_look(const pl_load *l, pl_load_view *out);

#endif
