/* SPDX-License-Identifier: Apache-2.0
 *
 * The walk: a step's rows through the layers, op by op, on a device that does not run
 * steps by itself. The plan says what the layers are.
 */
#include "model_own.h"

/* ---- scratch -------------------------------------------------------------------- */

static int32_t qkv_width(const pl_model *m)
{
    return (m->o.n_heads + 2 * m->o.n_kv_heads) * m->o.head_dim;
}

static bool has_dense(const pl_model *m)
{
    for (int layer = 0; layer < m->o.n_layers; layer++)
        if (!pl_model_has_experts(m, layer)) return true;
    return false;
}

static int32_t ffn_width(const pl_model *m)
{
    return has_dense(m) ? 2 * m->o.ffn : 0;
}

static size_t floats(int rows, int32_t width)
{
    return (size_t)rows * (size_t)width * sizeof(float);
}

static pl_status open_buffers(pl_model *m)
{
    const pl_device_ops *ops = m->device->ops;
    const pl_model_options *o = &m->o;
    int activations = o->activations;
    m->x = ops->alloc(m->device, floats(PL_WALK_ROWS, o->hidden));
    m->qkv = ops->alloc(m->device, floats(PL_WALK_ROWS, qkv_width(m)));
    m->ffn = ops->alloc(m->device, floats(PL_WALK_ROWS, ffn_width(m)));
    m->logits = ops->alloc(m->device, floats(PL_LOGIT_ROWS, o->vocab));
    if (o->post_norms) m->part = ops->alloc(m->device, floats(PL_WALK_ROWS, o->hidden));
    if (!m->x || !m->qkv || !m->ffn || !m->logits || (o->post_norms && !m->part)) {
        return pl_fail(PL_ENOMEM, "no memory for %d rows of the walk", PL_WALK_ROWS);
    }
    PL_TRY(ops->acts_open(m->device, PL_WALK_ROWS, o->hidden, activations, &m->normed));
    PL_TRY(ops->acts_open(m->device, PL_WALK_ROWS, o->n_heads * o->head_dim, activations,
                          &m->attended));
    if (has_dense(m))
        PL_TRY(ops->acts_open(m->device, PL_WALK_ROWS, o->ffn, activations, &m->gated));
    return ops->acts_open(m->device, PL_LOGIT_ROWS, o->hidden, activations, &m->picked);
}

pl_status pl_model_walk_open(pl_model *m)
{
    size_t half = (size_t)m->plan.attention.rope_dims / 2;
    m->picks = pl_alloc(PL_LOGIT_ROWS * sizeof *m->picks);
    m->positions = pl_alloc(PL_WALK_ROWS * sizeof *m->positions);
    m->blocks = pl_alloc(PL_WALK_ROWS * sizeof *m->blocks);
    m->cos = pl_alloc(PL_WALK_ROWS * half * sizeof *m->cos);
    m->sin = pl_alloc(PL_WALK_ROWS * half * sizeof *m->sin);
    if (m->window_inv_freq) {
        m->window_cos = pl_alloc(PL_WALK_ROWS * half * sizeof *m->window_cos);
        m->window_sin = pl_alloc(PL_WALK_ROWS * half * sizeof *m->window_sin);
    }
    return open_buffers(m);
}

void pl_model_walk_close(pl_model *m)
{
    const pl_device_ops *ops = m->device->ops;
    if (m->x) ops->free(m->device, m->x, floats(PL_WALK_ROWS, m->o.hidden));
    if (m->part) ops->free(m->device, m->part, floats(PL_WALK_ROWS, m->o.hidden));
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
    pl_free(m->window_cos);
    pl_free(m->window_sin);
    pl_free(m->draws);
    pl_free(m->draw_rows);
    pl_free(m->picks);
}

/* ---- the layers ----------------------------------------------------------------- */

/* x gets rows times w; normed first where there is a norm for it. */
static void walk_add(pl_model *m, const pl_matrix *w, const float *bias,
                     const float *post_norm, const pl_acts *rows)
{
    pl_device *d = m->device;
    const pl_plan *p = &m->plan;
    pl_linear out = {w, bias, post_norm ? m->part : m->x, p->hidden, !post_norm};
    d->ops->linear(d, &out, 1, rows);
    if (post_norm) d->ops->add_norm(d, m->part, post_norm, p->norm_eps, m->x, p->hidden);
}

static void walk_attention(pl_model *m, int i)
{
    pl_device *d = m->device;
    const pl_plan *p = &m->plan;
    const pl_layer *l = &p->layers[i];
    const pl_attention *a = &p->attention;
    int32_t width = qkv_width(m);
    pl_heads h = {
        .shape = a,
        .layer = i,
        .window = l->window,
        .q_norm = l->q_norm,
        .k_norm = l->k_norm,
        .q = m->qkv,
        .k = m->qkv + a->n_heads * a->head_dim,
        .v = m->qkv + (a->n_heads + a->n_kv_heads) * a->head_dim,
        .stride = width,
        .kv = p->kv,
    };
    pl_linear in[3] = {
        {l->q, l->q_bias, h.q, width, false},
        {l->k, l->k_bias, h.k, width, false},
        {l->v, l->v_bias, h.v, width, false},
    };
    d->ops->norm(d, m->x, p->hidden, l->attn_norm, p->norm_eps, m->normed);
    d->ops->linear(d, in, 3, m->normed);
    d->ops->heads(d, &h);
    d->ops->attend(d, &h, m->attended);
    walk_add(m, l->o, l->o_bias, l->attn_post_norm, m->attended);
}

static void walk_ffn(pl_model *m, int i)
{
    pl_device *d = m->device;
    const pl_plan *p = &m->plan;
    const pl_layer *l = &p->layers[i];
    d->ops->norm(d, m->x, p->hidden, l->ffn_norm, p->norm_eps, m->normed);
    if (l->experts.n) {
        d->ops->experts(d, &l->experts, m->normed, m->x, p->hidden);
        return;
    }
    pl_linear in[2] = {
        {l->gate, NULL, m->ffn, 2 * p->ffn, false},
        {l->up, NULL, m->ffn + p->ffn, 2 * p->ffn, false},
    };
    d->ops->linear(d, in, 2, m->normed);
    d->ops->gate(d, p->gate_kind, m->ffn, m->ffn + p->ffn, 2 * p->ffn, m->gated);
    walk_add(m, l->down, NULL, l->ffn_post_norm, m->gated);
}

/* ---- what is wanted ------------------------------------------------------------- */

static void want(pl_model *m, int32_t row, pl_draw draw)
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

static void want_seq(pl_model *m, pl_step_seq *q)
{
    size_t vocab = (size_t)m->plan.vocab;
    for (int i = 0; i < q->n_rows; i++) {
        int32_t row = q->first + i;
        if (q->want & PL_WANT_LOGITS)
            want(m, row, (pl_draw){.logits = q->logits + (size_t)i * vocab});
        if (q->want & PL_WANT_ROWS && q->targets[i] >= 0)
            want(m, row,
                 (pl_draw){.target = q->targets[i],
                           .n_top = q->n_top,
                           .top = q->rows + (size_t)i * (1 + (size_t)q->n_top)});
    }
    if (q->want & PL_WANT_TOKEN)
        want(
            m, q->first + q->n_rows - 1,
            (pl_draw){.sampler = &q->sampler, .token = &q->sampled.token, .top = q->top});
}

/* The logits of the draws' rows, which the walk has just left in x. */
static void walk_draws(pl_model *m, int first_row, const pl_draw *draws,
                       const int32_t *rows, int n)
{
    pl_device *d = m->device;
    const pl_plan *p = &m->plan;
    pl_linear head = {p->head, NULL, m->logits, p->vocab, false};
    for (int at = 0; at < n; at += PL_LOGIT_ROWS) {
        int some = PL_MIN(n - at, PL_LOGIT_ROWS);
        for (int i = 0; i < some; i++) m->picks[i] = rows[at + i] - first_row;
        d->ops->pick(d, m->picks, some, m->x, p->hidden, p->norm, p->norm_eps, m->picked);
        d->ops->linear(d, &head, 1, m->picked);
        if (p->logit_cap > 0) d->ops->cap(d, m->logits, p->vocab, some, p->logit_cap);
        d->ops->sample(d, m->logits, p->vocab, draws + at, some);
    }
}

/* ---- the walk ------------------------------------------------------------------- */

static void fill_rope(pl_model *m, size_t row)
{
    const pl_plan *p = &m->plan;
    int half = p->attention.rope_dims / 2;
    size_t at = row * (size_t)half;
    pl_model_rope_at(p->inv_freq, p->rope_scale, half, m->positions[row], m->cos + at,
                     m->sin + at);
    if (p->window_inv_freq)
        pl_model_rope_at(p->window_inv_freq, 1, half, m->positions[row],
                         m->window_cos + at, m->window_sin + at);
}

static void fill_rows(pl_model *m, const pl_step *s, int first, int n, pl_rows *rows)
{
    for (int i = 0; i < s->n_seqs; i++) {
        const pl_step_seq *q = &s->seqs[i];
        int from = PL_MAX(q->first, first), to = PL_MIN(q->first + q->n_rows, first + n);
        for (int row = from; row < to; row++) {
            size_t at = (size_t)(row - first);
            m->positions[at] = q->position + row - q->first;
            m->blocks[at] = q->blocks;
            fill_rope(m, at);
        }
    }
    *rows = (pl_rows){.n = n,
                      .tokens = s->tokens + first,
                      .positions = m->positions,
                      .blocks = m->blocks,
                      .cos = m->cos,
                      .sin = m->sin,
                      .window_cos = m->window_cos,
                      .window_sin = m->window_sin};
}

void pl_model_walk(pl_model *m, pl_step *s)
{
    pl_device *d = m->device;
    int drawn = 0;
    m->n_draws = 0;
    for (int i = 0; i < s->n_seqs; i++) want_seq(m, &s->seqs[i]);
    for (int first = 0; first < s->n_rows; first += PL_WALK_ROWS) {
        pl_rows rows;
        int n = PL_MIN(s->n_rows - first, PL_WALK_ROWS), until = drawn;
        fill_rows(m, s, first, n, &rows);
        d->ops->begin(d, &rows);
        d->ops->embed(d, m->plan.embed, m->plan.embed_scale, m->x, m->plan.hidden);
        for (int layer = 0; layer < m->plan.n_layers; layer++) {
            walk_attention(m, layer);
            walk_ffn(m, layer);
        }
        while (until < m->n_draws && m->draw_rows[until] < first + n) until++;
        walk_draws(m, first, m->draws + drawn, m->draw_rows + drawn, until - drawn);
        drawn = until;
    }
}
