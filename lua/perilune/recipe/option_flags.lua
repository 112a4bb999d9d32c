-- SPDX-License-Identifier: Apache-2.0
-- recipe/option_flags.lua - what the command line says about a recipe's options.
--
--   --max-num-seqs 64              every pool
--   --worker.max-num-seqs 64       one
--   --hf-overrides.rope_theta 1e6  a field of a table; as --hf-overrides '{...}' is JSON

local check = require "perilune.recipe.check"
local elsewhere = require "perilune.recipe.flags_elsewhere"
local flags = require "perilune.recipe.command_line"
local json = require "cjson.safe"
local nearest = require "perilune.recipe.nearest"
local schema = require "perilune.recipe.schema"
local values = require "perilune.recipe.option_value"

local M = {}

local function add(problems, text, hint)
  problems[#problems + 1] = { text = text, hint = hint, usage = true }
end

-- The row that a name means, in its --no- form or not.
local function find(name, section)
  local row = schema.find(name, section)
  if row then return row, false end
  row = name:match "^no_" and schema.find(name:sub(4), section)
  if row and row.kind == "boolean" then return row, true end
  return nil
end

-- Takes a flag's name apart: the section that it names, its row, whether it is negated,
-- and what is left for a table: "hf_overrides.rope_theta" leaves { "rope_theta" }. A flag
-- of one dash has no row.
local function analyse(flag)
  local parts = {}
  if flag.word:sub(1, 2) ~= "--" then return { name = flag.word:sub(2) } end
  for part in (flag.word:sub(3) .. "."):gmatch "([^.]*)%." do parts[#parts + 1] = part end
  local section = parts[1]:gsub("-", "_")
  if #parts > 1 and schema.section_of(section) then
    table.remove(parts, 1)
  else
    section = nil
  end
  local name = table.remove(parts, 1):gsub("-", "_")
  local row, negated = find(name, section and schema.section_of(section))
  return { section = section, name = name, row = row, negated = negated, rest = parts }
end

-- How many words may follow a flag as its value: `word`, as it was typed, before `after`.
function M.takes(word, after)
  local name, value = word:match "^([^=]*)(=?)"
  if value == "=" then return 0 end
  local row = analyse({ word = name }).row
  local many = row and row.urls and after and after:find("://", 1, true)
  if not row or row.kind == "strings" or many then return math.huge end
  return row.kind == "boolean" and values.parse(row, after or "") == nil and 0 or 1
end

local function set_inside(settings, path, keys, text, origin)
  local old = settings[path] and settings[path].value or {}
  local whole = {}
  for k, v in pairs(old) do whole[k] = v end
  local at = whole
  for i = 1, #keys - 1 do
    local inner = {}
    local was = at[keys[i]]
    for k, v in pairs(type(was) == "table" and was or {}) do inner[k] = v end
    at[keys[i]] = inner
    at = inner
  end
  local v = json.decode("[" .. text .. "]")
  if v and #v == 1 then
    at[keys[#keys]] = v[1]
  else
    at[keys[#keys]] = text
  end
  settings[path] = { value = whole, origin = origin }
end

local function paths(row, section, pools)
  if row.section == "top" then return { row.name } end
  if row.section == "http" then return { "http." .. row.name } end
  local out = {}
  for _, pool in ipairs(section and { section } or pools) do
    out[#out + 1] = pool .. "." .. row.name
  end
  return out
end

local function unknown(problems, flag, what, args)
  local text, known = ("no option '%s'"):format(flag.word), elsewhere.hint(flag.word)
  if known then return add(problems, text, known) end
  local names = {}
  for _, section in ipairs(schema.sections) do
    for _, row in ipairs(schema.rows[section]) do names[#names + 1] = row.name end
  end
  for _, row in ipairs(args) do names[#names + 1] = row.name end
  local near = nearest(what.name, names)
  local row = near and schema.find(near)
  local hint = near and ("did you mean '%s%s'?"):format(
    flags.spell(what.section and what.section .. "." or ""), near:gsub("_", "-"))
  if row then hint = hint .. "  " .. check.describe(row) end
  add(problems, text, hint or "perilune help options lists them all")
end

local function apply(flag, settings, pools, args, problems)
  local what = analyse(flag)
  local row = what.row
  local nameless = flag.word:find "%.%." or flag.word:find "%.$"
  if not row or nameless or (#what.rest > 0 and row.kind ~= "table") then
    return unknown(problems, flag, what, args)
  end
  if what.section and what.section ~= "http" and pools[1] then
    local here = false
    for _, pool in ipairs(pools) do here = here or pool == what.section end
    if not here then
      return add(problems, ("'%s': the recipe has no pool '%s'"):format(flag.word,
                                                                        what.section))
    end
  end
  local targets = paths(row, what.section, pools)
  if #what.rest > 0 then
    if #flag.values ~= 1 then
      return add(problems, ("'%s' takes one value"):format(flag.word))
    end
    for _, path in ipairs(targets) do
      set_inside(settings, path, what.rest, flag.values[1], flag.word)
    end
    return
  end
  local v, why = flags.value(flag, row, what.negated)
  if v == nil then return add(problems, why, row.doc) end
  for _, path in ipairs(targets) do
    settings[path] = { value = v, origin = flag.word }
  end
end

-- Lays the flags that nobody claimed yet over the settings. `--worker.x` is more exact
-- than `--x` and wins wherever it stands.
function M.apply(parsed, settings, pools, args, problems)
  for exact = 0, 1 do
    for _, flag in ipairs(parsed.flags) do
      local section = flag.name:match "^(.-)%."
      local is_exact = section and schema.section_of(section) and 1 or 0
      if not flag.used and is_exact == exact then
        apply(flag, settings, pools, args, problems)
      end
    end
  end
end

return M
