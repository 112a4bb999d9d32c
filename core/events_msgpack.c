/* SPDX-License-Identifier: Apache-2.0
 *
 * events_msgpack.c - vLLM's events as bytes: MessagePack, as far as they need it.
 *
 * Owns     the names and the order of their fields.
 * Ignores  sockets and numbers of batches.
 * Thread   any
 *
 * A batch is an array: a time, an array of events, a rank. An event is a map with a "type",
 * or, from older versions, an array that begins with it. Whoever reads skips what it does
 * not know.
 */
#include "events_own.h"

#include <string.h>

/* ---- writing ----------------------------------------------------------------------- */

static void put_bytes(pl_buf *b, int head, uint64_t v, int n)
{
    uint8_t bytes[9] = {(uint8_t)head};
    for (int i = 0; i < n; i++) bytes[1 + i] = (uint8_t)(v >> 8 * (n - 1 - i));
    pl_buf_add(b, bytes, (size_t)n + 1);
}

static void put_uint(pl_buf *b, uint64_t v)
{
    if (v < 128)
        put_bytes(b, (int)v, 0, 0);
    else if (v <= UINT8_MAX)
        put_bytes(b, 0xcc, v, 1);
    else if (v <= UINT16_MAX)
        put_bytes(b, 0xcd, v, 2);
    else if (v <= UINT32_MAX)
        put_bytes(b, 0xce, v, 4);
    else
        put_bytes(b, 0xcf, v, 8);
}

static void put_nil(pl_buf *b)
{
    put_bytes(b, 0xc0, 0, 0);
}

static void put_real(pl_buf *b, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_bytes(b, 0xcb, bits, 8);
}

static void put_array(pl_buf *b, size_t n)
{
    if (n < 16)
        put_bytes(b, 0x90 | (int)n, 0, 0);
    else if (n <= UINT16_MAX)
        put_bytes(b, 0xdc, n, 2);
    else
        put_bytes(b, 0xdd, n, 4);
}

static void put_map(pl_buf *b, int n) /* fewer than 16 */
{
    put_bytes(b, 0x80 | n, 0, 0);
}

static void put_text(pl_buf *b, const char *s, size_t len)
{
    if (len < 32)
        put_bytes(b, 0xa0 | (int)len, 0, 0);
    else if (len <= UINT8_MAX)
        put_bytes(b, 0xd9, len, 1);
    else
        put_bytes(b, 0xda, len, 2);
    pl_buf_add(b, s, len);
}

static void put_str(pl_buf *b, const char *s)
{
    put_text(b, s, strlen(s));
}

static void put_keys(pl_buf *b, const uint64_t *keys, int32_t n)
{
    put_str(b, "block_hashes");
    put_array(b, (size_t)n);
    for (int32_t i = 0; i < n; i++) put_uint(b, keys[i]);
}

static void put_field(pl_buf *b, const char *name, const char *value) /* NULL: nil */
{
    put_str(b, name);
    if (value)
        put_str(b, value);
    else
        put_nil(b);
}

/* n blocks from c->blocks[at] on, each the parent of the next. */
static void put_stored(pl_buf *b, const pl_changes *c, int32_t at, const uint64_t *keys,
                       int32_t n)
{
    const pl_change_block *first = &c->blocks[at];
    size_t n_tokens = (size_t)n * (size_t)c->block_size;
    const int32_t *tokens = c->tokens + (size_t)at * (size_t)c->block_size;
    put_map(b, 11);
    put_field(b, "type", "BlockStored");
    put_keys(b, keys, n);
    put_str(b, "parent_block_hash");
    if (first->is_first)
        put_nil(b);
    else
        put_uint(b, first->parent);
    put_str(b, "token_ids");
    put_array(b, n_tokens);
    for (size_t i = 0; i < n_tokens; i++) put_uint(b, (uint64_t)(uint32_t)tokens[i]);
    put_str(b, "block_size");
    put_uint(b, (uint64_t)(uint32_t)c->block_size);
    put_field(b, "lora_id", NULL);
    put_field(b, "medium", "GPU");
    put_field(b, "lora_name", NULL);
    put_str(b, "extra_keys");
    put_array(b, (size_t)n);
    for (int32_t i = 0; i < n; i++) {
        const pl_change_block *block = &c->blocks[at + i];
        if (block->salt_len < 0) {
            put_nil(b);
            continue;
        }
        put_array(b, 1);
        put_text(b, c->salts + block->salt_at, (size_t)block->salt_len);
    }
    put_str(b, "group_idx");
    put_uint(b, 0);
    put_field(b, "kv_cache_spec_kind", "full_attention");
}

static void put_removed(pl_buf *b, const uint64_t *keys, int32_t n)
{
    put_map(b, 4);
    put_field(b, "type", "BlockRemoved");
    put_keys(b, keys, n);
    put_field(b, "medium", "GPU");
    put_str(b, "group_idx");
    put_uint(b, 0);
}

/* How many of the blocks from `at` on hold a text that goes on. */
static int32_t count_linked(const pl_changes *c, int32_t at, const uint64_t *keys,
                            int32_t left)
{
    int32_t n = 1;
    while (n < left && !c->blocks[at + n].is_first &&
           c->blocks[at + n].parent == keys[n - 1])
        n++;
    return n;
}

/* Writes the events, or (NULL) only counts them. */
static size_t put_events(pl_buf *b, const pl_changes *c)
{
    const uint64_t *keys = c->keys;
    size_t n_events = 0;
    int32_t at = 0;
    for (int32_t i = 0; i < c->n_runs; i++) {
        int32_t left = c->runs[i].n;
        for (int32_t n; c->runs[i].kind == PL_CHANGE_STORED && left > 0; left -= n) {
            n = count_linked(c, at, keys, left);
            if (b) put_stored(b, c, at, keys, n);
            keys += n;
            at += n;
            n_events++;
        }
        if (c->runs[i].kind == PL_CHANGE_STORED) continue;
        n_events++;
        if (b && c->runs[i].kind == PL_CHANGE_REMOVED) put_removed(b, keys, left);
        if (b && c->runs[i].kind == PL_CHANGE_CLEARED) {
            put_map(b, 1);
            put_field(b, "type", "AllBlocksCleared");
        }
        keys += left;
    }
    return n_events;
}

void pl_events_encode(pl_buf *b, double time, const pl_changes *c, int rank)
{
    put_array(b, 3);
    put_real(b, time);
    put_array(b, put_events(NULL, c));
    put_events(b, c);
    put_uint(b, (uint64_t)(unsigned)rank);
}

/* ---- reading ----------------------------------------------------------------------- */

typedef struct reader {
    const uint8_t *at, *end;
} reader;

typedef struct item {
    enum {
        NIL,
        NUMBER, /* an integer, as its 64 bits */
        REAL,   /* or a bool: nobody asks for their values */
        TEXT,
        BYTES, /* or an extension */
        ARRAY,
        MAP /* of n pairs */
    } kind;
    uint64_t n;        /* the number; how many bytes, items or pairs */
    const uint8_t *at; /* of TEXT and BYTES */
} item;

static pl_status bad(const char *what)
{
    return pl_fail(PL_EFORMAT, "a batch of events %s", what);
}

static pl_status read_uint(reader *in, int bytes, uint64_t *out)
{
    if (in->end - in->at < bytes) return bad("ends too early");
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v = v << 8 | *in->at++;
    *out = v;
    return PL_OK;
}

static pl_status read_signed(reader *in, int bytes, uint64_t *out)
{
    PL_TRY(read_uint(in, bytes, out));
    int shift = 64 - 8 * bytes;
    *out = (uint64_t)((int64_t)(*out << shift) >> shift);
    return PL_OK;
}

/* So many bytes, or (each item has one at least) items, are there. */
static pl_status check_room(reader *in, item *i)
{
    uint64_t room = (uint64_t)(in->end - in->at);
    if (i->kind < TEXT) return PL_OK;
    if (i->n > (i->kind == MAP ? room / 2 : room)) return bad("ends too early");
    if (i->kind > BYTES) return PL_OK;
    i->at = in->at;
    in->at += i->n;
    return PL_OK;
}

/* What begins with a byte from 0xc0 to 0xdf: the bytes of its number or length, those to be
 * skipped then, and a length that the first byte says. */
static const struct head {
    uint8_t kind, bytes, skipped, n;
    bool is_signed, is_bad;
} heads[32] = {
    {NIL, 0, 0, 0, 0, 0},    {NIL, 0, 0, 0, 0, 1},    {REAL, 0, 0, 0, 0, 0},
    {REAL, 0, 0, 0, 0, 0},   {BYTES, 1, 0, 0, 0, 0},  {BYTES, 2, 0, 0, 0, 0},
    {BYTES, 4, 0, 0, 0, 0},  {BYTES, 1, 1, 0, 0, 0},  {BYTES, 2, 1, 0, 0, 0},
    {BYTES, 4, 1, 0, 0, 0},  {REAL, 0, 4, 0, 0, 0},   {REAL, 0, 8, 0, 0, 0},
    {NUMBER, 1, 0, 0, 0, 0}, {NUMBER, 2, 0, 0, 0, 0}, {NUMBER, 4, 0, 0, 0, 0},
    {NUMBER, 8, 0, 0, 0, 0}, {NUMBER, 1, 0, 0, 1, 0}, {NUMBER, 2, 0, 0, 1, 0},
    {NUMBER, 4, 0, 0, 1, 0}, {NUMBER, 8, 0, 0, 1, 0}, {BYTES, 0, 1, 1, 0, 0},
    {BYTES, 0, 1, 2, 0, 0},  {BYTES, 0, 1, 4, 0, 0},  {BYTES, 0, 1, 8, 0, 0},
    {BYTES, 0, 1, 16, 0, 0}, {TEXT, 1, 0, 0, 0, 0},   {TEXT, 2, 0, 0, 0, 0},
    {TEXT, 4, 0, 0, 0, 0},   {ARRAY, 2, 0, 0, 0, 0},  {ARRAY, 4, 0, 0, 0, 0},
    {MAP, 2, 0, 0, 0, 0},    {MAP, 4, 0, 0, 0, 0},
};

static pl_status read_headed(reader *in, const struct head *h, item *out)
{
    uint64_t skipped;
    if (h->is_bad) return bad("is not MessagePack");
    out->kind = h->kind;
    out->n = h->n;
    if (h->bytes) PL_TRY((h->is_signed ? read_signed : read_uint)(in, h->bytes, &out->n));
    return read_uint(in, h->skipped, &skipped);
}

static pl_status read_item(reader *in, item *out)
{
    uint64_t head = 0;
    *out = (item){.kind = NUMBER};
    PL_TRY(read_uint(in, 1, &head));
    if (head < 0x80) {
        out->n = head;
    } else if (head >= 0xe0) {
        out->n = (uint64_t)(int64_t)(int8_t)head;
    } else if (head < 0xc0) {
        out->kind = head < 0x90 ? MAP : head < 0xa0 ? ARRAY : TEXT;
        out->n = head & (out->kind == TEXT ? 31 : 15);
    } else {
        PL_TRY(read_headed(in, &heads[head - 0xc0], out));
    }
    return check_room(in, out);
}

static pl_status skip(reader *in)
{
    for (uint64_t left = 1; left; left--) {
        item i;
        PL_TRY(read_item(in, &i));
        if (i.kind == ARRAY) left += i.n;
        if (i.kind == MAP) left += 2 * i.n;
    }
    return PL_OK;
}

static bool is_text(const item *i, const char *s)
{
    return i->kind == TEXT && i->n == strlen(s) && memcmp(i->at, s, i->n) == 0;
}

static bool is_one_of(const item *i, const char *const *words)
{
    for (; *words; words++)
        if (is_text(i, *words)) return true;
    return false;
}

/* ---- events ------------------------------------------------------------------------ */

typedef struct event { /* what matters of one; NIL: absent */
    item type, medium, group, spec;
    reader hashes;
    bool has_hashes;
} event;

/* Field i of an event that is an array. */
static const char *name_in_array(const event *e, uint64_t i)
{
    static const char *const stored[] = {
        "type",      "block_hashes",      "parent_block_hash",
        "token_ids", "block_size",        "lora_id",
        "medium",    "lora_name",         "extra_keys",
        "group_idx", "kv_cache_spec_kind"};
    static const char *const removed[] = {"type", "block_hashes", "medium", "group_idx"};
    if (i && is_text(&e->type, "BlockRemoved"))
        return i < PL_COUNT(removed) ? removed[i] : "";
    return i < PL_COUNT(stored) ? stored[i] : "";
}

static pl_status read_field(reader *in, const char *name, size_t len, event *e)
{
    static const struct {
        const char *name;
        size_t offset;
    } fields[] = {{"type", offsetof(event, type)},
                  {"medium", offsetof(event, medium)},
                  {"group_idx", offsetof(event, group)},
                  {"kv_cache_spec_kind", offsetof(event, spec)}};
    reader value = *in;
    PL_TRY(skip(in));
    for (int i = 0; i < PL_COUNT(fields); i++)
        if (len == strlen(fields[i].name) && !memcmp(name, fields[i].name, len))
            return read_item(&value, (item *)((char *)e + fields[i].offset));
    if (len == 12 && !memcmp(name, "block_hashes", 12)) {
        e->hashes = value;
        e->has_hashes = true;
    }
    return PL_OK;
}

static pl_status read_fields(reader *in, const item *head, event *e)
{
    for (uint64_t i = 0; i < head->n; i++) {
        if (head->kind == ARRAY) {
            const char *name = name_in_array(e, i);
            PL_TRY(read_field(in, name, strlen(name), e));
            continue;
        }
        item key;
        PL_TRY(read_item(in, &key));
        if (key.kind != TEXT) return bad("has an event whose key is no text");
        PL_TRY(read_field(in, (const char *)key.at, key.n, e));
    }
    return PL_OK;
}

/* Whether it is about the cache that prompts are found in, on the device. */
static bool is_of_main_cache(const event *e)
{
    static const char *const specs[] = {"full_attention", "mla_attention",
                                        "sink_full_attention", NULL};
    static const char *const media[] = {"GPU", "DEVICE", NULL};
    if (e->medium.kind != NIL && !is_one_of(&e->medium, media)) return false;
    if (e->spec.kind != NIL) return is_one_of(&e->spec, specs);
    return e->group.kind != NUMBER || e->group.n == 0;
}

/* A number, or a digest, of which the last 8 bytes are the number. */
static pl_status read_hash(reader *in, uint64_t *out)
{
    item i;
    PL_TRY(read_item(in, &i));
    if (i.kind == BYTES && i.n >= 8) {
        reader low = {i.at + i.n - 8, i.at + i.n};
        return read_uint(&low, 8, out);
    }
    *out = i.n;
    return i.kind == NUMBER ? PL_OK : bad("has a hash that is no number");
}

static pl_status take_hashes(const event *e, pl_change kind, pl_change_log *log)
{
    reader in = e->hashes;
    item list;
    if (!e->has_hashes) return bad("has an event without block_hashes");
    PL_TRY(read_item(&in, &list));
    if (list.kind != ARRAY) return bad("has block_hashes that are no array");
    for (uint64_t i = 0; i < list.n; i++) {
        uint64_t key = 0;
        PL_TRY(read_hash(&in, &key));
        pl_change_log_add(log, kind, key);
    }
    return PL_OK;
}

static pl_status read_event(reader *in, pl_change_log *log)
{
    item head;
    event e = {0};
    PL_TRY(read_item(in, &head));
    if (head.kind != MAP && head.kind != ARRAY)
        return bad("has an event that is neither a map nor an array");
    PL_TRY(read_fields(in, &head, &e));
    if (is_text(&e.type, "AllBlocksCleared"))
        pl_change_log_add(log, PL_CHANGE_CLEARED, 0);
    else if (!is_of_main_cache(&e))
        return PL_OK;
    else if (is_text(&e.type, "BlockStored"))
        return take_hashes(&e, PL_CHANGE_STORED, log);
    else if (is_text(&e.type, "BlockRemoved"))
        return take_hashes(&e, PL_CHANGE_REMOVED, log);
    return PL_OK; /* newer than we are */
}

pl_status pl_events_decode(const void *data, size_t len, pl_change_log *log)
{
    reader in = {data, (const uint8_t *)data + len};
    item batch, events;
    PL_TRY(read_item(&in, &batch));
    if (batch.kind != ARRAY || batch.n < 2) return bad("is no array of time and events");
    PL_TRY(skip(&in)); /* its time */
    PL_TRY(read_item(&in, &events));
    if (events.kind != ARRAY) return bad("is no array of time and events");
    for (uint64_t i = 0; i < events.n; i++) PL_TRY(read_event(&in, log));
    for (uint64_t i = 2; i < batch.n; i++) PL_TRY(skip(&in));
    return in.at == in.end ? PL_OK : bad("is followed by something");
}
