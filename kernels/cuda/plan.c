/* SPDX-License-Identifier: Apache-2.0
 *
 * What the CUDA device makes of a plan: its buffers, and the walk through the layers.
 */
#include "cuda_own.h"

#include <string.h>

/* The one rule for the order of K: models whose layers are streamed in a few microseconds
 * have slices of 256, that a few rows' sums are not one long chain; larger ones have one
 * chain. The numerics id names it. */
static int32_t slice_of(const pl_plan *plan)
{
    return plan->hidden <= 2048 ? 256 : 0;
}

/* ---- buffers --------------------------------------------------------------------- */

void *pl_cuda_own(pl_planned *p, size_t bytes)
{
    void *m = p->cuda->base.ops->alloc(&p->cuda->base, bytes);
    if (!m) return NULL;
    p->owned = pl_realloc(p->owned, (size_t)(p->n_owned + 1) * sizeof *p->owned);
    return p->owned[p->n_owned++] = m;
}

static size_t product(int64_t a, int64_t b, size_t size)
{
    return (size_t)a * (size_t)b * size;
}

static bool own_acts(pl_planned *p, pl_cu_acts *a, int64_t rows, int32_t k)
{
    size_t bytes = product(rows, pl_cu_tiles(k) * 16, sizeof(uint16_t));
    if (p->bf16) a->bf16 = pl_cuda_own(p, bytes);
    if (p->f16) a->f16 = pl_cuda_own(p, bytes);
    return (!p->bf16 || a->bf16) && (!p->f16 || a->f16);
}

static bool own_experts(pl_planned *p, int64_t rows, const pl_experts *e)
{
    int64_t slots = rows * e->n_used;
    p->router = pl_cuda_own(p, product(rows, e->n, sizeof(float)));
    p->weights = pl_cuda_own(p, product(slots, 1, sizeof(float)));
    p->chosen = pl_cuda_own(p, product(slots, 1, sizeof(int32_t)));
    p->order = pl_cuda_own(p, product(slots, 1, sizeof(int32_t)));
    p->tiles = pl_cuda_own(p, product(slots + e->n, 1, sizeof *p->tiles));
    p->said = pl_cuda_own(p, product(slots, e->hidden, sizeof(float)));
    p->ffn = pl_cuda_own(p, product(slots, 2 * e->ffn, sizeof(float)));
    return p->router && p->weights && p->chosen && p->order && p->tiles && p->said &&
           p->ffn && own_acts(p, &p->gated, slots, e->ffn);
}

static bool own_rows(pl_planned *p)
{
    const pl_plan *plan = p->plan;
    const pl_attention *a = &plan->attention;
    const pl_experts *e = &plan->layers[0].experts;
    int64_t n = plan->max_rows,
            wide = (int64_t)(a->n_heads + 2 * a->n_kv_heads) * a->head_dim;
    int32_t logits = PL_MIN(plan->max_rows, PL_CU_LOGIT_ROWS);
    p->x = pl_cuda_own(p, product(n, plan->hidden, sizeof(float)));
    p->qkv = pl_cuda_own(p, product(n, wide, sizeof(float)));
    p->q = pl_cuda_own(
        p, product(n * a->n_heads, pl_cu_head_width(a->head_dim), sizeof *p->q));
    p->logits = pl_cuda_own(p, product(logits, plan->vocab, sizeof(float)));
    p->edited = pl_cuda_own(p, product(logits, plan->vocab, sizeof(float)));
    p->rope = pl_cuda_own(p, product(plan->max_positions, a->head_dim, sizeof(float)));
    p->partial = pl_cuda_own(
        p, product(PL_CU_PARTIALS, pl_cu_partial(a->head_dim), sizeof(float)));
    p->counts = pl_cuda_own(p, product(plan->max_seqs, a->n_kv_heads, sizeof *p->counts));
    if (!p->x || !p->qkv || !p->q || !p->logits || !p->edited || !p->rope ||
        !p->partial || !p->counts)
        return false;
    if (!own_acts(p, &p->normed, n, plan->hidden) ||
        !own_acts(p, &p->attended, n, a->n_heads * a->head_dim) ||
        !own_acts(p, &p->picked, logits, plan->hidden))
        return false;
    if (e->n) return own_experts(p, n, e);
    p->ffn = pl_cuda_own(p, product(n, 2 * plan->ffn, sizeof(float)));
    return p->ffn && own_acts(p, &p->gated, n, plan->ffn);
}

static bool own_flights(pl_planned *p)
{
    size_t seqs = (size_t)p->plan->max_seqs;
    p->tops = pl_cuda_own(p, seqs * sizeof *p->tops);
    if (!p->tops) return false;
    for (int i = 0; i < 2; i++) {
        pl_cu_flight *f = &p->flights[i];
        f->draws = pl_alloc((size_t)p->plan->max_rows * sizeof *f->draws);
        f->drawn = pl_cuda_own(p, seqs * sizeof *f->drawn);
        if (!f->drawn ||
            cudaMallocHost((void **)&f->drawn_host, seqs * sizeof *f->drawn) ||
            cudaMallocHost((void **)&f->tops_host, seqs * sizeof *p->tops) ||
            cudaEventCreateWithFlags(&f->over, cudaEventDisableTiming))
            return false;
    }
    size_t rows = (size_t)PL_MIN(p->plan->max_rows, PL_CU_LOGIT_ROWS);
    p->scratch = pl_sample_scratch_open(p->plan->vocab);
    return !cudaMallocHost((void **)&p->host_logits,
                           rows * (size_t)p->plan->vocab * sizeof(float));
}

pl_status pl_cuda_meta(pl_planned *p, int64_t n)
{
    if (n <= p->meta_cap) return PL_OK;
    int64_t cap = PL_MIN(2 * n, INT32_MAX);
    cudaError_t e = cudaStreamSynchronize(p->cuda->stream);
    cudaFree(p->meta);
    p->meta = NULL;
    p->meta_cap = 0;
    if (!e) e = cudaMalloc((void **)&p->meta, (size_t)cap * sizeof *p->meta);
    for (int i = 0; i < 2; i++) {
        pl_cu_flight *f = &p->flights[i];
        cudaFreeHost(f->meta);
        f->meta = NULL;
        if (!e) e = cudaMallocHost((void **)&f->meta, (size_t)cap * sizeof *f->meta);
    }
    PL_TRY(pl_cuda_failed(e, "memory for a step"));
    p->meta_cap = (int32_t)cap;
    return PL_OK;
}

/* ---- the plan -------------------------------------------------------------------- */

static void note_type(pl_planned *p, const pl_matrix *m)
{
    if (m) *(m->w.f16 ? &p->f16 : &p->bf16) = true;
}

static void note_types(pl_planned *p)
{
    note_type(p, p->plan->head);
    for (int i = 0; i < p->plan->n_layers; i++) {
        const pl_layer *l = &p->plan->layers[i];
        const pl_experts *e = &l->experts;
        const pl_matrix *all[] = {l->q,    l->k,  l->v,    l->o,
                                  l->gate, l->up, l->down, e->router};
        for (int k = 0; k < PL_COUNT(all); k++) note_type(p, all[k]);
        for (int k = 0; k < e->n; k++) {
            note_type(p, e->gate[k]);
            note_type(p, e->up[k]);
            note_type(p, e->down[k]);
        }
    }
}

/* The experts' weights as an array on the GPU. */
static pl_status expert_table(pl_planned *p, pl_matrix *const *experts, int32_t n,
                              const void ***out)
{
    const void **all = pl_alloc((size_t)n * sizeof *all);
    bool same = true;
    for (int32_t i = 0; i < n; i++) {
        all[i] = experts[i]->w.data;
        same = same && experts[i]->w.f16 == experts[0]->w.f16;
    }
    *out = pl_cuda_own(p, (size_t)n * sizeof *all);
    if (*out)
        p->cuda->base.ops->write(&p->cuda->base, *out, all, (size_t)n * sizeof *all);
    pl_free(all);
    if (!same)
        return pl_fail(PL_EUNSUPPORTED, "experts of a layer differ in their types");
    return *out ? PL_OK : pl_fail(PL_ENOMEM, "no memory for experts on the GPU");
}

static pl_status prepare_experts(pl_planned *p)
{
    p->layers = pl_alloc((size_t)p->plan->n_layers * sizeof *p->layers);
    for (int i = 0; i < p->plan->n_layers; i++) {
        const pl_experts *e = &p->plan->layers[i].experts;
        if (!e->n) continue;
        PL_TRY(expert_table(p, e->gate, e->n, &p->layers[i].gate));
        PL_TRY(expert_table(p, e->up, e->n, &p->layers[i].up));
        PL_TRY(expert_table(p, e->down, e->n, &p->layers[i].down));
    }
    return PL_OK;
}

static pl_status prepare_rope(pl_planned *p)
{
    const pl_plan *plan = p->plan;
    int half = plan->attention.head_dim / 2;
    double *inv = pl_cuda_own(p, (size_t)half * sizeof *inv);
    if (!inv) return pl_fail(PL_ENOMEM, "no memory on the GPU");
    p->cuda->base.ops->write(&p->cuda->base, inv, plan->inv_freq,
                             (size_t)half * sizeof *inv);
    pl_cu_rope(p->cuda->stream, p->rope, inv, plan->rope_scale, half,
               plan->max_positions);
    return pl_cuda_failed(cudaStreamSynchronize(p->cuda->stream), "rope");
}

static pl_status fill(pl_planned *p)
{
    note_types(p);
    p->slice = slice_of(p->plan);
    pl_cuda_graphs_open(p);
    if (!own_rows(p) || !own_flights(p)) {
        cudaGetLastError();
        return pl_fail(PL_ENOMEM,
                       "no memory on the GPU for steps of %d tokens: lower "
                       "max_num_batched_tokens or kv_cache_memory_bytes",
                       p->plan->max_rows);
    }
    PL_TRY(prepare_experts(p));
    PL_TRY(pl_cuda_decode_open(p));
    return prepare_rope(p);
}

pl_status pl_cuda_prepare(pl_device *d, const pl_plan *plan, pl_planned **out)
{
    pl_planned *p = pl_alloc(sizeof *p);
    p->cuda = (pl_cuda *)d;
    p->plan = plan;
    pl_status s = fill(p);
    if (s < 0) {
        pl_cuda_discard(p);
        return s;
    }
    *out = p;
    return PL_OK;
}

void pl_cuda_discard(pl_planned *p)
{
    cudaStreamSynchronize(p->cuda->stream);
    pl_cuda_graphs_close(p);
    for (int i = 0; i < p->n_owned; i++) cudaFree(p->owned[i]);
    for (int i = 0; i < 2; i++) {
        pl_cu_flight *f = &p->flights[i];
        pl_free(f->draws);
        cudaFreeHost(f->drawn_host);
        cudaFreeHost(f->tops_host);
        cudaFreeHost(f->meta);
        if (f->over) cudaEventDestroy(f->over);
    }
    cudaFree(p->meta);
    cudaFreeHost(p->host_logits);
    pl_sample_scratch_close(p->scratch);
    pl_free(p->owned);
    pl_free(p->decoder);
    pl_free(p->layers);
    pl_free(p);
}

/* ---- the layers ------------------------------------------------------------------ */

static pl_cu_part part_of(const pl_matrix *m, const float *bias, float *out,
                          int32_t stride, bool add)
{
    return (pl_cu_part){m->w.data, bias, out, m->w.n, stride, add};
}

/* What matrices multiply: rows in 16 bits. `norm`: of p->x by these weights, which is
 * done by the products themselves where rows are few. */
typedef struct input {
    pl_cu_acts x;
    int32_t n_rows;
    const float *norm;
    pl_cu_acts
        gated; /* not NULL: where silu of the first product times the second goes */
} input;

static bool is_fused(const pl_planned *p, int32_t n_rows)
{
    return p->slice && n_rows <= PL_CU_FUSED; /* a hidden size that has room in a CTA */
}

static pl_status normed(pl_planned *p, int32_t n_rows, const float *norm, input *out)
{
    const pl_plan *plan = p->plan;
    *out = (input){.x = p->normed, .n_rows = n_rows};
    if (is_fused(p, n_rows)) {
        out->norm = norm;
        return PL_OK;
    }
    return pl_cuda_failed(pl_cu_norm(p->cuda->stream, p->x, NULL, n_rows, plan->hidden,
                                     norm, plan->norm_eps, p->normed),
                          "norm");
}

/* Some matrices' products with the same rows; those of one type together. */
static pl_status multiply(pl_planned *p, const pl_matrix *const *m,
                          const pl_cu_part *parts, int n, const input *in,
                          const char *what)
{
    for (int at = 0; at < n;) {
        pl_cu_gemm g = {.f16 = m[at]->w.f16,
                        .x = m[at]->w.f16 ? in->x.f16 : in->x.bf16,
                        .n_rows = in->n_rows,
                        .k = m[at]->w.k,
                        .slice = p->slice,
                        .unnormed = in->norm ? p->x : NULL,
                        .norm = in->norm,
                        .eps = p->plan->norm_eps,
                        .gated = in->gated};
        while (at < n && m[at]->w.f16 == g.f16) g.parts[g.n_parts++] = parts[at++];
        PL_TRY(pl_cuda_failed(pl_cu_multiply(p->cuda->stream, &g), what));
    }
    return PL_OK;
}

pl_cu_attention pl_cuda_attention(const pl_planned *p, const pl_cu_shape *s, int layer)
{
    const pl_attention *a = &p->plan->attention;
    const pl_layer *l = &p->plan->layers[layer];
    return (pl_cu_attention){
        .rows = s->rows,
        .tables = s->tables,
        .n_rows = s->n_rows,
        .n_heads = a->n_heads,
        .n_kv_heads = a->n_kv_heads,
        .head_dim = a->head_dim,
        .block_size = a->block_size,
        .layer = layer,
        .n_layers = a->n_layers,
        .window = l->window,
        .pairs = a->rope_pairs,
        .eps = a->norm_eps,
        .scale = a->scale,
        .rope = p->rope,
        .q_norm = l->q_norm,
        .k_norm = l->k_norm,
        .qkv = p->qkv,
        .q = p->q,
        .kv = (uint16_t *)p->plan->kv,
        .partial = p->partial,
        .counts = p->counts,
    };
}

static pl_status attend(pl_planned *p, const pl_cu_shape *s, int layer)
{
    const pl_layer *l = &p->plan->layers[layer];
    cudaStream_t stream = p->cuda->stream;
    pl_cu_attention a = pl_cuda_attention(p, s, layer);
    int32_t q = a.n_heads * a.head_dim, kv = a.n_kv_heads * a.head_dim, all = q + 2 * kv;
    const pl_matrix *m[3] = {l->q, l->k, l->v};
    pl_cu_part parts[3] = {part_of(l->q, l->q_bias, p->qkv, all, false),
                           part_of(l->k, l->k_bias, p->qkv + q, all, false),
                           part_of(l->v, l->v_bias, p->qkv + q + kv, all, false)};
    input x, attended = {.x = p->attended, .n_rows = s->n_rows};
    PL_TRY(normed(p, s->n_rows, l->attn_norm, &x));
    PL_TRY(multiply(p, m, parts, 3, &x, "q, k, v"));
    PL_TRY(pl_cuda_failed(pl_cu_heads(stream, &a), "heads"));
    if (s->n_many)
        PL_TRY(pl_cuda_failed(
            pl_cu_attend_many(stream, &a, s->many, s->n_many, p->attended), "attention"));
    if (s->n_walks)
        PL_TRY(pl_cuda_failed(
            pl_cu_attend_walk(stream, &a, s->walks, s->n_walks, p->attended),
            "attention"));
    if (s->n_few)
        PL_TRY(pl_cuda_failed(
            pl_cu_attend_few(stream, &a, s->few, s->n_few, s->splits, p->attended),
            "attention by splits"));
    pl_cu_part o = part_of(l->o, l->o_bias, p->x, p->plan->hidden, true);
    return multiply(p, &l->o, &o, 1, &attended, "o");
}

static pl_status dense(pl_planned *p, const pl_cu_shape *s, const pl_layer *l)
{
    int32_t ffn = p->plan->ffn;
    const pl_matrix *m[2] = {l->gate, l->up};
    pl_cu_part parts[2] = {part_of(l->gate, NULL, p->ffn, 2 * ffn, false),
                           part_of(l->up, NULL, p->ffn + ffn, 2 * ffn, false)};
    bool gated = pl_cu_gates(s->n_rows) && l->gate->w.f16 == l->up->w.f16;
    input x, gates = {.x = p->gated, .n_rows = s->n_rows};
    PL_TRY(normed(p, s->n_rows, l->ffn_norm, &x));
    if (gated) x.gated = p->gated;
    PL_TRY(multiply(p, m, parts, 2, &x, "gate and up"));
    if (!gated)
        PL_TRY(pl_cuda_failed(pl_cu_gate(p->cuda->stream, p->ffn, p->ffn + ffn, 2 * ffn,
                                         s->n_rows, ffn, p->gated),
                              "gate"));
    pl_cu_part down = part_of(l->down, NULL, p->x, p->plan->hidden, true);
    return multiply(p, &l->down, &down, 1, &gates, "down");
}

/* Experts' products: rows by expert, the results by slot (row * n_used + choice). */
static pl_status multiply_experts(pl_planned *p, const pl_cu_moe *c, const pl_matrix *m,
                                  const void **const *w, float *const *out, int n,
                                  int32_t stride, pl_cu_acts x, int32_t share)
{
    pl_cu_gemm g = {.n_parts = n,
                    .f16 = m->w.f16,
                    .x = m->w.f16 ? x.f16 : x.bf16,
                    .n_rows = c->n_rows,
                    .k = m->w.k,
                    .slice = p->slice,
                    .tiles = c->tiles,
                    .order = c->order,
                    .n_tiles = c->n_tiles,
                    .tile_rows = c->tile_rows,
                    .share = share};
    for (int i = 0; i < n; i++)
        g.parts[i] =
            (pl_cu_part){(const void *)w[i], NULL, out[i], m->w.n, stride, false};
    return pl_cuda_failed(pl_cu_multiply(p->cuda->stream, &g), "experts");
}

static pl_cu_moe moe_of(const pl_planned *p, const pl_experts *e, int32_t n_rows)
{
    int32_t slots = n_rows * e->n_used, each = slots / e->n > 8 ? 32 : 8;
    return (pl_cu_moe){.logits = p->router,
                       .n_rows = n_rows,
                       .n = e->n,
                       .n_used = e->n_used,
                       .renormalize = e->renormalize,
                       .tile_rows = each,
                       .weights = p->weights,
                       .chosen = p->chosen,
                       .order = p->order,
                       .tiles = p->tiles,
                       .n_tiles = PL_MIN(slots, slots / each + e->n)};
}

static pl_status experts(pl_planned *p, const pl_cu_shape *s, const pl_layer *l,
                         const pl_cu_layer *own_layer)
{
    const pl_experts *e = &l->experts;
    cudaStream_t stream = p->cuda->stream;
    pl_cu_moe c = moe_of(p, e, s->n_rows);
    pl_cu_part router = part_of(e->router, NULL, p->router, e->n, false);
    input x = {.x = p->normed, .n_rows = s->n_rows};
    PL_TRY(pl_cuda_failed(pl_cu_norm(stream, p->x, NULL, s->n_rows, p->plan->hidden,
                                     l->ffn_norm, p->plan->norm_eps, p->normed),
                          "norm"));
    PL_TRY(multiply(p, &e->router, &router, 1, &x, "router"));
    PL_TRY(pl_cuda_failed(pl_cu_choose(stream, &c), "experts' choice"));
    float *up = p->ffn + (size_t)s->n_rows * (size_t)e->n_used * (size_t)e->ffn;
    PL_TRY(multiply_experts(p, &c, e->gate[0], &own_layer->gate, &p->ffn, 1, e->ffn,
                            p->normed, e->n_used));
    PL_TRY(multiply_experts(p, &c, e->up[0], &own_layer->up, &up, 1, e->ffn, p->normed,
                            e->n_used));
    PL_TRY(pl_cuda_failed(
        pl_cu_gate(stream, p->ffn, up, e->ffn, s->n_rows * e->n_used, e->ffn, p->gated),
        "experts' gate"));
    PL_TRY(multiply_experts(p, &c, e->down[0], &own_layer->down, &p->said, 1, e->hidden,
                            p->gated, 1));
    return pl_cuda_failed(pl_cu_combine(stream, &c, p->said, e->hidden, p->x),
                          "experts' sum");
}

pl_status pl_cuda_forward(pl_planned *p, const pl_cu_shape *s)
{
    const pl_plan *plan = p->plan;
    PL_TRY(pl_cuda_failed(
        pl_cu_embed(p->cuda->stream, &plan->embed->w, s->rows, s->n_rows, s->drawn, p->x),
        "embedding"));
    for (int i = 0; i < plan->n_layers; i++) {
        const pl_layer *l = &plan->layers[i];
        PL_TRY(attend(p, s, i));
        PL_TRY(l->experts.n ? experts(p, s, l, &p->layers[i]) : dense(p, s, l));
    }
    return PL_OK;
}

pl_status pl_cuda_logits(pl_planned *p, const pl_cu_shape *s, int32_t from, int32_t n,
                         uint64_t *drawn)
{
    const pl_plan *plan = p->plan;
    cudaStream_t stream = p->cuda->stream;
    pl_cu_part head = part_of(plan->head, NULL, p->logits, plan->vocab, false);
    input x = {.x = p->picked, .n_rows = n};
    PL_TRY(pl_cuda_failed(pl_cu_norm(stream, p->x, s->picks + from, n, plan->hidden,
                                     plan->norm, plan->norm_eps, p->picked),
                          "last norm"));
    PL_TRY(multiply(p, &plan->head, &head, 1, &x, "head"));
    return pl_cuda_failed(
        pl_cu_argmax(stream, p->logits, plan->vocab, s->targets + from, n, drawn),
        "argmax");
}
