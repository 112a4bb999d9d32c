/* SPDX-License-Identifier: Apache-2.0
 *
 * relay_event.c - what an event of another server says.
 *
 * Ignores  what it need not know: most of an event is passed over without being looked at.
 * Thread   any.
 */
#include "relay.h"

#include <string.h>

typedef struct cursor {
    const char *at, *end;
} cursor;

static void skip_blanks(cursor *c)
{
    while (c->at < c->end &&
           (*c->at == ' ' || *c->at == '\t' || *c->at == '\n' || *c->at == '\r'))
        c->at++;
}

static bool take(cursor *c, char wanted)
{
    skip_blanks(c);
    if (c->at == c->end || *c->at != wanted) return false;
    c->at++;
    return true;
}

/* What is between the quotes, escapes and all. */
static bool string(cursor *c, pl_span *out)
{
    if (!take(c, '"')) return false;
    out->at = c->at;
    for (; c->at < c->end; c->at++) {
        if (*c->at == '"') {
            out->len = (size_t)(c->at++ - out->at);
            return true;
        }
        if (*c->at == '\\' && ++c->at == c->end) break;
        if ((unsigned char)*c->at < 0x20) break;
    }
    return false;
}

/* Passes over a value, whatever it is. */
static bool skip(cursor *c)
{
    pl_span s;
    int depth = 0;
    do {
        skip_blanks(c);
        if (c->at == c->end) return false;
        char first = *c->at;
        if (first == '"') {
            if (!string(c, &s)) return false;
        } else if (first == '{' || first == '[') {
            depth++;
            c->at++;
        } else if (first == '}' || first == ']') {
            if (!depth--) return false;
            c->at++;
        } else if (first == ',' || first == ':') {
            if (!depth) return false;
            c->at++;
        } else {
            const char *from = c->at;
            while (c->at < c->end && !memchr(",:]}[{\" \t\r\n", *c->at, 11)) c->at++;
            if (c->at == from) return false;
        }
    } while (depth);
    return true;
}

static bool is(pl_span s, const char *text)
{
    return s.len == strlen(text) && !memcmp(s.at, text, s.len);
}

typedef bool member_fn(pl_relay_event *e, pl_span key, cursor *c);

/* Each member of an object, whose value `member` takes. */
static bool object(pl_relay_event *e, cursor *c, member_fn *member)
{
    pl_span key;
    if (!take(c, '{')) return false;
    if (take(c, '}')) return true;
    do {
        if (!string(c, &key) || !take(c, ':')) return false;
        skip_blanks(c);
        if (c->at == c->end || !member(e, key, c)) return false;
    } while (take(c, ','));
    return take(c, '}');
}

static bool is_null(const cursor *c)
{
    return c->end - c->at >= 4 && !memcmp(c->at, "null", 4);
}

/* A count; whatever else it is counts as none. */
static bool count(cursor *c, int64_t *out, pl_span *digits)
{
    const char *from = c->at;
    int64_t n = 0;
    int n_digits = 0;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9' && n_digits++ < 15)
        n = n * 10 + (*c->at++ - '0');
    if (!n_digits) return skip(c);
    *out = n;
    if (digits) *digits = (pl_span){from, (size_t)(c->at - from)};
    return true;
}

static bool text(pl_relay_event *e, cursor *c)
{
    pl_span s;
    if (*c->at != '"') return skip(c);
    if (!string(c, &s)) return false;
    if (s.len) e->has_content = true, e->text = s;
    return true;
}

/* ---- of a choice ------------------------------------------------------------------- */

static bool delta(pl_relay_event *e, pl_span key, cursor *c)
{
    pl_span s;
    if (is(key, "content")) return text(e, c);
    if (is(key, "role") || is_null(c)) return skip(c);
    if (*c->at == '"') { /* reasoning, a refusal */
        if (!string(c, &s)) return false;
        if (s.len) e->has_content = true, e->is_plain = false;
        return true;
    }
    bool empty = c->end - c->at >= 2 && c->at[0] == '[' && c->at[1] == ']';
    if (!empty) e->has_content = true, e->is_plain = false;
    return skip(c);
}

static bool finish(pl_relay_event *e, cursor *c)
{
    pl_span s;
    if (*c->at != '"') return skip(c);
    if (!string(c, &s)) return false;
    e->finish = is(s, "length")  ? PL_FINISH_LENGTH
                : is(s, "abort") ? PL_FINISH_ABORT
                : is(s, "error") ? PL_FINISH_ERROR
                                 : PL_FINISH_STOP;
    return true;
}

static bool ids(pl_relay_event *e, cursor *c)
{
    if (*c->at != '[') return skip(c);
    cursor inside = {c->at + 1, c->end};
    if (!skip(c)) return false;
    skip_blanks(&inside);
    e->n_ids = *inside.at != ']';
    for (; inside.at < c->at; inside.at++) e->n_ids += *inside.at == ',';
    return true;
}

static bool choice(pl_relay_event *e, pl_span key, cursor *c)
{
    int64_t index = 0;
    if (is(key, "index")) {
        bool ok = count(c, &index, NULL);
        if (index) e->is_plain = false;
        return ok;
    }
    if (is(key, "text")) return text(e, c);
    if (is(key, "delta") && *c->at == '{') return object(e, c, delta);
    if (is(key, "finish_reason")) return finish(e, c);
    if (is(key, "token_ids")) return ids(e, c);
    return skip(c);
}

static bool choices(pl_relay_event *e, cursor *c)
{
    if (*c->at != '[') return skip(c);
    c->at++;
    if (take(c, ']')) return true;
    do {
        if (e->has_choice) e->is_plain = false;
        e->has_choice = true;
        if (!object(e, c, choice)) return false;
    } while (take(c, ','));
    return take(c, ']');
}

/* ---- of the whole ------------------------------------------------------------------ */

static bool details(pl_relay_event *e, pl_span key, cursor *c)
{
    return is(key, "cached_tokens") ? count(c, &e->cached_tokens, NULL) : skip(c);
}

static bool usage(pl_relay_event *e, pl_span key, cursor *c)
{
    if (is(key, "prompt_tokens")) return count(c, &e->prompt_tokens, &e->prompt_digits);
    if (is(key, "completion_tokens"))
        return count(c, &e->completion_tokens, &e->completion_digits);
    int64_t total;
    if (is(key, "total_tokens")) return count(c, &total, &e->total_digits);
    if (is(key, "prompt_tokens_details") && *c->at == '{') return object(e, c, details);
    return skip(c);
}

static bool error(pl_relay_event *e, pl_span key, cursor *c)
{
    if (is(key, "message") && *c->at == '"') return string(c, &e->error);
    return is(key, "code") ? count(c, &e->error_code, NULL) : skip(c);
}

static bool whole(pl_relay_event *e, pl_span key, cursor *c)
{
    bool is_object = *c->at == '{';
    if (is(key, "choices")) return choices(e, c);
    if (is(key, "usage") && is_object) {
        e->has_usage = true;
        return object(e, c, usage);
    }
    if (is(key, "error") && !is_null(c)) {
        e->has_error = true;
        return is_object       ? object(e, c, error)
               : *c->at == '"' ? string(c, &e->error)
                               : skip(c);
    }
    return skip(c);
}

bool pl_relay_read(pl_relay_event *e, const char *json, size_t len)
{
    cursor c = {json, json + len};
    *e = (pl_relay_event){.is_plain = true, .n_ids = -1};
    if (!object(e, &c, whole)) return false;
    skip_blanks(&c);
    return c.at == c.end;
}
