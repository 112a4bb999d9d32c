-- SPDX-License-Identifier: Apache-2.0
-- sessions.lua - the turns of an agent's session stay on one worker, whose cache has the
-- turns before, unless that worker has far more to do than another.

local pl = require "perilune"

local opt = pl.args {
  { "header", "x-session-id", "the header that names the session" },
  { "patience", 2.0, "times the cost elsewhere at which a session moves", min = 1 },
}

local seats = pl.keep("seats", pl.lru(100000))

local function pick(req, fleet)
  local session = req.headers[opt.header]
  local w = session and fleet:named(seats:get(session))
  local best = fleet:cheapest(req, pl.cost.kv, 0.05)
  local most = opt.patience * pl.cost.kv(req, best, fleet) + 1
  if not w or pl.cost.kv(req, w, fleet) > most then w = best end
  if session then seats:put(session, w.name) end
  return w
end

return { worker = { pick = pick } }
