-- SPDX-License-Identifier: Apache-2.0
-- recipe/schema.lua - every option, one row: its name, its possible values, its meaning.
--
-- The rows are in options/*.lua, each file a group of one section: at the top of a
-- recipe, in http = { ... }, or in a pool. A row: { name, default, doc, ... }; its kind
-- is taken from the default unless given:
--   kind     string | integer | number | boolean | strings | table
--   min max  of a number; `words`: other values it may have
--   choices  of a string; `like`: a pattern it must match, and `wants`, that in words
--   urls     a boolean may also be a list of URLs
--   live     it can change while running, because it affects new requests only
--   env      environment variables that override the default; the first set one wins
--   also     other names for it
--   unset    what applies while it has no value; for a computed default, the computation
--   secret   never printed
--   address  may contain a user and password, which are not printed
-- Names, meanings and defaults are vLLM's if vLLM has the option; a comment explains each
-- default that differs.

-- The groups of rows, in the order in which they are listed.
local GROUPS = { "model", "process", "fleet", "http", "engine", "upstream" }

local M = {
  sections = { "top", "http", "pool" },
  rows = { top = {}, http = {}, pool = {} },
  pools = { worker = true, prefill = true, decode = true },
  -- Hooks: where they may be set, and what they decide.
  hooks = {
    top = {
      admit = "whether to accept a request",
      migrate = "what to do when its worker is lost",
      done = "called when it has ended",
      roles = "how many workers read prompts",
    },
    pool = {
      cost = "the cost of a request on a worker; the cheapest takes it",
      pick = "which worker takes a request",
      queue = "the order of requests that wait for a worker",
      split = "whether the prefill pool reads the prompt",
    },
    http = {},
  },
}

local index = { top = {}, http = {}, pool = {} }

local function kind_of(default)
  if type(default) == "number" then return "integer" end
  if type(default) == "table" then return #default > 0 and "strings" or "table" end
  return type(default)
end

for _, group in ipairs(GROUPS) do
  local rows = require("perilune.recipe.options." .. group)
  local section = rows.section
  for _, row in ipairs(rows) do
    table.insert(M.rows[section], row)
    row.name, row.default, row.doc, row.section = row[1], row[2], row[3], section
    row.kind = row.kind or kind_of(row.default)
    index[section][row.name] = row
    for _, other in ipairs(row.also or {}) do index[section][other] = row end
  end
end

-- The row with this name in a section, or in any; nil if there is none.
function M.find(name, section)
  if section then return index[section][name] end
  return index.top[name] or index.http[name] or index.pool[name]
end

-- The section that a key of the recipe's top level opens, or nil.
function M.section_of(key)
  if key == "http" then return "http" end
  return M.pools[key] and "pool" or nil
end

-- Every name that may appear in a section, including hooks.
function M.names(section)
  local names = {}
  for name in pairs(index[section]) do names[#names + 1] = name end
  for name in pairs(M.hooks[section]) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- A row's default, as a copy for the caller.
function M.default(row)
  local v = row.default
  if type(v) == "function" then return v() end
  if type(v) ~= "table" then return v end
  local copy = {}
  for k, item in pairs(v) do copy[k] = item end
  return copy
end

return M
