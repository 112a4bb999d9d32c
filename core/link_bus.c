/* SPDX-License-Identifier: Apache-2.0
 *
 * link_bus.c - the way of frames over the bus, and whose is what comes on it.
 *
 * Owns     the subjects.
 * Ignores  what a frame, a hello or a heartbeat says.
 * Thread   io; open: lua
 *
 * Subjects: pl.NS.p.TO.FROM frames; $KV.perilune_NS.ID hellos; pl.NS.b.ID heartbeats;
 * pl.NS.who asks for a hello; PL_SPACES, the one that namespaces share, says that there
 * is one.
 */
#include "link_own.h"
#include "link_presence.h"

#include <stdio.h>
#include <string.h>

pl_status pl_link_bus_send(pl_link *l, const char *frame, size_t len)
{
    PL_TRY(pl_bus_send(l->all->bus, l->subject, l->reply, frame, len));
    pl_metric_add(l->all->metrics.sent, 1);
    return PL_OK;
}

void pl_link_bus_address(pl_link *l)
{
    const pl_links *ls = l->all;
    int ns = (int)(strlen(ls->prefix) - PL_ID_LEN - 1); /* "pl.NS.p." */
    snprintf(l->subject, sizeof l->subject, "%.*s%016llx.%s", ns, ls->prefix,
             (unsigned long long)l->key, ls->id);
    snprintf(l->reply, sizeof l->reply, "%s%016llx", ls->prefix,
             (unsigned long long)l->key);
}

/* ---- what comes -------------------------------------------------------------------- */

/* Whether the subject is `stem` and a process's id. */
static bool has_id(const char *subject, const char *stem, uint64_t *key)
{
    size_t n = strlen(stem);
    return !strncmp(subject, stem, n) &&
           pl_link_id_key(subject + n, strlen(subject + n), key);
}

static void on_message(void *ctx, const char *subject, const void *data, size_t len)
{
    pl_links *ls = ctx;
    uint64_t key;
    pl_metric_add(ls->metrics.received, 1);
    if (has_id(subject, ls->prefix, &key))
        pl_links_frame(ls, key, data, len);
    else if (has_id(subject, ls->beat, &key))
        pl_presence_beat(ls, key, data, len);
    else if (has_id(subject, ls->kv, &key))
        pl_presence_heard(ls, key, data, len);
    else if (!strcmp(subject, ls->who))
        pl_presence_asked(ls, data, len);
    else if (!strcmp(subject, PL_SPACES))
        pl_presence_space(ls, data, len);
    else
        pl_links_malformed(ls, "a subject", subject);
}

static void on_nobody(void *ctx, const char *reply)
{
    pl_links *ls = ctx;
    uint64_t key;
    if (has_id(reply, ls->prefix, &key)) pl_links_nobody(ls, key);
}

static void on_state(void *ctx, bool there)
{
    pl_links_there(ctx, there);
}

/* ---- life -------------------------------------------------------------------------- */

static void name_subjects(pl_links *ls, const char *ns)
{
    snprintf(ls->prefix, sizeof ls->prefix, "pl.%s.p.%s.", ns, ls->id);
    snprintf(ls->beat, sizeof ls->beat, "pl.%s.b.", ns);
    snprintf(ls->who, sizeof ls->who, "pl.%s.who", ns);
    snprintf(ls->kv, sizeof ls->kv, "$KV.perilune_%s.", ns);
    snprintf(ls->space, sizeof ls->space, "%s", ns);
    snprintf(ls->bucket, sizeof ls->bucket, "KV_perilune_%s", ns);
}

static void hear(pl_links *ls, const char *stem, const char *rest)
{
    char subject[PL_LINK_SUBJECT + 2];
    snprintf(subject, sizeof subject, "%s%s", stem, rest);
    pl_bus_listen(ls->bus, subject);
}

bool pl_link_bus_open(pl_links *ls, const pl_bus_options *options)
{
    const pl_bus_hooks hooks = {ls, on_message, on_nobody, on_state};
    ls->bus = pl_bus_connect(ls->loop, options, ls->id, &hooks);
    if (!ls->bus) return false;
    name_subjects(ls, options->name_space);
    hear(ls, ls->prefix, "*");
    hear(ls, ls->beat, "*");
    hear(ls, ls->kv, "*");
    hear(ls, ls->who, "");
    hear(ls, PL_SPACES, "");
    return true;
}
