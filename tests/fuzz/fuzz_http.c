/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes of a connection, at once and in pieces: the requests found must be the same, each
 * within the limits, and what is refused must be refused both ways.
 */
#include "http_parse.h"

#include <stdlib.h>
#include <string.h>

static const pl_http_limits limits = {512, 1024, 16};

static void check(bool ok)
{
    if (!ok) abort();
}

/* What must be equal: the requests, written one after the other. */
static void note(const pl_request *r, pl_buf *out)
{
    check(r->head.len <= 4096 && r->body.len <= (size_t)limits.max_body);
    check(r->path < r->head.len && r->query < r->fields && r->fields <= r->head.len);
    pl_buf_printf(out, "%d %d %d|", r->method, r->minor, r->keep_alive);
    pl_buf_add_str(out, r->head.data + r->path);
    const char *path = pl_request_path(r); /* without escapes, so it cannot be longer */
    check(strlen(path) <= strlen(r->head.data + r->path));
    pl_buf_add_str(out, path);
    pl_buf_add_str(out, r->head.data + r->query);
    const char *host = pl_request_header(r, "Host");
    check(host || !r->minor);
    pl_buf_add_str(out, host ? host : "-");
    pl_buf_add(out, r->head.data, r->head.len);
    pl_buf_add(out, r->body.data, r->body.len);
}

/* `step` 0: all at once. */
static bool run(const char *data, size_t len, size_t step, pl_buf *out)
{
    pl_parser p;
    pl_parser_init(&p, &limits);
    size_t at = 0;
    while (at < len && p.phase != PL_PARSE_BAD) {
        size_t n = step ? PL_MIN(step, len - at) : len - at;
        char *piece = pl_memdup(data + at, n); /* so that reading past it is seen */
        size_t taken = pl_parser_feed(&p, piece, n);
        pl_free(piece);
        check(taken <= n && (taken == n || p.phase >= PL_PARSE_DONE));
        at += taken;
        if (p.phase != PL_PARSE_DONE) continue;
        note(&p.request, out);
        pl_parser_reset(&p);
    }
    bool bad = p.phase == PL_PARSE_BAD;
    check(!bad || (p.status >= 400 && p.status < 600 && *p.why));
    pl_parser_fini(&p);
    return bad;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (!len) return 0;
    pl_buf whole = {0}, pieces = {0};
    bool bad = run((const char *)data + 1, len - 1, 0, &whole);
    bool bad_too = run((const char *)data + 1, len - 1, 1 + data[0] % 32, &pieces);
    check(bad == bad_too && whole.len == pieces.len);
    check(!whole.len || !memcmp(whole.data, pieces.data, whole.len));
    pl_buf_fini(&whole);
    pl_buf_fini(&pieces);
    return 0;
}
