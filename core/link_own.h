/* SPDX-License-Identifier: Apache-2.0
 *
 * link_own.h - what the files of links share.
 *
 * Owns     the shape of links, peers and their table.
 * Ignores  what messages say.
 * Thread   io, but for the peers and the hello, which the table's lock guards.
 */
#ifndef PL_LINK_OWN_H
#define PL_LINK_OWN_H

#include "link.h"
#include "link_direct.h"
#include "wire.h"

enum {
    PL_ID_LEN = 16,
    PL_FRAME_HEAD = 40,
    PL_FRAGMENT = 64 << 10,   /* bytes of a message in one frame */
    PL_LINK_BYTES = 64 << 20, /* unacknowledged, or of a message on its way in */
    PL_MAX_LINKS = 4096,
    PL_MAX_PEERS = 4096,
    PL_MAX_HELLO = 256 << 10,
    PL_LINK_SUBJECT = 128,
    PL_MAX_SPACES = 8 /* namespaces besides ours that are told of */
};
#define PL_SPACES "pl.namespaces"
#define PL_MS INT64_C(1000000)
#define PL_BUS_GRACE (3000 * PL_MS) /* after the bus came back, nobody is missed yet */
#define PL_IDLE (30000 * PL_MS)     /* of a link to nobody there, before it is let go */

typedef struct pl_out { /* a frame that is not acknowledged yet */
    struct pl_out *next;
    uint64_t number;
    size_t len; /* with its head */
    char bytes[];
} pl_out;

struct pl_link {
    pl_links *all;
    pl_link *next;
    uint64_t key; /* the peer's id as a number */
    int32_t peer;
    /* Its frames travel here, and over the bus without one: which way, they may be lost,
     * come twice, late, or in another order. */
    pl_socket *socket, *attempt;
    int64_t socket_heard_ns, retry_ns, retry_pause_ns;
    char subject[PL_LINK_SUBJECT], reply[PL_LINK_SUBJECT];
    uint64_t generation;   /* grows with every loss: whether one came meanwhile */
    uint64_t mine, theirs; /* epochs; theirs 0: not known */
    int wire;              /* the version to speak */
    bool up;               /* they have named `mine`, so frames may carry messages */
    bool over;             /* lost was told, and it was not used since */
    int held;
    int why; /* lost for that reason; to be told from the tick */
    int64_t watched_ns, heard_ns, sent_ns, answered_ns;

    pl_out *first, **end, *unsent;
    uint64_t next_number, n_sent; /* numbers below have been sent once */
    size_t out_bytes, flight_bytes;
    int64_t progress_ns, back_ns;
    bool probing; /* one frame at a time, until one is acknowledged */

    uint64_t expected, asked; /* asked: for what number + 1 */
    int64_t asked_ns;
    int n_unacked; /* frames that came since an acknowledgement went */
    bool ack_due, in_message;
    int kind;
    pl_buf partial;
};

struct pl_links {
    pl_loop *loop;
    pl_bus *bus;
    pl_direct *direct; /* NULL: no sockets */
    pl_links_hooks hooks;
    pl_bus_options o; /* its strings are not kept */
    char id[PL_ID_LEN + 1];
    uint64_t key;
    char prefix[PL_LINK_SUBJECT]; /* of what comes: "pl.NS.p.OWN." */
    char who[PL_LINK_SUBJECT], kv[PL_LINK_SUBJECT], bucket[PL_LINK_SUBJECT];
    char beat[PL_LINK_SUBJECT];
    char space[PL_BUS_SPACE + 1], others[PL_MAX_SPACES][PL_BUS_SPACE + 1];
    int n_others;
    int64_t space_ns; /* when it last answered which namespace it is in */
    pl_link *links;   /* the newest first */
    pl_map by_key;
    uint64_t last_epoch;
    uv_timer_t timer;
    bool hasty, stopped, there, impatient;
    int64_t tick_ns, there_ns, away_ns, logged_ns;
    int64_t hello_ns, beat_ns, asked_ns; /* when we last said so */
    bool hello_due;
    pl_beat scratch;
    struct {
        int sent, received, resent, dropped, connected, lost[PL_LOST_RECALLED];
    } metrics;

    pl_note hello_note;
    pl_mutex lock; /* over: */
    char *hello;   /* NULL: none */
    size_t hello_len;
    uint64_t serial; /* grows with every new one */
    pl_map peers, peers_by_id;
    int32_t last_peer;
};

/* link_table.c */
int64_t pl_links_grace_ns(const pl_links *ls); /* since when silence counts */
void pl_links_hurry(pl_links *ls);             /* something is under way: tick fast */
uint64_t pl_links_epoch(pl_links *ls);         /* a new one, above all before */
void pl_links_malformed(pl_links *ls, const char *what, const char *from);
bool pl_link_id_key(const char *id, size_t len, uint64_t *out);
pl_link *pl_links_make(pl_links *ls, uint64_t key); /* found or new; NULL: too many */
/* A frame came from that process, whichever way. */
void pl_links_frame(pl_links *ls, uint64_t from, const char *data, size_t len);
void pl_links_nobody(pl_links *ls, uint64_t key); /* nobody listens there */
void pl_links_there(pl_links *ls, bool there);    /* the bus comes or goes */

/* link_bus.c: the way over the bus, and whose message is which */
/* Never waits. PL_EAGAIN: not now, it is tried again; PL_ELIMIT: it is too long. */
pl_status pl_link_bus_send(pl_link *l, const char *frame, size_t len);
bool pl_link_bus_open(pl_links *ls, const pl_bus_options *options);
void pl_link_bus_address(pl_link *l); /* its subjects */

/* link.c */
void pl_link_frame(pl_link *l, const char *data, size_t len); /* one that came */
void pl_link_tick(pl_link *l, int64_t now);
void pl_link_lose(pl_link *l, int why);
void pl_link_fini(pl_link *l);
bool pl_link_is_busy(const pl_link *l);
void pl_link_pump(pl_link *l);     /* sends what can be sent */
void pl_link_rerouted(pl_link *l); /* what its socket carried may not arrive */
/* The version of a frame, or -1. */
int pl_link_frame_version(const char *data, size_t len);

#endif
