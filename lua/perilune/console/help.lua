-- SPDX-License-Identifier: Apache-2.0
-- console/help.lua - help(x): for everything that the console prints, and for options.

local fields = require "perilune.recipe.hook_fields"
local help = require "perilune.console.manual"
local object = require "perilune.console.object"
local schema = require "perilune.recipe.schema"

local M = {}

local WORDS = {
  { "requests()", "requests under way and how far they are; requests()[1]: one of them" },
  { "trace(id)", "the stages of one request, by its id or number" },
  { "slow(10)", "the slowest requests of late; slow(10, \"first\"): to the first token" },
  { "explain(id)", "why a request went to its worker; decisions(20): the last ones" },
  { "replay(fn)", "the last decisions by another cost; replay(fn, \"pick\"): by a pick" },
  { "workers()", "the engines; w(0) is one, w(0):steps() shows where its time goes" },
  { "blocks()", "the KV cache" },
  { "role(name, \"prefill\")", "has a worker read prompts, or answer: \"decode\"" },
  { "metrics(\"cache\")", "series of /metrics whose name contains this" },
  { "options()", "every option and its origin; options(\"worker\"): some" },
  { "recipe", "the recipe; recipe.worker.cost = function(req, w) ... end changes it" },
  { "pl", "functions for hooks; help \"pl.pick\"; pl.keep: what the recipe keeps" },
  { "log_level(\"debug\")", "changes the log level" },
  { "reload()", "reloads the recipe's file, discarding changes made here" },
  { "help(x)", "explains an option, a hook, a word of this list, or a printed value" },
}

local function overview()
  local cells = {}
  for i, row in ipairs(WORDS) do cells[i] = { "  " .. row[1], row[2] } end
  return "Expressions are printed, statements executed; it is the Lua that recipes use.\n"
    .. object.columns(cells)
    .. "\nCtrl-C stops what is running, Tab completes, Ctrl-D leaves; input is logged."
end

local function word_help(name)
  for _, row in ipairs(WORDS) do
    if row[1]:match "^[%a_]+" == name then return row[1] .. "   " .. row[2] end
  end
  return nil
end

-- The help text for a name or a value.
function M.about(x)
  if x == nil then return overview() end
  local spec, data = object.of(x)
  if spec then
    local path = data.path and help.about(data.path)
    return path or ("%s   %s"):format(spec.name, spec.doc or "")
  end
  if type(x) == "string" then
    local text, why, hint = word_help(x), nil, nil
    if not text then text, why, hint = help.about(x) end
    return text or error(("%s; %s"):format(why, hint), 3)
  end
  return "a " .. type(x)
end

-- Names that help knows.
function M.topics()
  local out = {}
  for i, row in ipairs(WORDS) do out[i] = row[1]:match "^[%a_]+" end
  for _, section in ipairs(schema.sections) do
    for _, name in ipairs(schema.names(section)) do out[#out + 1] = name end
  end
  for _, row in ipairs(fields.pl) do out[#out + 1] = "pl." .. row[1] end
  return out
end

return M
