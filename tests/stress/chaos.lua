-- SPDX-License-Identifier: Apache-2.0
-- chaos.lua - streams of every kind while what serves them is killed, stopped, drained,
-- cut off: each must end as if nothing had been.
--
-- The answers are asked of one plain process first. Then four workers, a frontend and a
-- nats-server are disturbed at moments that a seed draws, and 64 requests are kept under
-- way. Run by chaos_spec.lua; `./dev chaos` runs it longer.

local deployment = require "support.deployment"
local load = require "stress.load"
local process = require "support.process"
local requests = require "stress.requests"
local traffic = require "support.traffic"

local M = { WORKERS = 4, STREAMS = 64 }

local WORKER = load.flags { "--drain-timeout", "1" }
local LOST_AFTER = 2                         -- seconds, as it comes
local ENDING = 120                           -- seconds that what is under way may take
local FRONTEND = { "--migration-limit", "1000", "--drain-timeout", tostring(ENDING) }

local Chaos = {}
Chaos.__index = Chaos

function Chaos:fail(...) self.load:fail(...) end

-- Counts moves by kind from what the frontends log.
function Chaos:count_moves()
  for _, frontend in ipairs(self.fleet.frontends) do
    for tokens, kind in frontend:news():gmatch
        "recreating stream on [^\n]-, (%d+) tokens so far [^\n]-=([%l_]+)%-%d+" do
      if tonumber(tokens) > 0 then self.moves[kind] = (self.moves[kind] or 0) + 1 end
    end
  end
end

-- The kind that has moved least, and how often.
function Chaos:least_moved()
  local least, n
  for _, kind in ipairs(requests.KINDS) do
    local moved = self.moves[kind] or 0
    if not n or moved < n then least, n = kind, moved end
  end
  return least, n
end

-- ---- disturbances -------------------------------------------------------------------

function Chaos:after(seconds, act)
  self.timers[#self.timers + 1] = { at = traffic.now() + seconds, act = act }
end

function Chaos:run_timers(now)
  local due, left = {}, {}
  for _, timer in ipairs(self.timers) do
    table.insert(timer.at <= now and due or left, timer)
  end
  self.timers = left
  for _, timer in ipairs(due) do timer.act() end
end

-- A worker that may be disturbed: one that reads prompts, or, if another one remains, one
-- that answers.
function Chaos:victim()
  local up, n_answer = {}, 0
  for _, w in ipairs(self.fleet.workers) do
    if w.port and not w.busy then
      up[#up + 1] = w
      n_answer = n_answer + (w.role == "prefill" and 0 or 1)
    end
  end
  local w = up[1] and up[self.roll(1, #up)]
  if w and (w.role == "prefill" or n_answer >= 2) then return w end
end

-- A new worker, without waiting for it.
function Chaos:replace(worker)
  self.fleet:forget(worker)
  self.fleet:begin_worker { role = worker.role }
end

local acts = {}

function acts.kill(self)
  local w = self:victim()
  if not w then return end
  w:signal "KILL"
  w.process:remove()
  self:replace(w)
  return true
end

-- Long enough to count as lost, or not quite so.
function acts.stop(self)
  local w = self:victim()
  if not w then return end
  local long = self.roll(1, 3) > 1
  local seconds = long and LOST_AFTER + self.roll(500, 2000) / 1000
    or self.roll(100, 1500) / 1000
  w.busy = true
  w:signal "STOP"
  self:after(seconds, function()
    w:signal "CONT"
    w.busy = false
  end)
  return true
end

function acts.drain(self)
  local w = self:victim()
  if not w then return end
  w:signal "TERM"
  w.busy = true
  self.leaving[#self.leaving + 1] = w
  self:replace(w)
  return true
end

function acts.bus(self)
  if self.bus_away then return end
  self.bus_away = true
  self.fleet.nats:kill()
  local keep = self.roll(1, 2) == 1
  self:after(self.roll(0, 1500) / 1000, function()
    self.fleet.nats:start_again(keep)
    self.bus_away = false
  end)
  return true
end

-- Another frontend joins, takes requests for a while, and leaves.
function acts.frontend(self)
  if self.second or self.bus_away then return end
  local second = self.fleet:add_frontend()
  self.second = second
  self:after(2, function() second.serves = second:get "/health".status == 200 end)
  self:after(8, function() second.serves = false end)
  self:after(10, function()
    second:signal "TERM"
    self.second = nil
    self.leaving[#self.leaving + 1] = second
  end)
  return true
end

local ACTS = { "kill", "kill", "kill", "stop", "stop", "drain", "drain", "bus", "frontend" }

function Chaos:disturb()
  local name = ACTS[self.roll(1, #ACTS)]
  if acts[name](self) then self.acts[name] = (self.acts[name] or 0) + 1 end
end

-- Workers whose port is known by now, and those that have left.
function Chaos:watch()
  for _, w in ipairs(self.fleet.workers) do
    if not w.port then self.fleet:found(w) end
    if not w:runs() then
      self:fail("a worker ended on its own:\n%s", w.process:log():sub(-2000))
      self:replace(w)
    end
  end
  for i = #self.leaving, 1, -1 do
    local member = self.leaving[i]
    if not member:runs() then
      table.remove(self.leaving, i)
      self:count_moves()
      local ok, why = pcall(member.ended, member, 1)
      if not ok then self:fail("after SIGTERM: %s", why) end
      self.fleet:forget(member)
    end
  end
end

-- ---- before and after ---------------------------------------------------------------

-- What must be as it was once nothing is under way.
function Chaos:footprint()
  local f = self.fleet
  local js = f.nats:see "/jsz"
  return { descriptors = f.frontends[1]:descriptors(),
    subscriptions = f.nats:see "/subsz".num_subscriptions,
    connections = f.nats:see "/connz".num_connections,
    streams = js.streams, consumers = js.consumers }
end

local function same(a, b)
  for key, value in pairs(a) do
    if value ~= b[key] then return false, ("%s: %s, and were %s"):format(key, b[key], value) end
  end
  return true
end

-- All at once, short: what is opened once and kept is open now.
function Chaos:warm_up()
  local list = {}
  for i = 1, M.STREAMS do
    list[i] = { kind = "warm", path = "/v1/completions",
      body = { prompt = "x", max_tokens = 8, ignore_eos = true } }
  end
  load.ask_all(self.fleet.frontends[1].port, list)
  process.sleep(0.5)
  self.before = self:footprint()
end

-- Nothing new is asked; what is under way ends. Then nothing may be left of it.
function Chaos:settle()
  self.load:settle(ENDING, function() self:attend() end)
  process.wait_for(60, function()
    self:attend()
    return #self.timers == 0 and #self.leaving == 0
  end)
  self:count_moves()
  self.fleet:ready(#self.fleet.workers)
  for i, w in ipairs(self.fleet.workers) do
    if not process.wait_for(10, function() return w:is_idle() end) then
      self:fail("worker %d is not idle:\n%s", i, w:get "/metrics".text)
    end
  end
  local ok, why
  process.wait_for(15, function()
    ok, why = same(self.before, self:footprint())
    return ok
  end)
  if not ok then self:fail("left over: %s", why) end
end

-- What is due.
function Chaos:attend()
  local now = traffic.now()
  self:run_timers(now)
  if now < (self.watched or 0) then return end
  self.watched = now + 0.25
  self:watch()
  self:count_moves()
end

-- Until the time is up and each kind has moved often enough, or twice the time is up.
function Chaos:storm(seconds, moves)
  local began = traffic.now()
  local next_at, memory_at = began + 1, began + seconds / 3
  while true do
    local now = traffic.now()
    local _, least = self:least_moved()
    if now > began + seconds and (least >= moves or now > began + 2 * seconds) then break end
    if now >= next_at then
      self:disturb()
      next_at = now + self.roll(300, 1700) / 1000
    end
    if now >= memory_at and not self.memory then
      self.memory = self.fleet.frontends[1]:memory()
    end
    self:attend()
    self.load:tick(true)
  end
  self.seconds = traffic.now() - began
end

-- Which frontend is asked: mostly the first.
function Chaos:port()
  local second = self.second
  if second and second.serves and self.roll(1, 3) == 1 then return second.port end
  return self.fleet.frontends[1].port
end

-- options: seconds, seed, moves (how often each kind must move, mid-stream), and, where
-- there are two pools, pools and workers as support/deployment has them. A report:
-- load (its failures, done, cancelled), moves by kind, acts by name, memory and
-- memory_after in MiB.
function M.run(options)
  local self = setmetatable({ roll = requests.dice(options.seed + 1), timers = {},
    leaving = {}, moves = {}, acts = {} }, Chaos)
  self.load = load.open { list = load.record(load.ENGINE, options.seed), cancel = 12,
    streams = M.STREAMS, seed = options.seed, port = function() return self:port() end }
  self.fleet = deployment.start { workers = options.workers or M.WORKERS,
    pools = options.pools, worker = WORKER, frontend = FRONTEND,
    env = { PERILUNE_DIRECT_LINKS = tostring(self.roll(1, 2) == 1) } }
  local ran, why = xpcall(function()
    self:warm_up()
    self:storm(options.seconds, options.moves)
    self:settle()
    self.memory_after = self.fleet.frontends[1]:memory()
    self.fleet:close()
  end, debug.traceback)
  if not ran then
    self.fleet:remove()
    self:fail("%s", why)
  end
  return self
end

return M
