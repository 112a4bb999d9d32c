/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over the KV blocks, by chunks of positions that always start at a multiple of
 * PL_CHUNK. In the scores a lane is a position, in the sums a lane is a dimension: no sum
 * crosses lanes but the softmax's own.
 */

/* V as it may be kept: finite. Rows that do not see a position give it no weight, but
 * nothing times infinity would still break them. */
PL_INLINE vf load_finite(const float *x, int n)
{
    return bounded(vf_load_n(x, n), 0x1.fffffep127f);
}

/* What turns a head's values into -32767 .. 32767; `scale` turns them back. */
static vf scale_head(const float *x, int n, float *scale)
{
    vf top = vf_set1(0.0f);
    for (int d = 0; d < n; d += 16) {
        top = vf_max(top, vf_abs(load_finite(x + d, PL_MIN(n - d, 16))));
    }
    float most = vf_top(top);
    most = most > 0x1p-100f ? most : 0.0f; /* or 32767 / most might be infinite */
    *scale = most / 32767.0f;
    return vf_set1(most > 0.0f ? 32767.0f / most : 0.0f);
}

PL_INLINE void store_s16(int16_t *to, const float *x, int n, vf by)
{
    vi_store_s16(to, vi_round(bounded(vf_mul(load_finite(x, n), by), 32767.0f)));
}

static void kv_write(const pl_cpu_kv *kv, int position, const float *k, const float *v)
{
    int bs = kv->block_size, hd = kv->head_dim, at = position % bs;
    char *block = kv->base + (size_t)kv->blocks[position / bs] * kv->block_bytes;
    if (kv->s16) {
        float *scales = (float *)(void *)(block + kv->scales_at);
        int16_t *kb = (int16_t *)(void *)(block + kv->k_at), row[16];
        int16_t *vb = (int16_t *)(void *)(block + kv->v_at) + at * round_up(hd, 16);
        vf by_k = scale_head(k, hd, scales + at);
        vf by_v = scale_head(v, hd, scales + bs + at);
        for (int d = 0; d < hd; d += 16) {
            int left = PL_MIN(hd - d, 16);
            store_s16(row, k + d, left, by_k);
            for (int i = 0; i < left; i++) kb[(d + i) * bs + at] = row[i];
            store_s16(vb + d, v + d, left, by_v);
        }
        return;
    }
    float *kb = (float *)(void *)(block + kv->k_at);
    float *vb = (float *)(void *)(block + kv->v_at) + at * round_up(hd, 16);
    for (int d = 0; d < hd; d++) kb[d * bs + at] = k[d];
    for (int d = 0; d < hd; d += 16)
        vf_store(vb + d, load_finite(v + d, PL_MIN(hd - d, 16)));
}

PL_INLINE vf read_kv(const void *p, size_t at, bool s16)
{
    return s16 ? vf_from_s16((const int16_t *)p + at) : vf_load((const float *)p + at);
}

/* The scales of K of the block that has the position, then those of V. */
PL_INLINE const float *scales_at(const pl_cpu_kv *kv, int position)
{
    int block = kv->blocks[position / kv->block_size];
    return (const float *)(const void *)(kv->base + (size_t)block * kv->block_bytes +
                                         kv->scales_at);
}

/* Scores of sixteen positions (one block has them all) for n queries. Few queries wait
 * for memory: then the next sixteen keys and these values are asked for meanwhile. */
PL_TILE void score(const pl_cpu_kv *kv, int position, int to, const pl_cpu_query *queries,
                   int n, bool s16, float (*out)[PL_CHUNK])
{
    int bs = kv->block_size, hd = kv->head_dim, at = position % bs, size = s16 ? 2 : 4;
    int next = position + 16 < to ? position + 16 : position;
    const char *block = kv->base + (size_t)kv->blocks[position / bs] * kv->block_bytes;
    const char *k = block + kv->k_at;
    const char *v = block + kv->v_at + at * round_up(hd, 16) * size;
    const char *then = kv->base + (size_t)kv->blocks[next / bs] * kv->block_bytes +
                       kv->k_at + next % bs * size;
    vf acc[PL_QUERIES], scale = vf_set1(kv->scale);
    for (int i = 0; i < n; i++) acc[i] = vf_set1(0.0f);
    for (int d = 0; d < hd; d++) {
        vf key = read_kv(k, (size_t)(d * bs + at), s16);
        if (n <= 4) {
            __builtin_prefetch(then + d * bs * size);
            __builtin_prefetch(v + d * 16 * size);
        }
        for (int i = 0; i < n; i++)
            acc[i] = vf_fma(vf_set1(queries[i].q[d]), key, acc[i]);
    }
    if (s16) scale = vf_mul(scale, vf_load(scales_at(kv, position) + at));
    for (int i = 0; i < n; i++) {
        int low = PL_MIN(PL_MAX(queries[i].from - position, 0), 16);
        int high = PL_MIN(PL_MAX(queries[i].to - position, 0), 16);
        vf s = vf_mul(acc[i], scale);
        if (kv->cap > 0.0f) s = vf_cap(s, kv->cap);
        vf_store(out[i] + position % PL_CHUNK, vf_keep(s, low, high, -INFINITY));
    }
}

/* Scores to weights, in place; their largest and their sum into the state. */
static void weigh(float *scores, int from, int to, float *state)
{
    vf top = vf_set1(-INFINITY), sum = vf_set1(0.0f);
    for (int i = from; i < to; i += 16) top = vf_max(top, vf_load(scores + i));
    state[0] = vf_top(top);
    vf most = vf_set1(state[0]);
    for (int i = from; i < to; i += 16) {
        vf e = vf_exp(vf_sub(vf_load(scores + i), most));
        vf_store(scores + i, e);
        sum = vf_add(sum, e);
    }
    state[1] = vf_sum(sum);
}

/* Adds up V by weight for dimensions d .. d + 16 * D. */
PL_TILE void mix(const pl_cpu_kv *kv, int from, int to, const pl_cpu_query *queries,
                 int n, int d, int D, bool s16, float (*weights)[PL_CHUNK])
{
    int bs = kv->block_size, width = round_up(kv->head_dim, 16);
    vf acc[PL_QUERIES][4];
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < D; j++) acc[i][j] = vf_set1(0.0f);
    }
    for (int p = from; p < to;) {
        const char *block = kv->base + (size_t)kv->blocks[p / bs] * kv->block_bytes;
        const void *v = block + kv->v_at;
        int end = PL_MIN(to, (p / bs + 1) * bs);
        for (; p < end; p++) {
            size_t at = (size_t)(p % bs * width + d);
            vf value[4];
            for (int j = 0; j < D; j++) value[j] = read_kv(v, at + (size_t)j * 16, s16);
            for (int i = 0; i < n; i++) {
                vf w = vf_set1(weights[i][p % PL_CHUNK]);
                for (int j = 0; j < D; j++) acc[i][j] = vf_fma(w, value[j], acc[i][j]);
            }
        }
    }
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < D; j++)
            vf_store(queries[i].state + PL_STATE + d + j * 16, acc[i][j]);
    }
}

PL_TILE void attend_some(const pl_cpu_kv *kv, int from, int to, pl_cpu_query *queries,
                         int n, bool s16)
{
    float scores[PL_QUERIES][PL_CHUNK] __attribute__((aligned(64)));
    int first = from / 16 * 16, at = first % PL_CHUNK;
    for (int p = first; p < to; p += 16) score(kv, p, to, queries, n, s16, scores);
    for (int i = 0; i < n; i++) weigh(scores[i], at, at + to - first, queries[i].state);
    for (int p = first; s16 && p < to; p += 16) {
        vf by = vf_load(scales_at(kv, p) + kv->block_size + p % kv->block_size);
        for (int i = 0; i < n; i++) {
            float *weights = scores[i] + p % PL_CHUNK;
            vf_store(weights, vf_mul(vf_load(weights), by));
        }
    }
    int d = 0, width = round_up(kv->head_dim, 16), wide = PL_WIDE(n);
    for (; d + 16 * wide <= width; d += 16 * wide) {
        mix(kv, from, to, queries, n, d, PL_WIDE(n), s16, scores);
    }
    for (; d < width; d += 16) mix(kv, from, to, queries, n, d, 1, s16, scores);
}

#define ATTEND(name, n, s16)                                                       \
    static void name(const pl_cpu_kv *kv, int from, int to, pl_cpu_query *queries) \
    {                                                                              \
        attend_some(kv, from, to, queries, n, s16);                                \
    }

ATTEND(attend_f32_1, 1, false)
ATTEND(attend_f32_2, 2, false)
ATTEND(attend_f32_3, 3, false)
ATTEND(attend_f32_4, 4, false)
ATTEND(attend_s16_1, 1, true)
ATTEND(attend_s16_2, 2, true)
ATTEND(attend_s16_3, 3, true)
ATTEND(attend_s16_4, 4, true)
ATTEND(attend_f32_all, PL_QUERIES, false)
ATTEND(attend_s16_all, PL_QUERIES, true)

/* Queries that see nothing of the chunk get the empty state. */
static void attend(const pl_cpu_kv *kv, int chunk, pl_cpu_query *queries, int n)
{
    typedef void some(const pl_cpu_kv *, int, int, pl_cpu_query *);
    static some *const table[2][5] = {
        {attend_f32_1, attend_f32_2, attend_f32_3, attend_f32_4, attend_f32_all},
        {attend_s16_1, attend_s16_2, attend_s16_3, attend_s16_4, attend_s16_all},
    };
    int first = chunk * PL_CHUNK, last = first + PL_CHUNK;
    while (n > 0) {
        int some_n = 0, from = last, to = first;
        while (some_n < n && some_n < PL_QUERIES) {
            pl_cpu_query *q = queries + some_n;
            if (q->from >= last || q->to <= first) break;
            from = PL_MIN(from, PL_MAX(q->from, first));
            to = PL_MAX(to, PL_MIN(q->to, last));
            some_n++;
        }
        if (some_n) {
            if (some_n < PL_QUERIES) some_n = PL_MIN(some_n, 4);
            table[kv->s16][PL_MIN(some_n, 5) - 1](kv, from, to, queries);
        } else {
            queries->state[0] = -INFINITY;
            some_n = 1;
        }
        queries += some_n, n -= some_n;
    }
}

/* A state that has seen nothing yet has -infinity for its largest score. */
static void merge(float *state, const float *chunk, int head_dim)
{
    int width = round_up(head_dim, 16);
    if (chunk[0] == -INFINITY) return;
    if (state[0] == -INFINITY) {
        memcpy(state, chunk, (size_t)(width + PL_STATE) * sizeof *state);
        return;
    }
    float top = PL_MAX(state[0], chunk[0]);
    float factors[16] = {state[0] - top, chunk[0] - top};
    vf_store(factors, vf_exp(vf_load(factors)));
    vf a = vf_set1(factors[0]), b = vf_set1(factors[1]);
    state[0] = top;
    state[1] = fmaf(chunk[1], factors[1], state[1] * factors[0]);
    for (int d = PL_STATE; d < width + PL_STATE; d += 16) {
        vf s = vf_mul(vf_load(state + d), a);
        vf_store(state + d, vf_fma(vf_load(chunk + d), b, s));
    }
}

static void finish(const float *state, int head_dim, float *out)
{
    vf by = vf_set1(1.0f / state[1]);
    for (int d = 0; d < head_dim; d += 16) {
        vf_store_n(out + d, vf_mul(vf_load(state + PL_STATE + d), by),
                   PL_MIN(head_dim - d, 16));
    }
}
