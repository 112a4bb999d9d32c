-- SPDX-License-Identifier: Apache-2.0
-- jinja/content.lua - in which form a template wants the contents of messages.
--
--   "string"   it prints them
--   "parts"    it knows them as lists of parts only
--   "sent"     it takes both: it asks whether a content is a string, and walks one that
--              is not
--
-- Found from the tree, as vLLM does: which names may hold the messages, one of them, its
-- content, or a part of that, by what is assigned to them, whatever their scope. Each
-- assignment is an edge from the name that is read to the one that is set, with a map
-- from what the first may hold to what the second then does; so is each use that tells
-- the form. All that is reachable from `messages` is then visited once.

local M = {}

local ITEM = { messages = "message", content = "part" }
local SAME = { messages = "messages", message = "message", content = "content",
  part = "part" }
-- What the uses tell.
local WALKS, READS, ASKS = { content = "walks" }, { part = "reads" }, { content = "asks" }

local function of_item(map)
  return { messages = map[ITEM.messages], content = map[ITEM.content] }
end

local function key_of(n)
  return n.type == "get" and n.name or n.type == "item" and n.key.value or nil
end

local resolve

-- n.object's item or its content, as n takes it.
local function resolve_access(edges, n, map, to)
  local key = key_of(n)
  if n.type == "item" and n.key.type == "slice" then
    resolve(edges, n.object, map, to)
  elseif key == "content" then
    resolve(edges, n.object, { message = map.content }, to)
  elseif type(key) ~= "string" then
    resolve(edges, n.object, of_item(map), to)
  end
end

local function resolve_call(edges, n, map, to)
  local callee, first = n.callee, n.args[1]
  if callee.type == "get" and callee.name == "get" and first and first.value == "content"
  then
    resolve(edges, callee.object, { message = map.content }, to)
  end
end

-- Adds the edges by which what expression n gives, through `map`, comes to `to`.
function resolve(edges, n, map, to)
  if next(map) == nil then return end
  if n.type == "name" then
    edges[n.name] = edges[n.name] or {}
    table.insert(edges[n.name], { to = to, map = map })
  elseif n.type == "get" or n.type == "item" then
    resolve_access(edges, n, map, to)
  elseif n.type == "filter" then
    local one = n.name == "first" or n.name == "last"
    resolve(edges, n.object, one and of_item(map) or map, to)
  elseif n.type == "call" then
    resolve_call(edges, n, map, to)
  elseif n.type == "cond" then
    resolve(edges, n.value, map, to)
    if n.otherwise then resolve(edges, n.otherwise, map, to) end
  elseif n.type == "or" or n.type == "and" then
    resolve(edges, n.left, map, to)
    resolve(edges, n.right, map, to)
  end
end

-- ---- what the nodes of a tree tell ----------------------------------------------------

local function assign(S, target, v, map)
  if target.type == "name" then resolve(S.edges, v, map, target.name) end
end

local tell = {}

tell["for"] = function(S, n)
  resolve(S.edges, n.list, WALKS, false)
  assign(S, n.target, n.list, of_item(SAME))
end

function tell.set(S, n)
  assign(S, n.target, n.value, SAME)
end

tell["with"] = function(S, n)
  for i, target in ipairs(n.targets) do assign(S, target, n.values[i], SAME) end
end

function tell.macro(S, n)
  S.macros[n.name] = n.parameters
end

function tell.call(S, n)
  if n.callee.type == "name" then
    S.calls[#S.calls + 1] = n
  elseif n.callee.type == "get" and n.callee.name == "get" then
    resolve(S.edges, n.callee.object, READS, false)
  end
end

local function access(S, n)
  if type(key_of(n)) == "string" and not S.called[n] then
    resolve(S.edges, n.object, READS, false)
  end
end
tell.get, tell.item = access, access

function tell.test(S, n)
  if n.name == "string" then resolve(S.edges, n.object, ASKS, false) end
end

local function visit(S, n)
  if n.type == "call" then S.called[n.callee] = true end
  if tell[n.type] then tell[n.type](S, n) end
  for _, child in pairs(n) do
    if type(child) == "table" and getmetatable(child) == nil then visit(S, child) end
  end
end

-- Arguments become what a macro's parameters hold.
local function pass_arguments(S)
  for _, n in ipairs(S.calls) do
    local parameters = S.macros[n.callee.name] or {}
    for i, parameter in ipairs(parameters) do
      if n.args[i] then resolve(S.edges, n.args[i], SAME, parameter.name) end
    end
    for i, name in ipairs(n.args.names) do
      if S.macros[n.callee.name] then resolve(S.edges, n.args.named[i], SAME, name) end
    end
  end
end

-- ---- the whole ----------------------------------------------------------------------

-- What the uses tell that are reachable from `messages`.
local function reach(edges)
  local told, seen = {}, { messages = { messages = true } }
  local list = { { "messages", "messages" } }
  while #list > 0 do
    local name, kind = unpack(table.remove(list))
    for _, edge in ipairs(edges[name] or {}) do
      local next_kind = edge.map[kind]
      if next_kind and not edge.to then
        told[next_kind] = true
      elseif next_kind then
        local known = seen[edge.to] or {}
        seen[edge.to] = known
        if not known[next_kind] then
          known[next_kind] = true
          list[#list + 1] = { edge.to, next_kind }
        end
      end
    end
  end
  return told
end

-- The form for a template's tree.
function M.form(tree)
  local S = { edges = {}, macros = {}, calls = {}, called = {} }
  visit(S, tree)
  pass_arguments(S)
  local told = reach(S.edges)
  if told.walks then return told.asks and "sent" or "parts" end
  return told.reads and not told.asks and "parts" or "string"
end

return M
