-- SPDX-License-Identifier: Apache-2.0
-- decide.lua - what a whole decision costs: a table, then a line of JSON.
--
--   build/perilune lua bench/decide.lua [WORKERS] [TOKENS]
--
-- A prompt of TOKENS (2,000) and WORKERS (64) that each hold another part of it; a cost
-- function as a user would write it. `hook`: the function alone, asked about all workers;
-- `choose`: all of fleet/decide.lua with the prompt's blocks named before; `decision`:
-- and with their names, by sha256 and by xxhash. The least of twenty rounds, since other
-- programs slow all of it down.

local json = require "cjson.safe"
local cluster = require "perilune.fleet.cluster"
local cost = require "perilune.recipe.cost"
local decide = require "perilune.fleet.decide"
local models = require "perilune.fleet.served_models"
local fleet_view = require "perilune.recipe.fleet_view"
local hook_view = require "perilune.recipe.hook_view"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local WORKERS, TOKENS = tonumber(arg[1] or 64), tonumber(arg[2] or 2000)
local ROUNDS, TIMES, SOME, BLOCK = 20, 1000, 20, 16

C.pl_log_level(C.PL_LOG_ERROR)

local ids, params = ffi.new("int32_t[?]", TOKENS), ffi.new "pl_params"
C.pl_params_init(params)
for i = 0, TOKENS - 1 do ids[i] = tonumber(C.pl_random_at(1, i, 0) % 49152) end

-- The least microseconds of CPU time of fn(i) each, i from 1 to SOME, again and again;
-- prepare(), if there is one, is called before these, and not counted.
local function time(fn, prepare)
  local best = math.huge
  for _ = 1, ROUNDS do
    local seconds = 0
    for _ = 1, TIMES / SOME do
      if prepare then prepare() end
      local began = os.clock()
      for i = 1, SOME do fn(i) end
      seconds = seconds + os.clock() - began
    end
    best = math.min(best, seconds / TIMES * 1e6)
  end
  return best
end

local function user_cost(req, w) return 1.5 * (req.blocks - w.cached) + w.decoding end

local function setup(algo)
  local c = cluster.new(nil, {}, nil, function() end)
  local served = models.blank({ main = "worker" }, "m")
  served.index = C.pl_route_open(1e6)
  served.terms = { block_size = BLOCK, hash_algo = algo, hash_seed = "vllm-none-hash",
    kv_events = true }
  for i = 1, WORKERS do
    local w = c:add { name = "worker/" .. i, served = served, numerics = "n" }
    w.number_in_index = C.pl_route_join(served.index)
  end
  local naming = models.naming(served.terms)
  served.naming = naming
  local seq, n = C.pl_seq_open(ids, TOKENS, params), math.floor(TOKENS / BLOCK)
  local keys = ffi.new("uint64_t[?]", n)
  C.pl_naming_keys(naming, seq, 0, keys, n)
  for i, w in ipairs(served.workers) do
    C.pl_route_store(served.index, w.number_in_index, keys, math.floor(n * i / WORKERS))
  end
  local server = { cluster = c,
    recipe = { main = "worker", worker = { cost = user_cost } } }
  local facts = { id = "r", tokens = TOKENS, total = TOKENS, block_size = BLOCK }
  local job = { id = "r", plan = { n = 1, priority = 0 }, view = hook_view.new(facts),
    look = function(self, _, named, s)
      facts.naming, facts.seq = named, s
      return self.view
    end }
  return { server = server, served = served, job = job, choice = { full = {},
    prompt = { n_tokens = TOKENS } } }
end

local function choose(s, seq)
  s.choice.seq = tonumber(ffi.cast("uintptr_t", seq))
  return decide.choose(s.server, s.served, s.job, s.choice)
end

-- Named anew in each decision, of a prompt that was just made, or only in the first.
local function decision(algo, again)
  local s, seqs = setup(algo), {}
  local function fresh()
    for i = 1, SOME do
      if seqs[i] then C.pl_seq_close(seqs[i]) end
      seqs[i] = C.pl_seq_open(ids, TOKENS, params)
    end
  end
  fresh()
  return time(function(i) choose(s, seqs[again and i or 1]) end, again and fresh)
end

local function hook(fn)
  local view, loop = fleet_view.new(), fleet_view.loop()
  view:begin()
  for i = 1, WORKERS do view:add(nil, -1, 0, i, "worker/" .. i) end
  local req = hook_view.new { tokens = TOKENS, total = TOKENS, block_size = BLOCK }
  return time(function() loop(fn, req, view) end)
end

local rows = {
  { "hook", hook(user_cost) }, { "hook, pl.cost.kv", hook(cost.kv) },
  { "choose", decision("sha256_cbor", false) },
  { "decision, sha256_cbor", decision("sha256_cbor", true) },
  { "decision, xxhash_cbor", decision("xxhash_cbor", true) },
}
print(("%d workers, a prompt of %d tokens; microseconds of CPU time"):format(WORKERS,
  TOKENS))
local out = { workers = WORKERS, tokens = TOKENS }
for _, row in ipairs(rows) do
  print(("  %-24s %8.2f"):format(row[1], row[2]))
  out[row[1]] = row[2]
end
print(json.encode(out))
