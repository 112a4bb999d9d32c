/* SPDX-License-Identifier: Apache-2.0
 *
 * terminal.c - the person at the terminal: is there one, how wide is it, and did they
 * press Ctrl-C.
 *
 * Owns     what SIGINT does while it is caught, how keys come.
 * Ignores  text; the server's signals (the io thread has those).
 * Thread   lua.
 */
#define _GNU_SOURCE
#include "base.h"

#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>
#include <utf8proc.h>

static atomic_int interrupts;

static void count_interrupt(int signal)
{
    (void)signal;
    atomic_fetch_add(&interrupts, 1);
}

int pl_terminal_is(int fd)
{
    return isatty(fd);
}

int pl_terminal_width(int fd)
{
    struct winsize size;
    return ioctl(fd, TIOCGWINSZ, &size) < 0 ? 0 : size.ws_col;
}

int pl_terminal_columns(const char *text, size_t len)
{
    int columns = 0;
    utf8proc_int32_t c;
    for (size_t at = 0; at < len;) {
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text + at,
                                              (utf8proc_ssize_t)(len - at), &c);
        at += n < 1 ? 1 : (size_t)n;
        columns += n < 1 ? 1 : utf8proc_charwidth(c);
    }
    return columns;
}

void pl_terminal_catch(int on)
{
    static struct sigaction before;
    static bool caught;
    if (!on == !caught) return;
    caught = on;
    /* Without SA_RESTART: reads and waits end at once, and whoever waits looks why. */
    struct sigaction action = {.sa_handler = count_interrupt};
    sigemptyset(&action.sa_mask);
    if (on)
        sigaction(SIGINT, &action, &before);
    else
        sigaction(SIGINT, &before, NULL);
}

int pl_terminal_interrupts(void)
{
    return atomic_exchange(&interrupts, 0);
}

void pl_terminal_keys(int on)
{
    static struct termios before;
    static bool raw;
    if (!on == !raw) return;
    if (on && tcgetattr(STDIN_FILENO, &before) < 0) return;
    struct termios now = before;
    now.c_lflag &= (tcflag_t) ~(ICANON | ECHO);
    raw = on;
    tcsetattr(STDIN_FILENO, TCSADRAIN, on ? &now : &before);
}

int pl_terminal_key(int timeout_ms)
{
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    unsigned char key;
    if (poll(&p, 1, timeout_ms) < 1 || read(STDIN_FILENO, &key, 1) != 1) return -1;
    return key;
}
