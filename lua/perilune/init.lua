-- SPDX-License-Identifier: Apache-2.0
-- init.lua - `pl`, all that a recipe sees: local pl = require "perilune".

local chance = require "perilune.recipe.chance"
local cost = require "perilune.recipe.cost"
local engine = require "perilune.ffi"
local fleet_view = require "perilune.recipe.fleet_view"
local flags = require "perilune.recipe.command_line"
local load = require "perilune.recipe.load"
local log = require "perilune.log"
local lru = require "perilune.lru"
local metric = require "perilune.recipe.metric"
local mix = require "perilune.recipe.mix"
local nearest = require "perilune.recipe.nearest"
local pick = require "perilune.recipe.pick"
local queue = require "perilune.recipe.queue"
local split = require "perilune.recipe.split"
local schema = require "perilune.recipe.schema"
local values = require "perilune.recipe.option_value"
local verdict = require "perilune.recipe.verdict"

local C = engine.C

local pl = { version = engine.ffi.string(C.pl_version()), log = log, lru = lru.new,
  reject = verdict.reject, retry = verdict.retry, fail = verdict.fail,
  cost = cost, pick = pick, queue = queue, split = split, mix = mix, metric = metric.of,
  fleet = fleet_view.of }

-- One row of pl.args, made whole: its kind is that of its default.
local function argument(row)
  local name, default, doc = row[1], row[2], row[3]
  if type(name) ~= "string" or not name:match "^[%a_][%w_]*$" then
    error("pl.args: a row is { name, default, doc }", 3)
  end
  local made = { name = name, default = default, doc = doc or "",
                 kind = row.kind or type(default), live = true,
                 min = row.min, max = row.max, choices = row.choices }
  if made.kind == "table" and default[1] then made.kind = "strings" end
  if default == nil or made.kind == "function" then
    error(("pl.args: '%s' needs a default"):format(name), 3)
  end
  local ok, good, why = pcall(values.check, made, default)
  if not ok then error(("pl.args: '%s' is of no known kind"):format(name), 3) end
  if good == nil then error(("pl.args: default of '%s' %s"):format(name, why), 3) end
  return made
end

local function only_once(name, current)
  for _, list in ipairs { current.args, current.options } do
    for _, other in ipairs(list) do
      if other.name == name then
        error(("pl.args: '%s' is declared twice"):format(name), 4)
      end
    end
  end
end

-- An option of perilune's own, declared again: with another default, or only to be read.
-- Its flag and the environment still come before that, and set the option itself.
local function option(row, known, current)
  only_once(row[1], current)
  local made = { name = known.name, default = row[2], doc = row[3] or known.doc }
  if made.default ~= nil then
    local good, why = values.check(known, made.default)
    if good == nil then
      error(("pl.args: default of '%s' %s"):format(made.name, why), 3)
    end
    local caller = debug.getinfo(3, "Sl")
    made.origin = ("%s:%d"):format(caller.source:sub(2), caller.currentline)
    made.default = good
  end
  made.value = flags.claim(current.words, known, true)
  if made.value == nil then
    made.value = values.from_environment(known, current.getenv)
  end
  if made.value == nil then made.value = made.default end
  if made.value == nil then made.value = schema.default(known) end
  current.options[#current.options + 1] = made
  return made
end

-- Gives an argument its value: a flag's, or its default.
local function settle(made, current)
  only_once(made.name, current)
  local value, by = flags.claim(current.words, made)
  if value ~= nil then
    made.value, made.origin = value, by.word
  elseif by then
    load.fail(by, true)
  else
    made.value, made.origin = made.default, "default"
  end
  current.args[#current.args + 1] = made
end

-- The recipe's own arguments, a row each: { name, default, doc, min =, max = ... }.
-- A row is a flag and its line of help; the values come back as a table. A row named like
-- an option of perilune's own gives that another default.
function pl.args(rows)
  local current = load.current()
  if not current then error("pl.args: only while a recipe is loaded", 2) end
  local out = {}
  for _, row in ipairs(rows) do
    local known = type(row[1]) == "string" and schema.find(row[1])
    local made = known and option(row, known, current) or argument(row)
    if not known then settle(made, current) end
    out[row[1]] = made
  end
  return setmetatable({}, {
    __index = function(_, key)
      local made = out[key]
      if not made then
        error(("pl.args has no row '%s'"):format(tostring(key)), 2)
      end
      return made.value                     -- a console may have changed it
    end,
    __newindex = function(_, key)
      error(("argument '%s' assigned; only the user can set it"):format(key), 2)
    end,
  })
end

-- A recipe's table, as its file returns it.
function pl.load(name)
  if type(name) ~= "string" then error("pl.load: wants the name of a recipe", 2) end
  local ok, value = pcall(load.load, name)
  if not ok then error(tostring(value), 0) end
  return value
end

-- Another recipe with some of its values changed: pl.extend("agg", { http = { ... } }).
function pl.extend(name, changes)
  if type(name) ~= "string" or type(changes) ~= "table" then
    error("pl.extend: wants the name of a recipe and a table", 2)
  end
  return load.extend(load.load(name), changes)
end

-- A value that survives a reload of the recipe: what was kept under this name, else
-- `value` from now on.
function pl.keep(name, value)
  local current = load.current()
  if not current then error("pl.keep: only while a recipe is loaded", 2) end
  if type(name) ~= "string" or value == nil then
    error("pl.keep: wants a name and a value", 2)
  end
  if current.kept[name] == nil then current.kept[name] = value end
  return current.kept[name]
end

-- The clock of hooks: seconds since some moment.
function pl.now() return chance.now() end

-- The dice of hooks: a number from 0, below 1.
function pl.random() return chance.random() end

local names = {}
for name in pairs(pl) do names[#names + 1] = name end

return setmetatable({}, {
  __index = function(_, key)
    if pl[key] ~= nil then return pl[key] end
    local near = nearest(tostring(key), names)
    error(("pl has no '%s'%s"):format(tostring(key),
          near and ("; did you mean '%s'?"):format(near) or ""), 2)
  end,
  __newindex = function(_, key)
    error(("pl.%s assigned; a recipe cannot change pl"):format(tostring(key)), 2)
  end,
})
