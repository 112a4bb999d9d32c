-- SPDX-License-Identifier: Apache-2.0
-- console/recipe.lua - the recipe as the console shows it and lets it be changed.
--
-- Reading recipe.worker.cost gives the hook, which can be called; assigning to it, or to
-- an option that is live, goes through process:set. What is fixed is refused here.

local hooks = require "perilune.recipe.hooks"
local nearest = require "perilune.recipe.nearest"
local object = require "perilune.console.object"
local run = require "perilune.console.run"
local schema = require "perilune.recipe.schema"
local settings = require "perilune.recipe.resolve"
local values = require "perilune.recipe.option_value"

local M = {}

local SECRET = "(secret)"

local function shown(s)
  if s.value == nil then return "-" end
  if s.row and s.row.secret then return SECRET end
  local text = values.show(s.value):gsub("%s+", " ")
  return #text > 48 and text:sub(1, 45) .. "..." or text
end

-- The same for programs: a number as a number, and whole.
local function exact(s)
  local row = s.row
  if row and (row.secret or row.address) and s.value ~= nil then
    return values.public(row, s.value)
  end
  return s.value
end

local function cells_of(list, wanted)
  local cells, json = { { "option", "value", "", "set by" } }, {}
  for _, s in ipairs(list) do
    if not wanted or s.path:find(wanted, 1, true) then
      local live = s.row == nil and "hook" or s.row.live and "live" or ""
      if s.path:match "^args%." then live = "live" end
      cells[#cells + 1] = { s.path, shown(s), live, s.origin }
      json[#json + 1] = { path = s.path, live = live ~= "", set_by = s.origin,
        value = exact(s) }
    end
  end
  return cells, json
end

-- Every option with who set it; `wanted`: only paths that hold this text.
function M.options(process, wanted)
  local cells, json = cells_of(settings.settings(process.recipe), wanted)
  return object.listing { cells = cells, items = json, json = json,
    empty = ("no option has '%s' in its name"):format(tostring(wanted)) }
end

-- How a hook does: how often it was asked, how long it takes, what went wrong.
local function report(hook)
  local a = hooks.about(hook.process.recipe, hook.path)
  if not a then return "not called yet" end
  local text = ("called %d times%s; %s%s"):format(a.calls,
    a.mean and (", %.1fus each"):format(a.mean * 1e6) or "", a.standing,
    a.standing == "on probation" and (", %d calls to go"):format(a.left) or "")
  if a.errors == 0 then return text end
  return ("%s\n  %d errors; the last %.0f s ago: %s"):format(text, a.errors, a.error_ago,
    a.error)
end

local Hook = object.class {
  name = "a hook", doc = "a function of the recipe that makes a decision",
  call = function(hook, ...)
    run.forget()                            -- it may be compiled, and not end there
    return hook.fn(...)
  end,
  explain = function(hook)
    local info = debug.getinfo(hook.fn, "S")
    return ("%s   %s:%d   %s; set by %s\n  %s"):format(hook.path, info.short_src,
      info.linedefined, hook.doc, hook.origin, report(hook))
  end,
  plain = function(hook)
    local out = hooks.about(hook.process.recipe, hook.path) or { calls = 0 }
    out.path, out.set_by = hook.path, hook.origin
    return out
  end,
}

local function path_of(data, key)
  return data.name and data.name .. "." .. key or key
end

-- The row of a key of a section, or the doc of a hook; an error where it is neither.
local function look_up(data, key)
  local row = type(key) == "string" and schema.find(key, data.section)
  local hook = schema.hooks[data.section][key]
  if row or hook then return row or nil, hook end
  local near = nearest(tostring(key), schema.names(data.section))
  error(("%s has no option '%s'%s"):format(data.name or "recipe", tostring(key),
    near and ("; did you mean '%s'?"):format(near) or ""), 4)
end

local Section

local function is_section(data, key)
  if data.name then return false end
  if key == "http" then return true end
  for _, pool in ipairs(data.process.recipe.pools) do
    if pool == key then return true end
  end
  return false
end

local function copy(value)
  if type(value) ~= "table" then return value end
  local out = {}
  for k, v in pairs(value) do out[k] = copy(v) end
  return out
end

local Args

local function index(data, key)
  if key == "args" and not data.name then return Args(data) end
  if is_section(data, key) then
    return Section { process = data.process, set = data.set, name = key,
      section = schema.section_of(key) }
  end
  local row, hook = look_up(data, key)
  local name = row and row.name or key
  local from = data.name and data.process.recipe[data.name] or data.process.recipe
  local value = from[name]
  if value ~= nil and row and row.secret then return SECRET end
  if type(value) ~= "function" then return copy(value) end
  local path = path_of(data, name)
  return Hook { fn = value, path = path, doc = hook, process = data.process,
    origin = settings.origin(data.process.recipe, path) or "?" }
end

-- What a value means that came from here: the function of a hook that was read before.
local function unwrap(value)
  local spec, hook = object.of(value)
  return spec and hook.fn or value
end

local function assign(data, key, value)
  if is_section(data, key) or key == "args" and not data.name then
    error(("recipe.%s cannot be replaced as a whole, only its fields"):format(key), 3)
  end
  local row = look_up(data, key)
  local path = path_of(data, row and row.name or key)
  if row and not row.live then
    error(("%s is fixed while running   (help \"%s\")"):format(path, row.name), 3)
  end
  data.set(path, unwrap(value))
end

Section = object.class {
  name = "recipe", doc = "the recipe; assign to its hooks and to options that are live",
  index = index, assign = assign,
  explain = function(data)
    local list = {}
    for _, s in ipairs(settings.settings(data.process.recipe)) do
      local own = not data.name or s.path:sub(1, #data.name + 1) == data.name .. "."
      if own and (data.name or s.origin ~= "default") then list[#list + 1] = s end
    end
    local text = object.columns((cells_of(list)))
    if data.name then return text end
    return data.process.recipe.file .. "\n" .. text
      .. "\nthe rest are defaults: options() shows them all"
  end,
  plain = function(data)
    local _, json = cells_of(settings.settings(data.process.recipe), data.name)
    return json
  end,
  names = function(data)
    local names = schema.names(data.section)
    if not data.name then
      names[#names + 1], names[#names + 2] = "args", "http"
      for _, pool in ipairs(data.process.recipe.pools) do names[#names + 1] = pool end
    end
    return names
  end,
}

-- ---- its own arguments --------------------------------------------------------------

local function own_rows(data)
  local list = {}
  for _, s in ipairs(settings.settings(data.process.recipe)) do
    if s.path:find "^args%." then list[#list + 1] = s end
  end
  return list
end

Args = object.class {
  name = "recipe.args", doc = "the recipe's own arguments; assign to change one",
  index = function(data, key)
    local path = "args." .. tostring(key)
    if not settings.find(data.process.recipe, path) then
      error(("the recipe has no argument '%s'"):format(tostring(key)), 3)
    end
    return copy(settings.get(data.process.recipe, path))
  end,
  assign = function(data, key, value) data.set("args." .. tostring(key), value) end,
  explain = function(data)
    local list = own_rows(data)
    if #list == 0 then return "the recipe has no arguments of its own" end
    return object.columns((cells_of(list)))
  end,
  plain = function(data)
    local _, json = cells_of(own_rows(data))
    return json
  end,
  names = function(data)
    local names = {}
    for i, s in ipairs(own_rows(data)) do names[i] = s.path:match "[^.]*$" end
    return names
  end,
}

-- The recipe of a process; set(path, value) is called for what is assigned.
function M.recipe(process, set)
  return Section { process = process, set = set, section = "top" }
end

-- Text with the values of secrets taken out, for the log and the history.
function M.without_secrets(text)
  for _, section in ipairs(schema.sections) do
    for _, row in ipairs(schema.rows[section]) do
      if row.secret then
        text = string.gsub(text, "(%f[%w_]" .. row.name .. "[\"'%]]*)%s*=.*",
          "%1 = " .. SECRET)
      end
    end
  end
  return text
end

return M
