/* SPDX-License-Identifier: Apache-2.0 */
#include "params.h"
#include "wire_own.h"

#include <string.h>

/* A sequence is parts, each a tag, its length and its bytes: these, and a part for each
 * option of the sampler that is not its default (params.c has their tags, from 32 on). */
enum {
    PART_TOKENS = 1, /* prompt and output */
    PART_OUTPUT,     /* how many of them are output */
    PART_EOS,
    PART_STOP,
    PART_ALLOWED,
    PART_BIAS, /* pairs */
    PART_BAD,
    PART_SALT,
    PART_UNCOUNTED,
    PART_LABEL,
    PART_LENDS, /* its ticket */
    PART_TAKES, /* its ticket, the lender's process, how many tokens will come */
    N_PARTS
};
/* A reader that does not know these may skip them: they concern statistics and logs, or it
 * computes what could have been brought. */
enum {
    ADVICE = 1 << PART_UNCOUNTED | 1 << PART_LABEL | 1 << PART_LENDS | 1 << PART_TAKES,
    TAKES_BYTES = 8 + 8 + 4
};
enum {
    TOKEN_BYTES = 6 * 4 + 8 + 2 * 4,
    TOP_BYTES = 12
};

/* ---- writing ----------------------------------------------------------------------- */

static void put_i32(pl_buf *b, int32_t v)
{
    put_u32(b, (uint32_t)v);
}

static void put_f32(pl_buf *b, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_u32(b, bits);
}

static void put_part(pl_buf *b, uint32_t tag, size_t len)
{
    if (tag < N_PARTS && ADVICE & 1 << tag) tag |= PL_TAG_ADVICE;
    put_u32(b, tag);
    put_u32(b, (uint32_t)len);
}

static void put_ids(pl_buf *b, uint32_t tag, const int32_t *ids, int32_t n)
{
    if (n == 0) return;
    pl_buf_reserve(b, 8 + 4 * (size_t)n);
    put_part(b, tag, 4 * (size_t)n);
    for (int32_t i = 0; i < n; i++) put_i32(b, ids[i]);
}

static void put_bytes(pl_buf *b, uint32_t tag, const char *bytes, size_t len)
{
    if (!len) return;
    put_part(b, tag, len);
    pl_buf_add(b, bytes, len);
}

static void put_params(pl_buf *b, const pl_params *p)
{
    pl_params initial;
    pl_params_init(&initial);
    const pl_param *row;
    for (int i = 0; (row = pl_params_row(i)); i++) {
        const char *field = (const char *)p + row->offset;
        size_t size = pl_param_size(row);
        if (!memcmp(field, (char *)&initial + row->offset, size)) continue;
        put_part(b, (uint32_t)row->tag, size);
        if (size == 8) {
            uint64_t v;
            memcpy(&v, field, sizeof v);
            put_u64(b, v);
        } else {
            uint32_t v;
            memcpy(&v, field, sizeof v);
            put_u32(b, v);
        }
    }
}

static void put_ticket(pl_buf *b, const pl_seq *s)
{
    if (!s->ticket) return;
    if (s->lends) {
        put_part(b, PART_LENDS, 8);
        put_u64(b, s->ticket);
    } else if (s->n_remote > 0) {
        put_part(b, PART_TAKES, TAKES_BYTES);
        put_u64(b, s->ticket);
        put_u64(b, s->lender);
        put_i32(b, s->n_remote);
    }
}

void pl_wire_put_seq(pl_buf *b, const pl_seq *s)
{
    put_params(b, &s->params);
    put_ids(b, PART_TOKENS, s->tokens, s->n_tokens);
    put_ids(b, PART_OUTPUT, &(int32_t){s->n_tokens - s->n_prompt}, 1);
    put_ids(b, PART_EOS, s->ends.ids, s->n_eos);
    if (s->ends.n > s->n_eos)
        put_ids(b, PART_STOP, s->ends.ids + s->n_eos, s->ends.n - s->n_eos);
    put_ids(b, PART_ALLOWED, s->allowed.ids, s->allowed.n);
    put_ids(b, PART_BAD, s->bad_words.ids, s->bad_words.n);
    if (s->bias_ids.n) put_part(b, PART_BIAS, 8 * (size_t)s->bias_ids.n);
    for (int32_t i = 0; i < s->bias_ids.n; i++) {
        put_i32(b, s->bias_ids.ids[i]);
        put_f32(b, s->bias[i]);
    }
    if (s->uncounted) put_part(b, PART_UNCOUNTED, 0);
    put_bytes(b, PART_SALT, s->salt, s->salt_len);
    put_bytes(b, PART_LABEL, s->label, s->label_len);
    put_ticket(b, s);
}

static void put_tops(pl_buf *b, const pl_logprob *top, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        put_i32(b, top[i].token);
        put_i32(b, top[i].rank);
        put_f32(b, top[i].logprob);
    }
}

void pl_wire_put_token(pl_buf *b, const pl_token *t, int32_t seq, int64_t waited_ns)
{
    size_t tops = ((size_t)t->n_top + (size_t)t->n_prompt_top) * TOP_BYTES;
    pl_buf_reserve(b, 4 + TOKEN_BYTES + tops);
    put_u32(b, (uint32_t)(TOKEN_BYTES + tops));
    put_i32(b, seq);
    put_i32(b, t->token);
    put_i32(b, t->index);
    put_i32(b, t->finish);
    put_i32(b, t->stop_reason);
    put_i32(b, t->n_cached);
    put_u64(b, (uint64_t)waited_ns);
    put_i32(b, t->n_top);
    put_i32(b, t->n_prompt_top);
    put_tops(b, t->top, t->n_top);
    put_tops(b, t->prompt_top, t->n_prompt_top);
}

/* ---- reading ----------------------------------------------------------------------- */

static int32_t get_i32(part *p)
{
    return (int32_t)get_u32(p);
}

static float get_f32(part *p)
{
    uint32_t bits = get_u32(p);
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* A sequence taken apart: its parts, and its parameters on top of their defaults. */
typedef struct content {
    part at[N_PARTS];
    pl_params params;
    uint64_t given; /* rows of the parameters, a bit each */
} content;

static pl_status twice(uint32_t tag)
{
    return pl_fail(PL_EFORMAT, "part %u of a sequence came twice", tag);
}

static pl_status unknown(uint32_t tag)
{
    if (tag & PL_TAG_ADVICE) return PL_OK;
    return pl_fail(PL_EUNSUPPORTED,
                   "it runs another version, which does not know part %u of a sequence",
                   tag);
}

static pl_status take_param(content *to, uint32_t tag, part p)
{
    const pl_param *row;
    int i = 0;
    while ((row = pl_params_row(i)) && (uint32_t)row->tag != tag) i++;
    if (!row) return unknown(tag);
    if (to->given & UINT64_C(1) << i) return twice(tag);
    to->given |= UINT64_C(1) << i;
    size_t size = pl_param_size(row);
    if (p.len != size)
        return pl_fail(PL_EFORMAT, "%s has %zu bytes, wanted %zu", row->name, p.len,
                       size);
    char *field = (char *)&to->params + row->offset;
    if (size == 8)
        memcpy(field, &(uint64_t){get_u64(&p)}, size);
    else
        memcpy(field, &(uint32_t){get_u32(&p)}, size);
    return PL_OK;
}

static pl_status take_part(content *to, uint32_t tag, part p)
{
    uint32_t known = tag & ~(uint32_t)PL_TAG_ADVICE;
    if (!known || known >= N_PARTS || !(tag & PL_TAG_ADVICE) == !!(ADVICE & 1 << known))
        return take_param(to, tag, p);
    if (to->at[known].at) return twice(tag);
    to->at[known] = p;
    return PL_OK;
}

static pl_status split(part whole, content *to)
{
    pl_params_init(&to->params);
    while (whole.len) {
        if (whole.len < 8)
            return pl_fail(PL_EFORMAT, "a sequence ends within a part's head");
        uint32_t tag = get_u32(&whole), len = get_u32(&whole);
        if (len > whole.len)
            return pl_fail(PL_EFORMAT, "part %u of a sequence has %u bytes, but %zu came",
                           tag, len, whole.len);
        PL_TRY(take_part(to, tag, (part){whole.at, len}));
        whole.at += len;
        whole.len -= len;
    }
    return PL_OK;
}

static int count_ids(part p)
{
    return (int)PL_MIN(p.len / 4, INT32_MAX);
}

/* Heap; NULL where there are none. */
static int32_t *get_ids(part p)
{
    int n = count_ids(p);
    int32_t *ids = n ? pl_alloc((size_t)n * sizeof *ids) : NULL;
    for (int i = 0; i < n; i++) ids[i] = get_i32(&p);
    return ids;
}

static pl_status give_ids(pl_seq *s, part p,
                          pl_status (*give)(pl_seq *s, const int32_t *ids, int n))
{
    if (!p.len) return PL_OK;
    int32_t *ids = get_ids(p);
    pl_status status = give(s, ids, count_ids(p));
    pl_free(ids);
    return status;
}

static pl_status give_bias(pl_seq *s, part p)
{
    size_t n = p.len / 8;
    if (!n) return PL_OK;
    int32_t *ids = pl_alloc(n * sizeof *ids);
    float *values = pl_alloc(n * sizeof *values);
    for (size_t i = 0; i < n; i++) {
        ids[i] = get_i32(&p);
        values[i] = get_f32(&p);
    }
    pl_status status = pl_seq_bias(s, ids, values, (int)PL_MIN(n, INT32_MAX));
    pl_free(ids);
    pl_free(values);
    return status;
}

static void give_ticket(pl_seq *s, part lends, part takes)
{
    if (lends.len >= 8) {
        s->ticket = get_u64(&lends);
        s->lends = s->ticket != 0;
    } else if (takes.len >= TAKES_BYTES) {
        s->ticket = get_u64(&takes);
        s->lender = get_u64(&takes);
        pl_seq_remote(s, get_i32(&takes));
    }
}

static pl_status fill(pl_seq *s, const part *parts)
{
    int32_t n_output = 0;
    if (parts[PART_OUTPUT].len >= 4)
        n_output = get_i32(&(part){parts[PART_OUTPUT].at, 4});
    PL_TRY(pl_seq_resume(s, n_output));
    PL_TRY(give_ids(s, parts[PART_EOS], pl_seq_eos));
    PL_TRY(give_ids(s, parts[PART_STOP], pl_seq_stop_ids));
    PL_TRY(give_ids(s, parts[PART_ALLOWED], pl_seq_allow));
    PL_TRY(give_ids(s, parts[PART_BAD], pl_seq_bad_words));
    PL_TRY(give_bias(s, parts[PART_BIAS]));
    if (parts[PART_UNCOUNTED].at) pl_seq_uncounted(s);
    give_ticket(s, parts[PART_LENDS], parts[PART_TAKES]);
    part salt = parts[PART_SALT], label = parts[PART_LABEL];
    if (label.len) PL_TRY(pl_seq_label(s, label.at, label.len));
    return salt.len ? pl_seq_salt(s, salt.at, salt.len) : PL_OK;
}

pl_status pl_wire_get_seq(const void *data, size_t len, pl_seq **out)
{
    content all = {0};
    PL_TRY(split((part){data, len}, &all));
    part ids = all.at[PART_TOKENS];
    int32_t *tokens = get_ids(ids);
    pl_seq *s = pl_seq_open(tokens, count_ids(ids), &all.params);
    pl_free(tokens);
    if (!s) return PL_EFORMAT;
    if (fill(s, all.at) < 0) {
        pl_seq_close(s);
        return PL_EFORMAT;
    }
    *out = s;
    return PL_OK;
}

static void get_tops(part *p, pl_logprob *out, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        out[i].token = get_i32(p);
        out[i].rank = get_i32(p);
        out[i].logprob = get_f32(p);
    }
}

static pl_status check_token(const pl_token *t)
{
    bool is_token = t->token >= 0 && t->finish >= PL_FINISH_NONE,
         is_end = t->token == -1 && t->finish > PL_FINISH_NONE && !t->n_top &&
                  !t->n_prompt_top;
    if ((!is_token && !is_end) || t->finish > PL_FINISH_ERROR || t->stop_reason < -1 ||
        t->index < 0 || t->n_cached < 0)
        return pl_fail(PL_EFORMAT,
                       "token %d, index %d, finish %d, reason %d, %d cached: no token",
                       t->token, t->index, t->finish, t->stop_reason, t->n_cached);
    return PL_OK;
}

pl_status pl_wire_get_token(const char **at, const char *end, pl_token *out,
                            int64_t *waited_ns, pl_buf *tops)
{
    part p = {*at, (size_t)(end - *at)};
    uint32_t len = p.len < 4 ? 0 : get_u32(&p);
    if (len < TOKEN_BYTES || len > p.len)
        return pl_fail(PL_EFORMAT, "a token of %u bytes, and %zu came", len, p.len);
    p.len = len;
    const char *next = p.at + len;
    pl_token t = {0};
    t.seq = get_i32(&p);
    t.token = get_i32(&p);
    t.index = get_i32(&p);
    t.finish = get_i32(&p);
    t.stop_reason = get_i32(&p);
    t.n_cached = get_i32(&p);
    uint64_t waited = get_u64(&p);
    t.n_top = get_i32(&p);
    t.n_prompt_top = get_i32(&p);
    PL_TRY(check_token(&t));
    if (t.n_top < 0 || t.n_prompt_top < 0 ||
        ((uint64_t)t.n_top + (uint64_t)t.n_prompt_top) * TOP_BYTES > p.len)
        return pl_fail(PL_EFORMAT, "a token with %d and %d logprobs in %zu bytes",
                       t.n_top, t.n_prompt_top, p.len);
    size_t n = (size_t)t.n_top + (size_t)t.n_prompt_top;
    tops->len = 0;
    pl_buf_reserve(tops, n * sizeof(pl_logprob));
    pl_logprob *all = (pl_logprob *)tops->data;
    get_tops(&p, all, (int32_t)n);
    if (t.n_top) t.top = all;
    if (t.n_prompt_top) t.prompt_top = all + t.n_top;
    *at = next;
    *out = t;
    *waited_ns = (int64_t)PL_MIN(waited, (uint64_t)INT64_MAX);
    return PL_OK;
}
