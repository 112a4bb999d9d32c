-- SPDX-License-Identifier: Apache-2.0
-- jinja/tests.lua - what stands behind `is`, and the functions that templates call.

local filters = require "perilune.jinja.filters"
local json = require "perilune.json"
local methods = require "perilune.jinja.methods"
local strings = require "perilune.jinja.str"
local value = require "perilune.jinja.value"
local fail, charge, kind = value.fail, value.charge, value.kind
local undefined = value.undefined
local null = json.null

local M = { tests = filters.tests, globals = {} }
local test, globals = filters.test, M.globals

-- ---- tests --------------------------------------------------------------------------

local function of_kind(name, ...)
  local kinds = {}
  for _, k in ipairs { ... } do kinds[k] = true end
  test(name, {}, function(_, v) return kinds[kind(v)] == true end)
end
of_kind("undefined", "Undefined")
of_kind("none", "NoneType")
of_kind("string", "str")
of_kind("number", "int", "float", "bool")
of_kind("integer", "int")
of_kind("float", "float")
of_kind("boolean", "bool")
of_kind("mapping", "dict")
of_kind("sequence", "str", "list", "tuple", "dict", "Undefined")
of_kind("iterable", "str", "list", "tuple", "dict", "view", "generator", "loop",
  "Undefined")
of_kind("callable", "function")
test("defined", {}, function(_, v) return v ~= undefined end)
test("true", {}, function(_, v) return v == true end)
test("false", {}, function(_, v) return v == false end)

local function comparison(names, compare)
  for name in names:gmatch "%S+" do
    test(name, { "other" }, function(c, v, other)
      if other == nil then fail("'%s' wants a value", name) end
      return compare(c, v, other)
    end)
  end
end
comparison("eq equalto ==", function(c, a, b) return value.eq(c, a, b) end)
comparison("ne !=", function(c, a, b) return not value.eq(c, a, b) end)
comparison("lt lessthan <", function(c, a, b) return value.less(c, a, b) end)
comparison("gt greaterthan >", function(c, a, b) return value.less(c, b, a, ">") end)
comparison("le <=", function(c, a, b) return not value.less(c, b, a, "<=") end)
comparison("ge >=", function(c, a, b) return not value.less(c, a, b, ">=") end)
comparison("in", function(c, a, b) return value.contains(c, b, a) end)
comparison("sameas", function(_, a, b)
  return rawequal(a, b) or kind(a) == "float" and kind(b) == "float"
    and value.number(a) == value.number(b)
end)
comparison("divisibleby", function(_, a, b)
  local n = value.integer(b, "divisibleby")
  if n == 0 then fail "division by zero" end
  return value.integer(a, "divisibleby") % n == 0
end)
test("even", {}, function(_, v) return value.integer(v, "even") % 2 == 0 end)
test("odd", {}, function(_, v) return value.integer(v, "odd") % 2 == 1 end)
test("lower", {}, function(c, v)
  local s = value.text(c, v)
  return s:find "%l" ~= nil and not s:find "%u"
end)
test("upper", {}, function(c, v)
  local s = value.text(c, v)
  return s:find "%u" ~= nil and not s:find "%l"
end)
test("filter", {}, function(_, v) return filters.filters[v] ~= nil end)
test("test", {}, function(_, v) return filters.tests[v] ~= nil end)

-- ---- functions ----------------------------------------------------------------------

local function global(name, call)
  globals[name] = value.func(name, call)
end

-- A dict from another one, or from pairs, and from named arguments.
local function new_dict(c, args, named)
  local d = json.object()
  local from = args[1]
  if from ~= nil and kind(from) == "dict" then
    from = value.list(methods.pairs_of(c, from))
  end
  for _, pair in ipairs(from and value.items(c, from) or {}) do
    local both = value.items(c, pair)
    if #both ~= 2 then fail "dict wants pairs" end
    charge(c, 1)
    json.set(d, value.key(both[1]), both[2])
  end
  for _, name in ipairs(named or {}) do json.set(d, name, named[name]) end
  return d
end
global("dict", new_dict)

global("namespace", function(c, args, named)
  return setmetatable({ values = new_dict(c, args, named) }, value.namespace_mt)
end)

global("range", function(c, args)
  local first, last, step = 0, args[1], args[3]
  if args.n == 0 or args.n > 3 then fail "range wants one to three integers" end
  if args.n > 1 then first, last = value.integer(args[1], "range"), args[2] end
  last, step = value.integer(last, "range"), step and value.integer(step, "range") or 1
  if step == 0 then fail "range: the step is 0" end
  local n = math.max(0, math.ceil((last - first) / step))
  if n > 100000 then fail "range: more than 100000 items" end
  charge(c, n)
  local out = {}
  for i = 1, n do out[i] = first + (i - 1) * step end
  return value.list(out)
end)

global("raise_exception", function(c, args)
  error({ raised = value.text(c, args[1] == nil and "" or args[1]) }, 0)
end)

-- The time of the render, as strftime writes it.
global("strftime_now", function(c, args)
  local format = strings.want_string(args[1] == nil and null or args[1], "strftime_now")
  charge(c, #format)
  return (format:gsub("%%([-_0^#]?[aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%%])",
    function(letter)
      -- Python's time has no zone there.
      return letter:find "[zZ]" and "" or os.date("%" .. letter, c.now)
    end))
end)

global("joiner", function(_, args)
  local separator, used = args[1] == nil and ", " or args[1], false
  return value.func("joiner", function()
    if used then return separator end
    used = true
    return ""
  end)
end)

global("cycler", function(_, args)
  if args.n == 0 then fail "cycler wants values" end
  local at = 0
  local function current() return args[at % args.n + 1] end
  local values = json.object(
    "next", value.func("next", function()
      local v = current()
      at = at + 1
      return v
    end),
    "reset", value.func("reset", function()
      at = 0
      return null
    end))
  return setmetatable({ values = values }, value.namespace_mt)
end)

return M
