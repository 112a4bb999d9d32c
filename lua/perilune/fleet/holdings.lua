-- SPDX-License-Identifier: Apache-2.0
-- fleet/holdings.lua - which worker holds which blocks of its KV cache, as a frontend
-- knows it.
--
-- A served model has an index (served.index, a pl_route); its workers have numbers there
-- (w.number_in_index) while they take requests. A worker tells what its cache gains and
-- loses. Until it has told all, it is taken to hold nothing. decisions/0019 says why.
--
-- One that does not tell (kv_events is off, or it is older than that) has no number:
-- fleet/sent.lua guesses what it holds.

local pl = require "perilune.ffi"
local flow = require "perilune.flow"
local log = require "perilune.log"
local C, ffi = pl.C, pl.ffi

local M = {}

-- Of one model, in all caches together: an index of so many takes about 400 MB.
local MAX_BLOCKS = 2 ^ 24
-- The index is brought up to date when it is asked, and otherwise so often, for what has
-- come must not pile up.
local BUSY_SECONDS, IDLE_SECONDS, CHECK_SECONDS = 0.02, 0.1, 0.5

local function index_of(served)
  if not served.index then
    local index = C.pl_route_open(MAX_BLOCKS)
    if index == nil then return nil end
    served.index = index
  end
  return served.index
end

local function follow(w, index, number)
  if w.follow then return w.follow(index, number) end
  if w.engine then return C.pl_route_follow(index, number, w.engine) end
  return C.pl_route_follow_peer(index, number, w.rt, w.peer, w.index)
end

local function join(w)
  local index = index_of(w.served)
  local number = index and C.pl_route_join(index) or C.PL_ENOMEM
  if number < 0 or follow(w, index, number) < 0 then
    log.warning("nobody will know what %s has cached: %s", w.name,
      ffi.string(C.pl_error_text()))
    if number >= 0 then C.pl_route_leave(index, number) end
    return
  end
  w.number_in_index = number
end

-- Whether a worker of these terms tells what it caches; nil: it caches nothing.
function M.tells(terms)
  if terms.prefix_caching == false then return nil end
  return terms.kv_events == true
end

-- Has a worker that takes requests and tells in the index, and no other.
function M.update(w)
  local wanted = w.tells and w.state == "ready"
  if w.tells == false then index_of(w.served) end   -- so that the default looks at caches
  if wanted and not w.number_in_index then
    join(w)
  elseif not wanted and w.number_in_index then
    C.pl_route_leave(w.served.index, w.number_in_index)
    w.number_in_index = nil
  end
end

-- How many blocks a worker is known to hold.
function M.count(w)
  local number = w.number_in_index
  return number and tonumber(C.pl_route_held(w.served.index, number)) or 0
end

-- What its engine counts tells whether all has come.
local function check(w)
  local counts = w.counts
  if w.engine then
    counts = w.stats
    C.pl_engine_stats_get(w.engine, counts)
  end
  if not counts then return end
  C.pl_route_check(w.served.index, w.number_in_index, counts.blocks_changed)
end

-- Keeps the indexes up to date; a task.
function M.watch(cluster)
  local due = 0
  while true do
    local n = 0
    for _, served in ipairs(cluster.models.list) do
      if served.index then n = n + tonumber(C.pl_route_apply(served.index)) end
    end
    if flow.now() >= due then
      due = flow.now() + CHECK_SECONDS
      for _, w in ipairs(cluster.workers) do
        if w.number_in_index then check(w) end
      end
    end
    flow.sleep(n > 0 and BUSY_SECONDS or IDLE_SECONDS)
  end
end

-- Of all these models: nothing is followed any more.
function M.close(models)
  for _, served in ipairs(models.list) do
    if served.index then C.pl_route_close(served.index) end
    served.index = nil
  end
end

return M
