-- SPDX-License-Identifier: Apache-2.0
-- recipe/split.lua - pl.split: whether a prefill worker reads the prompt.
--
-- Each is a function (req, w, prefill), to be used as it is or called with options by
-- name (maker.lua). `w` is the decode worker that goes on, `prefill` a fleet of those who
-- could read. Dynamo's conditional rules, turned round: it says when not to.

local maker = require "perilune.recipe.maker"

local M = {}

function M.always() return true end

function M.never() return false end

local function is_long(o, req, w)
  local new = math.max(req.tokens - w.cached * req.tokens / math.max(req.blocks, 1), 0)
  return new >= o.tokens or new >= o.share * req.tokens
end

-- Dynamo's isl_bounding: what `w` has not cached of the prompt has so many tokens, or is
-- such a share of it.
M.by_length = maker.of("pl.split.by_length", { tokens = 2048, share = 0.7 }, function(o)
  return function(req, w) return is_long(o, req, w) end
end)

-- Dynamo's prefill_load: there is a prefill worker with at most so many blocks to read.
M.by_load = maker.of("pl.split.by_load", { prefilling = 512 }, function(o)
  return function(_, _, prefill) return prefill:min "prefilling" <= o.prefilling end
end)

return M
