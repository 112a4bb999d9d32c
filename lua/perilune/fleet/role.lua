-- SPDX-License-Identifier: Apache-2.0
-- fleet/role.lua - a worker's role, changed while it serves: it is offered in the other
-- pool. What runs there goes on, with the same model and the same cache.

local bus = require "perilune.fleet.bus"
local calls = require "perilune.fleet.calls"
local cluster = require "perilune.fleet.cluster"
local flow = require "perilune.flow"
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

local IS = { prefill = "reads prompts", decode = "answers" }

-- What is wrong with a role, or nil.
local function wrong(role)
  return not IS[role]
    and ("no role '%s': wanted prefill or decode"):format(tostring(role)) or nil
end

-- Changes the role of a process, or of one worker where it has several, to "prefill" or
-- "decode". What to say of it; or nil and why not.
function M.set(process, name, role, by)
  if wrong(role) then return nil, wrong(role) end
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
  return ("%s %s"):format(name, IS[role])
end

local function find(process, name)
  for _, w in ipairs(process.server and process.server.cluster.workers or {}) do
    if w.name == name then return w end
  end
end

-- A task: asks the process that a worker is in. All workers of that change.
local function ask_peer(process, w, role)
  local said = process.server.cluster:hello_of(w.peer)
  local ok, why
  if said then
    ok, why = calls.ask(process.rt, w.peer, "role", said.hello.name .. " " .. role)
  end
  if not ok then
    log.warning("%s does not change its role: %s", w.name, why or "it is gone")
  end
end

-- The same of any worker that this process knows; one elsewhere changes when it has heard
-- of it.
function M.ask(process, name, role, by)
  local w = find(process, name)
  if not w or w.engine then return M.set(process, name, role, by) end
  if wrong(role) then return nil, wrong(role) end
  if not w.peer then return nil, ("%s is another server"):format(name) end
  flow.spawn(ask_peer, process, w, role)
  return ("%s is asked; soon it %s"):format(name, IS[role])
end

return M
