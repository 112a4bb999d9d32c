/* SPDX-License-Identifier: Apache-2.0
 *
 * remote_own.h - what the files of remote share.
 *
 * Owns     what is under way with each peer, which is given up as one when it is lost.
 * Thread   io
 *
 * A number in a message is the sender's own of SUBMIT or CALL, never used again.
 */
#ifndef PL_REMOTE_OWN_H
#define PL_REMOTE_OWN_H

#include "link.h"
#include "remote.h"
#include "wire.h"

enum {
    MAX_SERVED = PL_BEAT_ENGINES,
    MAX_GUESTS = 65536, /* a peer's sequences */
    MAX_CALLS = 1024,   /* to others; and a peer's to us */
    PL_SERVICES = 8
};

typedef struct guest { /* a peer's sequence that runs here */
    struct guest *next, **link;
    pl_side *side;
    pl_engine *engine;
    int32_t seq, number;
    uint64_t ticket; /* of KV that it waits for, or, if it lends, that others may */
    bool lends;
    int64_t came_ns, waited_ns;
    pl_buf label; /* for the log */
} guest;

typedef struct away { /* a sequence of ours that runs there */
    struct away *next, **link;
    pl_side *side;
    int32_t seq;
    bool started;
} away;

struct pl_side { /* what is under way with one peer; gone when nothing is */
    pl_remote *r;
    pl_link *link; /* NULL: lost */
    int n;         /* guests, aways, calls, and those that are looking at it */
    int n_guests, n_calls;
    size_t call_bytes;
    guest *guests;
    away *aways;
    pl_map by_number; /* guests */
    pl_buf out;       /* tokens of this step; counted in n while it is in line: */
    pl_side *next_out;
    bool gathered;
};

struct pl_remote {
    pl_loop *loop;
    pl_courses *courses;
    pl_xfer *xfer;
    pl_links *links; /* NULL: no bus; lua sets it, io uses it when asked to by lua */
    uint64_t key;
    char id[17];          /* the same as text */
    pl_map sides;         /* by link */
    pl_map guests, aways; /* by sequence here */
    pl_engine *served[MAX_SERVED];
    pl_side *first_out;
    pl_buf message, tops; /* scratch */
    pl_map peers;         /* news of them */
    pl_news bus_news;
    int malformed; /* a metric */
    int64_t complained_ns;
    bool stopped;
    pl_service services[PL_SERVICES];
    int n_services;
    struct {
        const pl_message_kind *kind; /* NULL: nobody serves it */
        void *ctx;
    } kinds[PL_MSG_KINDS];

    struct told *told;            /* of served engines, by index: remote_kv.c */
    struct following *followings; /* of caches elsewhere */

    pl_call *calls; /* all under way, both ways */
    pl_map asked;   /* ours, by number */
    uv_timer_t timer;
    bool timing;
    int64_t wakes_ns;   /* when the timer fires; 0: it does not */
    atomic_int n_asked; /* from lua's asking to the news of the answer */
    int32_t last_call;  /* lua */
};

/* The side of a link, with a hold on it; `make`: even if nothing is under way. */
pl_side *pl_side_take(pl_remote *r, pl_link *l, bool make);
/* The id of a peer; of 0: our own; 0: it is gone. */
uint64_t pl_remote_process(pl_remote *r, int32_t peer);
void pl_remote_malformed(pl_remote *r, const char *what);

/* remote_seq.c */
void pl_sequences_open(pl_remote *r);
void pl_sequences_join(pl_remote *r); /* the bus: they may be sent */
void pl_sequences_close(pl_remote *r);

/* remote_xfer.c */
void pl_crossings_open(pl_remote *r);

/* remote_kv.c */
void pl_followers_open(pl_remote *r);
void pl_followers_drop(pl_remote *r, int index); /* another engine is served, or none */
void pl_followers_stop(pl_remote *r);
void pl_followers_close(pl_remote *r);

/* remote_call.c */
void pl_calls_open(pl_remote *r);
void pl_calls_begin(pl_remote *r); /* io, with the bus */
void pl_calls_stop(pl_remote *r);

#endif
