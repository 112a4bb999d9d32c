-- SPDX-License-Identifier: Apache-2.0
-- Sequences that run elsewhere, are lost, and go on: each must end with the answer that it
-- would have had at home, undisturbed, bit for bit.
local cjson = require "cjson"
local fleet = require "support.fleet"
local pl = require "perilune.ffi"
local socket = require "support.socket"
local C, ffi = pl.C, pl.ffi

-- n ids that depend on `from` only.
local function prompt(from, n)
  local t = {}
  for i = 1, n do t[i] = (from * 131 + i * 37) % 590 end
  return t
end

-- One of each kind: a prompt, parameters, options of the stream.
local KINDS = {
  { "greedy", prompt(1, 20), { temperature = 0, max_tokens = 24 } },
  { "sampled", prompt(2, 33), { temperature = 1, top_p = 0.9, top_k = 50, seed = 7,
    max_tokens = 24 } },
  { "with logprobs", prompt(3, 40), { temperature = 0.7, seed = 8, logprobs = 3,
    max_tokens = 16 } },
  { "with the prompt's logprobs", prompt(4, 40), { temperature = 0.7, seed = 9,
    logprobs = 0, prompt_logprobs = 2, max_tokens = 12 } },
  { "with penalties", prompt(5, 18), { temperature = 0.8, seed = 10, max_tokens = 30,
    repetition_penalty = 1.3, presence_penalty = 0.5, frequency_penalty = 0.7 } },
  { "with min_tokens", prompt(6, 25), { temperature = 1.5, seed = 11, max_tokens = 40,
    min_tokens = 9, stop_ids = prompt(7, 60), eos = prompt(70, 60) } },
  { "with bad words", prompt(8, 25), { temperature = 1, seed = 12, max_tokens = 24,
    bad_words = { { 10 }, { 11, 12 }, prompt(9, 5) } } },
  { "with bias and a choice", prompt(10, 25), { temperature = 1, seed = 13,
    max_tokens = 24, bias = { [20] = 5, [21] = -100, [22] = 2.5 },
    allowed = prompt(11, 60) } },
  { "with a salt", prompt(12, 70), { temperature = 1, seed = 14, max_tokens = 16,
    salt = "käse" } },
  { "with stop strings", prompt(13, 20), { temperature = 1, seed = 15, max_tokens = 200 },
    { stop = { "e.q", "zz" } } },
  { "begun elsewhere", prompt(14, 30), { temperature = 0.9, seed = 16, max_tokens = 20,
    resumed = 9, presence_penalty = 0.9 } },
}

-- Too long to end before it is disturbed.
local LONG = { prompt(40, 30), { temperature = 0, max_tokens = 2000, ignore_eos = 1 } }

-- Starts a stream, and takes it away from where it runs after each token that it brings;
-- `go(st, n)` starts it the n-th time. The answer, and how often it moved in its middle.
local function wander(st, go)
  local moves, starts = 0, 1
  local what
  go(st, starts)
  repeat
    C.pl_stream_recall(st.handle)
    local why
    what, why = st:next()
    if what == "lost" then
      assert.equal(C.PL_LOST_RECALLED, why)
      st:take()
      starts = starts + 1
      if #st.tokens > 0 then moves = moves + 1 end
      go(st, starts)
      what = st:next()
    end
  until what == "done"
  return st:close(), moves
end

-- Until it was moved often, for an engine may be faster than we are.
local function wander_often(open, go, want)
  local moves = 0
  for _ = 1, 200 do
    local answer, n = wander(open(), go)
    assert.same(want, answer)
    moves = moves + n
    if moves >= 10 then return end
  end
  error "it does not move"
end

-- The answers to KINDS on an engine of this process, undisturbed.
local function answers(p, e)
  local all = {}
  for i, kind in ipairs(KINDS) do
    local st = p:stream(kind[2], kind[3], kind[4])
    assert.equal(0, st:start(e))
    all[i] = st:finish()
  end
  return all
end

describe("a stream that keeps its sequence", function()
  local f, p
  local alone

  setup(function()
    C.pl_log_level(C.PL_LOG_ERROR)
    f = fleet.open { hub = false }
    p = f:process { engines = 2, bus = false }
    alone = answers(p, p.engines[1])
  end)
  teardown(function()
    f:close()
    C.pl_log_level(C.PL_LOG_INFO)
  end)
  after_each(function() assert.is_true(p:idle()) end)

  local function keeping(kind)
    local o = { keep = true }
    for k, v in pairs(kind[4] or {}) do o[k] = v end
    return p:stream(kind[2], kind[3], o)
  end

  local function long() return p:stream(LONG[1], LONG[2], { keep = true }) end

  for i, kind in ipairs(KINDS) do
    it(kind[1] .. ": goes on at the other engine after each token", function()
      wander_often(function() return keeping(kind) end, function(st, n)
        assert.equal(0, st:start(p.engines[n % 2 + 1]))
      end, alone[i])
    end)
  end

  it("is lost when its engine closes, and what keeps none is over", function()
    local other = fleet.open { hub = false }
    local q = other:process { engines = 2, bus = false }
    local st, sad = q:stream(LONG[1], LONG[2], { keep = true }), q:stream(LONG[1], LONG[2])
    assert.equal(0, st:start(q.engines[1]))
    assert.equal(0, sad:start(q.engines[1]))
    assert.equal("piece", (st:next()))
    C.pl_runtime_detach(q.rt, q.engines[1].engine)
    local why, status = st:lost()
    assert.same({ C.PL_LOST_LEFT, C.PL_ECANCELED }, { why, status })
    assert.equal(C.PL_FINISH_ABORT, sad:finish().finish)
    assert.equal(C.PL_ECANCELED, st:start(q.engines[1]))
    assert.equal(0, st:start(q.engines[2]))
    assert.equal(C.PL_FINISH_LENGTH, st:finish().finish)
    other:close()
  end)

  it("is refused a start that makes no sense", function()
    local st = long()
    local seq = st.seq
    st.seq = nil
    assert.equal(C.PL_EINVAL, st:start(p.engines[1]))          -- nothing to go on with
    assert.equal(C.PL_EINVAL, st:send(1))                      -- no bus
    st.seq = seq
    assert.equal(0, st:start(p.engines[1]))
    assert.equal(C.PL_EINVAL, st:start(p.engines[2]))          -- it runs
    C.pl_stream_recall(st.handle)
    st:lost()
    st.seq = seq                                               -- it has one
    assert.equal(C.PL_EINVAL, st:start(p.engines[2]))
    st.seq = nil
    C.pl_stream_cancel(st.handle)
    assert.equal(C.PL_FINISH_ABORT, st:finish().finish)
  end)

  it("ends once when it is cancelled while it is lost", function()
    local st = long()
    assert.equal(0, st:start(p.engines[1]))
    C.pl_stream_recall(st.handle)
    st:lost()
    C.pl_stream_cancel(st.handle)
    assert.equal("done", (st:next()))
    assert.equal(C.PL_ECANCELED, st:start(p.engines[1]))
    C.pl_stream_cancel(st.handle)
    C.pl_stream_recall(st.handle)
    assert.is_nil(st:next(50))
    assert.equal(C.PL_FINISH_ABORT, st:close().finish)
  end)

  it("may be closed at any moment", function()
    for _ = 1, 50 do
      local st = keeping(KINDS[2])
      C.pl_stream_close(st.handle)
      C.pl_seq_close(st.seq)
      for n = 0, 3 do
        st = keeping(KINDS[2])
        assert.equal(0, st:start(p.engines[1]))
        if n > 0 then st:next() end
        if n > 1 then C.pl_stream_recall(st.handle) end
        if n > 2 then st:next() end
        C.pl_stream_close(st.handle)
      end
    end
    p.backlog = {}
  end)
end)

describe("a stream over a bus", function()
  local f, front, workers, peers, alone, long_alone

  local function long(p) return (p or front):stream(LONG[1], LONG[2]) end

  local function open_worker(i, o)
    workers[i] = f:process(o or { engines = 1 })
    peers[i] = front:peer(workers[i])
  end

  setup(function()
    C.pl_log_level(C.PL_LOG_ERROR + 1)
    f = fleet.open()
    front, workers, peers = f:process { engines = 1 }, {}, {}
    alone = answers(front, front.engines[1])
    local st = long()
    assert.equal(0, st:start(front.engines[1]))
    long_alone = st:finish()
    for i = 1, 2 do open_worker(i) end
  end)
  teardown(function()
    f:close()
    C.pl_log_level(C.PL_LOG_INFO)
  end)
  after_each(function()
    C.pl_hub_faults(f.hub, 0, 0, 0, 0)
    for _, w in ipairs(workers) do assert.is_true(w:idle()) end
  end)

  local function of(kind) return front:stream(kind[2], kind[3], kind[4]) end

  for i, kind in ipairs(KINDS) do
    it(kind[1] .. ": answers as at home", function()
      local st = of(kind)
      assert.equal(0, st:send(peers[1]))
      assert.same(alone[i], st:finish())
    end)

    it(kind[1] .. ": goes on elsewhere after each token", function()
      wander_often(function() return of(kind) end, function(st, n)
        if n % 3 == 0 then
          assert.equal(0, st:start(front.engines[1]))
        else
          assert.equal(0, st:send(peers[n % 3]))
        end
      end, alone[i])
    end)
  end

  it("answers as at home, whatever the bus does to messages", function()
    C.pl_hub_faults(f.hub, 5, 60, 60, 60)
    local open = {}
    for n = 0, 43 do
      local st = of(KINDS[n % #KINDS + 1])
      assert.equal(0, st:send(peers[n % 2 + 1]))
      open[n + 1] = st
    end
    for n, st in ipairs(open) do
      if n % 3 == 0 then C.pl_stream_recall(st.handle) end
    end
    for n, st in ipairs(open) do
      local what
      repeat
        what = st:next()
        if what == "lost" then assert.equal(0, st:send(peers[(n + 1) % 2 + 1])) end
      until what == "done"
      assert.same(alone[(n - 1) % #KINDS + 1], st:close())
    end
  end)

  it("says when it was in line, and when its tokens came", function()
    local st = of(KINDS[1])
    assert.equal(0, st:send(peers[1]))
    local _, r = st:finish()
    assert.is_true(r.submitted_ns > 0 and r.submitted_ns <= r.scheduled_ns)
    assert.is_true(r.scheduled_ns <= r.first_ns and r.first_ns < r.last_ns)
    local again = of(KINDS[1])
    assert.equal(0, again:send(peers[1]))
    _, r = again:finish()
    assert.equal(16, r.n_cached)
  end)

  it("is lost with its worker, and ends elsewhere as if nothing had been", function()
    open_worker(3)
    local st, second = long(), of(KINDS[3])
    assert.equal(0, st:send(peers[3]))
    assert.equal("piece", (st:next()))
    assert.equal(0, second:send(peers[3]))
    workers[3]:close()
    local why = st:lost()
    assert.is_true(why == C.PL_LOST_LEFT or why == C.PL_LOST_GONE)
    assert.is_true(#st.tokens > 0 and #st.tokens < 2000)
    assert.equal(0, st:send(peers[1]))
    if second:next() == "lost" then assert.equal(0, second:send(peers[2])) end
    assert.same(alone[3], second:finish())
    assert.same(long_alone, st:finish())
    local late = of(KINDS[1])
    assert.equal(0, late:send(peers[3]))
    assert.equal(C.PL_LOST_GONE, late:lost())
    assert.equal(0, late:send(peers[1]))
    assert.same(alone[1], late:finish())
    workers[3] = nil
  end)

  it("is lost with a worker that stands still, which is not heard when it wakes", function()
    open_worker(3)
    local wary = f:process { engines = 1, bus = { lost_after_ms = 300 } }
    local st = long(wary)
    assert.equal(0, st:send(wary:peer(workers[3])))
    assert.equal("piece", (st:next()))
    C.pl_hub_stop(f.hub, workers[3].id, 1)
    assert.equal(C.PL_LOST_SILENT, st:lost())
    assert.equal(0, st:start(wary.engines[1]))
    C.pl_hub_stop(f.hub, workers[3].id, 0)
    assert.is_true(workers[3]:idle())
    assert.is_true(workers[3].engines[1]:statistics().generation_tokens < 2000)
    assert.same(long_alone, st:finish())
    local again = of(KINDS[1])
    assert.equal(0, again:send(front:peer(workers[3])))
    assert.same(alone[1], again:finish())
    wary:close()
  end)

  it("is lost with its engine, and is refused by one that is served no more", function()
    open_worker(3)
    local st = long()
    assert.equal(0, st:send(peers[3]))
    assert.equal("piece", (st:next()))
    C.pl_bus_serve(workers[3].rt, 0, nil)
    local other = of(KINDS[1])
    assert.equal(0, other:send(peers[3]))
    local why, status, text = other:lost()
    assert.same({ C.PL_LOST_REFUSED, C.PL_ENOTFOUND, "no engine 0 is served here" },
      { why, status, text })
    assert.equal("piece", (st:next()))                         -- what runs goes on
    C.pl_runtime_detach(workers[3].rt, workers[3].engines[1].engine)
    assert.equal(C.PL_LOST_LEFT, st:lost())
    for _, each in ipairs { st, other } do
      C.pl_stream_cancel(each.handle)
      assert.equal(C.PL_FINISH_ABORT, each:finish().finish)
    end
    workers[3]:close()
    workers[3] = nil
  end)

  it("is refused with what the engine says, and may be asked elsewhere", function()
    open_worker(3, { engines = 1, options = { max_model_len = 64, max_waiting = 1,
      max_num_seqs = 1, max_num_batched_tokens = 64 } })
    local st = front:stream(prompt(41, 80), { temperature = 0, max_tokens = 5 })
    assert.equal(0, st:send(peers[3]))
    local why, status, text = st:lost()
    assert.same({ C.PL_LOST_REFUSED, C.PL_EINVAL }, { why, status })
    assert.is_truthy(text:find("maximum context length of 64", 1, true))
    assert.equal(0, st:send(peers[3], 7))
    assert.same({ C.PL_LOST_REFUSED, C.PL_ENOTFOUND, "no engine 7 is served here" },
      { st:lost() })
    assert.equal(0, st:send(99999))
    assert.same({ C.PL_LOST_GONE, C.PL_ENOTFOUND, "" }, { st:lost() })
    assert.equal(0, st:send(peers[1]))
    assert.equal(C.PL_FINISH_LENGTH, st:finish().finish)
    local odd = front:stream({ 1, 2 }, { temperature = 0, stop_ids = { 7000 } })
    assert.equal(0, odd:send(peers[1]))
    why, status, text = odd:lost()
    assert.same({ C.PL_LOST_REFUSED, C.PL_EINVAL }, { why, status })
    assert.is_truthy(text:find("7000", 1, true))
    C.pl_stream_close(odd.handle)
    local many, refused = {}, 0
    for i = 1, 12 do
      many[i] = front:stream(prompt(i, 20), { temperature = 0, max_tokens = 30 })
      assert.equal(0, many[i]:send(peers[3]))
    end
    for _, each in ipairs(many) do
      local what, _, code
      repeat what, _, code = each:next() until what ~= "piece"
      if what == "lost" then
        assert.equal(C.PL_ELIMIT, code)
        refused = refused + 1
      end
      C.pl_stream_close(each.handle)
    end
    assert.is_true(refused > 0 and refused < 12)
    workers[3]:close()
    workers[3] = nil
  end)

  -- A process that is broken: its second sequence has the number of its first, which is in
  -- line there, so that no token of it comes.
  it("is refused with a number that its process uses already", function()
    open_worker(3, { engines = 1, options = { max_model_len = 2048, max_num_seqs = 1 } })
    local busy = long()
    assert.equal(0, busy:send(peers[3]))
    assert.equal("piece", (busy:next()))
    local broken = f:process()
    local peer = broken:peer(workers[3])
    local st, again = long(broken), broken:stream(KINDS[1][2], KINDS[1][3])
    local number = ffi.cast("int32_t *", again.seq)
    assert.equal(C.pl_seq_id(again.seq), number[0])
    number[0] = C.pl_seq_id(st.seq)
    assert.equal(0, st:send(peer))
    assert.equal(0, again:send(peer))
    local why, status, text = again:lost()
    assert.same({ C.PL_LOST_REFUSED, C.PL_EINVAL }, { why, status })
    assert.is_truthy(text:find("a sequence with number %d+, which is in use"))
    for _, each in ipairs { st, again, busy } do C.pl_stream_close(each.handle) end
    broken:close()
    workers[3]:close()
    workers[3] = nil
  end)

  it("takes no more than the bus can bring", function()
    local st = front:stream(prompt(1, 900), { prompt_logprobs = 4000, max_tokens = 1 })
    assert.equal(0, st:send(peers[1]))
    local why, status = st:lost()
    assert.same({ C.PL_LOST_REFUSED, C.PL_ELIMIT }, { why, status })
    C.pl_stream_close(st.handle)
    local wrong = of(KINDS[1])
    assert.equal(C.PL_EINVAL, C.pl_stream_send(wrong.handle, peers[1], -1, wrong.seq))
    C.pl_stream_close(wrong.handle)
    C.pl_seq_close(wrong.seq)
  end)

  it("leaves nothing behind, whenever it is cancelled or closed", function()
    local function generated()
      local n = 0
      for i = 1, 2 do
        n = n + tonumber(workers[i].engines[1]:statistics().generation_tokens)
      end
      return n
    end
    local before = generated()
    for n = 1, 84 do
      local st = long()
      assert.equal(0, st:send(peers[n % 2 + 1]))
      for _ = 1, n % 5 do st:next() end
      if n % 3 == 0 then C.pl_stream_recall(st.handle) end
      if n % 6 == 0 then st:lost() end
      if n % 7 == 0 then
        C.pl_stream_close(st.handle)
      else
        C.pl_stream_cancel(st.handle)
        repeat until st:next() == "done"
        assert.equal(C.PL_ECANCELED, st:send(peers[1]))
        assert.equal(C.PL_FINISH_ABORT, st:close().finish)
      end
    end
    for i = 1, 2 do assert.is_true(workers[i]:idle()) end
    assert.is_true(generated() - before < 84 * 2000 / 4)       -- none ran to its end
  end)

  it("stops where it runs when its client goes, and while it runs nowhere", function()
    local port = C.pl_listen(front.rt, "127.0.0.1", 0)
    for n = 1, 12 do
      local c = socket.connect(port)
      c:send "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
      local x = ffi.cast("pl_exchange *", front:event(C.PL_EV_REQUEST).object)
      C.pl_exchange_begin(x, 200, "text/event-stream", nil, 0)
      local st = front:stream(LONG[1], LONG[2], { mode = C.PL_STREAM_SSE, x = x })
      C.pl_stream_frame(st.handle, "a", 1, "b", 1)
      assert.equal(0, st:send(peers[1]))
      if n % 3 > 0 then c:receive(5) end
      if n % 3 == 2 then
        C.pl_stream_recall(st.handle)
        st:lost()
      end
      c:close()
      assert.equal(C.PL_FINISH_ABORT, st:finish().finish)
      C.pl_exchange_release(x)
      assert.is_true(workers[1]:idle())
    end
  end)

  it("waits while the bus is away, and is lost when that lasts", function()
    local st = long()
    assert.equal(0, st:send(peers[1]))
    assert.equal("piece", (st:next()))
    C.pl_hub_away(f.hub, 1)
    local early = of(KINDS[2])
    assert.equal(0, early:send(peers[2]))
    front:poll(300)
    C.pl_hub_away(f.hub, 0)
    assert.same(alone[2], early:finish())
    assert.same(long_alone, st:finish())
    local hasty = f:process { bus = { patience_ms = 100 } }
    st = long(hasty)
    assert.equal(0, st:send(hasty:peer(workers[1])))
    assert.equal("piece", (st:next()))
    C.pl_hub_away(f.hub, 1)
    assert.equal(C.PL_LOST_BUS, st:lost())
    C.pl_hub_away(f.hub, 0)
    C.pl_stream_close(st.handle)
    hasty:close()
  end)

  it("may be alive when its process closes", function()
    local p = f:process { engines = 1 }
    local peer = p:peer(workers[1])
    local open = {}
    for i = 1, 4 do open[i] = p:stream(LONG[1], LONG[2], { keep = true }) end
    assert.equal(0, open[1]:send(peer))
    assert.equal(0, open[2]:send(peer))
    assert.equal(0, open[3]:start(p.engines[1]))
    open[1]:next()
    C.pl_stream_recall(open[2].handle)
    open[2]:lost()
    p:close()
    assert.equal(C.PL_ECANCELED, open[2]:start(front.engines[1]))
    for i = 1, 4 do C.pl_stream_close(open[i].handle) end
    C.pl_seq_close(open[4].seq)
    assert.is_true(front:idle())
  end)
end)

describe("a real model over a bus", function()
  setup(function() C.pl_log_level(C.PL_LOG_ERROR) end)
  teardown(function() C.pl_log_level(C.PL_LOG_INFO) end)

  it("answers as at home", function()
    local f = fleet.open { kind = "llama" }
    local front, worker = f:process { engines = 1 }, f:process { engines = 1 }
    local peer, open = front:peer(worker), {}
    for i, kind in ipairs(KINDS) do
      open[i] = front:stream(kind[2], kind[3], kind[4])
      assert.equal(0, open[i]:send(peer))
    end
    for i, want in ipairs(answers(front, front.engines[1])) do
      assert.same(want, open[i]:finish())
    end
    f:close()
  end)
end)

describe("processes on a bus", function()
  local f, a, b
  setup(function() C.pl_log_level(C.PL_LOG_ERROR + 1) end)
  teardown(function() C.pl_log_level(C.PL_LOG_INFO) end)
  before_each(function()
    f = fleet.open { kind = "null" }
    a, b = f:process(), f:process { hello = false, engines = 1 }
  end)
  after_each(function() f:close() end)

  local function hello(p, text) C.pl_bus_hello(p.rt, text, #text) end

  it("have ids, and join once", function()
    assert.is_truthy(a.id:match "^%x+$" and #a.id == 16 and a.id ~= b.id)
    local o = ffi.new "pl_bus_options"
    C.pl_bus_options_init(o)
    o.hub = f.hub
    assert.equal(C.PL_EINVAL, C.pl_bus_open(a.rt, o))
    o.name_space = "not a name"
    local c = f:process { bus = false }
    assert.equal(C.PL_EINVAL, C.pl_bus_open(c.rt, o))
    assert.equal(C.PL_ENOTFOUND, C.pl_peer_hello(c.rt, 1, ffi.new "pl_buf"))
    assert.equal(C.PL_EINVAL, C.pl_call_send(c.rt, 1, "x", 1, 100))
    C.pl_bus_hello(c.rt, "{}", 2)
    C.pl_bus_leave(c.rt)
  end)

  it("hear of each other, of news, and of leaving", function()
    assert.equal(1, a:event(C.PL_EV_BUS).a)
    hello(b, '{"n":1}')
    local id = a:peer(b)
    assert.equal(1, a:hello_of(id).hello.n)
    assert.equal(1, #a:hello_of(id).engines)
    hello(b, '{"n":2}')
    assert.equal(0, a:event(C.PL_EV_PEER, id).a)
    assert.equal(2, a:hello_of(id).hello.n)
    C.pl_bus_leave(b.rt)
    assert.equal(C.PL_LOST_LEFT, a:event(C.PL_EV_PEER, id).a)
    assert.is_nil(a:hello_of(id))
    C.pl_hub_away(f.hub, 1)
    assert.equal(0, a:event(C.PL_EV_BUS).a)
  end)

  it("are told the newest, however much comes before they ask", function()
    hello(b, "{}")
    local id = a:peer(b)
    for i = 1, 20 do
      C.pl_hub_away(f.hub, i % 2)
      hello(b, '{"n":' .. i .. "}")
    end
    C.pl_hub_away(f.hub, 1)
    local last
    for ev in function() return a:event(C.PL_EV_BUS, nil, 300) end do last = ev.a end
    assert.equal(0, last)
    C.pl_hub_away(f.hub, 0)
    repeat a:poll(10) until a:hello_of(id) and a:hello_of(id).hello.n == 20
  end)

  it("say what their engines do", function()
    hello(b, "{}")
    local id = a:peer(b)
    local st = a:stream({ 1, 2, 3 }, { temperature = 0, max_tokens = 60, ignore_eos = 1 })
    assert.equal(0, st:send(id))
    st:finish()
    local e
    repeat
      a:poll(20)
      e = a:hello_of(id).engines[1]
    until e.generation_tokens == 60
    assert.same({ 0, 0, 0, 0, 3 }, { e.running, e.waiting, e.blocks_used, e.busy_ms,
      e.prompt_tokens })
    assert.is_true(e.steps >= 60 and e.blocks == 255)
    C.pl_bus_serve(b.rt, 2, b.engines[1].engine)
    C.pl_bus_serve(b.rt, 0, nil)
    repeat
      a:poll(20)
      e = a:hello_of(id).engines
    until #e == 3
    assert.same({ cjson.null, cjson.null }, { e[1], e[2] })
    C.pl_bus_serve(b.rt, 64, b.engines[1].engine)              -- no such place: logged
  end)
end)

describe("calls", function()
  local f, a, b, id
  before_each(function()
    C.pl_log_level(C.PL_LOG_ERROR + 1)
    f = fleet.open { kind = "null" }
    a, b = f:process(), f:process()
    id = a:peer(b)
  end)
  after_each(function()
    f:close()
    C.pl_log_level(C.PL_LOG_INFO)
  end)

  local function ask(text, ms) return C.pl_call_send(a.rt, id, text, #text, ms or 20000) end

  local len = ffi.new "size_t[1]"
  local function text_of(call) return ffi.string(C.pl_call_text(call, len), len[0]) end
  local function call_of(ev) return ffi.cast("pl_call *", ev.object) end

  -- Answers one call with fn(question), or not at all where that is nil.
  local function answer(fn)
    local call = call_of(b:event(C.PL_EV_CALL))
    local text = fn(text_of(call))
    if text then C.pl_call_answer(call, text, #text) end
    C.pl_call_close(call)
  end

  -- The answer to call n, or nil and the status.
  local function reply(n)
    local ev = a:event(C.PL_EV_REPLY, n)
    if ev.a ~= 0 then
      assert.is_true(ev.object == nil)
      return nil, ev.a
    end
    local text = text_of(call_of(ev))
    C.pl_call_close(call_of(ev))
    return text
  end

  it("are answered, whatever their size", function()
    for _, size in ipairs { 0, 1, 65535, 65536, 65537, 200000, 5000000 } do
      local n = ask(("q"):rep(size))
      answer(function(q) return q:gsub("q", "a") .. "!" end)
      local text = reply(n)
      assert.equal(size + 1, #text)
      assert.is_nil(text:find("q", 1, true))
    end
  end)

  it("are told that nobody answers", function()
    local n = ask "?"
    answer(function() end)
    assert.same({ nil, C.PL_ECANCELED }, { reply(n) })
    n = ask("?", 50)
    assert.same({ nil, C.PL_ETIMEOUT }, { reply(n) })
    answer(function() return "too late" end)
    n = ask("?", 0)
    assert.same({ nil, C.PL_ETIMEOUT }, { reply(n) })
    answer(function() return "too late" end)
    n = C.pl_call_send(a.rt, 4711, "?", 1, 1000)
    assert.same({ nil, C.PL_ENOTFOUND }, { reply(n) })
    assert.equal(C.PL_EINVAL, ask("?", -1))
    n = ask "still there?"
    answer(function() return "yes" end)
    assert.equal("yes", reply(n))
  end)

  it("answer once, and only what is asked", function()
    local n = ask "?"
    local call = call_of(b:event(C.PL_EV_CALL))
    C.pl_call_answer(call, "one", 3)
    C.pl_call_answer(call, "two", 3)
    local ev = a:event(C.PL_EV_REPLY, n)
    C.pl_call_answer(call_of(ev), "nonsense", 8)
    assert.equal("one", text_of(call_of(ev)))
    C.pl_call_close(call_of(ev))
    C.pl_call_close(call)
    assert.is_nil(b:event(C.PL_EV_CALL, nil, 50))
  end)

  it("end with who is asked, and with who asks", function()
    local n = ask "?"
    local call = call_of(b:event(C.PL_EV_CALL))
    b:close()
    assert.same({ nil, C.PL_ENOTFOUND }, { reply(n) })
    C.pl_call_answer(call, "after all", 9)
    C.pl_call_close(call)
    b = f:process()
    id = a:peer(b)
    ask "?"
    call = call_of(b:event(C.PL_EV_CALL))
    ask "and one that nobody takes"
    a:close()
    C.pl_call_answer(call, "nobody is there", 15)
    C.pl_call_close(call)
  end)

  it("are bounded, and thousands come through", function()
    for _ = 1, 3 do
      local asked = {}
      for i = 1, 1024 do asked[i] = ask("n" .. i) end
      assert.equal(C.PL_ELIMIT, ask "one more")
      for _ = 1, 1024 do answer(function(q) return q .. q end) end
      for i = 1, 1024 do assert.equal("n" .. i .. "n" .. i, reply(asked[i])) end
    end
    assert.equal(C.PL_ELIMIT, C.pl_call_send(a.rt, id, ("x"):rep(2 ^ 25 + 1), 2 ^ 25 + 1, 1))
  end)

  it("come through a bad bus", function()
    C.pl_hub_faults(f.hub, 3, 80, 80, 80)
    local asked = {}
    for i = 1, 200 do asked[i] = ask(("n%d "):format(i):rep(i * 20)) end
    for _ = 1, 200 do answer(function(q) return q:match "n%d+" end) end
    for i = 1, 200 do assert.equal("n" .. i, reply(asked[i])) end
  end)
end)
