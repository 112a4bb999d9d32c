-- SPDX-License-Identifier: Apache-2.0
-- api/frontend.lua - what answers HTTP: the server object, its models, its requests.

local pl = require "perilune.ffi"
local balance = require "perilune.fleet.balance"
local cluster = require "perilune.fleet.cluster"
local decide = require "perilune.fleet.decide"
local flow = require "perilune.flow"
local heap = require "perilune.heap"
local holdings = require "perilune.fleet.holdings"
local host = require "perilune.host"
local line = require "perilune.fleet.line"
local log = require "perilune.log"
local metric = require "perilune.recipe.metric"
local models = require "perilune.fleet.served_models"
local routes = require "perilune.api.routes"
local overload = require "perilune.fleet.overload"
local settings = require "perilune.recipe.resolve"
local C, ffi = pl.C, pl.ffi

local M = {}

local Server = {}
Server.__index = Server

-- Threads that prepare big requests.
local POOL_THREADS = 2
-- How long an end waits for big requests to be prepared.
local JOIN_SECONDS = 1

local function is_due_before(a, b)
  return a.at < b.at
end

local function watch_deadlines(server)
  local list = server.deadlines
  while list.n > 0 do
    local d = list[1]
    local left = d.at - flow.now()
    if left > 0 then
      flow.park(left)
    else
      heap.remove(list, d)
      d.job.deadline = nil
      d.job:cancel(d.refused)
    end
  end
  server.watcher = nil
end

-- Ends the job with `refused` unless it has ended within so many seconds of `arrived`.
function Server:set_deadline(job, arrived, seconds, refused)
  local d = { job = job, at = tonumber(arrived) * 1e-9 + seconds, refused = refused }
  job.deadline = d
  heap.push(self.deadlines, d)
  if not self.watcher then
    self.watcher = flow.spawn(watch_deadlines, self)
  elseif self.deadlines[1] == d then
    flow.wake(self.watcher)
  end
end

-- The job has ended: its deadline does not matter any more.
function Server:clear_deadline(job)
  if not job.deadline then return end
  heap.remove(self.deadlines, job.deadline)
  job.deadline = nil
end

-- The client of exchange `id` is gone: what waits for a worker is not wanted any more.
function Server:gone(id)
  local job = self.jobs[id]
  if job then line.release(job) end
end

-- Copies live options to where each request looks for them: at the start, and after each
-- change.
function Server:refresh()
  local http = self.recipe.http
  self.api_keys = models.list_of(http.api_key)
  self.force_usage = http.enable_force_include_usage
  self.id_headers = http.enable_request_id_headers
  self.log_requests = http.enable_log_requests
  self.may_overload = overload.is_on(self)
  self.models:refresh()
  metric.open(settings.metrics(self.recipe))
  for _, served in ipairs(self.models.list) do
    if served.stream_interval then
      served.stream_interval = self.recipe[self.recipe.main].stream_interval
    end
  end
end

-- A server for a recipe; `alone`: no worker but this process's own will ever come.
function M.new(recipe, rt, alone)
  local http, list = recipe.http, models.list_of
  local self = setmetatable({
    recipe = recipe, rt = rt, models = models.new(recipe), moves = not alone,
    in_flight = 0, waiting = 0, live = {}, exchanges = {}, jobs = {},
    deadlines = heap.new(is_due_before),
    stream_interval = 1, dev_mode = http.enable_dev_endpoints,
    track_load = http.enable_server_load_tracking,
    cors = { origins = list(http.allowed_origins),
      methods = list(http.allowed_methods), headers = list(http.allowed_headers),
      credentials = http.allow_credentials },
  }, Server)
  self:refresh()
  local matches, wanted = models.wanted(recipe)
  self.wanted = wanted
  self.cluster = cluster.new(rt, self.models, matches, function()
    self:count()
    self:tell()
  end)
  return self
end

-- Answers one exchange.
function Server:handle(x)
  routes.handle(self, x)
end

-- What it does now and then: tasks.
function Server:watch()
  flow.spawn(self.cluster.watch, self.cluster)
  flow.spawn(holdings.watch, self.cluster)
  flow.spawn(balance.run, self)
end

-- From now on it can answer, at that URL.
function Server:open(url)
  for _ = 1, POOL_THREADS do
    host.spawn("perilune.api.pool", tonumber(ffi.cast("uintptr_t", self.rt)))
  end
  self.has_pool = true
  self.url = url
  self:tell()
end

-- Why nobody can be served, or nil. Who only reads prompts serves nobody.
function Server:missing()
  for _, w in ipairs(self.cluster.workers) do
    if w.state == "ready" and w.pool == w.served.pool then return nil end
  end
  return self.cluster.workers[1] and "no worker takes requests now"
    or "no worker is available"
end

-- Counts the workers that are ready, for the metrics.
function Server:count()
  for _, served in ipairs(self.models.list) do
    for _, pool in ipairs { served.pool, served.prefill } do
      local n = 0
      for _, w in ipairs(pool.workers) do
        if w.state == "ready" then n = n + 1 end
      end
      self.metrics:workers(served.key, pool.name, n)
    end
  end
end

-- Says, where that has changed, whether anybody can be served.
function Server:tell()
  if not self.url or self.stopping then return end
  local why = self:missing() or ""
  if why == self.told then return end
  local was = self.told
  self.told = why
  if why == "" then
    local names = {}
    for i, served in ipairs(self.models.list) do names[i] = served.key end
    log.info("serving %s at %s", table.concat(names, ", "), self.url)
  elseif was then
    log.warning("%s; requests wait at %s", why, self.url)
  else
    log.info("waiting for a worker of %s in namespace '%s' at %s", self.wanted,
      self.recipe.namespace, self.url)
  end
end

-- What serves, as api/health.lua tells it.
function Server:instances()
  local list = {}
  for i, w in ipairs(self.cluster.workers) do
    list[i] = { component = w.pool == w.served.prefill and "prefill" or "backend",
      instance_id = w.name,
      transport = w.engine and "local" or w.url and "http" or "nats",
      ready = w.state == "ready" }
  end
  return list
end

-- Nobody new is let in.
function Server:refuse_new()
  if self.stopping then return end
  self.stopping = true
  C.pl_unlisten(self.rt)
end

-- Ends what still runs: who is being answered gets what there is.
function Server:cut_off()
  for _, job in pairs(self.jobs) do job:cancel({}) end
  for _, stream in pairs(self.live) do C.pl_stream_cancel(stream) end
end

-- After the last event: gives back what is open. Whether all threads have ended.
function Server:close()
  for _, x in pairs(self.exchanges) do C.pl_exchange_release(x) end
  if self.recorder then self.recorder:close() end
  decide.close(self.models)
  holdings.close(self.models)
  self.cluster:close()
  C.pl_task_stop(self.rt)
  if host.join(JOIN_SECONDS) then
    self.models:close()
    return true
  end
  log.warning("a large request is still being prepared; not waiting for it")
  return false
end

return M
