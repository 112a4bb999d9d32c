/* SPDX-License-Identifier: Apache-2.0
 *
 * metrics.h - counters, gauges and histograms, and their text form.
 *
 * What crosses modules is public: see section "metrics" of perilune/base.h.
 *
 * Owns     every series of the process, until it ends.
 * Ignores  what is counted; who asks.
 * Thread   any. Opening and rendering lock; updating does not.
 */
#ifndef PL_METRICS_H
#define PL_METRICS_H

#include "base.h"

enum {
    PL_MAX_SERIES = 4096,
    PL_MAX_BUCKETS = 64
};

#endif
