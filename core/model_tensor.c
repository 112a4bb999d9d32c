/* SPDX-License-Identifier: Apache-2.0
 *
 * A model's tensors: which there are, what shape each has, and how they get in.
 */
#include "model_own.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const role_names[] = {
    "embed",
    "norm",
    "head",
    "rope_freqs",
    "attn_norm",
    "q",
    "k",
    "v",
    "o",
    "q_bias",
    "k_bias",
    "v_bias",
    "o_bias",
    "q_norm",
    "k_norm",
    "ffn_norm",
    "gate",
    "up",
    "down",
    "router",
    "attn_post_norm",
    "ffn_post_norm",
    "qkv",
    "gate_up",
};

/* ---- shapes --------------------------------------------------------------------- */

typedef struct shape {
    int64_t rows, cols; /* cols 0: a vector of `rows` */
    bool experts;       /* one matrix an expert */
} shape;

static shape shape_of(const pl_model *m, int role, int layer)
{
    const pl_model_options *o = &m->o;
    int64_t q = (int64_t)o->n_heads * o->head_dim,
            kv = (int64_t)o->n_kv_heads * o->head_dim;
    bool moe = pl_model_has_experts(m, layer);
    int64_t ffn = moe ? o->expert_ffn : o->ffn;
    switch (role) {
    case PL_ROLE_EMBED:
    case PL_ROLE_HEAD:
        return (shape){o->vocab, o->hidden, false};
    case PL_ROLE_ROPE_FREQS:
        return (shape){m->plan.attention.rope_dims / 2, 0, false};
    case PL_ROLE_Q:
        return (shape){q, o->hidden, false};
    case PL_ROLE_K:
    case PL_ROLE_V:
        return (shape){kv, o->hidden, false};
    case PL_ROLE_O:
        return (shape){o->hidden, q, false};
    case PL_ROLE_Q_BIAS:
        return (shape){q, 0, false};
    case PL_ROLE_K_BIAS:
    case PL_ROLE_V_BIAS:
        return (shape){kv, 0, false};
    case PL_ROLE_Q_NORM:
    case PL_ROLE_K_NORM:
        return (shape){o->head_dim, 0, false};
    case PL_ROLE_GATE:
    case PL_ROLE_UP:
        return (shape){ffn, o->hidden, moe};
    case PL_ROLE_DOWN:
        return (shape){o->hidden, ffn, moe};
    case PL_ROLE_ROUTER:
        return (shape){moe ? o->n_experts : 0, o->hidden, false};
    default:
        return (shape){o->hidden, 0, false};
    }
}

/* Whether the model cannot be without it. */
static bool needed(const pl_model *m, int role, int layer)
{
    const pl_model_options *o = &m->o;
    switch (role) {
    case PL_ROLE_HEAD:
        return !o->tied;
    case PL_ROLE_ROPE_FREQS:
        return false;
    case PL_ROLE_Q_BIAS:
    case PL_ROLE_K_BIAS:
    case PL_ROLE_V_BIAS:
        return o->qkv_bias;
    case PL_ROLE_O_BIAS:
        return o->o_bias;
    case PL_ROLE_Q_NORM:
    case PL_ROLE_K_NORM:
        return o->qk_norm;
    case PL_ROLE_ATTN_POST_NORM:
    case PL_ROLE_FFN_POST_NORM:
        return o->post_norms;
    case PL_ROLE_ROUTER:
        return pl_model_has_experts(m, layer);
    default:
        return true;
    }
}

static bool in_layer(int role)
{
    return role > PL_ROLE_ROPE_FREQS;
}

/* ---- tensors -------------------------------------------------------------------- */

static float float_at(int type, const void *data, int64_t i)
{
    float value;
    uint16_t half;
    if (type == PL_F32) {
        memcpy(&value, (const char *)data + i * 4, 4);
        return value;
    }
    memcpy(&half, (const char *)data + i * 2, 2);
    if (type == PL_F16) return pl_f32_from_f16(half);
    uint32_t bits = (uint32_t)half << 16;
    memcpy(&value, &bits, 4);
    return value;
}

static bool is_norm(int role)
{
    return role == PL_ROLE_NORM || role == PL_ROLE_ATTN_NORM || role == PL_ROLE_Q_NORM ||
           role == PL_ROLE_K_NORM || role == PL_ROLE_FFN_NORM ||
           role == PL_ROLE_ATTN_POST_NORM || role == PL_ROLE_FFN_POST_NORM;
}

static pl_status put_vector(pl_model *m, int role, int layer, int type, int64_t n,
                            const void *data)
{
    if (type > PL_BF16) return pl_fail(PL_EUNSUPPORTED, "a vector of type %d", type);
    pl_slot *slot = pl_model_slot(m, role, layer);
    float *host = pl_alloc((size_t)n * sizeof *host);
    float more = m->o.norm_plus_one && is_norm(role) ? 1.0f : 0.0f;
    for (int64_t i = 0; i < n; i++) host[i] = float_at(type, data, i) + more;
    size_t bytes = (size_t)n * sizeof *host;
    slot->vector = m->device->ops->alloc(m->device, bytes);
    if (slot->vector) m->device->ops->write(m->device, slot->vector, host, bytes);
    if (role == PL_ROLE_ROPE_FREQS)
        m->rope_factors = host;
    else
        pl_free(host);
    return slot->vector ? PL_OK : pl_fail(PL_ENOMEM, "no %zu bytes on the device", bytes);
}

static pl_status put_matrix(pl_model *m, pl_matrix **to, int role, int layer, int type,
                            const void *data)
{
    shape s = shape_of(m, role, layer);
    m->has_bf16 |= type == PL_BF16;
    m->has_quantized |= type > PL_BF16;
    return m->device->ops->matrix_open(m->device, type, s.rows, s.cols, data, to);
}

/* "tensor 'x' (layer 3 gate)", for messages; one at a time a thread. */
static const char *spell(int role, int layer, const pl_tensor *t)
{
    static _Thread_local char text[256];
    const char *name = t && t->name ? t->name : "";
    if (layer < 0) {
        snprintf(text, sizeof text, "tensor '%.160s' (%s)", name, role_names[role]);
    } else {
        snprintf(text, sizeof text, "tensor '%.160s' (layer %d %s)", name, layer,
                 role_names[role]);
    }
    return text;
}

static const char *spell_dims(const int64_t *dims, int n)
{
    static _Thread_local char text[128];
    size_t at = 0;
    for (int i = 0; i < n && at < sizeof text; i++) {
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%lld", i ? " x " : "",
                               (long long)dims[i]);
    }
    return text;
}

static pl_status check_place(const pl_model *m, int role, int layer, int e)
{
    if (!pl_model_takes_weights(m))
        return pl_fail(PL_EINVAL, "this device takes no tensors");
    if (m->ready)
        return pl_fail(PL_EINVAL, "the model is ready, it takes no more tensors");
    if (role < 0 || role >= PL_N_ROLES)
        return pl_fail(PL_EINVAL, "role %d is unknown", role);
    if (in_layer(role) ? layer < 0 || layer >= m->o.n_layers : layer != -1) {
        return pl_fail(PL_EINVAL, "layer %d for %s, wanted %s", layer, role_names[role],
                       in_layer(role) ? "one of the model's" : "-1");
    }
    if (role == PL_ROLE_HEAD && m->o.tied) {
        return pl_fail(PL_EINVAL, "a head for a model whose head is the embedding");
    }
    shape s = shape_of(m, role, layer);
    if (s.experts ? e < -1 || e >= m->o.n_experts : e != -1) {
        return pl_fail(PL_EINVAL, "expert %d for %s of a model with %d", e,
                       role_names[role], m->o.n_experts);
    }
    if (!s.rows)
        return pl_fail(PL_EINVAL, "%s for a layer without experts", role_names[role]);
    if (role != PL_ROLE_ROPE_FREQS && !needed(m, role, layer))
        return pl_fail(PL_EINVAL, "%s for a model without", role_names[role]);
    return PL_OK;
}

/* Whether a tensor has these dimensions, and as many bytes as they take. */
static pl_status check_shape(int role, int layer, const pl_tensor *t, const int64_t *dims,
                             int n)
{
    bool same = t->n_dims == n;
    for (int i = 0; same && i < n; i++) same = t->dims[i] == dims[i];
    if (!same) {
        char got[128];
        snprintf(got, sizeof got, "%s",
                 spell_dims(t->dims, PL_MIN(PL_MAX(t->n_dims, 0), 4)));
        return pl_fail(PL_EFORMAT, "%s is %s, wanted %s", spell(role, layer, t), got,
                       spell_dims(dims, n));
    }
    int64_t rows = 1;
    for (int i = 0; i < n - 1; i++) rows *= dims[i];
    size_t row = pl_type_bytes(t->type, dims[n - 1]);
    if (t->type == PL_I32 || !row || !t->data) {
        return pl_fail(PL_EUNSUPPORTED, "%s is of type %d, not one for such a shape",
                       spell(role, layer, t), t->type);
    }
    if (t->bytes != (int64_t)row * rows) {
        return pl_fail(PL_EFORMAT, "%s has %lld bytes, wanted %lld",
                       spell(role, layer, t), (long long)t->bytes,
                       (long long)((int64_t)row * rows));
    }
    return PL_OK;
}

static pl_status check_tensor(const pl_model *m, int role, int layer, int e,
                              const pl_tensor *t)
{
    shape s = shape_of(m, role, layer);
    int64_t want[3] = {m->o.n_experts, s.rows, s.cols};
    bool stacked = s.experts && e < 0;
    return check_shape(role, layer, t, want + !stacked, (s.cols ? 2 : 1) + stacked);
}

static pl_status put_expert(pl_model *m, int role, int layer, int e, int type,
                            const void *data)
{
    pl_slot *slot = pl_model_slot(m, role, layer);
    if (!slot->experts) {
        slot->experts = pl_alloc((size_t)m->o.n_experts * sizeof(pl_matrix *));
    }
    if (slot->experts[e]) {
        return pl_fail(PL_EINVAL, "%s of layer %d: expert %d was given before",
                       role_names[role], layer, e);
    }
    return put_matrix(m, slot->experts + e, role, layer, type, data);
}

static pl_status put_tensor(pl_model *m, int role, int layer, int e, int type,
                            const void *data)
{
    pl_slot *slot = pl_model_slot(m, role, layer);
    shape s = shape_of(m, role, layer);
    if (slot->matrix || slot->vector) {
        return pl_fail(PL_EINVAL, "%s of layer %d was given before", role_names[role],
                       layer);
    }
    if (!s.cols) return put_vector(m, role, layer, type, s.rows, data);
    if (!s.experts) return put_matrix(m, &slot->matrix, role, layer, type, data);
    if (e >= 0) return put_expert(m, role, layer, e, type, data);
    size_t bytes = pl_type_bytes(type, s.cols) * (size_t)s.rows;
    for (int i = 0; i < m->o.n_experts; i++) {
        PL_TRY(
            put_expert(m, role, layer, i, type, (const char *)data + (size_t)i * bytes));
    }
    return PL_OK;
}

static pl_status take(pl_model *m, int role, int layer, int e, const pl_tensor *t)
{
    PL_TRY(check_place(m, role, layer, e));
    PL_TRY(check_tensor(m, role, layer, e, t));
    return put_tensor(m, role, layer, e, t->type, t->data);
}

/* ---- on the way in --------------------------------------------------------------- */

/* What files keep otherwise than the model wants it changes here and in put_vector, which
 * gives norms their 1 back: tensors that hold the rows of several are split. */
typedef struct fused {
    int role, n, parts[3];
} fused;

static const fused fusions[] = {
    {PL_ROLE_QKV, 3, {PL_ROLE_Q, PL_ROLE_K, PL_ROLE_V}},
    {PL_ROLE_GATE_UP, 2, {PL_ROLE_GATE, PL_ROLE_UP}},
};

static pl_status check_fused(const pl_model *m, const fused *f, int layer, int e,
                             const pl_tensor *t)
{
    int64_t wanted[2] = {0, m->o.hidden};
    for (int i = 0; i < f->n; i++) {
        PL_TRY(check_place(m, f->parts[i], layer, e));
        shape s = shape_of(m, f->parts[i], layer);
        if (s.experts)
            return pl_fail(PL_EUNSUPPORTED, "%s for a layer with experts",
                           role_names[f->role]);
        wanted[0] += s.rows;
    }
    return check_shape(f->role, layer, t, wanted, 2);
}

static pl_status split(pl_model *m, const fused *f, int layer, int e, const pl_tensor *t)
{
    PL_TRY(check_fused(m, f, layer, e, t));
    const char *data = t->data;
    for (int i = 0; i < f->n; i++) {
        pl_tensor part = *t;
        part.dims[0] = shape_of(m, f->parts[i], layer).rows;
        part.bytes = (int64_t)pl_type_bytes(t->type, t->dims[1]) * part.dims[0];
        part.data = data;
        data += part.bytes;
        PL_TRY(take(m, f->parts[i], layer, e, &part));
    }
    return PL_OK;
}

pl_status pl_model_tensor(pl_model *m, int role, int layer, int e,
                          const pl_tensor *tensor)
{
    for (int i = 0; i < PL_COUNT(fusions); i++)
        if (fusions[i].role == role) return split(m, &fusions[i], layer, e, tensor);
    return take(m, role, layer, e, tensor);
}

/* ---- made up weights ------------------------------------------------------------ */

/* Values whose squares' mean is 1 / columns: what goes through keeps its size. Q8_0 where
 * the model quantizes activations, else bf16. */
static void *dummy_data(const pl_model *m, shape s, uint64_t lane, int *type)
{
    bool q8 = m->o.activations != PL_ACT_FLOAT32 && s.cols % 32 == 0;
    *type = q8 ? PL_Q8_0 : PL_BF16;
    size_t bytes = pl_type_bytes(*type, s.cols) * (size_t)s.rows;
    char *data = pl_alloc(bytes + 8);
    uint64_t state = pl_random_at(m->o.dummy_seed, 0, lane);
    float spread = sqrtf(3.0f / (float)s.cols);
    for (size_t i = 0; i < bytes; i += q8 ? 34 : 2) {
        uint16_t head = pl_f16_from_f32(spread / 127.0f);
        for (int b = 0; q8 && b < 32; b += 8) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            uint64_t mixed = state ^ state >> 29;
            memcpy(data + i + 2 + b, &mixed, 8);
        }
        if (!q8) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            float v = spread * ((float)(state >> 40) * 0x1p-23f - 1.0f);
            uint32_t bits;
            memcpy(&bits, &v, 4);
            head = (uint16_t)(bits >> 16);
        }
        memcpy(data + i, &head, 2);
    }
    return data;
}

static pl_status dummy_vector(pl_model *m, int role, int layer, int64_t n)
{
    float value = is_norm(role) ? 1.0f - (float)m->o.norm_plus_one : 0.01f;
    float *data = pl_alloc((size_t)n * sizeof *data);
    for (int64_t i = 0; i < n; i++) data[i] = value;
    pl_status s = put_tensor(m, role, layer, -1, PL_F32, data);
    pl_free(data);
    return s;
}

static pl_status dummy_slot(pl_model *m, int role, int layer)
{
    pl_slot *slot = pl_model_slot(m, role, layer);
    shape s = shape_of(m, role, layer);
    if (slot->matrix || slot->vector || !needed(m, role, layer)) return PL_OK;
    if (!s.cols) return dummy_vector(m, role, layer, s.rows);
    for (int e = 0; e < (s.experts ? m->o.n_experts : 1); e++) {
        if (slot->experts && slot->experts[e]) continue;
        int type;
        uint64_t lane =
            ((uint64_t)(layer + 1) * PL_N_ROLES + (uint64_t)role) << 16 | (uint64_t)e;
        void *data = dummy_data(m, s, lane, &type);
        pl_status status = put_tensor(m, role, layer, s.experts ? e : -1, type, data);
        pl_free(data);
        PL_TRY(status);
    }
    return PL_OK;
}

pl_status pl_model_dummy(pl_model *m)
{
    if (!pl_model_takes_weights(m)) return PL_OK;
    if (m->ready)
        return pl_fail(PL_EINVAL, "the model is ready, it takes no more tensors");
    for (int layer = -1; layer < m->o.n_layers; layer++) {
        for (int role = 0; role < PL_N_ROLES; role++) {
            if (in_layer(role) == (layer >= 0)) PL_TRY(dummy_slot(m, role, layer));
        }
    }
    return PL_OK;
}

/* ---- all of them ---------------------------------------------------------------- */

static pl_status check_slot(const pl_model *m, int role, int layer)
{
    const pl_slot *slot = pl_model_slot(m, role, layer);
    bool experts = shape_of(m, role, layer).experts;
    if (!needed(m, role, layer)) return PL_OK;
    for (int e = 0; experts && slot->experts && e < m->o.n_experts; e++) {
        if (!slot->experts[e]) {
            return pl_fail(PL_EFORMAT, "%s of layer %d has no expert %d",
                           role_names[role], layer, e);
        }
    }
    if (slot->matrix || slot->vector || slot->experts) return PL_OK;
    if (layer < 0) return pl_fail(PL_EFORMAT, "the model has no %s", role_names[role]);
    return pl_fail(PL_EFORMAT, "layer %d has no %s", layer, role_names[role]);
}

pl_status pl_model_tensors_check(const pl_model *m)
{
    for (int layer = -1; layer < m->o.n_layers; layer++) {
        for (int role = 0; role < PL_N_ROLES; role++) {
            if (in_layer(role) == (layer >= 0)) PL_TRY(check_slot(m, role, layer));
        }
    }
    return PL_OK;
}

static void close_slot(pl_model *m, int role, int layer)
{
    const pl_device_ops *ops = m->device->ops;
    pl_slot *slot = pl_model_slot(m, role, layer);
    size_t bytes = (size_t)shape_of(m, role, layer).rows * sizeof(float);
    if (slot->matrix) ops->matrix_close(m->device, slot->matrix);
    for (int e = 0; slot->experts && e < m->o.n_experts; e++) {
        if (slot->experts[e]) ops->matrix_close(m->device, slot->experts[e]);
    }
    pl_free(slot->experts);
    if (slot->vector) ops->free(m->device, slot->vector, bytes);
}

void pl_model_tensors_close(pl_model *m)
{
    for (int i = 0; i < (m->o.n_layers + 1) * PL_N_ROLES; i++) {
        close_slot(m, i % PL_N_ROLES, i / PL_N_ROLES - 1);
    }
}

int64_t pl_model_weight_bytes(const pl_model *m)
{
    const pl_device_ops *ops = m->device->ops;
    int64_t bytes = 0;
    for (int i = 0; i < (m->o.n_layers + 1) * PL_N_ROLES; i++) {
        const pl_slot *slot = m->slots + i;
        if (slot->matrix) bytes += (int64_t)ops->matrix_bytes(slot->matrix);
        if (slot->vector)
            bytes += shape_of(m, i % PL_N_ROLES, i / PL_N_ROLES - 1).rows *
                     (int64_t)sizeof(float);
        for (int e = 0; slot->experts && e < m->o.n_experts; e++) {
            if (slot->experts[e]) bytes += (int64_t)ops->matrix_bytes(slot->experts[e]);
        }
    }
    return bytes;
}
