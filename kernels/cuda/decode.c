/* SPDX-License-Identifier: Apache-2.0
 *
 * Steps that one kernel computes: which they are, and the arguments of that kernel.
 */
#include "cuda_own.h"

#include <string.h>

struct pl_cu_decoder {
    pl_cu_decode d; /* of no particular step */
    int64_t packets[6];
};

static pl_cu_decode_layer layer_of(const pl_layer *l)
{
    return (pl_cu_decode_layer){.q = l->q->w.data,
                                .k = l->k->w.data,
                                .v = l->v->w.data,
                                .o = l->o->w.data,
                                .gate = l->gate->w.data,
                                .up = l->up->w.data,
                                .down = l->down->w.data,
                                .attn_norm = l->attn_norm,
                                .ffn_norm = l->ffn_norm,
                                .q_norm = l->q_norm,
                                .k_norm = l->k_norm,
                                .q_bias = l->q_bias,
                                .k_bias = l->k_bias,
                                .v_bias = l->v_bias,
                                .o_bias = l->o_bias,
                                .window = l->window};
}

/* Dense layers, all matrices of one type, and slices. */
static bool suits(const pl_planned *p, pl_cu_decode *d)
{
    for (int i = 0; i < p->plan->n_layers; i++)
        if (p->plan->layers[i].experts.n) return false;
    return !p->cuda->eager && p->slice && p->bf16 != p->f16 && pl_cu_decode_fits(d, 1);
}

static pl_status own_layers(pl_planned *p, pl_cu_decode *d)
{
    size_t bytes = (size_t)d->n_layers * sizeof *d->layers;
    pl_cu_decode_layer *layers = pl_alloc(bytes);
    for (int i = 0; i < d->n_layers; i++) {
        const pl_cu_decode_layer *l = &layers[i];
        layers[i] = layer_of(&p->plan->layers[i]);
        d->biased |= l->q_bias || l->k_bias || l->v_bias || l->o_bias;
    }
    void *on_gpu = pl_cuda_own(p, bytes);
    if (on_gpu) p->cuda->base.ops->write(&p->cuda->base, on_gpu, layers, bytes);
    d->layers = on_gpu;
    pl_free(layers);
    return on_gpu ? PL_OK : pl_fail(PL_ENOMEM, "no memory on the GPU");
}

static uint64_t **packets_of(pl_cu_decode *d, int i)
{
    uint64_t **all[] = {&d->qkv,    &d->partials, &d->attended,
                        &d->middle, &d->gated,    &d->x};
    return all[i];
}

pl_status pl_cuda_decode_open(pl_planned *p)
{
    const pl_plan *plan = p->plan;
    pl_cu_shape none = {0};
    pl_cu_decode d = {.a = pl_cuda_attention(p, &none, 0),
                      .n_layers = plan->n_layers,
                      .hidden = plan->hidden,
                      .ffn = plan->ffn,
                      .vocab = plan->vocab,
                      .eps = plan->norm_eps,
                      .embed = plan->embed->w.data,
                      .embed_f16 = plan->embed->w.f16,
                      .head = plan->head->w.data,
                      .f16 = p->f16,
                      .norm = plan->norm,
                      .logits = p->logits,
                      .epoch = 1};
    if (!suits(p, &d)) return PL_OK;
    p->decoder = pl_alloc(sizeof *p->decoder);
    pl_cu_decode_packets(&d, p->decoder->packets);
    for (int i = 0; i < PL_COUNT(p->decoder->packets); i++) {
        *packets_of(&d, i) =
            pl_cuda_own(p, (size_t)p->decoder->packets[i] * sizeof(uint64_t));
        if (!*packets_of(&d, i)) return pl_fail(PL_ENOMEM, "no memory on the GPU");
    }
    PL_TRY(own_layers(p, &d));
    p->decoder->d = d;
    return PL_OK;
}

bool pl_cuda_decodes(const pl_planned *p, const pl_step *s)
{
    int64_t splits = 0;
    if (!p->decoder || s->n_rows != s->n_seqs || s->n_rows > PL_CU_DECODE_ROWS)
        return false;
    for (int32_t i = 0; i < s->n_seqs; i++)
        splits += s->seqs[i].position / PL_CU_SPLIT + 1;
    pl_cu_decode d = p->decoder->d;
    return splits <= PL_CU_DECODE_SPLITS && pl_cu_decode_fits(&d, s->n_rows);
}

/* Epochs come to their end, and what is left of old ones must not look like new. */
static pl_status begin_epochs(pl_planned *p)
{
    pl_cu_decode *d = &p->decoder->d;
    for (int i = 0; i < PL_COUNT(p->decoder->packets); i++)
        PL_TRY(pl_cuda_failed(
            cudaMemsetAsync(*packets_of(d, i), 0,
                            (size_t)p->decoder->packets[i] * sizeof(uint64_t),
                            p->cuda->stream),
            "epochs"));
    d->epoch = 1;
    return PL_OK;
}

pl_status pl_cuda_decode_step(pl_planned *p, const pl_cu_shape *s, uint64_t *drawn)
{
    pl_cu_decode *d = &p->decoder->d;
    if (d->epoch > UINT32_MAX - (uint32_t)d->n_layers) PL_TRY(begin_epochs(p));
    d->a = pl_cuda_attention(p, s, 0);
    d->before = s->drawn;
    d->picks = s->picks;
    d->targets = s->targets;
    d->n_picks = s->n_draws;
    d->drawn = drawn;
    if (!pl_cu_decode_fits(d, s->n_rows))
        return pl_fail(PL_EINTERNAL, "a step of %d rows is too wide", s->n_rows);
    PL_TRY(pl_cuda_failed(pl_cu_decode_step(p->cuda->stream, d), "a step"));
    d->epoch += (uint32_t)d->n_layers;
    return PL_OK;
}
