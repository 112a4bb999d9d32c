/* SPDX-License-Identifier: Apache-2.0
 *
 * job.h - work for the pool of Lua states: pushed by lua, taken by pool threads, which
 *         report back.
 *
 * Owns     queued jobs, and those taken until they are done.
 * Ignores  what a job says.
 * Thread   lua and pool, as perilune.h says.
 */
#ifndef PL_JOB_H
#define PL_JOB_H

#include "http.h"

typedef struct pl_jobs pl_jobs;
pl_jobs *pl_jobs_open(pl_loop *loop);
/* any: take returns NULL from now on; what is in line is dropped. */
void pl_jobs_stop(pl_jobs *j);
void pl_jobs_close(pl_jobs *j); /* after the loop's last reference */
int32_t pl_jobs_push(pl_jobs *j, pl_exchange *x, const char *arg, size_t len);
pl_job *pl_jobs_take(pl_jobs *j, int timeout_ms);
bool pl_jobs_stopped(pl_jobs *j);

#endif
