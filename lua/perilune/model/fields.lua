-- SPDX-License-Identifier: Apache-2.0
-- model/fields.lua - reads the fields of a model's files, each checked where it is read.
--
-- Fields are { file, prefix, get }: `get` answers a key's value, or nil. A field that is
-- missing or wrong is refused by file, name and value; the refusal travels up as an error
-- and leaves as nil, message, name through guard().

local cjson = require "cjson"

local M = {}

local json = cjson.new()
json.decode_invalid_numbers(true)    -- Python writes NaN and Infinity
json.decode_max_depth(64)

local max_json = 64 * 1024 * 1024

function M.refuse(name, message, ...)
  error({ name = name, refusal = message:format(...) }, 0)
end

-- What f returns; nil, message, name where it refuses.
function M.guard(f, ...)
  local ok, result, more = pcall(f, ...)
  if ok then return result, more end
  if type(result) ~= "table" or not result.refusal then error(result, 0) end
  return nil, result.refusal, result.name
end

-- ---- files ---------------------------------------------------------------------------

local EACCES, EISDIR = 13, 21

-- "file", "folder", or nil. What is there and may not be read is refused: to call it
-- absent would send people looking for it elsewhere.
function M.kind_of(path)
  local f, why, failed = io.open(path, "rb")
  if failed == EACCES then M.refuse("PL_EIO", "%s", why) end
  if not f then return nil end
  local _, _, code = f:read(0)
  f:close()
  return code == EISDIR and "folder" or "file"
end

function M.read_text(path, limit)
  local f, why = io.open(path, "rb")
  if not f then M.refuse("PL_ENOTFOUND", "%s", why) end
  local size = f:seek "end"
  local text = size and size <= limit and f:seek "set" and f:read "*a"
  f:close()
  if size and size > limit then
    M.refuse("PL_ELIMIT", "%s: is of %.14g bytes, wanted at most %d", path, size, limit)
  end
  return text or M.refuse("PL_EFORMAT", "%s: cannot be read", path)
end

function M.read_json(path)
  local ok, value = pcall(json.decode, M.read_text(path, max_json))
  if not ok then M.refuse("PL_EFORMAT", "%s: not JSON: %s", path, value) end
  if type(value) ~= "table" then
    M.refuse("PL_EFORMAT", "%s: is '%s', wanted an object", path, tostring(value))
  end
  return value
end

-- ---- fields --------------------------------------------------------------------------

-- The fields of a table that came from JSON.
function M.of(file, values, prefix)
  local function get(key)
    local value = values[key]
    if value ~= cjson.null then return value end
  end
  return { file = file, prefix = prefix or "", get = get }
end

function M.has(fields, key) return fields.get(key) ~= nil end

local function show(value)
  if type(value) ~= "table" then return tostring(value) end
  local ok, text = pcall(json.encode, value)
  return ok and text:sub(1, 100) or "a table"
end

-- Refuses a field's value, whatever it is.
function M.wrong(fields, key, wanted, name)
  local value = fields.get(key)
  local is = value == nil and "is missing" or "is '" .. show(value) .. "'"
  M.refuse(name or "PL_EFORMAT", "%s: '%s%s' %s, wanted %s", fields.file, fields.prefix,
           key, is, wanted)
end

function M.unsupported(fields, key, wanted)
  M.wrong(fields, key, wanted, "PL_EUNSUPPORTED")
end

-- The readers: a default of nil means that the field must be there; false, that it may be
-- missing and false is the answer.

local function absent(fields, key, default, wanted)
  if default == nil then M.wrong(fields, key, wanted) end
  return default
end

function M.number(fields, key, min, max, default)
  local value = fields.get(key)
  local wanted = ("a number from %.14g to %.14g"):format(min, max)
  if value == nil then return absent(fields, key, default, wanted) end
  if type(value) ~= "number" or not (value >= min and value <= max) then
    M.wrong(fields, key, wanted)
  end
  return value
end

function M.integer(fields, key, min, max, default)
  local value = fields.get(key)
  local wanted = ("an integer from %.14g to %.14g"):format(min, max)
  if value == nil then return absent(fields, key, default, wanted) end
  if type(value) ~= "number" or value % 1 ~= 0 or value < min or value > max then
    M.wrong(fields, key, wanted)
  end
  return value
end

local function typed(kind, wanted)
  return function(fields, key, default)
    local value = fields.get(key)
    if value == nil then return absent(fields, key, default, wanted) end
    if type(value) ~= kind then M.wrong(fields, key, wanted) end
    return value
  end
end

M.boolean = typed("boolean", "true or false")
M.string = typed("string", "a string")
local a_table = typed("table", "an object")
local a_list = typed("table", "a list")

function M.object(fields, key, default)
  local value = a_table(fields, key, default)
  return value and M.of(fields.file, value, fields.prefix .. key .. ".")
end

-- A list whose items are of one Lua type.
function M.list(fields, key, kind, default)
  local value = a_list(fields, key, default)
  if not value then return value end
  local n = 0
  for _ in pairs(value) do n = n + 1 end
  for i = 1, n do
    if type(value[i]) ~= kind then M.wrong(fields, key, "a list of " .. kind .. "s") end
  end
  return value
end

-- A token id or a list of them: always a list.
function M.ids(fields, key, vocab)
  local value = fields.get(key)
  if value == nil then return {} end
  local ids = type(value) == "number" and { value } or M.list(fields, key, "number")
  for _, id in ipairs(ids) do
    if id % 1 ~= 0 or id < 0 or id >= vocab then
      M.wrong(fields, key, "token ids below " .. vocab)
    end
  end
  return ids
end

-- ---- what config.json and GGUF both say ----------------------------------------------

M.limits = {
  layers = 1024, hidden = 2 ^ 17, heads = 4096, head_dim = 1024, ffn = 2 ^ 20,
  vocab = 2 ^ 21, positions = 2 ^ 24, experts = 1024, theta = 1e15, factor = 1e6,
  scalar = 1e6,
}

-- Whole heads of an even size, queries shared evenly.
function M.check_heads(fields, o, keys)
  if o.head_dim % 2 ~= 0 then M.unsupported(fields, keys.head_dim, "an even number") end
  if o.n_heads % o.n_kv_heads ~= 0 then
    M.wrong(fields, keys.n_kv_heads, "a divisor of " .. o.n_heads)
  end
end

-- Where head_dim is not said it is the rest of hidden.
function M.head_dim(fields, key, heads_key, o)
  if M.has(fields, key) then return M.integer(fields, key, 1, M.limits.head_dim) end
  if o.hidden % o.n_heads ~= 0 or o.hidden / o.n_heads > M.limits.head_dim
     or o.hidden / o.n_heads % 2 ~= 0 then
    M.wrong(fields, heads_key, "heads of an even size in a hidden size of " .. o.hidden)
  end
  return o.hidden / o.n_heads
end

return M
