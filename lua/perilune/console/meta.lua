-- SPDX-License-Identifier: Apache-2.0
-- console/meta.lua - what `perilune help meta` prints: `pl`, what hooks see and all
-- options, in the form that editors with LuaLS (lua-language-server) read, to complete
-- and check recipes.

local fields = require "perilune.recipe.hook_fields"
local hook_help = require "perilune.recipe.hook_help"
local maker = require "perilune.recipe.maker"
local schema = require "perilune.recipe.schema"
require "perilune"                          -- which makes the hooks that have options

local M = {}

local HEAD = [[
---@meta perilune
-- SPDX-License-Identifier: Apache-2.0
-- What recipes can use, for editors with lua-language-server; nothing runs it.
-- Generated: perilune help meta > lua/meta/perilune.lua
-- luacheck: no max line length

---@class perilune.Reject
---@class perilune.Retry
---@class perilune.Fail

---@class perilune.Lru
---@field get fun(self, key: any): any
---@field put fun(self, key: any, value: any)

---@class perilune.Metric
---@field add fun(self, by?: number) of a counter or a gauge
---@field set fun(self, value: number) of a gauge
---@field observe fun(self, value: number) of a histogram

---@class perilune.Log
---@field debug fun(format: string, ...)
---@field info fun(format: string, ...)
---@field warning fun(format: string, ...)
---@field error fun(format: string, ...)]]

-- The types of what a hook is given, by the names in hook_help.
local GIVEN = { req = "Request", w = "Worker", fleet = "Fleet", lost = "Lost",
  result = "Result", prefill = "Fleet", decode = "Fleet" }
local ANSWERS = { admit = "perilune.Reject?", migrate = "perilune.Retry|perilune.Fail",
  done = "nil", roles = "integer?", cost = "number|perilune.Reject",
  pick = "perilune.Worker|perilune.Reject|nil", queue = "number", split = "boolean" }

-- What a parameter of that name is, in a recipe; nil: anything.
function M.type_of(name)
  return GIVEN[name] and "perilune." .. GIVEN[name]
end

local function hook_type(name)
  local params = {}
  for param in hook_help.hooks[name].call:match "%((.*)%)":gmatch "%w+" do
    params[#params + 1] = ("%s: %s"):format(param, M.type_of(param))
  end
  return ("fun(%s): %s"):format(table.concat(params, ", "), ANSWERS[name])
end

-- Hooks that `pl` has some of.
local ALIASES = { { "Cost", "cost" }, { "Pick", "pick" }, { "Queue", "queue" },
  { "Split", "split" } }

local function aliases(out)
  out[#out + 1] = ""
  for _, row in ipairs(ALIASES) do
    out[#out + 1] = ("---@alias perilune.%s %s"):format(row[1], hook_type(row[2]))
  end
end

local function sorted(t)
  local names = {}
  for name in pairs(t) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- ---- options ------------------------------------------------------------------------

local KINDS = { string = "string", integer = "integer", number = "number",
  boolean = "boolean", strings = "string|string[]", table = "table" }

local function quoted(list)
  local out = {}
  for i, word in ipairs(list) do out[i] = ("%q"):format(word) end
  return table.concat(out, "|")
end

local function option_type(row)
  if row.choices then return quoted(row.choices) end
  local text = KINDS[row.kind]
  if row.words then text = text .. "|" .. quoted(row.words) end
  return row.urls and text .. "|string|string[]" or text
end

local function field(out, name, kind, doc)
  out[#out + 1] = ("---@field %s %s %s"):format(name, kind, (doc:gsub("\n", " ")))
end

local function class(out, name, rows)
  out[#out + 1] = "\n---@class perilune." .. name
  if name == "Fleet" then                   -- #fleet, fleet[i]
    out[#out + 1] = "---@operator len: integer\n---@field [integer] perilune.Worker"
  end
  for _, row in ipairs(rows) do field(out, row[1], row[2], row[3]) end
end

local function section(out, name, class_name)
  class(out, class_name, {})
  for _, row in ipairs(schema.rows[name]) do
    field(out, row.name .. "?", option_type(row), row.doc)
  end
  for _, hook in ipairs(sorted(schema.hooks[name])) do
    field(out, hook .. "?", hook_type(hook), schema.hooks[name][hook])
  end
end

local function recipe(out)
  section(out, "http", "Http")
  section(out, "pool", "Pool")
  section(out, "top", "Recipe")
  field(out, "http?", "perilune.Http", "the server")
  for _, pool in ipairs(sorted(schema.pools)) do
    field(out, pool .. "?", "perilune.Pool", "a pool of workers")
  end
end

-- ---- pl -----------------------------------------------------------------------------

-- A hook with options: as it is, or called with them to make another.
local MADE = { cost = "perilune.Cost", pick = "perilune.Pick", split = "perilune.Split" }

local function made_type(name, made)
  local defaults, options = maker.defaults(name), {}
  for i, key in ipairs(sorted(defaults)) do
    local kind = type(defaults[key])
    options[i] = ("%s?: %s"):format(key, kind == "function" and "perilune.Cost" or kind)
  end
  return ("%s|fun(options: { %s }): %s"):format(made, table.concat(options, ", "), made)
end

-- The type of a row of hook_fields, of pl.cost and the like or of another group.
function M.kind(group, row)
  local made = MADE[row[2]]
  return made and made_type(("pl.%s.%s"):format(group, row[1]), made) or row[2]
end

local function hooks_of(out, group, class_name)
  local rows = {}
  for i, row in ipairs(fields[group]) do
    rows[i] = { row[1], M.kind(group, row), row[3] }
  end
  class(out, class_name, rows)
end

-- The whole file.
function M.text()
  local out = { HEAD }
  aliases(out)
  for _, name in ipairs { "Request", "Hints", "Worker", "Fleet", "Lost", "Result",
                          "Choice" } do
    class(out, name, fields[name])
  end
  recipe(out)
  hooks_of(out, "cost", "Costs")
  hooks_of(out, "pick", "Picks")
  hooks_of(out, "queue", "Queues")
  hooks_of(out, "split", "Splits")
  out[#out + 1] = "\n---@class perilune"
  for _, row in ipairs(fields.pl) do field(out, row[1], row[2], row[3]) end
  out[#out + 1] = "local pl = {}\n\nreturn pl"
  return table.concat(out, "\n")
end

return M
