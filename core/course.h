/* SPDX-License-Identifier: Apache-2.0
 *
 * course.h - where a sequence runs, and how far it has come.
 *
 * Owns     the places where it runs, two at most; the sequence as it stands, if it is
 *          kept so that it can go on elsewhere; the index of the next token.
 * Ignores  text and events (stream.h), how another process is reached (remote.h).
 * Thread   io, except where noted.
 *
 *              +------------ start, send -----------+        also: a second place
 *              v                                    |
 *   idle --> running --its last place is lost, recall--> lost
 *              |                                    |
 *              +-------------- end --> over <-------+
 *
 * A place is an engine of this process or of another one: it sends tokens and can be told
 * to stop. Each place has the sequence under a number of its own, so whatever is still
 * said of a number that was given up finds nobody.
 *
 * A token has its index in the answer. If two places run a sequence, the first to say a
 * token is heard and the other is not: answers are exact, so both say the same. A place
 * that fails or stops short takes nothing away as long as there is the other one.
 *
 * A split course has a reader, and a taker that fetches the prompt's KV from there (xfer.h).
 * The reader says the first token, and that is all. The taker begins when the reader does;
 * it says the first token too, for it has to compute it. If the reader is lost the taker
 * reads the prompt itself; without a taker the course is lost.
 */
#ifndef PL_COURSE_H
#define PL_COURSE_H

#include "load.h"
#include "xfer.h"

enum {
    PL_PLACES = 2
};

typedef struct pl_courses pl_courses; /* all of this process */
typedef struct pl_course pl_course;

typedef struct pl_course_hooks {            /* of whom a course belongs to */
    void (*soon)(pl_course *c, bool later); /* lua: has io call pl_course_run; later: as
                                             * pl_loop_post_later */
    void (*started)(pl_course *c, int64_t ns); /* its first step began */
    /* The next token, or an end without one. With `finish` it runs nowhere else either
     * once the owner has called pl_course_end, as it must. */
    void (*token)(pl_course *c, const pl_token *t, int64_t ns);
    void (*lost)(pl_course *c, int why, int status); /* it runs nowhere now */
} pl_course_hooks;

typedef struct pl_place {
    pl_course *course;
    int32_t seq;       /* 0: there is none */
    pl_engine *engine; /* NULL: in another process */
    bool reads;
    int64_t began_ns;
} pl_place;

typedef struct pl_order { /* a place to be, which io has not heard of yet */
    int32_t seq;          /* 0: io makes the sequence, from what is kept */
    pl_engine *engine;    /* if `seq`, it has it already; NULL: */
    int32_t peer, index;
    bool reads, takes; /* of a split course */
    pl_buf parcel;
} pl_order;

struct pl_course { /* part of its owner */
    pl_courses *all;
    const pl_course_hooks *hooks;
    int32_t id;   /* for messages */
    bool keeps;   /* lua, before the start: keep a copy of what runs here */
    pl_seq *kept; /* while lost: lua's */

    pl_place places[PL_PLACES];
    int32_t next;  /* index of the next token; lua, before the first start */
    bool heard;    /* a token */
    pl_load *load; /* lua, while it does not run: where it will count; and the tokens */
    int32_t n_cached; /* thought to be cached there */
    pl_charge charge; /* from its start to its end or loss */
    struct {
        uint64_t ticket; /* 0: it is not split */
        int32_t peer;    /* where the reader is; 0: here */
        int32_t n_read;  /* tokens that the reader was given */
        pl_load *load;   /* as above, of the reader */
        int32_t n_cached;
        pl_charge charge;
        bool by_reader;          /* it was lost before the taker began */
        pl_course *next, **link; /* of those whose taker waits for the reader to begin */
    } split;

    pl_mutex lock; /* over what lua and io both touch: */
    int state;
    int n_places; /* and orders */
    int n_orders;
    pl_order orders[PL_PLACES];
    bool has_taker; /* that waits for the reader to begin: */
    pl_order taker;
    bool recall;
    pl_buf why;
};

void pl_course_init(pl_course *c, pl_courses *all, const pl_course_hooks *hooks,
                    int32_t id);
void pl_course_fini(pl_course *c);

/* lua: as pl_stream_start and so on. */
pl_status pl_course_start(pl_course *c, pl_engine *e, pl_seq *seq);
pl_status pl_course_send(pl_course *c, int32_t peer, int index, pl_seq *seq);
pl_status pl_course_also(pl_course *c, pl_engine *e, int32_t peer, int index);
pl_status pl_course_split(pl_course *c, const pl_target *reader, const pl_target *taker,
                          pl_seq *seq);
bool pl_course_by_reader(const pl_course *c); /* while it is lost */
void pl_course_recall(pl_course *c);
const char *pl_course_why(const pl_course *c);
void pl_course_charge(pl_course *c, pl_load *l, int32_t n_cached);
void pl_course_charge_reader(pl_course *c, pl_load *l, int32_t n_cached);
pl_seq *pl_course_kept(pl_course *c);    /* while it is lost */
void pl_course_heard_lost(pl_course *c); /* so lua may start it again */
bool pl_course_is_live(pl_course *c);    /* any: it was started and has not ended */

void pl_course_run(pl_course *c); /* takes up what lua has said */
/* Stops it wherever it runs, for good. `aborted`: not because it has all it wanted. */
void pl_course_end(pl_course *c, bool aborted);

typedef struct pl_sender { /* who brings sequences to other processes */
    void *ctx;
    /* As pl_wire_put_seq wrote it; tokens or a loss will follow. */
    void (*send)(void *ctx, int32_t seq, int32_t peer, int index, const pl_buf *parcel);
    void (*cancel)(void *ctx, int32_t seq, bool aborted);
    void (*withdraw)(void *ctx, int32_t peer, uint64_t ticket); /* of a reader there */
    uint64_t (*process)(void *ctx, int32_t peer); /* its id, or 0; of 0: ours */
} pl_sender;

pl_courses *pl_courses_open(pl_xfer *xfer);
void pl_courses_close(pl_courses *cs); /* once no course is left */
void pl_courses_stop(pl_courses *cs);  /* nothing begins any more */
bool pl_courses_stopped(const pl_courses *cs);
/* The engine has stopped and ended all that it had. */
void pl_courses_forget(pl_courses *cs, const pl_engine *e);
void pl_courses_sender(pl_courses *cs, const pl_sender *sender); /* lua, before a send */
/* What is said of a sequence. Its first step began: then, or so long after it was sent. */
void pl_courses_started(pl_courses *cs, int32_t seq, int64_t ns);
void pl_courses_waited(pl_courses *cs, int32_t seq, int64_t ns);
void pl_courses_token(pl_courses *cs, const pl_token *t, int64_t ns);
/* It does not run there any more: PL_LOST_*, a status, a text. */
void pl_courses_lost(pl_courses *cs, int32_t seq, int why, int status, const char *text,
                     size_t len);

#endif
