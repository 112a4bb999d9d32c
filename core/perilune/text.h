/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune/text.h - tokens to bytes and back.
 */
#ifndef PERILUNE_H
#error "include perilune.h"
#endif

/* clang-format off */
/* [cdef] */

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

/* [/cdef] */
/* clang-format on */
