/* SPDX-License-Identifier: Apache-2.0
 *
 * weight.h - how a sampler weighs tokens: as integers, whose sums do not depend on their
 * order. So one thread, SIMD lanes and a GPU's threads draw the same token.
 *
 * Thread   any.
 */
#ifndef PL_WEIGHT_H
#define PL_WEIGHT_H

#include "mathx.h"

enum {
    PL_WEIGHT_BITS = 44 /* the best token's weight is 2^44: 2^18 of them have room */
};

/* e^x as a weight, from e^x itself, at most 1: its multiple of 2^-44. 256 more, and what
 * it is a multiple of is the last bit of a double. */
PL_MATH uint64_t pl_weight(float e)
{
    double d = (double)e + 256;
    uint64_t bits;
    memcpy(&bits, &d, sizeof bits);
    return bits - ((uint64_t)(1023 + 8) << 52);
}

/* What e is raised to for a token's weight, from -104 on: there it is 0. */
PL_MATH float pl_distance(float logit, float best, float scale)
{
    float x = (logit - best) * scale;
    return x > -104 ? x : -104;
}

/* The distance of tokens that are p times as likely as the best one. */
PL_MATH float pl_distance_of(float p)
{
    return p > 0 ? (float)pl_ln((double)p) : -__builtin_inff();
}

/* The least weight that is a share p of the total, at least 1. */
PL_MATH uint64_t pl_weight_share(double p, uint64_t total)
{
    double want = p * (double)total;
    uint64_t least = (uint64_t)want;
    if ((double)least < want) least++;
    if (least < 1) least = 1;
    return least < total ? least : total;
}

/* A point below the total, for u from 0 to below 1. */
PL_MATH uint64_t pl_weight_point(double u, uint64_t total)
{
    uint64_t at = (uint64_t)(u * (double)total);
    return at < total ? at : total - 1;
}

/* ln of the sum of e^v, from the greatest v and the weights of all. */
PL_MATH double pl_log_sum(float best, uint64_t total)
{
    return (double)best + pl_ln((double)total * 0x1p-44);
}

#endif
