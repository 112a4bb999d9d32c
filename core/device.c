/* SPDX-License-Identifier: Apache-2.0
 *
 * Backends by name: those of the program, then those in libraries beside it.
 */
#define _GNU_SOURCE
#include "device.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const pl_backend *const backends[] = {&pl_backend_cpu, &pl_backend_null};

/* Where a plug-in may lie, seen from the file that holds this code: beside a built
 * program, or in the lib of an installed one. */
static const char *const folders[] = {"", "../lib/"};

static bool is_name(const char *s)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i++)
        if (!islower((unsigned char)s[i]) && !isdigit((unsigned char)s[i])) return false;
    return n > 0 && n < 32;
}

/* The folder of this code's file, with its slash. */
static int own_folder(char *out, size_t size)
{
    Dl_info info;
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    const char *file = n > 0 ? path : "";
    path[PL_MAX(n, 0)] = 0;
    /* Inside a shared library the program says nothing. */
    if (dladdr(&pl_backend_cpu, &info) && info.dli_fname && strstr(info.dli_fname, ".so"))
        file = info.dli_fname;
    const char *slash = strrchr(file, '/');
    return snprintf(out, size, "%.*s", slash ? (int)(slash + 1 - file) : 0, file);
}

/* The library of that name, or NULL where there is none. It stays loaded: devices may
 * have registered what runs at exit. */
static void *open_library(const char *name, char *path, size_t size)
{
    int n = own_folder(path, size);
    for (int i = 0; i < PL_COUNT(folders); i++) {
        snprintf(path + n, size - (size_t)n, "%slibperilune_%s.so", folders[i], name);
        if (access(path, F_OK) == 0) return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    path[0] = 0;
    return NULL;
}

static const pl_backend *find_plugin(const char *name)
{
    char path[4096 + 128];
    void *library = is_name(name) ? open_library(name, path, sizeof path) : NULL;
    if (!library && is_name(name) && path[0]) {
        pl_fail(PL_EUNSUPPORTED, "device '%s' cannot be loaded: %s", name, dlerror());
        return NULL;
    }
    const pl_backend *b = library ? dlsym(library, "perilune_backend") : NULL;
    if (!library) {
        pl_fail(PL_ENOTFOUND, "no device '%s', wanted 'cpu' or 'null'", name);
    } else if (!b) {
        pl_fail(PL_EUNSUPPORTED, "'%s' has no perilune_backend", path);
    } else if (b->abi != PL_DEVICE_ABI) {
        pl_fail(PL_EUNSUPPORTED, "'%s' was built for device ABI %d, this program has %d",
                path, b->abi, PL_DEVICE_ABI);
        b = NULL;
    }
    return b;
}

static const pl_backend *find(const char *name)
{
    for (int i = 0; i < PL_COUNT(backends); i++)
        if (!strcmp(name, backends[i]->name)) return backends[i];
    return find_plugin(name);
}

pl_device *pl_device_open(const pl_device_options *o)
{
    if (o->n_threads < 0 || o->n_threads > 1024) {
        pl_fail(PL_EINVAL, "n_threads is %d, wanted 0 to 1024", o->n_threads);
        return NULL;
    }
    if (o->depth < 0 || o->depth > 2) {
        pl_fail(PL_EINVAL, "depth is %d, wanted 0 to 2", o->depth);
        return NULL;
    }
    const pl_backend *b = find(o->name ? o->name : "");
    pl_device *d = b ? b->open(o) : NULL;
    if (!d || (d->depth >= 1 && d->depth <= 2)) return d;
    pl_fail(PL_EUNSUPPORTED, "device '%s' has a depth of %d, wanted 1 or 2", b->name,
            d->depth);
    pl_device_close(d);
    return NULL;
}

void pl_device_close(pl_device *d)
{
    if (d) d->ops->close(d);
}

const char *pl_device_kernels(const pl_device *d)
{
    return d->ops->kernels(d);
}

int pl_device_memory(pl_device *d, int64_t *left, int64_t *all)
{
    return d->ops->memory ? d->ops->memory(d, left, all) : PL_ENOTFOUND;
}

size_t pl_type_bytes(int type, int64_t n)
{
    if (type < 0 || type >= PL_N_TYPES || n % pl_packings[type].values) return 0;
    return (size_t)(n / pl_packings[type].values) * (size_t)pl_packings[type].bytes;
}
