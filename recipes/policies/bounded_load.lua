-- SPDX-License-Identifier: Apache-2.0
-- bounded_load.lua - consistent hashing with bounded load: prompts that begin alike go to
-- the same worker, or to the next one while that has more than its share. It needs no
-- index, and several frontends agree without a word. What counts as the beginning must be
-- longer than a system prompt that all share, or one worker gets everything.

local pl = require "perilune"

local opt = pl.args {
  { "tokens", 1024, "first tokens that count as the beginning", min = 1 },
  { "bound", 1.25, "most load of a worker, as a multiple of the mean", min = 1 },
}

local names = {}

local function pick(req, fleet)
  local n = #fleet
  for i = 1, n do names[i] = fleet[i].name end
  for i = n + 1, #names do names[i] = nil end
  table.sort(names)
  local most = opt.bound * (fleet:sum "running" + fleet:sum "waiting" + 1) / n
  local blocks = math.floor(opt.tokens * req.blocks / req.total)
  local first = req:bucket(math.max(blocks, 1), n)
  for i = 0, n - 1 do
    local w = fleet:named(names[(first - 1 + i) % n + 1])
    if w.running + w.waiting + 1 <= math.max(most, 1) then return w end
  end
  return fleet:cheapest(req, pl.cost.kv)
end

return { worker = { pick = pick } }
