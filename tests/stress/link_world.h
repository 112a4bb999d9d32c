/* SPDX-License-Identifier: Apache-2.0
 *
 * link_world.h - processes that send each other numbered messages, and check what comes.
 *
 * Owns     each process's loop and links; what it has sent and seen.
 * Ignores  what the bus is made of, and what is done to it meanwhile.
 * Thread   main; what links tell comes on each process's io.
 *
 * Each sends a series of messages to each other one. When `lost` is told it begins a new
 * series. Whoever receives wants the numbers of a series in order and without a gap, the
 * bytes right, and a new series only after `lost` was told to it too (or at the start).
 */
#ifndef LINK_WORLD_H
#define LINK_WORLD_H

#include "link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MUST(cond)                                                         \
    do {                                                                   \
        if (!(cond)) {                                                     \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, \
                    pl_error_text());                                      \
            abort();                                                       \
        }                                                                  \
    } while (0)

enum {
    MAX_PROCESSES = 4,
    PATIENCE_MS = 90000
};

typedef struct way { /* from this process to one other, and back */
    int32_t peer;    /* 0: not there */
    int n_here, why; /* told of it: how often it came, why it went last */
    pl_link *link;   /* held */
    uint32_t series, sent;
    uint32_t in_series, in_next; /* what came */
    bool may_begin;              /* a new series */
    int n_lost, last_why;
} way;

typedef struct process {
    struct world *world;
    int index;
    char id[17];
    pl_loop *loop; /* NULL: it does not run */
    pl_links *links;
    bool there;
    uint32_t life; /* a process begun anew is another one */
    way ways[MAX_PROCESSES];
} process;

typedef struct world {
    uint64_t seed;
    pl_bus_options options;
    pl_mutex lock; /* over all of the processes' ways */
    int n;
    process processes[MAX_PROCESSES];
    uint32_t goal; /* messages of each series */
    uint32_t max_bytes;
    bool mute; /* nobody begins to send */
    bool far;  /* as if each had a host of its own: no Unix sockets */
} world;

void world_open(world *w, uint64_t seed, int n, const pl_bus_options *options);
void world_close(world *w);
void process_open(world *w, int index);
void process_close(world *w, int index);
/* Until every process knows every other one. */
void world_meet(world *w);
/* Has each send so many more to each other one, until all of it is there. */
void world_exchange(world *w, uint32_t n, uint32_t max_bytes);
/* Sends on for a while, whatever becomes of it. */
void world_push(world *w, int ms);
/* Until the process was told that it lost the other one; in which words. */
int world_wait_lost(world *w, int from, int other, int n_lost);
/* Until the process was told why the other is not there. */
int world_wait_gone(world *w, int from, int other);
int world_lost(world *w); /* how often `lost` was told, in all */
void world_must_not_lose(world *w, int before);

#endif
