/* SPDX-License-Identifier: Apache-2.0 */
#include "params.h"

#include <float.h>
#include <stddef.h>

#define ROW(tag_, kind_, field, initial_, low_, high_, wants_, what_)            \
    {                                                                            \
        .name = #field, .wants = wants_, .what = what_,                          \
        .offset = (int32_t)offsetof(pl_params, field), .kind = PL_PARAM_##kind_, \
        .tag = tag_, .initial = initial_, .low = low_, .high = high_             \
    }

/* Other releases know options by their tags: a tag never changes and is never reused. */
/* clang-format off */
static const pl_param table[] = {
    ROW(32, F32, temperature, 1, 0, FLT_MAX, "non-negative",
        "flattens the distribution; 0 takes the likeliest token, values below 0.01 count as 0.01"),
    ROW(33, F32, top_p, 1, FLT_TRUE_MIN, 1, "in (0, 1]",
        "keeps the likeliest tokens that together have this probability"),
#ifndef PL_TEST_OLDER /* perilune_older stands for a release without these two */
    ROW(34, F32, min_p, 0, 0, 1, "in [0, 1]",
        "drops tokens whose probability is below this fraction of the likeliest one's"),
    ROW(44 | PL_TAG_ADVICE, I32, priority, 0, INT32_MIN, INT32_MAX, "an integer of 32 bits",
        "lower values run first, if priority scheduling is enabled"),
#endif
    ROW(35, I32, top_k, 0, -1, INT32_MAX, "0 (disable), or at least 1",
        "keeps this many of the likeliest tokens; -1 means the same as 0"),
    ROW(36, F32, repetition_penalty, 1, 1e-6f, 1e6f, "greater than zero, at most 1e6",
        "above 1, makes tokens that occur in the prompt or the answer less likely"),
    ROW(37, F32, presence_penalty, 0, -2, 2, "in [-2, 2]",
        "subtracted from the logit of each token that occurs in the answer"),
    ROW(38, F32, frequency_penalty, 0, -2, 2, "in [-2, 2]",
        "subtracted from a token's logit once for each time it occurs in the answer"),
    ROW(39, I32, max_tokens, 16, 1, INT32_MAX, "at least 1",
        "the length of the answer, at most"),
    ROW(40, I32, min_tokens, 0, 0, INT32_MAX, "greater than or equal to 0",
        "the answer does not end before it has this many tokens"),
    ROW(41, I32, logprobs, -1, -1, INT32_MAX, "a count, or -1 for none",
        "reports the logprob of each token and of this many of the likeliest ones"),
    ROW(42, I32, prompt_logprobs, -1, -1, INT32_MAX, "a count, or -1 for none",
        "the same for the tokens of the prompt; the prefix cache is then not read"),
    ROW(43, BOOL, ignore_eos, 0, 0, 1, "true or false",
        "continues past the model's end-of-text token"),
    ROW(45, U64, seed, 0, 0, 0x1p64, "an integer of 64 bits",
        "the same request with the same seed gets the same answer; random if absent"),
};
/* clang-format on */
_Static_assert(PL_COUNT(table) <= 64, "the wire counts rows in 64 bits");

const pl_param *pl_params_row(int i)
{
    return i >= 0 && i < PL_COUNT(table) ? &table[i] : NULL;
}

size_t pl_param_size(const pl_param *row)
{
    return row->kind == PL_PARAM_U64 ? 8 : 4;
}

void pl_params_init(pl_params *p)
{
    *p = (pl_params){0};
    for (int i = 0; i < PL_COUNT(table); i++) {
        void *field = (char *)p + table[i].offset;
        switch (table[i].kind) {
        case PL_PARAM_F32:
            *(float *)field = (float)table[i].initial;
            break;
        case PL_PARAM_U64:
            *(uint64_t *)field = (uint64_t)table[i].initial;
            break;
        default:
            *(int32_t *)field = (int32_t)table[i].initial;
        }
    }
}

static double value_of(const pl_params *p, const pl_param *row)
{
    const void *field = (const char *)p + row->offset;
    switch (row->kind) {
    case PL_PARAM_F32:
        return (double)*(const float *)field;
    case PL_PARAM_U64:
        return (double)*(const uint64_t *)field;
    default:
        return *(const int32_t *)field;
    }
}

pl_status pl_params_check(const pl_params *p)
{
    for (int i = 0; i < PL_COUNT(table); i++) {
        double v = value_of(p, &table[i]);
        if (!(v >= table[i].low && v <= table[i].high)) /* a NaN too */
            return pl_fail(PL_EINVAL, "%s must be %s, got %.7g", table[i].name,
                           table[i].wants, v);
    }
    if (p->min_tokens > p->max_tokens)
        return pl_fail(PL_EINVAL,
                       "min_tokens must be less than or equal to max_tokens=%d, got %d",
                       p->max_tokens, p->min_tokens);
    return PL_OK;
}
