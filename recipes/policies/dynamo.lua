-- SPDX-License-Identifier: Apache-2.0
-- dynamo.lua - the cost function of NVIDIA Dynamo's KV router, with its weights and
-- temperature. At temperature 0 the cheapest worker is taken.

local pl = require "perilune"

local opt = pl.args {
  { "overlap_score_credit", 1.0, "worth of a cached block", min = 0 },
  { "prefill_load_scale", 1.0, "weight of blocks to prefill", min = 0 },
  { "temperature", 0.0, "of the softmax by which one is drawn", min = 0 },
}

local cost = pl.cost.kv { overlap_score_credit = opt.overlap_score_credit,
  prefill_load_scale = opt.prefill_load_scale }

return {
  worker = { pick = pl.pick.softmax { temperature = opt.temperature, cost = cost } },
}
