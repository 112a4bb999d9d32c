-- SPDX-License-Identifier: Apache-2.0
-- recipe/hook_view.lua - a request as hooks see it: facts that can be read and not
-- written.

local pl = require "perilune.ffi"
local hints = require "perilune.recipe.hints"
local hook_fields = require "perilune.recipe.hook_fields"
local C, ffi = pl.C, pl.ffi

local M = {}

local FACTS, HEADERS, HINTS = {}, {}, {}    -- keys that no recipe can spell

-- What was asked for is kept: whoever decides once more (fleet/replay.lua) asks that.
local Headers = {
  __index = function(self, name)
    local facts = rawget(self, FACTS)
    if type(name) ~= "string" then return nil end
    if facts.recorded then return facts.recorded[name:lower()] end
    if not facts.exchange then return nil end
    local v = C.pl_exchange_header(facts.exchange, name)
    if v == nil then return nil end
    local text = ffi.string(v)
    facts.read = facts.read or {}
    facts.read[name:lower()] = text
    return text
  end,
  __newindex = function() error("headers are read-only", 2) end,
}

local function headers_of(facts)
  local headers = facts[HEADERS]
  if not headers then
    headers = setmetatable({ [FACTS] = facts }, Headers)
    facts[HEADERS] = headers
  end
  return headers
end

local Hints = {
  __index = function(_, key)
    if hints.TYPES[key] then return nil end
    error(("req.hints has no '%s'"):format(tostring(key)), 2)
  end,
  __newindex = function() error("req.hints is read-only", 2) end,
}

local COMPUTED = {
  blocks = function(facts) return math.ceil(facts.total / facts.block_size) end,
  headers = headers_of,
  hints = function(facts)
    local found = facts[HINTS]
    if not found then
      found = setmetatable(hints.of(facts.hints, headers_of(facts)), Hints)
      facts[HINTS] = found
    end
    return found
  end,
}
local key_out = ffi.new "uint64_t[1]"

-- The name of the prompt's k-th block; nil: there is none.
local function key_of(facts, k)
  if not facts.seq or not facts.naming then return nil end
  local n = C.pl_naming_keys(facts.naming, facts.seq, k - 1, key_out, 1)
  return n > 0 and key_out[0] or nil
end

-- Which of n the request's first k blocks fall to: the same for all that begin alike.
-- A shorter prompt goes by what it has; one without a full block by its length.
local function bucket(self, k, n)
  local facts = rawget(self, FACTS)
  if type(k) ~= "number" or k < 1 or type(n) ~= "number" or n < 1 then
    error("req:bucket: wants how many blocks and how many buckets", 2)
  end
  n = math.floor(n)
  local full = math.min(math.floor(k), math.floor(facts.tokens / facts.block_size))
  local known = full > 0 and facts.key(facts, full)
  return known and tonumber(known % n) + 1 or facts.tokens % n + 1
end

local PLAIN = {}                            -- what the facts have under the same name
for _, row in ipairs(hook_fields.Request) do
  PLAIN[row[1]] = row[1] ~= "bucket" and not COMPUTED[row[1]] or nil
end

local View = {
  __index = function(self, key)
    local facts = rawget(self, FACTS)
    if PLAIN[key] then return facts[key] end
    if COMPUTED[key] then return COMPUTED[key](facts) end
    if key == "bucket" then return bucket end
    error(("req has no '%s'"):format(tostring(key)), 2)
  end,
  __tostring = function(self) return "request " .. rawget(self, FACTS).id end,
  __newindex = function(_, key)
    error(("req is read-only; '%s' assigned"):format(tostring(key)), 2)
  end,
}

-- The view of `facts`: id, model, tenant, tokens (of the prompt), total (with the answer
-- so far), max_tokens, n, stream, priority, moves, block_size, exchange; naming and seq,
-- or key(facts, k), for what its blocks are called; hints, those of its body; recorded,
-- the headers by name, if there is no exchange. It shows the facts as they are when it is
-- read.
function M.new(facts)
  facts.key = facts.key or key_of
  return setmetatable({ [FACTS] = facts }, View)
end

-- A hook may keep the view, but what C holds is gone by then.
function M.close(view)
  local facts = rawget(view, FACTS)
  facts.exchange, facts.seq = nil, nil
end

return M
