/* SPDX-License-Identifier: Apache-2.0
 *
 * remote.h - sequences that run in another process, and others' that run in this one.
 *
 * Owns     which sequence runs where; calls under way.
 * Ignores  text, HTTP, how messages travel.
 * Thread   io, but for what says otherwise.
 *
 * Sent away:   lua --encode--> io --SUBMIT--> peer;  TOKENS --> the stream;  CANCEL -->
 * peer Taken in:    SUBMIT --> engine;  a step's batch --> one TOKENS a peer;  CANCEL -->
 * engine
 */
#ifndef PL_REMOTE_H
#define PL_REMOTE_H

#include "stream.h"

typedef struct pl_remote pl_remote;
pl_remote *pl_remote_open(pl_loop *loop, pl_streams *streams); /* lua */
void pl_remote_stop(pl_remote *r);
void pl_remote_close(pl_remote *r); /* after the loop's last reference; frees */
/* A step's tokens: those of sequences that were taken in are gathered for their peers,
 * the others go to the streams. `batch_end`: what was gathered is sent. */
void pl_remote_token(pl_remote *r, const pl_token *t, int64_t ns);
void pl_remote_batch_end(pl_remote *r);

#endif
