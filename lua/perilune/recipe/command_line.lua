-- SPDX-License-Identifier: Apache-2.0
-- recipe/command_line.lua - the words of a command line: which are flags, and what they
-- say.
--
-- A flag is --name value, --name=value, --name (of a boolean) or --no-name; - and _ are
-- the same in a name. A word such as -c is a flag too, one that nobody here has. What
-- kind of value a name takes is known only later, by its row: so a flag keeps all the
-- words that follow it until a row claims it.

local nearest = require "perilune.recipe.nearest"
local values = require "perilune.recipe.option_value"

local M = {}

-- { words = those before the first flag, flags = { { word, name, values } ... } }
function M.parse(words)
  local parsed = { words = {}, flags = {} }
  local into = parsed.words
  for _, word in ipairs(words) do
    local name, value = word:match "^%-%-([^=]+)=?(.*)$"
    local short = word:match "^%-%a[%w-]*"
    if name or short then
      local flag = { word = name and "--" .. name or short,
        name = name and name:gsub("-", "_") or short, values = {} }
      if word:find("=", 1, true) then
        flag.values[1], flag.closed = value, true
      end
      parsed.flags[#parsed.flags + 1] = flag
      into = flag.values
    else
      into[#into + 1] = word
    end
  end
  return parsed
end

-- What a flag says for a row; `negated`: it was --no-name. Or nil and why not.
function M.value(flag, row, negated)
  local given = flag.values
  if row.kind == "boolean" and #given == 0 then return not negated end
  if negated then return nil, ("'%s' takes no value"):format(flag.word) end
  if #given == 0 then
    return nil, ("'%s' needs a value: %s"):format(flag.word, values.wants(row))
  end
  if row.kind == "strings" and #given > 1 then return given end
  if #given > 1 and not row.urls then
    return nil, ("'%s' takes one value; '%s' is one too many"):format(flag.word, given[2])
  end
  local read = given[2] and values.check or values.parse
  local v, why = read(row, given[2] and given or given[1])
  if v == nil then return nil, ("'%s' %s"):format(flag.word, why) end
  return v
end

-- Is this flag about the row, by its name or another (`also`)? The second answer: in its
-- --no- form.
function M.names(flag, row)
  if flag.name == row.name then return true, false end
  for _, other in ipairs(row.also or {}) do
    if flag.name == other then return true, false end
  end
  return row.kind == "boolean" and flag.name == "no_" .. row.name, true
end

-- The value of the last flag about a row, and that flag; nil where there is none; nil and
-- why where it is no good. Claimed flags are marked as used, unless only `looking`.
function M.claim(parsed, row, looking)
  local value, by, why
  for _, flag in ipairs(parsed.flags) do
    local yes, negated = M.names(flag, row)
    if yes then
      flag.used = flag.used or not looking
      value, why = M.value(flag, row, negated)
      if value == nil then return nil, why end
      by = flag
    end
  end
  return value, by
end

function M.spell(name)
  return "--" .. name:gsub("_", "-")
end

-- Rows as a command declares them: { name, default, doc, min = ... }.
function M.rows(list)
  for _, row in ipairs(list) do
    row.name, row.default, row.doc = row[1], row[2], row[3]
    row.kind = row.kind or type(row.default)
  end
  return list
end

-- A whole command line for a command whose rows are all there is: a table of values, or
-- nil, why, hint.
function M.options(rows, words)
  local parsed, out, names = M.parse(words), {}, {}
  if parsed.words[1] then return nil, ("'%s' is not a flag"):format(parsed.words[1]) end
  for i, row in ipairs(rows) do
    local value, by = M.claim(parsed, row)
    if value == nil and by then return nil, by end
    if value == nil then value = row.default end
    out[row.name], names[i] = value, row.name
  end
  for _, flag in ipairs(parsed.flags) do
    if not flag.used then
      local near = nearest((flag.name:gsub("^%-", "")), names)
      return nil, ("no flag '%s'"):format(flag.word),
             near and ("did you mean '%s'?"):format(M.spell(near)) or nil
    end
  end
  return out
end

-- The rows as help prints them.
function M.help(rows)
  local out = {}
  for _, row in ipairs(rows) do
    local shown = row.default ~= nil and (" (%s)"):format(values.show(row.default)) or ""
    out[#out + 1] = ("  %-18s %s%s"):format(M.spell(row.name), row.doc, shown)
  end
  return table.concat(out, "\n")
end

return M
