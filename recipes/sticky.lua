-- SPDX-License-Identifier: Apache-2.0
-- sticky.lua - a conversation keeps its worker, and outlives it.

local pl = require "perilune"

local seats = pl.keep("seats", pl.lru(10000))   -- session -> worker; survives a reload

local function pick(req, fleet)
  local session = req.headers["x-session-id"]
  local w = session and fleet:named(seats:get(session))
  if not w or w.free < req.blocks - w.cached then
    w = fleet:cheapest(req, pl.cost.kv, 0.05)
  end
  if session and w then seats:put(session, w.name) end
  return w
end

-- The worker died under `req`. Its tokens are safe with us: another worker reads them
-- again, twice at most, a little later each time.
local function migrate(req, lost)
  if req.moves >= 2 then return pl.fail("gave up after two moves: " .. lost.reason) end
  if req.total > 32768 then return pl.fail "too long to be read again" end
  return pl.retry { avoid = lost.name, after = 0.1 * 2 ^ req.moves }
end

return {
  http    = { port = 8000 },
  worker  = { count = 2, pick = pick },
  migrate = migrate,
}
