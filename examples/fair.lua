-- SPDX-License-Identifier: Apache-2.0
-- fair.lua - one server for many teams: each has its share, and moves have an end.
--
-- A team (the header X-Team) may have so many tokens answered in a minute; who is over it
-- is told when to come again. What they used survives a reload of this file.

local pl = require "perilune"

local opt = pl.args {
  { "share", 100000, "tokens that a team may have answered in a minute", min = 1 },
}

local used = pl.keep("used", pl.lru(1000))      -- team -> { since, tokens }

local function account(req)
  local team = req.headers["x-team"] or "nobody"
  local entry = used:get(team)
  if not entry or pl.now() - entry.since >= 60 then
    entry = { since = pl.now(), tokens = 0 }
    used:put(team, entry)
  end
  return entry, team
end

local function admit(req)
  local entry, team = account(req)
  if entry.tokens < opt.share then return end
  return pl.reject(429, team .. " has had its share", 60 - (pl.now() - entry.since))
end

local function migrate(req, lost)
  if req.moves >= 3 then return pl.fail("moved three times, then " .. lost.reason) end
  return pl.retry { avoid = lost.name, after = 0.1 * req.moves }
end

local function done(req, result)
  local entry = account(req)
  entry.tokens = entry.tokens + result.tokens
end

return { admit = admit, migrate = migrate, done = done, worker = {} }
