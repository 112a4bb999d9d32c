-- SPDX-License-Identifier: Apache-2.0
-- recipe/mix.lua - pl.mix: several hooks of one kind, each for a share of the requests.
--
--     pick = pl.mix { { 0.9, pl.pick.cheapest }, { 0.1, mine } }
--
-- Which one a request gets follows from its id alone. So it is the same each time that it
-- is asked about, after a move and in another frontend, and the same in all mixes with
-- these shares: its cost and its `done` go together.

local pl = require "perilune.ffi"
local C = pl.C

-- Of an id: a number from 0, below 1.
local function point(id)
  local h = 0ULL
  for i = 1, #id do h = C.pl_random_at(h, id:byte(i), i) end
  return tonumber(bit.rshift(h, 11)) * 2 ^ -53
end

local function checked(list)
  local total = 0
  for i, item in ipairs(type(list) == "table" and list or {}) do
    local share, fn = nil, nil
    if type(item) == "table" then share, fn = item[1], item[2] end
    if type(share) ~= "number" or not (share >= 0 and share < math.huge) then
      error(("pl.mix: share %d is '%s'; it wants a number, at least 0"):format(i,
        tostring(share)), 3)
    end
    if type(fn) ~= "function" then
      error(("pl.mix: %d is { %g, %s }; it wants { share, hook }"):format(i, share,
        tostring(fn)), 3)
    end
    total = total + share
  end
  if total == 0 then error("pl.mix: wants a list of { share, hook }", 3) end
  return total
end

return function(list)
  local total = checked(list)
  local last, chosen                        -- the hook of the request asked about last
  local function choose(id)
    local at = point(tostring(id)) * total
    for _, item in ipairs(list) do
      at = at - item[1]
      if at < 0 then return item[2] end
    end
    return list[#list][2]
  end
  return function(req, about, more)
    local id = req.id
    if not chosen or id ~= last then last, chosen = id, choose(id) end
    return chosen(req, about, more)
  end
end
