-- SPDX-License-Identifier: Apache-2.0
-- ab_test.lua - two policies at once, on the same workers: which one answers sooner?
--
-- In the console, pl.keep.arms shows the requests of each and their mean time to the
-- first token.

local pl = require "perilune"

local opt = pl.args {
  { "share", 0.5, "share of requests for policy b", min = 0, max = 1 },
}

local arms = pl.keep("arms", { a = { n = 0, ttft = 0 }, b = { n = 0, ttft = 0 } })
local arm_of = pl.keep("arm_of", pl.lru(10000))  -- a request keeps its arm when it moves

local policies = { a = pl.cost.kv, b = pl.cost.backlog }

local function pick(req, fleet)
  local arm = arm_of:get(req) or pl.random() < opt.share and "b" or "a"
  arm_of:put(req, arm)
  return fleet:cheapest(req, policies[arm], 0.05)
end

local function done(req, result)
  local arm = arms[arm_of:get(req) or ""]
  arm_of:put(req, nil)
  if not arm or not result.ttft then return end
  arm.n = arm.n + 1
  arm.ttft = arm.ttft + (result.ttft - arm.ttft) / arm.n
end

return {
  http = { port = 8000 }, done = done,
  worker = { count = 2, pick = pick },
}
