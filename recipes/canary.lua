-- SPDX-License-Identifier: Apache-2.0
-- canary.lua - a few requests go to workers with the tag "canary", such as those of a new
-- version, and none once too many of these have failed.
--
--   perilune run canary worker --tags canary --bus nats://head

local pl = require "perilune"

local opt = pl.args {
  { "share", 0.05, "share of requests for the canaries", min = 0, max = 1 },
  { "failures", 3, "failures in a row after which they get none", min = 1 },
}

local state = pl.keep("canary", { failed = 0, sent = pl.lru(10000) })

local function stable(w)
  for _, tag in ipairs(w.tags) do
    if tag == "canary" then return false end
  end
  return true
end

local function pick(req, fleet)
  local canaries = fleet:filter "canary"
  local try = #canaries > 0 and state.failed < opt.failures and pl.random() < opt.share
  local among = try and canaries or fleet:filter(stable)
  if try then state.sent:put(req, true) end
  return (#among > 0 and among or fleet):cheapest(req, pl.cost.kv, 0.05)
end

local function done(req, result)
  if not state.sent:get(req) then return end
  state.sent:put(req, nil)
  state.failed = result.finish == "error" and state.failed + 1 or 0
end

return { http = { port = 8000 }, worker = { pick = pick }, done = done }
