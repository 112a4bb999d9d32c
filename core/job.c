/* SPDX-License-Identifier: Apache-2.0 */
#include "job.h"

#include <malloc.h>

enum {
    MAX_WAITING = 4096,
    LARGE_BODY = 1 << 20
};

struct pl_job {
    int32_t id;
    pl_loop *loop;
    pl_job *next;
    pl_exchange *x;
    pl_buf arg, result;
    pl_news news;
};

struct pl_jobs {
    pl_loop *loop;
    pl_mutex lock;
    pl_job *first, **end;
    int n_waiting;
    int32_t last_id;
    bool stopped;
};

void pl_job_close(pl_job *j)
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
    if (lost) pl_job_close(news->event.object);
    return true;
}

static pl_job *make(pl_jobs *jobs, pl_exchange *x, const char *arg, size_t len)
{
    pl_job *j = pl_alloc(sizeof *j);
    j->loop = jobs->loop;
    pl_loop_take(j->loop);
    j->x = x;
    if (x) pl_exchange_take(x);
    pl_buf_add(&j->arg, arg, len);
    return j;
}

int32_t pl_jobs_push(pl_jobs *jobs, pl_exchange *x, const char *arg, size_t len)
{
    pl_job *j = make(jobs, x, arg, len);
    pl_lock(&jobs->lock);
    bool full = jobs->n_waiting == MAX_WAITING, stopped = jobs->stopped;
    int32_t id = 0;
    if (!full && !stopped) {
        jobs->last_id = jobs->last_id == INT32_MAX ? 1 : jobs->last_id + 1;
        id = j->id = jobs->last_id;
        j->news = (pl_news){.event = {.kind = PL_EV_JOB, .id = id, .object = j},
                            .taken = taken};
        *jobs->end = j;
        jobs->end = &j->next;
        jobs->n_waiting++;
        pl_wake(&jobs->lock);
    }
    pl_unlock(&jobs->lock);
    if (id) return id;
    pl_job_close(j);
    return stopped ? pl_fail(PL_ECANCELED, "the pool has stopped")
                   : pl_fail(PL_ELIMIT, "%d jobs are waiting already", MAX_WAITING);
}

static pl_job *pop(pl_jobs *jobs)
{
    pl_job *j = jobs->first;
    if (!j) return NULL;
    jobs->first = j->next;
    if (!jobs->first) jobs->end = &jobs->first;
    jobs->n_waiting--;
    return j;
}

pl_job *pl_jobs_take(pl_jobs *jobs, int timeout_ms)
{
    int64_t until = pl_now_ns() + (int64_t)timeout_ms * 1000000, left;
    pl_lock(&jobs->lock);
    while (!jobs->first && !jobs->stopped && (left = until - pl_now_ns()) > 0)
        pl_wait(&jobs->lock, (int)((left + 999999) / 1000000));
    pl_job *j = pop(jobs);
    pl_unlock(&jobs->lock);
    return j;
}

bool pl_jobs_stopped(pl_jobs *jobs)
{
    pl_lock(&jobs->lock);
    bool stopped = jobs->stopped;
    pl_unlock(&jobs->lock);
    return stopped;
}

const char *pl_job_arg(const pl_job *j, size_t *len)
{
    *len = j->arg.len;
    return j->arg.len ? j->arg.data : "";
}

pl_exchange *pl_job_exchange(const pl_job *j)
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

void pl_job_done(pl_job *j, const char *result, size_t len)
{
    give_back(j->x);
    j->result.len = 0;
    pl_buf_add(&j->result, result, len);
    pl_loop_tell(j->loop, &j->news);
}

const char *pl_job_result(const pl_job *j, size_t *len)
{
    *len = j->result.len;
    return j->result.len ? j->result.data : "";
}

pl_jobs *pl_jobs_open(pl_loop *loop)
{
    pl_jobs *jobs = pl_alloc(sizeof *jobs);
    jobs->loop = loop;
    jobs->end = &jobs->first;
    pl_mutex_init(&jobs->lock);
    return jobs;
}

void pl_jobs_stop(pl_jobs *jobs)
{
    pl_lock(&jobs->lock);
    jobs->stopped = true;
    pl_job *dropped = jobs->first;
    jobs->first = NULL;
    jobs->end = &jobs->first;
    jobs->n_waiting = 0;
    pl_wake(&jobs->lock);
    pl_unlock(&jobs->lock);
    for (pl_job *next; dropped; dropped = next) {
        next = dropped->next;
        pl_job_close(dropped);
    }
}

void pl_jobs_close(pl_jobs *jobs)
{
    pl_mutex_fini(&jobs->lock);
    pl_free(jobs);
}
