/* SPDX-License-Identifier: Apache-2.0
 *
 * http_parse.h - bytes to one HTTP/1.1 request, within limits. Part of http.
 *
 * Owns     what has arrived of one request.
 * Ignores  sockets, answers, time.
 * Thread   io (nothing here locks, nothing here is shared).
 *
 *   HEAD --headers complete--> BODY --message complete--> DONE --reset--> HEAD
 *     |                          |
 *     +------- refused ----------+----------------------> BAD
 */
#ifndef PL_HTTP_PARSE_H
#define PL_HTTP_PARSE_H

#include "base.h"

#include <llhttp.h>

typedef struct pl_http_limits {
    int64_t max_body;
    int32_t max_header_bytes, max_headers; /* the request line counts as header bytes */
} pl_http_limits;

typedef struct pl_request {
    pl_buf head; /* target\0, then name\0value\0 of each header; names in lower case */
    pl_buf body;
    pl_buf decoded;     /* the path, where it had escapes */
    size_t path, query; /* where they start in head, as they came */
    size_t fields;      /* where the first header starts */
    uint8_t method, minor;
    bool keep_alive;
} pl_request;
void pl_request_fini(pl_request *r);
const char *pl_request_path(const pl_request *r); /* without escapes */
const char *pl_request_header(const pl_request *r, const char *name); /* NULL: absent */

enum {
    PL_PARSE_HEAD = 0,
    PL_PARSE_BODY,
    PL_PARSE_DONE,
    PL_PARSE_BAD
};
typedef struct pl_parser {
    llhttp_t llhttp;
    const pl_http_limits *limits;
    pl_request request;
    int phase;
    int status;          /* BAD: what to answer, */
    char why[160];       /* and why */
    bool started;        /* some of the request is here */
    bool wants_continue; /* before it sends the body: "100 Continue" */
    bool scanned;        /* the head's end was seen */
    bool blank;          /* the current line is empty so far */
    size_t head_bytes, n_headers;
} pl_parser;
void pl_parser_init(pl_parser *p, const pl_http_limits *limits);
void pl_parser_fini(pl_parser *p);
void pl_parser_reset(pl_parser *p); /* after DONE, when the request was taken out */
/* How many bytes it took: all, unless the request is DONE or BAD. */
size_t pl_parser_feed(pl_parser *p, const char *data, size_t len);

#endif
