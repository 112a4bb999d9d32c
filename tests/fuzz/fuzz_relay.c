/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_relay.c - what another server may say in an event. Checked besides memory: whatever
 * is found in it lies inside of it, and text is what JSON may have between quotes.
 */
#include "relay.h"

#include <stdlib.h>
#include <string.h>

static void check(pl_span s, const char *text, size_t len, const char *none)
{
    if (!s.len) return;
    if (s.at < text || s.at + s.len > text + len) abort();
    for (size_t i = 0; i < s.len; i++)
        if (strchr(none, s.at[i]) && (!i || s.at[i - 1] != '\\')) abort();
}

static void check_digits(pl_span s, const char *text, size_t len)
{
    check(s, text, len, "\"{}[],: ");
    for (size_t i = 0; i < s.len; i++)
        if (s.at[i] < '0' || s.at[i] > '9') abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *text = malloc(len ? len : 1); /* so that reading past its end is seen */
    memcpy(text, data, len);
    pl_relay_event e;
    if (pl_relay_read(&e, text, len)) {
        check(e.text, text, len, "\n");
        check(e.error, text, len, "\n");
        check_digits(e.prompt_digits, text, len);
        check_digits(e.completion_digits, text, len);
        check_digits(e.total_digits, text, len);
        if (e.n_ids < -1) abort();
    }
    free(text);
    return 0;
}
