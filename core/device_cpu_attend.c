/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention on the CPU: heads to the cache, then tiles of rows over chunks of positions.
 *
 * A chunk's result is computed alone and then merged onto those before it, in their
 * order. So it is the same whether one thread walks all chunks of a tile (many rows), or
 * each chunk is a task (few rows, long contexts).
 */
#include "device_cpu.h"

#include <limits.h>
#include <math.h>

enum {
    TILE_QUERIES = 32,
    CHUNKS_PER_THREAD = 16,
    MAX_HEAD_DIM = 512
};

pl_status pl_cpu_kv_check(pl_device *d, const pl_attention *a)
{
    (void)d;
    if (a->block_size % 16) {
        return pl_fail(PL_EUNSUPPORTED,
                       "block_size is %d, wanted a multiple of 16 on the CPU",
                       a->block_size);
    }
    if (a->head_dim > MAX_HEAD_DIM) {
        return pl_fail(PL_EUNSUPPORTED, "head_dim is %d, at most %d", a->head_dim,
                       MAX_HEAD_DIM);
    }
    return PL_OK;
}

static size_t width_of(const pl_attention *a)
{
    return (size_t)(a->head_dim + 15) / 16 * 16;
}

static bool is_s16(const pl_attention *a)
{
    return a->kv_type == PL_KV_INT16;
}

static size_t kv_item(const pl_attention *a)
{
    return is_s16(a) ? sizeof(int16_t) : sizeof(float);
}

/* K, V and their scales, of one head in one layer of a block. */
static size_t head_bytes(const pl_attention *a)
{
    size_t scales = is_s16(a) ? 2 * sizeof(float) : 0;
    size_t position = ((size_t)a->head_dim + width_of(a)) * kv_item(a) + scales;
    return position * (size_t)a->block_size;
}

size_t pl_cpu_kv_bytes(pl_device *d, const pl_attention *a)
{
    (void)d;
    size_t bytes = (size_t)a->n_layers * (size_t)a->n_kv_heads * head_bytes(a);
    return (bytes + 63) / 64 * 64;
}

static pl_cpu_kv kv_of(pl_device *d, const pl_heads *h, int row, int kv_head)
{
    const pl_attention *a = h->shape;
    size_t at =
        ((size_t)h->layer * (size_t)a->n_kv_heads + (size_t)kv_head) * head_bytes(a);
    return (pl_cpu_kv){
        .head_dim = a->head_dim,
        .block_size = a->block_size,
        .group = a->n_heads / a->n_kv_heads,
        .s16 = is_s16(a),
        .scale = a->scale,
        .cap = a->cap,
        .k_at = at,
        .v_at = at + (size_t)a->head_dim * (size_t)a->block_size * kv_item(a),
        .scales_at =
            at + ((size_t)a->head_dim + width_of(a)) * (size_t)a->block_size * kv_item(a),
        .blocks = pl_cpu_of(d)->rows->blocks[row],
        .base = h->kv,
        .block_bytes = pl_cpu_kv_bytes(d, a),
    };
}

/* ---- to the cache ------------------------------------------------------------------ */

typedef struct heads_job {
    pl_device *d;
    const pl_heads *h;
} heads_job;

static void turn(pl_cpu *c, const pl_heads *h, float *x, const float *norm, int row)
{
    const pl_attention *a = h->shape;
    const pl_rows *r = c->rows;
    bool own = h->window && r->window_cos;
    size_t at = (size_t)row * ((size_t)a->rope_dims / 2);
    if (norm) c->k->norm(x, norm, a->norm_eps, a->head_dim, x);
    c->k->rope(x, (own ? r->window_cos : r->cos) + at,
               (own ? r->window_sin : r->sin) + at, a->rope_dims, a->rope_pairs);
}

static void heads_row(void *arg, int row, int thread)
{
    (void)thread;
    heads_job *j = arg;
    const pl_heads *h = j->h;
    const pl_attention *a = h->shape;
    pl_cpu *c = pl_cpu_of(j->d);
    size_t at = (size_t)row * (size_t)h->stride;
    for (int i = 0; i < a->n_heads; i++)
        turn(c, h, h->q + at + i * a->head_dim, h->q_norm, row);
    for (int i = 0; i < a->n_kv_heads; i++) {
        float *k = h->k + at + i * a->head_dim;
        turn(c, h, k, h->k_norm, row);
        pl_cpu_kv kv = kv_of(j->d, h, row, i);
        c->k->kv_write(&kv, c->rows->positions[row], k, h->v + at + i * a->head_dim);
    }
}

void pl_cpu_heads(pl_device *d, const pl_heads *h)
{
    heads_job j = {d, h};
    pl_pool_run(pl_cpu_of(d)->pool, heads_row, &j, pl_cpu_of(d)->rows->n);
}

/* ---- tiles: rows of one sequence, one KV head -------------------------------------- */

typedef struct attend_job {
    pl_device *d;
    const pl_heads *h;
    pl_acts *out;
    int rows, group;           /* rows of a tile at most; query heads a KV head */
    int *tiles, n_tiles;       /* the first row of each, and the end */
    int begin;                 /* the first chunk that any row sees */
    int first_chunk, n_chunks; /* of the chunks being computed */
    size_t state;              /* floats of one query's state */
    float *running, *partial;  /* [tile][kv head][query] ; partial: [...][chunk][query] */
} attend_job;

/* The first position that a row sees which sees none from `to` on. */
static int first_seen(const pl_heads *h, int to)
{
    return h->window && to > h->window ? to - h->window : 0;
}

static int tile_queries(const attend_job *j, int task, pl_cpu_query *queries,
                        float *states)
{
    const pl_heads *h = j->h;
    const pl_attention *a = h->shape;
    const pl_rows *rows = pl_cpu_of(j->d)->rows;
    int tile = task / a->n_kv_heads, head = task % a->n_kv_heads, n = 0;
    for (int row = j->tiles[tile]; row < j->tiles[tile + 1]; row++) {
        const float *q = h->q + (size_t)row * (size_t)h->stride;
        int to = rows->positions[row] + 1;
        for (int i = 0; i < j->group; i++, n++) {
            queries[n].q = q + (head * j->group + i) * a->head_dim;
            queries[n].to = to;
            queries[n].from = first_seen(h, to);
            queries[n].state = states + (size_t)n * j->state;
        }
    }
    return n;
}

static size_t tile_states(const attend_job *j)
{
    return (size_t)(j->rows * j->group) * j->state;
}

static void tile_finish(const attend_job *j, int task, const float *running)
{
    const pl_attention *a = j->h->shape;
    pl_cpu *c = pl_cpu_of(j->d);
    int tile = task / a->n_kv_heads, head = task % a->n_kv_heads;
    for (int row = j->tiles[tile]; row < j->tiles[tile + 1]; row++) {
        float *out = j->out->rows.f + (size_t)row * j->out->rows.stride;
        for (int i = 0; i < j->group; i++, running += j->state) {
            c->k->finish(running, a->head_dim, out + (head * j->group + i) * a->head_dim);
        }
    }
}

/* Many tiles: a task is a tile and walks its chunks. */
static void attend_tile(void *arg, int task, int thread)
{
    attend_job *j = arg;
    const pl_attention *a = j->h->shape;
    const pl_cpu_kernels *k = pl_cpu_of(j->d)->k;
    float *running = j->running + (size_t)thread * 2 * tile_states(j);
    float *partial = running + tile_states(j);
    pl_cpu_query *queries = pl_alloc((size_t)(j->rows * j->group) * sizeof *queries);
    int n = tile_queries(j, task, queries, partial);
    pl_cpu_kv kv =
        kv_of(j->d, j->h, j->tiles[task / a->n_kv_heads], task % a->n_kv_heads);
    for (int i = 0; i < n; i++) running[(size_t)i * j->state] = -INFINITY;
    for (int chunk = queries[0].from / PL_CHUNK; chunk * PL_CHUNK < queries[n - 1].to;
         chunk++) {
        k->attend(&kv, chunk, queries, n);
        for (int i = 0; i < n; i++) {
            k->merge(running + (size_t)i * j->state, queries[i].state, a->head_dim);
        }
    }
    tile_finish(j, task, running);
    pl_free(queries);
}

/* Few tiles: a task is a chunk of a tile. */
static void attend_chunk(void *arg, int task, int thread)
{
    (void)thread;
    attend_job *j = arg;
    const pl_attention *a = j->h->shape;
    int of = task / j->n_chunks, chunk = j->first_chunk + task % j->n_chunks;
    pl_cpu_query *queries = pl_alloc((size_t)(j->rows * j->group) * sizeof *queries);
    int n = tile_queries(j, of, queries, j->partial + (size_t)task * tile_states(j));
    pl_cpu_kv kv = kv_of(j->d, j->h, j->tiles[of / a->n_kv_heads], of % a->n_kv_heads);
    pl_cpu_of(j->d)->k->attend(&kv, chunk, queries, n);
    pl_free(queries);
}

static void merge_chunks(void *arg, int task, int thread)
{
    (void)thread;
    attend_job *j = arg;
    const pl_attention *a = j->h->shape;
    int tile = task / a->n_kv_heads;
    int n = (j->tiles[tile + 1] - j->tiles[tile]) * j->group;
    float *running = j->running + (size_t)task * tile_states(j);
    for (int i = 0; i < n; i++) {
        if (j->first_chunk == j->begin) running[(size_t)i * j->state] = -INFINITY;
        for (int chunk = 0; chunk < j->n_chunks; chunk++) {
            size_t at = (size_t)(task * j->n_chunks + chunk) * tile_states(j);
            pl_cpu_of(j->d)->k->merge(running + (size_t)i * j->state,
                                      j->partial + at + (size_t)i * j->state,
                                      a->head_dim);
        }
    }
}

static void finish_chunks(void *arg, int task, int thread)
{
    (void)thread;
    attend_job *j = arg;
    tile_finish(j, task, j->running + (size_t)task * tile_states(j));
}

static int cut_tiles(const pl_rows *rows, int most, int *tiles)
{
    int n = 0;
    for (int row = 0; row < rows->n; row++) {
        bool new = !row || rows->blocks[row] != rows->blocks[row - 1] ||
                   rows->positions[row] != rows->positions[row - 1] + 1 ||
                   row - tiles[n - 1] == most;
        if (new) tiles[n++] = row;
    }
    tiles[n] = rows->n;
    return n;
}

static void reduce_row(void *arg, int row, int thread)
{
    (void)thread;
    attend_job *j = arg;
    pl_cpu_of(j->d)->k->reduce(&j->out->rows, row);
}

static void attend_by_chunks(attend_job *j, int tasks, int chunks)
{
    pl_cpu *c = pl_cpu_of(j->d);
    /* Enough to be busy with; not all of a long context, they take room. */
    int wanted = CHUNKS_PER_THREAD * pl_pool_threads(c->pool) / tasks + 1;
    int at_once = PL_MIN(chunks - j->begin, wanted);
    j->running = pl_cpu_scratch(c, (size_t)(tasks * (1 + at_once)) * tile_states(j));
    j->partial = j->running + (size_t)tasks * tile_states(j);
    for (j->first_chunk = j->begin; j->first_chunk < chunks; j->first_chunk += at_once) {
        j->n_chunks = PL_MIN(at_once, chunks - j->first_chunk);
        pl_pool_run(c->pool, attend_chunk, j, tasks * j->n_chunks);
        pl_pool_run(c->pool, merge_chunks, j, tasks);
    }
    pl_pool_run(c->pool, finish_chunks, j, tasks);
}

void pl_cpu_attend(pl_device *d, const pl_heads *h, pl_acts *out)
{
    pl_cpu *c = pl_cpu_of(d);
    const pl_attention *a = h->shape;
    int threads = pl_pool_threads(c->pool), group = a->n_heads / a->n_kv_heads;
    attend_job j = {
        .d = d, .h = h, .out = out, .group = group, .state = PL_STATE + width_of(a)};
    j.rows = PL_MIN(PL_MAX(1, TILE_QUERIES / group), c->rows->n);
    j.tiles = pl_alloc((size_t)(c->rows->n + 1) * sizeof *j.tiles);
    j.n_tiles = cut_tiles(c->rows, j.rows, j.tiles);
    out->n = c->rows->n;
    int tasks = j.n_tiles * a->n_kv_heads, first = INT_MAX, last = 0;
    for (int i = 0; i < c->rows->n; i++) {
        first = PL_MIN(first, first_seen(h, c->rows->positions[i] + 1));
        last = PL_MAX(last, c->rows->positions[i]);
    }
    j.begin = first / PL_CHUNK;
    if (threads > 1 && tasks < 4 * threads && last >= PL_CHUNK) {
        attend_by_chunks(&j, tasks, last / PL_CHUNK + 1);
    } else {
        j.running = pl_cpu_scratch(c, (size_t)threads * 2 * tile_states(&j));
        pl_pool_run(c->pool, attend_tile, &j, tasks);
    }
    if (out->rows.activations != PL_ACT_FLOAT32)
        pl_pool_run(c->pool, reduce_row, &j, out->n);
    pl_free(j.tiles);
}
