-- SPDX-License-Identifier: Apache-2.0
-- fleet/role.lua - a worker's role, changed while it serves: it is offered in the other
-- pool. What runs there goes on, with the same model and the same cache.
--
--     role.set(process, "decode/1", "prefill", by)      a process, or an engine of it
--     role.ask(process, w, "prefill", by)               any worker that a frontend knows
--
-- "decode/1.0" is the first engine of a process that has several; a frontend calls those
-- of its own process "decode/0" and so on.

local bus = require "perilune.fleet.bus"
local calls = require "perilune.fleet.calls"
local cluster = require "perilune.fleet.cluster"
local flow = require "perilune.flow"
local log = require "perilune.log"

local M = {}

local IS = { prefill = "reads prompts", decode = "answers" }

-- What is wrong with a role, or nil.
local function wrong(role)
  return not IS[role]
    and ("no role '%s': wanted prefill or decode"):format(tostring(role)) or nil
end

-- The numbers of the engines that are meant; none: there is no such worker.
local function engines(process, name)
  local list, w = {}, process:find_worker(name)
  for i, e in ipairs(process.w and process.w.engines or {}) do
    if w and e.engine == w.engine or name == process.name
        or name == ("%s.%d"):format(process.name, i - 1) then
      list[#list + 1] = i
    end
  end
  return list
end

-- Offers an engine to this process's own frontend in that pool.
local function move_own(process, engine, role)
  for _, w in ipairs(process.server and process.server.cluster.workers or {}) do
    if w.engine == engine then
      cluster.set_pool(w, role == "prefill" and w.served.prefill or w.served.pool)
    end
  end
end

-- What a process is called by what its engines do.
local function role_of(process)
  local role = process.terms.pools[1]
  for _, other in ipairs(process.terms.pools) do
    if other ~= role then return "worker" end
  end
  return role
end

-- Changes the role of a process, or of one of its engines, to "prefill" or "decode". What
-- to say of it; or nil and why not.
function M.set(process, name, role, by)
  if wrong(role) then return nil, wrong(role) end
  local list = engines(process, name)
  if not list[1] then return nil, ("no worker %s"):format(name) end
  log.info("role of %s: %s, asked for by %s", name, role, by)
  for _, i in ipairs(list) do
    process.terms.pools[i] = role
    move_own(process, process.w.engines[i].engine, role)
  end
  if not process.server then process.role = role_of(process) end
  bus.hello(process)
  return ("%s %s"):format(name, IS[role])
end

-- A task: asks the process that a worker is in.
local function ask_peer(process, w, role)
  local ok, why = calls.ask(process.rt, w.peer, "role", w.name .. " " .. role)
  if not ok then log.warning("%s does not change its role: %s", w.name, why) end
end

-- The same of a worker that this process's frontend knows; one elsewhere changes when it
-- has heard of it.
function M.ask(process, w, role, by)
  if w.engine then return M.set(process, w.name, role, by) end
  if wrong(role) then return nil, wrong(role) end
  if w.url then return nil, ("%s is another server"):format(w.name) end
  flow.spawn(ask_peer, process, w, role)
  return ("%s is asked; soon it %s"):format(w.name, IS[role])
end

-- The same by name, of whatever a console may mean.
function M.ask_named(process, name, role, by)
  for _, w in ipairs(process.server and process.server.cluster.workers or {}) do
    if w.name == name then return M.ask(process, w, role, by) end
  end
  return M.set(process, name, role, by)
end

return M
