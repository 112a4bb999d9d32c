/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_lend.c - blocks on loan: the KV of a prompt that was read here, for an engine
 * that goes on with it.
 *
 * Owns     who has lent which blocks. A loan is a user of its blocks, as a sequence is:
 *          they hold what they hold, whatever becomes of the sequence, until the loan is
 *          returned.
 * Ignores  who fetches them, and how.
 * Thread   step; return: any.
 *
 * A loan grows as steps land. While its sequence goes on only full blocks are lent, for
 * the next step writes to the last one; then all there are.
 */
#include "engine_state.h"

#include <string.h>

struct loan {
    int32_t seq;
    uint64_t ticket;
    run *run;         /* NULL: it has ended */
    int32_t n_tokens; /* lent */
    int32_t n_told;   /* of these, in batches; whole blocks until it is over */
    int32_t *blocks, n_blocks, cap;
    bool is_due; /* in this step's batch */
};

static void say(pl_engine *e, loan *l)
{
    if (l->is_due) return;
    if (e->lent.n == e->lent.cap) {
        e->lent.cap = PL_MAX(8, 2 * e->lent.cap);
        e->lent.items = pl_realloc(e->lent.items, (size_t)e->lent.cap * sizeof(loan *));
    }
    e->lent.items[e->lent.n++] = l;
    l->is_due = true;
}

static loan *loan_of(pl_engine *e, run *r)
{
    if (r->loan) return r->loan;
    loan *l = pl_alloc(sizeof *l);
    *l = (loan){.seq = r->id, .ticket = r->seq->ticket, .run = r};
    r->loan = l;
    pl_map_put(&e->loans, (uint64_t)l->seq, l);
    return l;
}

void pl_engine_lend(pl_engine *e, run *r, int32_t n_tokens)
{
    PL_ON(STEP);
    if (!r->seq->lends) return;
    bool all = n_tokens >= r->seq->n_given;
    n_tokens = all ? r->seq->n_given : n_tokens / e->block_size * e->block_size;
    loan *l = loan_of(e, r);
    if (n_tokens <= l->n_tokens) return;
    int32_t n = (n_tokens + e->block_size - 1) / e->block_size, more = n - l->n_blocks;
    if (n > l->cap) {
        l->cap = PL_MAX(n, 2 * l->cap);
        l->blocks = pl_realloc(l->blocks, (size_t)l->cap * sizeof *l->blocks);
    }
    memcpy(l->blocks + l->n_blocks, r->blocks + l->n_blocks,
           (size_t)more * sizeof *l->blocks);
    pl_kv_share(e->kv, l->blocks + l->n_blocks, more);
    l->n_blocks = n;
    l->n_tokens = n_tokens;
    say(e, l);
}

void pl_engine_end_loan(pl_engine *e, run *r)
{
    PL_ON(STEP);
    if (!r->seq->lends) return;
    loan *l = loan_of(e, r); /* even if nothing was lent: someone may be waiting */
    l->run = NULL;
    r->loan = NULL;
    say(e, l);
}

/* ---- its return -------------------------------------------------------------------- */

void pl_engine_return(pl_engine *e, int32_t seq)
{
    shared *s = e->shared;
    pl_lock(&s->lock);
    if (s->returned.n == s->returned.cap) {
        s->returned.cap = PL_MAX(16, 2 * s->returned.cap);
        s->returned.seqs =
            pl_realloc(s->returned.seqs, (size_t)s->returned.cap * sizeof seq);
    }
    s->returned.seqs[s->returned.n++] = seq;
    pl_unlock(&s->lock);
    pl_wake(&s->lock);
}

static void close_loan(loan *l)
{
    if (l->run) {
        l->run->seq->lends = false; /* what it computes from now on is its own */
        l->run->loan = NULL;
    }
    pl_free(l->blocks);
    pl_free(l);
}

void pl_engine_take_returned(pl_engine *e)
{
    PL_ON(STEP);
    for (int32_t i = 0; i < e->shared->returned.n; i++) {
        int32_t seq = e->shared->returned.seqs[i];
        loan *l = pl_map_remove(&e->loans, (uint64_t)seq);
        run *r = l ? NULL : pl_index_find(e->shared, seq);
        if (r) r->seq->lends = false; /* before it lent anything */
        if (!l) continue;
        pl_kv_put(e->kv, l->blocks, l->n_blocks);
        close_loan(l);
        e->moved = true; /* those who lacked blocks may go on */
    }
    e->shared->returned.n = 0;
}

void pl_engine_close_loans(pl_engine *e)
{
    uint32_t at = 0;
    for (loan *l; (l = pl_map_next(&e->loans, &at));) {
        l->run = NULL; /* ended long ago */
        close_loan(l);
    }
    pl_map_fini(&e->loans);
    pl_free(e->lent.items);
    pl_free(e->shared->returned.seqs);
}

void pl_engine_count_lent(const pl_engine *e, int32_t *holders)
{
    uint32_t at = 0;
    for (const loan *l; (l = pl_map_next(&e->loans, &at));)
        for (int32_t i = 0; i < l->n_blocks; i++) holders[l->blocks[i]]++;
}

/* ---- what the batch says of them --------------------------------------------------- */

/* Blocks that were told of are whole, except at the end. */
static int32_t n_told_blocks(const pl_engine *e, const loan *l)
{
    return l->n_told / e->block_size;
}

size_t pl_engine_lent_size(const pl_engine *e)
{
    size_t n = (size_t)e->lent.n * sizeof(pl_lent);
    for (int32_t i = 0; i < e->lent.n; i++) {
        const loan *l = e->lent.items[i];
        n += (size_t)(l->n_blocks - n_told_blocks(e, l)) * sizeof(int32_t);
    }
    return n;
}

void pl_engine_add_lent(pl_engine *e, pl_lent *out, int32_t *room)
{
    for (int32_t i = 0; i < e->lent.n; i++) {
        loan *l = e->lent.items[i];
        int32_t skip = n_told_blocks(e, l), n = l->n_blocks - skip;
        if (n) memcpy(room, l->blocks + skip, (size_t)n * sizeof *room);
        out[i] = (pl_lent){.seq = l->seq,
                           .ticket = l->ticket,
                           .first = skip * e->block_size,
                           .n_tokens = l->n_tokens,
                           .over = !l->run,
                           .n_blocks = n,
                           .blocks = room};
        room += n;
        l->n_told = l->n_tokens;
        l->is_due = false;
    }
    e->lent.n = 0;
}
