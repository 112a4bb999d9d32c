-- SPDX-License-Identifier: Apache-2.0
-- ab_test.lua - two policies at once, on the same workers: which one answers sooner?
--
-- /metrics has the time to the first token under each: ab_test_a_ttft_seconds and
-- ab_test_b_ttft_seconds.

local pl = require "perilune"

local opt = pl.args {
  { "share", 0.5, "share of requests for policy b", min = 0, max = 1 },
}

local policies = { a = pl.cost.kv, b = pl.cost.backlog }
local shares = { a = 1 - opt.share, b = opt.share }

local BUCKETS = { 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100 }

local function observer(arm)
  local ttft = pl.metric(("ab_test_%s_ttft_seconds"):format(arm),
    "time to the first token under policy " .. arm, BUCKETS)
  return function(_, result)
    if result.ttft then ttft:observe(result.ttft) end
  end
end

local picks, observers = {}, {}
for i, arm in ipairs { "a", "b" } do
  picks[i] = { shares[arm], pl.pick.cheapest { cost = policies[arm] } }
  observers[i] = { shares[arm], observer(arm) }
end

return {
  http = { port = 8000 }, done = pl.mix(observers),
  worker = { count = 2, pick = pl.mix(picks) },
}
