/* SPDX-License-Identifier: Apache-2.0 */
#include "perilune.h"

const char *pl_version(void)
{
    return PL_VERSION;
}

const char *pl_cdef(void)
{
    /* C promises literals of 4095 characters only; the compilers we use take more. */
#pragma GCC diagnostic ignored "-Woverlength-strings"
    static const char text[] =
#include "cdef.h"
        ;
    return text;
}
