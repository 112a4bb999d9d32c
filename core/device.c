/* SPDX-License-Identifier: Apache-2.0 */
#include "device.h"

#include <string.h>

pl_device *pl_device_open(const char *name, const char *kernels, int n_threads)
{
    if (n_threads < 0 || n_threads > 1024) {
        pl_fail(PL_EINVAL, "n_threads is %d, wanted 0 to 1024", n_threads);
        return NULL;
    }
    if (name && !strcmp(name, "cpu")) return pl_device_cpu_open(kernels, n_threads);
    if (name && !strcmp(name, "null")) return pl_device_null_open();
    pl_fail(PL_ENOTFOUND, "no device '%s', wanted 'cpu' or 'null'", name ? name : "");
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

size_t pl_type_bytes(int type, int64_t n)
{
    if (type < 0 || type >= PL_N_TYPES || n % pl_packings[type].values) return 0;
    return (size_t)(n / pl_packings[type].values) * (size_t)pl_packings[type].bytes;
}
