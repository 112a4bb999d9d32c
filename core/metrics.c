/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics.h"

#include <ctype.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct series series;
struct series {
    int kind, n_buckets;
    char *name, *labels, *help;
    int next;                  /* of the same name; 0: none */
    int last;                  /* of the first of a name: its last; 0 elsewhere */
    double *bounds;            /* ascending; +Inf is not among them */
    _Atomic uint64_t *buckets; /* n_buckets + 1, each by itself, not cumulated */
    _Atomic uint64_t value;    /* bits of a double: a histogram's sum */
    atomic_int also;           /* another histogram that is told the same; 0: none */
};

/* Slot 0 stays empty, so that 0 is never an id. Slots are filled once and never moved:
 * who has an id may read its slot without the lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static series *_Atomic all[PL_MAX_SERIES + 1];
static int n_series;

static uint64_t bits_of(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static double double_of(uint64_t bits)
{
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static void add_to(_Atomic uint64_t *cell, double by)
{
    uint64_t old = atomic_load_explicit(cell, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(
        cell, &old, bits_of(double_of(old) + by), memory_order_relaxed,
        memory_order_relaxed))
        continue;
}

/* ---- what may be registered -------------------------------------------------------- */

static size_t name_len(const char *s, bool colons)
{
    size_t n = 0;
    while (isalpha((unsigned char)s[n]) || s[n] == '_' || (colons && s[n] == ':') ||
           (n && isdigit((unsigned char)s[n])))
        n++;
    return n;
}

/* name="value" with \\, \" and \n escaped, and commas between. */
static bool labels_valid(const char *s)
{
    while (*s) {
        size_t n = name_len(s, false);
        if (!n || s[n] != '=' || s[n + 1] != '"') return false;
        if (n == 2 && !memcmp(s, "le", 2)) return false;
        for (s += n + 2; *s != '"'; s++) {
            if (!*s || *s == '\n') return false;
            if (*s == '\\' && !strchr("\\\"n", *++s)) return false;
            if (!*s) return false;
        }
        if (*++s == ',') {
            if (!*++s) return false;
        } else if (*s) {
            return false;
        }
    }
    return true;
}

static pl_status check(int kind, const char *name, const char *labels,
                       const double *buckets, int n)
{
    if (kind < PL_COUNTER || kind > PL_HISTOGRAM)
        return pl_fail(PL_EINVAL, "no metric is of kind %d", kind);
    if (!*name || name[name_len(name, true)])
        return pl_fail(PL_EINVAL, "'%s' is not a metric's name", name);
    if (!labels_valid(labels))
        return pl_fail(PL_EINVAL, "labels of '%s' are not name=\"value\",...: %s", name,
                       labels);
    if (n < 0 || n > PL_MAX_BUCKETS || (kind == PL_HISTOGRAM) != (n > 0))
        return pl_fail(PL_EINVAL, "'%s' cannot have %d buckets", name, n);
    for (int i = 0; i < n; i++)
        if (!isfinite(buckets[i]) || (i && buckets[i] <= buckets[i - 1]))
            return pl_fail(PL_EINVAL, "buckets of '%s' do not ascend at %g", name,
                           buckets[i]);
    return PL_OK;
}

/* ---- opening ----------------------------------------------------------------------- */

static series *make(int kind, const char *name, const char *labels, const char *help,
                    const double *buckets, int n)
{
    series *s = pl_alloc(sizeof *s);
    s->kind = kind;
    s->name = pl_strndup(name, strlen(name));
    s->labels = pl_strndup(labels, strlen(labels));
    s->help = pl_strndup(help, strlen(help));
    s->n_buckets = n;
    s->bounds = pl_memdup(buckets, (size_t)n * sizeof *buckets);
    if (n) s->buckets = pl_alloc((size_t)(n + 1) * sizeof *s->buckets);
    return s;
}

static int open_locked(int kind, const char *name, const char *labels, const char *help,
                       const double *buckets, int n)
{
    int first = 1;
    while (first <= n_series && strcmp(all[first]->name, name)) first++;
    if (first <= n_series && all[first]->kind != kind)
        return pl_fail(PL_EINVAL, "'%s' is already of another kind", name);
    for (int i = first; i && i <= n_series; i = all[i]->next) {
        if (strcmp(all[i]->labels, labels)) continue;
        if (all[i]->n_buckets != n ||
            (n && memcmp(all[i]->bounds, buckets, (size_t)n * sizeof *buckets)))
            return pl_fail(PL_EINVAL, "'%s' already has other buckets", name);
        return i;
    }
    if (n_series == PL_MAX_SERIES)
        return pl_fail(PL_ELIMIT, "no room for '%s': there are %d series", name,
                       n_series);
    int id = ++n_series;
    all[id] = make(kind, name, labels, help, buckets, n);
    if (first < id) all[all[first]->last]->next = id;
    all[first]->last = id;
    return id;
}

int pl_metric_open(int kind, const char *name, const char *labels, const char *help,
                   const double *buckets, int n_buckets)
{
    labels = labels ? labels : "";
    PL_TRY(check(kind, name, labels, buckets, n_buckets));
    pthread_mutex_lock(&lock);
    int id = open_locked(kind, name, labels, help ? help : "", buckets, n_buckets);
    pthread_mutex_unlock(&lock);
    return id;
}

/* ---- updating ---------------------------------------------------------------------- */

static series *find(int id)
{
    return id > 0 && id <= PL_MAX_SERIES ? all[id] : NULL;
}

void pl_metric_add(int id, double by)
{
    series *s = find(id);
    if (s && (s->kind == PL_GAUGE || (s->kind == PL_COUNTER && by >= 0)))
        add_to(&s->value, by);
}

void pl_metric_set(int id, double value)
{
    series *s = find(id);
    if (s && s->kind == PL_GAUGE)
        atomic_store_explicit(&s->value, bits_of(value), memory_order_relaxed);
}

static void observe(series *s, double value)
{
    int i = 0;
    while (i < s->n_buckets && value > s->bounds[i]) i++;
    atomic_fetch_add_explicit(&s->buckets[i], 1, memory_order_relaxed);
    add_to(&s->value, value);
}

void pl_metric_observe(int id, double value)
{
    series *s = find(id);
    if (!s || s->kind != PL_HISTOGRAM || isnan(value)) return;
    observe(s, value);
    series *other = find(atomic_load_explicit(&s->also, memory_order_relaxed));
    if (other) observe(other, value);
}

void pl_metric_also(int id, int other)
{
    series *s = find(id), *o = find(other);
    if (s && o && s != o && s->kind == PL_HISTOGRAM && o->kind == PL_HISTOGRAM)
        atomic_store_explicit(&s->also, other, memory_order_relaxed);
}

static uint64_t count_of(const series *s)
{
    uint64_t n = 0;
    for (int i = 0; i <= s->n_buckets; i++)
        n += atomic_load_explicit(&s->buckets[i], memory_order_relaxed);
    return n;
}

double pl_metric_value(int id)
{
    const series *s = find(id);
    if (!s) return NAN;
    return s->kind == PL_HISTOGRAM ? (double)count_of(s)
                                   : double_of(atomic_load(&s->value));
}

/* ---- rendering --------------------------------------------------------------------- */

/* The shortest digits that read back as v; whole numbers get ".0", as in Python's
 * client. */
static void add_number(pl_buf *out, double v)
{
    char text[40];
    if (isnan(v) || isinf(v)) {
        pl_buf_add_str(out, isnan(v) ? "NaN" : v > 0 ? "+Inf" : "-Inf");
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    pl_buf_add_str(out, text);
    if (!strpbrk(text, ".e")) pl_buf_add_str(out, ".0");
}

static void add_help(pl_buf *out, const char *s)
{
    for (; *s; s++) {
        if (*s == '\\')
            pl_buf_add_str(out, "\\\\");
        else if (*s == '\n')
            pl_buf_add_str(out, "\\n");
        else
            pl_buf_add(out, s, 1);
    }
}

static void add_line(pl_buf *out, const series *s, const char *suffix, double value)
{
    pl_buf_printf(out, "%s%s%s%s%s ", s->name, suffix, *s->labels ? "{" : "", s->labels,
                  *s->labels ? "}" : "");
    add_number(out, value);
    pl_buf_add_str(out, "\n");
}

static void add_histogram(pl_buf *out, const series *s)
{
    uint64_t n = 0;
    for (int i = 0; i <= s->n_buckets; i++) {
        n += atomic_load_explicit(&s->buckets[i], memory_order_relaxed);
        pl_buf_printf(out, "%s_bucket{%s%sle=\"", s->name, s->labels,
                      *s->labels ? "," : "");
        add_number(out, i < s->n_buckets ? s->bounds[i] : INFINITY);
        pl_buf_add_str(out, "\"} ");
        add_number(out, (double)n);
        pl_buf_add_str(out, "\n");
    }
    add_line(out, s, "_count", (double)n);
    add_line(out, s, "_sum",
             double_of(atomic_load_explicit(&s->value, memory_order_relaxed)));
}

int pl_metric_render(pl_buf *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    pthread_mutex_lock(&lock);
    for (int first = 1; first <= n_series; first++) {
        const series *s = all[first];
        if (!s->last) continue;
        pl_buf_printf(out, "# HELP %s ", s->name);
        add_help(out, s->help);
        pl_buf_printf(out, "\n# TYPE %s %s\n", s->name, kinds[s->kind]);
        for (int i = first; i; i = all[i]->next) {
            if (all[i]->kind == PL_HISTOGRAM)
                add_histogram(out, all[i]);
            else
                add_line(out, all[i], "",
                         double_of(
                             atomic_load_explicit(&all[i]->value, memory_order_relaxed)));
        }
    }
    pthread_mutex_unlock(&lock);
    return PL_OK;
}
