-- SPDX-License-Identifier: Apache-2.0
-- template_methods.lua - what stands behind a dot or in brackets: attributes, items,
-- slices, and the methods of str, dict and list that change nothing.

local json = require "perilune.json"
local text = require "perilune.template_text"
local value = require "perilune.template_value"
local fail, charge, made, kind, undefined =
  value.fail, value.charge, value.made, value.kind, value.undefined
local null, object_mt, array_mt = json.null, json.object_mt, json.array_mt

local M = {}

-- ---- arguments ----------------------------------------------------------------------

-- Puts named arguments in their places: up to four values.
function M.bind(name, parameters, args, named)
  if args.n > #parameters then
    fail("%s takes at most %d arguments, not %d", name, #parameters, args.n)
  end
  if not named then return args[1], args[2], args[3], args[4] end
  local out = { args[1], args[2], args[3], args[4] }
  for _, key in ipairs(named) do
    local place
    for i, parameter in ipairs(parameters) do
      if parameter == key then place = i end
    end
    if not place then fail("%s has no argument '%s'", name, key) end
    out[place] = named[key]
  end
  return out[1], out[2], out[3], out[4]
end

local function want_string(v, what)
  if type(v) ~= "string" then fail("%s wants a str, not a %s", what, kind(v)) end
  return v
end
M.want_string = want_string

-- nil for None and what was not given.
local function optional_string(v, what)
  if v == nil or v == null then return nil end
  return want_string(v, what)
end

-- A count where negative or None means no limit.
local function limit(v, what)
  if v == nil or v == null then return nil end
  local n = value.integer(v, what)
  return n >= 0 and n or nil
end

-- ---- format -------------------------------------------------------------------------

local conversions = {
  s = function(c, v) return value.text(c, v) end,
  r = function(c, v) return value.repr(c, v) end,
}

local function convert(c, spec, letter, v)
  if conversions[letter] then
    return string.format(spec .. "s", conversions[letter](c, v))
  end
  local x = value.number(v)
  if not x then fail("'%s%s' wants a number, not a %s", spec, letter, kind(v)) end
  if letter:find "[dixXo]" then
    x = x < 0 and math.ceil(x) or math.floor(x)
    if not json.is_integer(x) then fail "a number beyond 2^53" end
  end
  return string.format(spec .. letter, x)
end

-- Python's "..." % args, and the filter `format`.
function value.format(c, template, args)
  local at = 0
  charge(c, #template)
  local out = template:gsub("(%%[-+ 0#]*%d?%d?%.?%d?%d?)(.?)", function(spec, letter)
    if letter == "%" then return "%" end
    if not letter:find "^[srdixXofFeEgG]$" then fail("no such format: '%s%s'", spec, letter) end
    at = at + 1
    if args[at] == nil then fail "too few values to format" end
    return made(c, convert(c, spec, letter == "F" and "f" or letter, args[at]))
  end)
  if at < #args then fail "too many values to format" end
  return made(c, out)
end

-- "{} {0} {name}".format(...), without format specifications.
local function str_format(c, s, args, named)
  local auto, out, at = 0, {}, 1
  while true do
    local brace = s:find("[{}]", at)
    out[#out + 1] = s:sub(at, brace and brace - 1)
    if not brace then break end
    local field, after = s:match("^{([%w_]*)}()", brace)
    if s:find("^{{", brace) or s:find("^}}", brace) then
      out[#out + 1], after = s:sub(brace, brace), brace + 2
    elseif not field then
      fail("no such format: '%s'", s:sub(brace))
    else
      if field == "" then auto = auto + 1 end
      local v = args[field == "" and auto or (tonumber(field) or -1) + 1]
      if v == nil then v = named and named[field] end
      if v == nil then fail("format has no value for '{%s}'", field) end
      out[#out + 1] = value.text(c, v)
      charge(c, 1 + #out[#out] / 256)
    end
    at = after
  end
  return made(c, table.concat(out))
end

-- ---- str ----------------------------------------------------------------------------

local str, dict, list = {}, {}, {}

local function def(methods, name, parameters, call)
  methods[name] = { parameters = parameters, call = call }
end

for _, name in ipairs { "strip", "lstrip", "rstrip" } do
  local f = text[name]
  def(str, name, { "chars" }, function(_, s, chars)
    return f(s, optional_string(chars, name))
  end)
end

local function splitter(name, right)
  def(str, name, { "sep", "maxsplit" }, function(c, s, separator, max)
    separator = optional_string(separator, name)
    if separator == "" then fail("%s by nothing", name) end
    charge(c, separator and #s * #separator / 4096 or 0)
    local parts = text.split(s, separator, limit(max, name), right)
    charge(c, #parts)
    return value.list(parts)
  end)
end
splitter("split", false)
splitter("rsplit", true)

local function partition(name, last)
  def(str, name, { "sep" }, function(_, s, separator)
    if want_string(separator, name) == "" then fail("%s by nothing", name) end
    local parts = text.split(s, separator, 1, last)
    if parts[2] then return value.tuple { parts[1], separator, parts[2] } end
    return value.tuple(last and { "", "", s } or { s, "", "" })
  end)
end
partition("partition", false)
partition("rpartition", true)

def(str, "splitlines", { "keepends" }, function(c, s, keep)
  local lines = text.lines(s, keep ~= nil and value.truth(keep))
  charge(c, #lines)
  return value.list(lines)
end)

local function has_end(name, matches)
  def(str, name, { "prefix" }, function(_, s, wanted)
    if kind(wanted) ~= "tuple" then return matches(s, want_string(wanted, name)) end
    for _, one in ipairs(wanted) do
      if matches(s, want_string(one, name)) then return true end
    end
    return false
  end)
end
local function starts(s, prefix) return s:sub(1, #prefix) == prefix end
local function ends(s, suffix) return suffix == "" or s:sub(-#suffix) == suffix end
has_end("startswith", starts)
has_end("endswith", ends)

def(str, "removeprefix", { "prefix" }, function(_, s, prefix)
  return starts(s, want_string(prefix, "removeprefix")) and s:sub(#prefix + 1) or s
end)
def(str, "removesuffix", { "suffix" }, function(_, s, suffix)
  return ends(s, want_string(suffix, "removesuffix")) and s:sub(1, #s - #suffix) or s
end)

-- Refuses a result too long before it is made.
function M.replace(c, s, old, new, max)
  old, new = want_string(old, "replace"), want_string(new, "replace")
  charge(c, #s * (1 + #old / 16) / 256)
  local n = text.count(s, old)
  if max and max < n then n = max end
  if #s + n * (#new - #old) > c.max_bytes then
    fail("a string longer than %d bytes", c.max_bytes)
  end
  return made(c, text.replace(s, old, new, max))
end
def(str, "replace", { "old", "new", "count" }, function(c, s, old, new, max)
  return M.replace(c, s, old, new, limit(max, "replace"))
end)

local function finder(name, last, must)
  def(str, name, { "sub" }, function(c, s, what)
    charge(c, #s * (1 + #want_string(what, name) / 16) / 256)
    local at = text.find(s, what, last)
    if not at and must then fail("'%s' is not in the str", what) end
    return at or -1
  end)
end
finder("find", false, false)
finder("rfind", true, false)
finder("index", false, true)
finder("rindex", true, true)

def(str, "count", { "sub" }, function(c, s, what)
  charge(c, #s * (1 + #want_string(what, "count") / 16) / 256)
  return text.count(s, what)
end)

-- Joins what a value walks.
function M.join(c, separator, v)
  local out = {}
  for i, item in ipairs(value.items(c, v)) do
    out[i] = want_string(item, "join")
  end
  charge(c, #out * (1 + #separator / 256))
  return made(c, table.concat(out, separator))
end
def(str, "join", { "iterable" }, function(c, s, v)
  if v == nil then fail "join wants a list" end
  return M.join(c, s, v)
end)

def(str, "upper", {}, function(_, s) return s:upper() end)
def(str, "lower", {}, function(_, s) return s:lower() end)
def(str, "title", {}, function(_, s) return text.title(s) end)
def(str, "capitalize", {}, function(_, s) return text.capitalize(s) end)

local classes = { isdigit = "^%d+$", isnumeric = "^%d+$", isdecimal = "^%d+$",
  isalpha = "^[%a\128-\255]+$", isalnum = "^[%w\128-\255]+$" }
for name, class in pairs(classes) do
  def(str, name, {}, function(_, s) return s:find(class) ~= nil end)
end
def(str, "isspace", {}, function(_, s) return text.is_white(s) end)
def(str, "isupper", {}, function(_, s) return s:find "%u" ~= nil and not s:find "%l" end)
def(str, "islower", {}, function(_, s) return s:find "%l" ~= nil and not s:find "%u" end)

-- ---- dict, list ---------------------------------------------------------------------

def(dict, "get", { "key", "default" }, function(_, d, key, default)
  local v = d[value.key(key)]
  if v == nil then v = default end
  if v == nil then return null end
  return v
end)

local function view(name, items)
  return setmetatable({ name = name, items = items }, value.view_mt)
end

function M.pairs_of(c, d)
  local out = {}
  for _, key, item in json.pairs(d) do out[#out + 1] = value.tuple { key, item } end
  charge(c, #out)
  return out
end
def(dict, "items", {}, function(c, d) return view("dict_items", M.pairs_of(c, d)) end)
def(dict, "keys", {}, function(c, d) return view("dict_keys", value.items(c, d)) end)
def(dict, "values", {}, function(c, d)
  local out = {}
  for _, _, item in json.pairs(d) do out[#out + 1] = item end
  charge(c, #out)
  return view("dict_values", out)
end)

def(list, "index", { "value" }, function(c, l, v)
  for i, item in ipairs(l) do
    if value.eq(c, item, v) then return i - 1 end
  end
  return fail "the value is not in the list"
end)
def(list, "count", { "value" }, function(c, l, v)
  local n = 0
  for _, item in ipairs(l) do n = n + (value.eq(c, item, v) and 1 or 0) end
  return n
end)

local methods = { str = str, dict = dict, list = list, tuple = list }

function M.is_dict_method(name)
  return dict[name] ~= nil
end

-- ---- loop ---------------------------------------------------------------------------

local loop = {
  index = function(l) return l.at end,
  index0 = function(l) return l.at - 1 end,
  revindex = function(l) return l.n - l.at + 1 end,
  revindex0 = function(l) return l.n - l.at end,
  first = function(l) return l.at == 1 end,
  last = function(l) return l.at == l.n end,
  length = function(l) return l.n end,
  previtem = function(l) return l.items[l.at - 1] end,
  nextitem = function(l) return l.items[l.at + 1] end,
  depth = function() return 1 end,    -- of recursion, which there is none of
  depth0 = function() return 0 end,
}

local function cycle(_, l, args)
  if args.n == 0 then fail "cycle wants values" end
  return args[(l.at - 1) % args.n + 1]
end

local function changed(c, l, args)
  local now = value.tuple(args)
  local same = l.seen and value.eq(c, l.seen, now)
  l.seen = now
  return not same
end
local loop_methods = { cycle = cycle, changed = changed }

-- ---- attributes, items --------------------------------------------------------------

-- A method as a function value, or nil.
local function method(v, name)
  local k = kind(v)
  local own = methods[k] and methods[k][name]
  if own or k == "str" and name == "format" or k == "loop" and loop_methods[name] then
    return value.func(name, function(c, args, named)
      return M.call(c, v, name, args, named)
    end)
  end
end

-- v.name(args), where that is a method; else calls what v.name holds.
function M.call(c, v, name, args, named)
  local k = kind(v)
  local own = methods[k] and methods[k][name]
  if own then
    if k == "str" then charge(c, #v / 256) end
    if args.n < 1 and own.parameters[1] == "key" and not named then fail "get wants a key" end
    return own.call(c, v, M.bind(name, own.parameters, args, named))
  elseif k == "str" and name == "format" then
    return str_format(c, v, args, named)
  elseif k == "loop" and loop_methods[name] then
    return loop_methods[name](c, v, args)
  end
  return value.call(c, M.get(v, name), args, named, name)
end

function value.call(c, f, args, named, name)
  if getmetatable(f) ~= value.function_mt then
    if f == undefined then fail("'%s' is undefined", name or "the function") end
    fail("a %s cannot be called", kind(f))
  end
  charge(c, 1)
  return f.call(c, args, named)
end

-- v.name: what Python finds as an attribute, then an item. `v` is not undefined.
function M.get(v, name)
  local mt = getmetatable(v)
  local found
  if mt == object_mt then
    if dict[name] then return method(v, name) end
    found = v[name]
  elseif mt == value.loop_mt then
    found = loop[name] and loop[name](v)
    if not loop[name] then found = method(v, name) end
  elseif mt == value.namespace_mt then
    found = v.values[name]
  else
    found = method(v, name)
  end
  if found == nil then return undefined end
  return found
end

-- v[key]; `v` is not undefined.
function M.item(c, v, key)
  local k = kind(v)
  local found
  if k == "dict" then
    found = v[value.key(key)]
  elseif k == "list" or k == "tuple" or k == "str" then
    local of_key = kind(key)
    if of_key == "int" or of_key == "bool" then
      local i, n = value.integer(key), value.length(c, v)
      if i < 0 then i = i + n end
      if i < 0 or i >= n then return undefined end
      if k == "str" then return text.slice(v, i, i + 1, 1) end
      return v[i + 1]
    end
  end
  if found == nil and type(key) == "string" then return M.get(v, key) end
  if found == nil then return undefined end
  return found
end

-- Bounds as Python's slice.indices gives them.
local function bounds(n, first, last, step)
  local low, high = 0, n
  if step < 0 then low, high = -1, n - 1 end
  local function place(i, default)
    if i == nil then return default end
    if i < 0 then i = i + n end
    return math.max(low, math.min(high, i))
  end
  return place(first, step > 0 and low or high), place(last, step > 0 and high or low)
end

-- v[first:last:step]; bounds are numbers or nil.
function M.slice(c, v, first, last, step)
  local k = kind(v)
  step = step or 1
  if step == 0 then fail "a slice's step is 0" end
  if k ~= "str" and k ~= "list" and k ~= "tuple" then fail("a %s has no slices", k) end
  local n = value.length(c, v)
  charge(c, k == "str" and n / 256 or 1)
  first, last = bounds(n, first, last, step)
  if k == "str" then return text.slice(v, first, last, step) end
  local out = {}
  for i = first, last + (step > 0 and -1 or 1), step do out[#out + 1] = v[i + 1] end
  charge(c, #out)
  return setmetatable(out, k == "list" and array_mt or json.tuple_mt)
end

return M
