/* SPDX-License-Identifier: Apache-2.0
 *
 * task.h - work for the pool of Lua states: pushed by lua, taken by pool threads, which
 *         report back.
 *
 * Owns     queued tasks, and those taken until they are done.
 * Ignores  what a task says.
 * Thread   lua and pool, as perilune.h says.
 */
#ifndef PL_TASK_H
#define PL_TASK_H

#include "http.h"

typedef struct pl_tasks pl_tasks;
pl_tasks *pl_tasks_open(pl_loop *loop);
/* any: take returns NULL from now on; what is in line is dropped. */
void pl_tasks_stop(pl_tasks *j);
void pl_tasks_close(pl_tasks *j); /* after the loop's last reference */
int32_t pl_tasks_push(pl_tasks *j, pl_exchange *x, const char *arg, size_t len);
pl_task *pl_tasks_take(pl_tasks *j, int timeout_ms);
bool pl_tasks_stopped(pl_tasks *j);

#endif
