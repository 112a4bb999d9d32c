-- SPDX-License-Identifier: Apache-2.0
-- ttft.lua - the worker that is likely to say the first token soonest, in milliseconds.
-- No weights to tune: two times, which `perilune bench` shows.

local pl = require "perilune"

local opt = pl.args {
  { "block_ms", 0.3, "milliseconds to prefill a block", min = 0 },
  { "step_ms", 6.0, "milliseconds of a step that only decodes", min = 0 },
}

local function cost(req, w)
  local prefill = opt.block_ms * (w.prefilling + req.blocks - w.cached)
  local full = w.capacity > 0 and w.decoding / w.capacity or 0
  return prefill + opt.step_ms * (1 + full)
end

local function pick(req, fleet)
  return fleet:cheapest(req, cost, 0.05)
end

return { worker = { pick = pick } }
