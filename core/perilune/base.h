/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune/base.h - errors, logs, clocks, metrics and JSON: what every other part uses.
 */
#ifndef PERILUNE_H
#error "include perilune.h"
#endif

/* clang-format off */
/* [cdef] */

/* ---- status, log, clock (any thread) --------------------------------------------- */

typedef enum pl_status {
    PL_OK = 0,
    PL_EINVAL = -1,       /* caller error: a value out of range, a bad argument */
    PL_ENOMEM = -2,       /* a bounded pool is exhausted */
    PL_EIO = -3,          /* the operating system refused */
    PL_EFORMAT = -4,      /* a malformed file or message */
    PL_EAGAIN = -5,       /* not now; sets no error text */
    PL_ELIMIT = -6,       /* a stated limit would be exceeded */
    PL_ENOTFOUND = -7,
    PL_EUNSUPPORTED = -8, /* well formed, but perilune does not support it */
    PL_ECANCELED = -9,
    PL_ETIMEOUT = -10,
    PL_EINTERNAL = -11    /* a bug in perilune */
} pl_status;

const char *pl_version(void);             /* "0.1.0" */
const char *pl_cdef(void);                /* the text between the marks */
const char *pl_status_name(int status);   /* "PL_EINVAL" */
const char *pl_error_text(void);          /* the last failure on this thread; "" if none */
int pl_error_status(void);                /* its pl_status: for calls that return NULL */
const char *pl_error_where(void);         /* "kv.c:88", for logs */

enum { PL_LOG_DEBUG = 0, PL_LOG_INFO = 1, PL_LOG_WARN = 2, PL_LOG_ERROR = 3 };
void pl_log_level(int level);
void pl_log_json(int on);                 /* one JSON object per line, or (0) plain text */
void pl_log_write(int level, const char *text, size_t len);
/* With fields: name, NUL, value, NUL, and so on; 1 KiB at most. A name that begins with
 * '#' (not shown) has an integer value. */
void pl_log_fields(int level, const char *text, size_t len, const char *fields,
                   size_t fields_len);

int64_t pl_now_ns(void);                  /* monotonic */
int64_t pl_wall_ns(void);                 /* since 1970 */
uint64_t pl_entropy(void);                /* 64 random bits from the system */
void pl_entropy_hex(char *out, int n);    /* n random hex digits, no NUL */
/* Counter-based random bits (Philox4x32-10): the same arguments give the same bits anywhere. */
uint64_t pl_random_at(uint64_t seed, uint64_t position, uint64_t lane);

typedef struct pl_clock pl_clock;         /* an engine's time source */
pl_clock *pl_clock_open(void);            /* virtual: stands still until set */
void pl_clock_set(pl_clock *clock, int64_t ns);
void pl_clock_close(pl_clock *clock);

typedef struct pl_buf {                   /* bytes filled by a call and freed by the owner */
    char *data;
    size_t len, cap;
} pl_buf;
void pl_buf_fini(pl_buf *buf);
/* Paths of the folder's entries whose names have this ending, one per line, sorted; at most `max`. */
void pl_list_folder(const char *path, const char *ending, int max, pl_buf *out);

/* ---- metrics (any thread) -------------------------------------------------------- */

enum { PL_COUNTER = 0, PL_GAUGE = 1, PL_HISTOGRAM = 2 };
/* Registers a series; the same name and labels give the same id. `labels` is the printed
 * form without braces: model_name="m",engine="0". A negative result is a pl_status. */
int pl_metric_open(int kind, const char *name, const char *labels, const char *help,
                   const double *buckets, int n_buckets);
void pl_metric_add(int id, double by);     /* counter, gauge */
void pl_metric_set(int id, double value);  /* gauge */
void pl_metric_observe(int id, double value);
void pl_metric_also(int id, int other);    /* from now on `other` also observes what `id` does */
double pl_metric_value(int id);            /* histogram: its count */
int pl_metric_render(pl_buf *out);         /* Prometheus text format 0.0.4 */

/* ---- JSON, strict and in order (any thread) -------------------------------------- */

typedef struct pl_json pl_json;            /* a document, or a value inside one */
enum { PL_JSON_NULL = 0, PL_JSON_FALSE, PL_JSON_TRUE, PL_JSON_INTEGER, PL_JSON_REAL,
       PL_JSON_STRING, PL_JSON_ARRAY, PL_JSON_OBJECT };
pl_json *pl_json_open(const char *text, size_t len);   /* RFC 8259, 512 levels; on NULL the error text says where */
void pl_json_close(pl_json *doc);                      /* the document and all its values */
int pl_json_kind(const pl_json *v);                    /* NULL (absent) counts as null */
int pl_json_size(const pl_json *v);                    /* of an array or object */
const char *pl_json_digits(const pl_json *v);   /* an integer beyond 64 bits as text; else NULL */
int64_t pl_json_integer(const pl_json *v);
double pl_json_number(const pl_json *v);               /* of an integer or real */
const char *pl_json_string(const pl_json *v, size_t *len);
const pl_json *pl_json_item(const pl_json *array, int i);   /* takes time: i values are passed by */
const pl_json *pl_json_find(const pl_json *object, const char *key);   /* NULL: absent; of equal keys the last counts */
/* Walks an array's items or an object's keys (strings; equal ones all come) in their order:
 * starts at NULL, returns NULL at the end. */
const pl_json *pl_json_next(const pl_json *in, const pl_json *at);
const pl_json *pl_json_value(const pl_json *key);
int pl_json_ints(const pl_json *array, int32_t *out, int max);   /* the count, or a status unless all are integers */
/* Appends s escaped for a JSON string, without the quotes; invalid UTF-8 becomes U+FFFD. */
void pl_buf_add_json(pl_buf *b, const char *s, size_t len);
void pl_buf_add_real(pl_buf *b, double v);             /* shortest form that round-trips, as Python prints it */

/* [/cdef] */
/* clang-format on */
