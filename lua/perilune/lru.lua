-- SPDX-License-Identifier: Apache-2.0
-- lru.lua - pl.lru(n): a table of at most n entries; the one not used for longest goes.
--
--     newest <-> ... <-> oldest         a ring through `ring`, which is neither

local M = {}
M.__index = M

local function unlink(e)
  e.older.newer, e.newer.older = e.newer, e.older
end

local function link(ring, e)
  e.older, e.newer = ring.older, ring
  ring.older.newer, ring.older = e, e
end

function M.new(n)
  if type(n) ~= "number" or n < 1 or n % 1 ~= 0 then
    error("pl.lru: wants how many entries, at least 1", 2)
  end
  local ring = {}
  ring.older, ring.newer = ring, ring
  return setmetatable({ max = n, n = 0, ring = ring, entries = {} }, M)
end

-- The value of a key, which counts as a use of it; nil where there is none.
function M:get(key)
  local e = key ~= nil and self.entries[key]
  if not e then return nil end
  unlink(e)
  link(self.ring, e)
  return e.value
end

local function drop(self, e)
  unlink(e)
  self.entries[e.key] = nil
  self.n = self.n - 1
end

-- Sets the value of a key; nil takes the key out.
function M:put(key, value)
  if key == nil or key ~= key then error("lru:put: wants a key", 2) end
  local e = self.entries[key]
  if e then drop(self, e) end
  if value == nil then return end
  if self.n == self.max then drop(self, self.ring.newer) end
  e = { key = key, value = value }
  self.entries[key] = e
  link(self.ring, e)
  self.n = self.n + 1
end

-- ---- for people: recipes see the table alone ------------------------------------------

function M.is(v)
  return type(v) == "table" and debug.getmetatable(v) == M
end

-- What is in it, as a plain table.
function M.contents(self)
  local out = {}
  for key, e in pairs(self.entries) do out[key] = e.value end
  return out
end

return M
