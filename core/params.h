/* SPDX-License-Identifier: Apache-2.0
 *
 * params.h - what can be asked of a sampler, a row for each option.
 *
 * Owns     the table of pl_params' fields (pl_params_row): defaults, bounds, wire tags.
 * Ignores  what an option does: sample.c, seq.c and the engine know.
 * Thread   any; the table is constant.
 */
#ifndef PL_PARAMS_H
#define PL_PARAMS_H

#include "base.h"

/* Set in a wire tag: a reader that does not know the tag may leave it out, since the
 * answer is the same without it. */
#define PL_TAG_ADVICE 0x40000000

/* PL_EINVAL names the field, what it must be, and what it is. */
pl_status pl_params_check(const pl_params *p);
size_t pl_param_size(const pl_param *row); /* of the field, in bytes */

#endif
