/* SPDX-License-Identifier: Apache-2.0
 *
 * upstream_own.h - TLS towards a server, for upstream.c: bytes in, bytes out.
 *
 * Owns     a session and what it has not given out (upstream_tls.c).
 * Ignores  sockets, time.
 * Thread   io; a trust is opened by lua.
 */
#ifndef PL_UPSTREAM_OWN_H
#define PL_UPSTREAM_OWN_H

#include "base.h"

typedef struct pl_trust pl_trust; /* whose certificates are believed */
/* `ca`: a PEM file; NULL: what the system trusts. NULL says why. */
pl_trust *pl_trust_open(const char *ca);
void pl_trust_close(pl_trust *t); /* takes NULL */

typedef struct pl_tls pl_tls;
pl_tls *pl_tls_open(pl_trust *t, const char *host); /* as a client of that host */
void pl_tls_close(pl_tls *s);                       /* takes NULL */
void pl_tls_received(pl_tls *s, const char *data, size_t len); /* from the network */
/* 1: done; 0: it waits for more; negative: refused, and why. */
int pl_tls_shake(pl_tls *s, char *why, size_t room);
enum {
    PL_TLS_END = -1, /* the server said so */
    PL_TLS_BAD = -2
};
/* What the server said: how many bytes, 0: no more yet, or one of these. */
int pl_tls_read(pl_tls *s, char *out, int room);
bool pl_tls_write(pl_tls *s, const char *data, size_t len);
/* What is to go to the network, added to `out`. */
void pl_tls_unsent(pl_tls *s, pl_buf *out);

#endif
