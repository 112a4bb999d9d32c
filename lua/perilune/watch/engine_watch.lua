-- SPDX-License-Identifier: Apache-2.0
-- watch/engine_watch.lua - an engine of this process is counted, watched and, when idle,
-- tried.

local pl = require "perilune.ffi"
local canary = require "perilune.watch.canary"
local flow = require "perilune.flow"
local C = pl.C

local M = {}

local TELL_SECONDS = 1

-- What a frontend says of a model: watch/metrics.lua's config. `e`: the first engine of
-- those that answer (fleet/worker.lua).
function M.config(recipe, e)
  local pool = e.pool
  return { total_kv_blocks = e.blocks, max_num_seqs = pool.max_num_seqs,
    max_num_batched_tokens = pool.max_num_batched_tokens, context_length = e.length,
    kv_cache_block_size = pool.block_size, migration_limit = recipe.migration_limit }
end

local function cache_of(e)
  local pool = e.pool
  return {
    { "block_size", pool.block_size }, { "num_gpu_blocks", e.blocks },
    { "cache_dtype", pool.kv_cache_dtype },
    { "enable_prefix_caching", pool.enable_prefix_caching },
    { "prefix_caching_hash_algo", pool.prefix_caching_hash_algo },
  }
end

-- Says now and then whose sequences wait long: here, for a step may be long too.
local function tell_waits(engine)
  while true do
    flow.sleep(TELL_SECONDS)
    C.pl_engine_tell_waits(engine)
  end
end

-- Engine `e` of the workers `w` (fleet/worker.lua), before it starts. `o`: rt, metrics,
-- health, recipe, model (the name that it is counted under).
function M.engine(index, e, w, o)
  o.metrics:add_engine(index, e.engine, { model = o.model, cache = cache_of(e),
    load_seconds = e.load_seconds })
  o.health:add_engine(index, e.engine)
  flow.spawn(canary.run, { rt = o.rt, text = w.tokenizer.text, engine = e.engine,
    index = index, health = o.health, token = (w.tokenizer.prefix_ids or {})[1],
    wait = function() return o.recipe.canary_wait end })
  flow.spawn(tell_waits, e.engine)
end

return M
