-- SPDX-License-Identifier: Apache-2.0
-- jinja/eval.lua - expressions as closures: e(c, f) is the value.
--
-- `c` is the render (output, budget, variables), `f` the frame: an array of the variables
-- that the template sets, and `up`, the frame around a macro. Where a name lives is found
-- here, once: `K.scope` is { names: slot by name, frame, parent }.

local filters = require "perilune.jinja.filters"
local list_filters = require "perilune.jinja.lists"
local functions = require "perilune.jinja.tests"
local json = require "perilune.json"
local lex = require "perilune.jinja.lex"
local methods = require "perilune.jinja.methods"
local operators = require "perilune.jinja.math"
local value = require "perilune.jinja.value"
local fail, made, truth, undefined = value.fail, value.made, value.truth, value.undefined
local object_mt = json.object_mt

local M = {}

local kinds = {}
local no_args = setmetatable({ n = 0 }, { __newindex = function() error "shared" end })

local function expr(K, n)
  return kinds[n.type](K, n)
end
M.expr = expr

local MOST_LINKS = 16

-- An expression as an error message names it; of a long chain the end.
local function describe(n, links)
  links = links or 0
  if links == MOST_LINKS then return "..." end
  if n.type == "name" then return n.name end
  if n.type == "get" then return describe(n.object, links + 1) .. "." .. n.name end
  if n.type == "item" then
    local key = n.key.value
    key = (type(key) == "string" or type(key) == "number") and key or "..."
    return describe(n.object, links + 1) .. "[" .. key .. "]"
  end
  return "the value"
end

local function want_defined(v, what)
  if v == undefined then fail("'%s' is undefined", what) end
  return v
end

-- ---- names --------------------------------------------------------------------------

local function global(name)
  local own = functions.globals[name]
  if own == nil then own = undefined end
  return function(c)
    local v = c.vars[name]
    if v == nil then return own end
    return v
  end
end

-- Reads a name as it is seen from a scope.
function M.reader(scope, name)
  local up, frame = 0, scope.frame
  while scope and not scope.names[name] do
    scope = scope.parent
    if scope and scope.frame ~= frame then up, frame = up + 1, scope.frame end
  end
  if not scope then return global(name) end
  local slot = scope.names[name]
  return function(_, f)
    for _ = 1, up do f = f.up end
    local v = f[slot]
    if v == nil then return undefined end
    return v
  end
end

function kinds.name(K, n)
  return M.reader(K.scope, n.name)
end

function kinds.const(_, n)
  local v = n.value
  return function() return v end
end

function kinds.captured()
  return function(c) return c.captured end
end

-- ---- lists, dicts -------------------------------------------------------------------

local function exprs(K, nodes)
  local out = {}
  for i, n in ipairs(nodes) do out[i] = expr(K, n) end
  return out
end

local function sequence(mt)
  return function(K, n)
    local items = exprs(K, n.items)
    return function(c, f)
      value.charge(c, 1 + #items)
      local out = {}
      for i = 1, #items do out[i] = items[i](c, f) end
      return setmetatable(out, mt)
    end
  end
end
kinds.list = sequence(json.array_mt)
kinds.tuple = sequence(json.tuple_mt)

function kinds.dict(K, n)
  local keys, values = exprs(K, n.keys), exprs(K, n.values)
  return function(c, f)
    value.charge(c, 1 + #keys)
    local d = json.object()
    for i = 1, #keys do json.set(d, value.key(keys[i](c, f)), values[i](c, f)) end
    return d
  end
end

-- ---- attributes, items --------------------------------------------------------------

function kinds.get(K, n)
  local object, name, what = expr(K, n.object), n.name, describe(n.object)
  local is_method = methods.is_dict_method(name)
  return function(c, f)
    local o = object(c, f)
    if getmetatable(o) == object_mt and not is_method then
      local v = o[name]
      if v == nil then return undefined end
      return v
    end
    return methods.get(want_defined(o, what), name)
  end
end

local function bound(K, n)
  if not n then return function() return nil end end
  local e = expr(K, n)
  return function(c, f)
    local v = e(c, f)
    if v == json.null then return nil end
    return value.integer(v, "a slice's bound")
  end
end

function kinds.item(K, n)
  local object, what = expr(K, n.object), describe(n.object)
  if n.key.type == "slice" then
    local first, last = bound(K, n.key.first), bound(K, n.key.last)
    local step = bound(K, n.key.step)
    return function(c, f)
      local o = want_defined(object(c, f), what)
      return methods.slice(c, o, first(c, f), last(c, f), step(c, f))
    end
  end
  local key = expr(K, n.key)
  return function(c, f)
    local o, k = object(c, f), key(c, f)
    if type(k) == "string" and getmetatable(o) == object_mt then
      local v = o[k]
      if v ~= nil then return v end
    end
    return methods.item(c, want_defined(o, what), k)
  end
end

-- ---- operators ----------------------------------------------------------------------

-- A sum with a text that is safe in HTML, where it stands, is safe too: what is not in it
-- is escaped. (In Python it is so for a safe text that comes from a variable as well.)
local function safe_sum(left, right, escape_left)
  return function(c, f)
    local a, b = left(c, f), right(c, f)
    if type(a) ~= "string" or type(b) ~= "string" then
      return operators.binary(c, "+", a, b)
    end
    if escape_left then a = filters.escape(c, a) else b = filters.escape(c, b) end
    return made(c, a .. b)
  end
end

function kinds.binary(K, n)
  local left, right, op = expr(K, n.left), expr(K, n.right), n.op
  local what_left, what_right = describe(n.left), describe(n.right)
  local adds = op == "+"
  n.safe = adds and (n.left.safe or n.right.safe)
  if n.safe and not (n.left.safe and n.right.safe) then
    return safe_sum(left, right, n.right.safe)
  end
  return function(c, f)
    local a, b = left(c, f), right(c, f)
    if adds and type(a) == "string" and type(b) == "string" then
      return made(c, a .. b)
    end
    want_defined(a, what_left)
    return operators.binary(c, op, a, want_defined(b, what_right))
  end
end

function kinds.neg(K, n)
  local object, what = expr(K, n.object), describe(n.object)
  return function(c, f) return operators.negative(want_defined(object(c, f), what)) end
end

function kinds.pos(K, n)
  local object = expr(K, n.object)
  return function(c, f)
    local v = object(c, f)
    if not value.number(v) then fail("a %s has no sign", value.kind(v)) end
    return v
  end
end

function kinds.concat(K, n)
  local parts = exprs(K, n.parts)
  return function(c, f)
    local out = {}
    for i = 1, #parts do out[i] = value.text(c, parts[i](c, f)) end
    return made(c, table.concat(out))
  end
end

local compare = {
  ["=="] = value.eq,
  ["!="] = function(c, a, b) return not value.eq(c, a, b) end,
  ["<"] = function(c, a, b) return value.less(c, a, b, "<") end,
  [">"] = function(c, a, b) return value.less(c, b, a, ">") end,
  ["<="] = function(c, a, b) return not value.less(c, b, a, "<=") end,
  [">="] = function(c, a, b) return not value.less(c, a, b, ">=") end,
  ["in"] = function(c, a, b) return value.contains(c, b, a) end,
  ["not in"] = function(c, a, b) return not value.contains(c, b, a) end,
}

function kinds.compare(K, n)
  local first, operands, ops = expr(K, n.first), exprs(K, n.operands), {}
  for i, op in ipairs(n.ops) do ops[i] = compare[op] end
  if #ops == 1 then
    local op, second = ops[1], operands[1]
    return function(c, f) return op(c, first(c, f), second(c, f)) end
  end
  return function(c, f)
    local a = first(c, f)
    for i = 1, #ops do
      local b = operands[i](c, f)
      if not ops[i](c, a, b) then return false end
      a = b
    end
    return true
  end
end

kinds["not"] = function(K, n)
  local object = expr(K, n.object)
  return function(c, f) return not truth(object(c, f)) end
end

kinds["and"] = function(K, n)
  local left, right = expr(K, n.left), expr(K, n.right)
  return function(c, f)
    local v = left(c, f)
    if truth(v) then return right(c, f) end
    return v
  end
end

kinds["or"] = function(K, n)
  local left, right = expr(K, n.left), expr(K, n.right)
  return function(c, f)
    local v = left(c, f)
    if truth(v) then return v end
    return right(c, f)
  end
end

-- Runs f(K, ...) as what stands inside a condition, or (soft is false) outside of all.
function M.within(K, soft, f, ...)
  local scope, was = K.scope, K.scope.soft
  scope.soft = soft
  local result = f(K, ...)
  scope.soft = was
  return result
end
local within = M.within

function kinds.cond(K, n)
  local when, yes = within(K, true, expr, n.when), within(K, true, expr, n.value)
  local no = n.otherwise and within(K, true, expr, n.otherwise)
    or function() return undefined end
  return function(c, f)
    if truth(when(c, f)) then return yes(c, f) end
    return no(c, f)
  end
end

-- ---- calls --------------------------------------------------------------------------

local function add_star(c, args, list)
  for _, item in ipairs(value.items(c, list)) do
    value.charge(c, 1)
    args.n = args.n + 1
    args[args.n] = item
  end
end

local function add_named(named, name, v)
  if named[name] == nil then named[#named + 1] = name end
  named[name] = v
end

local function add_dstar(named, d)
  if value.kind(d) ~= "dict" then fail "'**' wants a dict" end
  for _, key, v in json.pairs(d) do
    if type(key) ~= "string" then fail "'**' wants names" end
    add_named(named, key, v)
  end
end

-- Arguments as the functions take them: args, and nil or named: values by name, and the
-- names in order.
function M.arguments(K, a)
  if not a then return function() return no_args end end
  local fixed, named_exprs = exprs(K, a), exprs(K, a.named)
  local star, dstar = a.star and expr(K, a.star), a.dstar and expr(K, a.dstar)
  local names = a.names
  if #fixed + #names == 0 and not star and not dstar then
    return function() return no_args end
  end
  return function(c, f)
    local args = { n = #fixed }
    for i = 1, #fixed do args[i] = fixed[i](c, f) end
    if star then add_star(c, args, star(c, f)) end
    if #names == 0 and not dstar then return args end
    local named = {}
    for i = 1, #names do add_named(named, names[i], named_exprs[i](c, f)) end
    if dstar then add_dstar(named, dstar(c, f)) end
    return args, named
  end
end

function kinds.call(K, n)
  local args, callee = M.arguments(K, n.args), n.callee
  if callee.type == "get" then
    local object, name = expr(K, callee.object), callee.name
    local what = describe(callee.object)
    return function(c, f)
      local o = want_defined(object(c, f), what)
      local list, named = args(c, f)
      return methods.call(c, o, name, list, named)
    end
  end
  local called, what = expr(K, callee), describe(callee)
  return function(c, f)
    local fn = called(c, f)
    local list, named = args(c, f)
    return value.call(c, fn, list, named, what)
  end
end

local makes_safe = { safe = true, escape = true, e = true }

-- What is unknown is an error at once but, as in Jinja, inside a condition only when it
-- is reached: a template may have branches for an engine with filters of its own.
local function applied(table_of, what)
  return function(K, n)
    local f_or_t = table_of[n.name]
    if not f_or_t and not K.scope.soft then
      lex.fail(n.line, "no %s '%s'", what, n.name)
    end
    local object, args = expr(K, n.object), M.arguments(K, n.args)
    n.safe = what == "filter" and makes_safe[n.name]
    if not f_or_t then
      return function() fail("no %s '%s'", what, n.name) end
    end
    return function(c, f)
      local o = object(c, f)
      local list, named = args(c, f)
      return filters.apply(c, f_or_t, o, list, named)
    end
  end
end
kinds.filter = applied(list_filters, "filter")
kinds.test = applied(filters.tests, "test")

return M
