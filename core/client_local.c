/* SPDX-License-Identifier: Apache-2.0
 *
 * client_local.c - the folder of a user's sockets, and who may be in it.
 *
 * Owns     the rule that nobody else can enter; which socket files are stale.
 * Ignores  what is said over them.
 * Thread   any.
 */
#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_LISTED = 1000,
    LOCK_TRIES = 100,
    LOCK_PAUSE_MS = 10
};
static const char ending[] = ".sock";

/* ---- the folder -------------------------------------------------------------------- */

/* Where it is, whether or not it is there. */
static pl_status place(char *out, size_t size)
{
    const char *run = getenv("XDG_RUNTIME_DIR");
    int n = run && *run == '/'
                ? snprintf(out, size, "%s/perilune", run)
                : snprintf(out, size, "/tmp/perilune-%u", (unsigned)geteuid());
    if (n > 0 && (size_t)n < size) return PL_OK;
    return pl_fail(PL_EINVAL, "XDG_RUNTIME_DIR is longer than %zu bytes", size);
}

static pl_status check_folder(const char *path)
{
    struct stat st;
    if (lstat(path, &st) < 0) return pl_fail(PL_EIO, "'%s': %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return pl_fail(PL_EIO, "'%s' is not a folder", path);
    if (st.st_uid != geteuid())
        return pl_fail(PL_EIO, "folder '%s' belongs to user %u: its sockets are not ours",
                       path, (unsigned)st.st_uid);
    if (st.st_mode & 077)
        return pl_fail(PL_EIO,
                       "others can enter folder '%s' (mode %03o): wanted mode 700", path,
                       (unsigned)st.st_mode & 0777);
    return PL_OK;
}

pl_status pl_local_folder(pl_buf *out)
{
    char path[PATH_MAX];
    PL_TRY(place(path, sizeof path));
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return pl_fail(PL_EIO, "folder '%s' cannot be made: %s", path, strerror(errno));
    PL_TRY(check_folder(path));
    pl_buf_add_str(out, path);
    return PL_OK;
}

pl_status pl_local_list(pl_buf *out)
{
    char path[PATH_MAX];
    PL_TRY(place(path, sizeof path));
    if (access(path, F_OK) < 0) return PL_OK;
    PL_TRY(check_folder(path));
    pl_list_folder(path, ending, MAX_LISTED, out);
    return PL_OK;
}

/* ---- a socket in it ---------------------------------------------------------------- */

/* Whoever binds holds a lock meanwhile: or two that begin at once would each take the
 * other's new socket for a stale one. */
static int lock_folder(const char *folder)
{
    char path[PATH_MAX + 8];
    snprintf(path, sizeof path, "%s/.lock", folder);
    int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return pl_fail(PL_EIO, "'%s': %s", path, strerror(errno));
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
        nanosleep(&(struct timespec){0, LOCK_PAUSE_MS * 1000000}, NULL);
    }
    close(fd);
    return pl_fail(PL_ETIMEOUT, "'%s' is held by another process", path);
}

static int new_socket(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    return fd < 0 ? pl_fail(PL_EIO, "socket: %s", strerror(errno)) : fd;
}

/* Takes away what nobody listens to; PL_EIO where somebody does, or it is no socket. */
static pl_status remove_stale(const struct sockaddr_un *at)
{
    struct stat st;
    if (lstat(at->sun_path, &st) < 0) return PL_OK;
    if (!S_ISSOCK(st.st_mode))
        return pl_fail(PL_EIO, "'%s' exists and is not a socket", at->sun_path);
    int fd = new_socket();
    if (fd < 0) return fd;
    int bad = connect(fd, (const struct sockaddr *)at, sizeof *at) < 0 ? errno : 0;
    close(fd);
    if (bad != ECONNREFUSED)
        return pl_fail(PL_EIO, "'%s' belongs to a process that runs", at->sun_path);
    unlink(at->sun_path);
    return PL_OK;
}

static int bind_in(const struct sockaddr_un *at)
{
    PL_TRY(remove_stale(at));
    int fd = new_socket();
    if (fd < 0) return fd;
    if (bind(fd, (const struct sockaddr *)at, sizeof *at) == 0 &&
        chmod(at->sun_path, 0600) == 0 && listen(fd, 64) == 0)
        return fd;
    pl_status status = pl_fail(PL_EIO, "'%s': %s", at->sun_path, strerror(errno));
    close(fd);
    return status;
}

int pl_local_bind(const char *path)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    const char *slash = strrchr(path, '/');
    if (len >= sizeof at.sun_path || !slash || slash == path)
        return pl_fail(PL_EINVAL,
                       "'%s' is not a path of a socket in a folder, of %zu bytes", path,
                       sizeof at.sun_path - 1);
    memcpy(at.sun_path, path, len);
    char folder[sizeof at.sun_path];
    snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
    PL_TRY(check_folder(folder));
    int lock = lock_folder(folder);
    if (lock < 0) return lock;
    int fd = bind_in(&at);
    close(lock);
    return fd;
}
