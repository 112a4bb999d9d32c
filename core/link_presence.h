/* SPDX-License-Identifier: Apache-2.0
 *
 * link_presence.h - who is there, for the other files of links.
 *
 * Owns     the peers: what each says of itself, and when it was heard.
 * Ignores  links.
 * Thread   io; the peers are guarded by the lock of pl_links.
 */
#ifndef PL_LINK_PRESENCE_H
#define PL_LINK_PRESENCE_H

#include "link.h"
#include "link_direct.h"

typedef struct pl_peer {
    uint64_t key;
    int32_t id;
    int wire;
    bool refused;
    int64_t heard_ns;
    uint64_t serial;          /* of its hello */
    pl_buf text;              /* the hello as it came */
    pl_direct_address direct; /* as that says */
    bool counted;             /* a heartbeat came */
    pl_engine_stats *engines; /* what that said */
    int n_engines;
    uint64_t has; /* a bit for each of them that there is */
} pl_peer;

void pl_presence_open(pl_links *ls);
void pl_presence_close(pl_links *ls);
void pl_presence_stop(pl_links *ls);
void pl_presence_here(pl_links *ls);
void pl_presence_tick(pl_links *ls, int64_t now);
void pl_presence_heard(pl_links *ls, uint64_t key, const char *data, size_t len);
void pl_presence_beat(pl_links *ls, uint64_t key, const char *data, size_t len);
void pl_presence_asked(pl_links *ls, const char *id, size_t len); /* len 0: all */
void pl_presence_forgive(pl_links *ls, int64_t now); /* nobody was silent until now */
void pl_presence_space(pl_links *ls, const char *name, size_t len); /* one that exists */
void pl_presence_gone(pl_links *ls, uint64_t key, int why);         /* key 0: all
                                                                  * without a socket */
/* The number of a process that said hello, and the version it speaks; 0: none. */
int32_t pl_presence_find(pl_links *ls, uint64_t key, int *wire);
uint64_t pl_presence_key(pl_links *ls, int32_t peer); /* 0: it is not there */
/* Where a socket reaches that process; false: nowhere, or it has said no hello. */
bool pl_presence_direct(pl_links *ls, uint64_t key, pl_direct_address *out);

#endif
