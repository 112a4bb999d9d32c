/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune.h - the only way into the engine. C, C++ and LuaJIT's FFI read this text.
 *
 * The text between the two marks below is compiled as C and also embedded in the library:
 * `pl_cdef()` returns it, and lua/perilune/ffi.lua passes it to ffi.cdef. So it contains
 * declarations only: enums for constants, pointers to structs, no macros.
 *
 * Conventions. A function that can fail returns a pl_status (negative means failure) or
 * NULL; pl_error_text() then says why, per thread. Outputs are written on success only.
 * Strings come with their length; functions copy the strings they are given unless noted.
 * `close` accepts NULL. Section headings say which thread may call the functions below.
 */
#ifndef PERILUNE_H
#define PERILUNE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* clang-format off */
/* [cdef] */

/* ---- status, log, clock (any thread) --------------------------------------------- */

typedef enum pl_status {
    PL_OK = 0,
    PL_EINVAL = -1,       /* caller error: a value out of range, a bad argument */
    PL_ENOMEM = -2,       /* a bounded pool is exhausted */
    PL_EIO = -3,          /* the operating system refused */
    PL_EFORMAT = -4,      /* a malformed file or message */
    PL_EAGAIN = -5,       /* not now; sets no error text */
    PL_ELIMIT = -6,       /* a stated limit would be exceeded */
    PL_ENOTFOUND = -7,
    PL_EUNSUPPORTED = -8, /* well formed, but perilune does not support it */
    PL_ECANCELED = -9,
    PL_ETIMEOUT = -10,
    PL_EINTERNAL = -11    /* a bug in perilune */
} pl_status;

const char *pl_version(void);             /* "0.1.0" */
const char *pl_cdef(void);                /* the text between the marks */
const char *pl_status_name(int status);   /* "PL_EINVAL" */
const char *pl_error_text(void);          /* the last failure on this thread; "" if none */
const char *pl_error_where(void);         /* "kv.c:88", for logs */

enum { PL_LOG_DEBUG = 0, PL_LOG_INFO = 1, PL_LOG_WARN = 2, PL_LOG_ERROR = 3 };
void pl_log_level(int level);
void pl_log_json(int on);                 /* one JSON object per line, or (0) plain text */
void pl_log_write(int level, const char *text, size_t len);
/* With fields: name, NUL, value, NUL, and so on; 1 KiB at most. A name that begins with
 * '#' (not shown) has an integer value. */
void pl_log_fields(int level, const char *text, size_t len, const char *fields,
                   size_t fields_len);

int64_t pl_now_ns(void);                  /* monotonic */
int64_t pl_wall_ns(void);                 /* since 1970 */
uint64_t pl_entropy(void);                /* 64 random bits from the system */
/* Counter-based random bits (Philox4x32-10): the same arguments give the same bits anywhere. */
uint64_t pl_random_at(uint64_t seed, uint64_t position, uint64_t lane);

typedef struct pl_clock pl_clock;         /* an engine's time source */
pl_clock *pl_clock_open(void);            /* virtual: stands still until set */
void pl_clock_set(pl_clock *clock, int64_t ns);
void pl_clock_close(pl_clock *clock);

typedef struct pl_buf {                   /* bytes filled by a call and freed by the owner */
    char *data;
    size_t len, cap;
} pl_buf;
void pl_buf_fini(pl_buf *buf);
/* Paths of the folder's entries whose names have this ending, one per line, sorted; at most `max`. */
void pl_list_folder(const char *path, const char *ending, int max, pl_buf *out);

/* ---- metrics (any thread) -------------------------------------------------------- */

enum { PL_COUNTER = 0, PL_GAUGE = 1, PL_HISTOGRAM = 2 };
/* Registers a series; the same name and labels give the same id. `labels` is the printed
 * form without braces: model_name="m",engine="0". A negative result is a pl_status. */
int pl_metric_open(int kind, const char *name, const char *labels, const char *help,
                   const double *buckets, int n_buckets);
void pl_metric_add(int id, double by);     /* counter, gauge */
void pl_metric_set(int id, double value);  /* gauge */
void pl_metric_observe(int id, double value);
void pl_metric_also(int id, int other);    /* from now on `other` also observes what `id` does */
double pl_metric_value(int id);            /* histogram: its count */
int pl_metric_render(pl_buf *out);         /* Prometheus text format 0.0.4 */

/* ---- JSON, strict and in order (any thread) -------------------------------------- */

typedef struct pl_json pl_json;            /* a document, or a value inside one */
enum { PL_JSON_NULL = 0, PL_JSON_FALSE, PL_JSON_TRUE, PL_JSON_INTEGER, PL_JSON_REAL,
       PL_JSON_STRING, PL_JSON_ARRAY, PL_JSON_OBJECT };
pl_json *pl_json_open(const char *text, size_t len);   /* RFC 8259, 512 levels; on NULL the error text says where */
void pl_json_close(pl_json *doc);                      /* the document and all its values */
int pl_json_kind(const pl_json *v);                    /* NULL (absent) counts as null */
int pl_json_size(const pl_json *v);                    /* of an array or object */
const char *pl_json_digits(const pl_json *v);   /* an integer beyond 64 bits as text; else NULL */
int64_t pl_json_integer(const pl_json *v);
double pl_json_number(const pl_json *v);               /* of an integer or real */
const char *pl_json_string(const pl_json *v, size_t *len);
const pl_json *pl_json_item(const pl_json *array, int i);
const pl_json *pl_json_find(const pl_json *object, const char *key);   /* NULL: absent */
/* Walks an object in its order: starts at NULL, returns NULL at the end. */
void *pl_json_next(const pl_json *object, void *at);
const char *pl_json_key(void *at, size_t *len);
const pl_json *pl_json_value(void *at);
int pl_json_ints(const pl_json *array, int32_t *out, int max);   /* the count, or a status unless all are integers */
/* Appends s escaped for a JSON string, without the quotes; invalid UTF-8 becomes U+FFFD. */
void pl_buf_add_json(pl_buf *b, const char *s, size_t len);
void pl_buf_add_real(pl_buf *b, double v);             /* shortest form that round-trips, as Python prints it */

/* ---- text: tokens <-> bytes (any thread, once pl_text_ready is done) ------------- */

typedef struct pl_text pl_text;
enum { PL_TEXT_BYTES = 0,                  /* byte-level BPE */
       PL_TEXT_PIECES = 1 };               /* SentencePiece-style BPE over U+2581 */
enum { PL_TOKEN_NORMAL = 0, PL_TOKEN_ADDED = 1, PL_TOKEN_SPECIAL = 2, PL_TOKEN_BYTE = 3,
       PL_TOKEN_LSTRIP = 16, PL_TOKEN_RSTRIP = 32, PL_TOKEN_SINGLE_WORD = 64,
       PL_TOKEN_NORMALIZED = 128 };        /* flags, or'ed with the kind */
enum { PL_PREFIX_NEVER = 0, PL_PREFIX_ALWAYS = 1, PL_PREFIX_FIRST = 2 };
typedef struct pl_text_options {
    int32_t kind;                          /* PL_TEXT_* */
    int32_t vocab_size;
    int32_t nfc, byte_fallback, ignore_merges, fuse_unk;
    int32_t unk_id;                        /* -1: none */
    int32_t prefix_space;                  /* PL_PREFIX_*: a space before each section between added tokens, or only the first; bytes: not before a space, no FIRST */
    int32_t metaspace;                     /* pieces: spaces become U+2581 only after added tokens are found; no prefix before one */
    int32_t by_score;                      /* merges are ranked by the score of the result (GGUF `llama`) */
    int32_t strip_left;                    /* spaces the decoder strips from the start of a text; -1: the first token's */
} pl_text_options;
pl_text *pl_text_open(const pl_text_options *options);
void pl_text_close(pl_text *t);
/* Bytes as spelled in tokenizer.json or the GGUF file. NORMAL and BYTE make up the BPE
 * vocabulary, ADDED and SPECIAL are matched before it; an id may be registered as both. */
pl_status pl_text_token(pl_text *t, int32_t id, const char *bytes, size_t len, int kind,
                        float score);
pl_status pl_text_merge(pl_text *t, const char *left, size_t left_len, const char *right,
                        size_t right_len); /* in rank order, after the tokens */
pl_status pl_text_split(pl_text *t, const char *regex, size_t len);   /* pre-tokenizer, isolated matches; in order */
pl_status pl_text_ready(pl_text *t);       /* checks and freezes t */
int32_t pl_text_size(const pl_text *t);    /* ids are below this */
int32_t pl_text_find(const pl_text *t, const char *bytes, size_t len);   /* a whole token's id, or -1 */
int pl_text_token_kind(const pl_text *t, int32_t id);   /* with its flags; -1: no such token */
/* Appends the ids of UTF-8 `bytes` to out as int32; with `special`, special tokens spelled
 * out in the text become their ids. Adds no begin-of-text token: model/load.lua does that. */
pl_status pl_text_encode(const pl_text *t, const char *bytes, size_t len, int special, pl_buf *out);
void pl_text_case(const char *s, size_t len, int upper, pl_buf *out);   /* to upper or lower case */
/* Ids without a token decode to nothing, invalid UTF-8 to U+FFFD. */
pl_status pl_text_decode(const pl_text *t, const int32_t *ids, int n, int skip_special, pl_buf *out);
/* One token as `tokens` and logprobs show it: its bytes, possibly part of a character. */
pl_status pl_text_bytes(const pl_text *t, int32_t id, pl_buf *out);
/* Incremental decoding: emits whole characters only, which together equal the output of
 * pl_text_decode for the same ids. */
typedef struct pl_detok pl_detok;
pl_detok *pl_detok_open(const pl_text *text, int skip_special);
void pl_detok_prime(pl_detok *d, const int32_t *ids, int n);   /* the prompt's last ids: emits nothing, sets the context */
void pl_detok_push(pl_detok *d, int32_t token, pl_buf *out);
void pl_detok_flush(pl_detok *d, pl_buf *out);                 /* what was held back */
void pl_detok_close(pl_detok *d);

/* ---- weights: files of tensors, mapped (any thread, read only) ------------------- */

typedef enum pl_type { PL_F32 = 0, PL_F16, PL_BF16, PL_Q8_0, PL_Q4_0, PL_Q4_1, PL_Q5_0, PL_Q5_1,
    PL_Q2_K, PL_Q3_K, PL_Q4_K, PL_Q5_K, PL_Q6_K, PL_IQ4_NL, PL_IQ4_XS, PL_I32, PL_N_TYPES } pl_type;
const char *pl_type_name(int type);
typedef struct pl_tensor {                 /* a tensor in a file: row-major, dims[0] outermost */
    const char *name;
    int32_t type, n_dims;
    int64_t dims[4];
    const void *data;                      /* safetensors: may be unaligned */
    int64_t bytes;
} pl_tensor;
typedef struct pl_meta {                   /* a value of GGUF's metadata */
    int32_t kind;                          /* a PL_JSON_* kind */
    int32_t n;                             /* of an array */
    int32_t item_kind;                     /* PL_JSON_TRUE: of bools */
    int64_t integer;
    double number;
    const char *string;
    size_t len;
} pl_meta;
typedef struct pl_weights pl_weights;
pl_weights *pl_weights_open(const char *path);     /* GGUF v3 or safetensors, by content */
void pl_weights_close(pl_weights *w);              /* invalidates its tensors' data */
int pl_weights_count(const pl_weights *w);
int64_t pl_weights_size(const pl_weights *w);      /* of the file, in bytes */
int64_t pl_weights_head(const pl_weights *w);      /* bytes before the first tensor's data */
const pl_tensor *pl_weights_get(const pl_weights *w, int i);
const pl_tensor *pl_weights_find(const pl_weights *w, const char *name);
pl_status pl_weights_meta(const pl_weights *w, const char *key, pl_meta *out);       /* PL_ENOTFOUND */
pl_status pl_weights_meta_item(const pl_weights *w, const char *key, int i, pl_meta *out);
/* A hash of `text` and, unless NULL, of the file: its header and each tensor's first bytes. */
uint64_t pl_weights_fingerprint(const pl_weights *w, const char *text, size_t len, uint64_t seed);

/* ---- model: a transformer on a device (lua while loading, then step) ------------- */

enum { PL_ROPE_HALVES = 0, PL_ROPE_PAIRS = 1 };                       /* PAIRS: GGUF `llama` */
enum { PL_ROPE_PLAIN = 0, PL_ROPE_LINEAR = 1, PL_ROPE_LLAMA3 = 2, PL_ROPE_YARN = 3 };
enum { PL_ACT_FLOAT32 = 0, PL_ACT_INT8X2 = 1, PL_ACT_INT8 = 2, PL_N_ACTIVATIONS };
enum { PL_KV_FLOAT32 = 0, PL_KV_INT16 = 1 };
typedef struct pl_model_options {
    int32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn, vocab;
    int32_t n_experts, n_experts_used, expert_ffn, norm_topk;         /* 0 unless MoE */
    int32_t qkv_bias, o_bias, qk_norm;     /* biases of q, k and v, or of o; norms of each head of q and k */
    int32_t window;                        /* positions that a layer sees, unless it is PL_LAYER_FULL; 0: all */
    int32_t max_positions;
    int32_t rope_order, rope_scaling;
    float norm_eps, rope_theta;
    float rope_factor, rope_low, rope_high, rope_attention;           /* llama3: low/high factor; yarn: beta_slow/beta_fast, attention factor (0: derived) */
    int32_t rope_original;                 /* original_max_position_embeddings */
    int32_t tied;                          /* the head is the embedding */
    int32_t activations;                   /* PL_ACT_*; INT8X2, INT8: two int8 terms or one beside quantized weights, a scale per 32; INT8 also bf16 beside bf16 weights, if the kernels can */
    int32_t kv_type, block_size;           /* PL_KV_*; INT16: with a scale for each head of a position */
    uint64_t dummy_seed;                   /* with pl_model_dummy */
} pl_model_options;
enum { PL_ROLE_EMBED = 0, PL_ROLE_NORM, PL_ROLE_HEAD, PL_ROLE_ROPE_FREQS,          /* layer -1 */
       PL_ROLE_ATTN_NORM, PL_ROLE_Q, PL_ROLE_K, PL_ROLE_V, PL_ROLE_O, PL_ROLE_Q_BIAS,
       PL_ROLE_K_BIAS, PL_ROLE_V_BIAS, PL_ROLE_O_BIAS, PL_ROLE_Q_NORM, PL_ROLE_K_NORM,
       PL_ROLE_FFN_NORM, PL_ROLE_GATE, PL_ROLE_UP, PL_ROLE_DOWN, PL_ROLE_ROUTER,
       PL_N_ROLES };
typedef struct pl_device pl_device;
typedef struct pl_device_options {
    const char *name;                      /* "cpu"; "null" (computes nothing); or a plug-in's, libperilune_NAME.so beside the program */
    const char *kernels;                   /* NULL, "auto"; the CPU's: "scalar", "avx2", "avx512", "avx512bf16" */
    int32_t n_threads;                     /* 0: one per core */
    int32_t depth;                         /* steps in flight at once, 1 or 2; 0: as suits the device */
} pl_device_options;
pl_device *pl_device_open(const pl_device_options *options);
void pl_device_close(pl_device *d);
const char *pl_device_kernels(const pl_device *d);          /* the variant chosen */
typedef struct pl_model pl_model;
pl_model *pl_model_open(pl_device *device, const pl_model_options *options);
void pl_model_close(pl_model *m);
/* How a layer differs from what the options say of all; before its tensors. */
enum { PL_LAYER_DENSE = 1, PL_LAYER_FULL = 2 };             /* flags: no experts, no window */
pl_status pl_model_layer(pl_model *m, int layer, int flags);
/* Gives the model one tensor, which is packed or copied: its file may be closed afterwards.
 * Experts: e is the expert, or -1 where the tensor stacks all of them. */
pl_status pl_model_tensor(pl_model *m, int role, int layer, int e, const pl_tensor *tensor);
pl_status pl_model_dummy(pl_model *m);     /* seeded random weights for whatever is missing */
pl_status pl_model_ready(pl_model *m);     /* checks that all are there, with the right shapes */
int64_t pl_model_weight_bytes(const pl_model *m);
int64_t pl_model_block_bytes(const pl_model *m);            /* KV of one block, all layers */
const char *pl_model_numerics(const pl_model *m);           /* once ready; equal ids give equal bits */
const char *pl_model_kv_layout(const pl_model *m);          /* blocks of equal layouts can be exchanged */

/* For tests and tools, while no engine has the model. Runs n_seqs sequences of lens[i]
 * tokens (concatenated in `tokens`) together, at most `step` rows of each at a time, over
 * shuffled KV blocks. `logits`: vocab floats per token. */
pl_status pl_model_logits(pl_model *m, const int32_t *tokens, const int32_t *lens, int n_seqs,
                          int step, float *logits);
/* One matrix (rows x columns) times n_rows rows of activations, in a kernel variant. */
pl_status pl_kernel_linear(const char *kernels, int n_threads, const pl_tensor *matrix,
                           int activations, const float *rows, int n_rows, float *out);

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
/* The last n of its tokens are not prompt but were generated elsewhere; it continues from
 * there. Penalties, min_tokens and max_tokens count them. */
pl_status pl_seq_resume(pl_seq *s, int32_t n_output);
void pl_seq_uncounted(pl_seq *s);          /* a health check: excluded from statistics and metrics */

enum { PL_FINISH_NONE = 0, PL_FINISH_STOP, PL_FINISH_LENGTH, PL_FINISH_ABORT, PL_FINISH_ERROR };
typedef struct pl_logprob { int32_t token, rank; float logprob; } pl_logprob;
typedef struct pl_token {                  /* one token that a sequence produced */
    int32_t seq, token;                    /* token -1: none, this only reports the end */
    int32_t finish, stop_reason;           /* stop_reason: a token id, or -1 */
    int32_t n_cached;                      /* prompt tokens found in the cache (first token) */
    int32_t n_top;                         /* entries of `top`: the sampled one first, then the best */
    const pl_logprob *top;                 /* NULL without logprobs; valid as long as its batch */
    int32_t n_prompt_top;                  /* first token: prompt_logprobs + 1 per prompt token, from the second on */
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
void pl_engine_arrived(pl_engine *e, int32_t seq, int ok); /* remote KV has arrived; not ok: recompute */
pl_status pl_engine_reset_cache(pl_engine *e);             /* PL_EAGAIN while blocks are in use */
void pl_engine_stats_get(const pl_engine *e, pl_engine_stats *out);
void pl_engine_tell_waits(pl_engine *e);                   /* logs what has waited long, and for what; call every second */
typedef struct pl_step_info {              /* a completed step; times by pl_now_ns */
    int64_t number, began_ns, submitted_ns, collected_ns, ended_ns;
    int32_t seqs, rows, prompt_rows;       /* prompt_rows: those of `rows` that read a prompt */
    int32_t running, waiting, blocks_used; /* at its end */
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
/* Between steps (else PL_EAGAIN). The blocks of a sequence in order, and how many; for 0,
 * those not in use, in the order they will be taken. check: do blocks and sequences agree? */
int pl_engine_blocks(const pl_engine *e, int32_t seq, int32_t *out, int max);
pl_status pl_engine_check(const pl_engine *e);

/* ---- runtime: the io thread, HTTP, streams; what Lua polls (lua thread) ---------- */

enum { PL_EV_REQUEST = 1,                  /* a whole HTTP request: object is a pl_exchange */
       PL_EV_GONE,                         /* the client of exchange `id` disconnected */
       PL_EV_PIECE,                        /* stream `id` has a new piece (mode PIECES) */
       PL_EV_DONE,                         /* stream `id` has ended */
       PL_EV_JOB,                          /* job `id` is finished */
       PL_EV_SIGNAL,                       /* SIGINT, SIGTERM, SIGHUP: number in a */
       PL_EV_LOST,                         /* stream `id` lost its engine; a: PL_LOST_*, b: a status */
       PL_EV_BUS,                          /* a: the bus is connected (1) or not (0) */
       PL_EV_PEER,                         /* process `id`: lost (a: PL_LOST_*), or its hello changed (a: 0) */
       PL_EV_CALL,                         /* another process asks: object is a pl_call */
       PL_EV_REPLY };                      /* call `id` is answered: object, or a status in a */
typedef struct pl_event { int32_t kind, id, a, b; void *object; } pl_event;
typedef struct pl_runtime pl_runtime;
typedef struct pl_runtime_options {
    int64_t max_body;                      /* bytes in a request body */
    int32_t max_connections, max_header_bytes, max_headers;
    int32_t idle_timeout_ms, request_timeout_ms;            /* between requests; for one to arrive completely */
    int64_t max_pending_write;             /* a reader this far behind is cut off */
} pl_runtime_options;
void pl_runtime_options_init(pl_runtime_options *o);
pl_runtime *pl_runtime_open(const pl_runtime_options *options);
void pl_runtime_close(pl_runtime *rt);
/* Returns how many events; 0 on timeout. Objects already closed or released cause no new
 * events, but within one batch, handling one event may close the object of a later one. */
int pl_poll(pl_runtime *rt, pl_event *out, int max, int timeout_ms);
int pl_listen(pl_runtime *rt, const char *host, int port);             /* the port bound, or a status */
/* A Unix socket that only its owner can open, in a folder that only its owner can enter
 * (else PL_EIO). A stale one is replaced. Removed with the runtime. */
pl_status pl_listen_local(pl_runtime *rt, const char *path);
void pl_unlisten(pl_runtime *rt);          /* accepts only local connections from now on; open ones close after their answer */
/* What Lua is doing, in a few words: if it then fails to poll for a second, io logs and
 * counts that. NULL, the initial value, turns this off. */
void pl_doing(pl_runtime *rt, const char *what);
pl_status pl_runtime_attach(pl_runtime *rt, pl_engine *e);   /* starts its step thread; tokens go to streams */
/* Stops it, ending its streams. Before pl_engine_close; pl_runtime_close does it for all. */
void pl_runtime_detach(pl_runtime *rt, pl_engine *e);

typedef struct pl_exchange pl_exchange;    /* one HTTP request and its answer; valid until released */
int32_t pl_exchange_id(const pl_exchange *x);
int pl_exchange_is_local(const pl_exchange *x);   /* arrived through pl_listen_local */
int pl_exchange_is_gone(const pl_exchange *x);    /* client disconnected; any thread, true before the event */
const char *pl_exchange_peer(const pl_exchange *x);   /* the client, for logs */
const char *pl_exchange_method(const pl_exchange *x);
const char *pl_exchange_path(const pl_exchange *x);                    /* without the query; percent-decoded */
const char *pl_exchange_query(const pl_exchange *x);
const char *pl_exchange_header(const pl_exchange *x, const char *name);   /* case-insensitive; NULL: absent */
const char *pl_exchange_body(const pl_exchange *x, size_t *len);
/* A complete response. `headers`: extra lines, each ending in \r\n. */
void pl_exchange_reply(pl_exchange *x, int status, const char *type, const char *headers,
                       size_t headers_len, const char *body, size_t len);
void pl_exchange_begin(pl_exchange *x, int status, const char *type, const char *headers,
                       size_t headers_len);    /* chunked: begin, writes, end */
void pl_exchange_write(pl_exchange *x, const char *data, size_t len);
void pl_exchange_end(pl_exchange *x);
void pl_exchange_release(pl_exchange *x);      /* Lua is done with it; if unanswered, the connection is cut */
/* Before the response ends: extra fields for its access log line, as for pl_log_fields. */
void pl_exchange_label(pl_exchange *x, const char *fields, size_t len);

enum { PL_STREAM_SSE = 0,                  /* C writes before + JSON text + after, per piece */
       PL_STREAM_PIECES = 1,               /* Lua gets an event per piece and writes it */
       PL_STREAM_WHOLE = 2 };              /* Lua gets an event at the end only */
typedef struct pl_stream pl_stream;        /* turns one sequence's tokens into output */
/* `x` may be NULL unless the mode is SSE. If its client disconnects, the stream is cancelled. */
pl_stream *pl_stream_open(pl_runtime *rt, const pl_text *text, int mode, pl_exchange *x);
int32_t pl_stream_id(const pl_stream *s);
/* SSE, once: `before` ends and `after` begins with the quote around the text. Pieces are
 * held until then, so that the response can begin after an engine accepts the sequence. */
void pl_stream_frame(pl_stream *s, const char *before, size_t before_len, const char *after,
                     size_t after_len);
pl_status pl_stream_stop(pl_stream *s, const char *stop, size_t len);  /* a stop string; PL_ELIMIT */
/* A piece has at least `interval` tokens; stop strings apply after min_tokens tokens. */
void pl_stream_flags(pl_stream *s, int skip_special, int include_stop, int interval, int min_tokens);
/* Before the start: sets a histogram to observe the seconds between tokens. */
void pl_stream_observe(pl_stream *s, int metric);
void pl_stream_prime(pl_stream *s, const int32_t *prompt, int n);      /* the prompt's last ids */
/* Hands both over: tokens of `seq` go through `s`; the runtime cancels on a stop string.
 * If the engine refuses, `seq` stays with the caller, who may try another. */
pl_status pl_stream_start(pl_stream *s, pl_engine *e, pl_seq *seq);
/* The same in another process, on engine `index` of a peer. The stream keeps the sequence. */
pl_status pl_stream_send(pl_stream *s, int32_t peer, int index, pl_seq *seq);
/* Before the first start: keep a copy of the sequence, as pl_stream_send does. After LOST it
 * can then be started or sent again with seq NULL, and continues where it was. */
void pl_stream_keep(pl_stream *s);
/* If it keeps its sequence, withdraws that from where it runs: LOST follows, with
 * PL_LOST_RECALLED, unless it ends first. */
void pl_stream_recall(pl_stream *s);
const char *pl_stream_why(pl_stream *s);   /* after LOST: why it was refused, or "" */
/* After PIECE and DONE: the text since the last take (SSE: what is not written yet). */
const char *pl_stream_take(pl_stream *s, size_t *len);
/* Not with SSE: how many tokens the last take returned, and at which byte of the whole text
 * each starts; the pointers are valid until the next take. */
int pl_stream_tokens(pl_stream *s, const pl_token **tokens, const int32_t **starts);
typedef struct pl_stream_end {
    int32_t finish, stop_reason;           /* stop_reason: token id, or -1 */
    int32_t stop_string;                   /* index of the stop string that ended it, or -1 */
    int32_t n_tokens, n_cached;
    int64_t submitted_ns, scheduled_ns, first_ns, last_ns;
} pl_stream_end;
void pl_stream_result(pl_stream *s, pl_stream_end *out);   /* after DONE; after LOST, what there is so far */
void pl_stream_cancel(pl_stream *s);       /* DONE follows, with finish ABORT */
void pl_stream_close(pl_stream *s);        /* after DONE, or before start */

/* Jobs: work for the pool of Lua states (main.c opens them; they run api/pool.lua). */
typedef struct pl_job pl_job;
int32_t pl_job_push(pl_runtime *rt, pl_exchange *x, const char *arg, size_t len);   /* its id, or PL_ELIMIT */
pl_job *pl_job_take(pl_runtime *rt, int timeout_ms);         /* pool thread; NULL: timeout, or closing */
int pl_job_closing(const pl_runtime *rt);
void pl_job_stop(pl_runtime *rt);          /* makes all takes return; join the pool's threads before pl_runtime_close */
const char *pl_job_arg(const pl_job *j, size_t *len);
pl_exchange *pl_job_exchange(const pl_job *j);
void pl_job_done(pl_job *j, const char *result, size_t len); /* pool thread; PL_EV_JOB follows */
const char *pl_job_result(const pl_job *j, size_t *len);     /* lua thread; the event's object */
void pl_job_close(pl_job *j);

/* ---- bus: the other processes of a deployment (lua thread) ----------------------- */

enum { PL_LOST_GONE = 1,                   /* nobody is subscribed there any more */
       PL_LOST_SILENT,                     /* nothing heard for lost_after */
       PL_LOST_LEFT,                       /* it announced that it is leaving */
       PL_LOST_RESET,                      /* it restarted, or counts us as lost */
       PL_LOST_BUS,                        /* the bus was away for longer than patience_ms */
       PL_LOST_REFUSED,                    /* its engine refused the sequence: a status, pl_stream_why */
       PL_LOST_RECALLED };
typedef struct pl_hub pl_hub;              /* a bus inside one process: for tests */
pl_hub *pl_hub_open(void);
void pl_hub_close(pl_hub *h);              /* after the runtimes on it */
/* Per 1000 messages: how many are dropped, duplicated, or delivered after the next one. */
void pl_hub_faults(pl_hub *h, uint64_t seed, int drop, int twice, int late);
/* Stops the process with that id (pl_bus_id): its messages wait, and it sends none. */
void pl_hub_stop(pl_hub *h, const char *id, int stopped);
void pl_hub_away(pl_hub *h, int away);     /* the bus goes away, or comes back, for everyone on it */
typedef struct pl_bus_options {
    pl_hub *hub;                           /* or, if NULL, a NATS server: */
    const char *url;                       /* one or more, separated by commas */
    const char *user, *password, *token, *nkey_seed, *credentials;   /* NULL: none; the last two are files */
    const char *tls_ca, *tls_cert, *tls_key;                         /* PEM files; NULL: none */
    const char *name_space;                /* [A-Za-z0-9_-]+: processes that share it see each other */
    int32_t lost_after_ms;                 /* a peer silent for this long counts as lost */
    int32_t patience_ms;                   /* if the bus is away for longer, all peers count as lost */
} pl_bus_options;
void pl_bus_options_init(pl_bus_options *o);
/* Joins without waiting: PL_EV_BUS reports when the bus is connected, and every change.
 * Refuses options that can never connect (PL_EINVAL). pl_runtime_close leaves. */
pl_status pl_bus_open(pl_runtime *rt, const pl_bus_options *options);
const char *pl_bus_id(const pl_runtime *rt);   /* this process's id: 16 hex digits, new each time */
/* What others are told about this process, at once and with every heartbeat: JSON, and its
 * engines' counters. A process without a hello is invisible. */
void pl_bus_hello(pl_runtime *rt, const char *json, size_t len);
void pl_bus_leave(pl_runtime *rt);         /* withdraws the hello */
/* Lets other processes run sequences on this engine, as that index (0 to 63); NULL: accepts
 * no more, but those running continue. */
void pl_bus_serve(pl_runtime *rt, int index, pl_engine *e);
/* What a peer says about itself: {"id":"...","hello":{...},"engines":[{"running":0,...}]}. PL_ENOTFOUND. */
pl_status pl_peer_hello(pl_runtime *rt, int32_t peer, pl_buf *out);
typedef struct pl_call pl_call;            /* a request to another process, or its reply */
/* Calls a peer; a REPLY event follows within that time. Returns the call's id or a status.
 * PL_ELIMIT: the text (or the reply's) exceeds 32 MiB, or 1024 calls are under way. */
int32_t pl_call_send(pl_runtime *rt, int32_t peer, const char *text, size_t len, int timeout_ms);
const char *pl_call_text(const pl_call *c, size_t *len);   /* CALL: the request; REPLY: the answer */
void pl_call_answer(pl_call *c, const char *text, size_t len);
void pl_call_close(pl_call *c);            /* if unanswered, the caller gets PL_ECANCELED */

/* ---- client: a connection to some server, for chat and bench (any thread) -------- */

typedef struct pl_client pl_client;
/* A host and port, or "unix:PATH" and port 0. */
pl_client *pl_client_open(const char *host, int port, int timeout_ms);
pl_client *pl_client_another(const pl_client *c);   /* to the same place, without waiting for the connection */
void pl_client_close(pl_client *c);
/* Sends all of it within the timeout; with 0, what it can now and the rest in pl_client_poll. */
pl_status pl_client_send(pl_client *c, const char *data, size_t len, int timeout_ms);
/* Returns how many bytes; 0: the server closed. PL_EAGAIN, PL_ETIMEOUT: none yet;
 * PL_ECANCELED: interrupted by a signal. */
int pl_client_recv(pl_client *c, char *out, int max, int timeout_ms);
/* Waits until data arrives on any of n; ready[i] says on which. Returns how many (0:
 * timeout), or PL_ECANCELED. */
int pl_client_poll(pl_client *const *clients, int n, uint8_t *ready, int timeout_ms);

/* ---- local: sockets that only their owner can open (any thread) ------------------ */

/* The folder for this user's sockets: $XDG_RUNTIME_DIR/perilune, or /tmp/perilune-UID if
 * that is unset. Created if missing; PL_EIO if others could enter it. */
pl_status pl_local_folder(pl_buf *out);
/* The paths of the sockets in it, one per line; some may be stale. */
pl_status pl_local_list(pl_buf *out);

/* ---- terminal (lua thread) ------------------------------------------------------- */

int pl_terminal_is(int fd);                /* is it one? */
int pl_terminal_width(int fd);             /* columns; 0: not known */
int pl_terminal_columns(const char *text, size_t len);   /* the width of UTF-8 text */
void pl_terminal_catch(int on);            /* Ctrl-C is counted instead of ending the process */
int pl_terminal_interrupts(void);          /* number since the last call */
int pl_terminal_key(int timeout_ms);       /* a byte typed, without Enter; -1: none */
void pl_terminal_keys(int on);             /* bytes arrive one by one, without echo */

/* Line editing with history; standard input must be a terminal. Pasted text stays one line,
 * newlines included, until Enter is pressed. */
typedef struct pl_line pl_line;
enum { PL_LINE_WHOLE = 1,                  /* Enter: the line is complete */
       PL_LINE_TAB,                        /* Tab: the line up to the cursor; the next read continues it */
       PL_LINE_CLEARED,                    /* Ctrl-C: the line was cleared */
       PL_LINE_END };                      /* Ctrl-D on an empty line, or the terminal is gone */
pl_line *pl_line_open(const char *history_file);   /* NULL: history is not saved */
int pl_line_read(pl_line *l, const char *prompt, const char **text, size_t *len);
void pl_line_type(pl_line *l, const char *text);   /* after TAB: as if typed */
void pl_line_redraw(pl_line *l);           /* after TAB: something was printed; the next read redraws the line */
void pl_line_remember(pl_line *l, const char *text);
void pl_line_close(pl_line *l);

/* [/cdef] */
/* clang-format on */
#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
