-- SPDX-License-Identifier: Apache-2.0
-- agg_router.lua - several workers; a request goes where its prefix is warm, unless that
-- worker has too much to do.

local pl = require "perilune"

local opt = pl.args {
  { "overlap", 16.0, "weight of a block to prefill against a block in use", min = 0 },
  { "equal", 0.05, "costs that differ by less than this share are equal", min = 0 },
}

-- What `req` would cost on worker `w`, in KV blocks: those to prefill there, its own that
-- `w` does not hold and those of others; and those that are in use.
local function cost(req, w)
  return opt.overlap * (w.prefilling + req.blocks - w.cached) + w.decoding
end

-- Equals take turns: a beginning that all prompts share does not make one worker the
-- favourite.
local function pick(req, fleet)
  return fleet:cheapest(req, cost, opt.equal)
end

return {
  http   = { port = 8000 },
  worker = { count = 2, pick = pick },
}
