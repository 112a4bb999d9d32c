-- SPDX-License-Identifier: Apache-2.0
-- changes.lua - a cache and what it tells, as core/kv.h, core/change.h and
-- core/events_own.h declare them.

local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

ffi.cdef [[
typedef struct pl_change_run { int32_t kind, n; } pl_change_run;
typedef struct pl_change_block {
    uint64_t parent;
    bool is_first;
    int32_t salt_at, salt_len;
} pl_change_block;
typedef struct pl_changes {
    int refs;
    bool is_whole;
    uint64_t before, after;
    int32_t n_runs, n_keys;
    const pl_change_run *runs;
    const uint64_t *keys;
    int32_t n_stored, block_size;
    const pl_change_block *blocks;
    const int32_t *tokens;
    const char *salts;
} pl_changes;
typedef struct pl_change_log {
    pl_change_run *runs;
    uint64_t *keys;
    int32_t n_runs, runs_cap, n_keys, keys_cap;
    pl_change_block *blocks;
    int32_t n_blocks, blocks_cap;
    pl_buf tokens, salts;
} pl_change_log;
void pl_change_log_fini(pl_change_log *l);
void pl_change_log_add(pl_change_log *l, int kind, uint64_t key);
pl_changes *pl_change_log_take(pl_change_log *l, uint64_t before, uint64_t after);
void pl_changes_put(pl_changes *c);
void pl_change_log_block(pl_change_log *l, const pl_change_block *block,
                         const int32_t *tokens, int32_t block_size, const char *salt);
void pl_events_encode(pl_buf *out, double time, const pl_changes *c, int rank);
pl_status pl_events_decode(const void *data, size_t len, pl_change_log *log);

typedef struct pl_name { uint8_t bytes[32]; } pl_name;
typedef struct pl_namer { int algo, digest_len; pl_name none; } pl_namer;
pl_status pl_namer_init(pl_namer *namer, int algo, const char *seed);
uint64_t pl_name_key(const pl_namer *namer, const pl_name *name);
typedef struct pl_kv pl_kv;
pl_kv *pl_kv_open(int32_t n_blocks, const pl_namer *namer);
void pl_kv_close(pl_kv *kv);
int32_t pl_kv_find(const pl_kv *kv, const pl_name *names, int32_t n, int32_t *blocks);
bool pl_kv_take(pl_kv *kv, const int32_t *hits, int32_t n_hits, int32_t n_new, int32_t *fresh);
void pl_kv_put(pl_kv *kv, const int32_t *blocks, int32_t n);
bool pl_kv_name(pl_kv *kv, int32_t block, const pl_name *name);
void pl_kv_forget(pl_kv *kv, int32_t block);
bool pl_kv_reset(pl_kv *kv);
void pl_kv_log(pl_kv *kv, pl_change_log *log);
uint64_t pl_kv_changes(const pl_kv *kv);
pl_changes *pl_kv_whole(const pl_kv *kv);
pl_status pl_kv_check(const pl_kv *kv);
]]

local M = { STORED = 1, REMOVED = 2, CLEARED = 3 }
local WORDS = { "stored", "removed", "cleared" }

-- A batch as { whole, before, after, { "stored", key, key }, { "removed", key }, ... },
-- keys as text; closes it.
function M.table_of(c)
  local out, at = { whole = c.is_whole, before = tonumber(c.before),
    after = tonumber(c.after) }, 0
  for i = 0, c.n_runs - 1 do
    local run = { WORDS[c.runs[i].kind] }
    for _ = 1, c.runs[i].n do
      run[#run + 1] = tostring(c.keys[at])
      at = at + 1
    end
    out[#out + 1] = run
  end
  C.pl_changes_put(c)
  return out
end

-- What is held, a set of keys as text, once these changes have come to it.
function M.apply(set, changes)
  if changes.whole then set = {} end
  for _, run in ipairs(changes) do
    if run[1] == "cleared" then set = {} end
    for i = 2, #run do set[run[i]] = run[1] == "stored" or nil end
  end
  return set
end

return M
