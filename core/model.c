/* SPDX-License-Identifier: Apache-2.0
 *
 * A model being put together: its options, how its layers differ, and whether all of it
 * is there.
 */
#include "model_own.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- options -------------------------------------------------------------------- */

typedef struct bound {
    const char *name;
    int64_t value, low, high;
} bound;

static pl_status check_bounds(const bound *b, int n)
{
    for (int i = 0; i < n; i++) {
        if (b[i].value >= b[i].low && b[i].value <= b[i].high) continue;
        return pl_fail(PL_EINVAL, "%s is %lld, wanted %lld to %lld", b[i].name,
                       (long long)b[i].value, (long long)b[i].low, (long long)b[i].high);
    }
    return PL_OK;
}

static pl_status check_rope(const pl_model_options *o)
{
    if (!(o->rope_theta > 0) || !(o->norm_eps >= 0)) {
        return pl_fail(
            PL_EINVAL,
            "rope_theta is %g, wanted above 0; norm_eps is %g, wanted 0 or more",
            (double)o->rope_theta, (double)o->norm_eps);
    }
    if (o->rope_scaling != PL_ROPE_PLAIN && !(o->rope_factor > 0)) {
        return pl_fail(PL_EINVAL, "rope_factor is %g, wanted above 0",
                       (double)o->rope_factor);
    }
    if (o->rope_scaling >= PL_ROPE_LLAMA3 && o->rope_original <= 0) {
        return pl_fail(PL_EINVAL, "rope_original is %d, wanted above 0",
                       o->rope_original);
    }
    if (o->rope_scaling == PL_ROPE_LLAMA3 &&
        !(o->rope_low > 0 && o->rope_high > o->rope_low)) {
        return pl_fail(PL_EINVAL,
                       "rope_low is %g and rope_high %g, wanted 0 < low < high",
                       (double)o->rope_low, (double)o->rope_high);
    }
    return PL_OK;
}

static pl_status check_scales(const pl_model_options *o)
{
    const struct {
        const char *name;
        float value;
    } all[] = {
        {"embed_scale", o->embed_scale},
        {"rope_theta_window", o->rope_theta_window},
        {"attention_scale", o->attention_scale},
        {"attention_cap", o->attention_cap},
        {"logit_cap", o->logit_cap},
    };
    for (int i = 0; i < PL_COUNT(all); i++) {
        if (all[i].value >= 0 && all[i].value < INFINITY) continue;
        return pl_fail(PL_EINVAL, "%s is %g, wanted 0 or more", all[i].name,
                       (double)all[i].value);
    }
    if (o->post_norms && o->n_experts)
        return pl_fail(PL_EUNSUPPORTED, "post_norms is 1 with %d experts, wanted 0",
                       o->n_experts);
    return PL_OK;
}

/* Refuses by its name what the device does not compute: wrong answers would be the
 * alternative. */
static pl_status check_facts(const pl_device *device, const pl_model_options *o)
{
    const struct {
        const char *name;
        int32_t fact;
        bool asked;
    } all[] = {
        {"post_norms", PL_FACT_POST_NORMS, o->post_norms},
        {"a gelu_tanh gate", PL_FACT_GELU_TANH, o->gate == PL_GATE_GELU_TANH},
        {"embed_scale", PL_FACT_EMBED_SCALE, o->embed_scale > 0},
        {"attention_cap", PL_FACT_ATTENTION_CAP, o->attention_cap > 0},
        {"logit_cap", PL_FACT_LOGIT_CAP, o->logit_cap > 0},
        {"rope_theta_window", PL_FACT_WINDOW_ROPE, o->rope_theta_window > 0 && o->window},
        {"rope_dims", PL_FACT_ROPE_DIMS, o->rope_dims && o->rope_dims != o->head_dim},
    };
    for (int i = 0; i < PL_COUNT(all); i++) {
        if (!all[i].asked || device->ops->facts & all[i].fact) continue;
        return pl_fail(PL_EUNSUPPORTED,
                       "the model has %s, which this device (%s) does not compute; "
                       "the CPU does",
                       all[i].name, device->ops->kernels(device));
    }
    return PL_OK;
}

static pl_status check_options(const pl_model_options *o)
{
    enum {
        BIG = 1 << 20
    };
    const bound all[] = {
        {"n_layers", o->n_layers, 1, 4096},
        {"hidden", o->hidden, 1, BIG},
        {"n_heads", o->n_heads, 1, 4096},
        {"n_kv_heads", o->n_kv_heads, 1, o->n_heads},
        {"head_dim", o->head_dim, 2, 4096},
        {"ffn", o->ffn, o->n_experts ? 0 : 1, BIG},
        {"n_experts", o->n_experts, 0, 4096},
        {"n_experts_used", o->n_experts_used, o->n_experts > 0, o->n_experts},
        {"expert_ffn", o->expert_ffn, o->n_experts > 0, BIG},
        {"qkv_bias", o->qkv_bias, 0, 1},
        {"o_bias", o->o_bias, 0, 1},
        {"qk_norm", o->qk_norm, 0, 1},
        {"norm_plus_one", o->norm_plus_one, 0, 1},
        {"post_norms", o->post_norms, 0, 1},
        {"gate", o->gate, PL_GATE_SILU, PL_N_GATES - 1},
        {"window", o->window, 0, INT32_MAX},
        {"rope_dims", o->rope_dims, 0, o->head_dim},
        {"rope_order", o->rope_order, PL_ROPE_HALVES, PL_ROPE_PAIRS},
        {"rope_scaling", o->rope_scaling, PL_ROPE_PLAIN, PL_ROPE_YARN},
        {"activations", o->activations, PL_ACT_FLOAT32, PL_ACT_INT8},
        {"kv_type", o->kv_type, PL_KV_FLOAT32, PL_KV_INT16},
    };
    PL_TRY(check_bounds(all, PL_COUNT(all)));
    if (o->rope_dims % 2)
        return pl_fail(PL_EINVAL, "rope_dims is %d, wanted an even number", o->rope_dims);
    if (o->n_heads % o->n_kv_heads || o->head_dim % 2) {
        return pl_fail(PL_EINVAL, "%d heads of %d for %d KV heads do not divide",
                       o->n_heads, o->head_dim, o->n_kv_heads);
    }
    PL_TRY(check_scales(o));
    return check_rope(o);
}

static pl_status open_checks(pl_device *device, const pl_model_options *o)
{
    const bound all[] = {
        {"vocab", o->vocab, 1, 1 << 24},
        {"block_size", o->block_size, 1, 8192}, /* as far as names go */
        {"max_positions", o->max_positions, 1, 1 << 27},
    };
    PL_TRY(check_bounds(all, PL_COUNT(all)));
    PL_TRY(check_facts(device, o));
    return device->ops->matrix_open ? check_options(o) : PL_OK;
}

static const char *kv_name(const pl_model *m)
{
    return m->o.kv_type == PL_KV_INT16 ? "int16" : "float32";
}

pl_model *pl_model_open(pl_device *device, const pl_model_options *options)
{
    if (open_checks(device, options) < 0) return NULL;
    const pl_model_options *o = options;
    pl_attention a = {
        .n_heads = o->n_heads,
        .n_kv_heads = o->n_kv_heads,
        .head_dim = o->head_dim,
        .block_size = o->block_size,
        .kv_type = o->kv_type,
        .n_layers = o->n_layers,
        .rope_pairs = o->rope_order == PL_ROPE_PAIRS,
        .rope_dims = o->rope_dims ? o->rope_dims : o->head_dim,
        .norm_eps = o->norm_eps,
        .scale = o->attention_scale > 0 ? o->attention_scale
                                        : 1.0f / sqrtf((float)o->head_dim),
        .cap = o->attention_cap,
    };
    if (device->ops->kv_check(device, &a) < 0) return NULL;
    pl_model *m = pl_alloc(sizeof *m);
    m->device = device;
    m->o = *o;
    if (!pl_model_takes_weights(m)) m->o.n_layers = 0;
    m->plan.attention = a;
    m->slots = pl_alloc((size_t)(m->o.n_layers + 1) * PL_N_ROLES * sizeof *m->slots);
    m->flags = pl_alloc((size_t)(m->o.n_layers + 1) * sizeof *m->flags);
    snprintf(m->kv_layout, sizeof m->kv_layout, "%s, %d layers of %d heads of %d, %s",
             device->ops->kv_layout(device), m->o.n_layers, o->n_kv_heads, o->head_dim,
             kv_name(m));
    return m;
}

/* ---- layers that differ ---------------------------------------------------------- */

pl_status pl_model_layer(pl_model *m, int layer, int flags)
{
    if (!pl_model_takes_weights(m)) return PL_OK;
    if (layer < 0 || layer >= m->o.n_layers)
        return pl_fail(PL_EINVAL, "layer %d, wanted one of the model's %d", layer,
                       m->o.n_layers);
    if (flags & ~(PL_LAYER_DENSE | PL_LAYER_FULL))
        return pl_fail(PL_EINVAL, "flags are %d, wanted PL_LAYER_*", flags);
    if (flags & PL_LAYER_DENSE && m->o.ffn < 1)
        return pl_fail(PL_EINVAL, "ffn is %d, wanted 1 or more for layer %d", m->o.ffn,
                       layer);
    for (int role = 0; role < PL_N_ROLES; role++) {
        const pl_slot *slot = pl_model_slot(m, role, layer);
        if (slot->matrix || slot->vector || slot->experts)
            return pl_fail(PL_EINVAL, "layer %d has tensors already", layer);
    }
    m->flags[layer] = flags;
    return PL_OK;
}

bool pl_model_has_experts(const pl_model *m, int layer)
{
    return m->o.n_experts && layer >= 0 && !(m->flags[layer] & PL_LAYER_DENSE);
}

/* ---- ready ---------------------------------------------------------------------- */

/* Names only what the model's own weights bring with them: int8 activations are for
 * quantized ones, and for bf16 ones where the kernels multiply such. */
static void name_numerics(pl_model *m)
{
    int activations = m->o.activations;
    bool reduced = m->has_quantized || (m->has_bf16 && activations == PL_ACT_INT8);
    snprintf(m->numerics, sizeof m->numerics, "%s-%s",
             m->device->ops->numerics(m->device, reduced ? activations : PL_ACT_FLOAT32,
                                      m->has_bf16),
             kv_name(m));
}

pl_status pl_model_ready(pl_model *m)
{
    if (m->ready) return PL_OK;
    if (pl_model_takes_weights(m)) {
        PL_TRY(pl_model_tensors_check(m));
        pl_model_rope_fill(m);
    }
    pl_model_plan_fill(m);
    if (!m->device->ops->run) PL_TRY(pl_model_walk_open(m));
    name_numerics(m);
    m->ready = true;
    return PL_OK;
}

void pl_model_close(pl_model *m)
{
    if (!m) return;
    pl_model_kv_close(m); /* first: what the device made of the plan points to the rest */
    pl_model_tensors_close(m);
    pl_model_walk_close(m);
    pl_free(m->layers);
    pl_free(m->rope_factors);
    pl_free(m->inv_freq);
    pl_free(m->window_inv_freq);
    pl_free(m->slots);
    pl_free(m->flags);
    pl_free(m);
}

/* ---- what it is ----------------------------------------------------------------- */

int64_t pl_model_block_bytes(const pl_model *m)
{
    return (int64_t)m->device->ops->kv_bytes(m->device, &m->plan.attention);
}

const char *pl_model_numerics(const pl_model *m)
{
    return m->numerics;
}

bool pl_model_is_local(const pl_model *m)
{
    return !m->device->ops->memory;
}

const char *pl_model_kv_layout(const pl_model *m)
{
    return m->kv_layout;
}

int32_t pl_model_vocab(const pl_model *m)
{
    return m->o.vocab;
}

int32_t pl_model_block_size(const pl_model *m)
{
    return m->o.block_size;
}

int32_t pl_model_max_positions(const pl_model *m)
{
    return m->o.max_positions;
}

int32_t pl_model_depth(const pl_model *m)
{
    return m->device->depth;
}
