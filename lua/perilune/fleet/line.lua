-- SPDX-License-Identifier: Apache-2.0
-- fleet/line.lua - the line of those who wait for a worker, one for each model.
--
--     local queue = line.of(server, job.served)
--     local w, refused = queue:wait(job, choice, avoid, numerics)   -- in a task
--     queue:room(w, n)         -- n more may ask this worker, which takes requests
--     line.release(job)        -- it is over: those of it that wait stop waiting
--
-- First come streams that have begun, for their clients are in the middle of an answer;
-- then the lower priority, as in an engine's own line, or what the pool's hook `queue`
-- says instead; then who came first.
--
-- Nobody polls. A waiter is called when a worker joins, resumes, is trusted again or has
-- room, and when the waiter called before it has gone. Only one is called at a time, the
-- first that can go: if the worker vanishes meanwhile, the others have slept on. So while
-- nobody is called nobody can go, and a newcomer overtakes no one. Deadlines, cancels and
-- clients that hang up wake those they concern.
--
-- Waiters that the same workers are closed to (`avoid`, `full`) form a group: either its
-- first can go or none of them can.
--
-- A hook may want one to wait that could go (fleet/decide.lua). That one steps aside, and
-- the next is called. Those aside come back into line, the first of them, when a worker
-- has finished something, when a newcomer comes, and now and then, for nobody tells how
-- far a prompt has been read.

local pl = require "perilune.ffi"
local decide = require "perilune.fleet.decide"
local eligible = require "perilune.fleet.eligible"
local flow = require "perilune.flow"
local heap = require "perilune.heap"
local hooks = require "perilune.recipe.hooks"
local waits = require "perilune.watch.waits"
local C = pl.C

local M = {}

-- How long one waits at most that a hook wants to wait. Of these so many are asked again
-- when a worker has finished something, and so many now and then; one that was asked so
-- often lets others by.
local PATIENCE_SECONDS = 600
local ASKED_ON_NEWS, ASKED_AGAIN, AGAIN_SECONDS = 4, 64, 0.02
local FAIR_SHARE = 64

local Line = {}
Line.__index = Line

-- The line of a served model. http.max_waiting bounds all lines of a server together.
function M.of(server, served)
  local self = served.line
  if not self then
    self = setmetatable({ server = server, served = served, groups = {}, n = 0,
      aside = heap.new(M.is_sooner) }, Line)
    served.line = self
  end
  return self
end

-- ---- a job's tasks ------------------------------------------------------------------

-- Whether nobody wants the answer any more: its time limit, a cancel, its client's going.
function M.is_over(job)
  local x = job.exchange                    -- a simulated one has none
  return job.over or x and C.pl_exchange_is_gone(x) ~= 0
end

-- Parks the task that runs, a choice's of this job, for so long at most: it may be woken,
-- and is when the job is over.
function M.park(job, seconds)
  local task = flow.current()
  job.parked = job.parked or {}
  job.parked[task] = true
  flow.park(seconds)
  job.parked[task] = nil
end

-- The job is over.
function M.release(job)
  for task in pairs(job.parked or {}) do flow.wake(task) end
end

-- ---- order --------------------------------------------------------------------------

local n_came = 0

local function is_before(a, b)
  if a.has_begun ~= b.has_begun then return a.has_begun end
  if a.priority ~= b.priority then return a.priority < b.priority end
  return a.came < b.came
end

-- Of those aside: who was asked in vain many times lets others be asked.
function M.is_sooner(a, b)
  local more = math.floor(a.asked / FAIR_SHARE) - math.floor(b.asked / FAIR_SHARE)
  if more ~= 0 then return more < 0 end
  return is_before(a, b)
end

local function group_name(waiter)
  local avoid, closed = waiter.avoid, {}
  for w in pairs(waiter.choice.full) do closed[#closed + 1] = w.number end
  table.sort(closed)
  return (avoid and avoid.number or "") .. "/" .. table.concat(closed, " ")
end

local function enter(self, waiter)
  local name = group_name(waiter)
  local group = self.groups[name]
  if not group then
    group = heap.new(is_before)
    group.name, group.avoid, group.full = name, waiter.avoid, {}
    for w in pairs(waiter.choice.full) do group.full[w] = true end
    self.groups[name] = group
  end
  waiter.group = group
  heap.push(group, waiter)
  self.n = self.n + 1
end

local function leave(self, waiter)
  local group = waiter.group
  heap.remove(group, waiter)
  if group.n == 0 and group.name then self.groups[group.name] = nil end
  self.n = self.n - 1
end

-- ---- turns --------------------------------------------------------------------------

local function can_go(group, self)
  return eligible.has(self.served.pool, group.avoid, group.full)
end

local function lacks_room(group, _, w)
  return group.full[w]
end

-- The first waiter of all groups that pass `test`.
local function first(self, test, w)
  local found
  for _, group in pairs(self.groups) do
    local head = group[1]
    if (not found or is_before(head, found)) and test(group, self, w) then
      found = head
    end
  end
  return found
end

-- Calls the first that can go; one that is called already and has not had its turn gives
-- way to it.
local function call(self)
  self.called = first(self, can_go)
  if self.called then flow.wake(self.called.task) end
end

-- The first so many of those aside come back into line; `w`: it may have room.
local function come_back(self, n, w)
  for _ = 1, math.min(n, self.aside.n) do
    local waiter = self.aside[1]
    leave(self, waiter)
    if w then waiter.choice.full[w] = nil end
    enter(self, waiter)
  end
end

local function ask_again(self)
  while self.aside.n > 0 do
    flow.sleep(AGAIN_SECONDS)
    if not self.called then
      come_back(self, ASKED_AGAIN)
      call(self)
    end
  end
  self.asking = nil
end

local function step_aside(self, waiter)
  leave(self, waiter)
  waiter.asked, waiter.group = waiter.asked + 1, self.aside
  waiter.choice.deadline = math.max(waiter.choice.deadline,
    waiter.since + PATIENCE_SECONDS)
  heap.push(self.aside, waiter)
  self.n = self.n + 1
  self.asking = self.asking or flow.spawn(ask_again, self)
end

-- So many of those that found worker `w` full, the first ones, may ask it again.
function Line:room(w, n)
  if self.n == 0 then return end
  come_back(self, ASKED_ON_NEWS, w)
  while n > 0 do
    local waiter = first(self, lacks_room, w)
    if not waiter then break end
    leave(self, waiter)
    waiter.choice.full[w] = nil
    enter(self, waiter)
    n = n - 1
  end
  call(self)
end

-- A worker, once it is the waiter's turn; nil: its time is up, it is over, or a hook has
-- refused it, as the second says.
local function stand(self, waiter)
  local job, choice = waiter.job, waiter.choice
  while not M.is_over(job) do
    if self.called == waiter then
      local w, told, refused = decide.choose(self.server, self.served, job, choice,
        waiter.avoid, waiter.numerics)
      if w or refused then return w, refused end
      if told then step_aside(self, waiter) end
      call(self)
    end
    local left = choice.deadline - flow.now()
    if left <= 0 then return nil end
    if self.called ~= waiter then M.park(job, left) end
  end
end

local function queue(self, waiter)
  local server = self.server
  local wait = waits.begin(server, waiter.job.log, "for a worker that takes it")
  server.waiting = server.waiting + 1
  enter(self, waiter)
  come_back(self, 1)
  if waiter.told then step_aside(self, waiter) end
  call(self)
  local ok, w, refused = xpcall(stand, debug.traceback, self, waiter)
  leave(self, waiter)                       -- whatever went wrong: others stand behind it
  server.waiting = server.waiting - 1
  waits.done(server, wait)
  if w then come_back(self, 1) end          -- perhaps there is room for one more
  call(self)
  if not ok then error(w, 0) end
  return w, refused
end

-- Where it stands among those that wait, the lowest first.
local function rank_of(server, job, choice)
  local main = server.recipe.main
  local pool = server.recipe[main]
  if pool and pool.queue and not choice.rank then
    choice.rank = hooks.rank(server, main, job:look(choice))
  end
  return choice.rank or job.plan and job.plan.priority or 0
end

-- A worker for the choice, waited for in line until choice.deadline; nil: none came, the
-- job is over, or too many wait already; or, with a second, a hook refuses it. `avoid`:
-- not this one; choice.full: nor these. `numerics`: it has tokens, made with this id.
function Line:wait(job, choice, avoid, numerics)
  local server = self.server
  if M.is_over(job) then return nil end
  local w, told, refused
  if not self.called and self.aside.n == 0 then
    w, told, refused = decide.choose(server, self.served, job, choice, avoid, numerics)
    if w or refused then return w, refused end
  end
  if server.waiting >= server.recipe.http.max_waiting then return nil end
  if not choice.came then
    n_came = n_came + 1
    choice.came = n_came
  end
  return queue(self, { job = job, choice = choice, avoid = avoid, numerics = numerics,
    has_begun = numerics ~= nil, priority = rank_of(server, job, choice),
    came = choice.came, asked = 0, told = told, since = flow.now(),
    task = flow.current() })
end

return M
