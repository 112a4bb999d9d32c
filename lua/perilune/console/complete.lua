-- SPDX-License-Identifier: Apache-2.0
-- console/complete.lua - what could stand where the cursor is. It evaluates nothing: it
-- follows names, as far as they lead to tables and to the console's objects.

local help = require "perilune.console.help"
local object = require "perilune.console.object"
local objects = require "perilune.console.workers"

local MOST = 200

local function begins(list, part)
  local out, seen = {}, {}
  for _, name in ipairs(list) do
    if name:sub(1, #part) == part and not seen[name] then
      out[#out + 1], seen[name] = name, true
    end
  end
  table.sort(out)
  for i = #out, MOST + 1, -1 do out[i] = nil end
  return out
end

local function marked(name, value)
  local spec = object.of(value)
  local called = type(value) == "function" or (spec and spec.call)
  return called and name .. "(" or name
end

local function names_in(t, out)
  for name, value in next, t do
    if type(name) == "string" and name:find "^[%a_][%w_]*$" then
      out[#out + 1] = marked(name, value)
    end
  end
  return out
end

local function globals(session)
  return names_in(session.words, names_in(session.variables, {}))
end

-- What may follow a value's dot or colon.
local function members(value, colon)
  local spec, data = object.of(value)
  if not spec then
    local meta = type(value) == "table" and debug.getmetatable(value)
    local library = meta and type(meta.__index) == "table" and meta.__index
    return type(value) == "table" and names_in(library or value, {}) or {}
  end
  local names = {}
  for name in pairs(spec.methods or {}) do names[#names + 1] = name .. "(" end
  if not colon and spec.names then
    for _, name in ipairs(spec.names(data)) do names[#names + 1] = name end
  end
  return names
end

local function follow(session, path)
  local value
  for name in path:gmatch "[^.]+" do
    local from = value == nil and session.variables or value
    local spec, data = object.of(from)
    if spec then
      local ok, inner = pcall(spec.index or error, data, name)
      value = ok and inner or nil
    else
      value = rawget(from, name)
      if value == nil and from == session.variables then value = session.words[name] end
    end
    if type(value) ~= "table" then return nil end
  end
  return value
end

-- The place in `text` from which on a candidate stands, and the candidates.
return function(session, text)
  local word, part = text:match "([%a_]+)%s*%(?%s*[\"']([^\"']*)$"
  if word == "help" then return #text - #part + 1, begins(help.topics(), part) end
  if word == "metrics" then
    return #text - #part + 1, begins(objects.metric_names(), part)
  end
  if word then return #text + 1, {} end
  local number
  number, part = text:match "%f[%w_]w%((%d*)%)[.:]([%w_]*)$"
  if number then
    local ok, w = pcall(objects.w, session.process, tonumber(number))
    return #text - #part + 1, begins(ok and members(w) or {}, part)
  end
  local path, dot
  path, dot, part = text:match "([%a_][%w_.]*)([.:])([%w_]*)$"
  if path then
    local value = follow(session, path)
    return #text - #part + 1, value and begins(members(value, dot == ":"), part) or {}
  end
  part = text:match "[%a_][%w_]*$" or ""
  if part == "" and text:find "%S" then return #text + 1, {} end
  return #text - #part + 1, begins(globals(session), part)
end
