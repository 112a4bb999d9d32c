-- SPDX-License-Identifier: Apache-2.0
-- disagg_router.lua - two pools, and in both a request goes where its prefix is warm,
-- unless that worker has too much to do.

local pl = require "perilune"

local opt = pl.args {
  { "overlap", 4.0, "weight of a block to move against a block in use", min = 0 },
  { "equal", 0.05, "costs that differ by less than this share are equal", min = 0 },
}

-- In KV blocks: who reads is asked how much there would be to read, who goes on how much
-- would have to come from there, and how much is in use.
local function reading(req, w)
  return w.prefilling + req.blocks - w.cached
end

local function going_on(req, w)
  return opt.overlap * (req.blocks - w.cached) + w.decoding
end

local function reader(req, fleet)
  return fleet:cheapest(req, reading, opt.equal)
end

local function pick(req, fleet)
  return fleet:cheapest(req, going_on, opt.equal)
end

return {
  http    = { port = 8000 },
  prefill = { count = 2, pick = reader },
  decode  = { count = 2, pick = pick, split = pl.split.always },
}
