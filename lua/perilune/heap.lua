-- SPDX-License-Identifier: Apache-2.0
-- heap.lua - a binary heap whose items know their place, so that any of them can leave.
--
--     local h = heap.new(function(a, b) return a.due < b.due end)
--     heap.push(h, item)
--     h[1], h.n                        -- the first item, or nil; how many there are
--     heap.remove(h, item)
--
-- An item is a table, in one heap at a time, which keeps its place in `item.place`.

local M = {}

-- `before(a, b)`: whether a comes first.
function M.new(before)
  return { n = 0, before = before }
end

local function seat(h, i, item)
  h[i], item.place = item, i
end

local function rise(h, i, item)
  local before = h.before
  while i > 1 do
    local up = math.floor(i / 2)
    if not before(item, h[up]) then break end
    seat(h, i, h[up])
    i = up
  end
  seat(h, i, item)
end

local function sink(h, i, item)
  local before = h.before
  while 2 * i <= h.n do
    local down = 2 * i
    if down < h.n and before(h[down + 1], h[down]) then down = down + 1 end
    if before(item, h[down]) then break end
    seat(h, i, h[down])
    i = down
  end
  rise(h, i, item)
end

function M.push(h, item)
  h.n = h.n + 1
  rise(h, h.n, item)
end

function M.remove(h, item)
  local i, last = item.place, h[h.n]
  h[h.n], item.place = nil, nil
  h.n = h.n - 1
  if last ~= item then sink(h, i, last) end
end

return M
