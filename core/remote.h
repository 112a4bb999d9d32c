/* SPDX-License-Identifier: Apache-2.0
 *
 * remote.h - sequences that run in another process, and others' that run in this one.
 *
 * Owns     which sequence runs where; calls under way; what Lua hears of the bus.
 * Ignores  text, HTTP, how messages travel.
 * Thread   io, except where noted.
 *
 *   outgoing   lua --encode--> io --SUBMIT--> peer
 *              peer --TOKENS--> io --> the stream
 *   incoming   SUBMIT --> engine --a step's batch--> one TOKENS message per peer
 *   both       CANCEL follows SUBMIT
 *
 * It exists without a bus too: then all tokens belong to this process.
 */
#ifndef PL_REMOTE_H
#define PL_REMOTE_H

#include "stream.h"

typedef struct pl_remote pl_remote;
pl_remote *pl_remote_open(pl_loop *loop, pl_streams *streams); /* lua */
void pl_remote_stop(pl_remote *r);
void pl_remote_close(pl_remote *r); /* after the loop's last reference; frees */

/* pl_bus_*, pl_peer_hello, pl_call_send; lua */
pl_status pl_remote_join(pl_remote *r, const pl_bus_options *options);
const char *pl_remote_id(const pl_remote *r);
void pl_remote_hello(pl_remote *r, const char *json,
                     size_t len); /* NULL: takes it back */
pl_status pl_remote_peer(pl_remote *r, int32_t peer, pl_buf *out);
void pl_remote_serve(pl_remote *r, int index, pl_engine *e);
int32_t pl_remote_call(pl_remote *r, int32_t peer, const char *text, size_t len,
                       int timeout_ms);

void pl_remote_forget(pl_remote *r, const pl_engine *e); /* it takes no more */
/* A step's tokens: those of sequences that were taken in are gathered for their peers,
 * the others go to the streams. `batch_end`: what was gathered is sent. */
void pl_remote_started(pl_remote *r, int32_t seq, int64_t ns);
void pl_remote_token(pl_remote *r, const pl_token *t, int64_t ns);
void pl_remote_batch_end(pl_remote *r);

#endif
