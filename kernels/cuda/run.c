/* SPDX-License-Identifier: Apache-2.0
 *
 * Steps on the CUDA device: what the GPU is told of one, and what comes back.
 *
 * A token that the GPU draws stays there too: a step that reads it can be sent off before
 * the host has seen it. A step behind one from whose logits the host draws is sent off
 * only when that is over.
 */
#include "cuda_own.h"

#include <sched.h>
#include <string.h>

/* ---- kernels --------------------------------------------------------------------- */

/* As many logits as fit; all but the last are done with at once: few ask for so many. */
static pl_status send_kernels(pl_planned *p, pl_cu_flight *f, const pl_cu_shape *s)
{
    for (;;) {
        int32_t n = PL_MIN(f->n_draws - f->from, PL_CU_LOGIT_ROWS);
        if (f->from == 0)
            PL_TRY(pl_cuda_kernels(p, s, n, f->drawn));
        else
            PL_TRY(pl_cuda_logits(p, s, f->from, n, f->drawn));
        PL_TRY(pl_cuda_draw(p, f, n, s->drawn));
        if (f->from + n == f->n_draws) break;
        PL_TRY(pl_cuda_failed(cudaStreamSynchronize(p->cuda->stream), "a step"));
        pl_cuda_draw_on_host(p, f, n);
    }
    return PL_OK;
}

/* ---- what the GPU is told -------------------------------------------------------- */

/* Tiles of attention. Sequences of few queries are walked by a CTA each, those with more
 * splits of positions than `longest` are cut by splits, as long as there is room for
 * their results. */
typedef struct tiling {
    pl_cu_queries *few, *many;
    int32_t n_few, n_walks, n_many, room, longest, splits, partials;
} tiling;

static int32_t group_of(const pl_planned *p)
{
    return p->plan->attention.n_heads / p->plan->attention.n_kv_heads;
}

static int32_t splits_of(const pl_step_seq *q)
{
    return (q->position + q->n_rows - 1) / PL_CU_SPLIT + 1;
}

/* Walks are worth it where nearly all walkers have some, and none far more than others:
 * no longer ones than all together are for each. */
static int32_t longest_walk(const pl_planned *p, const pl_step *s)
{
    int64_t n = 0, splits = 0, walkers = pl_cu_walkers();
    for (int32_t i = 0; i < s->n_seqs; i++) {
        if (s->seqs[i].n_rows * group_of(p) > PL_CU_FEW) continue;
        n += p->plan->attention.n_kv_heads;
        splits += (int64_t)p->plan->attention.n_kv_heads * splits_of(&s->seqs[i]);
    }
    int64_t mean = walkers ? (splits + walkers - 1) / walkers : 0;
    return 4 * n >= 3 * walkers ? (int32_t)PL_MIN(mean, INT32_MAX) : 0;
}

static void tile_seq(const pl_planned *p, const pl_step_seq *q, int32_t table, tiling *t)
{
    int32_t n = q->n_rows * group_of(p), splits = splits_of(q);
    int64_t partials = (int64_t)splits * p->plan->attention.n_kv_heads * n;
    pl_cu_queries all = {q->first, q->position, 0, n, table, t->partials};
    if (n <= PL_CU_FEW && splits <= t->longest) {
        t->few[t->room - ++t->n_walks] = all;
        return;
    }
    if (n <= PL_CU_FEW && t->partials + partials <= PL_CU_PARTIALS) {
        t->few[t->n_few++] = all;
        t->partials += (int32_t)partials;
        t->splits = PL_MAX(t->splits, splits);
        return;
    }
    for (; all.first < n; all.first += PL_CU_MANY) {
        all.n = PL_MIN(n - all.first, PL_CU_MANY);
        t->many[t->n_many++] = all;
    }
}

/* int32s at most: rows, tiles of few and many, picks, targets, tables, draws. */
typedef struct places {
    int64_t few, many, picks, targets, tables, draws, end;
} places;

static int32_t blocks_of(const pl_planned *p, const pl_step_seq *q)
{
    int32_t size = p->plan->attention.block_size;
    return (q->position + q->n_rows + size - 1) / size;
}

static places place(const pl_planned *p, const pl_cu_flight *f)
{
    enum {
        ROW = sizeof(pl_cu_row) / sizeof(int32_t),
        TILE = sizeof(pl_cu_queries) / sizeof(int32_t)
    };
    const pl_step *s = f->step;
    int64_t tiles = s->n_seqs + (int64_t)s->n_rows * group_of(p) / PL_CU_MANY;
    places at = {.few = (int64_t)s->n_rows * ROW};
    at.many = at.few + (int64_t)s->n_seqs * TILE;
    at.picks = at.many + tiles * TILE;
    at.targets = at.picks + f->n_draws;
    at.tables = at.targets + f->n_draws;
    at.draws = at.tables;
    for (int32_t i = 0; i < s->n_seqs; i++) at.draws += blocks_of(p, &s->seqs[i]);
    at.draws = (at.draws + 1) / 2 * 2; /* they have values of 64 bits */
    at.end = at.draws + pl_cuda_draws_size(f);
    return at;
}

static void write_seq(const pl_planned *p, const pl_cu_flight *f, const pl_step_seq *q,
                      const places *at, int32_t table, tiling *t)
{
    pl_cu_row *rows = (pl_cu_row *)f->meta + q->first;
    for (int32_t i = 0; i < q->n_rows; i++)
        rows[i] = (pl_cu_row){f->step->tokens[q->first + i], q->position + i, table};
    memcpy(f->meta + at->tables + table, q->blocks,
           (size_t)blocks_of(p, q) * sizeof(int32_t));
    tile_seq(p, q, table, t);
}

/* Fills the pinned memory, sends it and says where all of it is. */
static pl_status send_meta(pl_planned *p, pl_cu_flight *f, pl_cu_shape *shape)
{
    const pl_step *s = f->step;
    places at = place(p, f);
    PL_TRY(pl_cuda_meta(p, at.end));
    tiling t = {.few = (pl_cu_queries *)(f->meta + at.few),
                .many = (pl_cu_queries *)(f->meta + at.many),
                .room = s->n_seqs,
                .longest = longest_walk(p, s)};
    int32_t table = 0;
    for (int32_t i = 0; i < s->n_seqs; i++) {
        write_seq(p, f, &s->seqs[i], &at, table, &t);
        table += blocks_of(p, &s->seqs[i]);
    }
    for (int32_t i = 0; i < f->n_draws; i++) {
        const pl_cu_draw *d = &f->draws[i];
        f->meta[at.picks + i] = s->seqs[d->seq].first + d->row;
        f->meta[at.targets + i] = d->kind == PL_CU_BEST_ONE ? d->seq : -1;
    }
    pl_cuda_tell_draws(p, f, at.draws);
    *shape = (pl_cu_shape){.n_rows = s->n_rows,
                           .n_few = t.n_few,
                           .n_walks = t.n_walks,
                           .n_many = t.n_many,
                           .splits = t.splits,
                           .n_draws = f->n_draws,
                           .rows = (const pl_cu_row *)p->meta,
                           .few = (const pl_cu_queries *)(p->meta + at.few),
                           .walks = (const pl_cu_queries *)(p->meta + at.few) +
                                    (t.room - t.n_walks),
                           .many = (const pl_cu_queries *)(p->meta + at.many),
                           .picks = p->meta + at.picks,
                           .targets = p->meta + at.targets,
                           .tables = p->meta + at.tables,
                           .decodes = pl_cuda_decodes(p, s)};
    return pl_cuda_failed(cudaMemcpyAsync(p->meta, f->meta,
                                          (size_t)at.end * sizeof(int32_t),
                                          cudaMemcpyHostToDevice, p->cuda->stream),
                          "what a step is");
}

/* ---- steps ----------------------------------------------------------------------- */

static pl_cu_flight *flight(pl_planned *p, int32_t i)
{
    return &p->flights[(p->first + i) % 2];
}

/* Brings a step's results; it is over, or is waited for. The step behind it may read its
 * tokens. */
static pl_status finish(pl_planned *p, pl_cu_flight *f)
{
    if (f->finished) return PL_OK;
    PL_TRY(pl_cuda_failed(cudaEventSynchronize(f->over), "a step"));
    pl_cuda_take_draws(p, f);
    pl_cuda_draw_on_host(p, f, f->n_draws - f->from);
    f->finished = true;
    return PL_OK;
}

static pl_status send(pl_planned *p, pl_cu_flight *f)
{
    cudaStream_t stream = p->cuda->stream;
    pl_cu_shape shape;
    pl_cuda_list_draws(p, f);
    PL_TRY(send_meta(p, f, &shape));
    shape.drawn =
        p->flights[f == p->flights].drawn; /* of the step before, if there is one */
    PL_TRY(pl_cuda_failed(
        cudaMemsetAsync(f->drawn, 0, (size_t)f->step->n_seqs * sizeof *f->drawn, stream),
        "tokens"));
    PL_TRY(send_kernels(p, f, &shape));
    PL_TRY(pl_cuda_bring_draws(p, f));
    return pl_cuda_failed(cudaEventRecord(f->over, stream), "a step");
}

pl_status pl_cuda_run(pl_planned *p, pl_step *s)
{
    pl_cu_flight *before = p->n ? flight(p, p->n - 1) : NULL;
    pl_cu_flight *f = flight(p, p->n);
    if (before && before->n_host) {
        PL_TRY(finish(p, before));
        pl_step_resolve(s, before->step);
    }
    f->step = s;
    f->finished = false;
    PL_TRY(send(p, f));
    p->n++;
    return PL_OK;
}

/* Until the event has come or the time is over: a step is a fraction of a millisecond,
 * too short to sleep in. */
static cudaError_t wait_for(cudaEvent_t over, int timeout_ms)
{
    int64_t until = pl_now_ns() + (int64_t)timeout_ms * 1000000;
    cudaError_t e;
    while ((e = cudaEventQuery(over)) == cudaErrorNotReady && pl_now_ns() < until)
        sched_yield();
    return e;
}

pl_status pl_cuda_wait(pl_planned *p, int timeout_ms)
{
    pl_cu_flight *f = flight(p, 0);
    cudaError_t e = f->finished ? cudaSuccess : wait_for(f->over, timeout_ms);
    if (e == cudaErrorNotReady) return PL_EAGAIN;
    pl_status s = e == cudaSuccess ? finish(p, f) : pl_cuda_failed(e, "a step");
    if (s == PL_OK && p->n == 2) pl_step_resolve(flight(p, 1)->step, f->step);
    p->first = (p->first + 1) % 2;
    p->n--;
    return s;
}
