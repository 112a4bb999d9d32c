-- SPDX-License-Identifier: Apache-2.0
-- Sequences that run elsewhere, are lost, and go on: each must end with the answer that it
-- would have had at home, undisturbed, bit for bit.
local fleet = require "support.fleet"
local pl = require "perilune.ffi"
local C = pl.C

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
    min_tokens = 9, stop_ids = prompt(7, 100), eos = { 599, 3, 4, 5 } } },
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

describe("a stream that keeps its sequence", function()
  local f, p
  local alone = {}               -- the answers, undisturbed

  setup(function()
    C.pl_log_level(C.PL_LOG_ERROR)
    f = fleet.open { hub = false }
    p = f:process { engines = 2, bus = false }
    for i, kind in ipairs(KINDS) do
      local st = p:stream(kind[2], kind[3], kind[4])
      assert.equal(0, st:start(p.engines[1]))
      alone[i] = st:finish()
    end
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

  for i, kind in ipairs(KINDS) do
    it(kind[1] .. ": goes on at the other engine after each token", function()
      local st, at, moves = keeping(kind), 1, 0
      assert.equal(0, st:start(p.engines[1]))
      local what, why
      repeat
        C.pl_stream_recall(st.handle)
        what, why = st:next()
        if what == "lost" then
          assert.equal(C.PL_LOST_RECALLED, why)
          st:take()
          at, moves = 3 - at, moves + 1
          assert.equal(0, st:start(p.engines[at]))
          what = st:next()
        end
      until what == "done"
      assert.same(alone[i], st:close())
      assert.is_true(moves > 3)
    end)
  end

  it("is lost when its engine closes, and what keeps none is over", function()
    local other = fleet.open { hub = false }
    local q = other:process { engines = 2, bus = false }
    local long = { temperature = 0, max_tokens = 900, ignore_eos = 1 }
    local st, sad = q:stream(KINDS[1][2], long, { keep = true }), q:stream(KINDS[1][2], long)
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
    local st = keeping(KINDS[1])
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
    local st = keeping(KINDS[1])
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
