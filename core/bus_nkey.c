/* SPDX-License-Identifier: Apache-2.0
 *
 * bus_nkey.c - the public key that belongs to a seed, as NATS writes both.
 *
 * Owns     nothing: nats.c signs with the seed itself, but wants to be told the key.
 * Ignores  connections.
 * Thread   any
 *
 * base32( prefix of kind, 32 bytes, CRC-16 of all before, low byte first )
 * A seed's prefix is two bytes: 5 bits that say "seed", then the kind of its key.
 */
#include "bus_own.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

enum {
    SEED_LEN = 58, /* characters */
    SEED_BYTES = 36,
    KEY_BYTES = 35,
    KIND_SEED = 18 << 3,
    KIND_USER = 20 << 3
};

static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

static unsigned crc16(const unsigned char *data, int n)
{
    unsigned crc = 0;
    for (int i = 0; i < n; i++) {
        crc ^= (unsigned)data[i] << 8;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1) & 0xffff;
    }
    return crc;
}

static void encode(const unsigned char *in, int n, char *out)
{
    unsigned have = 0, bits = 0;
    for (int i = 0; i < n; i++) {
        bits = bits << 8 | in[i];
        for (have += 8; have >= 5; have -= 5) *out++ = letters[bits >> (have - 5) & 31];
    }
    if (have) *out++ = letters[bits << (5 - have) & 31];
    *out = 0;
}

static bool decode(const char *in, unsigned char out[SEED_BYTES])
{
    unsigned have = 0, bits = 0;
    int n = 0;
    for (int i = 0; i < SEED_LEN; i++) {
        const char *at = in[i] ? strchr(letters, in[i]) : NULL;
        if (!at) return false;
        bits = bits << 5 | (unsigned)(at - letters);
        have += 5;
        if (have < 8 || n == SEED_BYTES) continue;
        have -= 8;
        out[n++] = (unsigned char)(bits >> have);
    }
    const unsigned crc = crc16(out, SEED_BYTES - 2);
    return n == SEED_BYTES && out[34] == (crc & 255) && out[35] == crc >> 8;
}

static bool find_seed(const char *path, unsigned char out[SEED_BYTES])
{
    char line[256];
    bool found = false;
    FILE *f = fopen(path, "r");
    while (f && !found && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\r\n ")] = 0;
        found = strlen(line) == SEED_LEN && decode(line, out);
    }
    if (f) fclose(f);
    OPENSSL_cleanse(line, sizeof line);
    return found;
}

static bool derive(const unsigned char *seed, unsigned char *key)
{
    size_t n = 32;
    EVP_PKEY *pair = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, seed, 32);
    bool ok = pair && EVP_PKEY_get_raw_public_key(pair, key, &n) == 1 && n == 32;
    EVP_PKEY_free(pair);
    return ok;
}

pl_status pl_nkey_public(const char *path, char out[PL_NKEY_LEN + 1])
{
    unsigned char seed[SEED_BYTES] = {0}, key[KEY_BYTES] = {KIND_USER};
    bool ok = find_seed(path, seed);
    ok = ok && (seed[0] & 0xf8) == KIND_SEED &&
         ((seed[0] & 7) << 5 | seed[1] >> 3) == KIND_USER;
    ok = ok && derive(seed + 2, key + 1);
    OPENSSL_cleanse(seed, sizeof seed);
    if (!ok) return pl_fail(PL_EINVAL, "'%.200s' holds no nkey seed of a user", path);
    const unsigned crc = crc16(key, KEY_BYTES - 2);
    key[KEY_BYTES - 2] = (unsigned char)(crc & 255);
    key[KEY_BYTES - 1] = (unsigned char)(crc >> 8);
    encode(key, KEY_BYTES, out);
    return PL_OK;
}
