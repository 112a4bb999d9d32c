/* SPDX-License-Identifier: Apache-2.0 */
#include "seq.h"

#include "params.h"

#include <math.h>
#include <string.h>

enum {
    MAX_IDS = 1 << 20,
    MAX_SALT = 4096,
    MAX_LABEL = 1024
};

static int32_t next_id(void)
{
    static atomic_uint last_id;
    int32_t id;
    do id = (int32_t)((atomic_fetch_add(&last_id, 1) + 1) & INT32_MAX);
    while (id == 0);
    return id;
}

pl_seq *pl_seq_open(const int32_t *tokens, int n, const pl_params *params)
{
    if (n < 1) {
        pl_fail(PL_EINVAL, "a prompt of %d tokens: wanted one at least", n);
        return NULL;
    }
    if (pl_params_check(params) < 0) return NULL;
    pl_seq *s = pl_alloc(sizeof *s);
    s->id = next_id();
    s->params = *params;
    s->tokens = pl_memdup(tokens, (size_t)n * sizeof *tokens);
    s->n_given = s->n_prompt = s->n_tokens = s->cap = n;
    return s;
}

static pl_ids copy_ids(pl_ids list)
{
    return (pl_ids){pl_memdup(list.ids, (size_t)list.n * sizeof *list.ids), list.n};
}

pl_seq *pl_seq_copy(const pl_seq *s)
{
    pl_seq *c = pl_alloc(sizeof *c);
    c->params = s->params;
    c->tokens = pl_memdup(s->tokens, (size_t)s->n_tokens * sizeof *s->tokens);
    c->n_prompt = s->n_prompt;
    c->n_tokens = c->cap = s->n_tokens;
    c->ends = copy_ids(s->ends);
    c->n_eos = s->n_eos;
    c->allowed = copy_ids(s->allowed);
    c->bias_ids = copy_ids(s->bias_ids);
    c->bias = pl_memdup(s->bias, (size_t)s->bias_ids.n * sizeof *s->bias);
    c->bad_words = copy_ids(s->bad_words);
    c->salt = s->salt ? pl_strndup(s->salt, s->salt_len) : NULL;
    c->salt_len = s->salt_len;
    c->label = pl_memdup(s->label, s->label_len);
    c->label_len = s->label_len;
    c->uncounted = s->uncounted;
    c->named_by = s->named_by;
    c->names = pl_memdup(s->names, (size_t)s->n_names * PL_NAME_BYTES);
    c->n_names = s->n_names;
    pl_seq_renew(c);
    return c;
}

void pl_seq_renew(pl_seq *s)
{
    s->id = next_id();
    s->n_given = s->n_tokens;
    s->n_remote = 0; /* that was on its way to where it was */
    s->ticket = s->lender = 0;
    s->lends = false;
}

void pl_seq_close(pl_seq *s)
{
    if (!s) return;
    pl_free(s->tokens);
    pl_free(s->ends.ids);
    pl_free(s->allowed.ids);
    pl_free(s->bias_ids.ids);
    pl_free(s->bias);
    pl_free(s->bad_words.ids);
    pl_free(s->salt);
    pl_free(s->label);
    pl_free(s->names);
    pl_free(s);
}

int32_t pl_seq_id(const pl_seq *s)
{
    return s->id;
}

/* ---- what steers it ------------------------------------------------------------- */

/* Puts ids into the list at `at`. */
static pl_status insert_ids(pl_ids *list, int32_t at, const int32_t *ids, int n)
{
    if (n < 0 || n > MAX_IDS - list->n)
        return pl_fail(PL_ELIMIT, "a list of %d token ids: at most %d", n, MAX_IDS);
    if (n == 0) return PL_OK;
    list->ids = pl_realloc(list->ids, (size_t)(list->n + n) * sizeof *ids);
    memmove(list->ids + at + n, list->ids + at, (size_t)(list->n - at) * sizeof *ids);
    memcpy(list->ids + at, ids, (size_t)n * sizeof *ids);
    list->n += n;
    return PL_OK;
}

pl_status pl_seq_eos(pl_seq *s, const int32_t *ids, int n)
{
    PL_TRY(insert_ids(&s->ends, s->n_eos, ids, n));
    s->n_eos += n;
    return PL_OK;
}

pl_status pl_seq_stop_ids(pl_seq *s, const int32_t *ids, int n)
{
    return insert_ids(&s->ends, s->ends.n, ids, n);
}

pl_status pl_seq_bias(pl_seq *s, const int32_t *ids, const float *values, int n)
{
    for (int i = 0; i < n; i++)
        if (isnan(values[i]))
            return pl_fail(PL_EINVAL, "bias of token %d: not a number", ids[i]);
    int32_t had = s->bias_ids.n;
    PL_TRY(insert_ids(&s->bias_ids, had, ids, n));
    s->bias = pl_realloc(s->bias, (size_t)s->bias_ids.n * sizeof *s->bias);
    for (int i = 0; i < n; i++)
        s->bias[had + i] = PL_MAX(-100.f, PL_MIN(100.f, values[i]));
    return PL_OK;
}

pl_status pl_seq_allow(pl_seq *s, const int32_t *ids, int n)
{
    if (n < 1) return pl_fail(PL_EINVAL, "no allowed tokens: wanted one at least");
    return insert_ids(&s->allowed, s->allowed.n, ids, n);
}

pl_status pl_seq_bad_word(pl_seq *s, const int32_t *ids, int n)
{
    if (n < 1)
        return pl_fail(PL_EINVAL, "a bad word of %d tokens: wanted one at least", n);
    int32_t length = n;
    if (n >= MAX_IDS - s->bad_words.n)
        return pl_fail(PL_ELIMIT, "bad words of more than %d tokens", MAX_IDS);
    PL_TRY(insert_ids(&s->bad_words, s->bad_words.n, &length, 1));
    return insert_ids(&s->bad_words, s->bad_words.n, ids, n);
}

pl_status pl_seq_bad_words(pl_seq *s, const int32_t *ids, int n)
{
    for (int i = 0, len; i < n; i += 1 + len) {
        len = ids[i];
        if (len < 1 || len >= n - i)
            return pl_fail(PL_EINVAL, "a bad word of %d tokens, of %d that are there",
                           len, n - i - 1);
    }
    return insert_ids(&s->bad_words, s->bad_words.n, ids, n);
}

pl_status pl_seq_salt(pl_seq *s, const char *salt, size_t len)
{
    if (len < 1 || len > MAX_SALT || !pl_utf8_valid(salt, len))
        return pl_fail(PL_EINVAL, "cache salt: wanted 1 to %d bytes of UTF-8", MAX_SALT);
    pl_free(s->salt);
    s->salt = pl_strndup(salt, len);
    s->salt_len = len;
    return PL_OK;
}

/* Words that end in NUL, two by two. */
static bool is_label(const char *fields, size_t len)
{
    int n = 0;
    for (size_t i = 0; i < len; i++) {
        if (fields[i] && (fields[i] < '!' || fields[i] > '~')) return false;
        n += !fields[i];
    }
    return len && len <= MAX_LABEL && !fields[len - 1] && n % 2 == 0;
}

pl_status pl_seq_label(pl_seq *s, const char *fields, size_t len)
{
    if (!is_label(fields, len))
        return pl_fail(PL_EINVAL, "a label: wanted up to %d bytes of names and values",
                       MAX_LABEL);
    pl_free(s->label);
    s->label = pl_memdup(fields, len);
    s->label_len = len;
    return PL_OK;
}

void pl_seq_lend(pl_seq *s)
{
    s->lends = true;
}

void pl_seq_remote(pl_seq *s, int32_t n_tokens)
{
    s->n_remote = PL_MAX(0, PL_MIN(n_tokens, s->n_given));
}

pl_status pl_seq_resume(pl_seq *s, int32_t n_output)
{
    if (n_output < 0 || n_output >= s->n_given)
        return pl_fail(PL_EINVAL, "%d of %d tokens resumed: a prompt must remain",
                       n_output, s->n_given);
    if (n_output >= s->params.max_tokens)
        return pl_fail(PL_EINVAL,
                       "%d tokens resumed of max_tokens %d: nothing is left to do",
                       n_output, s->params.max_tokens);
    s->n_prompt = s->n_given - n_output;
    return PL_OK;
}

void pl_seq_uncounted(pl_seq *s)
{
    s->uncounted = true;
}

/* ---- for the engine ------------------------------------------------------------- */

static pl_status check_ids(const char *what, const int32_t *ids, int32_t n, int32_t vocab)
{
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return pl_fail(PL_EINVAL, "%s: token id %d is out of vocabulary (%d tokens)",
                           what, ids[i], vocab);
    return PL_OK;
}

pl_status pl_seq_check(const pl_seq *s, int32_t vocab)
{
    PL_TRY(check_ids("prompt", s->tokens, s->n_tokens, vocab));
    PL_TRY(check_ids("stop ids", s->ends.ids, s->ends.n, vocab));
    PL_TRY(check_ids("allowed ids", s->allowed.ids, s->allowed.n, vocab));
    PL_TRY(check_ids("logit bias", s->bias_ids.ids, s->bias_ids.n, vocab));
    for (int32_t i = 0; i < s->bad_words.n; i += 1 + s->bad_words.ids[i])
        PL_TRY(
            check_ids("bad words", s->bad_words.ids + i + 1, s->bad_words.ids[i], vocab));
    return PL_OK;
}

void pl_seq_reserve(pl_seq *s, int32_t n_tokens)
{
    if (n_tokens <= s->cap) return;
    s->cap = n_tokens;
    s->tokens = pl_realloc(s->tokens, (size_t)n_tokens * sizeof *s->tokens);
}

void pl_seq_append(pl_seq *s, int32_t token)
{
    if (s->n_tokens == s->cap) pl_seq_reserve(s, 2 * s->cap);
    s->tokens[s->n_tokens++] = token;
}

const pl_sampler *pl_seq_sampler(pl_seq *s)
{
    s->sampler = (pl_sampler){
        .params = s->params,
        .position = s->n_tokens,
        .tokens = s->tokens,
        .n_prompt = s->n_prompt,
        .n_tokens = s->n_tokens,
        .allowed = s->allowed.ids,
        .n_allowed = s->allowed.n,
        .bias_ids = s->bias_ids.ids,
        .bias = s->bias,
        .n_bias = s->bias_ids.n,
        .bad_words = s->bad_words.ids,
        .bad_words_len = s->bad_words.n,
        .end_ids = s->ends.ids,
        .n_end_ids = s->ends.n,
    };
    return &s->sampler;
}

int pl_seq_finish(const pl_seq *s, int32_t max_tokens, int32_t *stop_reason)
{
    int32_t token = s->tokens[s->n_tokens - 1], n_output = s->n_tokens - s->n_prompt;
    if (n_output < s->params.min_tokens) return PL_FINISH_NONE;
    for (int32_t i = s->params.ignore_eos ? s->n_eos : 0; i < s->ends.n; i++)
        if (s->ends.ids[i] == token) {
            *stop_reason = i < s->n_eos ? -1 : token;
            return PL_FINISH_STOP;
        }
    *stop_reason = -1;
    bool full = s->n_tokens >= max_tokens || n_output >= s->params.max_tokens;
    return full ? PL_FINISH_LENGTH : PL_FINISH_NONE;
}

int32_t pl_seq_sample(pl_seq *s, float *logits, int32_t vocab, pl_logprob *top)
{
    if (vocab < 1 || s->params.logprobs >= vocab)
        return pl_fail(PL_EINVAL, "%d logprobs of %d tokens", s->params.logprobs, vocab);
    PL_TRY(pl_seq_check(s, vocab));
    pl_sample_scratch *scratch = pl_sample_scratch_open(vocab);
    int32_t token = pl_sample(scratch, logits, vocab, pl_seq_sampler(s), top);
    pl_sample_scratch_close(scratch);
    return token;
}
