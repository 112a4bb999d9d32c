/* SPDX-License-Identifier: Apache-2.0
 *
 * fleet.h - the workers that may take a request, as columns of numbers; past decisions.
 *
 * Owns     the columns, copies of them as they were at the last decisions, and what was
 *          sent where of late (fleet_sent.c). All of it is public: pl_fleet, pl_decisions
 *          and pl_sent in perilune/decide.h.
 * Ignores  which workers may, and which is chosen.
 * Thread   lua.
 */
#ifndef PL_FLEET_H
#define PL_FLEET_H

#include "base.h"

#endif
