-- SPDX-License-Identifier: Apache-2.0
-- api/health.lua - is this process fit for work? What /health and /live answer.
--
--   local h = health.new { namespace = "perilune", missing = fn, instances = fn }
--   h:add_engine(0, engine)
--   local status, body = h:frontend()
--
-- An engine is well while it makes progress: of queued work some step ends, and one that
-- had nothing to do answers a trial (watch/canary.lua). A process that drains is not for
-- new work, yet alive.

local pl = require "perilune.ffi"
local json = require "perilune.json"
local C, ffi = pl.C, pl.ffi

local M = {}
M.__index = M

-- A step that takes longer than this is taken for a standstill.
M.STALL_SECONDS = 60

-- `missing()`: why nothing can be served though the process itself is well, or nil;
-- `note()`: what is amiss while requests are served all the same, or nil;
-- `instances()`: what serves, a list of { component, instance_id, transport, ready }.
-- Without it, this process's engines.
function M.new(o)
  return setmetatable({ namespace = o.namespace or "perilune", missing = o.missing,
    note = o.note, instances = o.instances, engines = {},
    stats = ffi.new "pl_engine_stats", began = C.pl_now_ns() }, M)
end

function M:add_engine(index, engine)
  self.engines[#self.engines + 1] = { index = index, engine = engine }
end

-- From now on (or no longer) this process takes nothing new.
function M:drain(on)
  self.draining = on
end

-- How a trial of an engine went: why it failed, or nil. A step that ends later counts
-- for more.
function M:tried(index, why)
  for _, e in ipairs(self.engines) do
    if e.index == index then e.why, e.why_ns = why, C.pl_now_ns() end
  end
end

-- What is wrong with an engine, or nil.
local function trouble(self, e)
  local s = self.stats
  C.pl_engine_stats_get(e.engine, s)
  local now = C.pl_now_ns()
  if s.busy_since_ns ~= 0 then
    local since = math.max(tonumber(s.busy_since_ns), tonumber(s.last_step_ns))
    local seconds = (tonumber(now) - since) / 1e9
    if seconds > M.STALL_SECONDS then
      return ("engine %d has not finished a step for %.0f s"):format(e.index, seconds)
    end
  end
  if e.why and s.last_step_ns < e.why_ns then
    return ("engine %d %s"):format(e.index, e.why)
  end
end

-- Nothing, or a word and a sentence: draining, unhealthy.
function M:problem()
  if self.draining then return "draining", "it takes no new requests" end
  for _, e in ipairs(self.engines) do
    local why = trouble(self, e)
    if why then return "unhealthy", why end
  end
  local why = self.missing and self.missing()
  if why then return "unhealthy", why end
end

local function own_instances(self)
  local list = {}
  for i, e in ipairs(self.engines) do
    list[i] = { component = "backend", instance_id = tostring(e.index),
      transport = "local", ready = trouble(self, e) == nil }
  end
  return list
end

-- A frontend's /health, as Dynamo's: a status and a body. Other than there, it is 503
-- where nobody could be served.
function M:frontend()
  local word, why = self:problem()
  local endpoints, seen, instances = {}, {}, {}
  for i, it in ipairs((self.instances or own_instances)(self)) do
    local name = ("dyn://%s.%s.generate"):format(self.namespace, it.component)
    if not seen[name] then
      seen[name] = true
      endpoints[#endpoints + 1] = name
    end
    instances[i] = json.object("namespace", self.namespace, "component", it.component,
      "endpoint", "generate", "instance_id", it.instance_id, "transport", it.transport,
      "status", it.ready and "ready" or "notready")
  end
  if not word then why = self.note and self.note() end
  local body = json.object("status", word or "healthy", "message", why or json.null,
    "endpoints", json.array(endpoints), "instances", json.array(instances))
  return word and 503 or 200, json.encode(body)
end

-- A worker's /health, as Dynamo's system server has it.
function M:worker()
  local word, why = self:problem()
  local up = C.pl_now_ns() - self.began
  local state = word and "notready" or "ready"
  local body = json.object("status", word == "draining" and word or state,
    "message", why or json.null, "endpoints", json.object("generate", state),
    "uptime", json.object("secs", tonumber(up / 1000000000),
      "nanos", tonumber(up % 1000000000)))
  return word and 503 or 200, json.encode(body)
end

-- /live: whoever can answer at all lives.
function M.live()
  return 200, '{"status":"live","message":"Service is live"}'
end

return M
