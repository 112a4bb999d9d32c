/* SPDX-License-Identifier: Apache-2.0
 *
 * tls.h - TLS: bytes in, bytes out.
 *
 * Owns     a session and what it has not given out.
 * Ignores  sockets, time.
 * Thread   io; what sessions share is opened by lua.
 *
 * Towards a server on the web it is about certificates. Between two processes that share
 * a secret it is about that alone: TLS 1.3 with the secret as its pre-shared key, and an
 * exchange of keys, so that whoever learns of the secret later cannot read what was said.
 */
#ifndef PL_TLS_H
#define PL_TLS_H

#include "base.h"

typedef struct pl_trust pl_trust; /* whose certificates are believed */
/* `ca`: a PEM file; NULL: what the system trusts. NULL says why. */
pl_trust *pl_trust_open(const char *ca);
void pl_trust_close(pl_trust *t); /* takes NULL */

typedef struct pl_tls pl_tls;
pl_tls *pl_tls_open(pl_trust *t, const char *host); /* as a client of that host */

typedef struct pl_tls_secret {
    unsigned char bytes[64];
    int len; /* 0: there is none */
} pl_tls_secret;
typedef struct pl_tls_pairs pl_tls_pairs; /* who shares a secret with us */
/* `find`: the one that we share with who calls itself `name`. NULL says why. */
pl_tls_pairs *pl_tls_pairs_open(void (*find)(void *ctx, const char *name,
                                             pl_tls_secret *out),
                                void *ctx);
void pl_tls_pairs_close(pl_tls_pairs *p); /* takes NULL */
pl_tls *pl_tls_answer(pl_tls_pairs *p);   /* whoever has connected to us */
/* As a client that calls itself `name`, by a secret that it shares with the other side. */
pl_tls *pl_tls_call(pl_tls_pairs *p, const char *name, const pl_tls_secret *secret);

void pl_tls_close(pl_tls *s);                                  /* takes NULL */
void pl_tls_received(pl_tls *s, const char *data, size_t len); /* from the network */
/* 1: done; 0: it waits for more; negative: refused, and why. */
int pl_tls_shake(pl_tls *s, char *why, size_t room);
enum {
    PL_TLS_END = -1, /* the other side said so */
    PL_TLS_BAD = -2
};
/* What the other side said: how many bytes, 0: no more yet, or one of these. */
int pl_tls_read(pl_tls *s, char *out, int room);
bool pl_tls_write(pl_tls *s, const char *data, size_t len);
/* What is to go to the network, added to `out`. */
void pl_tls_unsent(pl_tls *s, pl_buf *out);

#endif
