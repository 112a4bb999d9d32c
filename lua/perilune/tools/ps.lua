-- SPDX-License-Identifier: Apache-2.0
-- tools/ps.lua - perilune ps: the processes of this user on this machine; on a bus, all
-- there.

local engine = require "perilune.ffi"
local flags = require "perilune.recipe.command_line"
local json = require "perilune.json"
local locals = require "perilune.tools.local_processes"
local object = require "perilune.console.object"
local visit = require "perilune.tools.bus_visit"

local M = {}

local function uptime(seconds)
  if seconds < 120 then return ("%ds"):format(seconds) end
  if seconds < 7200 then return ("%dm"):format(seconds / 60) end
  if seconds < 172800 then return ("%dh"):format(seconds / 3600) end
  return ("%dd"):format(seconds / 86400)
end

local function load_text(load)
  if type(load) ~= "table" then return "-" end
  return ("%d+%d %d%%"):format(load.running or 0, load.waiting or 0,
    100 * (load.blocks_used or 0) / math.max(load.blocks or 0, 1))
end

M.HEAD = { "name", "role", "model", "load", "health", "uptime", "version", "recipe" }

-- A process's cells under HEAD. Load: sequences that run + wait, blocks in use.
function M.cells(p)
  local recipe = type(p.recipe) == "string" and p.recipe:match "[^/]*$" or "-"
  local health = tostring(p.health or "-")
  if p.state and p.state ~= "ready" then health = p.state end
  return { p.name, p.role or p.name:match "^%l+", p.model or "-", load_text(p.load),
    health, p.uptime and uptime(p.uptime) or "-", p.version or "-",
    recipe .. " " .. tostring(p.recipe_hash or ""):sub(1, 8) }
end

-- What a process that has not answered has said in its hello.
local function from_hello(said)
  local hello = said.hello
  local model = type(hello.model) == "table" and hello.model.names
  return { name = hello.name, role = hello.role, pid = hello.pid, state = hello.state,
    model = type(model) == "table" and model[1], version = hello.version,
    health = said.silent and "no answer" or hello.state,
    uptime = tonumber(engine.C.pl_wall_ns()) / 1e9 - (tonumber(hello.started) or 0),
    recipe = hello.recipe, recipe_hash = hello.recipe_hash }
end

-- What is shown of a process, and of what kind it is: others may say anything.
local KINDS = { name = "string", role = "string", pid = "number", model = "string",
  health = "string", state = "string", load = "table", uptime = "number",
  version = "string", recipe = "string", recipe_hash = "string", bus = "string",
  host = "string" }

local function is_number(v)
  return type(v) == "number" and math.abs(v) < 2 ^ 53
end

local function numbers_of(load)
  local out = json.object()
  for _, field in ipairs { "running", "waiting", "blocks", "blocks_used", "requests" } do
    if is_number(load[field]) then json.set(out, field, load[field]) end
  end
  return out
end

local function checked(said, name)
  local out = {}
  for field, kind in pairs(KINDS) do
    if type(said[field]) == kind and (kind ~= "number" or is_number(said[field])) then
      out[field] = said[field]
    end
  end
  out.name = out.name or name
  out.load = out.load and numbers_of(out.load)
  return out
end

local function on_bus(options)
  local v, why = visit.open(options)
  if not v then return nil, why end
  local out = {}
  for i, said in ipairs(v:list()) do
    local about = type(said.about) == "table" and said.about or from_hello(said)
    about.host = said.hello.host
    out[i] = checked(about, tostring(said.hello.name))
  end
  v:close()
  return out
end

local function collect_all(options)
  if options.bus then return on_bus(options) end
  local list, why = locals.about()
  for i, p in ipairs(list or {}) do list[i] = checked(p, p.name) end
  return list, why
end

function M.run(words, complain)
  local rows = flags.rows(visit.rows { { "json", false, "print JSON" } })
  if words[1] == "--help" then
    print("perilune ps: your processes on this machine, or those on a bus\n\n"
      .. flags.help(rows))
    return 0
  end
  local options, wrong, hint = flags.options(rows, words)
  if not options then return complain(wrong, hint) end
  local list, why = collect_all(options)
  if not list then
    io.stderr:write("perilune: ", why, "\n")
    return 1
  end
  if options.json then
    print((assert(json.encode(json.array(list)))))
    return 0
  end
  local cells = { M.HEAD }
  for i, p in ipairs(list) do cells[i + 1] = M.cells(p) end
  print(object.columns(cells))
  return 0
end

return M
