/* SPDX-License-Identifier: Apache-2.0
 *
 * text.h - tokens <-> bytes: byte-level and SentencePiece-style BPE.
 *
 * Owns     vocabularies, merges, added tokens, pre-tokenizers; the decoder of a stream.
 * Ignores  files, templates, which ids a model puts before a prompt.
 * Thread   any. A pl_text is built by one thread, frozen by pl_text_ready, then shared;
 *          what encoding writes to belongs to its thread (text_scratch).
 *
 *      text --added tokens--> sections --normalize--> --split--> words --merge--> ids
 *
 * The functions that cross modules are declared in perilune.h; below is what the files of
 * this module share.
 */
#ifndef PL_TEXT_H
#define PL_TEXT_H

#include "base.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define PL_TEXT_MAX_SPLITS 8
/* U+2581, a space in SentencePiece's vocabularies; U+FFFD, for bytes that are no text. */
#define PL_TEXT_SPACE "\xe2\x96\x81"
#define PL_TEXT_BROKEN "\xef\xbf\xbd"

/* A token's flags: PL_TOKEN_*, whose kind is the lowest bits; whether BPE may produce it;
 * whether it is matched before BPE; whether what it decodes to is whole characters. */
enum {
    TEXT_KIND = 15,
    TEXT_VOCAB = 1 << 16,
    TEXT_ADDED = 1 << 17,
    TEXT_VALID = 1 << 18
};

typedef struct text_slice { /* bytes in the arena */
    uint32_t at, len;
} text_slice;

typedef struct text_token {
    text_slice vocab, added, shown; /* for BPE; for the trie; decoded */
    float score;
    uint32_t flags;
} text_token;

typedef struct text_words { /* vocabulary: bytes -> id; open addressing */
    struct text_word {
        uint32_t hash;
        int32_t id; /* -1: empty */
    } * slots;
    uint32_t mask, n;
} text_words;

typedef struct text_pair { /* two neighbours become one */
    uint64_t key;          /* left id << 32 | right id */
    uint32_t rank;         /* the lowest goes first */
    int32_t id;
} text_pair;
#define TEXT_NO_RANK UINT32_MAX

/* Open addressing. Most pairs are none: a byte of each slot's hash tells, 0 where the
 * slot is empty, and these bytes stay in the cache. */
typedef struct text_pairs {
    uint8_t *tags;
    text_pair *slots;
    uint32_t mask, n;
} text_pairs;

typedef struct text_trie { /* added tokens, by bytes */
    struct text_node {
        int32_t child, next; /* first child, next sibling; 0: none */
        int32_t id;          /* the token that ends here, or -1 */
        uint8_t byte;
    } * nodes;
    int32_t n, cap;
    int32_t first[256]; /* the root's children */
    int32_t begin;      /* the byte with which all tokens begin; -1: there are several */
} text_trie;

struct pl_text {
    pl_text_options o;
    uint32_t serial; /* names it in the threads' caches */
    bool ready;
    bool cut; /* pieces: no merge crosses the start of a word */
    pl_buf arena;
    text_token *tokens;
    int32_t *added; /* ids of the added tokens */
    int32_t n_added;
    text_words words;
    text_pairs pairs;
    uint32_t n_merges;
    text_trie raw, normalized; /* added tokens: before and after normalizing */
    pcre2_code *splits[PL_TEXT_MAX_SPLITS];
    bool jit[PL_TEXT_MAX_SPLITS];
    int n_splits, shape[PL_TEXT_MAX_SPLITS]; /* shape: text_split.c's */
    int32_t byte_id[256]; /* of a byte alone, or <0xHH>; -1: not in the vocabulary */
};

/* One thread's memory for encoding. */
typedef struct text_scratch text_scratch;
text_scratch *text_scratch_get(void);
void text_scratch_trim(text_scratch *s); /* gives back what a long text took */
pcre2_match_data *text_scratch_match(text_scratch *s);
enum {
    TEXT_BUF_NFC,
    TEXT_BUF_NORMAL,
    TEXT_BUF_SPACED,
    TEXT_N_BUFS
};
pl_buf *text_scratch_buf(text_scratch *s, int which);

/* text_index.c: what is looked up. */
uint64_t text_hash(const char *s, size_t len);
int32_t text_words_find(const pl_text *t, const char *s, size_t len);
void text_words_add(pl_text *t, int32_t id); /* the first of equals stays */
void text_trie_add(text_trie *trie, const char *s, size_t len, int32_t id);
/* The leftmost, then longest, token in s from `from` on; its id, or -1. */
int32_t text_trie_next(const text_trie *trie, const char *s, size_t len, size_t from,
                       size_t *start, size_t *end);

/* text_split.c: what HF calls normalizer and pre-tokenizer. */
pl_status text_split_add(pl_text *t, const char *regex, size_t len);
pl_status text_split_words(const pl_text *t, text_scratch *s, const char *p, size_t len,
                           pl_buf *out);
/* The text as the next step sees it: left where it is, or changed in the scratch. */
pl_status text_normalize(const pl_text *t, text_scratch *s, const char **p, size_t *len);
void text_respace(const pl_text *t, text_scratch *s, bool first, const char **p,
                  size_t *len);

/* text_bpe.c: the pairs that merge, and a word's ids. */
void text_pairs_init(text_pairs *p, uint32_t n_slots); /* a power of two */
void text_pairs_fini(text_pairs *p);
void text_pairs_add(text_pairs *p, int32_t left, int32_t right, uint32_t rank,
                    int32_t id);
void text_bpe_word(const pl_text *t, text_scratch *s, const char *p, size_t len,
                   pl_buf *out);

/* text_decode.c: bytes from GPT-2's alphabet, or SIZE_MAX where one is not in it; the
 * byte that <0xHH> names, or -1; works out what a token is shown as. */
size_t text_unmap(const char *s, size_t len, char *out);
int text_byte_named(const char *s, size_t len);
void text_decode_ready(pl_text *t, int32_t id);

static inline const char *text_at(const pl_text *t, text_slice s)
{
    return t->arena.data + s.at;
}

#endif
