-- SPDX-License-Identifier: Apache-2.0
-- jinja/value.lua - values as a template sees them: Python's rules over json.lua's.
--
--   undefined      M.undefined            int, float   number, json.long, json.real
--   None           json.null              str          string
--   list, tuple    json.array, M.tuple    dict         json.object
--   view           dict.items() etc.      generator    what map, select, ... give: it is
--   namespace, loop, function                          read once, and true even if empty
--
-- What cannot be done is an error { message }; jinja/template.lua adds the line. Work
-- that grows with the values is charged to the render `c`, which has a budget.

local json = require "perilune.json"
local text = require "perilune.jinja.text"
local null, array_mt, object_mt, real_mt, tuple_mt, long_mt = json.null, json.array_mt,
  json.object_mt, json.real_mt, json.tuple_mt, json.long_mt

local M = {}

local function kind_mt(name)
  return { __name = name }
end

local view_mt, stream_mt = kind_mt "view", kind_mt "generator"
local function_mt, namespace_mt = kind_mt "function", kind_mt "namespace"
local loop_mt = kind_mt "loop"
local undefined = setmetatable({}, kind_mt "undefined")

M.undefined = undefined
M.view_mt, M.stream_mt, M.function_mt = view_mt, stream_mt, function_mt
M.namespace_mt, M.loop_mt = namespace_mt, loop_mt

local table_kinds = { [array_mt] = "list", [tuple_mt] = "tuple", [object_mt] = "dict",
  [real_mt] = "float", [long_mt] = "int", [view_mt] = "view", [stream_mt] = "generator",
  [function_mt] = "function", [namespace_mt] = "namespace", [loop_mt] = "loop" }
local plain_kinds = { string = "str", boolean = "bool" }

-- Python's name of a value's type.
local function kind(v)
  local plain = plain_kinds[type(v)]
  if plain then return plain end
  if type(v) == "number" then return json.is_integer(v) and "int" or "float" end
  if v == null then return "NoneType" end
  if v == undefined then return "Undefined" end
  return table_kinds[getmetatable(v)] or "object"
end
M.kind = kind

function M.fail(...)
  error({ message = string.format(...) }, 0)
end
local fail = M.fail

-- Takes from the render's budget: one for a step, one for each 64 bytes made.
function M.charge(c, steps)
  c.steps = c.steps - steps
  if c.steps < 0 then error({ message = "the template takes too many steps" }, 0) end
end
local charge = M.charge

-- A new string counts by its length, and may not be too long.
function M.made(c, s)
  local n = #s
  if n > 255 then
    charge(c, n / 64)
    if n > c.max_bytes then fail("a string longer than %d bytes", c.max_bytes) end
  end
  return s
end
local made = M.made

-- Looking for `what` in s may cost the product of their lengths.
function M.search(c, s, what)
  charge(c, #s * (1 + #what / 16) / 256)
end

function M.tuple(t)
  return setmetatable(t, tuple_mt)
end

function M.list(t)
  return setmetatable(t, array_mt)
end

function M.stream(t)
  return setmetatable({ items = t }, stream_mt)
end

-- A function: call(c, args, named). args.n counts; named, if there is one, has the values
-- by name and the names in order.
function M.func(name, call)
  return setmetatable({ name = name, call = call }, function_mt)
end

function M.number(v)
  if type(v) == "number" then return v end
  if type(v) == "boolean" then return v and 1 or 0 end
  return json.tonumber(v)
end
local number = M.number

-- A whole number, for an index or a count.
function M.integer(v, what)
  local k = kind(v)
  if k == "bool" then return v and 1 or 0 end
  if k ~= "int" then fail("%s is a %s, wanted an int", what or "the argument", k) end
  if json.is_long(v) then fail("%s is an integer beyond 2^53", what or "the argument") end
  return v
end

function M.truth(v)
  local k = type(v)
  if k == "boolean" then return v end
  if k == "string" then return v ~= "" end
  if k == "number" then return v ~= 0 end
  if v == undefined or v == null then return false end
  local mt = getmetatable(v)
  if mt == array_mt or mt == tuple_mt then return v[1] ~= nil end
  if mt == object_mt then return json.pairs(v)(v, 0) ~= nil end
  if mt == real_mt then return v.value ~= 0 end
  if mt == view_mt then return v.items[1] ~= nil end
  return true
end

-- What a for loop walks: a sequence, not to be changed.
function M.items(c, v)
  local k = kind(v)
  if k == "list" or k == "tuple" then return v end
  if k == "dict" then
    local keys = json.keys(v)
    charge(c, #keys)
    return keys
  elseif k == "view" then
    return v.items
  elseif k == "generator" then
    local list = v.items
    v.items = {}
    return list
  elseif k == "str" then
    charge(c, #v)
    return text.chars(v)
  elseif v == undefined then
    return {}
  end
  return fail("a %s cannot be walked", k)
end

function M.length(c, v)
  local k = kind(v)
  if k == "str" then
    charge(c, #v / 64)
    return text.length(v)
  elseif k == "list" or k == "tuple" then
    return #v
  elseif k == "view" then
    return #v.items
  elseif k == "dict" then
    return #M.items(c, v)
  elseif v == undefined then
    return 0
  elseif k == "loop" then
    return v.n
  end
  return fail("a %s has no length", k)
end

-- ---- text ---------------------------------------------------------------------------

local invisible = { [0xad] = true, [0x3000] = true, [0xfeff] = true }

-- Whether Python's repr escapes a character: the controls and spaces a text meets.
local function is_escaped(c)
  local code = text.code(c)
  return invisible[code] or code >= 0x80 and code <= 0xa0
    or code >= 0x2000 and code <= 0x200f or code >= 0x2028 and code <= 0x202f
    or code >= 0x205f and code <= 0x206f
end

local function repr_string(s)
  local quote = s:find("'", 1, true) and not s:find('"', 1, true) and '"' or "'"
  s = s:gsub("[%c\\" .. quote .. "]", function(ch)
    local short = ({ ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" })[ch]
    if short then return short end
    if ch == "\\" or ch == quote then return "\\" .. ch end
    return string.format("\\x%02x", ch:byte())
  end)
  if s:find "[\128-\255]" then
    s = s:gsub("[\194-\244][\128-\191]+", function(ch)
      if not is_escaped(ch) then return ch end
      local code = text.code(ch)
      return string.format(code < 256 and "\\x%02x" or "\\u%04x", code)
    end)
  end
  return quote .. s .. quote
end

local repr

local function repr_items(c, list, open, close)
  local out = {}
  for i, item in ipairs(list) do out[i] = repr(c, item) end
  if open == "(" and #list == 1 then close = ",)" end
  return open .. table.concat(out, ", ") .. close
end

local function repr_pairs(c, v)
  local out = {}
  for _, key, value in json.pairs(v) do
    out[#out + 1] = repr(c, key) .. ": " .. repr(c, value)
  end
  return "{" .. table.concat(out, ", ") .. "}"
end

local function number_text(v)
  if json.is_long(v) then return v.digits end
  if type(v) == "number" and json.is_integer(v) then return string.format("%d", v) end
  return json.real_text(json.tonumber(v))
end

local texts = {
  bool = function(_, v) return v and "True" or "False" end,
  int = function(_, v) return number_text(v) end,
  float = function(_, v) return number_text(v) end,
  NoneType = function() return "None" end,
  Undefined = function() return "Undefined" end,
  str = function(_, v) return repr_string(v) end,
  list = function(c, v) return repr_items(c, v, "[", "]") end,
  tuple = function(c, v) return repr_items(c, v, "(", ")") end,
  dict = repr_pairs,
  view = function(c, v)
    return v.name .. "(" .. repr_items(c, v.items, "[", "]") .. ")"
  end,
  namespace = function(c, v) return "<Namespace " .. repr_pairs(c, v.values) .. ">" end,
  loop = function(_, v) return string.format("<LoopContext %d/%d>", v.at, v.n) end,
}

function repr(c, v)
  charge(c, 1)
  local k = kind(v)
  return made(c, texts[k] and texts[k](c, v) or "<" .. k .. ">")
end
M.repr = repr

-- What {{ v }} prints.
function M.text(c, v)
  if type(v) == "string" then return v end
  if v == undefined then return "" end
  return repr(c, v)
end

-- ---- comparing ----------------------------------------------------------------------

local eq

local function eq_tables(c, a, b, k)
  if k == "list" or k == "tuple" then
    if #a ~= #b then return false end
    for i = 1, #a do
      if not eq(c, a[i], b[i]) then return false end
    end
    return true
  elseif k == "dict" then
    if M.length(c, a) ~= M.length(c, b) then return false end
    for _, key, value in json.pairs(a) do
      if b[key] == nil or not eq(c, value, b[key]) then return false end
    end
    return true
  end
  return false
end

function eq(c, a, b)
  if rawequal(a, b) then return true end
  charge(c, 1)
  local x, y = number(a), number(b)
  if x and y then
    if json.is_long(a) and json.is_long(b) then return a.digits == b.digits end
    return x == y
  end
  if type(a) ~= "table" or type(b) ~= "table" then return false end
  local k = kind(a)
  return k == kind(b) and eq_tables(c, a, b, k)
end

-- Equal as Python's == has it.
function M.eq(c, a, b)
  if type(a) == "string" or type(b) == "string" then return a == b end
  return eq(c, a, b)
end

-- a < b; `op` is for the message.
function M.less(c, a, b, op)
  local x, y = number(a), number(b)
  if x and y then return x < y end
  if type(a) == "string" and type(b) == "string" then
    charge(c, math.min(#a, #b) / 256)
    return a < b
  end
  local k = kind(a)
  if (k == "list" or k == "tuple") and k == kind(b) then
    for i = 1, math.min(#a, #b) do
      if not M.eq(c, a[i], b[i]) then return M.less(c, a[i], b[i], op) end
    end
    return #a < #b
  end
  return fail("'%s' is not possible between %s and %s", op or "<", k, kind(b))
end

function M.is_key(v)
  return type(v) == "string" or v == null or number(v) ~= nil
end

-- A dict's key for a value: 1, 1.0 and True are the same one.
function M.key(v)
  if type(v) == "string" or v == null then return v end
  local x = number(v)
  if not x then fail("a %s cannot be a key", kind(v)) end
  return x
end

function M.contains(c, container, v)
  local k = kind(container)
  if k == "str" then
    if type(v) ~= "string" then fail("'in' a str wants a str, not a %s", kind(v)) end
    M.search(c, container, v)
    return container:find(v, 1, true) ~= nil
  elseif k == "dict" then
    return container[M.key(v)] ~= nil
  end
  local items = M.items(c, container)
  charge(c, #items)
  for _, item in ipairs(items) do
    if M.eq(c, item, v) then return true end
  end
  return false
end

return M
