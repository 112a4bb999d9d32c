-- SPDX-License-Identifier: Apache-2.0
-- json.lua - JSON from outside as Lua values, in order and without loss; and back.
--
-- An object is a table of its values by key that also remembers its keys' order, under a
-- key that is no string, so no name in a document can collide with it: read t.key, walk
-- with json.pairs, add and remove with json.set. An array is a sequence; null is
-- json.null, so # is its length. An integer is a number up to 2^53, and beyond that its
-- digits, boxed (json.long). A real with an integral value is boxed (json.real): Python
-- prints 1.0 and 1 apart.
--
-- decode is strict (RFC 8259): see core/json_read.c. encode writes answers; encode_python
-- writes what Python's json.dumps(ensure_ascii=False) does, for templates.

local pl = require "perilune.ffi"
local ffi, C = pl.ffi, pl.C
local floor, format = math.floor, string.format
local new_table = require "table.new"

local M = {}

local keys_of = setmetatable({}, { __tostring = function() return "json keys" end })
local array_mt = { __name = "json.array" }
local object_mt = { __name = "json.object" }
local real_mt = { __name = "json.real" }
local long_mt = { __name = "json.long" }
local tuple_mt = { __name = "tuple" }    -- templates have them; written as an array
local null_mt = { __name = "json.null", __tostring = function() return "null" end }
local null = setmetatable({}, null_mt)
local exact = 2 ^ 53

M.array_mt, M.object_mt, M.real_mt, M.tuple_mt = array_mt, object_mt, real_mt, tuple_mt
M.long_mt = long_mt
M.null = null

-- Makes the sequence given an array.
function M.array(t)
  return setmetatable(t or {}, array_mt)
end

-- Sets a key, at the end if it is new; with nil takes it out.
function M.set(t, key, value)
  local keys = t[keys_of]
  if t[key] == nil and value ~= nil then
    keys[#keys + 1] = key
  elseif t[key] ~= nil and value == nil then
    for i = #keys, 1, -1 do
      if keys[i] == key then table.remove(keys, i) end
    end
  end
  t[key] = value
  return t
end

-- json.object("a", 1, "b", 2): in that order; pairs with the value nil are left out.
function M.object(...)
  local t, keys, n = {}, {}, 0
  for i = 1, select("#", ...), 2 do
    local key, value = select(i, ...)
    if value ~= nil then
      if t[key] == nil then
        n = n + 1
        keys[n] = key
      end
      t[key] = value
    end
  end
  t[keys_of] = keys
  return setmetatable(t, object_mt)
end

local function next_pair(t, i)
  local key = t[keys_of][i + 1]
  if key ~= nil then return i + 1, key, t[key] end
end

-- for i, key, value in json.pairs(object)
function M.pairs(t)
  return next_pair, t, 0
end

function M.keys(t)
  local out = {}
  for _, key in next_pair, t, 0 do out[#out + 1] = key end
  return out
end

function M.is_array(v)
  return getmetatable(v) == array_mt
end

function M.is_object(v)
  return getmetatable(v) == object_mt
end

-- A float as documents have it: boxed where Lua's number would look like an integer.
function M.real(v)
  if v == floor(v) and v >= -exact and v <= exact then
    return setmetatable({ value = v }, real_mt)
  end
  return v
end

function M.is_real(v)
  return getmetatable(v) == real_mt
end

function M.is_long(v)
  return getmetatable(v) == long_mt
end

-- The Lua number for any number of a document (a long one loses digits), or nil.
function M.tonumber(v)
  if type(v) == "number" then return v end
  local mt = getmetatable(v)
  if mt == real_mt then return v.value end
  if mt == long_mt then return tonumber(v.digits) end
end

-- The int64_t of an integer of a document; nil where it is none, or beyond 64 bits.
function M.to_int64(v)
  if type(v) == "number" and v % 1 == 0 and v >= -2 ^ 63 and v < 2 ^ 63 then
    return ffi.cast("int64_t", v)
  elseif getmetatable(v) == long_mt and #v.digits <= 20 then
    local x = 0LL
    for digit in v.digits:gmatch "%d" do x = x * 10 + tonumber(digit) end
    if v.digits:sub(1, 1) == "-" then x = -x end
    return tostring(x) == v.digits .. "LL" and x or nil
  end
end

-- ---- decode -------------------------------------------------------------------------

local len = ffi.new("size_t[1]")
local build

local function text_at(p)
  return (ffi.string(p, len[0]))
end

-- Tables are made as large as they will be, for growing is dear.
local function build_array(v)
  local t, n = new_table(C.pl_json_size(v), 0), 0
  local at = C.pl_json_next(v, nil)
  while at ~= nil do
    n = n + 1
    t[n] = build(at)
    at = C.pl_json_next(v, at)
  end
  setmetatable(t, array_mt)
  return t
end

local NONE = {}

-- Of equal keys the last value counts, and the first one's place. Members in the set
-- `but` are left out. Also says whether `known` has all keys.
--
-- Here, and wherever each request passes, no function of Lua's own library is called in
-- tail position: LuaJIT cannot compile a function that ends so.
local function build_object(v, but, known)
  local size = C.pl_json_size(v)
  local t, keys, n = new_table(0, size + 1), new_table(size, 0), 0
  local all_known = true
  local at = C.pl_json_next(v, nil)
  while at ~= nil do
    local key = text_at(C.pl_json_string(at, len))
    if not known[key] then all_known = false end
    if not but[key] then
      if t[key] == nil then
        n = n + 1
        keys[n] = key
      end
      t[key] = build(C.pl_json_value(at))
    end
    at = C.pl_json_next(v, at)
  end
  t[keys_of] = keys
  setmetatable(t, object_mt)
  return t, all_known
end

local function build_integer(v)
  local x = C.pl_json_number(v)
  if x > -exact and x < exact then return x end
  local whole, digits = C.pl_json_integer(v), C.pl_json_digits(v)
  if whole == exact or whole == -exact then return x end
  digits = digits ~= nil and ffi.string(digits) or tostring(whole):gsub("LL$", "")
  return setmetatable({ digits = digits }, long_mt)
end

local builders = {
  [C.PL_JSON_NULL] = function() return null end,
  [C.PL_JSON_FALSE] = function() return false end,
  [C.PL_JSON_TRUE] = function() return true end,
  [C.PL_JSON_INTEGER] = build_integer,
  [C.PL_JSON_REAL] = function(v) return M.real(C.pl_json_number(v)) end,
  [C.PL_JSON_STRING] = function(v) return text_at(C.pl_json_string(v, len)) end,
  [C.PL_JSON_ARRAY] = build_array,
  [C.PL_JSON_OBJECT] = function(v) return (build_object(v, NONE, NONE)) end,
}

function build(v)
  return builders[C.pl_json_kind(v)](v)
end

-- The Lua value of a pl_json, which may be closed afterwards.
function M.value(v)
  return build(v)
end

-- Of an object; members in the set `but` are left out, as if they were not there. Also
-- says whether the set `known` has all its keys.
M.members = build_object

-- The value, or nil, message, name.
function M.decode(text)
  local doc = C.pl_json_open(text, #text)
  if doc == nil then return pl.refusal(C.PL_EFORMAT) end
  local ok, value = pcall(build, doc)
  C.pl_json_close(doc)
  if not ok then error(value, 0) end
  return value
end

-- ---- encode -------------------------------------------------------------------------

local scratch = ffi.gc(ffi.new "pl_buf", C.pl_buf_fini)    -- one for this state

-- A string as JSON writes it, quotes and all; bytes that are no UTF-8 become U+FFFD. No
-- pattern looks whether there is anything to escape: LuaJIT does not compile patterns.
local function quote(s)
  scratch.len = 0
  C.pl_buf_add_json(scratch, s, #s)
  return '"' .. ffi.string(scratch.data, scratch.len) .. '"'
end
M.quote = quote

-- A float as Python's repr has it.
local function real_text(v)
  scratch.len = 0
  C.pl_buf_add_real(scratch, v)
  return (ffi.string(scratch.data, scratch.len))
end
M.real_text = real_text

-- A whole number without exponent or ".0"; beyond 2^53 a number is a float.
local function is_integer(v)
  return v == floor(v) and v >= -exact and v <= exact
end
M.is_integer = is_integer

local function refuse(what)
  return error({ json = what }, 0)
end

local function number_text(v)
  if type(v) == "cdata" then
    if not ffi.istype("int64_t", v) then refuse "a C value is not JSON" end
    return (tostring(v):gsub("LL$", ""))
  end
  if getmetatable(v) == long_mt then return v.digits end
  if type(v) == "number" and is_integer(v) then return format("%d", v) end
  local x = type(v) == "number" and v or v.value
  if x ~= x or x == math.huge or x == -math.huge then refuse "nan and inf are no JSON" end
  return real_text(x)
end

local put

-- The keys in the order in which they are written: those of a plain table sorted.
local function keys_in(t, sort)
  local keys = t[keys_of] and M.keys(t)
  if keys then
    if sort then table.sort(keys) end
    return keys
  end
  keys = {}
  for key in pairs(t) do
    if type(key) ~= "string" then
      refuse("a key is a " .. type(key) .. ", wanted a string")
    end
    keys[#keys + 1] = key
  end
  table.sort(keys)
  return keys
end

-- An array, or with `keys` an object, of n items.
local function put_items(w, t, keys, n, depth)
  local open, close = keys and "{" or "[", keys and "}" or "]"
  if n == 0 then
    w[#w + 1] = open .. close
    return
  end
  local line = w.indent and "\n" .. w.indent:rep(depth) or ""
  for i = 1, n do
    w[#w + 1] = (i == 1 and open or w.comma) .. line
    if keys then
      w[#w + 1] = w.key(keys[i]) .. w.colon
      put(w, t[keys[i]], depth)
    else
      put(w, t[i], depth)
    end
  end
  w[#w + 1] = (w.indent and "\n" .. w.indent:rep(depth - 1) or "") .. close
end

local function put_table(w, t, depth)
  if depth > 512 then refuse "nested deeper than 512 levels" end
  local mt = getmetatable(t)
  if t == null then
    w[#w + 1] = "null"
  elseif mt == real_mt or mt == long_mt then
    w[#w + 1] = number_text(t)
  elseif mt == array_mt or mt == tuple_mt or mt == nil and t[1] ~= nil then
    put_items(w, t, nil, #t, depth)
  elseif mt == object_mt or mt == nil then
    local keys = keys_in(t, w.sort)
    put_items(w, t, keys, #keys, depth)
  else
    refuse("a " .. (mt.__name or "table") .. " is not JSON")
  end
end

function put(w, v, depth)
  if w.tick then w.tick() end
  local kind = type(v)
  if kind == "string" then
    w[#w + 1] = quote(v)
  elseif kind == "number" or kind == "cdata" then
    w[#w + 1] = number_text(v)
  elseif kind == "boolean" then
    w[#w + 1] = v and "true" or "false"
  elseif kind == "table" then
    put_table(w, v, depth + 1)
  else
    refuse("a " .. kind .. " is not JSON")
  end
end

local function write(v, w)
  local ok, why = pcall(put, w, v, 0)
  if ok then return table.concat(w) end
  if type(why) == "table" and why.json then return nil, why.json, "PL_EINVAL" end
  error(why, 0)
end

-- The text, or nil, message, name. A table without a metatable is an array if it has a
-- first item, else an object with its keys sorted.
function M.encode(v)
  return write(v, { comma = ",", colon = ":", key = quote })
end

-- Python turns keys that are numbers, booleans or None into their texts.
local function python_key(key)
  return quote(type(key) == "string" and key or key == null and "null"
    or type(key) == "boolean" and tostring(key) or number_text(key))
end

-- What Python's json.dumps(v, ensure_ascii=False) returns; keys in their order. Options:
-- indent (a number or a string), separators {item, key}, sort_keys, and tick, called
-- before each value: it may raise an error to end what grows too long.
function M.encode_python(v, options)
  local indent = options and options.indent
  if type(indent) == "number" then indent = (" "):rep(indent) end
  local separators = options and options.separators or { indent and "," or ", ", ": " }
  return write(v, {
    indent = indent, comma = separators[1], colon = separators[2], key = python_key,
    sort = options and options.sort_keys, tick = options and options.tick,
  })
end

return M
