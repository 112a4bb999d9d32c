/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune/model.h - the tensors of a model's files, and the transformer made of them on
 * a device.
 */
#ifndef PERILUNE_H
#error "include perilune.h"
#endif

/* clang-format off */
/* [cdef] */

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
enum { PL_GATE_SILU = 0, PL_GATE_GELU_TANH = 1, PL_N_GATES };
enum { PL_ACT_FLOAT32 = 0, PL_ACT_INT8X2 = 1, PL_ACT_INT8 = 2, PL_N_ACTIVATIONS };
enum { PL_KV_FLOAT32 = 0, PL_KV_INT16 = 1 };
typedef struct pl_model_options {
    int32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn, vocab;
    int32_t n_experts, n_experts_used, expert_ffn, norm_topk;         /* 0 unless MoE */
    int32_t qkv_bias, o_bias, qk_norm;     /* biases of q, k and v, or of o; norms of each head of q and k */
    int32_t norm_plus_one;                 /* norms' weights are kept less 1 */
    int32_t post_norms;                    /* what attention and feed-forward add to x is normed first */
    int32_t gate;                          /* PL_GATE_*: of the feed-forward */
    float embed_scale;                     /* of embeddings; 0: 1 */
    float attention_scale;                 /* of scores; 0: 1 / sqrt(head_dim) */
    float attention_cap, logit_cap;        /* a score or logit v becomes cap * tanh(v / cap); 0: stays */
    int32_t window;                        /* positions that a layer sees, unless it is PL_LAYER_FULL; 0: all */
    int32_t max_positions;
    int32_t rope_order, rope_scaling;
    int32_t rope_dims;                     /* values of a head that are turned, its first; 0: all */
    float norm_eps, rope_theta;
    float rope_theta_window;               /* of layers with a window, unscaled; 0: as the others */
    float rope_factor, rope_low, rope_high, rope_attention;           /* llama3: low/high factor; yarn: beta_slow/beta_fast; attention: of cos and sin, 0: 1, yarn's is derived */
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
       PL_ROLE_ATTN_POST_NORM, PL_ROLE_FFN_POST_NORM, PL_N_ROLES,
       PL_ROLE_QKV = PL_N_ROLES, PL_ROLE_GATE_UP };                    /* the rows of several, one after another */
typedef struct pl_device pl_device;
typedef struct pl_device_options {
    const char *name;                      /* "cpu"; "null" (computes nothing); or a plug-in's, libperilune_NAME.so beside the program */
    const char *kernels;                   /* NULL, "auto"; the CPU's: "scalar", "avx2", "avx512", "avx512bf16" */
    int32_t n_threads;                     /* 0: one per core */
    int32_t depth;                         /* steps in flight at once, 1 or 2; 0: as suits the device */
    int32_t eager;                         /* a GPU's kernels are launched one by one: no graphs, no kernel of a whole step */
} pl_device_options;
pl_device *pl_device_open(const pl_device_options *options);
void pl_device_close(pl_device *d);
const char *pl_device_kernels(const pl_device *d);          /* the variant chosen */
int pl_device_memory(pl_device *d, int64_t *left, int64_t *all); /* bytes of its own memory; PL_ENOTFOUND: it uses the host's */
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

/* [/cdef] */
/* clang-format on */
