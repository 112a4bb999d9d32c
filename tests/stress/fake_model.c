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

pl_status pl_model_kv_open(pl_model *m, int32_t n_blocks, int32_t max_rows,
                           int32_t max_seqs)
{
    (void)max_rows, (void)max_seqs;
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

int64_t pl_model_block_bytes(const pl_model *m)
{
    return (int64_t)((size_t)m->block_size * sizeof *m->kv);
}

const char *pl_model_kv_layout(const pl_model *m)
{
    (void)m;
    return "fake";
}

bool pl_model_is_local(const pl_model *m)
{
    (void)m;
    return true;
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

int32_t pl_model_depth(const pl_model *m)
{
    return m->depth;
}

static bool fails(const pl_model *m, int one_in)
{
    return one_in && pl_random_at(m->n_steps, 0, 3) % (uint64_t)one_in == 0;
}

static uint64_t *slot(const pl_model *m, const pl_step_seq *q, int32_t position)
{
    int32_t block = q->blocks[position / m->block_size];
    if (block < 1 || block >= m->n_blocks || position / m->block_size >= q->n_blocks)
        abort();
    return &m->kv[block * m->block_size + position % m->block_size];
}

pl_status pl_model_submit(pl_model *m, pl_step *s)
{
    if (m->n_flying == m->depth) abort();
    m->n_steps++;
    if (fails(m, m->fail_submit)) return pl_fail(PL_EIO, "the device is on fire");
    m->flying[m->n_flying++] = s;
    return PL_OK;
}

static void compute(const pl_model *m, pl_step_seq *q, const int32_t *tokens)
{
    uint64_t context = q->position ? *slot(m, q, q->position - 1) : 0;
    pl_logprob *rows = q->rows;
    for (int32_t i = 0; i < q->n_rows; i++) {
        context = fake_next(context, tokens[i]);
        *slot(m, q, q->position + i) = context;
        for (int32_t j = 0; (q->want & PL_WANT_ROWS) && j <= q->n_top; j++)
            *rows++ = (pl_logprob){j ? j : q->targets[i], j + 1, (float)(context >> 40)};
    }
    if (q->want & PL_WANT_TOKEN) q->sampled.token = fake_token(m, context);
}

pl_status pl_model_collect(pl_model *m, int timeout_ms)
{
    (void)timeout_ms;
    pl_step *s = m->flying[0], *next = m->n_flying > 1 ? m->flying[1] : NULL;
    m->flying[0] = next;
    m->n_flying--;
    if (fails(m, m->fail_collect)) {
        m->fail_next = next != NULL; /* it builds on this one */
        return pl_fail(PL_EIO, "the device is gone");
    }
    if (m->fail_next) {
        m->fail_next = false;
        return pl_fail(PL_EIO, "the device was gone");
    }
    for (int32_t i = 0; i < s->n_seqs; i++)
        compute(m, &s->seqs[i], s->tokens + s->seqs[i].first);
    if (next) pl_step_resolve(next, s);
    m->n_rows += s->n_rows;
    return PL_OK;
}
