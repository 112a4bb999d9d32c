/* SPDX-License-Identifier: Apache-2.0
 *
 * log.c - lines for people, or JSON for programs; to standard error.
 *
 * Owns     the level and the form of the log.
 * Ignores  who reads it.
 * Thread   any. A line is one write, so that threads do not mix theirs.
 */
#include "base.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_TEXT = 1984, /* bytes of what a line says; the rest is cut off */
    MAX_FIELDS = 1024
};

static atomic_int least = PL_LOG_INFO;
static atomic_bool as_json;

void pl_log_level(int level)
{
    atomic_store(&least, level);
}

void pl_log_json(int on)
{
    atomic_store(&as_json, on != 0);
}

static const char *name_of(int level)
{
    static const char *const names[] = {"DEBUG", "INFO", "WARNING", "ERROR"};
    return names[PL_MIN(PL_MAX(level, 0), 3)];
}

/* The next of the strings from *at on, each ended by NUL; false: no whole one is left. */
static bool next_string(const char **at, const char *end, const char **s, size_t *len)
{
    const char *stop = *at < end ? memchr(*at, 0, (size_t)(end - *at)) : NULL;
    if (!stop) return false;
    *s = *at;
    *len = (size_t)(stop - *at);
    *at = stop + 1;
    return true;
}

static void add_quoted(pl_buf *line, const char *s, size_t len)
{
    pl_buf_add_str(line, "\"");
    pl_buf_add_json(line, s, len);
    pl_buf_add_str(line, "\"");
}

/* Bare where it is one plain word. */
static void add_word(pl_buf *line, const char *s, size_t len)
{
    size_t n = 0;
    while (n < len && s[n] > ' ' && s[n] < 0x7f && s[n] != '"' && s[n] != '\\' &&
           s[n] != ']')
        n++;
    if (n == len && len)
        pl_buf_add(line, s, len);
    else
        add_quoted(line, s, len);
}

/* A field whose name begins with '#' is a whole number, and is one in JSON too. */
static bool is_number(const char *name, const char *value, size_t len)
{
    return *name == '#' && len > 0 && len < 16 && strspn(value, "0123456789") == len &&
           (*value != '0' || len == 1);
}

static void add_fields(pl_buf *line, const char *at, const char *end, bool json)
{
    const char *name, *value;
    size_t name_len, value_len;
    const char *before = json ? "," : " [";
    while (next_string(&at, end, &name, &name_len) &&
           next_string(&at, end, &value, &value_len)) {
        bool number = is_number(name, value, value_len);
        size_t skip = *name == '#';
        pl_buf_add_str(line, before);
        (json ? add_quoted : add_word)(line, name + skip, name_len - skip);
        pl_buf_add_str(line, json ? ":" : "=");
        (json && !number ? add_quoted : add_word)(line, value, value_len);
        before = json ? "," : " ";
    }
    if (!json && *before == ' ' && !before[1]) pl_buf_add_str(line, "]");
}

/* A time as lines have it, without the fraction; a thread works it out once a second. */
static const char *second_text(time_t second, bool json)
{
    static _Thread_local time_t then;
    static _Thread_local bool was_json;
    static _Thread_local char text[32];
    struct tm tm;
    if (*text && second == then && json == was_json) return text;
    (json ? gmtime_r : localtime_r)(&second, &tm);
    strftime(text, sizeof text, json ? "%Y-%m-%dT%H:%M:%S" : "%m-%d %H:%M:%S", &tm);
    then = second;
    was_json = json;
    return text;
}

/* What stands before the text: how many bytes. */
static size_t head_of(char *out, size_t room, int level, bool json)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    const char *second = second_text(ts.tv_sec, json);
    if (!json)
        return (size_t)snprintf(out, room, "%s %s.%03d ", name_of(level), second,
                                (int)(ts.tv_nsec / 1000000));
    return (size_t)snprintf(
        out, room, "{\"time\":\"%s.%06dZ\",\"level\":\"%s\",\"message\":", second,
        (int)(ts.tv_nsec / 1000), name_of(level));
}

void pl_log_fields(int level, const char *text, size_t len, const char *fields,
                   size_t fields_len)
{
    if (level < atomic_load(&least)) return;
    bool json = atomic_load(&as_json);
    char head[128];
    pl_buf line = {0};
    pl_buf_reserve(&line, 512);
    pl_buf_add(&line, head, head_of(head, sizeof head, level, json));
    len = PL_MIN(len, (size_t)MAX_TEXT);
    if (json)
        add_quoted(&line, text, len);
    else
        pl_buf_add(&line, text, len);
    if (fields_len)
        add_fields(&line, fields, fields + PL_MIN(fields_len, (size_t)MAX_FIELDS), json);
    pl_buf_add_str(&line, json ? "}\n" : "\n");
    /* Nothing can be done if it fails. */
    if (write(STDERR_FILENO, line.data, line.len) < 0) line.len = 0;
    pl_buf_fini(&line);
}

void pl_log_write(int level, const char *text, size_t len)
{
    pl_log_fields(level, text, len, NULL, 0);
}

static void write_formatted(int level, const pl_buf *fields, const char *fmt, va_list ap)
{
    char text[MAX_TEXT + 1];
    if (level < atomic_load(&least)) return;
    int n = vsnprintf(text, sizeof text, fmt, ap);
    pl_log_fields(level, text, PL_MIN((size_t)PL_MAX(n, 0), sizeof text - 1),
                  fields ? fields->data : NULL, fields ? fields->len : 0);
}

void pl_log_at(int level, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    write_formatted(level, NULL, fmt, ap);
    va_end(ap);
}

void pl_log_with(int level, const pl_buf *fields, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    write_formatted(level, fields, fmt, ap);
    va_end(ap);
}
