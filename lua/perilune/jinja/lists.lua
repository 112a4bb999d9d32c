-- SPDX-License-Identifier: Apache-2.0
-- jinja/lists.lua - the filters that take or give lists.

local base = require "perilune.jinja.filters"
local json = require "perilune.json"
local operators = require "perilune.jinja.math"
local methods = require "perilune.jinja.methods"
local strings = require "perilune.jinja.str"
local text = require "perilune.jinja.text"
local value = require "perilune.jinja.value"
local fail, charge, kind, truth, undefined =
  value.fail, value.charge, value.kind, value.truth, value.undefined
local filter, filters, tests = base.filter, base.filters, base.tests
local null = json.null
local given, yes, apply = base.given, base.yes, base.apply

-- ---- lists --------------------------------------------------------------------------

-- What `attribute=` names: "a.b.0".
local function getter(path)
  if path == nil or path == null then return nil end
  local parts = {}
  if type(path) == "string" then
    for part in path:gmatch "[^.]+" do
      parts[#parts + 1] = part:find "^%d+$" and tonumber(part) or part
    end
  else
    parts[1] = value.integer(path, "attribute")
  end
  return function(c, v)
    for _, part in ipairs(parts) do
      if v == undefined then fail("'%s' is undefined", path) end
      v = methods.item(c, v, part)
    end
    return v
  end
end

-- What to order or compare items by.
local function sort_key(c, path, case_sensitive)
  local get = getter(path)
  return function(v)
    if get then v = get(c, v) end
    if type(v) == "string" and not case_sensitive then return text.lower(v) end
    return v
  end
end

-- A stable sort; Lua's own is not.
local function merge_sort(list, less)
  local from, n, width = list, #list, 1
  local to = {}
  while width < n do
    for start = 1, n, 2 * width do
      local i, j = start, start + width
      local i_end, j_end = math.min(j, n + 1), math.min(start + 2 * width, n + 1)
      for k = start, j_end - 1 do
        if i < i_end and (j >= j_end or not less(from[j], from[i])) then
          to[k], i = from[i], i + 1
        else
          to[k], j = from[j], j + 1
        end
      end
    end
    from, to, width = to, from, 2 * width
  end
  return from
end

local function sorted(c, items, key, reverse)
  local list = {}
  for i, item in ipairs(items) do list[i] = { item, key(item) } end
  list = merge_sort(list, function(a, b)
    charge(c, 1)
    if reverse then a, b = b, a end
    return value.less(c, a[2], b[2])
  end)
  local out = {}
  for i = 1, #items do out[i] = list[i][1] end
  return value.list(out)
end

local sort_parameters = { "reverse", "case_sensitive", "attribute" }
filter("sort", sort_parameters, function(c, v, reverse, case, attribute)
  return sorted(c, value.items(c, v), sort_key(c, attribute, yes(case)), yes(reverse))
end)

local dictsort_parameters = { "case_sensitive", "by", "reverse" }
filter("dictsort", dictsort_parameters, function(c, v, case, by, reverse)
  if kind(v) ~= "dict" then fail("dictsort wants a dict, not a %s", kind(v)) end
  local key = sort_key(c, by == "value" and 1 or 0, yes(case))
  return sorted(c, methods.pairs_of(c, v), key, yes(reverse))
end)

filter("unique", { "case_sensitive", "attribute" }, function(c, v, case, attribute)
  local key, out, seen = sort_key(c, attribute, yes(case)), {}, {}
  for _, item in ipairs(value.items(c, v)) do
    charge(c, 1)
    local k = value.key(key(item))
    if not seen[k] then
      seen[k] = true
      out[#out + 1] = item
    end
  end
  return value.stream(out)
end)

local function extreme(name, better)
  filter(name, { "case_sensitive", "attribute" }, function(c, v, case, attribute)
    local key = sort_key(c, attribute, yes(case))
    local best, best_key = undefined, nil
    for _, item in ipairs(value.items(c, v)) do
      charge(c, 1)
      local k = key(item)
      if best_key == nil or better(c, k, best_key) then best, best_key = item, k end
    end
    return best
  end)
end
extreme("min", function(c, a, b) return value.less(c, a, b) end)
extreme("max", function(c, a, b) return value.less(c, b, a) end)

filter("sum", { "attribute", "start" }, function(c, v, attribute, start)
  local get, total = getter(attribute), start == nil and 0 or start
  for _, item in ipairs(value.items(c, v)) do
    charge(c, 1)
    total = operators.binary(c, "+", total, get and get(c, item) or item)
  end
  return total
end)

filter("length", {}, function(c, v) return value.length(c, v) end)

filter("first", {}, function(c, v)
  if kind(v) == "generator" then
    local item = table.remove(v.items, 1)
    if item == nil then return undefined end
    return item
  end
  local item = value.items(c, v)[1]
  if item == nil then return undefined end
  return item
end)

filter("last", {}, function(c, v)
  local items = value.items(c, v)
  if #items == 0 then return undefined end
  return items[#items]
end)

local function copy(c, items)
  charge(c, #items)
  local out = {}
  for i = 1, #items do out[i] = items[i] end
  return out
end

filter("list", {}, function(c, v) return value.list(copy(c, value.items(c, v))) end)

filter("reverse", {}, function(c, v)
  local items, out = value.items(c, v), {}
  charge(c, #items)
  for i = #items, 1, -1 do out[#out + 1] = items[i] end
  if type(v) == "string" then return table.concat(out) end
  return value.stream(out)
end)

filter("join", { "d", "attribute" }, function(c, v, d, attribute)
  local get, out = getter(attribute), {}
  for i, item in ipairs(value.items(c, v)) do
    out[i] = value.text(c, get and get(c, item) or item)
  end
  return strings.join(c, d == nil and "" or value.text(c, d), value.list(out))
end)

filter("items", {}, function(c, v)
  if v == undefined then return value.stream {} end
  if kind(v) ~= "dict" then fail("items wants a dict, not a %s", kind(v)) end
  return value.stream(methods.pairs_of(c, v))
end)

filter("batch", { "linecount", "fill_with" }, function(c, v, n, fill)
  n = value.integer(n == nil and null or n, "batch")
  if n < 1 then fail "batch wants a positive number" end
  local out = {}
  for i, item in ipairs(value.items(c, v)) do
    charge(c, 1)
    if (i - 1) % n == 0 then out[#out + 1] = value.list {} end
    local row = out[#out]
    row[#row + 1] = item
  end
  local row = given(fill) and out[#out]
  if row then
    charge(c, n)
    for i = #row + 1, n do row[i] = fill end
  end
  return value.stream(out)
end)

filter("slice", { "slices", "fill_with" }, function(c, v, n, fill)
  n = value.integer(n == nil and null or n, "slice")
  if n < 1 then fail "slice wants a positive number" end
  local items, out, from = value.items(c, v), {}, 1
  charge(c, #items + n)
  for i = 1, n do
    local row, longer = value.list {}, i <= #items % n
    for k = from, from + math.floor(#items / n) - (longer and 0 or 1) do
      row[#row + 1] = items[k]
    end
    from = from + #row
    if not longer then row[#row + 1] = given(fill) end
    out[i] = row
  end
  return value.stream(out)
end)

local group_parameters = { "attribute", "default", "case_sensitive" }
filter("groupby", group_parameters, function(c, v, attribute, default, case)
  local get = getter(attribute) or fail "groupby wants an attribute"
  local function real(item)
    local found = get(c, item)
    return found == undefined and given(default) or found
  end
  local function key(item)
    local found = real(item)
    return type(found) == "string" and not yes(case) and text.lower(found) or found
  end
  local out, last = {}, nil
  for _, item in ipairs(sorted(c, value.items(c, v), key, false)) do
    local group, k = out[#out], key(item)
    if not group or not value.eq(c, last, k) then
      local list = value.list {}
      group = value.tuple { real(item), list }
      group.fields = { grouper = group[1], list = list }
      out[#out + 1] = group
    end
    last = k
    table.insert(group[2], item)
  end
  return value.list(out)
end)

filter("default", { "default_value", "boolean" }, function(_, v, default, boolean)
  if v == undefined or yes(boolean) and not truth(v) then
    return default == nil and "" or default
  end
  return v
end)

-- ---- map, select --------------------------------------------------------------------

-- What map and select walk: nothing at all in a value that is false.
local function walked(c, v)
  return truth(v) and value.items(c, v) or {}
end

local function rest(args, from)
  local out = { n = math.max(args.n - from + 1, 0) }
  for i = from, args.n do out[i - from + 1] = args[i] end
  return out
end

-- What map does to each item.
local function mapper(c, args, named)
  local path = named and named.attribute
  if path ~= nil then
    local get = getter(path)
    return function(item)
      local v = get(c, item)
      if v == undefined and named.default ~= nil then return named.default end
      return v
    end
  end
  if args.n == 0 then fail "map wants a filter" end
  local f = filters[args[1]] or fail("no filter '%s'", value.text(c, args[1]))
  local more = rest(args, 2)
  return function(item) return apply(c, f, item, more, named) end
end

filter("map", nil, function(c, v, args, named)
  local f, out = mapper(c, args, named), {}
  for i, item in ipairs(walked(c, v)) do
    charge(c, 1)
    out[i] = f(item)
  end
  return value.stream(out)
end)

local function selector(name, by_attribute, wanted)
  filter(name, nil, function(c, v, args, named)
    local at = by_attribute and 2 or 1
    local get = by_attribute and (getter(args[1]) or fail("%s wants an attribute", name))
    local t, more, out = nil, rest(args, at + 1), {}
    if args[at] ~= nil then
      t = tests[args[at]] or fail("no test '%s'", value.text(c, args[at]))
    end
    for _, item in ipairs(walked(c, v)) do
      charge(c, 1)
      local x = item
      if get then x = get(c, item) end
      if t then x = apply(c, t, x, more, named) else x = truth(x) end
      if x == wanted then out[#out + 1] = item end
    end
    return value.stream(out)
  end)
end
selector("select", false, true)
selector("reject", false, false)
selector("selectattr", true, true)
selector("rejectattr", true, false)

for alias, name in pairs { d = "default", count = "length", e = "escape" } do
  filters[alias] = filters[name]
end

return filters
