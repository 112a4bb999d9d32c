-- SPDX-License-Identifier: Apache-2.0
-- jinja/parse.lua - the statements of a template, as a tree.
--
-- A body is a list of nodes { type, line, ... }. {% generation %} is read as its body: it
-- marks text for training. What chat templates have no use for (extends, include,
-- import, block, recursive loops) is refused by name.

local expr = require "perilune.jinja.expr"
local lex = require "perilune.jinja.lex"
local peek, is, skip_if, expect, fail, node =
  expr.peek, expr.is, expr.skip_if, expr.expect, expr.fail, expr.node

local M = {}

local body

local function end_tag(P)
  expect(P, "end", "block")
end

-- Is the next tag one of the names given? Where is its name.
local function at_tag(P, names)
  local token = P.tokens[P.at + 1]
  return is(P, "begin", "block") and token.kind == "name" and names[token.value]
end

-- Reads up to one of the tags named, and its name: { body }, name.
local function until_tag(P, names)
  local list = body(P, names)
  if not at_tag(P, names) then
    local wanted = {}
    for name in pairs(names) do wanted[#wanted + 1] = "'" .. name .. "'" end
    table.sort(wanted)
    fail(P, table.concat(wanted, " or "))
  end
  local name = P.tokens[P.at + 1].value
  P.at = P.at + 2
  return list, name
end

local statements = {}

statements["if"] = function(P)
  local result = node(P, "if", { branches = {} })
  local name
  repeat
    local branch = { when = expr.expression(P) }
    end_tag(P)
    branch.body, name = until_tag(P, { ["elif"] = true, ["else"] = true, endif = true })
    result.branches[#result.branches + 1] = branch
  until name ~= "elif"
  if name == "else" then
    end_tag(P)
    result.otherwise = until_tag(P, { endif = true })
  end
  end_tag(P)
  return result
end

-- What is assigned to: a name, a.b, or several names.
local function target_item(P)
  if skip_if(P, "op", "(") then
    local inner = expr.tuple(P, target_item, true)
    expect(P, "op", ")")
    return inner
  end
  local name = expect(P, "name").value
  if name == "loop" then lex.fail(peek(P).line, "'loop' cannot be assigned") end
  if skip_if(P, "op", ".") then
    return node(P, "attribute", { name = name, attribute = expect(P, "name").value })
  end
  return node(P, "name", { name = name })
end

local function target(P)
  local result = expr.tuple(P, target_item)
  for _, item in ipairs(result.items or {}) do
    if item.type == "attribute" then
      lex.fail(item.line, "only one attribute can be set")
    end
  end
  return result
end

statements["for"] = function(P)
  local result = node(P, "for", { target = target(P) })
  expect(P, "name", "in")
  result.list = expr.tuple(P, expr.disjunction)
  if skip_if(P, "name", "if") then result.filter = expr.expression(P) end
  if is(P, "name", "recursive") then
    lex.fail(peek(P).line, "recursive loops are not supported")
  end
  end_tag(P)
  local name
  P.loops = P.loops + 1
  result.body, name = until_tag(P, { ["else"] = true, endfor = true })
  P.loops = P.loops - 1
  if name == "else" then
    end_tag(P)
    result.otherwise = until_tag(P, { endfor = true })
  end
  end_tag(P)
  return result
end

local function jump(name)
  statements[name] = function(P)
    if P.loops == 0 then lex.fail(peek(P).line, "'%s' outside a loop", name) end
    end_tag(P)
    return node(P, name, {})
  end
end
jump "break"
jump "continue"

-- A body that is rendered apart: a break in it cannot leave it.
local function apart(P, names)
  local loops = P.loops
  P.loops = 0
  local list = until_tag(P, names)
  P.loops = loops
  end_tag(P)
  return list
end

statements.set = function(P)
  local into = target(P)
  if skip_if(P, "op", "=") then
    local value = expr.tuple(P, expr.expression)
    end_tag(P)
    return node(P, "set", { target = into, value = value })
  end
  local result = node(P, "capture", { target = into, value = { type = "captured" } })
  while skip_if(P, "op", "|") do result.value = expr.filter(P, result.value) end
  end_tag(P)
  result.body = apart(P, { endset = true })
  return result
end

local function parameters(P)
  local list = {}
  expect(P, "op", "(")
  while not is(P, "op", ")") do
    if #list > 0 then
      expect(P, "op", ",")
      if is(P, "op", ")") then break end
    end
    local parameter = { name = expect(P, "name").value }
    if skip_if(P, "op", "=") then
      parameter.default = expr.expression(P)
    elseif #list > 0 and list[#list].default then
      fail(P, "a default")
    end
    list[#list + 1] = parameter
  end
  expect(P, "op", ")")
  return list
end

statements.macro = function(P)
  local result = node(P, "macro", { name = expect(P, "name").value })
  result.parameters = parameters(P)
  end_tag(P)
  result.body = apart(P, { endmacro = true })
  return result
end

statements.call = function(P)
  local list = is(P, "op", "(") and parameters(P) or {}
  local result = node(P, "call_block", { call = expr.expression(P) })
  if result.call.type ~= "call" then fail(P, "a call") end
  end_tag(P)
  result.caller = node(P, "macro", { name = "caller", parameters = list })
  result.caller.body = apart(P, { endcall = true })
  return result
end

statements.filter = function(P)
  local value = expr.filter(P, { type = "captured" })
  while skip_if(P, "op", "|") do value = expr.filter(P, value) end
  end_tag(P)
  return node(P, "filter_block", { value = value, body = apart(P, { endfilter = true }) })
end

statements.with = function(P)
  local result = node(P, "with", { targets = {}, values = {} })
  while not is(P, "end") do
    if #result.targets > 0 then expect(P, "op", ",") end
    result.targets[#result.targets + 1] = target_item(P)
    expect(P, "op", "=")
    result.values[#result.values + 1] = expr.expression(P)
  end
  end_tag(P)
  result.body = until_tag(P, { endwith = true })
  end_tag(P)
  return result
end

statements.generation = function(P)
  end_tag(P)
  local result = node(P, "with", { targets = {}, values = {} })
  result.body = apart(P, { endgeneration = true })
  return result
end

statements["do"] = function(P)
  lex.fail(peek(P).line, "'do' is not supported")
end

local function statement(P)
  local token = expect(P, "name")
  local parse = statements[token.value]
  if not parse then lex.fail(token.line, "unknown tag '%s'", token.value) end
  local result = expr.nested(P, parse)
  result.line = token.line
  return result
end

-- Nodes up to the end, or up to a tag of `names`.
function body(P, names)
  local list = {}
  while not is(P, "eof") and not (names and at_tag(P, names)) do
    local token = peek(P)
    if skip_if(P, "data") then
      list[#list + 1] = { type = "data", line = token.line, text = token.value }
    elseif skip_if(P, "begin", "variable") then
      list[#list + 1] = { type = "print", line = token.line,
        value = expr.tuple(P, expr.expression) }
      expect(P, "end", "variable")
    else
      expect(P, "begin", "block")
      list[#list + 1] = statement(P)
    end
  end
  return list
end

-- The tree of a template; fails by error { line, message }.
function M.parse(source)
  local P = { tokens = lex.lex(source), at = 1, depth = 0, loops = 0 }
  local tree = body(P)
  if not is(P, "eof") then fail(P, "the end of the template") end
  return tree
end

return M
