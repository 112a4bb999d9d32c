/* SPDX-License-Identifier: Apache-2.0
 *
 * client.h - where local sockets are, for the code that listens on them.
 *
 * What Lua uses is public: see perilune/tools.h.
 *
 * Owns     nothing that lasts.
 * Ignores  what is said over a socket.
 * Thread   any.
 */
#ifndef PL_CLIENT_H
#define PL_CLIENT_H

#include "base.h"

/* A Unix socket bound to that path, mode 0600, and listening: its descriptor, or a
 * status. A socket there that nobody listens to any more is replaced. */
int pl_local_bind(const char *path);

#endif
