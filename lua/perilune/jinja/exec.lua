-- SPDX-License-Identifier: Apache-2.0
-- jinja/exec.lua - statements as closures: s(c, f) returns nothing, or how to leave a
-- turn of a loop: "break" or "continue".
--
-- Scopes are Jinja's: a loop, a macro, a block set and `with` have their own, `if` has
-- none. What a scope sets starts as what it is outside, and is gone when the scope ends:
-- for a loop, at the end of each turn.

local eval = require "perilune.jinja.eval"
local json = require "perilune.json"
local value = require "perilune.jinja.value"
local expr, reader, within = eval.expr, eval.reader, eval.within
local fail, charge, truth = value.fail, value.charge, value.truth

local M = {}

local kinds = {}
local max_macros = 100

local function emit(c, s)
  c.bytes = c.bytes + #s
  if c.bytes > c.max_bytes then fail("more than %d bytes of output", c.max_bytes) end
  local n = c.n + 1
  c.n, c.out[n] = n, s
end

-- The statements of a body, in turn.
local function block(K, nodes)
  local list = {}
  for i, n in ipairs(nodes) do list[i] = kinds[n.type](K, n) end
  return function(c, f)
    for i = 1, #list do
      local jump = list[i](c, f)
      if jump then return jump end
    end
  end
end

-- What a body prints, as a string.
local function capture(c, f, run)
  local out, n = c.out, c.n
  c.out, c.n = {}, 0
  run(c, f)
  local s = value.made(c, table.concat(c.out))
  c.out, c.n = out, n
  return s
end

-- ---- scopes -------------------------------------------------------------------------

local function add_targets(target, names)
  if target.type == "name" then
    names[#names + 1] = target.name
  elseif target.type == "tuple" then
    for _, item in ipairs(target.items) do add_targets(item, names) end
  end
end

-- The names that a body sets in its own scope.
local function assigned(nodes, names)
  for _, n in ipairs(nodes) do
    if n.type == "set" or n.type == "capture" then
      add_targets(n.target, names)
    elseif n.type == "macro" then
      names[#names + 1] = n.name
    elseif n.type == "if" then
      for _, branch in ipairs(n.branches) do assigned(branch.body, names) end
      if n.otherwise then assigned(n.otherwise, names) end
    end
  end
  return names
end

-- Opens a scope with the names `own` and those that `nodes` set. Returns what must run
-- on entry: it gives the latter the values that they have outside.
local function enter(K, nodes, own, new_frame)
  local outer = K.scope
  local frame = new_frame and { slots = 0 } or outer.frame
  local scope = { names = {}, frame = frame, parent = outer }
  local function declare(name)
    if scope.names[name] then return nil end
    frame.slots = frame.slots + 1
    scope.names[name] = frame.slots
    return frame.slots
  end
  for _, name in ipairs(own) do declare(name) end
  local slots, readers = {}, {}
  for _, name in ipairs(assigned(nodes, {})) do
    local slot = declare(name)
    if slot then
      slots[#slots + 1] = slot
      -- In a new frame the values outside are a frame further up: read through `scope`.
      readers[#readers + 1] = reader({ names = {}, frame = frame, parent = outer }, name)
    end
  end
  K.scope = scope
  return function(c, f)
    for i = 1, #slots do f[slots[i]] = readers[i](c, f) end
  end
end

local function leave(K)
  K.scope = K.scope.parent
end

-- ---- assigning ----------------------------------------------------------------------

local function set_attribute(K, target)
  local object, attribute = reader(K.scope, target.name), target.attribute
  return function(c, f, v)
    local o = object(c, f)
    if value.kind(o) ~= "namespace" then
      fail("'%s' is not a namespace: '%s' cannot be set", target.name, attribute)
    end
    json.set(o.values, attribute, v)
  end
end

-- How a value is stored: store(c, f, v).
local function storer(K, target)
  if target.type == "attribute" then return set_attribute(K, target) end
  if target.type == "name" then
    local slot = K.scope.names[target.name]
    return function(_, f, v) f[slot] = v end
  end
  local stores = {}
  for i, item in ipairs(target.items) do stores[i] = storer(K, item) end
  return function(c, f, v)
    local items = value.items(c, v)
    if #items ~= #stores then fail("%d values for %d names", #items, #stores) end
    for i = 1, #stores do stores[i](c, f, items[i]) end
  end
end

function kinds.set(K, n)
  local v, store, line = expr(K, n.value), storer(K, n.target), n.line
  return function(c, f)
    c.line = line
    store(c, f, v(c, f))
  end
end

function kinds.capture(K, n)
  local store = storer(K, n.target)
  local v = within(K, false, expr, n.value)
  local start = enter(K, n.body, {})
  local run = block(K, n.body)
  leave(K)
  return function(c, f)
    start(c, f)
    c.captured = capture(c, f, run)
    store(c, f, v(c, f))
  end
end

function kinds.filter_block(K, n)
  local v = within(K, false, expr, n.value)
  local start = enter(K, n.body, {})
  local run = block(K, n.body)
  leave(K)
  return function(c, f)
    start(c, f)
    c.captured = capture(c, f, run)
    emit(c, value.text(c, v(c, f)))
  end
end

kinds["with"] = function(K, n)
  local values, names = {}, {}
  for i, v in ipairs(n.values) do values[i] = expr(K, v) end
  for _, target in ipairs(n.targets) do add_targets(target, names) end
  local start = enter(K, n.body, names)
  local stores = {}
  for i, target in ipairs(n.targets) do stores[i] = storer(K, target) end
  local run = block(K, n.body)
  leave(K)
  return function(c, f)
    c.line = n.line
    local held = {}
    for i = 1, #values do held[i] = values[i](c, f) end
    start(c, f)
    for i = 1, #stores do stores[i](c, f, held[i]) end
    return run(c, f)
  end
end

-- ---- printing, choosing -------------------------------------------------------------

function kinds.data(_, n)
  local text = n.text
  return function(c) emit(c, text) end
end

function kinds.print(K, n)
  local v, line = expr(K, n.value), n.line
  return function(c, f)
    c.line = line
    emit(c, value.text(c, v(c, f)))
  end
end

kinds["if"] = function(K, n)
  local whens, bodies, line = {}, {}, n.line
  for i, branch in ipairs(n.branches) do
    whens[i] = within(K, true, expr, branch.when)
    bodies[i] = within(K, true, block, branch.body)
  end
  local otherwise = n.otherwise and within(K, true, block, n.otherwise)
  return function(c, f)
    c.line = line
    for i = 1, #whens do
      if truth(whens[i](c, f)) then return bodies[i](c, f) end
    end
    if otherwise then return otherwise(c, f) end
  end
end

kinds["break"] = function()
  return function() return "break" end
end

kinds["continue"] = function()
  return function() return "continue" end
end

-- ---- loops --------------------------------------------------------------------------

-- The items that pass the loop's `if`.
local function filtered(c, f, items, store, passes)
  local out = {}
  for i = 1, #items do
    charge(c, 1)
    store(c, f, items[i])
    if truth(passes(c, f)) then out[#out + 1] = items[i] end
  end
  return out
end

local function loop_else(K, n)
  if not n.otherwise then return function() end end
  local start = enter(K, n.otherwise, {})
  local run = block(K, n.otherwise)
  leave(K)
  return function(c, f)
    start(c, f)
    return run(c, f)
  end
end

-- What a for loop has in its scope.
local function loop_parts(K, n)
  local names = { "loop" }
  add_targets(n.target, names)
  local start = enter(K, n.body, names)
  local store = storer(K, n.target)
  local passes = n.filter and expr(K, n.filter)
  local slot = K.scope.names.loop
  local run = block(K, n.body)
  leave(K)
  return start, store, passes, run, slot
end

kinds["for"] = function(K, n)
  local list, otherwise, line = expr(K, n.list), loop_else(K, n), n.line
  local start, store, passes, run, slot = loop_parts(K, n)
  return function(c, f)
    c.line = line
    local items = value.items(c, list(c, f))
    if passes then
      f[slot] = nil
      items = filtered(c, f, items, store, passes)
    end
    if #items == 0 then return otherwise(c, f) end
    local loop = setmetatable({ items = items, n = #items }, value.loop_mt)
    for i = 1, #items do
      charge(c, 1)
      loop.at, f[slot] = i, loop
      start(c, f)
      store(c, f, items[i])
      if run(c, f) == "break" then break end
    end
  end
end

-- ---- macros -------------------------------------------------------------------------

-- Puts a call's arguments into a new frame.
local function fill(c, f, m, args, named)
  if args.n > #m.slots then
    fail("%s takes at most %d arguments, not %d", m.name, #m.slots, args.n)
  end
  for i = 1, args.n do f[m.slots[i]] = args[i] end
  for _, name in ipairs(named or {}) do
    local slot = m.by_name[name]
    if not slot then fail("%s has no argument '%s'", m.name, name) end
    f[slot] = named[name]
  end
  for i = 1, #m.slots do
    if f[m.slots[i]] == nil and m.defaults[i] then f[m.slots[i]] = m.defaults[i](c, f) end
  end
end

-- A macro: function(c, f) that makes the function value for the frame it stands in.
local function macro(K, n)
  local names = {}
  for i, parameter in ipairs(n.parameters) do names[i] = parameter.name end
  names[#names + 1] = "caller"
  local start = enter(K, n.body, names, true)
  local m = { name = n.name, slots = {}, defaults = {}, by_name = K.scope.names }
  for i, parameter in ipairs(n.parameters) do
    m.slots[i] = K.scope.names[parameter.name]
    m.defaults[i] = parameter.default and expr(K, parameter.default) or false
  end
  m.by_name = { caller = K.scope.names.caller }
  for i, parameter in ipairs(n.parameters) do m.by_name[parameter.name] = m.slots[i] end
  local run = block(K, n.body)
  leave(K)
  return function(_, f)
    return value.func(n.name, function(c, args, named)
      if c.depth >= max_macros then fail("macros nested deeper than %d", max_macros) end
      c.depth = c.depth + 1
      local frame = { up = f }
      fill(c, frame, m, args, named)
      start(c, frame)
      local s = capture(c, frame, run)
      c.depth = c.depth - 1
      return s
    end)
  end
end

function kinds.macro(K, n)
  local slot, make = K.scope.names[n.name], macro(K, n)
  return function(c, f) f[slot] = make(c, f) end
end

function kinds.call_block(K, n)
  n.call.args.names[#n.call.args.names + 1] = "caller"
  n.call.args.named[#n.call.args.names] = { type = "captured" }
  local caller, call, line = macro(K, n.caller), expr(K, n.call), n.line
  return function(c, f)
    c.line = line
    c.captured = caller(c, f)
    emit(c, value.text(c, call(c, f)))
  end
end

-- ---- the whole ----------------------------------------------------------------------

-- The template as one function: run(c).
function M.compile(tree)
  local K = { scope = { names = {}, frame = { slots = 0 } } }
  local start = enter(K, tree, {})
  local run = block(K, tree)
  return function(c)
    local f = {}
    start(c, f)
    run(c, f)
  end
end

return M
