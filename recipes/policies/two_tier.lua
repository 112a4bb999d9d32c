-- SPDX-License-Identifier: Apache-2.0
-- two_tier.lua - load first, overlap second: while the workers are in balance the one
-- that holds most of the prompt, otherwise the one with the fewest requests.

local pl = require "perilune"

local opt = pl.args {
  { "cache_threshold", 0.3, "share of the prompt that must be cached", min = 0, max = 1 },
  { "absolute", 8, "requests that the fullest may have above the emptiest", min = 0 },
  { "relative", 1.5, "and how many times as many", min = 1 },
}

local function in_flight(_, w) return w.running + w.waiting end

local function emptiness(_, w) return -(w.running + w.waiting) end

local function miss(req, w) return req.blocks - w.cached end

local function pick(req, fleet)
  local idle = fleet:cheapest(req, in_flight)
  local busy = fleet:cheapest(req, emptiness)
  local low, high = in_flight(nil, idle), in_flight(nil, busy)
  if high - low > opt.absolute and high > opt.relative * low then return idle end
  local warm = fleet:cheapest(req, miss)
  return warm.cached >= opt.cache_threshold * req.blocks and warm or idle
end

return { worker = { pick = pick } }
