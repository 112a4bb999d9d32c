-- SPDX-License-Identifier: Apache-2.0
-- jinja/methods.lua - what stands behind a dot or in brackets: attributes, items,
-- slices, and the methods of dict and list that change nothing; how they are called.

local json = require "perilune.json"
local strings = require "perilune.jinja.str"
local text = require "perilune.jinja.text"
local value = require "perilune.jinja.value"
local fail, charge, kind, undefined =
  value.fail, value.charge, value.kind, value.undefined
local null, object_mt, array_mt = json.null, json.object_mt, json.array_mt

local M = {}

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

-- ---- dict, list ---------------------------------------------------------------------

local dict, list = {}, {}

local function def(methods, name, parameters, call)
  methods[name] = { parameters = parameters, call = call }
end

def(dict, "get", { "key", "default" }, function(_, d, key, default)
  if key == nil then fail "get wants a key" end
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

def(dict, "copy", {}, function(c, d)
  local out = json.object()
  for _, key, item in json.pairs(d) do json.set(out, key, item) end
  charge(c, #json.keys(out))
  return out
end)

def(list, "copy", {}, function(c, l) return M.slice(c, l, nil, nil, 1) end)
def(list, "index", { "value" }, function(c, l, v)
  charge(c, #l)
  for i, item in ipairs(l) do
    if value.eq(c, item, v) then return i - 1 end
  end
  return fail "the value is not in the list"
end)
def(list, "count", { "value" }, function(c, l, v)
  charge(c, #l)
  local n = 0
  for _, item in ipairs(l) do n = n + (value.eq(c, item, v) and 1 or 0) end
  return n
end)

local tuple = { index = list.index, count = list.count }
local methods = { str = strings.methods, dict = dict, list = list, tuple = tuple }

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
    return own.call(c, v, M.bind(name, own.parameters, args, named))
  elseif k == "str" and name == "format" then
    return strings.format_fields(c, v, args, named)
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
    found = method(v, name) or mt == json.tuple_mt and v.fields and v.fields[name] or nil
  end
  if found == nil then return undefined end
  return found
end

-- v[key]; `v` is not undefined.
function M.item(c, v, key)
  local k = kind(v)
  local found
  if k == "dict" then
    if not value.is_key(key) then return undefined end
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

-- v[first:last:step]; bounds are numbers or nil.
function M.slice(c, v, first, last, step)
  local k = kind(v)
  step = step or 1
  if step == 0 then fail "a slice's step is 0" end
  if k ~= "str" and k ~= "list" and k ~= "tuple" then fail("a %s has no slices", k) end
  local n = value.length(c, v)
  charge(c, k == "str" and step ~= 1 and n or 1)
  first, last = text.bounds(n, first, last, step)
  if k == "str" then return text.slice(v, first, last, step) end
  local out = {}
  for i = first, last + (step > 0 and -1 or 1), step do out[#out + 1] = v[i + 1] end
  charge(c, #out)
  return setmetatable(out, k == "list" and array_mt or json.tuple_mt)
end

return M
