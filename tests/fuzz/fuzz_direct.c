/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_direct.c - where a process says, in its hello, that sockets reach it.
 */
#include "json.h"
#include "link_direct.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    pl_direct_address said;
    pl_json *doc = pl_json_open((const char *)data, size);
    if (!doc) return 0;
    bool ok = pl_direct_parse(doc, &said);
    bool told = pl_json_find(doc, "direct") != NULL;
    if (!told && (!ok || *said.cookie)) abort();
    if (told && ok && strlen(said.cookie) != PL_COOKIE) abort();
    if (memchr(said.net, 0, sizeof said.net) == NULL) abort();
    if (memchr(said.tcp, 0, sizeof said.tcp) == NULL) abort();
    pl_json_close(doc);
    return 0;
}
