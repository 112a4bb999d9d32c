-- SPDX-License-Identifier: Apache-2.0
-- warm.lua - a request goes where most of its prompt is cached, and waits there a little
-- if need be. Choose it for conversations and agents, whose prompts grow: docs/warm.md
-- says why, and how it compares.

local pl = require "perilune"

local opt = pl.args {
  { "patience", 0.1, "weight of blocks that others prefill first", min = 0 },
  { "enough", 0.1, "share of a prompt below which what is cached does not count",
    min = 0, max = 1 },
}

-- Blocks to prefill on worker `w` before the first token. Those of others count little:
-- they are gone in a moment, while a block computed twice also takes another's place in
-- the cache. A beginning that all prompts share is no reason to go anywhere, and a cache
-- that would have to be emptied first is one to stay away from.
local function cost(req, w)
  local saved = w.cached >= opt.enough * req.blocks and w.cached or 0
  local crowded = w.free < req.blocks - saved and req.blocks or 0
  return opt.patience * w.prefilling + req.blocks - saved + crowded
end

return { worker = { cost = cost } }
