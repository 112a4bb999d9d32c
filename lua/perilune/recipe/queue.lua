-- SPDX-License-Identifier: Apache-2.0
-- recipe/queue.lua - pl.queue: the order of requests that wait for a worker.
--
-- Each is a function (req) that answers a number when a request begins to wait: the
-- lowest goes first, and of equals who came first. Dynamo's three, and fairness.

local chance = require "perilune.recipe.chance"
local lru = require "perilune.lru"
local own = require "perilune.recipe.own"

local M = {}

-- How much more important its client calls it, as Dynamo counts: higher is more.
local function jump(req)
  local hints = req.hints
  return math.max(hints and hints.priority or 0, 0)
end

-- First come, first served; a priority is so many seconds' lead.
function M.fcfs(req)
  return chance.now() - jump(req)
end

-- Last come, first served.
function M.lcfs(req)
  return -chance.now() - jump(req)
end

-- Short prompts first, by weight: the lowest mean time to the first token.
function M.wspt(req)
  return -(1 + jump(req)) / math.max(req.tokens, 1)
end

local MAX_TENANTS = 10000

-- tenant -> where its last request ends, and where one stands that begins anew.
local function nobody_yet()
  return { ends = lru.new(MAX_TENANTS), clock = 0 }
end

-- Each tenant in turn, by tokens: who has asked for much stands behind who has not.
function M.tenants(req)
  local all, tenant = own.memory("pl.queue.tenants", nobody_yet), req.tenant or ""
  local begins = math.max(all.ends:get(tenant) or 0, all.clock)
  all.ends:put(tenant, begins + req.tokens)
  all.clock = math.max(all.clock, begins)
  return begins
end

return M
