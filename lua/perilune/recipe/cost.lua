-- SPDX-License-Identifier: Apache-2.0
-- recipe/cost.lua - pl.cost: what a request would cost on a worker, in KV blocks.
--
-- Each is a function (req, w, fleet), to be used as it is, or called with weights by
-- name to make another (maker.lua): cost = pl.cost.kv { overlap_score_credit = 0.5 }.

local maker = require "perilune.recipe.maker"

local M = {}

-- Dynamo's. Blocks to prefill, less those cached there, and blocks in use.
M.kv = maker.of("pl.cost.kv", { overlap_score_credit = 1, overlap_score_credit_decay = 0,
  prefill_load_scale = 1, decode_active_request_weight = 0 }, function(o)
  local credit, decay = o.overlap_score_credit, o.overlap_score_credit_decay
  local scale, per_request = o.prefill_load_scale, o.decode_active_request_weight
  return function(req, w, fleet)
    local worth, blocks = credit, req.blocks
    if decay > 0 then
      local ahead = w.prefilling - fleet:min "prefilling"
      worth = credit / (1 + decay * ahead / math.max(blocks, 1))
    end
    local prefill = math.max(w.prefilling + blocks - worth * w.cached, 0)
    return scale * prefill + w.decoding + per_request * (w.running + w.waiting)
  end
end)

-- What is computed there before the first token.
function M.backlog(req, w)
  return w.prefilling + math.max(req.blocks - w.cached, 0)
end

return M
