/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune/sim.h - engines in virtual time.
 */
#ifndef PERILUNE_H
#error "include perilune.h"
#endif

/* clang-format off */
/* [cdef] */

/* ---- simulation: engines in virtual time (lua thread) ---------------------------- */

/* How long a step takes, in nanoseconds: a sum of these. `back`: for each token that stands
 * before a row, summed over rows. */
typedef struct pl_timing {
    double prefill, prefill_token, prefill_square, prefill_back;    /* if it reads prompts; `square`: of their tokens in this step */
    double decode, decode_seq, decode_back;                         /* if sequences decode */
    double decode_used, decode_used_square;                         /* likewise, by the share of KV blocks in use, 0 to 1 */
    double transfer, transfer_block;                                /* of a prompt's KV to another worker, and of each block */
} pl_timing;
typedef struct pl_sim pl_sim;
pl_sim *pl_sim_open(void);
void pl_sim_close(pl_sim *s);              /* and its engines; their models stay */
/* A worker: an engine over a model (of the null device) that takes this long for a step.
 * Its number, from 0, or a status; at most 4096. The options' clock is set here. */
int pl_sim_join(pl_sim *s, pl_model *model, const pl_engine_options *options,
                const pl_timing *timing);
pl_engine *pl_sim_engine(pl_sim *s, int worker);
/* pl_route_follow for a worker here: a step's changes are told when it is over. */
pl_status pl_sim_follow(pl_sim *s, int worker, pl_route *x, int number);
/* Gives a worker a sequence, now, and takes ownership of it unless it is refused. It
 * counts for `load` (NULL: none), where its first n_cached tokens are thought to be cached.
 * PL_ENOTFOUND: there is no such worker. */
pl_status pl_sim_submit(pl_sim *s, int worker, pl_seq *seq, pl_load *load, int32_t n_cached);
/* The same of a prompt that worker `reader` reads and `worker` goes on with (pl_stream_split);
 * the sequence counts for the reader's load until its first token. */
pl_status pl_sim_split(pl_sim *s, int reader, int worker, pl_seq *seq, pl_load *load, int32_t n_cached,
                       pl_load *reader_load, int32_t reader_cached);
typedef struct pl_sim_answer {             /* of a sequence that has ended */
    int32_t worker, n_tokens, n_cached, finish;
    int64_t came_ns, first_ns, last_ns;    /* when it was submitted; its first and last token, 0: none */
} pl_sim_answer;
/* Lets time pass: to `until_ns`, or to the first moment at which there is something to
 * tell. Returns how many events, all of that moment: PL_EV_PIECE, a sequence has its first
 * token; PL_EV_DONE, it has ended, and the object is a pl_sim_answer that is good until
 * the next call. */
int pl_sim_run(pl_sim *s, int64_t until_ns, pl_event *out, int max);
int64_t pl_sim_now(const pl_sim *s);       /* from 0 */
/* The gap between two tokens of a sequence, in nanoseconds: the mean over all, or that
 * which so many of them do not exceed (0 to 1; within 1 %). */
double pl_sim_gap_mean(const pl_sim *s);
double pl_sim_gap(const pl_sim *s, double share);

/* [/cdef] */
/* clang-format on */
