/* SPDX-License-Identifier: Apache-2.0
 *
 * sim.h - engines in virtual time. All of it is public: perilune/sim.h.
 *
 * Owns     its engines, their clocks, and the time that passes.
 * Ignores  where requests come from and who chooses a worker.
 * Thread   lua
 *
 * A worker's step is computed when it begins, by the engine itself over a device that
 * computes nothing; how long it takes the timing says, and what it brought is told when
 * that is over:
 *
 *     idle --work--> in a step --its end: tell--> in the next one, or idle
 *
 * A prompt may be read by one worker for another (pl_sim_split). Its blocks cross as they
 * are lent, one after the other, each in its time.
 *
 * Where the next steps are alike they are one leap, which is taken only when its end has
 * come: a sequence that is submitted meanwhile joins after the step that is under way then.
 */
#ifndef PL_SIM_H
#define PL_SIM_H

#include "engine.h"
#include "load.h"
#include "route.h"
#include "seq.h"

#endif
