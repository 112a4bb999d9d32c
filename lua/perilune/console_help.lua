-- SPDX-License-Identifier: Apache-2.0
-- console_help.lua - help(x), for everything that the console prints, and for options.

local help = require "perilune.help"
local object = require "perilune.console_object"
local schema = require "perilune.schema"

local M = {}

local WORDS = {
  { "requests()", "those under way and how far they are; requests()[1]: one of them" },
  { "trace(id)", "one request: each stage it went through; id, or its number" },
  { "slow(10)", "the slowest that ended; slow(10, \"first\"): to the first token" },
  { "workers()", "the engines; w(0) is one, w(0):steps() says where its time goes" },
  { "blocks()", "the KV cache" },
  { "metrics(\"cache\")", "series of /metrics whose name has that in it" },
  { "options()", "every option and who set it; options(\"worker\"): some" },
  { "recipe", "the recipe; recipe.worker.cost = function(req, w) ... end changes it" },
  { "pl", "what hooks use; pl.keep is what the recipe keeps over a reload" },
  { "log_level(\"debug\")", "what is logged from now on" },
  { "reload()", "reads the recipe's file again; what was changed here goes" },
  { "help(x)", "about an option, a hook, a word of this list, or what was printed" },
}

local function overview()
  local cells = {}
  for i, row in ipairs(WORDS) do cells[i] = { "  " .. row[1], row[2] } end
  return "An expression is printed, a statement is done; Lua as recipes have it.\n"
    .. object.columns(cells)
    .. "\nCtrl-C ends what runs, Tab completes, Ctrl-D leaves; what is typed is logged."
end

local function word_help(name)
  for _, row in ipairs(WORDS) do
    if row[1]:match "^[%a_]+" == name then return row[1] .. "   " .. row[2] end
  end
  return nil
end

-- What there is to say about a name or a value.
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

-- Names that help has something to say about.
function M.topics()
  local out = {}
  for i, row in ipairs(WORDS) do out[i] = row[1]:match "^[%a_]+" end
  for _, section in ipairs(schema.sections) do
    for _, name in ipairs(schema.names(section)) do out[#out + 1] = name end
  end
  return out
end

return M
