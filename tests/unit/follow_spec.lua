-- SPDX-License-Identifier: Apache-2.0
-- An index that follows caches, here and elsewhere: it holds what they hold, whatever is
-- done to what they say, and nothing of what it does not know.
local fleet = require "support.fleet"
local null = require "support.null"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local BLOCK = null.BLOCK
local depths = ffi.new "int32_t[8192]"
local stats = ffi.new "pl_route_stats"
local engine_stats = ffi.new "pl_engine_stats"

local function need(object)
  assert(object ~= nil, ffi.string(C.pl_error_text()))
  return object
end

-- A text's blocks as the index knows them.
local function keys_of(ids, salt)
  local n, at, hash = math.floor(#ids / BLOCK), ffi.new("int32_t[?]", #ids, ids), nil
  local keys = ffi.new("uint64_t[?]", math.max(n, 1))
  for i = 0, n - 1 do
    local out = ffi.new "uint8_t[32]"
    assert(C.pl_block_hash(C.PL_HASH_SHA256_CBOR, nil, hash, at + i * BLOCK, BLOCK,
      i == 0 and salt or nil, salt and #salt or 0, out) == 0)
    hash, keys[i] = out, 0
    for k = 24, 31 do keys[i] = keys[i] * 256 + out[k] end
  end
  return keys, n
end

-- How many blocks of a text a worker holds, by an index.
local function depth(x, w, ids, salt)
  local keys, n = keys_of(ids, salt)
  C.pl_route_match(x, keys, n, depths)
  return depths[w]
end

local function held(x, w)
  C.pl_route_apply(x)
  return tonumber(C.pl_route_held(x, w))
end

local function gaps(x)
  C.pl_route_stats_get(x, stats)
  return tonumber(stats.gaps)
end

describe("an index and an engine of this process", function()
  local e, x, w
  local common = null.text(1, 48)

  before_each(function()
    e = null.engine()
    x = need(C.pl_route_open(1000))
    w = C.pl_route_join(x)
    assert.equal(0, C.pl_route_follow(x, w, e.handle))
  end)
  after_each(function()
    C.pl_route_close(x)
    if e then e:close() end
  end)

  local function run(ids, salt)
    local seq = null.seq(ids)
    local id = C.pl_seq_id(seq)
    if salt then assert(C.pl_seq_salt(seq, salt, #salt) == 0) end
    assert(C.pl_engine_submit(e.handle, seq) == 0)
    e:step()
    e:cancel(id)
    e:step()
  end

  it("agree about each text", function()
    assert.equal(0, held(x, w))
    run(common)
    assert.equal(3, held(x, w))
    assert.equal(3, depth(x, w, common))
    local longer = null.text(1, 48)
    for _, id in ipairs(null.text(2, 40)) do longer[#longer + 1] = id end
    assert.equal(3, depth(x, w, longer))
    run(longer)
    assert.equal(5, depth(x, w, longer))
    assert.equal(0, depth(x, w, null.text(3, 64)))
    assert.equal(5, held(x, w))
  end)

  it("know a salted text as another", function()
    run(common, "käse")
    assert.equal(0, depth(x, w, common))
    assert.equal(3, depth(x, w, common, "käse"))
  end)

  it("agree about what is evicted", function()
    local texts = {}
    for i = 1, 12 do
      texts[i] = null.text(10 + i, 64)
      run(texts[i])
      for k = 1, i do                       -- what the engine would find
        local id = assert(e:submit(texts[k], { max_tokens = 1 }))
        local known = math.min(depth(x, w, texts[k]), 3) * BLOCK
        e:step()
        assert.equal(known, e.first[id])
        e:cancel(id)
        e:step()
      end
      local fresh = need(C.pl_route_open(1000))
      local v = C.pl_route_join(fresh)
      assert.equal(0, C.pl_route_follow(fresh, v, e.handle))
      e:step()
      assert.equal(held(fresh, v), held(x, w))
      C.pl_route_close(fresh)
    end
    assert.equal(0, gaps(x))
  end)

  it("agree about a cache that was emptied", function()
    run(common)
    assert.equal(3, held(x, w))
    assert.equal(0, C.pl_engine_reset_cache(e.handle))
    e:step()
    assert.equal(0, held(x, w))
    assert.equal(0, depth(x, w, common))
    run(common)
    assert.equal(3, depth(x, w, common))
  end)

  it("begin with all that is there", function()
    run(common)
    local other = need(C.pl_route_open(1000))
    local v = C.pl_route_join(other)
    assert.equal(0, C.pl_route_follow(other, v, e.handle))
    assert.equal(0, held(other, v))         -- it has not told yet
    e:step()
    assert.equal(3, depth(other, v, common))
    run(null.text(2, 32))
    assert.equal(5, held(other, v))
    assert.equal(5, held(x, w))
    C.pl_route_close(other)
    run(null.text(3, 32))
    assert.equal(7, held(x, w))
  end)

  it("part when the worker leaves, or the engine closes", function()
    run(common)
    local keys, n = keys_of(common)
    assert.equal(3, depth(x, w, common))
    C.pl_route_leave(x, w)
    assert.equal(0, depth(x, w, common))
    run(null.text(2, 32))
    w = C.pl_route_join(x)
    assert.equal(0, C.pl_route_follow(x, w, e.handle))
    assert.equal(C.PL_EINVAL, C.pl_route_follow(x, w, e.handle))
    assert.equal(C.PL_ENOTFOUND, C.pl_route_follow(x, w + 1, e.handle))
    e:step()
    assert.equal(5, held(x, w))
    e:close()
    e = nil
    assert.equal(0, held(x, w))
    C.pl_route_match(x, keys, n, depths)
    assert.equal(0, depths[w])
    assert.equal(0, C.pl_route_check(x, w, 100))
  end)

  it("leave the engine to others when there are too many", function()
    local more = {}
    for i = 1, 8 do
      more[i] = need(C.pl_route_open(1000))
      C.pl_route_join(more[i])
      C.pl_log_level(C.PL_LOG_ERROR + 1)
      assert.equal(0, C.pl_route_follow(more[i], 0, e.handle))
      C.pl_log_level(C.PL_LOG_INFO)
    end
    run(common)
    assert.equal(3, held(x, w))
    assert.equal(3, held(more[1], 0))
    assert.equal(0, held(more[8], 0))
    for i = 1, 8 do C.pl_route_close(more[i]) end
  end)
end)

describe("an index and caches elsewhere", function()
  local f, front, worker, x, w, truth
  local TRIES = 2000

  before_each(function() C.pl_log_level(C.PL_LOG_ERROR) end)
  after_each(function()
    if x then C.pl_route_close(x) end
    if truth then C.pl_route_close(truth) end
    f:close()
    x, truth = nil, nil
    C.pl_log_level(C.PL_LOG_INFO)
  end)

  local function open(bus)
    f = fleet.open { kind = "null" }
    front = f:process { bus = bus }
    worker = f:process { engines = 1, bus = bus,
      options = { max_model_len = 1024, n_blocks = 40 } }
    x, truth = need(C.pl_route_open(10000)), need(C.pl_route_open(10000))
    w = C.pl_route_join(x)
    C.pl_route_join(truth)
    assert.equal(0, C.pl_route_follow(truth, 0, worker.engines[1].engine))
    assert.equal(0, C.pl_route_follow_peer(x, w, front.rt, front:peer(worker), 0))
  end

  -- Prompts of one stream after the other; what a cache of 40 blocks cannot hold.
  local function work(from, n)
    local peer = front:peer(worker)
    for i = from, from + n - 1 do
      local st = front:stream(null.text(i % 23 + 1, 16 * (i % 5 + 1) + 1), { max_tokens = 1 })
      assert.equal(0, st:send(peer))
      st:finish()
    end
  end

  -- As a frontend looks twice a second, with what the last heartbeat counted.
  local function look()
    local peer = front:peer(worker)
    if C.pl_peer_stats(front.rt, peer, 0, engine_stats) >= 0 then
      C.pl_route_check(x, w, engine_stats.blocks_changed)
    end
  end

  local function agree()
    for _ = 1, TRIES do
      local same = held(x, w) == held(truth, 0) and held(x, w) > 0
      for i = 1, 23 do
        local text = null.text(i, 81)
        same = same and depth(x, w, text) == depth(truth, 0, text)
      end
      if same then return true end
      look()
      front:poll(10)
    end
    return false
  end

  it("agree while the cache works", function()
    open()
    for i = 0, 4 do
      work(20 * i, 20)
      assert.is_true(agree())
    end
    assert.equal(0, gaps(x))
    assert.equal(1, C.pl_route_check(x, w, 0))
  end)

  it("agree over a bus that drops, repeats and delays", function()
    open()
    C.pl_hub_faults(f.hub, 5, 100, 100, 100)
    for i = 0, 4 do work(20 * i, 20) end
    assert.is_true(agree())
    assert.equal(0, gaps(x))                -- the link repairs that
    C.pl_hub_faults(f.hub, 5, 0, 0, 0)
  end)

  it("begin anew when the link was lost", function()
    open { patience_ms = 100, lost_after_ms = 1000 }
    work(0, 30)
    assert.is_true(agree())
    C.pl_hub_away(f.hub, 1)
    assert(front:await(function(ev)
      return ev.kind == C.PL_EV_PEER and ev.a == C.PL_LOST_BUS
    end))
    assert.equal(0, held(x, w))             -- nobody knows
    assert.equal(1, gaps(x))
    C.pl_hub_away(f.hub, 0)
    -- By its new number, as a frontend does.
    C.pl_route_leave(x, w)
    w = C.pl_route_join(x)
    assert.equal(0, C.pl_route_follow_peer(x, w, front.rt, front:peer(worker), 0))
    assert.is_true(agree())
    work(30, 10)
    assert.is_true(agree())
  end)

  it("begin anew when the worker lost the link, and says nothing of it", function()
    open { lost_after_ms = 1000 }
    work(0, 30)
    assert.is_true(agree())
    local lost = C.pl_metric_open(C.PL_COUNTER, "perilune_bus_lost_total", 'reason="silent"',
      "", nil, 0)
    local before = C.pl_metric_value(lost)
    local function run(i)
      local st = worker:stream(null.text(i, 65), { max_tokens = 1 })
      assert.equal(0, st:start(worker.engines[1]))
      st:finish()
    end
    C.pl_hub_stop(f.hub, front.id, 1)       -- it hears and says nothing
    run(40)
    while C.pl_metric_value(lost) == before do worker:poll(20) end
    run(41)                                 -- nobody follows it now
    C.pl_hub_stop(f.hub, front.id, 0)
    assert.is_true(agree())
    assert.is_true(depth(x, w, null.text(41, 65)) == 4)
  end)

  it("know nothing of an engine that is not served, or does not exist", function()
    open()
    work(0, 10)
    assert.is_true(agree())
    local v = C.pl_route_join(x)
    assert.equal(0, C.pl_route_follow_peer(x, v, front.rt, front:peer(worker), 5))
    local u = C.pl_route_join(x)
    assert.equal(0, C.pl_route_follow_peer(x, u, front.rt, 12345, 0))
    assert.equal(C.PL_EINVAL,
      C.pl_route_follow_peer(x, C.pl_route_join(x), front.rt, front:peer(worker), 64))
    C.pl_bus_serve(worker.rt, 0, nil)       -- no more
    work(0, 0)
    for _ = 1, 20 do
      C.pl_route_check(x, v, 50)
      C.pl_route_check(x, u, 50)
      front:poll(10)
    end
    assert.equal(0, held(x, v))
    assert.equal(0, held(x, u))
  end)

  it("may part at any moment", function()
    open()
    for i = 1, 200 do                       -- the asking may be under way when it ends
      if i % 10 == 0 then work(i, 1) end
      local v = C.pl_route_join(x)
      assert.equal(0, C.pl_route_follow_peer(x, v, front.rt, front:peer(worker), 0))
      if i % 2 == 0 then front:poll(1) end
      C.pl_route_leave(x, v)
    end
    assert.is_true(agree())
    front:close()                           -- before the index
    C.pl_route_apply(x)
    assert.equal(0, held(x, w))
  end)
end)
