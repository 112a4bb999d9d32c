/* SPDX-License-Identifier: Apache-2.0
 *
 * remote_xfer.c - what xfer says to other processes, and hears of them, as messages.
 *
 * Ignores  what becomes of a ticket (xfer.h).
 * Thread   io
 */
#include "remote_own.h"

#include <string.h>
#include <xxhash.h>

enum {
    MAX_UNACKED = 32 << 20 /* bytes on a link, above which no piece is added */
};

/* ---- what is said ------------------------------------------------------------------ */

static pl_side *reach(void *ctx, uint64_t process)
{
    pl_remote *r = ctx;
    pl_link *l = r->stopped ? NULL : pl_links_of(r->links, process);
    return l ? pl_side_take(r, l, true) : NULL;
}

static void hold(pl_side *s)
{
    s->n++;
}

static bool has_room(const pl_side *s)
{
    return s->link && pl_link_unacked(s->link) < MAX_UNACKED;
}

static pl_buf *begin(pl_side *s, uint64_t ticket)
{
    pl_buf *b = pl_remote_begin(s->r, (int32_t)(uint32_t)ticket);
    pl_remote_i32(b, (int32_t)(uint32_t)(ticket >> 32));
    return b;
}

static void want(pl_side *s, uint64_t ticket, const pl_kv_want *w)
{
    pl_buf *b = begin(s, ticket);
    pl_remote_i32(b, w->first);
    pl_remote_i32(b, w->end);
    pl_remote_i32(b, w->limit);
    pl_remote_i32(b, w->block_size);
    pl_remote_u64(b, w->block_bytes);
    pl_buf_add(b, w->layout, w->layout_len);
    pl_remote_send(s, PL_MSG_KV_WANT);
}

static void say_i32(pl_side *s, uint64_t ticket, int kind, int32_t v)
{
    pl_remote_i32(begin(s, ticket), v);
    pl_remote_send(s, kind);
}

static void more(pl_side *s, uint64_t ticket, int32_t limit)
{
    say_i32(s, ticket, PL_MSG_KV_MORE, limit);
}

static void lent(pl_side *s, uint64_t ticket, int32_t n_tokens)
{
    say_i32(s, ticket, PL_MSG_KV_LENT, n_tokens);
}

static void over(pl_side *s, uint64_t ticket, pl_kv_end why)
{
    say_i32(s, ticket, PL_MSG_KV_OVER, (int32_t)why);
}

static void give_back(pl_side *s, uint64_t ticket)
{
    begin(s, ticket);
    pl_remote_send(s, PL_MSG_KV_GIVE_BACK);
}

static void put_hash(char *at, uint64_t hash)
{
    for (int i = 0; i < 8; i++) at[i] = (char)(hash >> (8 * i));
}

static void piece(pl_side *s, uint64_t ticket, int32_t first, const void *const *blocks,
                  int32_t n, size_t bytes)
{
    pl_buf *b = begin(s, ticket);
    pl_remote_i32(b, first);
    pl_remote_i32(b, n);
    pl_remote_u64(b, 0);
    size_t at = b->len, len = (size_t)n * bytes;
    pl_buf_reserve(b, len);
    for (int32_t i = 0; i < n; i++) pl_buf_add(b, blocks[i], bytes);
    put_hash(b->data + at - 8, XXH3_64bits(b->data + at, len));
    pl_remote_send(s, PL_MSG_KV_PIECE);
}

/* ---- what is heard ----------------------------------------------------------------- */

static pl_status take_want(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    pl_kv_want w;
    uint64_t ticket = 0;
    PL_TRY(pl_reader_u64(&in, &ticket));
    PL_TRY(pl_reader_i32(&in, &w.first));
    PL_TRY(pl_reader_i32(&in, &w.end));
    PL_TRY(pl_reader_i32(&in, &w.limit));
    PL_TRY(pl_reader_i32(&in, &w.block_size));
    PL_TRY(pl_reader_u64(&in, &w.block_bytes));
    w.layout = in.at;
    w.layout_len = (size_t)(in.end - in.at);
    pl_xfer_wanted(r->xfer, s, ticket, &w);
    return PL_OK;
}

static pl_status take_i32(pl_reader in, uint64_t *ticket, int32_t *v)
{
    PL_TRY(pl_reader_u64(&in, ticket));
    return pl_reader_i32(&in, v);
}

static pl_status take_more(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    uint64_t ticket = 0;
    int32_t limit = 0;
    PL_TRY(take_i32(in, &ticket, &limit));
    pl_xfer_more(r->xfer, s, ticket, limit);
    return PL_OK;
}

static pl_status take_lent(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    uint64_t ticket = 0;
    int32_t n_tokens = 0;
    PL_TRY(take_i32(in, &ticket, &n_tokens));
    pl_xfer_lent(r->xfer, s, ticket, n_tokens);
    return PL_OK;
}

static pl_status take_over(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    uint64_t ticket = 0;
    int32_t why = 0;
    PL_TRY(take_i32(in, &ticket, &why));
    bool known = why >= 0 && why < PL_KV_ENDS;
    pl_xfer_over(r->xfer, s, ticket, known ? (pl_kv_end)why : PL_KV_ENDED);
    return PL_OK;
}

static pl_status take_give_back(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    uint64_t ticket = 0;
    PL_TRY(pl_reader_u64(&in, &ticket));
    pl_xfer_given_back(r->xfer, s, ticket);
    return PL_OK;
}

static pl_status take_withdraw(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    uint64_t ticket = 0;
    PL_TRY(pl_reader_u64(&in, &ticket));
    pl_xfer_withdraw(r->xfer, s, ticket);
    return PL_OK;
}

static pl_status take_piece(void *ctx, pl_side *s, pl_reader in)
{
    pl_remote *r = ctx;
    pl_kv_piece p;
    uint64_t ticket = 0;
    PL_TRY(pl_reader_u64(&in, &ticket));
    PL_TRY(pl_reader_i32(&in, &p.first));
    PL_TRY(pl_reader_i32(&in, &p.n));
    PL_TRY(pl_reader_u64(&in, &p.hash));
    p.bytes = in.at;
    p.len = (size_t)(in.end - in.at);
    return pl_xfer_piece(r->xfer, s, ticket, &p);
}

/* ---- with remote ------------------------------------------------------------------- */

static void on_lost(void *ctx, pl_side *s, int why)
{
    pl_remote *r = ctx;
    (void)why;
    pl_xfer_lost(r->xfer, s);
}

void pl_crossings_open(pl_remote *r)
{
    static const pl_message_kind kinds[] = {
        {PL_MSG_KV_WANT, "wish for KV", true, take_want},
        {PL_MSG_KV_MORE, "wish for more KV", false, take_more},
        {PL_MSG_KV_GIVE_BACK, "return of KV", false, take_give_back},
        {PL_MSG_KV_LENT, "loan of KV", false, take_lent},
        {PL_MSG_KV_PIECE, "piece of KV", false, take_piece},
        {PL_MSG_KV_OVER, "end of a loan", false, take_over},
        {PL_MSG_KV_WITHDRAW, "withdrawal of a ticket", false, take_withdraw},
    };
    pl_remote_register(r, &(pl_service){r, on_lost, NULL, kinds, PL_COUNT(kinds)});
    pl_xfer_carrier(r->xfer, &(pl_carrier){r, r->key, reach, hold, pl_side_put, has_room,
                                           want, more, lent, piece, over, give_back});
}
