/* SPDX-License-Identifier: Apache-2.0
 *
 * route_own.h - what the files of route share.
 *
 * Owns     the shape of the index.
 * Thread   lua
 */
#ifndef PL_ROUTE_OWN_H
#define PL_ROUTE_OWN_H

#include "route.h"

enum {
    PLANE = 64,      /* workers */
    MAX_PLANES = 128 /* 8192 workers */
};

typedef struct entry {
    uint64_t key;     /* 0: a gap */
    uint64_t holders; /* never 0, but those of workers that left count for nothing */
} entry;

typedef struct plane {
    entry *at;
    uint64_t places; /* that names ask for; TAIL_PLACES more follow */
    int64_t n;
    uint64_t taken; /* numbers of workers that are here, */
    uint64_t alive; /* and whose holdings are known */
    uint64_t gone;  /* numbers whose bits are still about, but count for nothing */
} plane;

typedef struct bell bell; /* route_follow.c */

struct pl_route {
    plane planes[MAX_PLANES];
    int n_planes;
    int64_t limit, n, dropped, missed, gaps;
    int64_t held[MAX_PLANES * PLANE];       /* blocks, by worker, */
    int64_t n_held, n_shown;                /* and of all, also as the metric has it */
    pl_source *sources[MAX_PLANES * PLANE]; /* NULL: nobody tells of it */
    bell *bell;
    struct {
        int blocks, gaps, applied[PL_CHANGE_CLEARED + 1]; /* by kind */
    } metrics;
    bool is_followed; /* some worker is, or was */
    uint64_t secret;  /* so that nobody can choose names that collide */
};

/* route_index.c: what a worker holds is not known; it is, and is nothing so far */
void pl_route_forget(pl_route *x, int worker);
pl_status pl_route_revive(pl_route *x, int worker);

/* route_follow.c */
void pl_route_inbox_open(pl_route *x);
void pl_route_inbox_close(pl_route *x);
void pl_route_show(pl_route *x); /* has the metric say how much is held */

#endif
