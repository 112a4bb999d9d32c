-- SPDX-License-Identifier: Apache-2.0
-- recipe/live.lua - what changes under a running process: hooks and live options.
--
--     live.set(process, "worker.cost", fn, "the console")     one, from a console
--     live.reload(process)                                    all, from the recipe's file
--
-- Both happen between two events of the lua thread, so each request sees the one recipe
-- or the other. What is fixed while running is never touched: set refuses it, reload
-- names it. What was set by hand holds until the file is read again.

local log = require "perilune.log"
local settings = require "perilune.recipe.resolve"
local values = require "perilune.recipe.option_value"

local M = {}

-- What else follows from live options: at the start, and again after each change.
function M.fill(process)
  log.level(process.recipe.log_level)
  if process.server then process.server:refresh() end
end

-- ---- one change -----------------------------------------------------------------------

local function shown(value, row)
  if value == nil then return "none" end
  return values.public(row, value)
end

local function short(value)
  local text = shown(value)
  return #text > 80 and text:sub(1, 77) .. "..." or text
end

-- cost and pick answer the same question: of one pool the recipe has one of them.
local function rival(recipe, path)
  local pool, key = path:match "^(.-)%.(%a+)$"
  local other = key == "cost" and "pick" or key == "pick" and "cost"
  return other and settings.get(recipe, pool .. "." .. other) and pool .. "." .. other
end

local function set_hook(recipe, path, value, by)
  if value ~= nil and type(value) ~= "function" then
    return nil, ("%s is %s; it wants a function"):format(path, values.show(value, true))
  end
  local other = value and rival(recipe, path)
  if other then return nil, ("%s decides; set it to nil first"):format(other) end
  local was = settings.get(recipe, path) and settings.origin(recipe, path) or "none"
  settings.change(recipe, path, value, by)
  local verb = value and "replaced" or "removed"
  return ("%s %s from %s (was %s)."):format(path, verb, by, was)
end

local function set_option(recipe, path, row, value, by)
  if not row.live then return nil, ("%s is fixed while running"):format(path) end
  local good, why = values.check(row, value)
  if value ~= nil and good == nil then
    return nil, ("%s %s"):format(path, why), row.doc
  end
  if value == nil and not row.unset then
    return nil, ("%s is nil; it wants %s"):format(path, values.wants(row)), row.doc
  end
  local was, origin = settings.get(recipe, path), settings.origin(recipe, path)
  settings.change(recipe, path, good, by)
  return ("%s = %s from %s (was %s, %s)."):format(path, shown(good, row), by,
    shown(was, row), origin)
end

-- Sets what the recipe keeps under a name; nil: nothing. What is to be told of it.
function M.keep(process, name, value, by)
  local kept = settings.kept(process.recipe)
  local was = kept[name]
  kept[name] = value
  local text = ("pl.keep.%s = %s from %s (was %s). The recipe takes it up when it is "
    .. "read again: reload()."):format(name, short(value), by, short(was))
  log.info("%s", text)
  return text
end

-- Sets a hook, a live option or one of the recipe's own arguments. `by` says who: "the
-- console". Answers true and what is to be told of it, which the log has too; or nil, why
-- and perhaps a hint, and all is as it was. nil takes a hook away, or an option that may
-- be unset.
function M.set(process, path, value, by)
  local recipe = process.recipe
  local canonical, row, hint = settings.find(recipe, path)
  if not canonical then return nil, row, hint end
  local text, why
  if row then
    text, why, hint = set_option(recipe, canonical, row, value, by)
  else
    text, why = set_hook(recipe, canonical, value, by)
    hint = nil
  end
  if not text then return nil, why, hint end
  M.fill(process)
  text = text .. " reload() returns to the file."
  log.info("%s", text)
  return true, text
end

-- ---- reload ---------------------------------------------------------------------------

local function equal(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then return a == b end
  for key, v in pairs(a) do
    if not equal(v, b[key]) then return false end
  end
  for key in pairs(b) do
    if a[key] == nil then return false end
  end
  return true
end

-- By path, all that a resolved recipe says.
local function index(recipe)
  local out = {}
  for _, s in ipairs(settings.settings(recipe)) do out[s.path] = s end
  return out
end

-- Sorts the paths of both into what is to be changed and what differs but is fixed. A
-- default may be computed anew and differ by itself.
local function compare(old, new)
  local change, fixed = {}, {}
  local function look(path)
    local a, b = old[path] or {}, new[path] or {}
    local row = a.row or b.row
    local computed = a.origin == "default" and b.origin == "default"
    if not row then
      if a.value ~= nil or b.value ~= nil then change[#change + 1] = path end
    elseif not equal(a.value, b.value) and not computed then
      local list = row.live and change or fixed
      list[#list + 1] = path
    elseif a.origin ~= b.origin and row.live then
      change[#change + 1] = path
    end
  end
  for path in pairs(old) do look(path) end
  for path in pairs(new) do
    if not old[path] then look(path) end
  end
  table.sort(change)
  table.sort(fixed)
  return change, fixed
end

local function describe(path, a, b)
  local row = a and a.row or b and b.row
  local was, is = shown(a and a.value, row), shown(b and b.value, row)
  return ("%s changed %s -> %s"):format(path, was, is)
end

-- What there is to tell of one path that changed; nil: only its place in the file did.
local function news(path, a, b)
  if path:find "^args%." and equal(a and a.value, b and b.value) then return nil end
  local hook = type(a and a.value) == "function" or type(b and b.value) == "function"
  if not hook then
    return not equal(a and a.value, b and b.value) and describe(path, a, b) or nil
  end
  if not (a and a.value) then return path .. " is new" end
  return path .. (b and b.value and " swapped" or " removed")
end

-- A pool that came or went is a matter of its own, not of each of its options.
local function same_pools(recipe, fresh)
  return table.concat(recipe.pools, " and ") == table.concat(fresh.pools, " and ")
end

local function take_over(recipe, fresh)
  local old, new, told = index(recipe), index(fresh), {}
  local change, fixed = compare(old, new)
  for _, path in ipairs(change) do
    local a, b = old[path], new[path]
    told[#told + 1] = news(path, a, b)
    settings.change(recipe, path, b and b.value, b and b.origin or "default")
  end
  settings.adopt(recipe, fresh)
  for _, path in ipairs(fixed) do
    told[#told + 1] = describe(path, old[path], new[path]) .. ": needs a restart"
  end
  return told
end

local function text_of(problems)
  local out = {}
  for _, problem in ipairs(problems) do
    out[#out + 1] = problem.text
    if problem.hint then out[#out + 1] = "    " .. problem.hint end
  end
  return table.concat(out, "\n")
end

-- Reads the recipe's file again, by the flags of the start. Answers true and what
-- changed; or nil, why not, with file and line, and the files that were read (as of
-- settings.files): then nothing has changed.
function M.reload(process)
  local recipe = process.recipe
  local fresh, problems, files = settings.again(recipe)
  if fresh and not same_pools(recipe, fresh) then
    problems = { { text = ("%s: other pools than %s: needs a restart"):format(fresh.file,
      table.concat(recipe.pools, " and ")) } }
    fresh, files = nil, settings.files(fresh)
  end
  if not fresh then
    local why = text_of(problems)
    log.error("reload: nothing changed: %s", why)
    return nil, why, files
  end
  local told = take_over(recipe, fresh)
  M.fill(process)
  local text = ("%s is read again: %s"):format(recipe.file,
    #told > 0 and table.concat(told, "; ") or "no changes")
  log.info("%s", text)
  return true, text
end

return M
