/* SPDX-License-Identifier: Apache-2.0
 *
 * terminal_line.c - a line that a person edits, by libedit.
 *
 * Owns     the terminal's mode while a line is read; the history and its file.
 * Ignores  what the line means, what could complete it: Lua asks and then types.
 * Thread   lua.
 *
 *      read --Enter--> WHOLE        --Tab--> TAB, the line stays; read goes on with it
 *           --Ctrl-C-> CLEARED      --Ctrl-D on nothing, hang-up--> END
 *
 * libedit is unbuffered: it answers after each key and keeps the line between two calls,
 * so that Tab can leave it and come back. The keys come through a reader of ours, which
 * takes Tab and Ctrl-C out; the latter may arrive as SIGINT, after which libedit's own
 * reader would try again.
 */
#define _GNU_SOURCE
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wchar.h>

#define PASTE_ON "\033[?2004h" /* from now on it says what is pasted, not typed */
#define PASTE_OFF "\033[?2004l"
#define PASTE_BEGINS "\033[200~"
#define PASTE_ENDS "\033[201~"

enum {
    MAX_HISTORY = 1000,
    MAX_PASTE = 1 << 20,
    CTRL_C = 3,
    CTRL_D = 4,
    IGNORED = 28 /* Ctrl-backslash: libedit does nothing, and answers */
};

struct pl_line {
    EditLine *el;
    History *history;
    char *file;
    char *prompt;
    char *text; /* what the last read answered */
    bool editing, tab, cleared, ended, redraw, pasting;
};

static pl_line *of(EditLine *el)
{
    void *line = NULL;
    el_get(el, EL_CLIENTDATA, &line);
    return line;
}

static char *prompt_of(EditLine *el)
{
    return of(el)->prompt;
}

/* A signal while nothing was typed counts as Ctrl-C if it was one. */
static int wait_key(void)
{
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    for (;;) {
        if (pl_terminal_interrupts() > 0) return CTRL_C;
        int n = poll(&p, 1, -1);
        if (n > 0) return 0;
        if (n < 0 && errno != EINTR) return -1;
    }
}

/* The next character, from bytes of UTF-8; -1: none will come. */
static int read_key(EditLine *el, wchar_t *out)
{
    mbstate_t state = {0};
    for (;;) {
        int key = wait_key();
        char byte = (char)key;
        if (key < 0 || (!key && read(STDIN_FILENO, &byte, 1) != 1)) {
            of(el)->ended = true;
            return -1;
        }
        size_t n = mbrtowc(out, &byte, 1, &state);
        if (n == (size_t)-2) continue;
        if (n == (size_t)-1) *out = L'?';
        if (of(el)->pasting) return 1;
        of(el)->tab = *out == L'\t';
        of(el)->cleared = *out == CTRL_C;
        if (*out == L'\t' || *out == CTRL_C) *out = IGNORED;
        return 1;
    }
}

/* The characters up to the end of what is pasted, as one insertion. Beyond MAX_PASTE they
 * are dropped. */
static unsigned char paste(EditLine *el, wint_t key)
{
    (void)key;
    static const wchar_t end[] = L"" PASTE_ENDS;
    size_t n = 0, room = 256, matched = 0;
    wchar_t *text = pl_alloc(room * sizeof *text), c;
    of(el)->pasting = true;
    while (end[matched] && el_wgetc(el, &c) == 1 && c != CTRL_C) {
        matched = c == end[matched] ? matched + 1 : c == end[0];
        if (n + 2 > room && room < MAX_PASTE)
            text = pl_realloc(text, (room *= 2) * sizeof *text);
        if (n + 2 <= room) text[n++] = c == L'\r' ? L'\n' : c;
    }
    of(el)->pasting = false;
    if (!end[matched]) n -= n < matched ? n : matched;
    text[n] = 0;
    int bad = n ? el_winsertstr(el, text) : 0;
    pl_free(text);
    return bad ? CC_ERROR : CC_REFRESH;
}

/* The folders above a file, where they are not there; if that fails so does the file. */
static void make_folders(const char *file)
{
    char *path = pl_strndup(file, strlen(file));
    for (char *at = strchr(path + 1, '/'); *path && at; at = strchr(at + 1, '/')) {
        *at = 0;
        mkdir(path, 0700);
        *at = '/';
    }
    pl_free(path);
}

static void open_history(pl_line *l, const char *file)
{
    HistEvent event;
    l->history = history_init();
    history(l->history, &event, H_SETSIZE, MAX_HISTORY);
    history(l->history, &event, H_SETUNIQUE, 1);
    el_set(l->el, EL_HIST, history, l->history);
    if (!file) return;
    l->file = pl_strndup(file, strlen(file));
    make_folders(file);
    history(l->history, &event, H_LOAD, file);
}

pl_line *pl_line_open(const char *history_file)
{
    EditLine *el = el_init("perilune", stdin, stdout, stderr);
    if (!el) {
        pl_fail(PL_EIO, "the terminal cannot be used to edit a line");
        return NULL;
    }
    pl_line *l = pl_alloc(sizeof *l);
    l->el = el;
    l->prompt = pl_strndup("", 0);
    el_set(el, EL_CLIENTDATA, l);
    el_set(el, EL_SIGNAL, 0);
    el_set(el, EL_EDITOR, "emacs");
    el_set(el, EL_PROMPT, prompt_of);
    el_set(el, EL_GETCFN, read_key);
    open_history(l, history_file);
    el_source(el, NULL); /* a person's own ~/.editrc */
    el_set(el, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_wset(el, EL_ADDFN, L"perilune-paste", L"insert what is pasted", paste);
    el_set(el, EL_BIND, PASTE_BEGINS, "perilune-paste", NULL);
    return l;
}

static void begin(pl_line *l)
{
    l->editing = true;
    el_resize(l->el); /* the window may have another size by now */
    el_set(l->el, EL_UNBUFFERED, 1);
    fputs(PASTE_ON, stdout);
    fflush(stdout);
}

static void end(pl_line *l, const char *echo)
{
    l->editing = false;
    el_set(l->el, EL_UNBUFFERED, 0);
    fputs(PASTE_OFF, stdout);
    fputs(echo, stdout);
    fflush(stdout);
}

static int answer(pl_line *l, int what, const char *from, size_t len, const char **text,
                  size_t *out_len)
{
    pl_free(l->text);
    l->text = pl_strndup(from, len);
    *text = l->text;
    *out_len = len;
    return what;
}

/* What the key that was just taken has ended; 0: nothing yet. */
static int look(pl_line *l, const char *line, int n, const char **text, size_t *len)
{
    if (l->tab) {
        const LineInfo *info = el_line(l->el);
        l->tab = false;
        return answer(l, PL_LINE_TAB, info->buffer, (size_t)(info->cursor - info->buffer),
                      text, len);
    }
    if (l->cleared) {
        l->cleared = false;
        end(l, "^C\n");
        return answer(l, PL_LINE_CLEARED, "", 0, text, len);
    }
    if (!line || n < 0) return 0;
    if (n == 1 && line[0] == CTRL_D) {
        end(l, "\n");
        return answer(l, PL_LINE_END, "", 0, text, len);
    }
    if (n < 1 || line[n - 1] != '\n') return 0;
    answer(l, PL_LINE_WHOLE, line, (size_t)n - 1, text, len);
    end(l, "");
    return PL_LINE_WHOLE;
}

int pl_line_read(pl_line *l, const char *prompt, const char **text, size_t *len)
{
    if (!l->editing) {
        pl_free(l->prompt);
        l->prompt = pl_strndup(prompt, strlen(prompt));
        begin(l);
    } else if (l->redraw) {
        el_set(l->el, EL_REFRESH);
    }
    l->redraw = false;
    for (;;) {
        int n = 0;
        errno = 0;
        const char *line = el_gets(l->el, &n);
        int what = look(l, line, n, text, len);
        if (what) return what;
        if (!line && n < 0 && l->ended) {
            end(l, "\n");
            return answer(l, PL_LINE_END, "", 0, text, len);
        }
    }
}

void pl_line_type(pl_line *l, const char *text)
{
    el_push(l->el, text);
}

void pl_line_redraw(pl_line *l)
{
    l->redraw = true;
}

void pl_line_remember(pl_line *l, const char *text)
{
    HistEvent event;
    history(l->history, &event, H_ENTER, text);
    /* At once: a console may be killed. The file is its owner's alone. */
    if (l->file) history(l->history, &event, H_SAVE, l->file);
}

void pl_line_close(pl_line *l)
{
    if (!l) return;
    if (l->editing) end(l, "");
    history_end(l->history);
    el_end(l->el);
    pl_free(l->file);
    pl_free(l->prompt);
    pl_free(l->text);
    pl_free(l);
}
