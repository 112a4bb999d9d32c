/* SPDX-License-Identifier: Apache-2.0
 *
 * bus_probe.c - why a NATS server cannot be reached, in the system's words.
 *
 * Owns     nothing.
 * Ignores  how the bus connects. nats.c says "no server available" of a refused
 *          connection, a host without an address and a filtered port alike.
 * Thread   any; waits.
 */
#include "bus_own.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PROBE_MS = 1000, /* to connect, and again for a greeting */
    MAX_PROBED = 3,
    DEFAULT_PORT = 4222
};

/* The host and the port of a URL; of one that makes no sense, something harmless. */
static void split(const char *url, size_t len, char host[PL_BUS_PLACE - 8], int *port)
{
    const char *end = url + len, *at = url;
    for (const char *s = url; s + 3 <= end; s++)
        if (!strncmp(s, "://", 3)) at = s + 3;
    for (const char *s = end; s-- > at;)
        if (*s == '@') {
            at = s + 1;
            break;
        }
    const char *colon = NULL, *stop = at;
    while (stop < end && *stop != '/') stop++;
    for (const char *s = at; s < stop; s++) {
        if (*s == ':') colon = s;
        if (*s == ']') colon = NULL; /* those before were of an IPv6 address */
    }
    *port = colon ? atoi(colon + 1) : DEFAULT_PORT;
    if (colon) stop = colon;
    if (at < stop && *at == '[') at++;
    if (at < stop && stop[-1] == ']') stop--;
    snprintf(host, PL_BUS_PLACE - 8, "%.*s", (int)PL_MIN(stop - at, 255), at);
}

void pl_bus_place(const char *url, size_t len, char out[PL_BUS_PLACE])
{
    char host[PL_BUS_PLACE - 8];
    int port;
    split(url, len, host, &port);
    snprintf(out, PL_BUS_PLACE, strchr(host, ':') ? "[%s]:%u" : "%s:%u", host,
             (unsigned)port & 0xffff);
}

static void probe(const char *url, size_t len, const char *why, pl_buf *out)
{
    char host[PL_BUS_PLACE - 8], place[PL_BUS_PLACE], greeting[8] = {0};
    int port;
    split(url, len, host, &port);
    pl_bus_place(url, len, place);
    pl_client *c = pl_client_open(host, port, PROBE_MS);
    if (!c) {
        pl_buf_add_str(out, pl_error_text());
        return;
    }
    int n = pl_client_recv(c, greeting, 5, PROBE_MS);
    bool greets = n == 5 && !memcmp(greeting, "INFO ", 5);
    pl_client_close(c);
    pl_buf_printf(out, "%s: %s", place, greets ? why : "no NATS server answers there");
}

void pl_bus_diagnose(const char *urls, const char *why, pl_buf *out)
{
    int n = 0;
    for (const char *at = urls; *(at += strspn(at, ", "));) {
        size_t len = strcspn(at, ", ");
        if (n++) pl_buf_add_str(out, "; ");
        if (n > MAX_PROBED) {
            pl_buf_add_str(out, "...");
            return;
        }
        probe(at, len, why, out);
        at += len;
    }
}
