/* SPDX-License-Identifier: Apache-2.0
 *
 * route.h - which worker holds which blocks of the KV cache (route_index.c).
 *
 * Owns     an index from a block's name to the workers that hold the block. All of it is
 *          public: pl_route in perilune/fleet.h.
 * Ignores  how it is learnt who holds what, and which worker is chosen.
 * Thread   lua. Nothing in here locks.
 *
 * Workers are numbered; each 64 of them share a plane, a table of its own:
 *
 *      name, mixed -> one bit for each worker of the plane that holds the block
 *
 * A plane is an array sorted by mixed names, with gaps: an entry stands at the place that
 * its name, as a fraction of all names, has in the array, or as few places after that as
 * keep the order. So a search looks at two or three neighbours, whether it finds or not;
 * all places of a prompt's blocks are known before the first is read, and are fetched
 * together; growing copies from front to back.
 */
#ifndef PL_ROUTE_H
#define PL_ROUTE_H

#include "base.h"

#endif
