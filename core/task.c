/* SPDX-License-Identifier: Apache-2.0 */
#include "task.h"

#include <malloc.h>

enum {
    MAX_WAITING = 4096,
    LARGE_BODY = 1 << 20
};

struct pl_task {
    int32_t id;
    pl_loop *loop;
    pl_task *next;
    pl_exchange *x;
    pl_buf arg, result;
    pl_news news;
};

struct pl_tasks {
    pl_loop *loop;
    pl_mutex lock;
    pl_task *first, **end;
    int n_waiting;
    int32_t last_id;
    bool stopped;
};

void pl_task_close(pl_task *j)
{
    if (!j) return;
    pl_loop *loop = j->loop;
    if (j->x) pl_exchange_put(j->x);
    pl_buf_fini(&j->arg);
    pl_buf_fini(&j->result);
    pl_free(j);
    pl_loop_put(loop);
}

static bool taken(pl_news *news, bool lost)
{
    if (lost) pl_task_close(news->event.object);
    return true;
}

static pl_task *make(pl_tasks *tasks, pl_exchange *x, const char *arg, size_t len)
{
    pl_task *j = pl_alloc(sizeof *j);
    j->loop = tasks->loop;
    pl_loop_take(j->loop);
    j->x = x;
    if (x) pl_exchange_take(x);
    pl_buf_add(&j->arg, arg, len);
    return j;
}

int32_t pl_tasks_push(pl_tasks *tasks, pl_exchange *x, const char *arg, size_t len)
{
    pl_task *j = make(tasks, x, arg, len);
    pl_lock(&tasks->lock);
    bool full = tasks->n_waiting == MAX_WAITING, stopped = tasks->stopped;
    int32_t id = 0;
    if (!full && !stopped) {
        tasks->last_id = tasks->last_id == INT32_MAX ? 1 : tasks->last_id + 1;
        id = j->id = tasks->last_id;
        j->news = (pl_news){.event = {.kind = PL_EV_TASK, .id = id, .object = j},
                            .taken = taken};
        *tasks->end = j;
        tasks->end = &j->next;
        tasks->n_waiting++;
        pl_wake(&tasks->lock);
    }
    pl_unlock(&tasks->lock);
    if (id) return id;
    pl_task_close(j);
    return stopped ? pl_fail(PL_ECANCELED, "the pool has stopped")
                   : pl_fail(PL_ELIMIT, "%d tasks are waiting already", MAX_WAITING);
}

static pl_task *pop(pl_tasks *tasks)
{
    pl_task *j = tasks->first;
    if (!j) return NULL;
    tasks->first = j->next;
    if (!tasks->first) tasks->end = &tasks->first;
    tasks->n_waiting--;
    return j;
}

pl_task *pl_tasks_take(pl_tasks *tasks, int timeout_ms)
{
    int64_t until = pl_now_ns() + (int64_t)timeout_ms * 1000000, left;
    pl_lock(&tasks->lock);
    while (!tasks->first && !tasks->stopped && (left = until - pl_now_ns()) > 0)
        pl_wait(&tasks->lock, (int)((left + 999999) / 1000000));
    pl_task *j = pop(tasks);
    pl_unlock(&tasks->lock);
    return j;
}

bool pl_tasks_stopped(pl_tasks *tasks)
{
    pl_lock(&tasks->lock);
    bool stopped = tasks->stopped;
    pl_unlock(&tasks->lock);
    return stopped;
}

const char *pl_task_arg(const pl_task *j, size_t *len)
{
    *len = j->arg.len;
    return j->arg.len ? j->arg.data : "";
}

pl_exchange *pl_task_exchange(const pl_task *j)
{
    return j->x;
}

/* A large document's many small pieces stay with the allocator; they are given back. */
static void give_back(pl_exchange *x)
{
    size_t len = 0;
    if (x) pl_exchange_body(x, &len);
    if (len > LARGE_BODY) malloc_trim(0);
}

void pl_task_done(pl_task *j, const char *result, size_t len)
{
    give_back(j->x);
    j->result.len = 0;
    pl_buf_add(&j->result, result, len);
    pl_loop_tell(j->loop, &j->news);
}

const char *pl_task_result(const pl_task *j, size_t *len)
{
    *len = j->result.len;
    return j->result.len ? j->result.data : "";
}

pl_tasks *pl_tasks_open(pl_loop *loop)
{
    pl_tasks *tasks = pl_alloc(sizeof *tasks);
    tasks->loop = loop;
    tasks->end = &tasks->first;
    pl_mutex_init(&tasks->lock);
    return tasks;
}

void pl_tasks_stop(pl_tasks *tasks)
{
    pl_lock(&tasks->lock);
    tasks->stopped = true;
    pl_task *dropped = tasks->first;
    tasks->first = NULL;
    tasks->end = &tasks->first;
    tasks->n_waiting = 0;
    pl_wake(&tasks->lock);
    pl_unlock(&tasks->lock);
    for (pl_task *next; dropped; dropped = next) {
        next = dropped->next;
        pl_task_close(dropped);
    }
}

void pl_tasks_close(pl_tasks *tasks)
{
    pl_mutex_fini(&tasks->lock);
    pl_free(tasks);
}
