-- SPDX-License-Identifier: Apache-2.0
-- jinja/filters.lua - what stands behind `|`, but for lists (jinja/lists.lua), and
-- how filters and tests are kept and applied.
--
-- A filter or test is { parameters, call(c, v, ...) }; without parameters it takes the
-- arguments as they are: call(c, v, args, named).

local json = require "perilune.json"
local operators = require "perilune.jinja.math"
local methods = require "perilune.jinja.methods"
local strings = require "perilune.jinja.str"
local text = require "perilune.jinja.text"
local value = require "perilune.jinja.value"
local fail, charge, made, kind, truth =
  value.fail, value.charge, value.made, value.kind, value.truth
local format, null = string.format, json.null

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
text_filter("upper", text.upper)
text_filter("lower", text.lower)
text_filter("title", text.title_words)
text_filter("capitalize", text.capitalize)
text_filter("string", function(s) return s end)
text_filter("safe", function(s) return s end)
text_filter("wordcount", function(s) return #text.split(s) end)

filter("trim", { "chars" }, function(c, v, chars)
  return strings.strip(c, "strip", value.text(c, v), chars)
end)

filter("replace", { "old", "new", "count" }, function(c, v, old, new, max)
  if old == nil or new == nil then fail "replace wants two strings" end
  max = given(max) and value.integer(max, "replace")
  return strings.replace(c, value.text(c, v), value.text(c, old), value.text(c, new),
    max and max >= 0 and max or nil)
end)

function M.escape(c, v)
  return made(c, (value.text(c, v):gsub("[&<>'\"]", { ["&"] = "&amp;", ["<"] = "&lt;",
    [">"] = "&gt;", ["'"] = "&#39;", ['"'] = "&#34;" })))
end
filter("escape", {}, M.escape)

local truncate_parameters = { "length", "killwords", "end", "leeway" }
filter("truncate", truncate_parameters, function(c, v, length, kill, ending, leeway)
  v, ending = value.text(c, v), ending == nil and "..." or value.text(c, ending)
  length = length == nil and 255 or value.integer(length, "truncate")
  leeway = given(leeway) and value.integer(leeway, "truncate") or 5
  local keep = length - text.length(ending)
  if keep < 0 or leeway < 0 then fail "truncate: no room for the end" end
  charge(c, #v / 64)
  if text.length(v) <= length + leeway then return v end
  v = text.slice(v, 0, keep, 1)
  return made(c, (yes(kill) and v or v:match "^(.*) " or v) .. ending)
end)

filter("format", nil, function(c, v, args)
  return strings.format(c, value.text(c, v), args)
end)

filter("indent", { "width", "first", "blank" }, function(c, v, width, first, blank)
  v = value.text(c, v)
  local pad = width == nil and "    " or type(width) == "string" and width
    or (" "):rep(math.min(value.integer(width, "indent"), 1000))
  charge(c, #v / 8)
  local lines = text.lines(v .. "\n")
  charge(c, #lines * (1 + #pad / 256))
  for i, line in ipairs(lines) do
    if i > 1 and (line ~= "" or yes(blank)) then lines[i] = pad .. line end
  end
  return made(c, (yes(first) and pad or "") .. table.concat(lines, "\n"))
end)

local function json_indent(indent)
  if not given(indent) or type(indent) == "string" then return given(indent) end
  return math.min(math.max(value.integer(indent, "tojson"), 0), 100)
end

local function json_separators(list)
  if not given(list) then return nil end
  local k = kind(list)
  if (k ~= "tuple" and k ~= "list") or #list ~= 2 then
    fail "tojson wants two separators"
  end
  for _, separator in ipairs(list) do strings.want_string(separator, "tojson") end
  return list
end

-- What JSON's writer leaves as it is, as \u and four digits.
local function ascii_json(s)
  return (s:gsub("[\127\194-\244][\128-\191]*", function(ch)
    local code = text.code(ch)
    if code < 0x10000 then return format("\\u%04x", code) end
    code = code - 0x10000
    return format("\\u%04x\\u%04x", 0xd800 + bit.rshift(code, 10),
      0xdc00 + code % 0x400)
  end))
end

-- transformers has its own: ensure_ascii comes first.
local json_parameters = { "ensure_ascii", "indent", "separators", "sort_keys" }
filter("tojson", json_parameters, function(c, v, ascii, indent, separators, sort)
  indent, separators = json_indent(indent), json_separators(separators)
  local s, why = json.encode_python(v, {
    indent = indent, separators = separators, sort_keys = yes(sort),
    tick = function() charge(c, 1) end,
  })
  if not s then fail("tojson: %s", why) end
  return made(c, yes(ascii) and ascii_json(s) or s)
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
  return x < 0 and operators.negative(v) or v
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
  precision = precision and value.integer(precision, "round") or 0
  method = method or "common"
  if method ~= "common" and method ~= "ceil" and method ~= "floor" then
    fail "round: the method is 'common', 'ceil' or 'floor'"
  end
  if precision > 20 or precision < -20 then fail "round: at most 20 digits" end
  if kind(v) ~= "float" and method == "common" and precision >= 0 then return v end
  x = round_to(x, precision, method)
  return kind(v) ~= "float" and method == "common" and x or json.real(x)
end)

M.filter, M.test, M.given, M.yes = filter, test, given, yes

return M
