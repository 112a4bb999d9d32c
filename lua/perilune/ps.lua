-- SPDX-License-Identifier: Apache-2.0
-- ps.lua - perilune ps: the processes of this user on this machine.

local json = require "perilune.json"
local locals = require "perilune.local"
local object = require "perilune.console_object"

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

function M.run(words, complain)
  if words[1] == "--help" then
    print "perilune ps [--json]: the processes of yours that run on this machine"
    return 0
  end
  if words[1] and words[1] ~= "--json" then
    return complain(("ps takes no '%s'"):format(words[1]), "perilune ps --json")
  end
  local list, why = locals.about()
  if not list then
    io.stderr:write("perilune: ", why, "\n")
    return 1
  end
  for _, p in ipairs(list) do p.path = nil end
  if words[1] == "--json" then
    print((assert(json.encode(json.array(list)))))
    return 0
  end
  local cells = { M.HEAD }
  for i, p in ipairs(list) do cells[i + 1] = M.cells(p) end
  print(object.columns(cells))
  return 0
end

return M
