-- SPDX-License-Identifier: Apache-2.0
-- tools/new.lua - perilune new: a recipe of one's own, begun from a shipped one.
--
-- It gets what an editor with lua-language-server needs to complete it: the types of what
-- hooks are given, and beside it a .luarc.json that says where perilune's types are.

local pl = require "perilune.ffi"
local flags = require "perilune.recipe.command_line"
local json = require "perilune.json"
local meta = require "perilune.console.meta"
local nearest = require "perilune.recipe.nearest"
local C, ffi = pl.C, pl.ffi

local M = {}

local MOST = 256

local rows = flags.rows {
  { "from", "agg", "the recipe to begin from" },
}

local HELP = [[
perilune new FILE [--from RECIPE]

Copies one of the recipes that come with perilune to FILE, to be changed, with the types
of its hooks for editors. It overwrites nothing.
]]

local function root()
  return require("perilune.host").root
end

-- The names of the recipes that come with perilune: agg, policies/warm.
local function shipped()
  local names = {}
  for _, folder in ipairs { "", "policies/" } do
    local buf, place = ffi.new "pl_buf", root() .. "/recipes/" .. folder
    C.pl_list_folder(place, ".lua", MOST, buf)
    for name in pl.take(buf):gmatch "([^/\n]+)%.lua%f[\n%z]" do
      names[#names + 1] = folder .. name
    end
  end
  return names
end

local function slurp(path)
  local file = io.open(path, "rb")
  local text = file and file:read "*a"
  if file then file:close() end
  return text
end

-- Above each function whose parameters have the names that hooks' have, what these are.
local function with_types(text)
  return (text:gsub("(local function [%w_]+(%b()))", function(line, params)
    local out = {}
    for name in params:gmatch "[%w_]+" do
      local kind = meta.type_of(name)
      if kind then out[#out + 1] = ("---@param %s %s\n"):format(name, kind) end
    end
    return table.concat(out) .. line
  end))
end

-- The text of a recipe for a file of that name.
function M.text(source, from, name)
  local text = source:gsub("^%-%- SPDX[^\n]*\n", "")
  text = text:gsub("^%-%- [%w_]+%.lua", function() return "-- " .. name end)
  text = text:gsub("\n\n", "\n--\n-- Begun from " .. from .. ".\n\n", 1)
  text = text:gsub("\nreturn (%b{})%s*$",
    "\n---@type perilune.Recipe\nlocal recipe = %1\n\nreturn recipe\n")
  return with_types(text)
end

-- Writes a file that must not be there: true, or nil and why not.
local function write(path, text)
  local there = io.open(path, "rb")
  if there then
    there:close()
    return nil, ("'%s' exists already"):format(path)
  end
  local file, why = io.open(path, "wb")
  if not file then return nil, why end
  local ok
  ok, why = file:write(text)
  file:close()
  return ok, why
end

-- For editors: where perilune's types are.
local function luarc()
  return json.encode(json.object("runtime.version", "LuaJIT",
    "workspace.library", json.array { root() .. "/lua/meta" })) .. "\n"
end

local function begin(path, from, complain)
  local source = slurp(("%s/recipes/%s.lua"):format(root(), from))
  if not source then
    local names = shipped()
    local near = nearest(from, names)
    return complain(("no recipe '%s' comes with perilune%s"):format(from,
      near and ("; did you mean '%s'?"):format(near) or ""), table.concat(names, ", "))
  end
  local ok, why = write(path, M.text(source, from, path:match "[^/]*$"))
  if not ok then
    io.stderr:write("perilune: ", why, "\n")
    return 1
  end
  write((path:match "^.*/" or "") .. ".luarc.json", luarc())      -- if there is none
  print(("%s begins as a copy of %s. Change it, then:\n"):format(path, from))
  print("  perilune check " .. path)
  print(("  perilune run %s --model MODEL --watch"):format(path))
  return 0
end

function M.run(words, complain)
  local path = words[1]
  for _, word in ipairs(words) do
    if word == "--help" or word == "-h" then
      print(HELP .. flags.help(rows) .. "\n\nrecipes: " .. table.concat(shipped(), ", "))
      return 0
    end
  end
  if not path or path:match "^%-" then
    return complain("'new' needs a file to write",
      "perilune new my.lua --from agg_router")
  end
  local parsed = flags.parse { unpack(words, 2) }
  local from, bad = flags.claim(parsed, rows[1])
  if from == nil and bad then return complain(bad, "perilune new --help") end
  for _, flag in ipairs(parsed.flags) do
    if not flag.used then
      return complain(("no option '%s'"):format(flag.word), "perilune new --help")
    end
  end
  if parsed.words[1] then
    return complain(("'%s' is one word too many"):format(parsed.words[1]),
      "perilune new --help")
  end
  if not path:match "%.lua$" then path = path .. ".lua" end
  return begin(path, (from or rows[1].default):gsub("%.lua$", ""), complain)
end

return M
