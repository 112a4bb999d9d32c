-- SPDX-License-Identifier: Apache-2.0
-- sim/trace.lua - requests that came once: when, how long, and which prefixes they share.
--
-- A trace is a file of JSON lines as Mooncake writes them:
--
--   {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
--
-- timestamp in ms; hash_ids name the prompt's blocks of `block_size` tokens (512 unless
-- the line says otherwise), the last of which may be cut: equal ids have equal text in
-- them and before. priority and session_id may stand there too; other keys are skipped.

local pl = require "perilune.ffi"
local json = require "cjson.safe"
local ffi = pl.ffi

local M = {}
M.__index = M

local BLOCK = 512
local MAX_TOKENS, MAX_REQUESTS = 2 ^ 24, 1e7

local function is_whole(v, min, max)
  return type(v) == "number" and v % 1 == 0 and v >= min and v <= max
end

-- What is wrong with a line's object, or nil.
local function flaw(o)
  if type(o) ~= "table" then return "is not a JSON object" end
  if type(o.timestamp) ~= "number" or not (o.timestamp >= 0 and o.timestamp < 1e15) then
    return "timestamp must be milliseconds"
  end
  for _, key in ipairs { "input_length", "output_length" } do
    if not is_whole(o[key], 1, MAX_TOKENS) then
      return ("%s must be 1 to %d tokens"):format(key, MAX_TOKENS)
    end
  end
  local block = o.block_size == nil and BLOCK or o.block_size
  if not is_whole(block, 1, MAX_TOKENS) then return "block_size must be a count" end
  if type(o.hash_ids) ~= "table" or #o.hash_ids ~= math.ceil(o.input_length / block) then
    return ("hash_ids must be a list of one number for each %d tokens of the prompt")
      :format(block)
  end
  for _, id in ipairs(o.hash_ids) do
    if not is_whole(id, 0, 2 ^ 53) then return "hash_ids must be whole numbers" end
  end
  if o.priority ~= nil and not is_whole(o.priority, -2 ^ 31, 2 ^ 31 - 1) then
    return "priority must be a whole number"
  end
end

local function add(self, o)
  local n = #o.hash_ids
  local ids = ffi.new("double[?]", math.max(n, 1))
  for i = 1, n do ids[i - 1] = o.hash_ids[i] end
  self[#self + 1] = { at = o.timestamp / 1e3, input = o.input_length,
    output = o.output_length, ids = ids, n_ids = n, block_size = o.block_size or BLOCK,
    priority = o.priority or 0, session = o.session_id }
  self.longest = math.max(self.longest, o.input_length + o.output_length)
  self.longest_input = math.max(self.longest_input, o.input_length)
end

local function is_earlier(a, b)
  if a.at ~= b.at then return a.at < b.at end
  return a.line < b.line
end

-- The requests of a file, in the order of their time, which begins at 0: each { at
-- (seconds), input, output (tokens), priority, session }. At most `most` of them. nil and
-- why, with the line.
function M.read(path, most)
  local file, why = io.open(path, "r")
  if not file then return nil, why end
  local self, number = setmetatable({ longest = 0, longest_input = 0 }, M), 0
  for line in file:lines() do
    number = number + 1
    if #self == (most or MAX_REQUESTS) then break end
    if line:find "%S" then
      local o, bad = json.decode(line)
      bad = bad or flaw(o)
      if bad then
        file:close()
        return nil, ("%s:%d: %s"):format(path, number, bad)
      end
      add(self, o)
      self[#self].line = number
    end
  end
  file:close()
  if #self == 0 then return nil, ("%s: no requests in it"):format(path) end
  table.sort(self, is_earlier)
  local first = self[1].at
  for _, r in ipairs(self) do r.at = r.at - first end
  return self
end

-- Bits evenly spread from a number.
local function mix(v)
  v = bit.bxor(v, bit.rshift(v, 31)) * 0x7fb5d329728ea185ULL
  v = bit.bxor(v, bit.rshift(v, 27)) * 0x81dadef4bc2dd44dULL
  return bit.bxor(v, bit.rshift(v, 33))
end

-- The keys of a request's full blocks of `size` tokens, and how many: from the trace's
-- ids. nil and why where the sizes do not fit together.
function M.keys(r, size)
  local of = r.block_size
  if of % size ~= 0 and size % of ~= 0 then
    return nil, ("blocks of %d tokens, but those of the trace have %d: one must be a "
      .. "multiple of the other"):format(size, of)
  end
  local n = math.floor(r.input / size)
  local keys = ffi.new("uint64_t[?]", math.max(n, 1))
  for i = 0, n - 1 do
    local from = (i + 1) * size - 1         -- the block's last token
    local id = r.ids[math.floor(from / of)]
    keys[i] = mix(ffi.cast("uint64_t", id) * 0x9e3779b97f4a7c15ULL
      + ffi.cast("uint64_t", math.floor(from % of / size)) + 1)
  end
  return keys, n
end

return M
