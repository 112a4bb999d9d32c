-- SPDX-License-Identifier: Apache-2.0
local engine = require "perilune.ffi"
local flow = require "perilune.flow"
local jit_util = require "jit.util"
local C, ffi = engine.C, engine.ffi

-- A poll that gives these batches of { kind, id, a } in turn, then stops the loop.
local function source(batches)
  local turn, waits = 0, {}
  return function(_, out, max, timeout_ms)
    turn = turn + 1
    waits[turn] = timeout_ms
    local batch = batches[turn]
    if not batch then
      if turn > #batches + 20 then flow.stop() end
      return 0
    end
    assert(#batch <= max)
    for i, e in ipairs(batch) do
      local ev = out[i - 1]
      ev.kind, ev.id, ev.a, ev.b = C["PL_EV_" .. e[1]:upper()], e[2], e[3] or 0, e[4] or 0
      ev.object = ffi.cast("void *", e[5] or 0)
    end
    return #batch
  end, waits
end

local function line_of(text)
  local n = 0
  for line in io.lines "lua/perilune/flow.lua" do
    n = n + 1
    if line:find(text, 1, true) then return n end
  end
end

describe("flow", function()
  it("runs tasks with what they are given, in order", function()
    local seen = {}
    for i = 1, 3 do
      flow.spawn(function(a, b, c) seen[#seen + 1] = { i, a, b, c } end, i * 10, nil, "x")
    end
    assert.is_true(flow.run(nil, (source {})))
    assert.same({ { 1, 10, nil, "x" }, { 2, 20, nil, "x" }, { 3, 30, nil, "x" } }, seen)
  end)

  it("wakes who awaits the pair of kind and id, and nobody else", function()
    local seen = {}
    for id = 1, 3 do
      flow.spawn(function()
        local ev = flow.await(id, "piece", "done", id + 100, "gone")
        seen[#seen + 1] = { id, ev.kind, ev.id, ev.a, ev.b }
      end)
    end
    flow.run(nil, (source {
      {}, { { "done", 2, 7, 8 }, { "gone", 1 }, { "done", 101 }, { "gone", 103, 5 } },
    }))
    assert.same({ { 2, "done", 2, 7, 8 }, { 3, "gone", 103, 5, 0 } }, seen)
  end)

  it("carries objects", function()
    local object
    flow.spawn(function() object = flow.await(1, "task").object end)
    flow.run(nil, (source { {}, { { "task", 1, 0, 0, 0x1000 } } }))
    assert.equal(0x1000, tonumber(ffi.cast("intptr_t", object)))
  end)

  it("keeps what comes between two awaits, the newest of a pair", function()
    local seen = {}
    flow.listen(1, "piece", "done")
    flow.spawn(function()
      flow.await(9, "task")
      for i = 1, 3 do
        local ev = flow.await(1, "piece", "done")
        seen[i] = { ev.kind, ev.a }
      end
    end)
    flow.run(nil, (source {
      { { "piece", 1, 1 }, { "piece", 1, 2 }, { "done", 1, 3 } }, { { "task", 9 } }, {},
      { { "piece", 1, 4 } },
    }))
    assert.same({ { "piece", 2 }, { "done", 3 }, { "piece", 4 } }, seen)
  end)

  it("loses nothing to a task that was woken and has not run", function()
    local seen = {}
    flow.spawn(function()
      while true do seen[#seen + 1] = flow.await(1, "piece", "done", 2, "gone").kind end
    end)
    flow.run(nil, (source {
      {}, { { "gone", 2 }, { "done", 1 }, { "piece", 1 } }, { { "piece", 1 } },
    }))
    assert.same({ "piece", "done", "gone", "piece" }, seen)
  end)

  it("forgets pairs; their events go to the kind's handler, in a task", function()
    local strangers, kept = {}, {}
    flow.on("gone", function(ev)
      assert(flow.current())
      strangers[#strangers + 1] = ev.id
    end)
    flow.listen(1, "gone", 2, "gone")
    flow.forget(2, "gone")
    flow.spawn(function() kept[1] = flow.await(1, "gone").id end)
    flow.run(nil, (source {
      { { "gone", 1 }, { "gone", 2 }, { "gone", 3 }, { "task", 3 } },
    }))
    assert.same({ 2, 3 }, strangers)
    assert.same({ 1 }, kept)
  end)

  it("sleeps, wakes in order of time, and polls no longer than the next sleeper",
     function()
    local seen = {}
    for _, ms in ipairs { 30, 10, 20, 0, 25, 5, 15 } do
      flow.spawn(function()
        flow.sleep(ms / 1000)
        seen[#seen + 1] = ms
        if #seen == 7 then flow.stop() end
      end)
    end
    local longest, first = 0, nil
    local began = C.pl_now_ns()
    flow.run(nil, function(_, _, _, timeout_ms)
      first = first or timeout_ms
      longest = math.max(longest, timeout_ms)
      return 0
    end)
    assert.same({ 0, 5, 10, 15, 20, 25, 30 }, seen)
    assert.is_true(C.pl_now_ns() - began >= 30e6)
    assert.equal(0, first)
    assert.is_true(longest <= 30)
  end)

  it("is not woken from sleep by an event, nor from await by an old one", function()
    local log = {}
    flow.spawn(function()
      flow.listen(1, "piece")
      flow.sleep(0.02)
      log[1] = flow.await(1, "piece").a
      flow.forget(1, "piece")
      flow.spawn(function() log[2] = flow.await(1, "piece").a end)
      flow.sleep(0.02)
      log[3] = "slept"
      flow.stop()
    end)
    local turns = 0
    flow.run(nil, function(_, out)
      turns = turns + 1
      if turns ~= 2 then return 0 end
      out[0].kind, out[0].id, out[0].a = C.PL_EV_PIECE, 1, 5
      return 1
    end)
    assert.same({ 5, nil, "slept" }, log)
  end)

  it("wakes those who are parked at once, others in time, by the clock that it is given", function()
    local time, seen, tasks = 100, {}, {}
    local function at() return time end
    for i, seconds in ipairs { 5, 3, 9, 3.5, 7 } do
      tasks[i] = flow.spawn(function()
        local woken = flow.park(seconds)
        seen[#seen + 1] = { i, woken, flow.now() - 100 }
      end)
    end
    flow.spawn(function()
      flow.wake(flow.current())             -- it is not parked
      flow.sleep(4)
      flow.wake(tasks[3])
      flow.wake(tasks[2])                   -- it was in time
      flow.wake(tasks[3])
      flow.sleep(6)
      flow.stop()
    end)
    local n_polls = 0
    flow.run(nil, function(_, _, _, ms)
      time, n_polls = time + ms / 1000, n_polls + 1
      return 0
    end, at)
    assert.same({ { 2, false, 3 }, { 4, false, 3.5 }, { 3, true, 4 }, { 1, false, 5 },
      { 5, false, 7 } }, seen)
    assert.is_true(n_polls < 20)            -- a second is the longest
  end)

  it("outlives a task that fails, and tells its on_error", function()
    C.pl_log_level(C.PL_LOG_ERROR + 1)
    finally(function() C.pl_log_level(C.PL_LOG_INFO) end)
    local told, after = {}, false
    flow.spawn(function() error "boom" end).on_error = function(m) told[1] = m end
    flow.spawn(function() error { code = 5 } end).on_error = function(m)
      told[2] = m.code
      error "again"
    end
    flow.spawn(function() after = true end)
    flow.run(nil, (source {}))
    assert.matches("flow_spec.lua:%d+: boom$", told[1])
    assert.equal(5, told[2])
    assert.is_true(after)
  end)

  it("lets tasks that spawn tasks not keep events out", function()
    local rounds, got = 0, false
    local function again()
      rounds = rounds + 1
      flow.spawn(again)
    end
    flow.spawn(again)
    flow.spawn(function() got = flow.await(1, "done").kind end)
    local poll, waits = source { {}, {}, { { "done", 1 } } }
    flow.run(nil, poll)
    assert.equal("done", got)
    assert.is_true(rounds < 50)
    for i = 2, #waits do assert.equal(0, waits[i]) end
  end)

  it("ends with the refusal of a poll that fails, and starts anew", function()
    local ran = 0
    flow.spawn(function() ran = ran + 1 end)
    flow.on("signal", function() ran = ran + 1 end)
    local ok, _, name = flow.run(nil, function() return C.PL_EINVAL end)
    assert.is_nil(ok)
    assert.equal("PL_EINVAL", name)
    flow.run(nil, (source { { { "signal", 2 } } }))
    assert.equal(1, ran)
  end)

  it("is told of wrong use at its line", function()
    assert.has_error(function() flow.spawn(5) end, "flow.spawn: wants a function")
    assert.has_error(function() flow.await(1, "done") end, "flow.await: only in a task")
    assert.has_error(function() flow.sleep(1) end, "flow.sleep: only in a task")
    for _, wrong in ipairs { function() flow.listen(1, "don") end,
                             function() flow.listen "done" end,
                             function() flow.on("don", print) end } do
      local ok, message = pcall(wrong)
      assert.is_false(ok)
      assert.matches("^%.?/?tests/unit/flow_spec.lua:%d+: flow: ", message)
    end
  end)

  it("decodes batches in compiled code", function()
    local many = {}
    for i = 1, 256 do many[i] = { "piece", i, i } end
    local batches, sum = {}, 0
    for i = 1, 50 do batches[i] = many end
    flow.spawn(function()
      while true do sum = sum + flow.await(256, "piece").a end
    end)
    local compiled, from = {}, {}
    local function watch(what, trace, func)
      if what == "start" then from[trace] = jit_util.funcinfo(func).linedefined end
      if what == "stop" then compiled[from[trace] or 0] = true end
    end
    jit.flush()
    jit.attach(watch, "trace")
    flow.run(nil, (source(batches)))
    jit.attach(watch)
    assert.equal(50 * 256, sum)
    assert.is_true(compiled[line_of "local function decode"])
  end)
end)
