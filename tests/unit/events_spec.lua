-- SPDX-License-Identifier: Apache-2.0
-- vLLM's KV events: the bytes that vLLM writes, what is read of any version's, and both
-- ends of the sockets.
local changes = require "support.changes"
local cjson = require "cjson"
local kv_events = require "perilune.fleet.kv_events"
local null = require "support.null"
local pl = require "perilune.ffi"
local zmq = require "support.zmq"
local C, ffi = pl.C, pl.ffi

local function bytes(hex)
  return (hex:gsub("%s", ""):gsub("%x%x", function(b) return string.char(tonumber(b, 16)) end))
end

local function hex(data)
  return (data:gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

local HASH = 12755324888713283606ULL
-- As vLLM writes them: time 1.5, that hash, tokens 1 to 4, a block of 4.
local STORED = [[
  93cb3ff8000000000000918ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391cf
  b1040467da744816b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964739401020304aa62
  6c6f636b5f73697a6504a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0aa6578
  7472615f6b65797391c0a967726f75705f69647800b26b765f63616368655f737065635f6b696e64ae66756c
  6c5f617474656e74696f6e00]]
local REMOVED = [[
  93cb3ff80000000000009184a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391
  cfb1040467da744816a66d656469756da3475055a967726f75705f6964780000]]
local CLEARED = "93cb3ff80000000000009181a474797065b0416c6c426c6f636b73436c656172656400"
local OLD_STORED = [[93cb3ff80000000000009198ab426c6f636b53746f72656491cfb1040467da744816
  c0940102030404c0a3475055c000]]
local OLD_CLEARED = "93cb3ff80000000000009191b0416c6c426c6f636b73436c656172656400"

local function decode(data)
  local log = ffi.new "pl_change_log"
  local status = C.pl_events_decode(data, #data, log)
  if status < 0 then
    C.pl_change_log_fini(log)
    return nil, ffi.string(C.pl_error_text()), status
  end
  local t = changes.table_of(C.pl_change_log_take(log, 0, 0))
  C.pl_change_log_fini(log)
  return { unpack(t) }
end

-- blocks: { key, parent or nil, tokens, salt }.
local function encoded(blocks, kind, keys, rank)
  local log, b = ffi.new "pl_change_log", ffi.new "pl_buf"
  for _, block in ipairs(blocks) do
    C.pl_change_log_add(log, changes.STORED, block[1])
    local salt = block[4]
    C.pl_change_log_block(log, ffi.new("pl_change_block", block[2] or 0, block[2] == nil, 0,
      salt and #salt or -1), ffi.new("int32_t[?]", #block[3], block[3]), #block[3], salt)
  end
  for _, key in ipairs(keys or {}) do C.pl_change_log_add(log, kind, key) end
  local c = C.pl_change_log_take(log, 0, 1)
  C.pl_events_encode(b, 1.5, c, rank or 0)
  C.pl_changes_put(c)
  C.pl_change_log_fini(log)
  return pl.take(b)
end

local KEY = tostring(HASH)

describe("vLLM's events", function()
  it("are written as vLLM does it, byte for byte", function()
    assert.equal(hex(bytes(STORED)), hex(encoded { { HASH, nil, { 1, 2, 3, 4 } } }))
    assert.equal(hex(bytes(REMOVED)), hex(encoded({}, changes.REMOVED, { HASH })))
    assert.equal(CLEARED, hex(encoded({}, changes.CLEARED, { 0 })))
  end)

  it("are one for each text that goes on", function()
    local data = encoded { { 1, nil, { 5, 300 }, "käse" }, { 2, 1, { 70000, 7 } },
      { 9, 4, { 8, 9 } } }
    assert.same({ { "stored", "1ULL", "2ULL", "9ULL" } }, decode(data))
    local first = "ac626c6f636b5f686173686573920102b1706172656e745f626c6f636b5f68617368c0"
      .. "a9746f6b656e5f6964739405cd012cce0001117007aa626c6f636b5f73697a6502"
    local second = "ac626c6f636b5f6861736865739109b1706172656e745f626c6f636b5f6861736804"
      .. "a9746f6b656e5f696473920809aa626c6f636b5f73697a6502"
    local salted = "aa65787472615f6b6579739291a56bc3a47365c0"
    for _, part in ipairs { first, second, salted } do
      assert.is_truthy(hex(data):find(part, 1, true), part)
    end
  end)

  it("are read in any version's form", function()
    for _, data in ipairs { STORED, OLD_STORED } do
      assert.same({ { "stored", KEY } }, decode(bytes(data)))
    end
    assert.same({ { "removed", KEY } }, decode(bytes(REMOVED)))
    assert.same({ { "cleared" } }, decode(bytes(CLEARED)))
    assert.same({ { "cleared" } }, decode(bytes(OLD_CLEARED)))
    -- Signed hashes; digests, of which the end counts; no rank; new keys, nested.
    assert.same({ { "removed", "18446744073709551615ULL", "258ULL" } }, decode(bytes [[
      92 01 91 83 a474797065 ac426c6f636b52656d6f766564 ac626c6f636b5f686173686573 92 ff
      c40a ffff 0000000000000102 a36e6577 82 a161 92 c0 c3 a162 81 a163 d60505050505]]))
    assert.same({ { "removed", KEY } }, decode(bytes [[93 01 91 96
      ac426c6f636b52656d6f766564 91 cfb1040467da744816 a3475055 00 a3787878 c0 c0]]))
  end)

  it("of other caches, or of a kind that is not known, are skipped", function()
    local head = "92 01 91 84 a474797065 ac426c6f636b52656d6f766564 "
      .. "ac626c6f636b5f686173686573 91 05 "
    for _, more in ipairs { "a66d656469756d a3435055 a161 01",       -- medium CPU
        "a967726f75705f696478 01 a161 01",                           -- group_idx 1
        "b26b765f63616368655f737065635f6b696e64 a6736c6964696e a161 01" } do
      assert.same({}, decode(bytes(head .. more)))
    end
    assert.same({ { "removed", "5ULL" } }, decode(bytes(head .. [[
      a967726f75705f696478 01 b26b765f63616368655f737065635f6b696e64
      ad6d6c615f617474656e74696f6e]])))
    assert.same({}, decode(bytes "92 01 91 82 a474797065 a34e6577 a161 01"))
    assert.same({}, decode(bytes "92 01 90"))
  end)

  it("are refused if they are malformed", function()
    for data, why in pairs {
      [""] = "ends too early", ["c0"] = "is no array of time and events",
      ["91 01"] = "is no array of time and events", ["92 01 c0"] = "is no array of time and events",
      ["92 01 91 01"] = "has an event that is neither a map nor an array",
      ["92 01 91 81 01 01"] = "has an event whose key is no text",
      ["92 01 91 81 a474797065 ab426c6f636b53746f726564"] = "has an event without block_hashes",
      ["92 01 91 82 a474797065 ab426c6f636b53746f726564 ac626c6f636b5f686173686573 01"] =
        "has block_hashes that are no array",
      ["92 01 91 82 a474797065 ab426c6f636b53746f726564 ac626c6f636b5f686173686573 91 a131"] =
        "has a hash that is no number",
      ["92 01 ddffffffff"] = "ends too early", ["92 01 91 dfffffffff"] = "ends too early",
      ["92 01 c1"] = "is not MessagePack", ["92 01 90 00"] = "is followed by something",
    } do
      local t, said, status = decode(bytes(data))
      assert.is_nil(t, data)
      assert.same({ C.PL_EFORMAT, "a batch of events " .. why }, { status, said })
    end
    local whole = bytes(STORED)
    for n = 0, #whole - 1 do assert.is_nil((decode(whole:sub(1, n)))) end
  end)
end)

describe("kv_events_config", function()
  local function wanted(config) return kv_events.wanted { kv_events_config = config } end

  it("is vLLM's", function()
    assert.is_false(wanted {})
    assert.is_false(wanted { endpoint = "tcp://*:1" })
    assert.is_false(wanted { enable_kv_cache_events = true, publisher = "null" })
    assert.is_true(wanted { enable_kv_cache_events = true })
    assert.is_true(wanted(cjson.decode [[{"enable_kv_cache_events":true,"publisher":"zmq",
      "endpoint":"tcp://*:5557","replay_endpoint":null,"buffer_steps":10000,"hwm":100000,
      "max_queue_size":100000,"topic":"kv-events"}]]))
  end)

  it("is refused with what was wanted", function()
    for why, config in pairs {
      ["kv_events_config has no field 'endpiont'; did you mean 'endpoint'?"] = { endpiont = "x" },
      ["kv_events_config: hwm is '-1', wanted a count"] = { hwm = -1 },
      ["kv_events_config: topic is '1', wanted a string"] = { topic = 1 },
      ["kv_events_config: publisher is 'kafka', wanted 'zmq' or 'null'"] = { publisher = "kafka" },
    } do
      local ok, said = wanted(config)
      assert.is_nil(ok)
      assert.equal(why, said)
    end
  end)
end)

-- ---- sockets ---------------------------------------------------------------------------

local WAIT = 20000

describe("events over ZeroMQ", function()
  local z, e, published, x

  before_each(function()
    z, e = zmq.open(), null.engine { n_blocks = 40 }
    C.pl_log_level(C.PL_LOG_ERROR)
  end)
  after_each(function()
    if x then C.pl_route_close(x) end
    if published then C.pl_events_close(published) end
    e:close()
    z:close()
    x, published = nil, nil
    C.pl_log_level(C.PL_LOG_INFO)
  end)

  -- A port that perhaps nobody has.
  local function some_port() return 20000 + tonumber(C.pl_entropy() % 12000) end

  local function options(o)
    local options_ = ffi.new "pl_events_options"
    C.pl_events_options_init(options_)
    for k, v in pairs(o) do options_[k] = v end
    return options_
  end

  -- Publishes the engine's events; where, and where they are replayed.
  local function publish(o)
    for _ = 1, 100 do
      local port, all = some_port(), { topic = "kv-events" }
      all.endpoint = "tcp://*:" .. port
      all.replay_endpoint = "tcp://127.0.0.1:" .. some_port()
      for k, v in pairs(o or {}) do all[k] = v end
      published = C.pl_events_open(e.handle, options(all))
      if published ~= nil then return "tcp://127.0.0.1:" .. port, all.replay_endpoint end
    end
    error(ffi.string(C.pl_error_text()))
  end

  local function run(ids)
    local id = assert(e:submit(ids))
    e:step()
    e:cancel(id)
    e:step()
  end

  -- Subscribed once something comes: runs texts until it does.
  local function subscribe(endpoint)
    local s = z:socket(zmq.SUB, "connect", endpoint)
    for i = 100, 500 do
      run(null.text(i, 32))
      local frames = s:receive(50)
      if frames then return s, frames end
    end
    error "nothing comes"
  end

  it("come in three frames, numbered without a gap", function()
    local s, frames = subscribe((publish()))
    local number = zmq.value(frames[2])
    for i = 1, 5 do
      run(null.text(i, 48))
      frames = s:receive(WAIT)
      assert.same({ 3, "kv-events" }, { #frames, frames[1] })
      assert.equal(number + i, zmq.value(frames[2]))
      local t = decode(frames[3])
      assert.same({ "stored", 3 }, { t[1][1], #t[1] - 1 })
      assert.equal("\147\203", frames[3]:sub(1, 2))
    end
    e:step()
    assert.is_nil(s:receive(20))            -- nothing happened
  end)

  it("have all that vLLM tells of a text", function()
    local s = subscribe((publish { rank = 0 }))
    run(null.text(7, 40))
    local data = hex(s:receive(WAIT)[3])
    assert.is_truthy(data:find("aa626c6f636b5f73697a6510a76c6f72615f6964c0", 1, true))
    assert.is_truthy(data:find("b1706172656e745f626c6f636b5f68617368c0", 1, true))
    assert.is_truthy(data:find("a9746f6b656e5f696473dc0020", 1, true))
    assert.equal("00", data:sub(-2))
  end)

  it("are replayed from a number on, as far as they are kept", function()
    local endpoint, replay = publish { buffer_steps = 3 }
    local s = subscribe(endpoint)
    local frames, payload = nil, {}
    for i = 1, 5 do
      run(null.text(i, 48))
      frames = s:receive(WAIT)
      payload[tonumber(zmq.value(frames[2]))] = frames[3]
    end
    local last = tonumber(zmq.value(frames[2]))
    for _, ask in ipairs { { zmq.REQ, {} }, { zmq.DEALER, { "" } }, { zmq.DEALER, {} } } do
      local r = z:socket(ask[1], "connect", replay)
      local request = { unpack(ask[2]) }
      request[#request + 1] = zmq.number(0)
      r:send(request)
      if ask[1] == zmq.REQ then             -- it can take one message
        assert.equal(last - 2, tonumber(zmq.value(r:receive(WAIT)[1])))
      else
        for n = last - 2, last + 1 do
          frames = r:receive(WAIT)
          if ask[2][1] then assert.equal("", table.remove(frames, 1)) end
          local is_end = n > last
          assert.equal(is_end and ("\255"):rep(8) or zmq.number(n), frames[1])
          assert.equal(is_end and "" or payload[n], frames[2])
        end
      end
      r:close()
    end
    local r = z:socket(zmq.DEALER, "connect", replay)
    r:send { "", "too long a number" }      -- is not answered
    r:send { "", zmq.number(last + 1) }
    assert.same({ "", ("\255"):rep(8), "" }, r:receive(WAIT))
  end)

  it("go to ports by rank, and to those who listen", function()
    local listener = z:socket(zmq.SUB, "bind", "tcp://127.0.0.1:*")
    local port = tonumber(listener.endpoint:match "%d+$")
    publish { endpoint = "tcp://127.0.0.1:" .. port - 2, rank = 2 }
    local frames
    repeat
      run(null.text(3, 48))
      assert.equal(0, C.pl_engine_reset_cache(e.handle))
      e:step()
      frames = listener:receive(50)
    until frames
    assert.equal(2, frames[3]:byte(-1))
  end)

  it("are refused where they cannot be published", function()
    local s = z:socket(zmq.PUB, "bind", "tcp://127.0.0.1:*")
    for _, case in ipairs {
      { { endpoint = (s.endpoint:gsub("127.0.0.1", "*")) }, "PL_EIO", "events at 'tcp://%*:%d+': " },
      { { endpoint = "tcp://*:0" }, "PL_EINVAL", "wanted tcp://HOST:PORT" },
      { { endpoint = "tcp://*:65535", rank = 1 }, "PL_EINVAL", "wanted tcp://HOST:PORT" },
      { { endpoint = "nonsense" }, "PL_EIO", "events at 'nonsense': " },
      { { buffer_steps = 0 }, "PL_EINVAL", "buffer_steps" },
      { { hwm = -1 }, "PL_EINVAL", "a hwm" },
    } do
      local o = case[1]
      assert.is_true(C.pl_events_open(e.handle, options(o)) == nil)
      assert.equal(case[2], ffi.string(C.pl_status_name(C.pl_error_status())))
      assert.matches(case[3], ffi.string(C.pl_error_text()))
    end
  end)

  local function held(w)
    C.pl_route_apply(x)
    return tonumber(C.pl_route_held(x, w))
  end

  local function await(want, w, act)
    local until_ns = C.pl_now_ns() + WAIT * 1000000LL
    repeat
      if act then act() end
      if held(w) == want then return true end
    until C.pl_now_ns() > until_ns
    error(("%d blocks are known, wanted %d"):format(held(w), want), 2)
  end

  it("have an index agree with the engine that publishes them", function()
    local endpoint, replay = publish()
    run(null.text(1, 48))                   -- before anybody subscribes
    x = C.pl_route_open(1000)
    local truth, w = C.pl_route_join(x), C.pl_route_join(x)
    assert.equal(0, C.pl_route_follow(x, truth, e.handle))
    assert.equal(0, C.pl_route_subscribe(x, w, endpoint, replay, "kv-events"))
    for i = 2, 30 do
      run(null.text(i, 16 * (i % 7) + 17))
      await(held(truth), w)
    end
    assert.is_true(held(w) > 20)
    assert.equal(0, C.pl_engine_reset_cache(e.handle))
    e:step()
    await(0, w)
  end)

  -- A publisher of our own: sends what it is told.
  local function batch(kind, ...)
    local stored = {}
    for i, key in ipairs { ... } do stored[i] = { key, nil, { 1 } } end
    if kind == "stored" then return encoded(stored) end
    return encoded({}, changes.REMOVED, { ... })
  end

  local function publisher(replays)
    local pub = z:socket(zmq.PUB, "bind", "tcp://127.0.0.1:*")
    local router = replays and z:socket(zmq.ROUTER, "bind", "tcp://127.0.0.1:*")
    x = C.pl_route_open(1000)
    local w = C.pl_route_join(x)
    assert.equal(0, C.pl_route_subscribe(x, w, pub.endpoint, router and router.endpoint, "t"))
    return pub, w, router
  end

  it("leave nothing that was told before a gap", function()
    local pub, w = publisher()
    local n = 0
    local function say(number, ...) pub:send { "t", zmq.number(number), batch(...) } end
    await(1, w, function() say(n, "stored", 1) n = n + 1 end)   -- it has subscribed
    say(n, "stored", 2, 3)
    await(3, w)
    say(n + 1, "removed", 2)
    await(2, w)
    pub:send { "t", zmq.number(n + 2), "nonsense" }
    await(0, w)
    say(n + 3, "stored", 5, 6)
    await(2, w)
    pub:send { "t", "no number", "x" }      -- skipped
    pub:send { "t" }
    say(n + 5, "stored", 7)                 -- n + 4 is missing
    await(1, w)
    say(0, "stored", 8, 9)                  -- it began anew
    await(2, w)
    say(1, "stored", 10)
    await(3, w)
  end)

  it("are completed by a replay", function()
    local pub, w, router = publisher(true)
    local function replayed(first, list, with_topic)
      local ask = router:receive(WAIT)
      assert.same({ 3, "", zmq.number(first) }, { #ask, ask[2], ask[3] })
      for _, item in ipairs(list) do
        local answer = { ask[1], "" }
        if with_topic then answer[3] = "t" end
        answer[#answer + 1] = zmq.number(item[1])
        answer[#answer + 1] = item[2]
        router:send(answer)
      end
      router:send { ask[1], "", ("\255"):rep(8), "" }
    end
    replayed(0, { { 0, batch("stored", 1, 2) }, { 1, batch("removed", 1) } })
    await(1, w)
    local n, asked = 3, false
    await(1, w, function()                  -- until it has subscribed: 2 is missing
      if asked then return end
      pub:send { "t", zmq.number(n), batch("stored", 100 + n) }
      local ask = router:receive(20)
      if not ask then n = n + 1 return end
      asked = true
      assert.equal(zmq.number(2), ask[3])
      local missing = { { 2, batch("stored", 2, 3) } }
      for i = 3, n do missing[#missing + 1] = { i, batch("stored", 3) } end
      for _, item in ipairs(missing) do
        router:send { ask[1], "", "t", zmq.number(item[1]), item[2] }
      end
      router:send { ask[1], "", "t", ("\255"):rep(8), "" }
      await(2, w)
      pub:send { "t", zmq.number(n + 1), batch("removed", 3) }
    end)
    pub:send { "t", zmq.number(n + 5), batch("stored", 50) }
    replayed(n + 2, { { n + 4, batch("stored", 60, 61) } }, true)   -- two are lost for good
    await(3, w)
  end)

  it("may be subscribed to for a moment, or where nobody publishes", function()
    x = C.pl_route_open(1000)
    local endpoint = "tcp://127.0.0.1:" .. some_port()
    for _ = 1, 5 do
      local w = C.pl_route_join(x)
      assert.equal(0, C.pl_route_subscribe(x, w, endpoint, endpoint, ""))
      assert.equal(C.PL_EINVAL, C.pl_route_subscribe(x, w, endpoint, nil, ""))
      C.pl_route_leave(x, w)
    end
    local w = C.pl_route_join(x)
    assert.equal(C.PL_EINVAL, C.pl_route_subscribe(x, w, "nonsense", nil, ""))
  end)
end)
