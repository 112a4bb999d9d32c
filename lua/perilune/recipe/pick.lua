-- SPDX-License-Identifier: Apache-2.0
-- recipe/pick.lua - pl.pick: which worker of a fleet takes a request.
--
-- Each is a function (req, fleet), to be used as it is; those with options are called
-- with them to make another (maker.lua): pick = pl.pick.sticky { header = "x-user" }.
--
-- A fleet's workers come in turn: each decision begins with another one.

local chance = require "perilune.recipe.chance"
local cost = require "perilune.recipe.cost"
local lru = require "perilune.lru"
local maker = require "perilune.recipe.maker"
local verdict = require "perilune.recipe.verdict"

local M = {}

-- Costs that differ by less than this share are equal, unless an option says otherwise.
local WITHIN = 0.05
local MAX_NAME = 256                        -- bytes of a worker's that are said again

function M.round_robin(_, fleet)
  return fleet[1]
end

local function any(fleet)
  return fleet[1 + math.floor(chance.random() * #fleet)]
end

function M.random(_, fleet)
  return any(fleet)
end

-- The cheapest; of those about as cheap, the first in turn.
M.cheapest = maker.of("pl.pick.cheapest", {
  cost = cost.kv, within = WITHIN,
}, function(o)
  return function(req, fleet) return fleet:cheapest(req, o.cost, o.within) end
end)

local function in_flight(_, w)
  return w.running + w.waiting
end

function M.least_loaded(req, fleet)
  return fleet:cheapest(req, in_flight)
end

-- Two by chance; of these the one with less to do.
function M.power_of_two(_, fleet)
  local n = #fleet
  if n < 2 then return fleet[1] end
  local i = 1 + math.floor(chance.random() * n)
  local k = 1 + math.floor(chance.random() * (n - 1))
  local a, b = fleet[i], fleet[k < i and k or k + 1]
  return in_flight(nil, b) < in_flight(nil, a) and b or a
end

-- The value of a header, or the hint of that name where none is given.
local function said(req, header, hint)
  if header ~= "" then return req.headers[header] end
  return req.hints and req.hints[hint]
end

-- The worker that the request names; it waits while that one is busy or away. A name that
-- no worker has is the client's mistake, which to ask again would not mend: 404, as for a
-- model. A request that names none goes where there is the least to do.
M.direct = maker.of("pl.pick.direct", { header = "" }, function(o)
  return function(req, fleet)
    local name = said(req, o.header, "worker")
    if not name then return M.least_loaded(req, fleet) end
    if fleet:knows(name) then return fleet:named(name) end
    return verdict.reject(404, ("The worker `%s` does not exist."):format(
      name:sub(1, MAX_NAME)))
  end
end)

-- All requests of a session to one worker, for as long as it is there.
M.sticky = maker.of("pl.pick.sticky", {
  header = "", sessions = 10000, ttl = 3600, cost = cost.kv, within = WITHIN,
}, function(o, memory)
  return function(req, fleet)
    local session, t = said(req, o.header, "session"), chance.now()
    local seats = memory()                  -- session -> { name, over }: who, till when
    local seat = session and seats:get(session)
    local w = seat and seat.over > t and fleet:named(seat.name)
      or fleet:cheapest(req, o.cost, o.within)
    if session and w then
      if not seat then
        seat = {}
        seats:put(session, seat)
      end
      seat.name, seat.over = w.name, t + o.ttl
    end
    return w
  end
end, function(o) return lru.new(o.sessions) end)

-- The cheapest of those that have no more than so many blocks to prefill; while there are
-- none the request waits.
M.unless_busy = maker.of("pl.pick.unless_busy", {
  prefilling = 512, cost = cost.kv, within = WITHIN,
}, function(o)
  local function is_free(w) return w.prefilling <= o.prefilling end
  return function(req, fleet)
    if fleet:min "prefilling" > o.prefilling then return nil end
    return fleet:filter(is_free):cheapest(req, o.cost, o.within)
  end
end)

-- Dynamo's temperature: by chance, cheap ones more often. Costs are put on a scale from
-- 0, the lowest, to 1; at temperature 0 the lowest is taken.
M.softmax = maker.of("pl.pick.softmax", {
  temperature = 0.5, cost = cost.kv,
}, function(o)
  local costs = {}
  return function(req, fleet)
    local best = fleet:cheapest(req, o.cost)
    if not best or o.temperature <= 0 then return best end
    local low, high, n = math.huge, -math.huge, #fleet
    for i = 1, n do
      costs[i] = o.cost(req, fleet[i], fleet)
      if costs[i] < math.huge then
        low, high = math.min(low, costs[i]), math.max(high, costs[i])
      end
    end
    local total, span = 0, high > low and high - low or 1
    for i = 1, n do
      costs[i] = math.exp((low - costs[i]) / span / o.temperature)
      total = total + costs[i]
    end
    local at = chance.random() * total
    for i = 1, n do
      at = at - costs[i]
      if at < 0 then return fleet[i] end
    end
    return best
  end
end)

return M
