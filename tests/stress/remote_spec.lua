-- SPDX-License-Identifier: Apache-2.0
-- Everything at once over a bad bus: streams that are sent, recalled, cancelled, closed;
-- workers that close, stand still, begin anew; the bus that goes. Whatever ends must end
-- once, with the answer it has at home; afterwards no engine has work.
local fleet = require "support.fleet"
local null = require "support.null"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local ROUNDS = math.floor((tonumber(os.getenv "PERILUNE_STRESS") or 2000) * 2)
local SEED = tonumber(os.getenv "PERILUNE_SEED") or 1
local WORKERS, OPEN = 3, 40

describe("many processes", function()
  local f, fronts, workers, roll, kinds, want, open, moves, ended

  local BUS = { lost_after_ms = 400, patience_ms = 500 }

  local function new_kinds()
    kinds, want = {}, {}
    for i = 1, 12 do
      kinds[i] = { null.text(i, 5 + i * 17 % 60), { temperature = i % 2, seed = i,
        max_tokens = 5 + i * 23 % 150, ignore_eos = 1, logprobs = i % 4 == 0 and 1 or -1,
        presence_penalty = i % 3 * 0.3 }, { keep = true } }
    end
    for i, kind in ipairs(kinds) do
      local st = fronts[1]:stream(unpack(kind))
      assert.equal(0, st:start(fronts[1].engines[1]))
      want[i] = st:finish()
    end
  end

  setup(function()
    C.pl_log_level(C.PL_LOG_ERROR + 1)
    local n = 0
    roll = function(low, high)
      n = n + 1
      return low + tonumber(C.pl_random_at(SEED, n, 9) % (high - low + 1))
    end
    f = fleet.open { kind = "null" }
    fronts, workers = {}, {}
    for i = 1, 2 do fronts[i] = f:process { engines = 1, bus = BUS } end
    for i = 1, WORKERS do workers[i] = f:process { engines = 1, bus = BUS } end
    new_kinds()
    open, moves, ended = {}, 0, 0
  end)
  teardown(function()
    f:close()
    C.pl_log_level(C.PL_LOG_INFO)
  end)

  -- Starts it somewhere: at home, or at a worker that its process knows of. PL_ECANCELED:
  -- it has ended meanwhile.
  local function go(st)
    local p = st.process
    local w = workers[roll(1, WORKERS)]
    local peer = p.known[w.id]
    local status
    if not peer or roll(1, 5) == 1 then
      status = st:start(p.engines[1])
    else
      status = st:send(peer)
    end
    assert.is_true(status == 0 or status == C.PL_ECANCELED)
  end

  local function begin()
    local p, i = fronts[roll(1, 2)], roll(1, #kinds)
    local st = p:stream(unpack(kinds[i]))
    st.want = want[i]
    open[#open + 1] = st
    p.streams = p.streams or {}
    p.streams[st.id] = st
    go(st)
  end

  local function forget(st)
    st.process.streams[st.id] = nil
    for i, other in ipairs(open) do
      if other == st then return table.remove(open, i) end
    end
  end

  local function on_end(st)
    forget(st)
    local canceled = st.canceled
    local answer = st:close()
    ended = ended + 1
    if canceled and answer.finish == C.PL_FINISH_ABORT then return end
    assert.same(st.want, answer)
  end

  local function on_peer(p, ev)
    local hello = ev.a == 0 and p:hello_of(ev.id)
    if hello then p.known[hello.id] = ev.id end
  end

  -- Handles what has come to a process.
  local function serve(p, ms)
    p:poll(ms)
    local backlog = p.backlog
    p.backlog = {}
    for _, ev in ipairs(backlog) do
      local st = p.streams and p.streams[ev.id]
      if ev.kind == C.PL_EV_PEER then
        on_peer(p, ev)
      elseif ev.kind == C.PL_EV_CALL then
        local call = ffi.cast("pl_call *", ev.object)
        if roll(1, 3) > 1 then C.pl_call_answer(call, "yes", 3) end
        C.pl_call_close(call)
      elseif ev.kind == C.PL_EV_REPLY then
        C.pl_call_close(ffi.cast("pl_call *", ev.object))
      elseif st and ev.kind == C.PL_EV_PIECE then
        st:take()
      elseif st and ev.kind == C.PL_EV_LOST then
        moves = moves + 1
        st:take()
        go(st)
      elseif st and ev.kind == C.PL_EV_DONE then
        st:take()
        on_end(st)
      end
    end
  end

  local function restart()
    local i = roll(1, WORKERS)
    workers[i]:close()
    for n, p in ipairs(f.processes) do
      if p == workers[i] then table.remove(f.processes, n) break end
    end
    workers[i] = f:process { engines = 1, bus = BUS }
  end

  local function pause()
    local w = workers[roll(1, WORKERS)]
    C.pl_hub_stop(f.hub, w.id, roll(0, 1))
  end

  local function disturb(what)
    local st = open[roll(1, #open)]
    if what <= 30 then
      C.pl_stream_recall(st.handle)
    elseif what <= 50 then
      st.canceled = true
      C.pl_stream_cancel(st.handle)
    elseif what <= 60 then
      forget(st)
      C.pl_stream_close(st.handle)
    elseif what <= 75 then
      local p = st.process
      local peer = p.known[workers[roll(1, WORKERS)].id]
      if peer then C.pl_call_send(p.rt, peer, "?", 1, roll(0, 50)) end
    elseif what <= 78 then
      pause()
    elseif what == 79 then
      restart()
    elseif what == 80 then
      C.pl_hub_away(f.hub, roll(0, 1))
    end
  end

  local function quieten()
    C.pl_hub_faults(f.hub, 0, 0, 0, 0)
    C.pl_hub_away(f.hub, 0)
    for _, w in ipairs(workers) do C.pl_hub_stop(f.hub, w.id, 0) end
  end

  it("keep their streams' answers, and let go of what is cancelled", function()
    C.pl_hub_faults(f.hub, SEED, 20, 20, 20)
    for _ = 1, ROUNDS do
      while #open < OPEN do begin() end
      disturb(roll(1, 120))
      for _, p in ipairs(fronts) do serve(p, 0) end
      if roll(1, 10) == 1 then
        for _, w in ipairs(workers) do serve(w, 0) end
      end
      if roll(1, 50) == 1 then serve(fronts[1], 5) end
    end
    quieten()
    local until_ns = C.pl_now_ns() + 60000000000LL
    while #open > 0 and C.pl_now_ns() < until_ns do
      for _, p in ipairs(fronts) do serve(p, 5) end
    end
    assert.equal(0, #open)
    for _, p in ipairs(f.processes) do assert.is_true(p:idle()) end
    assert.is_true(moves > ROUNDS / 20 and ended > ROUNDS / 20)
  end)
end)
