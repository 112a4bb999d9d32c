/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune/relay.h - requests that other servers answer.
 */
#ifndef PERILUNE_H
#error "include perilune.h"
#endif

/* clang-format off */
/* [cdef] */

/* ---- relay: a request that another server answers (lua thread) ------------------- */

/* The server's events go from its socket to the client's, and Lua hears of the beginning
 * and the end: PL_EV_ANSWER (a: HTTP status) once a stream of events has begun, which then
 * waits for pl_relay_go; PL_EV_ANSWERED when it is over (a: PL_OK, or why not; b: the server
 * may have had the request). What is no stream of events is collected for pl_relay_body. */
typedef struct pl_relay pl_relay;
typedef struct pl_relay_request {
    const char *host;                      /* a name or an address */
    int32_t port;
    int32_t tls;                           /* not 0: with TLS */
    const char *text;                      /* the whole HTTP request */
    size_t len;
    int32_t connect_ms, first_ms, between_ms;   /* the longest waits: for a connection, the answer, more of it */
    int64_t max_body;                      /* of an answer that is collected */
} pl_relay_request;
/* Once, before the first request with TLS: whose certificates are believed: those of a PEM file,
 * or (NULL) the system's. PL_EINVAL. */
pl_status pl_relay_trust(pl_runtime *rt, const char *ca);
/* `x` may be NULL: then everything is collected. If its client disconnects, it is cancelled. */
pl_relay *pl_relay_open(pl_runtime *rt, pl_exchange *x);
int32_t pl_relay_id(const pl_relay *r);
/* Before it is sent. hide_usage: the client did not ask for the event with usage. keep: the text,
 * so that another server can go on with it. n_prompt: how many tokens the prompt has, by our count. */
void pl_relay_flags(pl_relay *r, int hide_usage, int keep, int32_t n_prompt);
void pl_relay_observe(pl_relay *r, int metric);   /* a histogram of the seconds between events; negative: none */
/* While it is not under way: counts for that load (NULL: none) until it is over: a prompt of
 * n_tokens, of which the first n_cached are thought to be cached. */
void pl_relay_charge(pl_relay *r, pl_load *l, int32_t n_tokens, int32_t n_cached);
/* First, or after an ANSWERED that was no end of a stream: to a server that goes on with the
 * text so far. PL_ECANCELED: it was cancelled, or its client is gone. */
pl_status pl_relay_send(pl_relay *r, const pl_relay_request *q);
void pl_relay_go(pl_relay *r);             /* the client's answer has begun: events may follow */
void pl_relay_cancel(pl_relay *r);         /* ANSWERED follows, with PL_ECANCELED, if it is under way */
void pl_relay_close(pl_relay *r);
/* After ANSWERED (ANSWER: the first two): */
int pl_relay_status(const pl_relay *r);    /* HTTP's; 0: nothing was answered */
const char *pl_relay_header(const pl_relay *r, const char *name);   /* NULL: absent */
const char *pl_relay_why(const pl_relay *r);                  /* why it failed */
const char *pl_relay_body(const pl_relay *r, size_t *len);
/* The text that the client has been sent, as JSON has it between quotes. NULL: another server
 * cannot go on with that: it is no plain text of a single choice. */
const char *pl_relay_text(const pl_relay *r, size_t *len);
/* Any time. Tokens are as many as the server says, or else as there were events with content.
 * n_prompt: as the first server says, if it lived to say so. */
void pl_relay_result(pl_relay *r, pl_stream_end *out, int32_t *n_prompt);

/* [/cdef] */
/* clang-format on */
