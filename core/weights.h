/* SPDX-License-Identifier: Apache-2.0
 *
 * weights.h - files of tensors, mapped and checked; the part that only their readers see.
 *
 * Owns     the mapping of one file, the names and shapes of what is in it.
 * Ignores  what the tensors are for, which files make a model.
 * Thread   any: nothing changes once a file is open.
 *
 * Everything that a file says of itself is checked against its size when it is opened, so
 * that no tensor and no value of the metadata can lead out of the mapping. A file that is
 * truncated while it is mapped raises SIGBUS where the lost part is next touched, and
 * nothing guards against that: replace a model file by renaming, do not write into it.
 */
#ifndef PL_WEIGHTS_H
#define PL_WEIGHTS_H

#include "base.h"

enum {
    PL_WEIGHTS_MAX_NAME = 255, /* bytes of a tensor's name */
    PL_WEIGHTS_MAX_TENSORS = 1 << 20,
    PL_WEIGHTS_MAX_METAS = 1 << 16,
};

typedef struct pl_weights_value { /* GGUF metadata; the bytes stay in the file */
    char *key;
    uint32_t type, item_type;    /* as GGUF numbers them */
    int32_t n;                   /* of an array */
    const unsigned char *at;     /* the value, or an array's first item */
    const unsigned char **items; /* an array of strings: where each one begins */
} pl_weights_value;

struct pl_weights {
    char *path;
    const unsigned char *bytes;
    size_t size;
    bool mapped;        /* the bytes are a mapping of ours */
    size_t data_at;     /* tensors' bytes begin here */
    pl_tensor *tensors; /* in the file's order; PL_N_TYPES: to be left out */
    pl_tensor **by_name;
    int n_tensors, cap_tensors;
    pl_weights_value *metas; /* sorted by key */
    int n_metas;
};

/* The same as pl_weights_open on bytes in memory, which must outlive it; `path` is what
 * errors call them. */
pl_weights *pl_weights_parse(const char *path, const void *data, size_t size);

/* For the readers. The tensor's bytes are at `begin` of the file; `end` 0: as long as its
 * type and shape say. A type of PL_N_TYPES with `end` takes room but is left out. */
pl_status pl_weights_add(pl_weights *w, const pl_tensor *shape, size_t name_len,
                         uint64_t begin, uint64_t end);
pl_status pl_weights_name_check(const pl_weights *w, const char *what, const char *name,
                                size_t len, size_t max);
pl_status pl_weights_read_gguf(pl_weights *w);
pl_status pl_weights_read_safetensors(pl_weights *w);
void pl_weights_free_metas(pl_weights *w);

#endif
