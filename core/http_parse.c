/* SPDX-License-Identifier: Apache-2.0 */
#include "http_parse.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

/* Trailers count as headers of the request that they follow, and are dropped. */

static pl_parser *of(llhttp_t *l)
{
    return (pl_parser *)l->data;
}

/* The first refusal stands. Returns what makes llhttp stop. */
static int refuse(pl_parser *p, int status, const char *why)
{
    if (p->phase != PL_PARSE_BAD) snprintf(p->why, sizeof p->why, "%s", why);
    if (p->phase != PL_PARSE_BAD) p->status = status;
    p->phase = PL_PARSE_BAD;
    return HPE_USER;
}

static int too_large(pl_parser *p)
{
    return refuse(p, 431, "the request's headers are too large");
}

static int on_url(llhttp_t *l, const char *at, size_t len)
{
    pl_buf_add(&of(l)->request.head, at, len);
    return 0;
}

static int on_url_complete(llhttp_t *l)
{
    pl_request *r = &of(l)->request;
    pl_buf_add(&r->head, "\0/", 3); /* "/": the path where the target has none */
    r->fields = r->head.len;
    return 0;
}

static int on_field(llhttp_t *l, const char *at, size_t len)
{
    pl_parser *p = of(l);
    if (p->phase != PL_PARSE_HEAD) {
        p->head_bytes += len;
        return p->head_bytes > (size_t)p->limits->max_header_bytes ? too_large(p) : 0;
    }
    pl_buf *head = &p->request.head;
    pl_buf_reserve(head, len);
    for (size_t i = 0; i < len; i++)
        head->data[head->len++] =
            (char)(at[i] >= 'A' && at[i] <= 'Z' ? at[i] | 0x20 : at[i]);
    return 0;
}

static int on_field_complete(llhttp_t *l)
{
    pl_parser *p = of(l);
    if (++p->n_headers > (size_t)p->limits->max_headers)
        return refuse(p, 431, "the request has too many headers");
    if (p->phase == PL_PARSE_HEAD) pl_buf_add(&p->request.head, "", 1);
    return 0;
}

static int on_value(llhttp_t *l, const char *at, size_t len)
{
    pl_parser *p = of(l);
    if (p->phase == PL_PARSE_HEAD) {
        pl_buf_add(&p->request.head, at, len);
        return 0;
    }
    p->head_bytes += len;
    return p->head_bytes > (size_t)p->limits->max_header_bytes ? too_large(p) : 0;
}

static int on_value_complete(llhttp_t *l)
{
    pl_parser *p = of(l);
    if (p->phase != PL_PARSE_HEAD) return 0;
    pl_buf *head = &p->request.head;
    while (head->len && strchr(" \t", head->data[head->len - 1]) &&
           head->data[head->len - 1])
        head->len--;
    pl_buf_add(head, "", 1);
    return 0;
}

/* ---- what the head as a whole must be ---------------------------------------------- */

static const char *next_field(const pl_request *r, const char *at)
{
    if (!at)
        at = r->head.data + r->fields;
    else
        at += strlen(at) + 1, at += strlen(at) + 1;
    return at < r->head.data + r->head.len ? at : NULL;
}

static int count_fields(const pl_request *r, const char *name)
{
    int n = 0;
    for (const char *at = next_field(r, NULL); at; at = next_field(r, at))
        n += !strcmp(at, name);
    return n;
}

const char *pl_request_header(const pl_request *r, const char *name)
{
    for (const char *at = next_field(r, NULL); at; at = next_field(r, at))
        if (!strcasecmp(at, name)) return at + strlen(at) + 1;
    return NULL;
}

/* "http://host/path?query#x" and "/path?query" alike become a path and a query. */
static void split_target(pl_request *r)
{
    char *target = r->head.data;
    char *hash = strchr(target, '#');
    if (hash) *hash = 0;
    char *path = target;
    if (*target != '/' && (path = strstr(target, "://")))
        path += 3 + strcspn(path + 3, "/?");
    if (!path) path = target;
    char *query = strchr(path, '?');
    if (query) *query++ = 0;
    r->path = (size_t)(path - target);
    r->query = query ? (size_t)(query - target) : r->fields - 1;
    if (!*path) r->path = r->fields - 2;
}

const char *pl_request_path(const pl_request *r)
{
    return r->decoded.len ? r->decoded.data : r->head.data + r->path;
}

static int hex(char c)
{
    const char *digits = "0123456789abcdef";
    const char *at = c ? strchr(digits, c >= 'A' && c <= 'F' ? c | 0x20 : c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* Once: what an escape stands for is no escape again. An escaped control character is in
 * nobody's path, and would break lines of the log. */
static int decode_path(pl_parser *p)
{
    pl_request *r = &p->request;
    const char *s = r->head.data + r->path;
    if (!strchr(s, '%')) return 0;
    for (; *s; s++) {
        int high = *s == '%' ? hex(s[1]) : -1, low = high < 0 ? -1 : hex(s[2]);
        if (*s == '%' && low < 0) return refuse(p, 400, "the path has a bad escape");
        char c = *s == '%' ? (char)(high << 4 | low) : *s;
        if (*s == '%' && ((unsigned char)c < 0x20 || c == 0x7f))
            return refuse(p, 400, "the path has an escaped control character");
        if (*s == '%') s += 2;
        pl_buf_add(&r->decoded, &c, 1);
    }
    pl_buf_add(&r->decoded, "", 1);
    return 0;
}

static int check_framing(pl_parser *p, const llhttp_t *l)
{
    const char *coding = pl_request_header(&p->request, "transfer-encoding");
    if (coding) {
        if (!l->http_minor) return refuse(p, 400, "HTTP/1.0 knows no Transfer-Encoding");
        if (count_fields(&p->request, "content-length") ||
            count_fields(&p->request, "transfer-encoding") > 1)
            return refuse(p, 400, "the length of the request's body is ambiguous");
        if (strcasecmp(coding, "chunked"))
            return refuse(p, 501, "of transfer codings only 'chunked' is understood");
    } else if (l->content_length > (uint64_t)p->limits->max_body) {
        return refuse(p, 413, "the request's body is too large");
    }
    return 0;
}

static int check_head(pl_parser *p, llhttp_t *l)
{
    const pl_request *r = &p->request;
    if (l->http_major != 1 || l->http_minor > 1)
        return refuse(p, 505, "this server speaks HTTP/1.1");
    if (l->method == HTTP_CONNECT) return refuse(p, 501, "this server is no proxy");
    int n_hosts = count_fields(r, "host");
    if (n_hosts > 1 || (!n_hosts && l->http_minor))
        return refuse(p, 400, "the request needs one Host header");
    if (r->head.data[0] != '/' && r->head.data[0] != '*' && !strstr(r->head.data, "://"))
        return refuse(p, 400, "the request's target is not a path");
    int bad = check_framing(p, l);
    const char *expect = pl_request_header(r, "expect");
    if (bad || !expect || !l->http_minor) return bad;
    if (strcasecmp(expect, "100-continue"))
        return refuse(p, 417, "only '100-continue' can be expected");
    p->wants_continue = l->content_length || l->flags & F_CHUNKED;
    return 0;
}

static int on_headers_complete(llhttp_t *l)
{
    pl_parser *p = of(l);
    if (check_head(p, l)) return -1;
    p->request.method = l->method;
    p->request.minor = l->http_minor;
    p->request.keep_alive = llhttp_should_keep_alive(l);
    split_target(&p->request);
    if (decode_path(p)) return -1;
    p->phase = PL_PARSE_BODY;
    l->upgrade = 0; /* offers to upgrade (h2c, websocket) are politely ignored */
    return 0;
}

static int on_body(llhttp_t *l, const char *at, size_t len)
{
    pl_parser *p = of(l);
    if (p->request.body.len + len > (size_t)p->limits->max_body)
        return refuse(p, 413, "the request's body is too large");
    pl_buf_add(&p->request.body, at, len);
    return 0;
}

static int on_chunk_extension(llhttp_t *l, const char *at, size_t len)
{
    (void)at;
    pl_parser *p = of(l);
    p->head_bytes += len;
    return p->head_bytes > (size_t)p->limits->max_header_bytes
               ? refuse(p, 413, "the chunks' extensions are too large")
               : 0;
}

static int on_complete(llhttp_t *l)
{
    of(l)->phase = PL_PARSE_DONE;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_url = on_url,
    .on_url_complete = on_url_complete,
    .on_header_field = on_field,
    .on_header_field_complete = on_field_complete,
    .on_header_value = on_value,
    .on_header_value_complete = on_value_complete,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_chunk_extension_name = on_chunk_extension,
    .on_chunk_extension_value = on_chunk_extension,
    .on_message_complete = on_complete,
};

/* ---- the raw head: what llhttp lets pass ------------------------------------------- */

/* Looks at the head's lines before llhttp does: their number of bytes, and no line may go
 * on from the one before (obs-fold). */
static void scan_head(pl_parser *p, const char *s, size_t len)
{
    size_t i = 0;
    while (i < len && !p->scanned) {
        if (p->blank && (s[i] == ' ' || s[i] == '\t')) {
            refuse(p, 400, "a header is folded over two lines");
            return;
        }
        const char *end = memchr(s + i, '\n', len - i);
        size_t n = end ? (size_t)(end - s) - i : len - i;
        if (n > 1 || (n == 1 && s[i] != '\r')) p->blank = false;
        i += n;
        if (!end) break;
        i++;
        p->scanned = p->blank;
        p->blank = true;
    }
    p->head_bytes += i;
    if (p->head_bytes > (size_t)p->limits->max_header_bytes) too_large(p);
}

size_t pl_parser_feed(pl_parser *p, const char *data, size_t len)
{
    size_t skip = 0;
    if (p->phase >= PL_PARSE_DONE) return 0;
    if (!p->started) /* empty lines between requests */
        while (skip < len && (data[skip] == '\r' || data[skip] == '\n')) skip++;
    if (skip == len) return len;
    p->started = true;
    if (!p->scanned) scan_head(p, data + skip, len - skip);
    if (p->phase == PL_PARSE_BAD) return skip;
    int code = llhttp_execute(&p->llhttp, data + skip, len - skip);
    if (code == HPE_OK) return len;
    if (code == HPE_PAUSED) return (size_t)(llhttp_get_error_pos(&p->llhttp) - data);
    if (p->phase != PL_PARSE_BAD) {
        char why[128];
        snprintf(why, sizeof why, "the request is not valid HTTP: %s",
                 llhttp_get_error_reason(&p->llhttp));
        refuse(p, 400, why);
    }
    return skip;
}

/* ---- life -------------------------------------------------------------------------- */

void pl_request_fini(pl_request *r)
{
    pl_buf_fini(&r->head);
    pl_buf_fini(&r->body);
    pl_buf_fini(&r->decoded);
    *r = (pl_request){0};
}

void pl_parser_init(pl_parser *p, const pl_http_limits *limits)
{
    *p = (pl_parser){.limits = limits};
    llhttp_init(&p->llhttp, HTTP_REQUEST, &settings);
    p->llhttp.data = p;
}

void pl_parser_fini(pl_parser *p)
{
    pl_request_fini(&p->request);
}

void pl_parser_reset(pl_parser *p)
{
    pl_parser_fini(p);
    pl_parser_init(p, p->limits);
}
