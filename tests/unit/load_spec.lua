-- SPDX-License-Identifier: Apache-2.0
-- What a worker has to do, as it follows from the streams that are sent there.
local fleet = require "support.fleet"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local function text(n)
  local ids = {}
  for i = 1, n do ids[i] = i % 500 end
  return ids
end

describe("the load of a worker", function()
  local f, front, other, load, columns

  before_each(function()
    f = fleet.open()
    front, other = f:process { engines = 1 }, f:process { engines = 1 }
    load, columns = C.pl_load_open(16), C.pl_fleet_open()
  end)
  after_each(function()
    C.pl_fleet_close(columns)
    C.pl_load_close(load)
    f:close()
  end)

  local function look()
    C.pl_fleet_clear(columns)
    C.pl_fleet_add(columns, load, -1, 0, 0)
    return { prefilling = columns.prefilling[0], decoding = columns.decoding[0],
      in_flight = columns.waiting[0] + columns.running[0] }
  end

  local NONE = { prefilling = 0, decoding = 0, in_flight = 0 }

  -- A stream of 100 tokens, of which the first 32 are cached there.
  local function begin(st)
    C.pl_stream_charge(st.handle, load, 32)
    return st
  end

  for _, where in ipairs { "here", "elsewhere" } do
    it("grows with what is sent " .. where .. ", and is nothing in the end", function()
      local st = begin(front:stream(text(100), { max_tokens = 40, ignore_eos = 1 }))
      assert.same(NONE, look())
      local status = where == "here" and st:start(front.engines[1]) or st:send(front:peer(other))
      assert.equal(0, status)
      -- A step is under way, or none yet: whatever it is, there is no token for some time.
      assert.same({ prefilling = 5, decoding = 5, in_flight = 1 }, look())
      assert.equal("piece", st:next())
      local now = look()
      assert.same({ 0, 1 }, { now.prefilling, now.in_flight })
      assert.is_true(now.decoding >= 5)
      assert.equal(1, columns.running[0])
      st:finish()
      assert.same(NONE, look())
      assert.is_true(columns.ttft[0] > 0 and columns.itl[0] > 0)
    end)
  end

  it("counts blocks as they fill", function()
    local st = begin(front:stream(text(95), { max_tokens = 34, ignore_eos = 1 }))
    assert.equal(0, st:start(front.engines[1]))
    local most = 0
    repeat
      local what = st:next()
      most = math.max(most, look().decoding)
    until what == "done"
    st:close()
    assert.is_true(most >= 5 and most <= 7, most)     -- 4 of the prompt that are not cached
    assert.same(NONE, look())
  end)

  it("is given back when a worker is lost, and goes where the stream goes", function()
    local second = C.pl_load_open(16)
    local st = begin(front:stream(text(100), { max_tokens = 400, ignore_eos = 1 }, { keep = true }))
    assert.equal(0, st:start(front.engines[1]))
    assert.equal("piece", st:next())
    assert.is_true(C.pl_stream_kept(st.handle) == nil)
    C.pl_stream_recall(st.handle)
    assert.equal(C.PL_LOST_RECALLED, st:lost())
    assert.same(NONE, look())
    assert.is_true(C.pl_stream_kept(st.handle) ~= nil)
    C.pl_stream_charge(st.handle, second, 0)
    assert.equal(0, st:send(front:peer(other)))
    load, second = second, load
    local now = look()
    assert.is_true(now.prefilling >= 7 and now.decoding >= 7 and now.in_flight == 1)
    C.pl_stream_cancel(st.handle)
    st:finish()
    assert.same(NONE, look())
    C.pl_load_close(second)
  end)

  it("is nobody's of what was refused", function()
    local st = begin(front:stream({ 1, 599 + 1000 }, { max_tokens = 4 }))
    assert.equal(C.PL_EINVAL, C.pl_stream_start(st.handle, front.engines[1].engine, st.seq))
    assert.same(NONE, look())
    C.pl_seq_close(st.seq)
    C.pl_stream_close(st.handle)
  end)

  it("outlives who opened it", function()
    local st = begin(front:stream(text(100), { max_tokens = 40, ignore_eos = 1 }))
    assert.equal(0, st:start(front.engines[1]))
    C.pl_load_close(load)
    load = nil
    st:finish()
  end)

  it("is what the engine counts, where that is more", function()
    local s = ffi.new "pl_engine_stats"
    local st = begin(front:stream(text(100), { max_tokens = 400, ignore_eos = 1 }))
    assert.equal(0, st:start(front.engines[1]))
    assert.equal("piece", st:next())
    C.pl_engine_stats_get(front.engines[1].engine, s)
    C.pl_load_report(load, s, 1)
    local now = look()
    assert.is_true(now.decoding >= s.blocks_used and now.in_flight == 1, now.decoding)
    assert.equal(s.blocks, columns.capacity[0])
    assert.equal(s.blocks - now.decoding, columns.free[0])
    C.pl_stream_cancel(st.handle)
    st:finish()
  end)
end)

describe("a naming", function()
  it("names as engines do, and says what it cannot", function()
    assert.is_true(C.pl_naming_open(99, nil, 16) == nil)
    assert.is_true(C.pl_naming_open(C.PL_HASH_SHA256, nil, 0) == nil)
    local ids, params = ffi.new("int32_t[40]", text(40)), ffi.new "pl_params"
    C.pl_params_init(params)
    local keys, hash = ffi.new "uint64_t[9]", ffi.new "uint8_t[32]"
    for _, algo in ipairs { C.PL_HASH_SHA256_CBOR, C.PL_HASH_SHA256, C.PL_HASH_XXHASH_CBOR } do
      local naming, seq = C.pl_naming_open(algo, "s", 16), C.pl_seq_open(ids, 40, params)
      assert.equal(2, C.pl_naming_keys(naming, seq, 0, keys, 9))
      C.pl_block_hash(algo, "s", nil, ids, 16, nil, 0, hash)
      local last, key = algo == C.PL_HASH_XXHASH_CBOR and 16 or 32, 0ULL
      for i = last - 8, last - 1 do key = key * 256 + hash[i] end
      assert.is_true(keys[0] == key)
      assert.equal(1, C.pl_naming_keys(naming, seq, 1, keys, 9))
      assert.equal(0, C.pl_naming_keys(naming, seq, 2, keys, 9))
      assert.is_true(keys[0] ~= key)
      C.pl_seq_close(seq)
      C.pl_naming_close(naming)
    end
  end)
end)
