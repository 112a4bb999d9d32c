/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune/engine.h - sequences, and the engine that continues them step by step.
 */
#ifndef PERILUNE_H
#error "include perilune.h"
#endif

/* clang-format off */
/* [cdef] */

/* ---- sequences: a prompt to be continued (any thread, one at a time) ------------- */

typedef struct pl_params {                 /* sampling options; pl_params_row says what each does */
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k, max_tokens, min_tokens, logprobs, prompt_logprobs, ignore_eos, priority;
    uint64_t seed;
} pl_params;
void pl_params_init(pl_params *p);
enum { PL_PARAM_I32, PL_PARAM_F32, PL_PARAM_U64, PL_PARAM_BOOL };     /* BOOL: an int32_t, 0 or 1 */
typedef struct pl_param {                  /* describes one field of pl_params */
    const char *name, *wants, *what;       /* wants: completes "must be"; what: what it does */
    int32_t offset, kind, tag;             /* tag: identifies it on the wire */
    double initial, low, high;             /* the default, and the bounds, inclusive */
} pl_param;
const pl_param *pl_params_row(int i);      /* NULL: i is past the last */
typedef struct pl_seq pl_seq;
pl_seq *pl_seq_open(const int32_t *tokens, int n, const pl_params *params);
void pl_seq_close(pl_seq *s);              /* only before it is handed over */
int32_t pl_seq_id(const pl_seq *s);        /* unique in this process, positive */
pl_status pl_seq_eos(pl_seq *s, const int32_t *ids, int n);        /* end it unless ignore_eos; the stop reason is null */
pl_status pl_seq_stop_ids(pl_seq *s, const int32_t *ids, int n);   /* end it; the stop reason is the id */
pl_status pl_seq_bias(pl_seq *s, const int32_t *ids, const float *values, int n);
pl_status pl_seq_allow(pl_seq *s, const int32_t *ids, int n);
pl_status pl_seq_bad_word(pl_seq *s, const int32_t *ids, int n);   /* one sequence of ids; call again for more */
pl_status pl_seq_salt(pl_seq *s, const char *salt, size_t len);
/* How logs of engines and other processes identify it: fields as for pl_log_fields, the
 * first being the request's id; printable ASCII, else PL_EINVAL. */
pl_status pl_seq_label(pl_seq *s, const char *fields, size_t len);
void pl_seq_remote(pl_seq *s, int32_t n_tokens);   /* KV of the first n will come from elsewhere; ignored with prompt_logprobs */
void pl_seq_lend(pl_seq *s);               /* its prompt's KV stays until pl_engine_return */
/* The last n of its tokens are not prompt but were generated elsewhere; it continues from
 * there. Penalties, min_tokens and max_tokens count them. */
pl_status pl_seq_resume(pl_seq *s, int32_t n_output);
void pl_seq_uncounted(pl_seq *s);          /* a health check: excluded from statistics and metrics */

enum { PL_FINISH_NONE = 0, PL_FINISH_STOP, PL_FINISH_LENGTH, PL_FINISH_ABORT, PL_FINISH_ERROR };
typedef struct pl_logprob { int32_t token, rank; float logprob; } pl_logprob;
typedef struct pl_token {                  /* one token that a sequence produced */
    int32_t seq, token;                    /* token -1: none, this only reports the end */
    int32_t index;                         /* in the answer, from 0 */
    int32_t finish, stop_reason;           /* stop_reason: a token id, or -1 */
    int32_t n_cached;                      /* prompt tokens found in the cache (first token) */
    int32_t n_top;                         /* entries of `top`: the sampled one first, then the best */
    int32_t n_prompt_top;                  /* first token: prompt_logprobs + 1 per prompt token, from the second on */
    const pl_logprob *top;                 /* NULL without logprobs; valid as long as its batch */
    const pl_logprob *prompt_top;
} pl_token;
/* What an engine would sample from these logits (overwritten): a token or a status.
 * `top`: room for 1 + logprobs, which must be fewer than vocab; NULL without logprobs. */
int32_t pl_seq_sample(pl_seq *s, float *logits, int32_t vocab, pl_logprob *top);

/* ---- engine: the step (lua opens and calls; step runs) --------------------------- */

enum { PL_POLICY_FCFS = 0, PL_POLICY_PRIORITY = 1 };
enum { PL_HASH_SHA256_CBOR = 0, PL_HASH_SHA256 = 1, PL_HASH_XXHASH_CBOR = 2 };
/* A full block's hash: 32 bytes (xxhash: 16, then zeros) from its parent's (NULL: it is the
 * first block), its tokens and, in first blocks, the salt (NULL: none). none_hash: of the
 * seed alone. */
pl_status pl_block_hash(int algo, const char *seed, const uint8_t *parent,
                        const int32_t *tokens, int n, const char *salt, size_t salt_len,
                        uint8_t *out);
pl_status pl_none_hash(int algo, const char *seed, uint8_t *out);
typedef struct pl_engine_options {
    int32_t n_blocks;                      /* of the model's block_size; block 0 is reserved */
    int32_t max_num_seqs, max_num_batched_tokens, max_model_len;
    int32_t enable_prefix_caching, enable_chunked_prefill, long_prefill_token_threshold;
    int32_t policy, hash_algo;
    const char *hash_seed;                 /* NULL: "vllm-none-hash" */
    int32_t max_waiting;                   /* queue length; more are refused (PL_ELIMIT) */
    int32_t fail_without_kv;               /* remote KV that does not arrive ends its sequence (ERROR); else it is computed */
    pl_clock *clock;                       /* NULL: real time */
} pl_engine_options;
typedef struct pl_engine_stats {           /* a snapshot; counters since the start */
    int32_t running, waiting, waiting_remote, blocks, blocks_used, blocks_cached;
    int64_t steps, preemptions, prompt_tokens, generation_tokens, cached_tokens;
    int64_t prefix_queries, prefix_hits, chunked;
    int64_t finished, aborted;             /* finished: all that ended, aborted ones too */
    int64_t prefill_tokens;                /* of queued prompts, not yet read */
    int64_t last_step_ns;                  /* pl_now_ns at the end of the last step */
    int64_t busy_since_ns;                 /* has had work since then; 0: idle */
    int64_t blocks_changed;                /* hashes that the cache gained or lost */
} pl_engine_stats;
typedef struct pl_engine pl_engine;
pl_engine *pl_engine_open(pl_model *model, const pl_engine_options *options);
void pl_engine_close(pl_engine *e);        /* stops its thread; running sequences are aborted */
/* Hashes the prompt's blocks ahead of submit, which otherwise does it: for long prompts,
 * worth doing on another thread. After pl_seq_salt; any thread, by the sequence's holder. */
void pl_engine_hash(const pl_engine *e, pl_seq *s);
/* Takes ownership of the sequence. Refusals: PL_ELIMIT (queue full), PL_EINVAL. */
pl_status pl_engine_submit(pl_engine *e, pl_seq *s);
void pl_engine_cancel(pl_engine *e, int32_t seq);          /* unknown ids are ignored */
void pl_engine_return(pl_engine *e, int32_t seq);          /* what it has lent, or would lend yet, is wanted no more */
void pl_engine_arrived(pl_engine *e, int32_t seq, int ok); /* remote KV has arrived; not ok: recompute */
pl_status pl_engine_reset_cache(pl_engine *e);             /* PL_EAGAIN while blocks are in use */
void pl_engine_stats_get(const pl_engine *e, pl_engine_stats *out);
void pl_engine_tell_waits(pl_engine *e);                   /* logs what has waited long, and for what; call every second */
typedef struct pl_step_info {              /* a completed step; times by pl_now_ns */
    int64_t number, began_ns, submitted_ns, collected_ns, ended_ns;
    int32_t seqs, rows, prompt_rows;       /* prompt_rows: those that read prompts, not a last token alone */
    int32_t running, waiting, blocks_used; /* at its end */
    int64_t looked_back, prompt_looked_back;   /* tokens before each row, summed: over all rows; over prompt_rows */
} pl_step_info;
/* The last steps that computed something, oldest first; returns how many, at most 1024. Any thread. */
int pl_engine_steps(const pl_engine *e, pl_step_info *out, int max);
enum { PL_SEQ_IN_LINE = -1, PL_SEQ_REMOTE = -2, PL_SEQ_ANSWERING = -3 };
typedef struct pl_seq_info {               /* a sequence that an engine has */
    int32_t seq;
    int32_t stage;                         /* PL_SEQ_*; or, while its prompt is being read, the tokens read before its last step */
    int32_t n_prompt, n_tokens;            /* prompt tokens; tokens generated, as of the last step's end */
    int64_t since_ns, first_ns, last_ns;   /* its arrival, and the first and last token generated here; 0: none */
    char label[120];                       /* its request's id, as sent by another process; may be truncated */
} pl_seq_info;
/* The sequences it has, unordered, at most `max`; returns how many there are. Any thread. */
int pl_engine_seqs(const pl_engine *e, pl_seq_info *out, int max);
/* Before it starts: sets a histogram (pl_metric_open) to observe each step's tokens, or the
 * seconds from each sequence's submission to its end. */
enum { PL_OBSERVE_STEP_TOKENS = 0, PL_OBSERVE_SECONDS = 1 };
void pl_engine_observe(pl_engine *e, int what, int metric);
/* Without a runtime (tests, the simulator): runs one step here, then read what it produced.
 * The tokens are valid until the next step. */
pl_status pl_engine_step(pl_engine *e);
int pl_engine_tokens(pl_engine *e, const pl_token **out);
/* Without a thread: how many steps from here on would be alike, in which all sequences
 * decode and none ends, fills a block or waits; and of the first, seqs, rows, looked_back
 * and blocks_used. leap: takes n of them at once, whoever has been submitted since; their
 * tokens are zeros, told to nobody. */
int32_t pl_engine_alike(const pl_engine *e, pl_step_info *first);
void pl_engine_leap(pl_engine *e, int32_t n);
/* Between steps (else PL_EAGAIN). The blocks of a sequence in order, and how many; for 0,
 * those not in use, in the order they will be taken. check: do blocks and sequences agree? */
int pl_engine_blocks(const pl_engine *e, int32_t seq, int32_t *out, int max);
pl_status pl_engine_check(const pl_engine *e);

/* [/cdef] */
/* clang-format on */
