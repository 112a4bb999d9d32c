/* SPDX-License-Identifier: Apache-2.0
 *
 * The step of a model: the batch's rows through the layers, then logits where someone
 * wants them.
 *
 *      idle --submit--> in flight --collect--> idle
 */
#include "model_own.h"

#include <string.h>

/* ---- scratch -------------------------------------------------------------------- */

static int32_t qkv_width(const pl_model *m)
{
    return (m->o.n_heads + 2 * m->o.n_kv_heads) * m->o.head_dim;
}

static int32_t ffn_width(const pl_model *m)
{
    return m->o.n_experts ? 0 : 2 * m->o.ffn;
}

static size_t floats(int rows, int32_t width)
{
    return (size_t)rows * (size_t)width * sizeof(float);
}

static pl_status open_buffers(pl_model *m)
{
    const pl_device_ops *ops = m->device->ops;
    const pl_model_options *o = &m->o;
    bool q8 = o->activations == PL_Q8_0;
    m->x = ops->alloc(m->device, floats(PL_WALK_ROWS, o->hidden));
    m->qkv = ops->alloc(m->device, floats(PL_WALK_ROWS, qkv_width(m)));
    m->ffn = ops->alloc(m->device, floats(PL_WALK_ROWS, ffn_width(m)));
    m->logits = ops->alloc(m->device, floats(PL_LOGIT_ROWS, o->vocab));
    if (!m->x || !m->qkv || !m->ffn || !m->logits) {
        return pl_fail(PL_ENOMEM, "no memory for %d rows of the walk", PL_WALK_ROWS);
    }
    PL_TRY(ops->acts_open(m->device, PL_WALK_ROWS, o->hidden, q8, &m->normed));
    PL_TRY(ops->acts_open(m->device, PL_WALK_ROWS, o->n_heads * o->head_dim, q8,
                          &m->attended));
    if (!o->n_experts)
        PL_TRY(ops->acts_open(m->device, PL_WALK_ROWS, o->ffn, q8, &m->gated));
    return ops->acts_open(m->device, PL_LOGIT_ROWS, o->hidden, q8, &m->picked);
}

pl_status pl_model_walk_open(pl_model *m)
{
    size_t half = (size_t)m->o.head_dim / 2;
    m->picks = pl_alloc(PL_LOGIT_ROWS * sizeof *m->picks);
    if (m->device->ops->step) return PL_OK;
    m->positions = pl_alloc(PL_WALK_ROWS * sizeof *m->positions);
    m->blocks = pl_alloc(PL_WALK_ROWS * sizeof *m->blocks);
    m->cos = pl_alloc(PL_WALK_ROWS * half * sizeof *m->cos);
    m->sin = pl_alloc(PL_WALK_ROWS * half * sizeof *m->sin);
    return open_buffers(m);
}

void pl_model_walk_close(pl_model *m)
{
    const pl_device_ops *ops = m->device->ops;
    pl_model_kv_close(m);
    if (m->x) ops->free(m->device, m->x, floats(PL_WALK_ROWS, m->o.hidden));
    if (m->qkv) ops->free(m->device, m->qkv, floats(PL_WALK_ROWS, qkv_width(m)));
    if (m->ffn) ops->free(m->device, m->ffn, floats(PL_WALK_ROWS, ffn_width(m)));
    if (m->logits) ops->free(m->device, m->logits, floats(PL_LOGIT_ROWS, m->o.vocab));
    pl_acts *acts[] = {m->normed, m->attended, m->gated, m->picked};
    for (int i = 0; i < PL_COUNT(acts); i++) {
        if (acts[i]) ops->acts_close(m->device, acts[i]);
    }
    pl_free(m->positions);
    pl_free(m->blocks);
    pl_free(m->cos);
    pl_free(m->sin);
    pl_free(m->draws);
    pl_free(m->draw_rows);
    pl_free(m->picks);
    pl_free(m->results);
    pl_free(m->tops);
}

pl_status pl_model_kv_open(pl_model *m, int32_t n_blocks)
{
    int64_t bytes = pl_model_block_bytes(m);
    if (m->kv) return pl_fail(PL_EINVAL, "the model has its KV blocks");
    if (n_blocks < 1 || n_blocks > INT64_MAX / 2 / bytes) {
        return pl_fail(PL_EINVAL, "n_blocks is %d, wanted at least 1", n_blocks);
    }
    m->kv = m->device->ops->alloc(m->device, (size_t)n_blocks * (size_t)bytes);
    if (!m->kv) {
        return pl_fail(PL_ENOMEM, "no memory for %d KV blocks of %lld bytes", n_blocks,
                       (long long)bytes);
    }
    m->n_blocks = n_blocks;
    return PL_OK;
}

void pl_model_kv_close(pl_model *m)
{
    size_t bytes = (size_t)m->n_blocks * (size_t)pl_model_block_bytes(m);
    if (m->kv) m->device->ops->free(m->device, m->kv, bytes);
    m->kv = NULL;
    m->n_blocks = 0;
}

void *pl_model_block(pl_model *m, int32_t block, size_t *bytes)
{
    *bytes = (size_t)pl_model_block_bytes(m);
    return m->kv + (size_t)block * *bytes;
}

/* ---- the layers ----------------------------------------------------------------- */

static const float *vector_of(const pl_model *m, int role, int layer)
{
    return pl_model_slot(m, role, layer)->vector;
}

static pl_linear part(const pl_model *m, int role, int bias, int layer, float *out,
                      int32_t out_stride, bool add)
{
    return (pl_linear){pl_model_slot(m, role, layer)->matrix,
                       bias < 0 ? NULL : vector_of(m, bias, layer), out, out_stride, add};
}

static void walk_attention(pl_model *m, int layer)
{
    pl_device *d = m->device;
    const pl_model_options *o = &m->o;
    int32_t width = qkv_width(m), hidden = o->hidden;
    pl_heads h = {
        .shape = &m->attention,
        .layer = layer,
        .window = layer >= o->first_window_layer ? o->window : 0,
        .q_norm = vector_of(m, PL_ROLE_Q_NORM, layer),
        .k_norm = vector_of(m, PL_ROLE_K_NORM, layer),
        .q = m->qkv,
        .k = m->qkv + o->n_heads * o->head_dim,
        .v = m->qkv + (o->n_heads + o->n_kv_heads) * o->head_dim,
        .stride = width,
        .kv = m->kv,
    };
    pl_linear in[3] = {
        part(m, PL_ROLE_Q, PL_ROLE_Q_BIAS, layer, h.q, width, false),
        part(m, PL_ROLE_K, PL_ROLE_K_BIAS, layer, h.k, width, false),
        part(m, PL_ROLE_V, PL_ROLE_V_BIAS, layer, h.v, width, false),
    };
    pl_linear out = part(m, PL_ROLE_O, PL_ROLE_O_BIAS, layer, m->x, hidden, true);
    d->ops->norm(d, m->x, hidden, vector_of(m, PL_ROLE_ATTN_NORM, layer), o->norm_eps,
                 m->normed);
    d->ops->linear(d, in, 3, m->normed);
    d->ops->heads(d, &h);
    d->ops->attend(d, &h, m->attended);
    d->ops->linear(d, &out, 1, m->attended);
}

static void walk_ffn(pl_model *m, int layer)
{
    pl_device *d = m->device;
    const pl_model_options *o = &m->o;
    d->ops->norm(d, m->x, o->hidden, vector_of(m, PL_ROLE_FFN_NORM, layer), o->norm_eps,
                 m->normed);
    if (o->n_experts) {
        pl_experts e = {
            .n = o->n_experts,
            .n_used = o->n_experts_used,
            .ffn = o->expert_ffn,
            .hidden = o->hidden,
            .renormalize = o->norm_topk,
            .router = pl_model_slot(m, PL_ROLE_ROUTER, layer)->matrix,
            .gate = pl_model_slot(m, PL_ROLE_GATE, layer)->experts,
            .up = pl_model_slot(m, PL_ROLE_UP, layer)->experts,
            .down = pl_model_slot(m, PL_ROLE_DOWN, layer)->experts,
        };
        d->ops->experts(d, &e, m->normed, m->x, o->hidden);
        return;
    }
    pl_linear in[2] = {
        part(m, PL_ROLE_GATE, -1, layer, m->ffn, 2 * o->ffn, false),
        part(m, PL_ROLE_UP, -1, layer, m->ffn + o->ffn, 2 * o->ffn, false),
    };
    pl_linear out = part(m, PL_ROLE_DOWN, -1, layer, m->x, o->hidden, true);
    d->ops->linear(d, in, 2, m->normed);
    d->ops->gate(d, m->ffn, m->ffn + o->ffn, 2 * o->ffn, m->gated);
    d->ops->linear(d, &out, 1, m->gated);
}

/* The logits of the draws' rows, which the walk has just left in x. */
static void walk_draws(pl_model *m, int first_row, const pl_draw *draws,
                       const int32_t *rows, int n)
{
    pl_device *d = m->device;
    pl_linear head = part(m, m->o.tied ? PL_ROLE_EMBED : PL_ROLE_HEAD, -1, -1, m->logits,
                          m->o.vocab, false);
    for (int at = 0; at < n; at += PL_LOGIT_ROWS) {
        int some = PL_MIN(n - at, PL_LOGIT_ROWS);
        for (int i = 0; i < some; i++) m->picks[i] = rows[at + i] - first_row;
        d->ops->pick(d, m->picks, some, m->x, m->o.hidden, vector_of(m, PL_ROLE_NORM, -1),
                     m->o.norm_eps, m->picked);
        d->ops->linear(d, &head, 1, m->picked);
        d->ops->sample(d, m->logits, m->o.vocab, draws + at, some);
    }
}

static void fill_rows(pl_model *m, const pl_batch *batch, int first, int n, pl_rows *rows)
{
    size_t half = (size_t)m->o.head_dim / 2;
    for (int i = 0; i < batch->n_seqs; i++) {
        const pl_batch_seq *s = batch->seqs + i;
        int from = PL_MAX(s->first, first), to = PL_MIN(s->first + s->n_rows, first + n);
        for (int row = from; row < to; row++) {
            size_t at = (size_t)(row - first);
            m->positions[at] = s->position + row - s->first;
            m->blocks[at] = s->blocks;
            pl_model_rope_at(m, m->positions[at], m->cos + at * half, m->sin + at * half);
        }
    }
    *rows = (pl_rows){.n = n,
                      .tokens = batch->tokens + first,
                      .positions = m->positions,
                      .blocks = m->blocks,
                      .cos = m->cos,
                      .sin = m->sin};
}

pl_status pl_model_walk(pl_model *m, const pl_batch *batch)
{
    pl_device *d = m->device;
    int drawn = 0;
    if (d->ops->step) return d->ops->step(d, m->o.vocab, m->draws, m->n_draws);
    for (int first = 0; first < batch->n_rows; first += PL_WALK_ROWS) {
        pl_rows rows;
        int n = PL_MIN(batch->n_rows - first, PL_WALK_ROWS), until = drawn;
        fill_rows(m, batch, first, n, &rows);
        d->ops->begin(d, &rows);
        d->ops->embed(d, pl_model_slot(m, PL_ROLE_EMBED, -1)->matrix, m->x, m->o.hidden);
        for (int layer = 0; layer < m->o.n_layers; layer++) {
            walk_attention(m, layer);
            walk_ffn(m, layer);
        }
        while (until < m->n_draws && m->draw_rows[until] < first + n) until++;
        walk_draws(m, first, m->draws + drawn, m->draw_rows + drawn, until - drawn);
        drawn = until;
    }
    return PL_OK;
}

/* ---- what is wanted ------------------------------------------------------------- */

static pl_status check_seq(const pl_model *m, const pl_batch *batch, int i, int next)
{
    const pl_batch_seq *s = batch->seqs + i;
    int64_t end = (int64_t)s->position + s->n_rows;
    int64_t room =
        PL_MIN((int64_t)m->o.max_positions, (int64_t)s->n_blocks * m->o.block_size);
    if (s->first != next || s->n_rows < 1 ||
        s->first + (int64_t)s->n_rows > batch->n_rows) {
        return pl_fail(PL_EINVAL, "sequence %d of the batch has rows %d to %lld of %d", i,
                       s->first, (long long)s->first + s->n_rows, batch->n_rows);
    }
    if (s->position < 0 || end > room) {
        return pl_fail(
            PL_EINVAL,
            "sequence %d of the batch reaches position %lld, wanted at most %lld", i,
            (long long)end, (long long)room);
    }
    if ((s->want & PL_WANT_TOKEN && !s->sampler) ||
        (s->want & PL_WANT_ROWS && !s->targets)) {
        return pl_fail(PL_EINVAL,
                       "sequence %d of the batch wants what it has not described", i);
    }
    return PL_OK;
}

static pl_status check_batch(const pl_model *m, const pl_batch *batch)
{
    int next = 0;
    if (!m->ready || !m->kv) return pl_fail(PL_EINVAL, "the model is not ready");
    if (m->in_flight) return pl_fail(PL_EINVAL, "a step is in flight");
    for (int i = 0; i < batch->n_seqs; i++) {
        PL_TRY(check_seq(m, batch, i, next));
        next += batch->seqs[i].n_rows;
    }
    if (next != batch->n_rows) {
        return pl_fail(PL_EINVAL, "the batch's sequences have %d rows, it has %d", next,
                       batch->n_rows);
    }
    for (int i = 0; i < batch->n_rows; i++) {
        if (batch->tokens[i] < 0 || batch->tokens[i] >= m->o.vocab) {
            return pl_fail(PL_EINVAL, "token %d, wanted 0 to %d", batch->tokens[i],
                           m->o.vocab - 1);
        }
    }
    return PL_OK;
}

static int n_top_of(const pl_model *m, int32_t wanted)
{
    return PL_MIN(wanted, m->o.vocab - 1);
}

void pl_model_draw(pl_model *m, int32_t row, pl_draw draw)
{
    if (m->n_draws == m->draws_cap) {
        m->draws_cap = PL_MAX(2 * m->draws_cap, 64);
        m->draws = pl_realloc(m->draws, (size_t)m->draws_cap * sizeof *m->draws);
        m->draw_rows =
            pl_realloc(m->draw_rows, (size_t)m->draws_cap * sizeof *m->draw_rows);
    }
    m->draw_rows[m->n_draws] = row;
    m->draws[m->n_draws++] = draw;
}

/* Room for all that the batch may bring. */
static void reserve(pl_model *m, const pl_batch *batch)
{
    size_t tops = 0;
    for (int i = 0; i < batch->n_seqs; i++) {
        const pl_batch_seq *s = batch->seqs + i;
        if (s->want & PL_WANT_TOKEN) {
            tops += (size_t)PL_MAX(s->sampler->params.logprobs + 1, 0);
        }
        if (s->want & PL_WANT_ROWS) {
            tops += (size_t)s->n_rows * (size_t)(1 + s->n_prompt_top);
        }
    }
    if (tops > m->tops_cap) {
        m->tops_cap = tops;
        m->tops = pl_realloc(m->tops, tops * sizeof *m->tops);
    }
    if (batch->n_seqs > m->results_cap) {
        m->results_cap = batch->n_seqs;
        m->results = pl_realloc(m->results, (size_t)batch->n_seqs * sizeof *m->results);
    }
}

/* The logprobs wanted after each row of the sequence; rows without a target get token -1.
 */
static pl_logprob *draw_rows(pl_model *m, const pl_batch_seq *s, pl_logprob *top)
{
    int width = 1 + s->n_prompt_top;
    for (int i = 0; i < s->n_rows; i++, top += width) {
        for (int k = 0; k < width; k++) top[k] = (pl_logprob){-1, 0, 0};
        if (s->targets[i] < 0 || s->targets[i] >= m->o.vocab) continue;
        pl_model_draw(m, s->first + i,
                      (pl_draw){.target = s->targets[i],
                                .n_top = n_top_of(m, s->n_prompt_top),
                                .position = s->position + i + 1,
                                .top = top});
    }
    return top;
}

static void plan(pl_model *m, const pl_batch *batch)
{
    pl_logprob *top = m->tops;
    m->n_draws = 0;
    for (int i = 0; i < batch->n_seqs; i++) {
        const pl_batch_seq *s = batch->seqs + i;
        pl_result *r = m->results + i;
        *r = (pl_result){.sampled.token = -1};
        if (s->want & PL_WANT_ROWS) {
            r->rows = top;
            top = draw_rows(m, s, top);
        }
        if (!(s->want & PL_WANT_TOKEN)) continue;
        int wanted = s->sampler->params.logprobs;
        if (wanted >= 0) {
            r->sampled.n_top = 1 + n_top_of(m, wanted);
            r->sampled.top = top;
        }
        pl_model_draw(m, s->first + s->n_rows - 1,
                      (pl_draw){.sampler = s->sampler,
                                .n_top = PL_MAX(r->sampled.n_top - 1, 0),
                                .position = s->position + s->n_rows,
                                .token = &r->sampled.token,
                                .top = wanted >= 0 ? top : NULL});
        if (wanted >= 0) top += wanted + 1;
    }
}

/* ---- a step --------------------------------------------------------------------- */

pl_status pl_model_submit(pl_model *m, const pl_batch *batch)
{
    PL_TRY(check_batch(m, batch));
    reserve(m, batch);
    plan(m, batch);
    PL_TRY(pl_model_walk(m, batch));
    m->in_flight = true;
    return PL_OK;
}

pl_status pl_model_collect(pl_model *m, int timeout_ms, const pl_result **out)
{
    if (!m->in_flight) return pl_fail(PL_EINVAL, "no step is in flight");
    if (!m->device->ops->step) PL_TRY(m->device->ops->end(m->device, timeout_ms));
    m->in_flight = false;
    *out = m->results;
    return PL_OK;
}
