-- SPDX-License-Identifier: Apache-2.0
-- tenants.lua - when there is more to do than can be done, each tenant gets its share.
--
-- A request waits while every worker has enough prompts to read. Of those that wait, the
-- tenant's turn comes whose requests have asked for the fewest tokens so far.

local pl = require "perilune"

local opt = pl.args {
  { "backlog", 64, "blocks to prefill from which a worker gets no more", min = 0 },
  { "inside", 100, "requests of one tenant at a time", min = 1 },
}

local inside = pl.keep("inside", {})            -- request -> its tenant
local count = pl.keep("count", {})              -- tenant -> its requests

local function admit(req)
  local who = req.tenant or "nobody"
  local n = count[who] or 0
  if n >= opt.inside then return pl.reject(429, "too many concurrent requests", 1) end
  inside[req], count[who] = who, n + 1
end

local function done(req)
  local who = inside[req]
  if not who then return end
  inside[req] = nil
  count[who] = count[who] > 1 and count[who] - 1 or nil
end

local pick = pl.pick.unless_busy { prefilling = opt.backlog }

return {
  http = { port = 8000 }, admit = admit, done = done,
  worker = { count = 2, pick = pick, queue = pl.queue.tenants },
}
