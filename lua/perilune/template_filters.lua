-- SPDX-License-Identifier: Apache-2.0
-- template_filters.lua - what stands behind `|`, `is`, and the functions of a template.
--
-- A filter or test is { parameters, call(c, v, ...) }; without parameters it takes the
-- arguments as they are: call(c, v, args, named).

local json = require "perilune.json"
local methods = require "perilune.template_methods"
local text = require "perilune.template_text"
local value = require "perilune.template_value"
local fail, charge, made, kind, truth, undefined =
  value.fail, value.charge, value.made, value.kind, value.truth, value.undefined
local null = json.null

local M = {}

local filters, tests = {}, {}
M.filters, M.tests = filters, tests

local function filter(name, parameters, call)
  filters[name] = { name = name, parameters = parameters, call = call }
end

local function test(name, parameters, call)
  tests[name] = { name = name, parameters = parameters, call = call }
end

-- Applies a filter or test found by name.
function M.apply(c, f, v, args, named)
  charge(c, 1)
  if not f.parameters then return f.call(c, v, args, named) end
  return f.call(c, v, methods.bind(f.name, f.parameters, args, named))
end

local function given(v)
  if v == nil or v == null then return nil end
  return v
end

local function yes(v)
  return v ~= nil and truth(v)
end

-- ---- text ---------------------------------------------------------------------------

local function text_filter(name, f)
  filter(name, {}, function(c, v)
    v = value.text(c, v)
    charge(c, #v / 256)
    return f(v)
  end)
end
text_filter("upper", string.upper)
text_filter("lower", string.lower)
text_filter("title", text.title_words)
text_filter("capitalize", text.capitalize)
text_filter("string", function(s) return s end)
text_filter("safe", function(s) return s end)
text_filter("wordcount", function(s) return #text.split(s) end)

filter("trim", { "chars" }, function(c, v, chars)
  v = value.text(c, v)
  charge(c, #v / 256)
  return text.strip(v, given(chars) and methods.want_string(chars, "trim"))
end)

filter("replace", { "old", "new", "count" }, function(c, v, old, new, max)
  if old == nil or new == nil then fail "replace wants two strings" end
  max = given(max) and value.integer(max, "replace")
  return methods.replace(c, value.text(c, v), value.text(c, old), value.text(c, new),
    max and max >= 0 and max or nil)
end)

filter("escape", {}, function(c, v)
  return made(c, (value.text(c, v):gsub("[&<>'\"]", { ["&"] = "&amp;", ["<"] = "&lt;",
    [">"] = "&gt;", ["'"] = "&#39;", ['"'] = "&#34;" })))
end)

filter("format", nil, function(c, v, args)
  return value.format(c, value.text(c, v), args)
end)

filter("indent", { "width", "first", "blank" }, function(c, v, width, first, blank)
  v = value.text(c, v)
  local pad = width == nil and "    " or type(width) == "string" and width
    or (" "):rep(math.min(value.integer(width, "indent"), 1000))
  local lines = text.lines(v .. "\n")
  charge(c, #lines * (1 + #pad / 256))
  for i, line in ipairs(lines) do
    if i > 1 and (line ~= "" or yes(blank)) then lines[i] = pad .. line end
  end
  return made(c, (yes(first) and pad or "") .. table.concat(lines, "\n"))
end)

local json_parameters = { "indent", "separators", "sort_keys", "ensure_ascii" }
filter("tojson", json_parameters, function(c, v, indent, separators, sort, ascii)
  if yes(ascii) then fail "tojson: ensure_ascii is not supported" end
  local s, why = json.encode_python(v, {
    indent = given(indent), separators = given(separators), sort_keys = yes(sort),
    tick = function() charge(c, 1) end,
  })
  return made(c, s or fail("tojson: %s", why))
end)

-- ---- numbers ------------------------------------------------------------------------

local function parse_number(s)
  s = text.strip(s)
  return s:find "^[+-]?[%d.][%d._]*[eE]?[+-]?%d*$" and tonumber((s:gsub("_", ""))) or nil
end

filter("int", { "default", "base" }, function(_, v, default, base)
  local x
  if type(v) == "string" then
    base = base and value.integer(base, "int") or 10
    if base < 2 or base > 36 then fail "int: no such base" end
    x = base == 10 and parse_number(v) or tonumber(v, base)
  elseif kind(v) == "int" then
    return v
  else
    x = value.number(v)
  end
  if not x or x ~= x then return default == nil and 0 or default end
  x = x < 0 and math.ceil(x) or math.floor(x)
  if not json.is_integer(x) then fail "int: a number beyond 2^53" end
  return x
end)

filter("float", { "default" }, function(_, v, default)
  local x = value.number(v)
  if type(v) == "string" then x = parse_number(v) end
  if x then return json.real(x) end
  return default == nil and json.real(0) or default
end)

filter("abs", {}, function(_, v)
  local x = value.number(v)
  if not x then fail("abs wants a number, not a %s", kind(v)) end
  return x < 0 and value.negative(v) or v
end)

-- Half to even, decided exactly: format rounds ties up.
local function round_to(x, precision, method)
  local scale = 10 ^ precision
  if method == "ceil" then return (math.ceil(x * scale) + 0) / scale end
  if method == "floor" then return math.floor(x * scale) / scale end
  local fine = x * 2 ^ (precision + 1)
  local low = math.floor(x * scale)
  if fine == math.floor(fine) and x * scale - low == 0.5 then
    local even = (low % 2 == 0 and low or low + 1) / scale
    return even == 0 and x < 0 and -0.0 or even
  end
  if precision >= 0 then return tonumber(string.format("%." .. precision .. "f", x)) end
  return tonumber(string.format("%.0f", x * scale)) / scale
end

filter("round", { "precision", "method" }, function(_, v, precision, method)
  local x = value.number(v)
  if not x then fail("round wants a number, not a %s", kind(v)) end
  precision, method = precision and value.integer(precision, "round") or 0, method or "common"
  if method ~= "common" and method ~= "ceil" and method ~= "floor" then
    fail "round: the method is 'common', 'ceil' or 'floor'"
  end
  if precision > 20 or precision < -20 then fail "round: at most 20 digits" end
  if kind(v) ~= "float" and method == "common" and precision >= 0 then return v end
  x = round_to(x, precision, method)
  return kind(v) ~= "float" and method == "common" and x or json.real(x)
end)

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
M.getter = getter

-- What to order or compare items by.
local function sort_key(c, path, case_sensitive)
  local get = getter(path)
  return function(v)
    if get then v = get(c, v) end
    if type(v) == "string" and not case_sensitive then return v:lower() end
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

filter("dictsort", { "case_sensitive", "by", "reverse" }, function(c, v, case, by, reverse)
  if kind(v) ~= "dict" then fail("dictsort wants a dict, not a %s", kind(v)) end
  local key = sort_key(c, by == "value" and 1 or 0, yes(case))
  return sorted(c, methods.pairs_of(c, v), key, yes(reverse))
end)

filter("unique", { "case_sensitive", "attribute" }, function(c, v, case, attribute)
  local key, out, seen = sort_key(c, attribute, yes(case)), {}, {}
  for _, item in ipairs(value.items(c, v)) do
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
    total = value.arithmetic(c, "+", total, get and get(c, item) or item)
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
  return methods.join(c, d == nil and "" or value.text(c, d), value.list(out))
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

filter("default", { "default_value", "boolean" }, function(_, v, default, boolean)
  if v == undefined or yes(boolean) and not truth(v) then
    return default == nil and "" or default
  end
  return v
end)

-- ---- map, select --------------------------------------------------------------------

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
  local f = filters[args[1]]
  if not f then fail("no filter '%s'", value.text(c, args[1] == nil and undefined or args[1])) end
  local more = rest(args, 2)
  return function(item) return M.apply(c, f, item, more, named) end
end

filter("map", nil, function(c, v, args, named)
  local f, out = mapper(c, args, named), {}
  for i, item in ipairs(value.items(c, v)) do
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
    for _, item in ipairs(value.items(c, v)) do
      charge(c, 1)
      local x = item
      if get then x = get(c, item) end
      if t then x = M.apply(c, t, x, more, named) else x = truth(x) end
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

M.test = test

return M
