-- SPDX-License-Identifier: Apache-2.0
-- recipe/cost.lua - pl.cost: what a request would cost on a worker, in KV blocks.
--
-- Each is a function (req, w, fleet), to be used as it is, or called with weights by
-- name to make another (maker.lua): cost = pl.cost.kv { overlap_score_credit = 0.5 }.

local maker = require "perilune.recipe.maker"

local M = {}

local WEIGHTS = { overlap_score_credit = 1, overlap_score_credit_decay = 0,
  prefill_load_scale = 1, decode_active_request_weight = 0 }

-- Dynamo's formula: blocks to prefill, less those that are there, and blocks in use.
local function formula(o)
  local credit, decay = o.overlap_score_credit, o.overlap_score_credit_decay
  local scale, per_request = o.prefill_load_scale, o.decode_active_request_weight
  return function(req, w, fleet, there)
    local worth, blocks = credit, req.blocks
    if decay > 0 then
      local ahead = w.prefilling - fleet:min "prefilling"
      worth = credit / (1 + decay * ahead / math.max(blocks, 1))
    end
    local prefill = math.max(w.prefilling + blocks - worth * there, 0)
    return scale * prefill + w.decoding + per_request * (w.running + w.waiting)
  end
end

M.kv = maker.of("pl.cost.kv", WEIGHTS, function(o)
  local cost = formula(o)
  return function(req, w, fleet) return cost(req, w, fleet, w.cached) end
end)

-- The same by what this frontend has sent there of late, whatever workers say: Dynamo's
-- approximate mode.
M.approx = maker.of("pl.cost.approx", WEIGHTS, function(o)
  local cost = formula(o)
  return function(req, w, fleet) return cost(req, w, fleet, w.sent) end
end)

-- What is computed there before the first token.
function M.backlog(req, w)
  return w.prefilling + math.max(req.blocks - w.cached, 0)
end

local function checked(list)
  local out = {}
  for i, item in ipairs(type(list) == "table" and list or {}) do
    local weight, cost = nil, nil
    if type(item) == "table" then weight, cost = item[1], item[2] end
    local fits = type(weight) == "number" and math.abs(weight) < math.huge
    if not fits or type(cost) ~= "function" then
      error(("pl.cost.blend: %d wants to be { weight, cost }"):format(i), 3)
    end
    if weight ~= 0 then out[#out + 1] = item end
  end
  if #out == 0 then error("pl.cost.blend: wants a list of { weight, cost }", 3) end
  return out
end

-- The sum of several costs, each times its weight.
function M.blend(list)
  list = checked(list)
  return function(req, w, fleet)
    local sum = 0
    for _, item in ipairs(list) do
      local cost = item[2](req, w, fleet)
      if type(cost) ~= "number" then return cost end      -- who asks says what is wrong
      sum = sum + item[1] * cost
    end
    return sum
  end
end

return M
