/* SPDX-License-Identifier: Apache-2.0
 *
 * link_presence.c - who is there: hellos, heartbeats, leases.
 *
 * Owns     the peers, and what this process says of itself.
 * Ignores  what a hello says beyond its id, its version, its serial and its address.
 * Thread   io; hello, peer and stats: lua
 *
 * Two messages. A hello says in JSON what a process is: id, version, serial, where sockets
 * reach it (link_direct.c), and what Lua has to say. It goes out when it changes, to who asks, and each HELLO for those who look
 * into the bucket; a newer one has a higher serial; an empty message takes it back. A
 * heartbeat says each BEAT what the process's engines count, in binary (wire_beat.c), and
 * names the serial of the hello: who has not heard that one asks for it.
 *
 *   unheard --hello--> known --heartbeat--> there --empty; nobody listens; unheard for
 *                                                   the lease--> forgotten
 *
 * A hello's subject is that of a key of a JetStream bucket (best effort, to be looked
 * into with NATS's own tools); all works without that as well.
 */
#include "link_presence.h"

#include "json.h"
#include "link_own.h"

#include <stdio.h>
#include <string.h>

#define BEAT (500 * PL_MS)
#define HELLO (2000 * PL_MS)    /* the bucket forgets after 5 s */
#define HELLO_GAP (50 * PL_MS)  /* between two, however many ask */
#define ASK_GAP (50 * PL_MS)    /* between two questions for one */
#define SPACE_GAP (200 * PL_MS) /* between two answers which namespace this is */
#define MIN_LEASE (1500 * PL_MS)

/* ---- what we say ------------------------------------------------------------------- */

static void publish(pl_links *ls, const char *stem, const pl_buf *text)
{
    char subject[PL_LINK_SUBJECT + PL_ID_LEN];
    snprintf(subject, sizeof subject, "%s%s", stem, ls->id);
    pl_status status = pl_bus_send(ls->bus, subject, NULL, text->data, text->len);
    if (status == PL_OK) pl_metric_add(ls->metrics.sent, 1);
    if (status == PL_ELIMIT)
        pl_links_malformed(ls, "a hello of our own", pl_error_text());
}

static void say_beat(pl_links *ls, int64_t now)
{
    pl_buf beat = {0};
    pl_lock(&ls->lock);
    uint64_t serial = ls->hello ? ls->serial : 0;
    pl_unlock(&ls->lock);
    ls->beat_ns = now;
    if (!serial) return;
    pl_wire_put_beat(&beat, serial);
    ls->hooks.stats(ls->hooks.ctx, &beat);
    publish(ls, ls->beat, &beat);
    pl_buf_fini(&beat);
}

/* With a heartbeat: who hears of us wants both. */
static void say_hello(pl_links *ls, int64_t now)
{
    pl_buf text = {0};
    pl_lock(&ls->lock);
    if (ls->hello) {
        pl_buf_printf(&text, "{\"id\":\"%s\",\"wire\":%d,\"serial\":%llu,", ls->id,
                      PL_WIRE, (unsigned long long)ls->serial);
        if (ls->direct) pl_direct_hello(ls->direct, &text);
        pl_buf_add_str(&text, ls->direct ? ",\"hello\":" : "\"hello\":");
        pl_buf_add(&text, ls->hello, ls->hello_len);
        pl_buf_add_str(&text, "}");
    }
    pl_unlock(&ls->lock);
    if (text.len) publish(ls, ls->kv, &text);
    pl_buf_fini(&text);
    ls->hello_ns = now;
    ls->hello_due = false;
    say_beat(ls, now);
}

static void run_hello(pl_note *note)
{
    pl_links *ls = (pl_links *)((char *)note - offsetof(pl_links, hello_note));
    if (ls->stopped) return;
    pl_lock(&ls->lock);
    bool gone = !ls->hello;
    pl_unlock(&ls->lock);
    if (gone)
        publish(ls, ls->kv, &(pl_buf){0});
    else
        say_hello(ls, pl_now_ns());
}

void pl_links_hello(pl_links *ls, const char *json, size_t len)
{
    PL_ON(LUA);
    pl_lock(&ls->lock);
    bool same =
        json && ls->hello && len == ls->hello_len && !memcmp(json, ls->hello, len);
    if (!same) {
        pl_free(ls->hello);
        ls->hello = json ? pl_strndup(json, len) : NULL;
        ls->hello_len = len;
        ls->serial++;
    }
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
    PL_ON(IO);
    make_bucket(ls);
    tell_space(ls, "?");
    pl_bus_send(ls->bus, ls->who, NULL, "", 0);
    say_hello(ls, pl_now_ns());
}

/* All are asked, or one by its id. */
void pl_presence_asked(pl_links *ls, const char *id, size_t len)
{
    PL_ON(IO);
    uint64_t key = ls->key;
    int64_t now = pl_now_ns();
    if (len && !pl_link_id_key(id, len, &key))
        pl_links_malformed(ls, "a question who is there", "bus");
    else if (key == ls->key && now - ls->hello_ns >= HELLO_GAP)
        say_hello(ls, now);
    else if (key == ls->key)
        ls->hello_due = true;
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

/* ---- what the others say ----------------------------------------------------------- */

static pl_peer *find(const pl_links *ls, uint64_t key)
{
    return pl_map_find(&ls->peers, key);
}

/* One that is there for those above. */
static pl_peer *find_id(const pl_links *ls, int32_t id)
{
    pl_peer *p = id > 0 ? pl_map_find(&ls->peers_by_id, (uint64_t)id) : NULL;
    return p && !p->refused ? p : NULL;
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

bool pl_presence_direct(pl_links *ls, uint64_t key, pl_direct_address *out)
{
    pl_lock(&ls->lock);
    const pl_peer *p = find(ls, key);
    bool there = p && !p->refused && *p->direct.cookie;
    if (there) *out = p->direct;
    pl_unlock(&ls->lock);
    return there;
}

uint64_t pl_presence_key(pl_links *ls, int32_t peer)
{
    pl_lock(&ls->lock);
    const pl_peer *p = find_id(ls, peer);
    uint64_t key = p ? p->key : 0;
    pl_unlock(&ls->lock);
    return key;
}

static void add_engine(pl_buf *out, const pl_engine_stats *st)
{
    int64_t since = PL_MAX(st->busy_since_ns, st->last_step_ns);
    int64_t busy = st->busy_since_ns ? PL_MAX(0, pl_now_ns() - since) / 1000000 : 0;
    pl_buf_printf(out,
                  "{\"running\":%d,\"waiting\":%d,\"blocks\":%d,\"blocks_used\":%d,"
                  "\"blocks_cached\":%d,\"steps\":%lld,\"busy_ms\":%lld,"
                  "\"prompt_tokens\":%lld,\"generation_tokens\":%lld,"
                  "\"prefill_tokens\":%lld}",
                  st->running, st->waiting, st->blocks, st->blocks_used,
                  st->blocks_cached, (long long)st->steps, (long long)busy,
                  (long long)st->prompt_tokens, (long long)st->generation_tokens,
                  (long long)st->prefill_tokens);
}

/* Its hello, an object, with one member more. */
static void add_peer_text(pl_buf *out, const pl_peer *p)
{
    size_t len = p->text.len;
    while (p->text.data[len - 1] != '}') len--;
    pl_buf_add(out, p->text.data, len - 1);
    pl_buf_add_str(out, ",\"engines\":[");
    for (int i = 0; i < p->n_engines; i++) {
        if (i) pl_buf_add_str(out, ",");
        if (p->has >> i & 1)
            add_engine(out, &p->engines[i]);
        else
            pl_buf_add_str(out, "null");
    }
    pl_buf_add_str(out, "]}");
}

pl_status pl_links_peer(pl_links *ls, int32_t peer, pl_buf *out)
{
    pl_lock(&ls->lock);
    const pl_peer *p = find_id(ls, peer);
    if (p) add_peer_text(out, p);
    pl_unlock(&ls->lock);
    return p ? PL_OK : pl_fail(PL_ENOTFOUND, "process %d is not there", peer);
}

pl_status pl_links_stats(pl_links *ls, int32_t peer, int index, pl_engine_stats *out)
{
    pl_lock(&ls->lock);
    const pl_peer *p = find_id(ls, peer);
    bool has = p && index >= 0 && index < p->n_engines && p->has >> index & 1;
    if (has) *out = p->engines[index];
    pl_unlock(&ls->lock);
    return has ? PL_OK : pl_fail(PL_ENOTFOUND, "no engine %d of process %d", index, peer);
}

typedef struct said { /* by a hello */
    int wire;
    uint64_t serial;
    pl_direct_address direct;
} said;

static bool parse(const pl_links *ls, uint64_t key, const char *data, size_t len,
                  said *out)
{
    pl_json *doc = len <= PL_MAX_HELLO ? pl_json_open(data, len) : NULL;
    uint64_t id = 0;
    size_t n = 0;
    const pl_json *name = pl_json_find(doc, "id"), *wire = pl_json_find(doc, "wire"),
                  *serial = pl_json_find(doc, "serial");
    bool ok = pl_json_kind(name) == PL_JSON_STRING &&
              pl_json_kind(wire) == PL_JSON_INTEGER &&
              pl_json_kind(serial) == PL_JSON_INTEGER &&
              pl_json_kind(pl_json_find(doc, "hello")) == PL_JSON_OBJECT &&
              pl_direct_parse(doc, &out->direct);
    if (ok) {
        const char *text = pl_json_string(name, &n);
        int64_t w = pl_json_integer(wire), s = pl_json_integer(serial);
        ok = pl_link_id_key(text, n, &id) && id == key && w >= 0 && w < 1 << 20 && s > 0;
        out->wire = (int)w;
        out->serial = (uint64_t)s;
    }
    pl_json_close(doc);
    return ok && key != ls->key;
}

/* With the lock held. */
static pl_peer *add_peer(pl_links *ls, uint64_t key, int wire)
{
    pl_peer *p = pl_alloc(sizeof *p);
    p->key = key;
    p->wire = wire;
    p->id = ++ls->last_peer;
    /* A newer process speaks our version too; an older one than that does not. */
    p->refused = wire < PL_WIRE - 1 || wire > PL_WIRE + 1;
    pl_map_put(&ls->peers, key, p);
    pl_map_put(&ls->peers_by_id, (uint64_t)p->id, p);
    if (p->refused)
        pl_log(
            PL_LOG_ERROR,
            "process %016llx is refused: it speaks version %d of the wire, we speak %d",
            (unsigned long long)key, wire, PL_WIRE);
    return p;
}

/* With the lock held: the peer if it is to be told of, which waits until it has said what
 * it counts too. */
static const pl_peer *take_hello(pl_links *ls, uint64_t key, const char *data, size_t len,
                                 const said *what)
{
    pl_peer *p = find(ls, key);
    if (!p && ls->peers.n < PL_MAX_PEERS) p = add_peer(ls, key, what->wire);
    if (!p) return NULL;
    p->heard_ns = pl_now_ns();
    if (what->serial <= p->serial) return NULL; /* it came late, or once more */
    p->serial = what->serial;
    p->direct = what->direct;
    p->text.len = 0;
    pl_buf_add(&p->text, data, len);
    return p->counted && !p->refused ? p : NULL;
}

/* Whether it is word for word what was heard before, as most are. */
static bool is_known(pl_links *ls, uint64_t key, const char *data, size_t len)
{
    pl_lock(&ls->lock);
    pl_peer *p = find(ls, key);
    bool known = p && p->text.len == len && !memcmp(p->text.data, data, len);
    if (known) p->heard_ns = pl_now_ns();
    pl_unlock(&ls->lock);
    return known;
}

static void tell(pl_links *ls, uint64_t key, int32_t id)
{
    pl_link *l = pl_map_find(&ls->by_key, key);
    if (l) l->peer = id;
    ls->hooks.peer(ls->hooks.ctx, id, 0);
}

void pl_presence_heard(pl_links *ls, uint64_t key, const char *data, size_t len)
{
    PL_ON(IO);
    said what;
    if (!len) {
        pl_presence_gone(ls, key, PL_LOST_LEFT);
        return;
    }
    if (is_known(ls, key, data, len)) return;
    if (!parse(ls, key, data, len, &what)) {
        pl_links_malformed(ls, "a hello", pl_error_text());
        return;
    }
    pl_lock(&ls->lock);
    const pl_peer *p = take_hello(ls, key, data, len, &what);
    int32_t id = p ? p->id : 0;
    pl_unlock(&ls->lock);
    if (id) tell(ls, key, id);
}

/* With the lock held. */
static void keep_counters(pl_peer *p, const pl_beat *b)
{
    int n = 0;
    while (n < PL_BEAT_ENGINES && b->there >> n) n++;
    if (n > p->n_engines)
        p->engines = pl_realloc(p->engines, (size_t)n * sizeof *p->engines);
    p->n_engines = n;
    p->has = b->there;
    if (n) memcpy(p->engines, b->engines, (size_t)n * sizeof *p->engines);
}

static void ask(pl_links *ls, uint64_t key, int64_t now)
{
    char id[PL_ID_LEN + 1];
    if (now - ls->asked_ns < ASK_GAP) return;
    ls->asked_ns = now;
    snprintf(id, sizeof id, "%016llx", (unsigned long long)key);
    pl_bus_send(ls->bus, ls->who, NULL, id, PL_ID_LEN);
}

void pl_presence_beat(pl_links *ls, uint64_t key, const char *data, size_t len)
{
    PL_ON(IO);
    pl_beat *b = &ls->scratch;
    int64_t now = pl_now_ns();
    if (key == ls->key || pl_wire_get_beat(data, len, now, b) < 0) {
        pl_links_malformed(ls, "a heartbeat", pl_error_text());
        return;
    }
    pl_lock(&ls->lock);
    pl_peer *p = find(ls, key);
    bool wanted = p ? p->serial < b->serial : ls->peers.n < PL_MAX_PEERS;
    int32_t id = p && !p->counted && !p->refused ? p->id : 0;
    if (p) {
        keep_counters(p, b);
        p->counted = true;
        p->heard_ns = now;
    }
    pl_unlock(&ls->lock);
    if (wanted) ask(ls, key, now);
    if (id) tell(ls, key, id);
}

/* ---- who is there no more ---------------------------------------------------------- */

static pl_peer *find_silent(const pl_links *ls, int64_t since)
{
    uint32_t at = 0;
    pl_peer *p;
    while ((p = pl_map_next(&ls->peers, &at))) {
        const pl_link *l = pl_map_find(&ls->by_key, p->key);
        if (p->heard_ns < since && !(l && l->socket)) break;
    }
    return p;
}

/* Takes one out, that one or (key 0) one that was not heard since. Its number; 0: there
 * is none; -1: those above never heard of it. */
static int32_t take_out(pl_links *ls, uint64_t key, int64_t since)
{
    pl_lock(&ls->lock);
    pl_peer *p = key ? find(ls, key) : find_silent(ls, since);
    int32_t id = !p ? 0 : p->refused || !p->counted ? -1 : p->id;
    if (p) {
        pl_map_remove(&ls->peers, p->key);
        pl_map_remove(&ls->peers_by_id, (uint64_t)p->id);
        pl_buf_fini(&p->text);
        pl_free(p->engines);
        pl_free(p);
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
    PL_ON(IO);
    forget(ls, key, INT64_MAX, why);
}

void pl_presence_forgive(pl_links *ls, int64_t now)
{
    uint32_t at = 0;
    pl_lock(&ls->lock);
    for (pl_peer *p; (p = pl_map_next(&ls->peers, &at));) p->heard_ns = now;
    pl_unlock(&ls->lock);
}

void pl_presence_tick(pl_links *ls, int64_t now)
{
    PL_ON(IO);
    if (!ls->there) return;
    int64_t since = now - ls->hello_ns;
    if (since >= HELLO || (ls->hello_due && since >= HELLO_GAP))
        say_hello(ls, now);
    else if (now - ls->beat_ns >= BEAT)
        say_beat(ls, now);
    int64_t lease = PL_MAX(ls->o.lost_after_ms * PL_MS, MIN_LEASE);
    if (now - ls->there_ns < PL_BUS_GRACE) return;
    forget(ls, 0, now - lease, PL_LOST_SILENT);
}

/* ---- life -------------------------------------------------------------------------- */

void pl_presence_open(pl_links *ls)
{
    pl_mutex_init(&ls->lock);
    ls->hello_note.run = run_hello;
}

void pl_presence_stop(pl_links *ls)
{
    PL_ON(IO);
    pl_lock(&ls->lock);
    bool here = ls->hello != NULL;
    pl_unlock(&ls->lock);
    if (here) publish(ls, ls->kv, &(pl_buf){0});
}

void pl_presence_close(pl_links *ls)
{
    while (take_out(ls, 0, INT64_MAX)) continue;
    pl_map_fini(&ls->peers);
    pl_map_fini(&ls->peers_by_id);
    pl_free(ls->hello);
    pl_mutex_fini(&ls->lock);
}
