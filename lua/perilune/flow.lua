-- SPDX-License-Identifier: Apache-2.0
-- flow.lua - spawn, await, sleep, park: coroutines over pl_poll.
--
--     local ev = flow.await(stream, "piece", "done", exchange, "gone")
--
-- Events are known by (kind, id): ids of exchanges, streams, tasks, processes and calls
-- are counted apart; of a call that another process makes the id is that one's.
-- A pair that was ever awaited or listened to keeps its newest event until somebody takes
-- it; so nothing is lost between two awaits, and nothing piles up: one slot a pair, since
-- a second "piece" says no more than the first. An event of no such pair goes to the
-- handler that `on` set for its kind, in a coroutine of its own.
--
--     spawned --> ready --run--> parked (await, sleep, park) --event, time, wake--> ready
--                    |
--                    +--returns--> gone    +--fails--> on_error, gone
--
-- Field reads of FFI events are compiled and coroutine.resume is not: a batch is first
-- decoded into plain arrays in one loop, then dispatched in another.

local engine = require "perilune.ffi"
local heap = require "perilune.heap"
local log = require "perilune.log"
local new_table = require "table.new"
local C, ffi = engine.C, engine.ffi

local M = {}

local BATCH = 256
local IDLE_MS = 1000
local MAX_IDLE = 1024                       -- coroutines kept for later tasks

local KINDS = {
  request = C.PL_EV_REQUEST, gone = C.PL_EV_GONE, piece = C.PL_EV_PIECE,
  done = C.PL_EV_DONE, task = C.PL_EV_TASK, signal = C.PL_EV_SIGNAL, lost = C.PL_EV_LOST,
  bus = C.PL_EV_BUS, peer = C.PL_EV_PEER, call = C.PL_EV_CALL, reply = C.PL_EV_REPLY,
  answer = C.PL_EV_ANSWER, answered = C.PL_EV_ANSWERED,
}
local NAMES = {}
for name, number in pairs(KINDS) do NAMES[number] = name end

local SPAN = 2 ^ 32                         -- ids are int32: kind * SPAN + id is a pair

local slots                                 -- pair -> the slot of its event
local handlers                              -- kind -> what a stranger's event starts
local ready, n_ready                        -- tasks to run, in order
local sleepers                              -- a heap of tasks, by when they are due
local current                               -- the task that runs
local idle, n_idle                          -- coroutines whose tasks have ended
local running, clock

local function is_due_before(a, b)
  return a.due < b.due
end

local function real_clock()
  return tonumber(C.pl_now_ns()) * 1e-9
end

local function reset()
  slots, handlers = {}, {}
  ready, n_ready = {}, 0
  sleepers = heap.new(is_due_before)
  idle, n_idle = {}, 0
  current, running, clock = nil, false, real_clock
end
reset()

-- Seconds, by the clock that sleeps go by.
function M.now()
  return clock()
end

local function make_ready(task)
  if task.ready then return end
  task.ready = true
  n_ready = n_ready + 1
  ready[n_ready] = task
end

-- Starts fn(...) in a coroutine of its own, soon. The task's on_error(message) is called
-- if it fails, after the log has the traceback.
function M.spawn(fn, ...)
  if type(fn) ~= "function" then error("flow.spawn: wants a function", 2) end
  local task = { fn = fn, slots = new_table(4, 0), thread = false, ready = false,
    ended = false, n = select("#", ...), ... }
  make_ready(task)
  return task
end

-- The task that runs, or nil outside of one.
function M.current()
  return current
end

local function fail(task, message)
  log.error("%s", debug.traceback(task.thread, tostring(message)))
  if not task.on_error then return end
  local ok, again = pcall(task.on_error, message)
  if not ok then log.error("on_error failed itself: %s", tostring(again)) end
end

local ENDED = {}

-- What a coroutine does: one task after the other, for making one costs more than a task.
local function work(task)
  while true do
    task.fn(unpack(task, 1, task.n))
    task = coroutine.yield(ENDED)
  end
end

local function begin(task)
  if n_idle == 0 then
    task.thread = coroutine.create(work)
  else
    task.thread, idle[n_idle] = idle[n_idle], nil
    n_idle = n_idle - 1
  end
  return coroutine.resume(task.thread, task)
end

local function resume(task)
  task.ready = false
  current = task
  local ok, what
  if task.thread then
    ok, what = coroutine.resume(task.thread)
  else
    ok, what = begin(task)
  end
  current = nil
  if ok and what ~= ENDED then return end
  task.ended = true
  if task.joiner then make_ready(task.joiner) end
  if not ok then return fail(task, what) end
  if n_idle < MAX_IDLE then
    n_idle = n_idle + 1
    idle[n_idle] = task.thread
  end
end

-- Runs what is ready now; what becomes ready meanwhile waits for the next turn, so that
-- tasks which wake each other cannot keep events from being polled.
local function run_ready()
  local batch, n = ready, n_ready
  ready, n_ready = {}, 0
  for i = 1, n do resume(batch[i]) end
end

-- The slot of a pair, which is made if it is not there yet. `level`: whose fault it is.
local function slot_of(id, kind, level)
  local number = KINDS[kind]
  if not number then error(("flow: no kind '%s'"):format(tostring(kind)), level + 1) end
  if not id then error("flow: an id comes before its kinds", level + 1) end
  local key = number * SPAN + id
  local slot = slots[key]
  if not slot then
    slot = { kind = kind, id = id, key = key, full = false, a = 0, b = 0,
      object = false, task = false }
    slots[key] = slot
  end
  return slot
end

-- The slots of the pairs that `id, kind, kind, id, kind ...` names, into list: a number
-- is the id of the kinds after it. Answers how many.
local function gather(list, ...)
  local id, n = nil, 0
  for i = 1, select("#", ...) do
    local word = select(i, ...)
    if type(word) == "number" then
      id = word
    else
      n = n + 1
      list[n] = slot_of(id, word, 3)
    end
  end
  return n
end

local scratch = {}

-- From now on keeps events of these pairs for whoever awaits them: (id, kind, ...). One
-- or two kinds of an id go without a loop, for LuaJIT compiles no caller into which one
-- would go.
function M.listen(id, kind, other, ...)
  if type(other) == "number" or select("#", ...) > 0 then
    gather(scratch, id, kind, other, ...)
  else
    slot_of(id, kind, 2)
    if other then slot_of(id, other, 2) end
  end
end

local function drop(slot)
  slots[slot.key] = nil
end

-- Drops these pairs, as one does when an id's work is over: events that still come for
-- them are strangers'.
function M.forget(id, kind, other, ...)
  if type(other) == "number" or select("#", ...) > 0 then
    for i = 1, gather(scratch, id, kind, other, ...) do drop(scratch[i]) end
  else
    drop(slot_of(id, kind, 2))
    if other then drop(slot_of(id, other, 2)) end
  end
end

-- The first of n slots that holds an event, taken; or nil.
local function take(list, n)
  for i = 1, n do
    local slot = list[i]
    if slot.full then
      slot.full = false
      return slot
    end
  end
  return nil
end

-- Parks until an event of one of these pairs: await(id, kind, ...). Answers the event:
-- { kind, id, a, b, object }, good until the next await. Of several that are there, the
-- one whose pair is named first. One task at a time awaits a pair.
function M.await(...)
  local task = current
  if not task then error("flow.await: only in a task", 2) end
  local list = task.slots
  local n = gather(list, ...)
  if n == 0 then error("flow.await: wants an id and its kinds", 2) end
  local found = take(list, n)
  while not found do
    for i = 1, n do list[i].task = task end
    coroutine.yield()
    for i = 1, n do list[i].task = false end
    found = take(list, n)
  end
  return found
end

-- Calls fn(event) in a task for each event of a kind that no pair keeps.
function M.on(kind, fn)
  if not KINDS[kind] then error(("flow: no kind '%s'"):format(tostring(kind)), 2) end
  handlers[kind] = fn
end

-- Parks until somebody wakes the task, for at most so many seconds; 0 lets the others go
-- first. Whether it was woken.
function M.park(seconds)
  local task = current
  if not task then error("flow.park: only in a task", 2) end
  task.due, task.awake, task.woken = clock() + seconds, false, false
  heap.push(sleepers, task)
  while not task.awake do coroutine.yield() end
  return task.woken
end

-- Ends a task's park; who is not parked is not woken.
function M.wake(task)
  if not task.place then return end
  heap.remove(sleepers, task)
  task.awake, task.woken = true, true
  make_ready(task)
end

-- Parks for that long; 0 lets the others go first.
function M.sleep(seconds)
  if not current then error("flow.sleep: only in a task", 2) end
  M.park(seconds)
end

local function wake_sleepers()
  if sleepers.n == 0 then return end
  local now = clock()
  while sleepers.n > 0 and sleepers[1].due <= now do
    local task = sleepers[1]
    heap.remove(sleepers, task)
    task.awake = true
    make_ready(task)
  end
end

-- Parks until all of these tasks have ended.
function M.join(tasks)
  for _, task in ipairs(tasks) do
    task.joiner = current
    while not task.ended do coroutine.yield() end
  end
end

-- Ends `run` once the tasks that are ready now have had their turn.
function M.stop()
  running = false
end

local kinds, ids, as, bs, objects = {}, {}, {}, {}, {}

local function decode(events, n)
  for i = 0, n - 1 do
    local ev = events[i]
    kinds[i], ids[i], as[i], bs[i], objects[i] = ev.kind, ev.id, ev.a, ev.b, ev.object
  end
end

local function dispatch(n)
  for i = 0, n - 1 do
    local slot = slots[kinds[i] * SPAN + ids[i]]
    if slot then
      slot.a, slot.b, slot.object, slot.full = as[i], bs[i], objects[i], true
      if slot.task then make_ready(slot.task) end
    else
      local kind = NAMES[kinds[i]]
      local handler = handlers[kind]
      if handler then
        M.spawn(handler, { kind = kind, id = ids[i], a = as[i], b = bs[i],
                           object = objects[i] })
      end
    end
  end
end

local function patience()
  if n_ready > 0 then return 0 end
  if sleepers.n == 0 then return IDLE_MS end
  local ms = math.ceil((sleepers[1].due - clock()) * 1e3)
  return math.max(0, math.min(IDLE_MS, ms))
end

-- The main loop: until stop. `poll` and `time` stand in for pl_poll and the clock in
-- tests. Tasks that are left are dropped, and all else is forgotten: a later run starts
-- anew.
function M.run(rt, poll, time)
  poll, clock = poll or C.pl_poll, time or real_clock
  local events = ffi.new("pl_event[?]", BATCH)
  running = true
  while true do
    wake_sleepers()
    run_ready()
    if not running then break end
    local n = poll(rt, events, BATCH, patience())
    if n < 0 then
      reset()
      return engine.refusal(n)
    end
    decode(events, n)
    dispatch(n)
  end
  reset()
  return true
end

return M
