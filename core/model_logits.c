/* SPDX-License-Identifier: Apache-2.0
 *
 * Ways into the model and its kernels for tests and tools.
 */
#include "model_own.h"

#include <string.h>

typedef struct trial {
    const int32_t *tokens, *lens;
    int n_seqs, n_blocks, step;
    int32_t **blocks;
    float *logits;
} trial;

/* Up to `step` rows of every sequence from position `done` on. */
static void trial_fill(const pl_model *m, const trial *t, int done, pl_step *s)
{
    size_t start = 0;
    pl_step_clear(s);
    for (int i = 0; i < t->n_seqs; start += (size_t)t->lens[i++]) {
        int some = PL_MIN(t->lens[i] - done, t->step);
        if (some <= 0) continue;
        size_t at = start + (size_t)done;
        pl_step_seq *q =
            pl_step_add(s, done, t->tokens + at, some, t->blocks[i], t->n_blocks);
        q->want = PL_WANT_LOGITS;
        q->logits = t->logits + at * (size_t)m->o.vocab;
    }
}

static pl_status trial_run(pl_model *m, const trial *t, int longest)
{
    pl_status status = PL_OK;
    pl_step *s = pl_step_open(m->plan.max_rows, t->n_seqs);
    for (int done = 0; status == PL_OK && done < longest; done += t->step) {
        trial_fill(m, t, done, s);
        status = pl_model_submit(m, s);
        if (status == PL_OK) status = pl_model_collect(m, 1000000);
    }
    pl_step_close(s);
    return status;
}

/* Sequence i's block k: dealt from the last sequence's last down, by turns. */
static void deal_blocks(trial *t)
{
    int n_blocks = t->n_blocks;
    for (int i = 0; i < t->n_seqs; i++) {
        t->blocks[i] = pl_alloc((size_t)n_blocks * sizeof(int32_t));
        for (int k = 0; k < n_blocks; k++)
            t->blocks[i][k] = (n_blocks - 1 - k) * t->n_seqs + i;
    }
}

pl_status pl_model_logits(pl_model *m, const int32_t *tokens, const int32_t *lens,
                          int n_seqs, int step, float *logits)
{
    int longest = 0;
    int64_t total = 0;
    if (!m->ready || m->plan.kv || !pl_model_takes_weights(m)) {
        return pl_fail(PL_EINVAL,
                       "wanted a model that is ready, computes and is not in use");
    }
    for (int i = 0; i < n_seqs; i++) {
        if (lens[i] < 1 || lens[i] > m->o.max_positions) {
            return pl_fail(PL_EINVAL, "a sequence of %d tokens, wanted 1 to %d", lens[i],
                           m->o.max_positions);
        }
        longest = PL_MAX(longest, lens[i]);
        total += lens[i];
    }
    if (n_seqs < 1 || n_seqs > 4096 || step < 1 || total > INT32_MAX) {
        return pl_fail(PL_EINVAL, "%d sequences by %d rows", n_seqs, step);
    }
    for (int64_t i = 0; i < total; i++) {
        if (tokens[i] < 0 || tokens[i] >= m->o.vocab) {
            return pl_fail(PL_EINVAL, "token %d, wanted 0 to %d", tokens[i],
                           m->o.vocab - 1);
        }
    }
    int n_blocks = (longest + m->o.block_size - 1) / m->o.block_size;
    int64_t rows = PL_MIN((int64_t)n_seqs * PL_MIN(step, longest), total);
    PL_TRY(pl_model_kv_open(m, n_blocks * n_seqs, (int32_t)rows, n_seqs));
    trial t = {.tokens = tokens,
               .lens = lens,
               .n_seqs = n_seqs,
               .n_blocks = n_blocks,
               .step = step,
               .logits = logits};
    t.blocks = pl_alloc((size_t)n_seqs * sizeof *t.blocks);
    deal_blocks(&t);
    pl_status s = trial_run(m, &t, longest);
    for (int i = 0; i < n_seqs; i++) pl_free(t.blocks[i]);
    pl_free(t.blocks);
    pl_model_kv_close(m);
    return s;
}

static pl_status linear_on(pl_device *d, const pl_tensor *t, int activations,
                           const float *rows, int n_rows, float *out)
{
    const pl_device_ops *ops = d->ops;
    pl_matrix *w = NULL;
    pl_acts *x = NULL;
    int k = (int)t->dims[1];
    pl_status s = ops->matrix_open(d, t->type, t->dims[0], k, t->data, &w);
    if (s >= 0) s = ops->acts_open(d, n_rows, k, activations, &x);
    if (s >= 0) {
        pl_linear l = {w, NULL, out, (int32_t)t->dims[0], false};
        ops->load(d, rows, n_rows, x);
        ops->linear(d, &l, 1, x);
    }
    ops->acts_close(d, x);
    if (w) ops->matrix_close(d, w);
    return s;
}

pl_status pl_kernel_linear(const char *kernels, int n_threads, const pl_tensor *matrix,
                           int activations, const float *rows, int n_rows, float *out)
{
    const pl_tensor *t = matrix;
    bool sized = t->n_dims == 2 && t->dims[0] > 0 && t->dims[1] > 0 && t->type != PL_I32;
    size_t row = sized ? pl_type_bytes(t->type, t->dims[1]) : 0;
    if (!row || t->bytes != (int64_t)row * t->dims[0] || n_rows < 1) {
        return pl_fail(PL_EINVAL, "wanted a matrix of whole rows and at least one row");
    }
    if (activations < 0 || activations >= PL_N_ACTIVATIONS) {
        return pl_fail(PL_EINVAL, "activations is %d, wanted PL_ACT_*", activations);
    }
    pl_device *d = pl_device_open(
        &(pl_device_options){.name = "cpu", .kernels = kernels, .n_threads = n_threads});
    if (!d) return PL_EUNSUPPORTED;
    pl_status s = linear_on(d, t, activations, rows, n_rows, out);
    pl_device_close(d);
    return s;
}
