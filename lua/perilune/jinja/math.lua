-- SPDX-License-Identifier: Apache-2.0
-- jinja/math.lua - operators: Python's; an integer from 2^53 on is an error.

local json = require "perilune.json"
local strings = require "perilune.jinja.str"
local value = require "perilune.jinja.value"
local charge, fail, kind, made, number =
  value.charge, value.fail, value.kind, value.made, value.number
local floor = math.floor

local M = {}

-- A result that is an integer, if whole is true; it must be exact.
local function result(x, whole)
  if not whole then return json.real(x) end
  if x ~= floor(x) or x >= 2 ^ 53 or x <= -2 ^ 53 then fail "an integer beyond 2^53" end
  return x
end

local function divisor(y)
  if y == 0 then fail "division by zero" end
  return y
end

local numeric = {
  ["+"] = function(x, y) return x + y end,
  ["-"] = function(x, y) return x - y end,
  ["*"] = function(x, y) return x * y end,
  ["/"] = function(x, y) return x / divisor(y) end,
  ["//"] = function(x, y) return floor(x / divisor(y)) end,
  ["%"] = function(x, y) return x - floor(x / divisor(y)) * y end,
  ["**"] = function(x, y)
    if x == 0 and y < 0 or x < 0 and y ~= floor(y) then fail "no such power" end
    return x ^ y
  end,
}

local function join_lists(c, a, b)
  charge(c, #a + #b)
  local out = {}
  for i = 1, #a do out[i] = a[i] end
  for i = 1, #b do out[#a + i] = b[i] end
  return setmetatable(out, getmetatable(a))
end

local function repeat_value(c, v, n)
  n = math.max(n, 0)
  if type(v) == "string" then
    if n * #v > c.max_bytes then fail("a string longer than %d bytes", c.max_bytes) end
    return made(c, v:rep(n))
  end
  charge(c, n * #v)
  local out = {}
  for _ = 1, n do
    for i = 1, #v do out[#out + 1] = v[i] end
  end
  return setmetatable(out, getmetatable(v))
end

local repeatable = { str = true, list = true, tuple = true }

function M.binary(c, op, a, b)
  local k, l = kind(a), kind(b)
  local x, y = number(a), number(b)
  if x and y then
    local whole = k ~= "float" and l ~= "float" and op ~= "/"
    if whole and (json.is_long(a) or json.is_long(b)) then
      fail "an integer beyond 2^53"
    end
    return result(numeric[op](x, y), whole and not (op == "**" and y < 0))
  end
  if op == "+" and k == l then
    if k == "str" then return made(c, a .. b) end
    if k == "list" or k == "tuple" then return join_lists(c, a, b) end
  elseif op == "*" and repeatable[k] and (l == "int" or l == "bool") then
    return repeat_value(c, a, y)
  elseif op == "*" and repeatable[l] and (k == "int" or k == "bool") then
    return repeat_value(c, b, x)
  elseif op == "%" and k == "str" then
    return strings.format(c, a, l == "tuple" and b or { b })
  end
  return fail("'%s' is not possible between %s and %s", op, k, l)
end

function M.negative(v)
  local x = number(v)
  if not x then fail("a %s has no sign", kind(v)) end
  if kind(v) == "float" then return json.real(-x) end
  return result(-x, true)
end

return M
