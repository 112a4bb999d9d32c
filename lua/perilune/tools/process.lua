-- SPDX-License-Identifier: Apache-2.0
-- tools/process.lua - the process: opens the roles of a recipe, runs till told to stop.
--
-- Without a role named it is all of the recipe, here. On a bus it says hello to the
-- others, and again whenever something of that changes.

local pl = require "perilune.ffi"
local admin = require "perilune.console.admin"
local bus = require "perilune.fleet.bus"
local cluster = require "perilune.fleet.cluster"
local door = require "perilune.api.door"
local drain = require "perilune.fleet.drain"
local flow = require "perilune.flow"
local follow = require "perilune.recipe.follow"
local frontend = require "perilune.api.frontend"
local health = require "perilune.api.health"
local holdings = require "perilune.fleet.holdings"
local host = require "perilune.host"
local live = require "perilune.recipe.live"
local locals = require "perilune.tools.local_processes"
local log = require "perilune.log"
local metrics = require "perilune.watch.metrics"
local models = require "perilune.fleet.served_models"
local observe = require "perilune.watch.engine_watch"
local recorder = require "perilune.fleet.recorder"
local change_role = require("perilune.fleet.role").set
local roles_of = require "perilune.recipe.roles"
local serve = require "perilune.api.serve"
local settings = require "perilune.recipe.resolve"
local health_routes = require "perilune.api.health_routes"
local throughput = require "perilune.watch.throughput"
local upstream = require "perilune.fleet.upstream"
local values = require "perilune.recipe.option_value"
local worker = require "perilune.fleet.worker"
local C, ffi = pl.C, pl.ffi

local M = {}

local Process = {}
Process.__index = Process

local SIGHUP = 1
-- How long who asks whether it is drained waits for a yes.
local DRAINED_NS = 2e9
-- What a model's loading leaves is marked anew by each collection: when the heap has
-- grown to this many percent, not 200, so that requests pay for half as many.
local GC_PAUSE = 400

local exchange_ptr = ffi.typeof "pl_exchange *"

-- A name of its own, and its owner's door under it. Without one it serves all the same.
-- `taken`: names that others have.
function Process:take_name(taken)
  local name, why = locals.listen(self.rt, self.role, taken)
  self.name = name or self.role .. "/" .. self.pid
  if not name then return log.warning("no console: %s", why) end
  log.info("console: perilune attach %s", name)
end

-- ---- draining -----------------------------------------------------------------------

-- Starts a drain: of all of it, or of one worker where it has several. What to say of it,
-- or nil and why not.
function Process:begin_drain(name, by)
  local w = name ~= self.name and self:find_worker(name) or nil
  if not w and name and name ~= self.name then return nil, "no worker " .. name end
  if (w or self).state ~= "ready" then return nil, "it is already draining" end
  log.info("drain of %s, asked for by %s", name or self.name, by)
  if w then
    flow.spawn(cluster.drain, w, self.recipe.drain_timeout)
  else
    flow.spawn(drain.run, self)
  end
  return ("draining %s"):format(name or self.name)
end

-- Takes a drain back.
function Process:resume(name, by)
  if self.stopping then return nil, "it is stopping" end
  local w = name ~= self.name and self:find_worker(name) or nil
  if not w and name and name ~= self.name then return nil, "no worker " .. name end
  log.info("resume of %s, asked for by %s", name or self.name, by)
  if w then cluster.resume(w) else drain.set_state(self, "ready") end
  return ("%s takes requests"):format(name or self.name)
end

-- Has it, or its worker of that name, read prompts or answer.
function Process:set_role(name, role, by)
  return change_role(self, name, role, by)
end

-- Whether it, or its worker of that name, is drained, waited for a moment: a table; or
-- nil and why not.
function Process:drained(name)
  local w = name ~= self.name and self:find_worker(name) or nil
  if not w and name and name ~= self.name then return nil, "no worker " .. name end
  local deadline, done = tonumber(C.pl_now_ns()) + DRAINED_NS
  repeat
    local state = (w or self).state
    done = state ~= "ready" and drain.is_idle(self, w)
    if done or state == "ready" then break end
    flow.sleep(0.02)
  until tonumber(C.pl_now_ns()) > deadline
  return { drained = done, state = (w or self).state,
    drain_timeout = self.recipe.drain_timeout }
end

-- ---- for the console ----------------------------------------------------------------

-- A worker of this process's own frontend, by its name.
function Process:find_worker(name)
  for _, w in ipairs(self.server and self.server.cluster.workers or {}) do
    if w.engine and w.name == name then return w end
  end
end

-- Changes an option or a hook while it runs: true and what to say; nil, why, hint.
function Process:set(path, value, by)
  local ok, text, hint = live.set(self, path, value, by)
  local others = ok and bus.others(self, "frontend") or 0
  if others == 0 then return ok, text, hint end
  return ok, ("%s It applies here only, to 1 of %d frontends."):format(text, others + 1)
end

-- Reads the recipe again: true and what changed; or nil, why, and the files it read.
function Process:reload()
  self:doing "the recipe's file, being reloaded"
  local ok, said, files = live.reload(self)
  self:doing ""
  return ok, said, files
end

-- What Lua does until it says otherwise, for the log of one that does not come back.
function Process:doing(what)
  C.pl_doing(self.rt, what)
end

-- ---- while it runs ------------------------------------------------------------------

local function on_request(self, ev)
  local x = ffi.cast(exchange_ptr, ev.object)
  if C.pl_exchange_is_local(x) ~= 0 then return admin.handle(self, x) end
  if self.server then return self.server:handle(x) end
  health_routes.handle(self, x)
end

local function on_signal(self, ev)
  if ev.a ~= SIGHUP then
    log.info("stopping: signal %d", ev.a)
    return drain.stop(self)
  end
  self:reload()
end

-- ---- opening ------------------------------------------------------------------------

local function runtime_options(http)
  local o = ffi.new "pl_runtime_options"
  C.pl_runtime_options_init(o)
  o.max_body = http.max_body_bytes
  o.max_header_bytes = http.h11_max_incomplete_event_size
  o.max_headers = http.h11_max_header_count
  return o
end

-- Engine number i, which is number n, from 0, of a pool's.
local function add_own(self, served, i, name, n)
  local e = self.w.engines[i]
  self.server.cluster:add { name = name .. "/" .. n, served = served,
    pool = self.terms.pools[i] == "prefill" and served.prefill or served.pool,
    engine = e.engine,
    numerics = ffi.string(C.pl_model_numerics(e.model)),
    tags = models.list_of(e.pool.tags), tells = holdings.tells(self.terms) }
end

-- The workers of this process, for its own frontend.
local function serve_own(self)
  local w, server = self.w, self.server
  local served, why = server.models:add(self.card, w.tokenizer, self.terms)
  if not served then return nil, why end
  served.stream_interval = self.recipe[self.recipe.main].stream_interval
  for _, name in ipairs(self.pools) do
    local n = 0
    for i, e in ipairs(w.engines) do
      if e.pool == self.recipe[name] then
        add_own(self, served, i, name, n)
        n = n + 1
      end
    end
  end
  return true
end

local function open_workers(self)
  local model = self.card.names[1]
  if self.server then
    self.metrics:add_model(model, observe.config(self.recipe, self.w.engines[1]))
  end
  for i, e in ipairs(self.w.engines) do
    observe.engine(i - 1, e, self.w, { rt = self.rt, metrics = self.metrics,
      recipe = self.recipe, health = self.health, model = model })
    if C.pl_runtime_attach(self.rt, e.engine) < 0 then
      return pl.refusal(C.PL_EINTERNAL)
    end
    if self.recipe.bus then C.pl_bus_serve(self.rt, i - 1, e.engine) end
  end
  if self.server then return serve_own(self) end
  return true
end

-- The servers that are this recipe's workers.
local function serve_upstream(self)
  local terms = upstream.terms(self.recipe, self.upstream, self.card)
  local served, why = self.server.models:add(self.card, self.upstream.tokenizer, terms)
  if not served then return nil, why end
  self.metrics:add_model(self.card.names[1], { context_length = terms.max_model_len,
    kv_cache_block_size = terms.block_size,
    migration_limit = self.recipe.migration_limit })
  return upstream.join(self.server, self.upstream, served)
end

-- Says where it can be reached, now that it can answer.
local function announce(self)
  if self.server then
    self.server:open(self.url)
  elseif self.url then
    log.info("metrics and health at %s", self.url)
  end
end

-- Where requests are written, if the recipe says so.
local function open_recorder(self)
  local path = self.recipe.record
  if not path then return true end
  local why
  self.server.recorder, why = recorder.open(path)
  return self.server.recorder ~= nil, why and "record: " .. why
end

local function open_parts(self)
  local recipe = self.recipe
  self.metrics = metrics.new { namespace = recipe.namespace,
    model = self.roles.frontend and self.card and self.card.names[1] or nil }
  self.health = health.new { namespace = recipe.namespace,
    missing = function() return bus.trouble(self) end }
  if self.roles.frontend then
    self.server = frontend.new(recipe, self.rt,
      not recipe.bus and self.w ~= nil and #self.w.engines == 1)
    self.server.metrics, self.server.process = self.metrics, self
    self.server.health = self.health
    self.health.missing = function()
      local why, away = self.server:missing(), bus.trouble(self)
      return why and away and why .. ": " .. away or why
    end
    self.health.note = function() return bus.trouble(self) end
    self.health.instances = function() return self.server:instances() end
    local ok, why = open_recorder(self)
    if not ok then return nil, why end
  end
  if self.w or self.upstream then
    local ok, why = (self.w and open_workers or serve_upstream)(self)
    if not ok then return nil, why end
  end
  if recipe.bus then
    local ok, why = bus.open(self, admin)
    if not ok then return nil, why end
  end
  announce(self)
  return true
end

local function run(self)
  local ok, why = open_parts(self)
  if not ok then return nil, why end
  if not self.recipe.bus then self:take_name() end
  flow.on("request", function(ev) on_request(self, ev) end)
  if self.server then flow.on("gone", function(ev) self.server:gone(ev.id) end) end
  flow.on("signal", function(ev) on_signal(self, ev) end)
  flow.spawn(throughput.run, self.metrics, self.recipe)
  if self.recipe.watch then flow.spawn(follow.run, follow.new(self)) end
  if self.server then self.server:watch() end
  collectgarbage()
  collectgarbage("setpause", GC_PAUSE)
  self:doing ""
  local ran, failed = flow.run(self.rt)
  if self.server then serve.abandon(self.server) end
  self:doing(nil)
  return ran, failed
end

-- Runs, and ends the pool's threads whatever happens.
local function run_and_end(self)
  local ran, ok, why = xpcall(run, debug.traceback, self)
  for _, x in pairs(self.exchanges) do C.pl_exchange_release(x) end
  if self.server and not self.server:close() then host.leave(ran and ok and 0 or 1) end
  if not ran then return nil, ok end
  return ok, why
end

-- Loads what the roles need. true; nil and why; or false: a signal came first.
local function load_workers(self)
  local recipe, asked, why = self.recipe, door.watcher(self.rt), nil
  if recipe[recipe.main].upstream then
    if not self.roles.frontend then
      return nil, "the workers of this recipe are elsewhere (upstream): run a frontend"
    end
    self.upstream, why = upstream.open(recipe)
    if self.upstream then self.card, why = models.card(recipe, self.upstream) end
    return self.card and true, why
  end
  if self.pools[1] then
    self.w, why = worker.open(recipe, self.pools, asked)
    if self.w then self.card, why = models.card(recipe, self.w) end
  end
  if asked() then return false end
  if not self.pools[1] then return true end
  if not self.card then return nil, why end
  self.terms = bus.terms(recipe, self.w, self.card)
  return true
end

-- A frontend's port, or a worker's own, for what it tells of itself.
local function open_door(self)
  local recipe = self.recipe
  local port, flag = recipe.http.port, "--port"
  if not self.roles.frontend then
    port, flag = recipe.metrics_endpoint_port, "--metrics-endpoint-port"
  end
  if not port then return true end
  local url, why = door.open(self.rt, recipe.http.host, port, flag)
  self.url = url
  return url and true, why
end

-- With the runtime open, for it watches for signals: loads, serves, closes.
local function load_and_run(self)
  local ok, why = open_door(self)
  if ok then ok, why = load_workers(self) end
  if ok then ok, why = run_and_end(self) end
  C.pl_runtime_close(self.rt)
  if self.w then worker.close(self.w) end
  if self.upstream then upstream.close(self.upstream) end
  return ok ~= nil, why
end

-- What is not as it comes, and who said so; a worker's model in any case.
local function tell_settings(recipe, has_worker)
  local told = {}
  for _, s in ipairs(settings.settings(recipe)) do
    local is_own = s.path == "model" and has_worker
    if s.value ~= nil and (is_own or s.origin ~= "default") then
      told[#told + 1] = ("%s = %s (%s)"):format(s.path, values.public(s.row, s.value),
        s.origin)
    end
  end
  log.info("%s: %s; else defaults", recipe.file, table.concat(told, ", "))
end

local function process_id()
  local f = io.open "/proc/self/stat"
  local id = f and f:read "*n"
  if f then f:close() end
  return id or 0
end

-- Which recipe this is, as 16 hex digits of its text.
local function hash_of(file)
  local f = io.open(file, "rb")
  local text = f and f:read "*a" or ""
  if f then f:close() end
  return bit.tohex(C.pl_weights_fingerprint(nil, text, #text, 0), 16)
end

-- Runs a resolved recipe until a signal; answers the exit code. `roles`: a set of
-- frontend and the names of pools.
function M.run(recipe, roles)
  log.level(recipe.log_level)
  log.format(recipe.log_format)
  local self = setmetatable({ recipe = recipe, roles = roles, state = "ready",
    pools = roles_of.pools(recipe, roles),
    pid = process_id(), recipe_hash = hash_of(recipe.file), exchanges = {},
    role = roles_of.name(recipe, roles),
    stats = ffi.new "pl_engine_stats", started = C.pl_wall_ns() }, Process)
  self.rt = C.pl_runtime_open(runtime_options(recipe.http))
  local ok, why
  if self.rt == nil then
    ok, why = pl.refusal(C.PL_EIO)
  else
    tell_settings(recipe, self.pools[1])
    ok, why = load_and_run(self)
  end
  if ok then return 0 end
  log.error("%s", why)
  return 1
end

return M
