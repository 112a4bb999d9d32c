/* SPDX-License-Identifier: Apache-2.0
 *
 * wire_own.h - numbers as bytes: little-endian.
 *
 * Thread   any
 */
#ifndef PL_WIRE_OWN_H
#define PL_WIRE_OWN_H

#include "wire.h"

static inline void put_u32(pl_buf *b, uint32_t v)
{
    uint8_t bytes[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16),
                        (uint8_t)(v >> 24)};
    pl_buf_add(b, bytes, sizeof bytes);
}

static inline void put_u64(pl_buf *b, uint64_t v)
{
    put_u32(b, (uint32_t)v);
    put_u32(b, (uint32_t)(v >> 32));
}

typedef struct part { /* of a message */
    const char *at;
    size_t len;
} part;

/* The next four bytes, which must be there. */
static inline uint32_t get_u32(part *p)
{
    const uint8_t *b = (const uint8_t *)p->at;
    p->at += 4;
    p->len -= 4;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 |
           (uint32_t)b[3] << 24;
}

static inline uint64_t get_u64(part *p)
{
    uint64_t low = get_u32(p);
    return low | (uint64_t)get_u32(p) << 32;
}

#endif
