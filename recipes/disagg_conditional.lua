-- SPDX-License-Identifier: Apache-2.0
-- disagg_conditional.lua - two pools, and Dynamo's rules for when the decode worker reads
-- a prompt itself: if little of it is new there, or if prefill has too much to read.

local pl = require "perilune"

local opt = pl.args {
  { "new_tokens", 2048, "new to the decode worker, from which prefill reads", min = 0 },
  { "new_share", 0.7, "or this share of the prompt", min = 0, max = 1 },
  { "prefill_busy", 512, "blocks to read from which prefill gets no more", min = 0 },
}

local by_length = pl.split.by_length { tokens = opt.new_tokens, share = opt.new_share }
local by_load = pl.split.by_load { prefilling = opt.prefill_busy }

local function split(req, w, prefill)
  return by_length(req, w, prefill) and by_load(req, w, prefill)
end

return {
  http    = { port = 8000 },
  prefill = { count = 1 },
  decode  = { count = 1, split = split },
}
