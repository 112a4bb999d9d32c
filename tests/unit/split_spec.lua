-- SPDX-License-Identifier: Apache-2.0
-- A sequence whose prompt is read by one engine and continued by another one: the answer is
-- the same to the bit, the prompt is computed once, and whatever befalls either side, the
-- answer is right or the stream is lost and goes on.
local fleet = require "support.fleet"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local BLOCK = 16

local function prompt(n, seed)
  local out = {}
  for i = 1, n do out[i] = (131 + i * 37 + (seed or 0) * (i % 91)) % 590 end
  return out
end

local KINDS = {
  ["greedy"] = { temperature = 0, max_tokens = 40, ignore_eos = 1 },
  ["sampled, with logprobs"] = { temperature = 1, seed = 7, max_tokens = 40, logprobs = 3 },
  ["with the prompt's logprobs"] = { temperature = 0, max_tokens = 20, logprobs = 0,
    prompt_logprobs = 2 },
  ["begun elsewhere, with penalties"] = { temperature = 0.9, seed = 4, max_tokens = 60,
    resumed = 5, presence_penalty = 0.9, min_tokens = 30 },
  ["of one token"] = { temperature = 0, max_tokens = 1 },
}
local LONG = { temperature = 0.8, seed = 3, max_tokens = 600, ignore_eos = 1, logprobs = 2 }

local id = {}
local function metric(name, labels)
  local key = name .. (labels or "")
  id[key] = id[key] or C.pl_metric_open(C.PL_COUNTER, name, labels or "", "", nil, 0)
  return C.pl_metric_value(id[key])
end

local function under_way()
  local at = C.pl_metric_open(C.PL_GAUGE, "perilune_kv_transfer_prompts", "", "", nil, 0)
  return C.pl_metric_value(at)
end

local function bytes() return metric "perilune_kv_transfer_bytes_total" end

local function failures(reason)
  return metric("perilune_kv_transfer_failures_total", ('reason="%s"'):format(reason))
end

describe("a split stream", function()
  local f, front, alone_in, reader, taker, block_bytes

  setup(function()
    C.pl_log_level(C.PL_LOG_ERROR + 1)
    f = fleet.open { hub = false }
    front = f:process { engines = 3, bus = false,
      options = { max_model_len = 2048, max_num_batched_tokens = 100 } }
    alone_in, reader, taker = unpack(front.engines)
    block_bytes = tonumber(C.pl_model_block_bytes(reader.loaded.model))
  end)
  teardown(function()
    f:close()
    C.pl_log_level(C.PL_LOG_INFO)
  end)
  after_each(function()
    assert.is_true(front:idle())
    assert.equal(0, under_way())
  end)

  local function alone(ids, params)
    local st = front:stream(ids, params)
    assert.equal(0, st:start(alone_in))
    return st:finish()
  end

  local function split(ids, params, o)
    local st = front:stream(ids, params, o)
    assert.equal(0, st:split(reader, taker))
    return st
  end

  local function forget_caches()
    for _, e in ipairs(front.engines) do
      assert.is_true(front:idle())
      assert.equal(0, C.pl_engine_reset_cache(e.engine))
    end
  end

  -- What `fn` had the taker's engine compute and the copier copy: rows, blocks.
  local function effort(fn)
    local steps = ffi.new "pl_step_info[1024]"
    local n = C.pl_engine_steps(taker.engine, steps, 1024)
    local last, before = n > 0 and tonumber(steps[n - 1].number) or 0, bytes()
    fn()
    assert.is_true(front:idle())
    local rows = 0
    for i = 0, C.pl_engine_steps(taker.engine, steps, 1024) - 1 do
      if steps[i].number > last then rows = rows + steps[i].prompt_rows end
    end
    return rows, (bytes() - before) / block_bytes
  end

  for name, params in pairs(KINDS) do
    it(name .. ": answers as in one engine, whatever the prompt's length", function()
      forget_caches()
      for k, n in ipairs { 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 100, 300 } do
        local ids = prompt(math.max(n, params.resumed and 7 or 0), k)
        local want = alone(ids, params)
        assert.same(want, split(ids, params):finish())
        assert.same(want, split(ids, params):finish())       -- with all of it cached there
      end
    end)
  end

  it("computes no more than the last token there, and moves each block once", function()
    forget_caches()
    local ids, want = prompt(10 * BLOCK + 5, 50)
    local rows, blocks = effort(function() want = split(ids, KINDS.greedy):finish() end)
    assert.same({ 0, 11 }, { rows, blocks })
    rows, blocks = effort(function()
      assert.same(want, split(ids, KINDS.greedy):finish())
    end)
    assert.same({ 0, 1 }, { rows, blocks })                  -- the last block is not full
    ids = prompt(10 * BLOCK, 50)
    rows, blocks = effort(function() split(ids, KINDS.greedy):finish() end)
    assert.same({ 0, 1 }, { rows, blocks })
  end)

  it("has the reader say one token and no more", function()
    forget_caches()
    local before = reader:statistics().generation_tokens
    split(prompt(40, 60), KINDS.greedy):finish()
    assert.is_true(front:idle())
    assert.equal(before + 1, reader:statistics().generation_tokens)
  end)

  it("moves what the taker lacks", function()
    forget_caches()
    local ids = prompt(12 * BLOCK, 51)
    local st = front:stream({ unpack(ids, 1, 5 * BLOCK + 3) }, KINDS.greedy)
    assert.equal(0, st:start(taker))
    st:finish()
    local want = alone(ids, KINDS.greedy)
    local _, blocks = effort(function()
      assert.same(want, split(ids, KINDS.greedy):finish())
    end)
    assert.equal(7, blocks)
  end)

  it("gives back all, however it is taken away", function()
    for n = 1, 30 do
      forget_caches()
      local st = split(prompt(400, 100 + n), LONG, { keep = true })
      for _ = 1, n % 5 do front:poll(n % 7) end
      if n % 4 == 0 then st:next() end
      local how = ({ "recall", "cancel", "close" })[n % 3 + 1]
      C["pl_stream_" .. how](st.handle)
      if how == "recall" then
        assert.equal(C.PL_LOST_RECALLED, (st:lost()))
        assert.equal(0, C.pl_stream_by_reader(st.handle))
        C.pl_stream_cancel(st.handle)
      end
      if how ~= "close" then assert.equal(C.PL_FINISH_ABORT, st:finish().finish) end
      assert.is_true(front:idle())
    end
    front.backlog = {}
  end)

  it("stops the reader when its client goes", function()
    forget_caches()
    local st = split(prompt(1900, 7), LONG)
    local s
    repeat
      front:poll(1)
      s = reader:statistics()
    until s.running > 0
    C.pl_stream_cancel(st.handle)
    st:finish()
    assert.is_true(front:idle())
    assert.is_true(reader:statistics().blocks_cached < 1900 / BLOCK - 10)
  end)

  it("goes on after a recall as if nothing had been", function()
    local ids = prompt(200, 8)
    local want = alone(ids, LONG)
    local st = split(ids, LONG)
    for k = 1, 4 do
      if k % 2 == 0 then assert.equal("piece", (st:next())) end
      C.pl_stream_recall(st.handle)
      assert.equal(C.PL_LOST_RECALLED, (st:lost()))
      assert.equal(0, st:split(k % 2 == 0 and reader or taker, k % 2 == 0 and taker or reader))
    end
    assert.same(want, st:finish())
  end)

  it("is lost when either side refuses it, and it is told which", function()
    local short = front:add(nil, { max_model_len = 64 })
    local ids = prompt(100, 9)
    local want = alone(ids, KINDS.greedy)
    for by_reader = 0, 1 do
      local st = front:stream(ids, KINDS.greedy)
      local a, b = reader, short
      if by_reader == 1 then a, b = short, taker end
      assert.equal(0, st:split(a, b))
      local why, status = st:lost()
      assert.same({ C.PL_LOST_REFUSED, C.PL_EINVAL }, { why, status })
      assert.equal(by_reader, C.pl_stream_by_reader(st.handle))
      assert.equal(0, st:start(taker))
      assert.same(want, st:finish())
    end
    front:remove(short)
  end)

  it("reads the prompt itself where the blocks do not fit", function()
    local other = front:add("null", { max_model_len = 2048 })
    local before, ids = failures "layout", prompt(100, 10)
    local st = front:stream(ids, KINDS.greedy)
    assert.equal(0, st:split(other, taker))
    assert.equal(KINDS.greedy.max_tokens, #st:finish().tokens)
    assert.equal(before + 1, failures "layout")
    front:remove(other)
  end)

  it("reads the prompt itself where the reader ends in the middle of it", function()
    forget_caches()
    local ids, before = prompt(1500, 70), failures "ended"
    local want = alone(ids, KINDS.greedy)
    local st = split(ids, KINDS.greedy)
    repeat front:poll(1) until taker:statistics().waiting_remote > 0
    local seqs = ffi.new "pl_seq_info[4]"
    assert.equal(1, C.pl_engine_seqs(reader.engine, seqs, 4))
    C.pl_engine_cancel(reader.engine, seqs[0].seq)
    assert.same(want, st:finish())
    assert.equal(before + 1, failures "ended")
  end)

  it("fails instead, where that is wanted", function()
    local strict = front:add(nil, { max_model_len = 2048, fail_without_kv = 1 })
    local ids, before = prompt(1500, 71), failures "ended"
    local st = front:stream(ids, KINDS.greedy)
    assert.equal(0, st:split(reader, strict))
    repeat front:poll(1) until strict:statistics().waiting_remote > 0
    local seqs = ffi.new "pl_seq_info[4]"
    assert.equal(1, C.pl_engine_seqs(reader.engine, seqs, 4))
    C.pl_engine_cancel(reader.engine, seqs[0].seq)
    local answer = st:finish()
    assert.same({ C.PL_FINISH_ERROR, 0 }, { answer.finish, #answer.tokens })
    assert.equal(before + 1, failures "ended")
    forget_caches()
    assert.same(alone(ids, KINDS.greedy), (function()     -- and else not
      local other = front:stream(ids, KINDS.greedy)
      assert.equal(0, other:split(reader, strict))
      return other:finish()
    end)())
    front:remove(strict)
  end)

  it("answers many at once, with too few blocks on both sides", function()
    local few = f:process { engines = 2, bus = false,
      options = { max_model_len = 512, n_blocks = 60, max_num_batched_tokens = 64 } }
    local open, want = {}, {}
    for n = 1, 24 do
      local ids = prompt(40 + n * 11, n % 7)
      local params = { temperature = 0.7, seed = n, max_tokens = 30 + n, ignore_eos = 1 }
      want[n] = alone(ids, params)
      open[n] = few:stream(ids, params)
      assert.equal(0, open[n]:split(few.engines[1], few.engines[2]))
    end
    for n = 1, 24 do assert.same(want[n], open[n]:finish()) end
    assert.is_true(few:idle())
    few:close()
  end)

  it("outlives either engine", function()
    local lost = 0
    local params = { temperature = 0.8, seed = 3, max_tokens = 40, ignore_eos = 1 }
    for n = 1, 16 do
      local ids = prompt(400, 20 + n)
      local other = front:add(nil, { max_model_len = 2048, max_num_seqs = 16,
        max_num_batched_tokens = 32 })
      local want = alone(ids, params)
      local st = front:stream(ids, params)
      local a, b = other, taker
      if n % 2 == 0 then a, b = reader, other end
      assert.equal(0, st:split(a, b))
      for _ = 1, n do front:poll(4) end
      front:remove(other)
      local what, why
      repeat what, why = st:next() until what ~= "piece"
      if what == "lost" then
        lost = lost + 1
        assert.is_true(why == C.PL_LOST_LEFT or why == C.PL_LOST_REFUSED)
        assert.equal(0, st:start(alone_in))
        assert.same(want, st:finish())
      else
        assert.same(want, st:close())
      end
    end
    assert.is_true(lost > 0)
  end)
end)
