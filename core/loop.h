/* SPDX-License-Identifier: Apache-2.0
 *
 * loop.h - the io thread, and the two ways to and from it.
 *
 * Owns     libuv's loop, its thread, the signals; notes queued for io and news queued for
 *          Lua; whether Lua still polls.
 * Ignores  what notes and news are about.
 * Thread   noted at each function.
 *
 *   any thread --note--> io --news--> lua (pl_poll)
 *
 * Notes and news are links embedded in the objects they concern, and each is queued at
 * most once. So no queue can overflow, or outgrow the number of live objects.
 */
#ifndef PL_LOOP_H
#define PL_LOOP_H

#include "base.h"

#include <uv.h>

typedef struct pl_loop pl_loop;

typedef struct pl_note pl_note;
struct pl_note { /* work for io */
    pl_note *next;
    void (*run)(pl_note *note); /* io; the note is out of line and may be posted again */
    bool queued;
};

typedef struct pl_news pl_news;
struct pl_news { /* an event for Lua */
    pl_news *next;
    pl_event event;
    /* lua, when it leaves the line; false: Lua need not know any more. `lost`: the
     * runtime closes and nobody will be told. May be NULL. */
    bool (*taken)(pl_news *news, bool lost);
    bool queued;
};

typedef struct pl_loop_hooks { /* of who opened the loop */
    void *ctx;
    void (*round)(void *ctx); /* io, after the notes that had come have run */
    void (*stop)(void *ctx);  /* io: close your handles */
    void (*last)(void *ctx);  /* the last reference is gone */
} pl_loop_hooks;

pl_loop *pl_loop_open(const pl_loop_hooks *hooks); /* NULL says why; starts the thread */
/* Stops the thread once all handles are closed; notes that come later run at once, on
 * whatever thread posts them: there is only one then. */
void pl_loop_stop(pl_loop *l);
void pl_loop_take(pl_loop *l);     /* any */
void pl_loop_put(pl_loop *l);      /* any */
uv_loop_t *pl_loop_uv(pl_loop *l); /* io */

bool pl_loop_post(pl_loop *l, pl_note *note); /* any; false: it is in line already */
/* The same, without haste: io is woken by the next post or poll. */
bool pl_loop_post_later(pl_loop *l, pl_note *note);
/* Not io: runs fn there and waits until it has. */
void pl_loop_call(pl_loop *l, void (*fn)(void *arg), void *arg);

bool pl_loop_tell(pl_loop *l, pl_news *news); /* any; false: it is in line already */
/* The same with these in its event: of news that are in line already, the newer word. */
bool pl_loop_tell_newest(pl_loop *l, pl_news *news, int32_t a, int32_t b);
int pl_loop_poll(pl_loop *l, pl_event *out, int max, int timeout_ms); /* lua */
/* lua: what it does between two polls; NULL: it is not watched. */
void pl_loop_doing(pl_loop *l, const char *what);
/* any: whether Lua has not polled for a second though it should have, and what there is
 * to say of that. */
bool pl_loop_stalled(pl_loop *l, char *why, size_t room);
enum {
    PL_STALL_TEXT = 384 /* room for it */
};

#endif
