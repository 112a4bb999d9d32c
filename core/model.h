/* SPDX-License-Identifier: Apache-2.0
 *
 * model.h - a transformer: on a device that runs steps as a plan for it, elsewhere as a
 * walk over its ops. What the engine asks of it each step.
 *
 * Owns     the weights as its device holds them, the KV blocks' bytes.
 * Ignores  who the sequences belong to, which blocks are whose.
 * Thread   lua while loading; then step.
 *
 * A step is split in two so that a device may work while the host does: submit says what
 * to compute and returns, collect brings what came of it. Up to `depth` steps are in
 * flight, collected in the order in which they were submitted.
 *
 * Exactness: what comes out for a row depends on that row, the tokens before it in its
 * sequence, and the model. Not on the other rows, on how the prompt was cut into steps,
 * or on which of its blocks were found in the cache.
 */
#ifndef PL_MODEL_H
#define PL_MODEL_H

#include "base.h"
#include "step.h"

/* Room for n_blocks blocks of KV, and for steps of so many rows and sequences; an engine
 * opens it, and closes it at its end. */
pl_status pl_model_kv_open(pl_model *m, int32_t n_blocks, int32_t max_rows,
                           int32_t max_seqs);
void pl_model_kv_close(pl_model *m);
/* The bytes of one block (all layers of it lie together), for transfers. */
void *pl_model_block(pl_model *m, int32_t block, size_t *bytes);
bool pl_model_is_local(const pl_model *m); /* they are in the host's memory */
int32_t pl_model_vocab(const pl_model *m);
int32_t pl_model_block_size(const pl_model *m);
int32_t pl_model_max_positions(const pl_model *m);
int32_t pl_model_depth(const pl_model *m);

/* Starts the step, which is the model's until it is collected. */
pl_status pl_model_submit(pl_model *m, pl_step *step);
/* Waits for the oldest step in flight: PL_EAGAIN if it is not done within timeout_ms.
 * With any other answer the step is the caller's again. */
pl_status pl_model_collect(pl_model *m, int timeout_ms);

#endif
