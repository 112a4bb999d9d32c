/* SPDX-License-Identifier: Apache-2.0
 *
 * perilune/tools.h - what the command line needs: connections, local sockets, the
 * terminal.
 */
#ifndef PERILUNE_H
#error "include perilune.h"
#endif

/* clang-format off */
/* [cdef] */

/* ---- client: a connection to some server, for chat and bench (any thread) -------- */

typedef struct pl_client pl_client;
/* A host and port, or "unix:PATH" and port 0. */
pl_client *pl_client_open(const char *host, int port, int timeout_ms);
pl_client *pl_client_another(const pl_client *c);   /* to the same place, without waiting for the connection */
void pl_client_close(pl_client *c);
/* Sends all of it within the timeout; with 0, what it can now and the rest in pl_client_poll. */
pl_status pl_client_send(pl_client *c, const char *data, size_t len, int timeout_ms);
/* Returns how many bytes; 0: the server closed. PL_EAGAIN, PL_ETIMEOUT: none yet;
 * PL_ECANCELED: interrupted by a signal. */
int pl_client_recv(pl_client *c, char *out, int max, int timeout_ms);
/* Waits until data arrives on any of n; ready[i] says on which. Returns how many (0:
 * timeout), or PL_ECANCELED. */
int pl_client_poll(pl_client *const *clients, int n, uint8_t *ready, int timeout_ms);

/* ---- local: sockets that only their owner can open (any thread) ------------------ */

/* The folder for this user's sockets: $XDG_RUNTIME_DIR/perilune, or /tmp/perilune-UID if
 * that is unset. Created if missing; PL_EIO if others could enter it. */
pl_status pl_local_folder(pl_buf *out);
/* The paths of the sockets in it, one per line; some may be stale. */
pl_status pl_local_list(pl_buf *out);

/* ---- terminal (lua thread) ------------------------------------------------------- */

int pl_terminal_is(int fd);                /* is it one? */
int pl_terminal_width(int fd);             /* columns; 0: not known */
int pl_terminal_columns(const char *text, size_t len);   /* the width of UTF-8 text */
void pl_terminal_catch(int on);            /* Ctrl-C is counted instead of ending the process */
int pl_terminal_interrupts(void);          /* number since the last call */
int pl_terminal_key(int timeout_ms);       /* a byte typed, without Enter; -1: none */
void pl_terminal_keys(int on);             /* bytes arrive one by one, without echo */

/* Line editing with history; standard input must be a terminal. Pasted text stays one line,
 * newlines included, until Enter is pressed. */
typedef struct pl_line pl_line;
enum { PL_LINE_WHOLE = 1,                  /* Enter: the line is complete */
       PL_LINE_TAB,                        /* Tab: the line up to the cursor; the next read continues it */
       PL_LINE_CLEARED,                    /* Ctrl-C: the line was cleared */
       PL_LINE_END };                      /* Ctrl-D on an empty line, or the terminal is gone */
pl_line *pl_line_open(const char *history_file);   /* NULL: history is not saved */
int pl_line_read(pl_line *l, const char *prompt, const char **text, size_t *len);
void pl_line_type(pl_line *l, const char *text);   /* after TAB: as if typed */
void pl_line_redraw(pl_line *l);           /* after TAB: something was printed; the next read redraws the line */
void pl_line_remember(pl_line *l, const char *text);
void pl_line_close(pl_line *l);

/* [/cdef] */
/* clang-format on */
