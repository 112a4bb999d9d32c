-- SPDX-License-Identifier: Apache-2.0
-- fleet/balance.lua - asks the hook `roles` how many workers should read prompts, and has
-- one change its role where there are more or fewer.
--
-- One at a time, so that the hook sees what each change has done. Where there are several
-- frontends the one with the lowest id asks.

local pl = require "perilune.ffi"
local cluster = require "perilune.fleet.cluster"
local counters = require "perilune.fleet.counters"
local decide = require "perilune.fleet.decide"
local flow = require "perilune.flow"
local hooks = require "perilune.recipe.hooks"
local roles = require "perilune.fleet.role"
local C, ffi = pl.C, pl.ffi

local M = {}

local SECONDS = 5

-- Whether a worker's role can be changed: a server's cannot, nor that of a process of a
-- release that knows of no roles.
local function can_change(w)
  return not w.url and (not w.peer or w.knows_roles)
end

-- The worker of a pool that has least to do; nil: none can be spared. `keep`: so many
-- must stay.
local function spare(pool, keep)
  local best, n = nil, 0
  for _, w in ipairs(pool.workers) do
    if w.state == "ready" then
      n = n + 1
      if can_change(w) and (not best or counters.load(w) < counters.load(best)) then
        best = w
      end
    end
  end
  return n > keep and best or nil
end

-- The change that brings the number of readers, n, nearer to what is wanted: a worker and
-- its role; or nil.
local function next_change(served, n, wanted)
  if wanted > n then return spare(served.pool, 1), "prefill" end
  if wanted < n then return spare(served.prefill, 0), "decode" end
end

-- Asks the hook, once, about a served model: a worker and the role it should have; nil:
-- all is as it should be.
function M.ask(server, served)
  local fn = server.recipe.roles
  if not fn or #served.workers + #served.prefill.workers < 2 then return nil end
  local readers, others = decide.view(served.prefill), decide.view(served.pool)
  local wanted = hooks.roles(server, fn, readers:fleet(), others:fleet())
  if wanted then return next_change(served, readers.n, wanted) end
end

local function is_first(process)
  local own = ffi.string(C.pl_bus_id(process.rt))
  for _, said in pairs(process.peers or {}) do
    if said.hello.role == "frontend" and tostring(said.id) < own then return false end
  end
  return true
end

-- A frontend's task.
function M.run(server)
  while true do
    flow.sleep(SECONDS)
    for _, served in ipairs(is_first(server.process) and server.models.list or {}) do
      local w, role = M.ask(server, served)
      if w then roles.ask(server.process, w, role, "the hook roles") end
    end
  end
end

-- The same in a simulation, whose workers are told nothing.
function M.simulate(server, served)
  while true do
    flow.sleep(SECONDS)
    local w, role = M.ask(server, served)
    if w then cluster.set_pool(w, role == "prefill" and served.prefill or served.pool) end
  end
end

return M
