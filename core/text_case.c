/* SPDX-License-Identifier: Apache-2.0
 *
 * text_case.c - a text in capitals or in small letters.
 *
 * Owns     the letters whose other case is not one letter, or depends on the neighbours.
 * Ignores  languages: it is Unicode's default, as in Python.
 * Thread   any.
 */
#include "text.h"

#include <utf8proc.h>

/* The character at s + at; bytes that are none are each one of their own. */
static size_t read_char(const char *s, size_t len, size_t at, int32_t *c)
{
    *c = -1;
    if (at >= len) return 0;
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)s + at,
                                          (utf8proc_ssize_t)(len - at), c);
    return n > 0 ? (size_t)n : 1;
}

static bool is_letter(int32_t c)
{
    int kind = c < 0 ? 0 : (int)utf8proc_category(c);
    return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LT;
}

static void add_char(pl_buf *out, int32_t c)
{
    utf8proc_uint8_t bytes[4];
    utf8proc_ssize_t n = utf8proc_encode_char(c, bytes);
    pl_buf_add(out, bytes, (size_t)n);
}

void pl_text_case(const char *s, size_t len, int upper, pl_buf *out)
{
    int32_t before = -1, c, after;
    for (size_t at = 0, n; at < len; at += n, before = c) {
        n = read_char(s, len, at, &c);
        read_char(s, len, at + n, &after);
        if (c < 0)
            pl_buf_add(out, s + at, n);
        else if (upper && c == 0xdf)
            pl_buf_add_str(out, "SS");
        else if (!upper && c == 0x130)
            pl_buf_add_str(out, "i\xcc\x87");
        else if (!upper && c == 0x3a3) /* at a word's end a sigma of its own */
            add_char(out, is_letter(before) && !is_letter(after) ? 0x3c2 : 0x3c3);
        else
            add_char(out, upper ? utf8proc_toupper(c) : utf8proc_tolower(c));
    }
}
