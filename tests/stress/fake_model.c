/* SPDX-License-Identifier: Apache-2.0 */
#include "fake_model.h"

#include <stdlib.h>

uint64_t fake_next(uint64_t context, int32_t token)
{
    return pl_random_at(context, (uint64_t)token, 7);
}

int32_t fake_token(const pl_model *m, uint64_t context)
{
    return (int32_t)(context % (uint64_t)m->vocab);
}

int32_t fake_expect(const pl_model *m, const int32_t *tokens, int32_t n)
{
    uint64_t context = 0;
    for (int32_t i = 0; i < n; i++) context = fake_next(context, tokens[i]);
    return fake_token(m, context);
}

pl_status pl_model_kv_open(pl_model *m, int32_t n_blocks)
{
    m->n_blocks = n_blocks;
    m->kv = pl_alloc((size_t)n_blocks * (size_t)m->block_size * sizeof *m->kv);
    return PL_OK;
}

void pl_model_kv_close(pl_model *m)
{
    pl_free(m->kv);
    m->kv = NULL;
}

void *pl_model_block(pl_model *m, int32_t block, size_t *bytes)
{
    *bytes = (size_t)m->block_size * sizeof *m->kv;
    return m->kv + (size_t)block * (size_t)m->block_size;
}

int32_t pl_model_vocab(const pl_model *m)
{
    return m->vocab;
}

int32_t pl_model_block_size(const pl_model *m)
{
    return m->block_size;
}

int32_t pl_model_max_positions(const pl_model *m)
{
    return m->max_positions;
}

static bool fails(const pl_model *m, int one_in)
{
    return one_in && pl_random_at(m->n_steps, 0, 3) % (uint64_t)one_in == 0;
}

static uint64_t *slot(const pl_model *m, const pl_batch_seq *s, int32_t position)
{
    int32_t block = s->blocks[position / m->block_size];
    if (block < 1 || block >= m->n_blocks || position / m->block_size >= s->n_blocks)
        abort();
    return &m->kv[block * m->block_size + position % m->block_size];
}

pl_status pl_model_submit(pl_model *m, const pl_batch *batch)
{
    if (m->batch) abort(); /* one at a time */
    m->n_steps++;
    if (fails(m, m->fail_submit)) return pl_fail(PL_EIO, "the device is on fire");
    m->batch = batch;
    return PL_OK;
}

static void compute(pl_model *m, const pl_batch_seq *s, const int32_t *tokens,
                    pl_result *out, pl_logprob *rows)
{
    uint64_t context = s->position ? *slot(m, s, s->position - 1) : 0;
    out->rows = rows;
    for (int32_t i = 0; i < s->n_rows; i++) {
        context = fake_next(context, tokens[i]);
        *slot(m, s, s->position + i) = context;
        for (int32_t j = 0; (s->want & PL_WANT_ROWS) && j <= s->n_prompt_top; j++)
            *rows++ = (pl_logprob){j ? j : s->targets[i], j + 1, (float)(context >> 40)};
    }
    if (s->want & PL_WANT_TOKEN)
        out->sampled = (pl_sampled){fake_token(m, context), 0, NULL};
}

pl_status pl_model_collect(pl_model *m, int timeout_ms, const pl_result **out)
{
    (void)timeout_ms;
    const pl_batch *b = m->batch;
    m->batch = NULL;
    size_t n_top = 0;
    for (int32_t i = 0; i < b->n_seqs; i++)
        n_top += (size_t)b->seqs[i].n_rows * (1 + (size_t)b->seqs[i].n_prompt_top);
    m->rows = pl_realloc(m->rows, n_top * sizeof *m->rows);
    m->results = pl_realloc(m->results, (size_t)b->n_seqs * sizeof *m->results);
    if (fails(m, m->fail_collect)) return pl_fail(PL_EIO, "the device is gone");
    size_t at = 0;
    for (int32_t i = 0; i < b->n_seqs; i++) {
        const pl_batch_seq *s = &b->seqs[i];
        compute(m, s, b->tokens + s->first, &m->results[i], m->rows + at);
        at += (size_t)s->n_rows * (1 + (size_t)s->n_prompt_top);
    }
    m->n_rows += b->n_rows;
    *out = m->results;
    return PL_OK;
}
