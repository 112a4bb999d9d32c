/* SPDX-License-Identifier: Apache-2.0
 *
 * bus_own.h - what the two forms of the bus share.
 *
 * Owns     the line of what has come and waits for io.
 * Ignores  where it comes from.
 * Thread   push: any; the rest io.
 */
#ifndef PL_BUS_OWN_H
#define PL_BUS_OWN_H

#include "bus.h"

enum {
    PL_BUS_LINE = 16384,          /* messages that wait for io */
    PL_BUS_LINE_BYTES = 64 << 20, /* and their bytes */
    PL_BUS_MAX_DEFAULT = 1 << 20, /* of a message, as NATS has it unless it is told */
    PL_BUS_SUBJECTS = 8
};

enum {
    PL_ITEM_MESSAGE,
    PL_ITEM_NOBODY,
    PL_ITEM_HERE,
    PL_ITEM_AWAY
};
typedef struct pl_bus_item {
    struct pl_bus_item *next;
    int kind;
    size_t len;                  /* of the data */
    const char *subject, *reply; /* reply: "" for none */
    const char *data;
    char bytes[];
} pl_bus_item;
pl_bus_item *pl_bus_item_open(int kind, const char *subject, const char *reply,
                              const void *data, size_t len);

typedef struct pl_bus_line {
    pl_bus_item *first, **end;
    int n;
    size_t bytes;
} pl_bus_line;
void pl_bus_line_init(pl_bus_line *l);
bool pl_bus_line_fits(const pl_bus_line *l,
                      size_t len); /* one more, within the bounds above */
void pl_bus_line_push(pl_bus_line *l, pl_bus_item *item);
pl_bus_item *pl_bus_line_pop(pl_bus_line *l);
void pl_bus_line_fini(pl_bus_line *l);

typedef struct pl_bus_form {
    void (*join)(pl_bus *b);
    void (*stop)(pl_bus *b);
    void (*close)(pl_bus *b); /* all but what is below */
    pl_status (*send)(pl_bus *b, const char *subject, const char *reply, const void *data,
                      size_t len);
    size_t (*max)(const pl_bus *b);
} pl_bus_form;

struct pl_bus {
    const pl_bus_form *form;
    pl_loop *loop;
    pl_bus_hooks hooks;
    pl_note note;
    char *subjects[PL_BUS_SUBJECTS]; /* what it listens to; fixed once it has joined */
    int n_subjects;
    atomic_bool there; /* as io was told */
    int dropped;       /* a metric */
    pl_mutex lock;     /* over: */
    pl_bus_line came;
    bool stopped; /* nothing comes in any more */
};

void pl_bus_init(pl_bus *b, const pl_bus_form *form, pl_loop *loop,
                 const pl_bus_hooks *hooks);
/* Takes the item over. Where the line is full it waits so long for room; dropped then. */
void pl_bus_push(pl_bus *b, pl_bus_item *item, int wait_ms);
bool pl_bus_matches(const char *pattern, const char *subject);

pl_bus *pl_bus_open_local(pl_loop *loop, const pl_bus_options *o, const char *id,
                          const pl_bus_hooks *hooks);
pl_bus *pl_bus_open_nats(pl_loop *loop, const pl_bus_options *o, const char *id,
                         const pl_bus_hooks *hooks);
/* bus_probe.c: where a NATS URL leads, "HOST:PORT", without user and password. */
enum {
    PL_BUS_PLACE = 300
};
void pl_bus_place(const char *url, size_t len, char out[PL_BUS_PLACE]);
/* Why none of the servers in `urls` serves us: each is tried. `why`: what is the matter
 * with one that answers. Waits up to a second or two for each of the first few. */
void pl_bus_diagnose(const char *urls, const char *why, pl_buf *out);
/* The public key of the user whose seed is in that file, as NATS writes it. */
enum {
    PL_NKEY_LEN = 56
};
pl_status pl_nkey_public(const char *path, char out[PL_NKEY_LEN + 1]);

#endif
