/* SPDX-License-Identifier: Apache-2.0
 *
 * remote_own.h - what the files of remote share.
 *
 * Owns     what is under way with each peer, which is given up as one when it is lost.
 * Thread   io
 *
 * Messages, little-endian; a tail without a length goes to the message's end:
 *
 *   SUBMIT   index u32, number i32, a sequence (wire.h)      frontend to worker
 *   CANCEL   number i32                                      frontend to worker
 *   TOKENS   tokens (wire.h)                                 worker to frontend
 *   REFUSED  number i32, status i32, why                     worker to frontend
 *   CALL     number i32, text                                anyone
 *   REPLY    number i32, status i32, text                    anyone
 *
 * A number is the sender's own of SUBMIT or CALL, never used again.
 */
#ifndef PL_REMOTE_OWN_H
#define PL_REMOTE_OWN_H

#include "link.h"
#include "remote.h"

enum {
    MSG_SUBMIT = 1,
    MSG_CANCEL,
    MSG_TOKENS,
    MSG_REFUSED,
    MSG_CALL,
    MSG_REPLY
};
enum {
    MAX_SERVED = 64,
    MAX_GUESTS = 65536, /* a peer's sequences */
    MAX_CALLS = 1024    /* to others; and a peer's to us */
};

typedef struct side side;

typedef struct guest { /* a peer's sequence that runs here */
    struct guest *next, **link;
    side *side;
    pl_engine *engine;
    int32_t seq, number;
    int64_t came_ns, waited_ns;
    pl_buf label; /* for the log */
} guest;

typedef struct away { /* a sequence of ours that runs there */
    struct away *next, **link;
    side *side;
    int32_t seq;
    bool started;
} away;

struct side { /* what is under way with one peer; gone when nothing is */
    pl_remote *r;
    pl_link *link; /* NULL: lost */
    int n;         /* guests, aways, calls, and those that are looking at it */
    int n_guests, n_calls;
    size_t call_bytes;
    guest *guests;
    away *aways;
    pl_map by_number; /* guests */
    pl_buf out;       /* tokens of this step; counted in n while it is in line: */
    side *next_out;
    bool gathered;
};

struct pl_remote {
    pl_loop *loop;
    pl_streams *streams;
    pl_links *links; /* NULL: no bus; lua sets it, io uses it when asked to by lua */
    char id[17];
    pl_map sides;         /* by link */
    pl_map guests, aways; /* by sequence here */
    pl_engine *served[MAX_SERVED];
    side *first_out;
    pl_buf message, tops; /* scratch */
    pl_map peers;         /* news of them */
    pl_news bus_news;
    int malformed; /* a metric */
    int64_t complained_ns;
    bool stopped;

    pl_call *calls; /* all under way, both ways */
    pl_map asked;   /* ours, by number */
    uv_timer_t timer;
    bool timing;
    int64_t wakes_ns;   /* when the timer fires; 0: it does not */
    atomic_int n_asked; /* from lua's asking to the news of the answer */
    int32_t last_call;  /* lua */
};

typedef struct reader { /* of a message */
    const char *at, *end;
} reader;
/* PL_EFORMAT where it ends too early. */
pl_status pl_reader_i32(reader *in, int32_t *out);

/* The side of a link, with a hold on it; `make`: even if nothing is under way. */
side *pl_side_take(pl_remote *r, pl_link *l, bool make);
void pl_side_put(side *s);
/* A message that begins with this, and more; then it is sent (the side may be lost). */
pl_buf *pl_remote_begin(pl_remote *r, int32_t first);
void pl_remote_i32(pl_buf *message, int32_t v);
void pl_remote_send(side *s, int kind);
void pl_remote_malformed(pl_remote *r, const char *what);

/* remote_call.c */
void pl_calls_begin(pl_remote *r); /* io, with the bus */
void pl_calls_stop(pl_remote *r);
void pl_calls_lost(pl_remote *r, const side *s);
pl_status pl_calls_asked(side *s, reader in);
pl_status pl_calls_replied(side *s, reader in);

#endif
