/* SPDX-License-Identifier: Apache-2.0
 *
 * xfer_copy.c - the thread that copies blocks within this process's memory: megabytes at
 * a time, which neither io nor a step should wait for.
 */
#include "xfer_own.h"

#include <string.h>

enum {
    IDLE_MS = 3600 * 1000
};

struct pl_copier {
    pl_loop *loop;
    pthread_t thread;
    pl_mutex lock; /* over: */
    pl_copy *first, **end;
    bool busy, stops;
};

static pl_copy *next(pl_copier *c)
{
    pl_lock(&c->lock);
    c->busy = false;
    pl_wake(&c->lock);
    while (!c->first && !c->stops) pl_wait(&c->lock, IDLE_MS);
    pl_copy *copy = c->first;
    if (copy) {
        c->first = copy->next;
        if (!c->first) c->end = &c->first;
        c->busy = true;
    }
    pl_unlock(&c->lock);
    return copy;
}

static void *run(void *arg)
{
    pl_copier *c = arg;
    pl_thread_begin(PL_THREAD_OTHER, "pl-xfer");
    for (pl_copy *copy; (copy = next(c));) {
        for (int32_t i = 0; i < copy->n; i++)
            memcpy(copy->pieces[i].to, copy->pieces[i].from, copy->pieces[i].bytes);
        pl_loop_post(c->loop, &copy->note);
    }
    return NULL;
}

pl_copier *pl_copier_open(pl_loop *loop)
{
    pl_copier *c = pl_alloc(sizeof *c);
    c->loop = loop;
    c->end = &c->first;
    pl_mutex_init(&c->lock);
    if (pthread_create(&c->thread, NULL, run, c) == 0) return c;
    pl_fail(PL_EIO, "cannot create a thread to copy KV blocks");
    pl_mutex_fini(&c->lock);
    pl_free(c);
    return NULL;
}

void pl_copier_close(pl_copier *c)
{
    if (!c) return;
    pl_lock(&c->lock);
    c->stops = true;
    pl_wake(&c->lock);
    pl_unlock(&c->lock);
    pthread_join(c->thread, NULL);
    pl_mutex_fini(&c->lock);
    pl_free(c);
}

void pl_copier_push(pl_copier *c, pl_copy *copy)
{
    copy->next = NULL;
    pl_lock(&c->lock);
    *c->end = copy;
    c->end = &copy->next;
    pl_wake(&c->lock);
    pl_unlock(&c->lock);
}

void pl_copier_drain(pl_copier *c)
{
    pl_lock(&c->lock);
    while (c->first || c->busy) pl_wait(&c->lock, 1000);
    pl_unlock(&c->lock);
}
