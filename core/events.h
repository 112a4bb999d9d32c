/* SPDX-License-Identifier: Apache-2.0
 *
 * events.h - vLLM's KV events over ZeroMQ: those of an engine here, for others, and those
 * of others, for an index here.
 *
 * Owns     a publisher's thread, sockets and last batches (events_publish.c), a
 *          subscriber's thread and sockets (events_subscribe.c). All of it is public:
 *          pl_events in perilune/fleet.h.
 * Ignores  what an index makes of it (route.h), perilune's own way over the bus (remote.h).
 * Thread   lua opens and closes; each has a thread of its own.
 *
 *   step --queue--> publisher --PUB: topic, number, batch--> subscriber --> inbox (route.h)
 *                       <--ROUTER: first number; batch, batch, ..., end--
 */
#ifndef PL_EVENTS_H
#define PL_EVENTS_H

#include "engine.h"
#include "route.h"

#endif
