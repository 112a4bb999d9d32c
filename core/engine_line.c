/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_line.c - runs in lists, in line, by id, and with news for the step thread.
 *
 * Owns     the order of those who wait.
 * Ignores  why.
 * Thread   lists and line: step. Index and inbox: any, under the lock.
 *
 * Whoever has blocks goes first, to give them back soonest (its KV came from elsewhere);
 * then, under that policy, the lower priority; then who came first.
 */
#include "engine_state.h"

#include <string.h>

void pl_run_push(run_list *l, run *r)
{
    if (l->n == l->cap) {
        l->cap = PL_MAX(16, 2 * l->cap);
        l->items = pl_realloc(l->items, (size_t)l->cap * sizeof(run *));
    }
    l->items[l->n++] = r;
}

void pl_run_remove(run_list *l, run *r)
{
    int32_t i = l->n - 1; /* more often than not it is near the end */
    while (l->items[i] != r) i--;
    l->n--;
    memmove(l->items + i, l->items + i + 1, (size_t)(l->n - i) * sizeof(run *));
}

void pl_run_free(run *r)
{
    pl_seq_close(r->seq);
    pl_free(r->blocks);
    pl_free(r->names);
    pl_free(r->prompt_top);
    pl_free(r);
}

/* ---- the line ------------------------------------------------------------------- */

bool pl_run_is_before(const pl_engine *e, const run *a, const run *b)
{
    if (e->options.policy == PL_POLICY_PRIORITY &&
        a->seq->params.priority != b->seq->params.priority)
        return a->seq->params.priority < b->seq->params.priority;
    return a->arrival < b->arrival;
}

static bool waits_before(const pl_engine *e, const run *a, const run *b)
{
    if ((a->n_blocks > 0) != (b->n_blocks > 0)) return a->n_blocks > 0;
    return pl_run_is_before(e, a, b);
}

static void seat(run_list *l, int32_t at, run *r)
{
    l->items[at] = r;
    r->at = at;
}

static void rise(pl_engine *e, int32_t at, run *r)
{
    run_list *l = &e->waiting;
    while (at > 0 && waits_before(e, r, l->items[(at - 1) / 2])) {
        seat(l, at, l->items[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    seat(l, at, r);
}

void pl_line_push(pl_engine *e, run *r)
{
    r->state = RUN_WAITING;
    atomic_store(&r->stage, PL_SEQ_IN_LINE);
    pl_run_push(&e->waiting, r);
    rise(e, e->waiting.n - 1, r);
}

void pl_line_remove(pl_engine *e, run *r)
{
    run_list *l = &e->waiting;
    int32_t at = r->at;
    run *last = l->items[--l->n];
    if (last == r) return;
    for (int32_t child; (child = 2 * at + 1) < l->n; at = child) {
        if (child + 1 < l->n && waits_before(e, l->items[child + 1], l->items[child]))
            child++;
        if (waits_before(e, last, l->items[child])) break;
        seat(l, at, l->items[child]);
    }
    rise(e, at, last);
}

/* ---- by id: linear probing, never more than half full --------------------------- */

void pl_index_init(shared *s, int32_t max_live)
{
    uint32_t n = 16;
    while (n < 2 * (uint32_t)max_live) n *= 2;
    s->mask = n - 1;
    s->index = pl_alloc(n * sizeof(run *));
}

static uint32_t find_cell(const shared *s, int32_t id)
{
    uint32_t at = (uint32_t)id & s->mask;
    while (s->index[at] && s->index[at]->id != id) at = (at + 1) & s->mask;
    return at;
}

run *pl_index_find(const shared *s, int32_t id)
{
    return s->index[find_cell(s, id)];
}

void pl_index_insert(shared *s, run *r)
{
    s->index[find_cell(s, r->id)] = r;
    s->n_live++;
}

void pl_index_remove(shared *s, run *r)
{
    uint32_t hole = find_cell(s, r->id);
    for (uint32_t at = (hole + 1) & s->mask; s->index[at]; at = (at + 1) & s->mask) {
        uint32_t home = (uint32_t)s->index[at]->id & s->mask;
        if (((at - home) & s->mask) < ((at - hole) & s->mask)) continue;
        s->index[hole] = s->index[at];
        hole = at;
    }
    s->index[hole] = NULL;
    s->n_live--;
    s->n_unread -= r->n_unread;
    if (!r->in_inbox) return;
    run **link = &s->inbox, *before = NULL;
    for (; *link != r; link = &before->next_news) before = *link;
    *link = r->next_news;
    if (s->inbox_last == r) s->inbox_last = before;
}

/* ---- news: at most one entry a run, so the inbox needs no bound of its own ------ */

void pl_inbox_push(shared *s, run *r, int news)
{
    r->news |= news;
    if (r->in_inbox) return;
    r->in_inbox = true;
    r->next_news = NULL;
    if (s->inbox)
        s->inbox_last->next_news = r;
    else
        s->inbox = r;
    s->inbox_last = r;
}

run *pl_inbox_pop(shared *s, int *news)
{
    run *r = s->inbox;
    if (!r) return NULL;
    s->inbox = r->next_news;
    *news = r->news;
    r->news = 0;
    r->in_inbox = false;
    return r;
}
