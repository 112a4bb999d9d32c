-- SPDX-License-Identifier: Apache-2.0
-- A sequence that runs in two places: each token is heard once, whoever says it first, and
-- what befalls one place is nobody's matter while there is the other.
local fleet = require "support.fleet"
local pl = require "perilune.ffi"
local C = pl.C

local PROMPT = {}
for i = 1, 30 do PROMPT[i] = (131 + i * 37) % 590 end

-- Too long to end before it is disturbed.
local LONG = { temperature = 0.8, seed = 3, max_tokens = 600, ignore_eos = 1, logprobs = 2 }
local KINDS = {
  ["greedy"] = { temperature = 0, max_tokens = 100 },
  ["sampled, with logprobs"] = { temperature = 1, seed = 7, max_tokens = 100, logprobs = 3 },
  ["with the prompt's logprobs"] = { temperature = 0, max_tokens = 100, logprobs = 0,
    prompt_logprobs = 2 },
  ["begun elsewhere, with penalties"] = { temperature = 0.9, seed = 4, max_tokens = 100,
    resumed = 5, presence_penalty = 0.9 },
}

describe("a stream in two places", function()
  local f, front, workers, peers

  setup(function()
    C.pl_log_level(C.PL_LOG_ERROR + 1)
    f = fleet.open()
    front, workers, peers = f:process { engines = 2 }, {}, {}
    for i = 1, 2 do
      workers[i] = f:process { engines = 1 }
      peers[i] = front:peer(workers[i])
    end
  end)
  teardown(function()
    f:close()
    C.pl_log_level(C.PL_LOG_INFO)
  end)
  after_each(function()
    C.pl_hub_faults(f.hub, 0, 0, 0, 0)
    for _, p in ipairs { front, workers[1], workers[2] } do assert.is_true(p:idle()) end
  end)

  local function keeping(params) return front:stream(PROMPT, params, { keep = true }) end

  local function alone(params)
    local st = front:stream(PROMPT, params)
    assert.equal(0, st:start(front.engines[1]))
    return st:finish()
  end

  -- A place more: engine e here, or the peer's.
  local function also(st, e, peer)
    return C.pl_stream_also(st.handle, e and e.engine, peer or 0, 0)
  end

  -- Whether it may have ended by now, or is about to.
  local function is_over(status)
    return status == C.PL_ECANCELED or status == C.PL_EINVAL
  end

  -- The same of such a one; 1: it has not.
  local function try_also(...)
    local status = also(...)
    assert.is_true(status == 0 or is_over(status))
    return status == 0 and 1 or 0
  end

  for name, params in pairs(KINDS) do
    it(name .. ": answers as in one, here and over a bus", function()
      local want, here, there = alone(params), 0, 0
      for n = 1, 6 do
        local st = keeping(params)
        assert.equal(0, st:start(front.engines[1]))
        if n % 2 == 0 then st:next() end
        here = here + try_also(st, front.engines[2])
        assert.same(want, st:finish())
        st = keeping(params)
        assert.equal(0, st:send(peers[1]))
        if n % 2 == 0 then st:next() end
        there = there + try_also(st, n % 3 == 0 and front.engines[1] or nil, peers[2])
        assert.same(want, st:finish())
      end
      assert.is_true(here > 0 and there > 0)
    end)
  end

  it("answers as in one, whatever the bus does to messages", function()
    local want, open = alone(KINDS.greedy), {}
    C.pl_hub_faults(f.hub, 5, 60, 60, 60)
    for n = 1, 12 do
      open[n] = keeping(KINDS.greedy)
      assert.equal(0, open[n]:send(peers[n % 2 + 1]))
      try_also(open[n], nil, peers[(n + 1) % 2 + 1])
    end
    for _, st in ipairs(open) do assert.same(want, st:finish()) end
  end)

  it("is not lost with one of them", function()
    local want = alone(LONG)
    local third = f:process { engines = 1 }
    local st = keeping(LONG)
    assert.equal(0, st:send(front:peer(third)))
    assert.equal("piece", (st:next()))
    assert.equal(0, also(st, nil, peers[1]))
    repeat
      front:poll(5)
      local s = workers[1].engines[1]:statistics()
    until s.running > 0
    third:close()
    assert.same(want, st:finish())
  end)

  it("is not lost where the second one refuses it", function()
    local want = alone(KINDS.greedy)
    for _, peer in ipairs { 4711, peers[1] } do
      local st = keeping(KINDS.greedy)
      assert.equal(0, st:start(front.engines[1]))
      local status = C.pl_stream_also(st.handle, nil, peer, 7)
      assert.is_true(status == 0 or is_over(status))
      assert.same(want, st:finish())
    end
  end)

  it("is lost once, with the last of them, and goes on", function()
    local want = alone(LONG)
    local other = f:process { engines = 1 }
    local peer = front:peer(other)
    local st = keeping(LONG)
    assert.equal(0, st:send(peer))
    assert.equal("piece", (st:next()))
    assert.equal(0, also(st, nil, peer))               -- both in one process
    other:close()
    st:lost()
    assert.equal(0, st:send(peers[1]))
    assert.same(want, st:finish())
  end)

  it("is withdrawn from both, however it is taken away", function()
    for _, stop in ipairs { "recall", "cancel", "close" } do
      local st = keeping(LONG)
      assert.equal(0, st:send(peers[1]))
      assert.equal("piece", (st:next()))
      assert.equal(0, also(st, nil, peers[2]))
      assert.equal("piece", (st:next()))
      C["pl_stream_" .. stop](st.handle)
      if stop == "recall" then
        assert.equal(C.PL_LOST_RECALLED, (st:lost()))
        assert.equal(0, st:start(front.engines[1]))
        C.pl_stream_cancel(st.handle)
      end
      if stop ~= "close" then assert.equal(C.PL_FINISH_ABORT, st:finish().finish) end
      for _, w in ipairs(workers) do assert.is_true(w:idle()) end
    end
    front.backlog = {}
  end)

  it("ends in both at a stop string", function()
    local text = alone(LONG).text
    local st = front:stream(PROMPT, LONG, { keep = true, stop = { text:sub(60, 64) } })
    assert.equal(0, st:send(peers[1]))
    try_also(st, nil, peers[2])
    assert.equal(C.PL_FINISH_STOP, st:finish().finish)
  end)

  it("is refused where that makes no sense", function()
    for _, w in ipairs(workers) do C.pl_hub_stop(f.hub, w.id, 1) end   -- so it cannot end
    local st = keeping(LONG)
    assert.equal(C.PL_EINVAL, also(st, front.engines[1]))      -- it does not run
    assert.equal(0, st:send(peers[1]))
    assert.equal(C.PL_EINVAL, C.pl_stream_also(st.handle, nil, peers[1], -1))
    assert.equal(0, also(st, nil, peers[2]))
    assert.equal(C.PL_ELIMIT, also(st, front.engines[1]))
    C.pl_stream_cancel(st.handle)
    assert.equal("done", (st:next()))
    assert.equal(C.PL_ECANCELED, also(st, front.engines[1]))
    st:close()
    for _, w in ipairs(workers) do C.pl_hub_stop(f.hub, w.id, 0) end
    st = front:stream(PROMPT, LONG)                            -- it keeps no sequence
    assert.equal(0, st:start(front.engines[1]))
    assert.is_true(is_over(also(st, front.engines[2])))
    C.pl_stream_cancel(st.handle)
    st:finish()
  end)

  it("computes what was to come from elsewhere, where nobody brings it", function()
    local want = alone(KINDS.greedy)
    local st = front:stream(PROMPT, KINDS.greedy)
    C.pl_seq_remote(st.seq, 20)
    assert.equal(0, st:start(front.engines[2]))
    assert.same(want, st:finish())
  end)
end)
