/* SPDX-License-Identifier: Apache-2.0
 *
 * relay.h - a request that another server answers: events from its socket to the client's.
 *
 * Owns     what has come of an answer and is not with the client yet; what is known of it
 *          (relay_event.c): text, tokens, how it ended.
 * Ignores  connections (upstream.h), which server it is and what it is asked (Lua).
 * Thread   io; pl_relay_* of perilune.h: lua.
 *
 *   idle --send--> asked --head: events--> begun --go--> passing --end--> over
 *    ^               |                                      |
 *    |               +--- else: collected ------------------+--> over
 *    +---- failed: it may be sent again, to another server -+
 *
 * Only whole events are passed on, so whatever another server says after a loss stands
 * where an event may stand. A client that reads slowly stops the reading from the server.
 */
#ifndef PL_RELAY_H
#define PL_RELAY_H

#include "http.h"
#include "load.h"
#include "upstream.h"

typedef struct pl_relays pl_relays; /* all of this process */
pl_relays *pl_relays_open(pl_loop *loop);
pl_status pl_relays_trust(pl_relays *rs, const char *ca); /* lua */
void pl_relays_stop(pl_relays *rs);                       /* io: ends all */
void pl_relays_close(pl_relays *rs); /* after the loop's last reference */
pl_relay *pl_relays_make(pl_relays *rs, pl_exchange *x); /* lua */

#pragma GCC visibility push(default) /* tests and fuzzers read events */

typedef struct pl_span {
    const char *at;
    size_t len;
} pl_span;

/* What an event's JSON says, as far as it matters here: a chunk of a chat or a completion. */
typedef struct pl_relay_event {
    bool has_choice;
    bool has_content; /* text, or what else a model may say: tool calls, reasoning */
    bool is_plain; /* of at most one choice, with the index 0, and no content but text */
    pl_span text;  /* if it is plain: between the quotes */
    int finish;    /* PL_FINISH_* */
    int32_t n_ids; /* of token_ids; -1: there are none */
    bool has_usage;
    int64_t prompt_tokens, completion_tokens, cached_tokens;
    pl_span prompt_digits, completion_digits, total_digits; /* where these stand */
    bool has_error;
    pl_span error; /* its message, between the quotes; empty: none */
    int64_t error_code;
} pl_relay_event;
/* False: the text is no JSON object. It is not checked to the last comma. */
bool pl_relay_read(pl_relay_event *e, const char *text, size_t len);

#pragma GCC visibility pop

#endif
