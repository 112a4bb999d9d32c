/* SPDX-License-Identifier: Apache-2.0
 *
 * A model at work: its plan, its KV blocks, and the steps in flight.
 *
 *      no KV --kv_open--> idle --submit--> in flight --collect--> idle
 *
 * A walk is over when submit returns; a device that runs steps is still at it.
 */
#include "model_own.h"

/* ---- the plan ------------------------------------------------------------------- */

static const pl_matrix *matrix_of(const pl_model *m, int role, int layer)
{
    return pl_model_slot(m, role, layer)->matrix;
}

static const float *vector_of(const pl_model *m, int role, int layer)
{
    return pl_model_slot(m, role, layer)->vector;
}

static pl_experts experts_of(const pl_model *m, int layer)
{
    const pl_model_options *o = &m->o;
    if (!pl_model_has_experts(m, layer)) return (pl_experts){0};
    return (pl_experts){
        .n = o->n_experts,
        .n_used = o->n_experts_used,
        .ffn = o->expert_ffn,
        .hidden = o->hidden,
        .renormalize = o->norm_topk,
        .gate_kind = o->gate,
        .router = matrix_of(m, PL_ROLE_ROUTER, layer),
        .gate = pl_model_slot(m, PL_ROLE_GATE, layer)->experts,
        .up = pl_model_slot(m, PL_ROLE_UP, layer)->experts,
        .down = pl_model_slot(m, PL_ROLE_DOWN, layer)->experts,
    };
}

static pl_layer layer_of(const pl_model *m, int i)
{
    return (pl_layer){
        .attn_norm = vector_of(m, PL_ROLE_ATTN_NORM, i),
        .ffn_norm = vector_of(m, PL_ROLE_FFN_NORM, i),
        .attn_post_norm = vector_of(m, PL_ROLE_ATTN_POST_NORM, i),
        .ffn_post_norm = vector_of(m, PL_ROLE_FFN_POST_NORM, i),
        .q_norm = vector_of(m, PL_ROLE_Q_NORM, i),
        .k_norm = vector_of(m, PL_ROLE_K_NORM, i),
        .q_bias = vector_of(m, PL_ROLE_Q_BIAS, i),
        .k_bias = vector_of(m, PL_ROLE_K_BIAS, i),
        .v_bias = vector_of(m, PL_ROLE_V_BIAS, i),
        .o_bias = vector_of(m, PL_ROLE_O_BIAS, i),
        .q = matrix_of(m, PL_ROLE_Q, i),
        .k = matrix_of(m, PL_ROLE_K, i),
        .v = matrix_of(m, PL_ROLE_V, i),
        .o = matrix_of(m, PL_ROLE_O, i),
        .gate = matrix_of(m, PL_ROLE_GATE, i),
        .up = matrix_of(m, PL_ROLE_UP, i),
        .down = matrix_of(m, PL_ROLE_DOWN, i),
        .experts = experts_of(m, i),
        .window = m->flags[i] & PL_LAYER_FULL ? 0 : m->o.window,
    };
}

void pl_model_plan_fill(pl_model *m)
{
    const pl_model_options *o = &m->o;
    pl_plan *p = &m->plan;
    m->layers = pl_alloc((size_t)PL_MAX(o->n_layers, 1) * sizeof *m->layers);
    for (int i = 0; i < o->n_layers; i++) m->layers[i] = layer_of(m, i);
    p->layers = m->layers;
    p->n_layers = o->n_layers;
    p->hidden = o->hidden;
    p->ffn = o->ffn;
    p->vocab = o->vocab;
    p->max_positions = o->max_positions;
    p->gate_kind = o->gate;
    p->norm_eps = o->norm_eps;
    p->embed_scale = o->embed_scale > 0 ? o->embed_scale : 1;
    p->logit_cap = o->logit_cap;
    p->embed = matrix_of(m, PL_ROLE_EMBED, -1);
    p->head = o->tied ? p->embed : matrix_of(m, PL_ROLE_HEAD, -1);
    p->norm = vector_of(m, PL_ROLE_NORM, -1);
}

/* ---- KV blocks ------------------------------------------------------------------ */

pl_status pl_model_kv_open(pl_model *m, int32_t n_blocks, int32_t max_rows,
                           int32_t max_seqs)
{
    pl_plan *p = &m->plan;
    const pl_device_ops *ops = m->device->ops;
    int64_t bytes = pl_model_block_bytes(m);
    if (!m->ready) return pl_fail(PL_EINVAL, "the model is not ready");
    if (p->kv) return pl_fail(PL_EINVAL, "the model has its KV blocks");
    if (n_blocks < 1 || n_blocks > INT64_MAX / 2 / bytes) {
        return pl_fail(PL_EINVAL, "n_blocks is %d, wanted at least 1", n_blocks);
    }
    p->kv = ops->alloc(m->device, (size_t)n_blocks * (size_t)bytes);
    if (!p->kv) {
        return pl_fail(PL_ENOMEM, "no memory for %d KV blocks of %lld bytes", n_blocks,
                       (long long)bytes);
    }
    p->n_blocks = n_blocks;
    p->max_rows = max_rows;
    p->max_seqs = max_seqs;
    pl_status status = ops->run ? ops->prepare(m->device, p, &m->planned) : PL_OK;
    if (status < 0) pl_model_kv_close(m);
    return status;
}

void pl_model_kv_close(pl_model *m)
{
    pl_plan *p = &m->plan;
    size_t bytes = (size_t)p->n_blocks * (size_t)pl_model_block_bytes(m);
    if (m->planned) m->device->ops->discard(m->planned);
    if (p->kv) m->device->ops->free(m->device, p->kv, bytes);
    m->planned = NULL;
    p->kv = NULL;
    p->n_blocks = 0;
    m->n_flying = 0;
}

void *pl_model_block(pl_model *m, int32_t block, size_t *bytes)
{
    *bytes = (size_t)pl_model_block_bytes(m);
    return m->plan.kv + (size_t)block * *bytes;
}

/* ---- a step --------------------------------------------------------------------- */

static pl_status check_seq(const pl_model *m, const pl_step *s, int i)
{
    const pl_step_seq *q = &s->seqs[i];
    int64_t end = (int64_t)q->position + q->n_rows;
    int64_t room =
        PL_MIN((int64_t)m->o.max_positions, (int64_t)q->n_blocks * m->o.block_size);
    if (q->n_rows < 1)
        return pl_fail(PL_EINVAL, "sequence %d of the step has %d rows", i, q->n_rows);
    if (q->position < 0 || end > room)
        return pl_fail(PL_EINVAL,
                       "sequence %d of the step reaches position %lld, wanted at most "
                       "%lld",
                       i, (long long)end, (long long)room);
    if ((q->want & PL_WANT_TOKEN && q->sampler.params.logprobs >= m->o.vocab) ||
        (q->want & PL_WANT_ROWS && q->n_top >= m->o.vocab))
        return pl_fail(PL_EINVAL,
                       "sequence %d of the step wants more logprobs than there are", i);
    return PL_OK;
}

/* A token that is still to be drawn must come from the step before, and be wanted of
 * it. */
static pl_status check_token(const pl_model *m, int32_t token)
{
    const pl_step *before = m->n_flying ? m->flying[m->n_flying - 1] : NULL;
    int32_t n = before ? before->n_seqs : 0;
    if (token < 0 && -1 - token < n && before->seqs[-1 - token].want & PL_WANT_TOKEN)
        return PL_OK;
    if (token >= 0 && token < m->o.vocab) return PL_OK;
    return pl_fail(PL_EINVAL, "token %d, wanted 0 to %d, or one that is being drawn",
                   token, m->o.vocab - 1);
}

static pl_status check_step(const pl_model *m, const pl_step *s)
{
    if (!m->plan.kv) return pl_fail(PL_EINVAL, "the model has no KV blocks");
    if (m->n_flying >= m->device->depth)
        return pl_fail(PL_EINVAL, "%d steps are in flight", m->n_flying);
    if (s->n_rows > m->plan.max_rows || s->n_seqs > m->plan.max_seqs)
        return pl_fail(PL_EINVAL, "a step of %d rows and %d sequences, wanted %d and %d",
                       s->n_rows, s->n_seqs, m->plan.max_rows, m->plan.max_seqs);
    for (int i = 0; i < s->n_seqs; i++) PL_TRY(check_seq(m, s, i));
    for (int i = 0; i < s->n_rows; i++) PL_TRY(check_token(m, s->tokens[i]));
    return PL_OK;
}

pl_status pl_model_submit(pl_model *m, pl_step *s)
{
    PL_TRY(check_step(m, s));
    if (m->planned) {
        PL_TRY(m->device->ops->run(m->planned, s));
    } else {
        pl_step_resolve(s, m->n_flying ? m->flying[m->n_flying - 1] : NULL);
        pl_model_walk(m, s);
    }
    m->flying[m->n_flying++] = s;
    return PL_OK;
}

pl_status pl_model_collect(pl_model *m, int timeout_ms)
{
    if (!m->n_flying) return pl_fail(PL_EINVAL, "no step is in flight");
    pl_status status = m->planned ? m->device->ops->wait(m->planned, timeout_ms) : PL_OK;
    if (status == PL_EAGAIN) return status;
    m->flying[0] = m->flying[1];
    m->n_flying--;
    return status;
}
