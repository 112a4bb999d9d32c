/* SPDX-License-Identifier: Apache-2.0
 *
 * link_presence.c - who is there: hellos, heartbeats, leases.
 *
 * Owns     the peers, and what this process says of itself.
 * Ignores  what a hello says beyond its id and its version.
 * Thread   io; hello and peer: lua
 *
 * A process that said hello tells it each BEAT, and at once to who asks: its id, the
 * version it speaks, its hello, what its engines count. An empty message takes it back.
 *
 *   unheard --hello--> there --empty; nobody listens; unheard for the lease--> forgotten
 *
 * The subject is that of a key of a JetStream bucket (best effort, to be looked into with
 * NATS's own tools); those who live hear it as any message, so all works without as well.
 */
#include "json.h"
#include "link_own.h"

#include <stdio.h>
#include <string.h>

#define BEAT (500 * PL_MS)
#define BEAT_GAP (50 * PL_MS)   /* between two, however many ask */
#define SPACE_GAP (200 * PL_MS) /* between two answers which namespace this is */
#define MIN_LEASE (1500 * PL_MS)

/* ---- what we say ------------------------------------------------------------------- */

static void subject_of(const pl_links *ls, char *out, size_t size)
{
    snprintf(out, size, "%s%s", ls->kv, ls->id);
}

static void publish(pl_links *ls, const pl_buf *text)
{
    char subject[PL_LINK_SUBJECT + PL_ID_LEN];
    subject_of(ls, subject, sizeof subject);
    pl_status status = pl_bus_send(ls->bus, subject, NULL, text->data, text->len);
    if (status == PL_OK) pl_metric_add(ls->metrics.sent, 1);
    if (status == PL_ELIMIT)
        pl_links_malformed(ls, "a hello of our own", pl_error_text());
}

static void beat(pl_links *ls, int64_t now)
{
    pl_buf text = {0};
    pl_lock(&ls->lock);
    if (ls->hello) {
        pl_buf_printf(&text, "{\"id\":\"%s\",\"wire\":%d,\"hello\":", ls->id, PL_WIRE);
        pl_buf_add(&text, ls->hello, ls->hello_len);
    }
    pl_unlock(&ls->lock);
    if (text.len) {
        pl_buf_add_str(&text, ",\"engines\":");
        ls->hooks.stats(ls->hooks.ctx, &text);
        pl_buf_add_str(&text, "}");
        publish(ls, &text);
    }
    pl_buf_fini(&text);
    ls->beat_ns = now;
    ls->beat_due = false;
}

static void run_hello(pl_note *note)
{
    pl_links *ls = (pl_links *)((char *)note - offsetof(pl_links, hello_note));
    if (ls->stopped) return;
    pl_lock(&ls->lock);
    bool gone = !ls->hello;
    pl_unlock(&ls->lock);
    if (gone)
        publish(ls, &(pl_buf){0});
    else
        beat(ls, pl_now_ns());
}

void pl_links_hello(pl_links *ls, const char *json, size_t len)
{
    pl_lock(&ls->lock);
    pl_free(ls->hello);
    ls->hello = json ? pl_strndup(json, len) : NULL;
    ls->hello_len = len;
    pl_unlock(&ls->lock);
    pl_loop_post(ls->loop, &ls->hello_note);
}

static void make_bucket(pl_links *ls)
{
    char subject[PL_LINK_SUBJECT + 32];
    pl_buf text = {0};
    snprintf(subject, sizeof subject, "$JS.API.STREAM.CREATE.%s", ls->bucket);
    pl_buf_printf(&text,
                  "{\"name\":\"%s\",\"subjects\":[\"%s>\"],\"retention\":\"limits\","
                  "\"max_consumers\":-1,\"max_msgs\":-1,\"max_bytes\":-1,"
                  "\"max_msgs_per_subject\":1,\"max_msg_size\":-1,\"discard\":\"new\","
                  "\"storage\":\"memory\",\"num_replicas\":1,\"max_age\":5000000000,"
                  "\"duplicate_window\":5000000000,\"allow_rollup_hdrs\":true,"
                  "\"deny_delete\":true,\"allow_direct\":true}",
                  ls->bucket, ls->kv);
    pl_bus_send(ls->bus, subject, NULL, text.data, text.len);
    pl_buf_fini(&text);
}

/* A question mark before it asks the others for theirs. */
static void tell_space(pl_links *ls, const char *mark)
{
    char text[PL_BUS_SPACE + 2];
    int n = snprintf(text, sizeof text, "%s%s", mark, ls->space);
    pl_bus_send(ls->bus, PL_SPACES, NULL, text, (size_t)n);
}

void pl_presence_here(pl_links *ls)
{
    make_bucket(ls);
    tell_space(ls, "?");
    pl_bus_send(ls->bus, ls->who, NULL, "", 0);
    beat(ls, pl_now_ns());
}

void pl_presence_asked(pl_links *ls)
{
    int64_t now = pl_now_ns();
    if (now - ls->beat_ns >= BEAT_GAP)
        beat(ls, now);
    else
        ls->beat_due = true;
}

/* Namespaces keep apart, so whoever meant to join another one sees nobody and would hear
 * of nothing: each other namespace is told of, once. */
void pl_presence_space(pl_links *ls, const char *name, size_t len)
{
    char other[PL_BUS_SPACE + 1] = {0};
    bool asks = len && *name == '?';
    len -= asks;
    if (!len || len > PL_BUS_SPACE) return;
    memcpy(other, name + asks, len);
    if (!pl_bus_is_space(other) || !strcmp(other, ls->space)) return;
    int64_t now = pl_now_ns();
    if (asks && now - ls->space_ns >= SPACE_GAP) {
        ls->space_ns = now;
        tell_space(ls, "");
    }
    for (int i = 0; i < ls->n_others; i++)
        if (!strcmp(other, ls->others[i])) return;
    if (ls->n_others == PL_MAX_SPACES) return;
    memcpy(ls->others[ls->n_others++], other, sizeof other);
    pl_log(PL_LOG_INFO,
           "there are processes in namespace '%s' on this bus; this one is in '%s' and "
           "does not see them",
           other, ls->space);
}

/* ---- what the others say ------------------------------------------------------------
 */

static pl_peer *find(const pl_links *ls, uint64_t key)
{
    pl_peer *p = ls->peers;
    while (p && p->key != key) p = p->next;
    return p;
}

int32_t pl_presence_find(pl_links *ls, uint64_t key, int *wire)
{
    pl_lock(&ls->lock);
    const pl_peer *p = find(ls, key);
    int32_t id = p && !p->refused ? p->id : 0;
    if (id) *wire = PL_MIN(p->wire, PL_WIRE);
    pl_unlock(&ls->lock);
    return id;
}

uint64_t pl_presence_key(pl_links *ls, int32_t peer)
{
    pl_lock(&ls->lock);
    const pl_peer *p = ls->peers;
    while (p && p->id != peer) p = p->next;
    uint64_t key = p && !p->refused ? p->key : 0;
    pl_unlock(&ls->lock);
    return key;
}

pl_status pl_links_peer(pl_links *ls, int32_t peer, pl_buf *out)
{
    pl_lock(&ls->lock);
    const pl_peer *p = ls->peers;
    while (p && (p->id != peer || p->refused)) p = p->next;
    if (p) pl_buf_add(out, p->text.data, p->text.len);
    pl_unlock(&ls->lock);
    return p ? PL_OK : pl_fail(PL_ENOTFOUND, "process %d is not there", peer);
}

/* The end of the JSON value at s, in a text that is known to be JSON. */
static const char *value_end(const char *s, const char *end)
{
    int depth = 0;
    bool quoted = false;
    for (; s < end; s++) {
        if (quoted) {
            if (*s == '\\') s++;
            if (*s == '"') quoted = false;
        } else if (*s == '"') {
            quoted = true;
        } else if (*s == '{' || *s == '[') {
            depth++;
        } else if (*s == '}' || *s == ']') {
            if (!depth--) return s;
        } else if (*s == ',' && !depth) {
            return s;
        }
    }
    return s;
}

/* The hello's own text: to be compared with what was said before. */
static void find_hello(pl_peer *p)
{
    p->hello = p->hello_len = 0;
    const char *text = p->text.data, *end = text + p->text.len;
    const char *at = memchr(text, '{', p->text.len);
    while (at && *at != '}') {
        const char *key = memchr(at, '"', (size_t)(end - at)); /* the next member's */
        if (!key) return;
        const char *next = value_end(key, end);
        if (!strncmp(key, "\"hello\"", 7)) {
            p->hello = (size_t)(key - text);
            p->hello_len = (size_t)(next - key);
            return;
        }
        at = next;
    }
}

static bool parse(const pl_links *ls, uint64_t key, const char *data, size_t len,
                  int *wire)
{
    pl_json *doc = len <= PL_MAX_HELLO ? pl_json_open(data, len) : NULL;
    uint64_t said = 0;
    size_t n = 0;
    const pl_json *id = pl_json_find(doc, "id"), *version = pl_json_find(doc, "wire");
    bool ok = pl_json_kind(id) == PL_JSON_STRING &&
              pl_json_kind(version) == PL_JSON_INTEGER &&
              pl_json_kind(pl_json_find(doc, "hello")) == PL_JSON_OBJECT &&
              pl_json_kind(pl_json_find(doc, "engines")) == PL_JSON_ARRAY;
    if (ok) {
        const char *text = pl_json_string(id, &n);
        int64_t v = pl_json_integer(version);
        ok = pl_link_id_key(text, n, &said) && said == key && v >= 0 && v < 1 << 20;
        *wire = ok ? (int)v : 0;
    }
    pl_json_close(doc);
    return ok && key != ls->key;
}

/* With the lock held. */
static pl_peer *add_peer(pl_links *ls, uint64_t key, int wire)
{
    pl_peer *p = pl_alloc(sizeof *p);
    p->next = ls->peers;
    p->key = key;
    p->wire = wire;
    p->id = ++ls->last_peer;
    /* A newer process speaks our version too; an older one than that does not. */
    p->refused = wire < PL_WIRE - 1 || wire > PL_WIRE + 1;
    ls->peers = p;
    ls->n_peers++;
    if (p->refused)
        pl_log(
            PL_LOG_ERROR,
            "process %016llx is refused: it speaks version %d of the wire, we speak %d",
            (unsigned long long)key, wire, PL_WIRE);
    return p;
}

/* With the lock held: whether its hello differs from what it said before. */
static bool renew(pl_peer *p, const char *data, size_t len)
{
    pl_buf old = p->text;
    size_t at = p->hello, n = p->hello_len;
    p->text = (pl_buf){0};
    pl_buf_add(&p->text, data, len);
    find_hello(p);
    bool fresh = !old.len || n != p->hello_len ||
                 memcmp(old.data + at, p->text.data + p->hello, n);
    pl_buf_fini(&old);
    return fresh;
}

void pl_presence_heard(pl_links *ls, uint64_t key, const char *data, size_t len)
{
    int wire;
    if (!len) {
        pl_presence_gone(ls, key, PL_LOST_LEFT);
        return;
    }
    if (!parse(ls, key, data, len, &wire)) {
        pl_links_malformed(ls, "a hello", pl_error_text());
        return;
    }
    pl_lock(&ls->lock);
    pl_peer *p = find(ls, key);
    if (!p && ls->n_peers < PL_MAX_PEERS) p = add_peer(ls, key, wire);
    bool fresh = p && renew(p, data, len) && !p->refused;
    int32_t id = p ? p->id : 0;
    if (p) p->heard_ns = pl_now_ns();
    pl_unlock(&ls->lock);
    if (!fresh) return;
    for (pl_link *l = ls->links; l; l = l->next)
        if (l->key == key) l->peer = id;
    ls->hooks.peer(ls->hooks.ctx, id, 0);
}

/* ---- who is there no more ------------------------------------------------------------
 */

/* Takes the first out that is, or that was not heard since; its number, 0: there is none.
 * A refused one was never there for those above: -1. */
static int32_t take_out(pl_links *ls, uint64_t key, int64_t since)
{
    int32_t id = 0;
    pl_lock(&ls->lock);
    for (pl_peer **at = &ls->peers; *at; at = &(*at)->next) {
        pl_peer *p = *at;
        if ((key && p->key != key) || p->heard_ns >= since) continue;
        id = p->refused ? -1 : p->id;
        *at = p->next;
        ls->n_peers--;
        pl_buf_fini(&p->text);
        pl_free(p);
        break;
    }
    pl_unlock(&ls->lock);
    return id;
}

static void forget(pl_links *ls, uint64_t key, int64_t since, int why)
{
    for (int32_t id; (id = take_out(ls, key, since));)
        if (id > 0) ls->hooks.peer(ls->hooks.ctx, id, why);
}

void pl_presence_gone(pl_links *ls, uint64_t key, int why)
{
    forget(ls, key, INT64_MAX, why);
}

void pl_presence_tick(pl_links *ls, int64_t now)
{
    if (!ls->there) return;
    if (now - ls->beat_ns >= BEAT || (ls->beat_due && now - ls->beat_ns >= BEAT_GAP))
        beat(ls, now);
    int64_t lease = PL_MAX(ls->o.lost_after_ms * PL_MS, MIN_LEASE);
    if (now - ls->there_ns < PL_BUS_GRACE) return;
    forget(ls, 0, now - lease, PL_LOST_SILENT);
}

/* ---- life ----------------------------------------------------------------------------
 */

void pl_presence_open(pl_links *ls)
{
    pl_mutex_init(&ls->lock);
    ls->hello_note.run = run_hello;
}

void pl_presence_stop(pl_links *ls)
{
    pl_lock(&ls->lock);
    bool said = ls->hello != NULL;
    pl_unlock(&ls->lock);
    if (said) publish(ls, &(pl_buf){0});
}

void pl_presence_close(pl_links *ls)
{
    while (take_out(ls, 0, INT64_MAX)) continue;
    pl_free(ls->hello);
    pl_mutex_fini(&ls->lock);
}
