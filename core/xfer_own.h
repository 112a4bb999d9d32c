/* SPDX-License-Identifier: Apache-2.0
 *
 * xfer_own.h - copying, as xfer.c asks for it.
 *
 * Owns     copies in line, in their order.
 * Ignores  what they are of.
 * Thread   io; the copying: its own.
 */
#ifndef PL_XFER_OWN_H
#define PL_XFER_OWN_H

#include "loop.h"

typedef struct pl_copy {
    pl_note note; /* note.run is called on io when it is made */
    struct pl_copy *next;
    void *of; /* the asker's */
    int32_t n;
    struct pl_piece {
        const void *from;
        void *to;
        size_t bytes;
    } pieces[];
} pl_copy;

typedef struct pl_copier pl_copier;
pl_copier *pl_copier_open(pl_loop *loop);
void pl_copier_close(pl_copier *c); /* with nothing in line; takes NULL */
void pl_copier_push(pl_copier *c, pl_copy *copy);
void pl_copier_drain(pl_copier *c); /* waits until all in line are made */

#endif
