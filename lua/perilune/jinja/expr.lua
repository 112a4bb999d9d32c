-- SPDX-License-Identifier: Apache-2.0
-- jinja/expr.lua - the expressions of a template, as a tree.
--
-- A node is { type, line, ... }; what else it has stands where it is made. `P` is the
-- parser: the tokens and where it is in them. Precedence, loosest first: if-else, or,
-- and, not, comparisons, + -, ~, * / // %, **, signs, then . [] (), then | and is.

local json = require "perilune.json"
local lex = require "perilune.jinja.lex"

local M = {}

local max_depth = 100
local expression

function M.peek(P)
  return P.tokens[P.at]
end
local peek = M.peek

function M.is(P, kind, value)
  local token = P.tokens[P.at]
  return token.kind == kind and (value == nil or token.value == value)
end
local is = M.is

function M.skip_if(P, kind, value)
  if not is(P, kind, value) then return false end
  P.at = P.at + 1
  return true
end
local skip_if = M.skip_if

function M.fail(P, wanted)
  local token = peek(P)
  local found = token.kind == "eof" and "the end of the template"
    or token.kind == "end" and "the end of the tag" or "'" .. tostring(token.value) .. "'"
  lex.fail(token.line, "unexpected %s, wanted %s", found, wanted)
end
local fail = M.fail

function M.expect(P, kind, value)
  local token = peek(P)
  if not is(P, kind, value) then
    fail(P, value and "'" .. value .. "'" or "a " .. kind)
  end
  P.at = P.at + 1
  return token
end
local expect = M.expect

local function node(P, kind, fields)
  fields.type, fields.line = kind, peek(P).line
  return fields
end
M.node = node

-- Runs a rule one level deeper: what nests too deep is refused here.
function M.nested(P, rule, ...)
  P.depth = P.depth + 1
  if P.depth > max_depth then
    lex.fail(peek(P).line, "nested deeper than %d levels", max_depth)
  end
  local result = rule(P, ...)
  P.depth = P.depth - 1
  return result
end
local nested = M.nested

local constants = { ["true"] = true, True = true, ["false"] = false, False = false,
  none = json.null, None = json.null }

local function items(P, close)
  local out = {}
  while not is(P, "op", close) do
    if #out > 0 then
      expect(P, "op", ",")
      if is(P, "op", close) then break end
    end
    out[#out + 1] = expression(P)
  end
  expect(P, "op", close)
  return out
end

local function dict(P)
  local keys, values = {}, {}
  while not is(P, "op", "}") do
    if #keys > 0 then
      expect(P, "op", ",")
      if is(P, "op", "}") then break end
    end
    keys[#keys + 1] = expression(P)
    expect(P, "op", ":")
    values[#values + 1] = expression(P)
  end
  expect(P, "op", "}")
  return node(P, "dict", { keys = keys, values = values })
end

-- One expression, or several with commas: a tuple. `item` reads each of them.
function M.tuple(P, item, in_parens)
  local parts, comma = {}, false
  while not (is(P, "end") or is(P, "op", ")") or is(P, "op", "=")
    or is(P, "name", "in")) do
    parts[#parts + 1] = item(P)
    comma = skip_if(P, "op", ",")
    if not comma then break end
  end
  if #parts == 1 and not comma then return parts[1] end
  if #parts == 0 and not in_parens then fail(P, "an expression") end
  return node(P, "tuple", { items = parts })
end

local function primary(P)
  local token = peek(P)
  P.at = P.at + 1
  if token.kind == "name" then
    local constant = constants[token.value]
    if constant ~= nil then return node(P, "const", { value = constant }) end
    return node(P, "name", { name = token.value })
  elseif token.kind == "string" then
    local value = token.value
    while is(P, "string") do
      value = value .. peek(P).value
      P.at = P.at + 1
    end
    return node(P, "const", { value = value })
  elseif token.kind == "integer" then
    return node(P, "const", { value = token.value })
  elseif token.kind == "float" then
    return node(P, "const", { value = json.real(token.value) })
  elseif token.kind == "op" and token.value == "(" then
    local inner = M.tuple(P, expression, true)
    expect(P, "op", ")")
    return inner
  elseif token.kind == "op" and token.value == "[" then
    return node(P, "list", { items = items(P, "]") })
  elseif token.kind == "op" and token.value == "{" then
    return dict(P)
  end
  P.at = P.at - 1
  return fail(P, "an expression")
end

-- Within [...]: an index or a slice.
local function subscript(P)
  local bounds, n = {}, 0
  if not is(P, "op", ":") then
    bounds[1] = expression(P)
    if not is(P, "op", ":") then return bounds[1] end
  end
  while n < 2 and skip_if(P, "op", ":") do
    n = n + 1
    if not is(P, "op", ":") and not is(P, "op", "]") then
      bounds[n + 1] = expression(P)
    end
  end
  return node(P, "slice", { first = bounds[1], last = bounds[2], step = bounds[3] })
end

local function argument(P, args)
  local after = P.tokens[P.at + 1]
  if skip_if(P, "op", "**") then
    args.dstar = expression(P)
  elseif skip_if(P, "op", "*") then
    args.star = expression(P)
  elseif is(P, "name") and after.kind == "op" and after.value == "=" then
    args.names[#args.names + 1] = peek(P).value
    P.at = P.at + 2
    args.named[#args.names] = expression(P)
  elseif #args.names > 0 or args.star or args.dstar then
    fail(P, "a named argument")
  else
    args[#args + 1] = expression(P)
  end
end

-- (a, b, c=d, *e, **f): a list of nodes with `names` and `named` beside it.
function M.arguments(P)
  local args = { names = {}, named = {} }
  expect(P, "op", "(")
  while not is(P, "op", ")") do
    if #args > 0 or #args.names > 0 or args.star or args.dstar then
      expect(P, "op", ",")
      if is(P, "op", ")") then break end
    end
    argument(P, args)
  end
  expect(P, "op", ")")
  return args
end
local arguments = M.arguments

local function postfix(P, left)
  while true do
    if skip_if(P, "op", ".") then
      if is(P, "name") then
        left = node(P, "get", { object = left, name = peek(P).value })
      elseif is(P, "integer") then
        left = node(P, "item", { object = left,
          key = node(P, "const", { value = peek(P).value }) })
      else
        fail(P, "a name")
      end
      P.at = P.at + 1
    elseif skip_if(P, "op", "[") then
      left = node(P, "item", { object = left, key = subscript(P) })
      expect(P, "op", "]")
    elseif is(P, "op", "(") then
      left = node(P, "call", { callee = left, args = arguments(P) })
    else
      return left
    end
  end
end

local function test(P, left)
  local negated = skip_if(P, "name", "not")
  local name, args = expect(P, "name").value, nil
  local token = peek(P)
  if token.kind == "op" and token.value == "(" then
    args = arguments(P)
  elseif token.kind == "string" or token.kind == "integer" or token.kind == "float"
    or token.kind == "op" and (token.value == "[" or token.value == "{")
    or token.kind == "name" and token.value ~= "else" and token.value ~= "or"
      and token.value ~= "and" and token.value ~= "if" and token.value ~= "is"
  then
    args = { postfix(P, primary(P)), names = {}, named = {} }
  end
  local result = node(P, "test", { object = left, name = name, args = args })
  if negated then result = node(P, "not", { object = result }) end
  return result
end

-- |name(args) ...; without an object in a filter block.
function M.filter(P, left)
  local name = expect(P, "name").value
  local args = is(P, "op", "(") and arguments(P) or nil
  return node(P, "filter", { object = left, name = name, args = args })
end

local function filters(P, left)
  while true do
    if skip_if(P, "op", "|") then
      left = M.filter(P, left)
    elseif skip_if(P, "name", "is") then
      left = test(P, left)
    elseif is(P, "op", "(") then
      left = node(P, "call", { callee = left, args = arguments(P) })
    else
      return left
    end
  end
end

local function unary(P, bare)
  local left
  if skip_if(P, "op", "-") then
    left = node(P, "neg", { object = nested(P, unary, true) })
  elseif skip_if(P, "op", "+") then
    left = node(P, "pos", { object = nested(P, unary, true) })
  else
    left = primary(P)
  end
  left = postfix(P, left)
  return bare and left or filters(P, left)
end

-- A rule for operators of one rank, all from the left.
local function binary(operand, ops)
  return function(P)
    local left = operand(P)
    while peek(P).kind == "op" and ops[peek(P).value] do
      local op = peek(P).value
      P.at = P.at + 1
      left = node(P, "binary", { op = op, left = left, right = operand(P) })
    end
    return left
  end
end

local power = binary(unary, { ["**"] = true })
local product = binary(power, { ["*"] = true, ["/"] = true, ["//"] = true, ["%"] = true })

local function concat(P)
  local parts = { product(P) }
  while skip_if(P, "op", "~") do parts[#parts + 1] = product(P) end
  return #parts == 1 and parts[1] or node(P, "concat", { parts = parts })
end

local sum = binary(concat, { ["+"] = true, ["-"] = true })
local comparisons = { ["=="] = true, ["!="] = true, ["<"] = true, ["<="] = true,
  [">"] = true, [">="] = true }

local function compare_op(P)
  local token = peek(P)
  if token.kind == "op" and comparisons[token.value] then
    P.at = P.at + 1
    return token.value
  elseif skip_if(P, "name", "in") then
    return "in"
  elseif is(P, "name", "not") and P.tokens[P.at + 1].value == "in"
    and P.tokens[P.at + 1].kind == "name"
  then
    P.at = P.at + 2
    return "not in"
  end
end

local function compare(P)
  local first, ops, operands = sum(P), {}, {}
  while true do
    local op = compare_op(P)
    if not op then break end
    ops[#ops + 1], operands[#operands + 1] = op, sum(P)
  end
  if #ops == 0 then return first end
  return node(P, "compare", { first = first, ops = ops, operands = operands })
end

local function negation(P)
  if skip_if(P, "name", "not") then
    return node(P, "not", { object = nested(P, negation) })
  end
  return compare(P)
end

local function conjunction(P)
  local left = negation(P)
  while skip_if(P, "name", "and") do
    left = node(P, "and", { left = left, right = negation(P) })
  end
  return left
end

local function disjunction(P)
  local left = conjunction(P)
  while skip_if(P, "name", "or") do
    left = node(P, "or", { left = left, right = conjunction(P) })
  end
  return left
end
M.disjunction = disjunction

local function conditional(P)
  local value = disjunction(P)
  while skip_if(P, "name", "if") do
    local when, otherwise = disjunction(P), nil
    if skip_if(P, "name", "else") then otherwise = nested(P, conditional) end
    value = node(P, "cond", { when = when, value = value, otherwise = otherwise })
  end
  return value
end

function expression(P)
  return nested(P, conditional)
end
M.expression = expression
M.primary, M.postfix = primary, postfix

return M
