-- SPDX-License-Identifier: Apache-2.0
-- recipe/hook_view.lua - a request as hooks see it: facts that can be read and not
-- written.

local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local M = {}

local FACTS, HEADERS = {}, {}               -- keys that no recipe can spell

local Headers = {
  __index = function(self, name)
    local exchange = rawget(self, FACTS).exchange
    if not exchange or type(name) ~= "string" then return nil end
    local v = C.pl_exchange_header(exchange, name)
    return v ~= nil and ffi.string(v) or nil
  end,
  __newindex = function() error("headers are read-only", 2) end,
}

local COMPUTED = {
  blocks = function(facts) return math.ceil(facts.total / facts.block_size) end,
  headers = function(facts)
    local headers = facts[HEADERS]
    if not headers then
      headers = setmetatable({ [FACTS] = facts }, Headers)
      facts[HEADERS] = headers
    end
    return headers
  end,
}
local PLAIN = { id = true, model = true, tokens = true, total = true, max_tokens = true,
  stream = true, priority = true, moves = true, n = true, tenant = true }

local key_out = ffi.new "uint64_t[1]"

-- Which of n the request's first k blocks fall to: the same for all that begin alike.
-- A shorter prompt goes by what it has; one without a full block by its length.
local function bucket(self, k, n)
  local facts = rawget(self, FACTS)
  if type(k) ~= "number" or k < 1 or type(n) ~= "number" or n < 1 then
    error("req:bucket: wants how many blocks and how many buckets", 2)
  end
  n = math.floor(n)
  local full = math.min(math.floor(k), math.floor(facts.tokens / facts.block_size))
  local known = facts.seq and facts.naming and full > 0
    and C.pl_naming_keys(facts.naming, facts.seq, full - 1, key_out, 1) > 0
  return known and tonumber(key_out[0] % n) + 1 or facts.tokens % n + 1
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
-- so far), max_tokens, n, stream, priority, moves, block_size, exchange. It shows the
-- facts as they are when it is read.
function M.new(facts)
  return setmetatable({ [FACTS] = facts }, View)
end

-- A hook may keep the view, but what C holds is gone by then.
function M.close(view)
  local facts = rawget(view, FACTS)
  facts.exchange, facts.seq = nil, nil
end

return M
