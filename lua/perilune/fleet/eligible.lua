-- SPDX-License-Identifier: Apache-2.0
-- fleet/eligible.lua - which workers of a pool may take a request.
--
-- `pool`: of fleet/served_models.lua. `avoid`: not this worker. `full`: a set of workers
-- that have no room. `numerics`: an id whose workers come first, for only theirs go on
-- with the same bits.

local counters = require "perilune.fleet.counters"
local flow = require "perilune.flow"

local M = {}

local function takes(w, avoid, full, t)
  return w.state == "ready" and w.suspect_until <= t and w ~= avoid and not full[w]
end

-- Whether there is one.
function M.has(pool, avoid, full)
  local t = flow.now()
  for _, w in ipairs(pool.workers) do
    if takes(w, avoid, full, t) then return true end
  end
  return false
end

-- Calls fn(w, arg) for each: with `numerics`, only those of that id if there are any.
-- They come in turn, so that the first of equals is not always the same.
function M.each(pool, avoid, full, numerics, fn, arg)
  local list, t = pool.workers, flow.now()
  local n, alike = #list, false
  for i = 1, numerics and n or 0 do
    local w = list[i]
    alike = alike or w.numerics == numerics and takes(w, avoid, full, t)
  end
  for i = 1, n do
    local w = list[((pool.turn or 0) + i) % n + 1]
    if takes(w, avoid, full, t) and (not alike or w.numerics == numerics) then
      fn(w, arg)
    end
  end
  pool.turn = (pool.turn or 0) + 1
end

local function is_better(a, b, numerics)
  local same_a, same_b = a.numerics == numerics, b.numerics == numerics
  if numerics and same_a ~= same_b then return same_a end
  return counters.load(a) < counters.load(b)
end

-- The one with the least to do, those in turn that have equally little; or nil.
function M.least_loaded(pool, avoid, full, numerics)
  local list, best = pool.workers, nil
  local t, n = flow.now(), #list
  for i = 1, n do
    local w = list[((pool.turn or 0) + i) % n + 1]
    if takes(w, avoid, full, t) and (not best or is_better(w, best, numerics)) then
      best = w
    end
  end
  pool.turn = (pool.turn or 0) + 1
  return best
end

return M
