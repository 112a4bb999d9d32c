/* SPDX-License-Identifier: Apache-2.0
 *
 * kv_hash.c - names of blocks: a hash of (parent's digest, tokens, extra keys).
 *
 * Owns     the two ways of writing that triple down: canonical CBOR, and what CPython's
 *          pickle writes with protocol 5.
 * Ignores  blocks and who uses them.
 * Thread   any.
 */
#include "kv.h"

#define OPENSSL_SUPPRESS_DEPRECATED /* EVP costs as much again as a block's hash */
#include <endian.h>
#include <openssl/sha.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

enum {
    CBOR_UINT = 0x00,
    CBOR_BYTES = 0x40,
    CBOR_TEXT = 0x60,
    CBOR_ARRAY = 0x80
};

static void add_byte(pl_buf *b, int v)
{
    uint8_t byte = (uint8_t)v;
    pl_buf_add(b, &byte, 1);
}

static void add_le(pl_buf *b, uint64_t v, int n)
{
    uint8_t bytes[8];
    for (int i = 0; i < n; i++) bytes[i] = (uint8_t)(v >> 8 * i);
    pl_buf_add(b, bytes, (size_t)n);
}

/* ---- canonical CBOR: the shortest head for each number -------------------------- */

enum {
    CBOR_HEAD_MAX = 9
};

/* Each writes at `out`, where there is room, and returns where it ends. */
static uint8_t *cbor_head(uint8_t *out, int major, uint64_t v)
{
    if (v < 24) {
        *out = (uint8_t)(major | (int)v);
        return out + 1;
    }
    int log = v < 1 << 8 ? 0 : v < 1 << 16 ? 1 : v < (uint64_t)1 << 32 ? 2 : 3;
    int n = 1 << log;
    *out++ = (uint8_t)(major | (24 + log));
    for (int i = 0; i < n; i++) out[i] = (uint8_t)(v >> 8 * (n - 1 - i));
    return out + n;
}

/* Nearly all tokens have 16 bits: those are written at once, with a byte too many. */
static uint8_t *cbor_token(uint8_t *out, uint32_t v)
{
    if (v - 256 >= 65536 - 256) return cbor_head(out, CBOR_UINT, v);
    uint32_t bytes = htole32(25 | (v & 0xff00) | (v & 0xff) << 16);
    memcpy(out, &bytes, sizeof bytes);
    return out + 3;
}

static uint8_t *cbor_text(uint8_t *out, const char *s, size_t len)
{
    out = cbor_head(out, CBOR_TEXT, len);
    memcpy(out, s, len);
    return out + len;
}

static size_t cbor_room(int32_t n_tokens, size_t salt_len)
{
    return ((size_t)n_tokens + 5) * CBOR_HEAD_MAX + sizeof(pl_name) + salt_len;
}

static uint8_t *cbor_block(uint8_t *out, int digest_len, const int32_t *tokens, int32_t n,
                           const char *salt, size_t salt_len)
{
    out = cbor_head(out, CBOR_ARRAY, 3);
    out = cbor_head(out, CBOR_BYTES, (uint64_t)digest_len);
    out = cbor_head(out + digest_len, CBOR_ARRAY, (uint64_t)n);
    for (int32_t i = 0; i < n; i++) out = cbor_token(out, (uint32_t)tokens[i]);
    if (!salt) {
        *out = 0xf6;
        return out + 1;
    }
    return cbor_text(cbor_head(out, CBOR_ARRAY, 1), salt, salt_len);
}

/* ---- pickle, protocol 5 --------------------------------------------------------- */

/* CPython cuts what takes more than 64 KiB into several frames: nothing here does. */
enum {
    MAX_TOKENS = 8192,
    MAX_TEXT = 4096
};

enum {
    PICKLE_PARENT_AT = 13, /* where a block has its parent's name */
    MEMOIZE = 0x94,
    TUPLE1 = 0x85,
    TUPLE3 = 0x87
};

/* The frame's length is known only at its end; `at` is where it began. */
static size_t pickle_begin(pl_buf *b)
{
    pl_buf_add(b, "\x80\x05\x95", 3);
    add_le(b, 0, 8);
    return b->len;
}

static void pickle_end(pl_buf *b, size_t at)
{
    add_byte(b, '.');
    uint64_t len = b->len - at;
    for (int i = 0; i < 8; i++)
        b->data[at - 8 + (size_t)i] = (char)(uint8_t)(len >> 8 * i);
}

static void pickle_int(pl_buf *b, int32_t v)
{
    int n = v < 256 ? 1 : v < 65536 ? 2 : 4;
    add_byte(b, n == 1 ? 'K' : n == 2 ? 'M' : 'J');
    add_le(b, (uint64_t)v, n);
}

static void pickle_text(pl_buf *b, const char *s, size_t len)
{
    if (len < 256) {
        add_byte(b, 0x8c);
        add_byte(b, (int)len);
    } else {
        add_byte(b, 'X');
        add_le(b, len, 4);
    }
    pl_buf_add(b, s, len);
    add_byte(b, MEMOIZE);
}

static void pickle_block(pl_buf *b, const int32_t *tokens, int32_t n, const char *salt,
                         size_t salt_len)
{
    static const pl_name parent;
    size_t at = pickle_begin(b);
    pl_buf_add(b, "C\x20", 2);
    pl_buf_add(b, parent.bytes, sizeof parent.bytes);
    add_byte(b, MEMOIZE);
    if (n > 3) add_byte(b, '(');
    for (int32_t i = 0; i < n; i++) pickle_int(b, tokens[i]);
    add_byte(b, n > 3 ? 't' : TUPLE1 + n - 1);
    add_byte(b, MEMOIZE);
    if (salt) {
        pickle_text(b, salt, salt_len);
        add_byte(b, TUPLE1);
        add_byte(b, MEMOIZE);
    } else {
        add_byte(b, 'N');
    }
    add_byte(b, TUPLE3);
    add_byte(b, MEMOIZE);
    pickle_end(b, at);
}

/* ---- digests -------------------------------------------------------------------- */

static pl_name digest(int algo, const pl_buf *b)
{
    pl_name name = {{0}};
    if (algo == PL_HASH_XXHASH_CBOR) {
        XXH128_canonical_t big_endian;
        XXH128_canonicalFromHash(&big_endian, XXH3_128bits(b->data, b->len));
        memcpy(name.bytes, big_endian.digest, sizeof big_endian.digest);
        return name;
    }
    SHA256_CTX sha;
    SHA256_Init(&sha);
    SHA256_Update(&sha, b->data, b->len);
    SHA256_Final(name.bytes, &sha);
    return name;
}

pl_status pl_namer_init(pl_namer *namer, int algo, const char *seed)
{
    if (algo < PL_HASH_SHA256_CBOR || algo > PL_HASH_XXHASH_CBOR)
        return pl_fail(PL_EINVAL, "hash algorithm %d: not one of PL_HASH_*", algo);
    if (!seed) seed = "vllm-none-hash";
    size_t len = strlen(seed);
    if (len > MAX_TEXT || !pl_utf8_valid(seed, len))
        return pl_fail(PL_EINVAL, "hash seed: at most %d bytes of UTF-8", MAX_TEXT);
    pl_buf b = {0};
    if (algo == PL_HASH_SHA256) {
        size_t at = pickle_begin(&b);
        pickle_text(&b, seed, len);
        pickle_end(&b, at);
    } else {
        pl_buf_reserve(&b, cbor_room(0, len));
        b.len = (size_t)(cbor_text((uint8_t *)b.data, seed, len) - (uint8_t *)b.data);
    }
    namer->algo = algo;
    namer->digest_len = algo == PL_HASH_XXHASH_CBOR ? 16 : 32;
    namer->none = digest(algo, &b);
    pl_buf_fini(&b);
    return PL_OK;
}

/* Writes all of a block but its parent's name, where there is room for it. */
static void write_block(const pl_namer *namer, pl_buf *b, const int32_t *tokens,
                        int32_t n, const char *salt, size_t salt_len)
{
    b->len = 0;
    if (namer->algo == PL_HASH_SHA256) {
        pickle_block(b, tokens, n, salt, salt_len);
        return;
    }
    uint8_t *start = (uint8_t *)b->data;
    b->len =
        (size_t)(cbor_block(start, namer->digest_len, tokens, n, salt, salt_len) - start);
}

static void write_parent(const pl_namer *namer, pl_buf *b, const pl_name *parent)
{
    if (namer->algo == PL_HASH_XXHASH_CBOR)
        memcpy(b->data + 2, parent->bytes, 16);
    else
        memcpy(b->data + (namer->algo == PL_HASH_SHA256 ? PICKLE_PARENT_AT : 3),
               parent->bytes, sizeof parent->bytes);
}

/* A block is written before the one that precedes it is hashed: the CPU reads slowly what it
 * has only just written in other pieces. */
void pl_namer_chain(const pl_namer *namer, const pl_name *parent, const int32_t *tokens,
                    int32_t block_size, int32_t n_blocks, const char *salt,
                    size_t salt_len, pl_name *out)
{
    if (n_blocks < 1) return;
    if (parent)
        salt = NULL;
    else
        parent = &namer->none;
    pl_buf blocks[2] = {{0}};
    for (int i = 0; i < 2; i++)
        pl_buf_reserve(&blocks[i], cbor_room(block_size, salt ? salt_len : 0));
    write_block(namer, &blocks[0], tokens, block_size, salt, salt_len);
    for (int32_t i = 0; i < n_blocks; i++) {
        tokens += block_size;
        if (i + 1 < n_blocks)
            write_block(namer, &blocks[~i & 1], tokens, block_size, NULL, 0);
        write_parent(namer, &blocks[i & 1], parent);
        out[i] = digest(namer->algo, &blocks[i & 1]);
        parent = &out[i];
    }
    pl_buf_fini(&blocks[0]);
    pl_buf_fini(&blocks[1]);
}

uint64_t pl_name_key(const pl_namer *namer, const pl_name *name)
{
    uint64_t key;
    memcpy(&key, name->bytes + namer->digest_len - sizeof key, sizeof key);
    return be64toh(key);
}

/* ---- for those outside ---------------------------------------------------------- */

pl_status pl_block_hash(int algo, const char *seed, const uint8_t *parent,
                        const int32_t *tokens, int n, const char *salt, size_t salt_len,
                        uint8_t *out)
{
    if (n < 1 || n > MAX_TOKENS)
        return pl_fail(PL_EINVAL, "a block of %d tokens, wanted 1 to %d", n, MAX_TOKENS);
    if (salt && salt_len > MAX_TEXT)
        return pl_fail(PL_EINVAL, "a salt of %zu bytes, at most %d", salt_len, MAX_TEXT);
    for (int i = 0; i < n; i++)
        if (tokens[i] < 0) return pl_fail(PL_EINVAL, "token %d: negative", tokens[i]);
    pl_namer namer;
    PL_TRY(pl_namer_init(&namer, algo, seed));
    pl_name from = namer.none, name;
    if (parent) memcpy(from.bytes, parent, sizeof from.bytes);
    pl_namer_chain(&namer, parent ? &from : NULL, tokens, n, 1, salt, salt_len, &name);
    memcpy(out, name.bytes, sizeof name.bytes);
    return PL_OK;
}

pl_status pl_none_hash(int algo, const char *seed, uint8_t *out)
{
    pl_namer namer;
    PL_TRY(pl_namer_init(&namer, algo, seed));
    memcpy(out, namer.none.bytes, sizeof namer.none.bytes);
    return PL_OK;
}
