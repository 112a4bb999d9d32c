-- SPDX-License-Identifier: Apache-2.0
-- console/pl.lua - `pl` in the console: the functions for hooks, and what the recipe
-- keeps.

local fields = require "perilune.recipe.hook_fields"
local object = require "perilune.console.object"
local pl = require "perilune"
local run = require "perilune.console.run"
local settings = require "perilune.recipe.resolve"

local M = {}

-- What each is called as, and what it is; and those that are for a recipe alone.
local DOCS, ELSEWHERE = {}, {}
for _, row in ipairs(fields.pl) do
  local name, doc, shown = row[1], row[3], row[4]
  if type(pl[name]) == "table" and name ~= "log" then
    local group = {}
    for i, member in ipairs(fields[name]) do group[i] = member[1] end
    doc = ("%s: %s"):format(doc, table.concat(group, ", "))
  end
  if shown then DOCS[#DOCS + 1] = { shown, doc } else ELSEWHERE[name] = true end
end

-- ---- pl.keep ------------------------------------------------------------------------

local function kept(data)
  return settings.kept(data.process.recipe)
end

local function names_of(data)
  local names = {}
  for name in pairs(kept(data)) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- What is kept may hold functions of the recipe's, which may be compiled and not end.
local function get(data, name)
  local value = kept(data)[name]
  if value == nil then
    error(("the recipe keeps no '%s'   (pl.keep lists what it keeps)"):format(
      tostring(name)), 3)
  end
  run.forget()
  return value
end

local function listed(data)
  local list = {}
  for i, name in ipairs(names_of(data)) do
    list[i] = ("%s = %s"):format(name, object.line(kept(data)[name]))
  end
  return #list > 0 and table.concat(list, "\n") or "the recipe keeps nothing"
end

local Keep = object.class {
  name = "pl.keep", doc = "what the recipe keeps across reloads, by name",
  index = get, call = function(data, name) return get(data, name) end,
  assign = function(data, name, value)
    if type(name) ~= "string" then error("pl.keep: wants a name", 3) end
    data.keep(name, value)
  end,
  explain = listed, names = names_of,
  plain = function(data)
    local out = {}
    for name, value in pairs(kept(data)) do out[name] = value end
    return out
  end,
}

-- ---- pl -----------------------------------------------------------------------------

local function member(data, key)
  if key == "keep" then return Keep(data) end
  if ELSEWHERE[key] then error(("pl.%s is not for the console"):format(key), 3) end
  return pl[key]
end

local Pl = object.class {
  name = "pl", doc = "the functions for hooks, and what the recipe keeps",
  index = member,
  explain = function()
    local cells = {}
    for i, row in ipairs(DOCS) do cells[i] = { "pl." .. row[1], row[2] } end
    return object.columns(cells)
  end,
  plain = function() return { version = pl.version } end,
  names = function()
    local names = {}
    for i, row in ipairs(DOCS) do
      local name, called = row[1]:match "^(%l+)([%( ]?)"
      names[i] = called == "" and name or name .. "("
    end
    return names
  end,
}

-- For a process; keep(name, value) is called for what is assigned to pl.keep.
function M.pl(process, keep)
  return Pl { process = process, keep = keep }
end

return M
