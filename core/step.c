/* SPDX-License-Identifier: Apache-2.0
 *
 * A step's memory: chunks that only grow, emptied at once by pl_step_clear.
 */
#include "step.h"

#include <assert.h>
#include <string.h>

typedef struct pl_step_chunk {
    struct pl_step_chunk *older;
    size_t used, size;
} chunk;

enum {
    FIRST_CHUNK = 16 << 10
};

/* Bytes that stay where they are until the step is cleared. */
static void *room(pl_step *s, size_t bytes)
{
    chunk *c = s->chunks;
    bytes = (bytes + 15) & ~(size_t)15;
    if (!c || c->size - c->used < bytes) {
        size_t size = PL_MAX(c ? 2 * c->size : (size_t)FIRST_CHUNK, bytes);
        chunk *more = pl_alloc(sizeof *more + size);
        *more = (chunk){.older = c, .size = size};
        s->chunks = c = more;
    }
    void *at = (char *)(c + 1) + c->used;
    c->used += bytes;
    return at;
}

static int32_t *copy_ids(pl_step *s, const int32_t *ids, int32_t n)
{
    int32_t *to = room(s, (size_t)n * sizeof *ids);
    if (n > 0) memcpy(to, ids, (size_t)n * sizeof *ids);
    return to;
}

pl_step *pl_step_open(int32_t max_rows, int32_t max_seqs)
{
    pl_step *s = pl_alloc(sizeof *s);
    s->max_rows = max_rows;
    s->max_seqs = max_seqs;
    s->tokens = pl_alloc((size_t)max_rows * sizeof *s->tokens);
    s->seqs = pl_alloc((size_t)max_seqs * sizeof *s->seqs);
    return s;
}

static void drop_chunks(chunk *c)
{
    while (c) {
        chunk *older = c->older;
        pl_free(c);
        c = older;
    }
}

void pl_step_close(pl_step *s)
{
    if (!s) return;
    drop_chunks(s->chunks);
    pl_free(s->tokens);
    pl_free(s->seqs);
    pl_free(s);
}

/* Keeps the largest chunk: steps are much alike, so soon one holds them. */
void pl_step_clear(pl_step *s)
{
    s->n_rows = s->n_seqs = 0;
    if (!s->chunks) return;
    drop_chunks(s->chunks->older);
    s->chunks->older = NULL;
    s->chunks->used = 0;
}

pl_step_seq *pl_step_add(pl_step *s, int32_t position, const int32_t *tokens,
                         int32_t n_rows, const int32_t *blocks, int32_t n_blocks)
{
    assert(s->n_seqs < s->max_seqs && s->n_rows + n_rows <= s->max_rows);
    pl_step_seq *q = &s->seqs[s->n_seqs++];
    *q = (pl_step_seq){.first = s->n_rows,
                       .n_rows = n_rows,
                       .position = position,
                       .n_blocks = n_blocks,
                       .blocks = copy_ids(s, blocks, n_blocks),
                       .sampled.token = -1};
    if (n_rows > 0)
        memcpy(s->tokens + s->n_rows, tokens, (size_t)n_rows * sizeof *tokens);
    s->n_rows += n_rows;
    return q;
}

void pl_step_add_drawn(pl_step *s, pl_step_seq *q, int32_t i)
{
    assert(s->n_rows < s->max_rows && q == &s->seqs[s->n_seqs - 1] && !q->want);
    s->tokens[s->n_rows++] = pl_step_drawn(i);
    q->n_rows++;
}

static bool reads_tokens(const pl_sampler *p)
{
    return p->params.repetition_penalty != 1 || p->params.presence_penalty != 0 ||
           p->params.frequency_penalty != 0 || p->bad_words_len > 0;
}

void pl_step_want_token(pl_step *s, pl_step_seq *q, const pl_sampler *sampler)
{
    pl_sampler *p = &q->sampler;
    q->want |= PL_WANT_TOKEN;
    *p = *sampler;
    p->position = p->n_tokens = q->position + q->n_rows;
    p->tokens = NULL;
    if (reads_tokens(sampler)) {
        int32_t *all = room(s, (size_t)p->n_tokens * sizeof *all);
        memcpy(all, sampler->tokens, (size_t)(p->n_tokens - 1) * sizeof *all);
        all[p->n_tokens - 1] = s->tokens[q->first + q->n_rows - 1];
        p->tokens = all;
    }
    if (p->params.logprobs >= 0) {
        q->sampled.n_top = 1 + p->params.logprobs;
        q->sampled.top = q->top = room(s, (size_t)q->sampled.n_top * sizeof *q->top);
    }
}

void pl_step_want_rows(pl_step *s, pl_step_seq *q, const int32_t *targets,
                       int32_t n_targets, int32_t n_top)
{
    size_t n = (size_t)q->n_rows * (1 + (size_t)n_top);
    int32_t *all = room(s, (size_t)q->n_rows * sizeof *all);
    for (int32_t i = 0; i < q->n_rows; i++) all[i] = i < n_targets ? targets[i] : -1;
    q->want |= PL_WANT_ROWS;
    q->n_top = n_top;
    q->targets = all;
    q->rows = room(s, n * sizeof *q->rows);
    for (size_t i = 0; i < n; i++) q->rows[i] = (pl_logprob){-1, 0, 0};
}

static int32_t resolved(int32_t token, const pl_step *before)
{
    if (token >= 0) return token;
    assert(before && -1 - token < before->n_seqs);
    return before->seqs[-1 - token].sampled.token;
}

void pl_step_resolve(pl_step *s, const pl_step *before)
{
    for (int32_t i = 0; i < s->n_rows; i++) s->tokens[i] = resolved(s->tokens[i], before);
    for (int32_t i = 0; i < s->n_seqs; i++) {
        const pl_sampler *p = &s->seqs[i].sampler;
        if (!p->tokens) continue;
        int32_t *last = (int32_t *)p->tokens + p->n_tokens - 1;
        *last = resolved(*last, before);
    }
}
