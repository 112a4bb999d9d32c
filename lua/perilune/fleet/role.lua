-- SPDX-License-Identifier: Apache-2.0
-- fleet/role.lua - a worker's role, changed while it serves: it is offered in the other
-- pool. What runs there goes on, with the same model and the same cache.

local bus = require "perilune.fleet.bus"
local cluster = require "perilune.fleet.cluster"
local log = require "perilune.log"

local M = {}

-- The numbers of the engines that are meant: of all the process, or of one worker of its
-- own frontend's.
local function engines(process, w)
  local list = {}
  for i, e in ipairs(process.w and process.w.engines or {}) do
    if not w or e.engine == w.engine then list[#list + 1] = i end
  end
  return list
end

-- Offers them to this process's own frontend in that pool.
local function move_own(process, engine, role)
  for _, w in ipairs(process.server and process.server.cluster.workers or {}) do
    if w.engine == engine then
      cluster.set_pool(w, role == "prefill" and w.served.prefill or w.served.pool)
    end
  end
end

-- Changes the role of a process, or of one worker where it has several, to "prefill" or
-- "decode". What to say of it; or nil and why not.
function M.set(process, name, role, by)
  if role ~= "prefill" and role ~= "decode" then
    return nil, ("no role '%s': wanted prefill or decode"):format(role)
  end
  local w = name ~= process.name and process:find_worker(name) or nil
  if not w and name ~= process.name then return nil, "no worker " .. name end
  local list = engines(process, w)
  if not list[1] then return nil, ("%s has no workers of its own"):format(name) end
  log.info("role of %s: %s, asked for by %s", name, role, by)
  for _, i in ipairs(list) do
    process.terms.pools[i] = role
    move_own(process, process.w.engines[i].engine, role)
  end
  if not w and process.role ~= "frontend" then process.role = role end
  bus.hello(process)
  return ("%s %s"):format(name, role == "prefill" and "reads prompts" or "answers")
end

return M
