-- SPDX-License-Identifier: Apache-2.0
-- A sequence whose prompt is read in one process and continued in another: the same answer
-- to the bit, whatever befalls either of them or what travels between.
local fleet = require "support.fleet"
local pl = require "perilune.ffi"
local process = require "support.process"
local C, ffi = pl.C, pl.ffi

local BLOCK = 16
-- A sanitizer makes all of it ten times as slow.
local LENGTHS = process.slow and { BLOCK - 1, BLOCK, 100 }
  or { 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 100, 300 }
local TIMES = process.slow and 12 or 40
local GREEDY = { temperature = 0, max_tokens = 40, ignore_eos = 1 }
local LONG = { temperature = 0.8, seed = 3, max_tokens = 400, ignore_eos = 1, logprobs = 2 }
local KINDS = {
  greedy = GREEDY,
  ["sampled, with logprobs"] = { temperature = 1, seed = 7, max_tokens = 40, logprobs = 3 },
  ["begun elsewhere, with penalties"] = { temperature = 0.9, seed = 4, max_tokens = 60,
    resumed = 5, presence_penalty = 0.9, min_tokens = 30 },
}
local OPTIONS = { max_model_len = 2048, max_num_batched_tokens = 100 }

local function prompt(n, seed)
  local out = {}
  for i = 1, n do out[i] = (131 + i * 37 + (seed or 0) * (i % 91)) % 590 end
  return out
end

local function metric(kind, name, labels)
  return C.pl_metric_value(C.pl_metric_open(kind, name, labels or "", "", nil, 0))
end

local function failures(reason)
  return metric(C.PL_COUNTER, "perilune_kv_transfer_failures_total",
    reason and ('reason="%s"'):format(reason))
end

local function all_failures()
  local n = 0
  for _, why in ipairs { "ended", "late", "layout", "lost", "corrupt" } do
    n = n + failures(why)
  end
  return n
end

local function under_way()
  return metric(C.PL_GAUGE, "perilune_kv_transfer_prompts")
end

describe("a stream that is split between processes", function()
  local f, front, one, two, home
  local places

  local function open_fleet(bus)
    f = fleet.open()
    front = f:process { engines = 2, options = OPTIONS, bus = bus }
    one = f:process { engines = 2, options = OPTIONS, bus = bus }
    two = f:process { engines = 1, options = OPTIONS, bus = bus }
    home = front.engines[1]
    local function there(p, index) return { peer = front:peer(p), index = index } end
    places = {
      { "both elsewhere", there(one, 0), there(two, 0) },
      { "both in one process elsewhere", there(one, 0), there(one, 1) },
      { "the reader here", front.engines[2], there(two, 0) },
      { "the taker here", there(one, 0), front.engines[2] },
    }
    one:peer(two)
    two:peer(one)
  end

  setup(function()
    C.pl_log_level(C.PL_LOG_ERROR + 1)
    open_fleet()
  end)
  teardown(function()
    f:close()
    C.pl_log_level(C.PL_LOG_INFO)
  end)

  local function is_idle()
    for _, p in ipairs { front, one, two } do assert.is_true(p:idle()) end
    local deadline = C.pl_now_ns() + 10000000000LL
    while under_way() > 0 and C.pl_now_ns() < deadline do front:poll(2) end
    assert.equal(0, under_way())
  end
  after_each(is_idle)

  local function forget_caches()
    is_idle()
    for _, p in ipairs { front, one, two } do
      for _, e in ipairs(p.engines) do
        assert.equal(0, C.pl_engine_reset_cache(e.engine))
      end
    end
  end

  local function alone(ids, params)
    local st = front:stream(ids, params)
    assert.equal(0, st:start(home))
    return st:finish()
  end

  local function split(at, ids, params, o)
    local st = front:stream(ids, params, o)
    assert.equal(0, st:split(at[2], at[3]))
    return st
  end

  for i = 1, 4 do
    it("answers as in one engine, wherever the two are: " .. i, function()
      local before = all_failures()
      for name, params in pairs(KINDS) do
        forget_caches()
        for k, n in ipairs(LENGTHS) do
          local ids = prompt(n, k)
          local want = alone(ids, params)
          for _ = 1, 2 do                        -- the second time with a warm cache
            assert.same(want, split(places[i], ids, params):finish(),
              places[i][1] .. ", " .. name)
          end
        end
      end
      assert.equal(before, all_failures())
    end)

    it("computes the prompt once, wherever the two are: " .. i, function()
      forget_caches()
      local taker = ({ two, one, two, front })[i]
      local e = i == 2 and one.engines[2] or i == 4 and front.engines[2] or taker.engines[1]
      local steps = ffi.new "pl_step_info[1024]"
      local n = C.pl_engine_steps(e.engine, steps, 1024)
      local last, rows = n > 0 and tonumber(steps[n - 1].number) or 0, 0
      split(places[i], prompt(20 * BLOCK + 5, 50 + i), GREEDY):finish()
      is_idle()
      for k = 0, C.pl_engine_steps(e.engine, steps, 1024) - 1 do
        if steps[k].number > last then rows = rows + steps[k].prompt_rows end
      end
      assert.equal(0, rows)
    end)
  end

  it("gives back all, however it is taken away", function()
    for n = 1, TIMES do
      local at = places[n % 4 + 1]
      local st = split(at, prompt(400, 100 + n), LONG, { keep = true })
      for _ = 1, n % 5 do front:poll(n % 7) end
      if n % 4 == 0 then st:next() end
      local how = ({ "recall", "cancel", "close" })[n % 3 + 1]
      C["pl_stream_" .. how](st.handle)
      if how == "recall" then
        assert.equal(C.PL_LOST_RECALLED, (st:lost()))
        C.pl_stream_cancel(st.handle)
      end
      if how ~= "close" then assert.equal(C.PL_FINISH_ABORT, st:finish().finish) end
      is_idle()
    end
    front.backlog = {}
  end)

  it("stops the reader when its client goes", function()
    forget_caches()
    local reader = one.engines[1]
    local st = split(places[1], prompt(1900, 7), LONG)
    repeat front:poll(1) until reader:statistics().running > 0
    C.pl_stream_cancel(st.handle)
    st:finish()
    is_idle()
    assert.is_true(reader:statistics().blocks_cached < 1900 / BLOCK - 10)
  end)

  it("goes on after a recall as if nothing had been", function()
    local ids = prompt(200, 8)
    local want = alone(ids, LONG)
    local st = split(places[1], ids, LONG)
    for k = 1, 8 do
      if k % 2 == 0 then assert.equal("piece", (st:next())) end
      C.pl_stream_recall(st.handle)
      assert.equal(C.PL_LOST_RECALLED, (st:lost()))
      local at = places[k % 4 + 1]
      assert.equal(0, st:split(at[2], at[3]))
    end
    assert.same(want, st:finish())
  end)

  it("answers many at once, with too few blocks on both sides", function()
    local few = { max_model_len = 512, n_blocks = 60, max_num_batched_tokens = 64 }
    local a = f:process { engines = 1, options = few }
    local b = f:process { engines = 1, options = few }
    local reader = { peer = front:peer(a), index = 0 }
    local taker = { peer = front:peer(b), index = 0 }
    local open, want = {}, {}
    for n = 1, 24 do
      local ids = prompt(40 + n * 11, n % 7)
      local params = { temperature = 0.7, seed = n, max_tokens = 30 + n, ignore_eos = 1 }
      want[n] = alone(ids, params)
      open[n] = front:stream(ids, params)
      assert.equal(0, open[n]:split(reader, taker))
    end
    for n = 1, 24 do assert.same(want[n], open[n]:finish()) end
    assert.is_true(a:idle() and b:idle())
    a:close()
    b:close()
  end)

  it("is right where messages are lost, repeated and late", function()
    C.pl_hub_faults(f.hub, 7, 50, 50, 50)
    local before = all_failures()
    for n = 1, 12 do
      local ids = prompt(150 + n * 20, 300 + n)
      local want = alone(ids, GREEDY)
      assert.same(want, split(places[n % 4 + 1], ids, GREEDY):finish())
    end
    C.pl_hub_faults(f.hub, 7, 0, 0, 0)
    assert.equal(before, all_failures())
  end)

  it("reads the prompt itself where the blocks do not fit", function()
    local other = f:process { engines = 1, kind = "null", options = OPTIONS }
    local reader = { peer = front:peer(other), index = 0 }
    local before, st = failures "layout", front:stream(prompt(100, 10), GREEDY)
    assert.equal(0, st:split(reader, places[1][3]))
    assert.equal(GREEDY.max_tokens, #st:finish().tokens)
    assert.equal(before + 1, failures "layout")
    other:close()
  end)

  it("reads the prompt itself where the reader's sequence ends in its middle", function()
    forget_caches()
    local ids, before = prompt(1500, 70), failures "ended"
    local want = alone(ids, GREEDY)
    local st = split(places[1], ids, GREEDY)
    repeat front:poll(1) until two.engines[1]:statistics().waiting_remote > 0
    local seqs = ffi.new "pl_seq_info[4]"
    assert.equal(1, C.pl_engine_seqs(one.engines[1].engine, seqs, 4))
    C.pl_engine_cancel(one.engines[1].engine, seqs[0].seq)
    assert.same(want, st:finish())
    assert.equal(before + 1, failures "ended")
  end)

  it("reads the prompt itself where the reader's process stands still", function()
    local hasty = { lost_after_ms = 1500 }
    local slow = { max_model_len = 2048, max_num_batched_tokens = 8, max_num_seqs = 8 }
    local f2 = fleet.open()
    local p = f2:process { engines = 1, options = OPTIONS, bus = hasty }
    local a = f2:process { engines = 1, options = slow, bus = hasty }
    local b = f2:process { engines = 1, options = OPTIONS, bus = hasty }
    local reader = { peer = p:peer(a), index = 0 }
    local taker = { peer = p:peer(b), index = 0 }
    local ids, before = prompt(1500, 80), failures "lost"
    local want = alone(ids, GREEDY)
    local st = p:stream(ids, GREEDY)
    assert.equal(0, st:split(reader, taker))
    repeat p:poll(1) until b.engines[1]:statistics().waiting_remote > 0
    C.pl_hub_stop(f2.hub, a.id, 1)
    assert.same(want, st:finish())
    assert.equal(before + 1, failures "lost")
    C.pl_hub_stop(f2.hub, a.id, 0)           -- what it says from now on is of the past
    assert.is_true(a:idle() and b:idle())
    f2:close()
  end)

  it("gives the blocks back where the taker's process stands still", function()
    local hasty = { lost_after_ms = 1500 }
    local f2 = fleet.open()
    local p = f2:process { engines = 1, options = OPTIONS, bus = hasty }
    local a = f2:process { engines = 1, options = OPTIONS, bus = hasty }
    local b = f2:process { engines = 1, options = OPTIONS, bus = hasty }
    local reader = { peer = p:peer(a), index = 0 }
    local taker = { peer = p:peer(b), index = 0 }
    local ids = prompt(1500, 81)
    local want = alone(ids, GREEDY)
    local st = p:stream(ids, GREEDY)
    assert.equal(0, st:split(reader, taker))
    repeat p:poll(1) until b.engines[1]:statistics().waiting_remote > 0
    C.pl_hub_stop(f2.hub, b.id, 1)
    local why = st:lost()
    assert.equal(C.PL_LOST_SILENT, why)
    assert.is_true(a:idle())
    assert.equal(0, st:start(p.engines[1]))
    assert.same(want, st:finish())
    C.pl_hub_stop(f2.hub, b.id, 0)
    assert.is_true(b:idle())
    f2:close()
  end)

  -- What becomes of `st` if `victim`, which takes part in it, is closed.
  local function outlive(st, want)
    local what, why
    repeat what, why = st:next() until what ~= "piece"
    if what == "done" then
      assert.same(want, st:close())
      return 0
    end
    assert.is_true(why == C.PL_LOST_LEFT or why == C.PL_LOST_GONE
      or why == C.PL_LOST_REFUSED, why)
    assert.equal(0, st:start(home))
    assert.same(want, st:finish())
    return 1
  end

  it("outlives either process, at any moment", function()
    local lost = 0
    local params = { temperature = 0.8, seed = 3, max_tokens = 40, ignore_eos = 1 }
    for n = 1, TIMES * 2 / 5 do
      local ids = prompt(400, 20 + n)
      local other = f:process { engines = 1, options = { max_model_len = 2048,
        max_num_seqs = 16, max_num_batched_tokens = 32 } }
      local at = { peer = front:peer(other), index = 0 }
      local want = alone(ids, params)
      local st = front:stream(ids, params)
      if n % 2 == 0 then
        assert.equal(0, st:split(places[1][2], at))
      else
        assert.equal(0, st:split(at, places[1][3]))
      end
      for _ = 1, n do front:poll(4) end
      other:close()
      lost = lost + outlive(st, want)
    end
    assert.is_true(lost > 0)
  end)
end)
