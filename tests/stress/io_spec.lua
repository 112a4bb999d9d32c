-- SPDX-License-Identifier: Apache-2.0
-- Clients, streams and Lua come and go in any order: each stream ends once, each client
-- goes once, and nothing is told of what Lua has let go.
local pl = require "perilune.ffi"
local server = require "support.server"
local engine = require "support.null_engine"
local C, ffi = pl.C, pl.ffi

local ROUNDS = tonumber(os.getenv "PERILUNE_STRESS") or 2000
local SEED = tonumber(os.getenv "PERILUNE_SEED") or 1
local GET = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
local FRAME = { "data: \"", "\"\n\n" }

local World = {}
World.__index = World

local function new_world(s, e, text)
  return setmetatable({ s = s, e = e, text = text, clients = {}, exchanges = {},
    streams = {}, n_done = 0, n_gone = 0 }, World)
end

local function any(t)
  local keys = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys)
  return keys[math.random(math.max(#keys, 1))]
end

function World:connect()
  if #self.clients < 20 then
    local small = math.random(3) == 1 and 2048 or nil
    table.insert(self.clients, self.s:connect(GET:rep(math.random(3)), small))
  end
end

function World:leave()
  if #self.clients == 0 then return end
  local c = table.remove(self.clients, math.random(#self.clients))
  if math.random(2) == 1 then c:reset() else c:close() end
end

function World:read()
  for _, c in ipairs(self.clients) do c:receive(0) end
end

function World:start()
  local id = any(self.exchanges)
  local x = id and self.exchanges[id]
  if not x then return end
  if not x.begun then
    C.pl_exchange_begin(x.p, 200, "text/event-stream", nil, 0)
    x.begun = true
  end
  local st = C.pl_stream_open(self.s.rt, self.text, math.random(0, 2), x.p)
  C.pl_stream_frame(st, FRAME[1], #FRAME[1], FRAME[2], #FRAME[2])
  C.pl_stream_flags(st, 1, 0, math.random(3), 0)
  if math.random(2) == 1 then C.pl_stream_stop(st, "39404", 5) end
  local seq = engine.seq { max_tokens = math.random(300), logprobs = math.random(-1, 2) }
  if C.pl_stream_start(st, self.e.handle, seq) < 0 then
    C.pl_seq_close(seq)
    C.pl_stream_close(st)
  else
    self.streams[C.pl_stream_id(st)] = { p = st }
  end
end

function World:cancel()
  local id = any(self.streams)
  if id then C.pl_stream_cancel(self.streams[id].p) end
end

function World:close()
  local id = any(self.streams)
  if not id then return end
  C.pl_stream_close(self.streams[id].p)
  self.streams[id] = nil
end

function World:write()
  local id = any(self.exchanges)
  local x = id and self.exchanges[id]
  if x and x.begun then C.pl_exchange_write(x.p, ("w"):rep(2000), 2000) end
end

function World:finish()
  local id = any(self.exchanges)
  if not id then return end
  local x = self.exchanges[id]
  if x.begun and math.random(4) > 1 then C.pl_exchange_end(x.p) end
  if not x.begun and math.random(4) > 1 then
    C.pl_exchange_reply(x.p, 200, "text/plain", nil, 0, "ok", 2)
  end
  C.pl_exchange_release(x.p)
  self.exchanges[id] = nil
end

local on = {
  [C.PL_EV_REQUEST] = function(w, id, object)
    assert(not w.exchanges[id])
    w.exchanges[id] = { p = ffi.cast("pl_exchange *", object) }
  end,
  [C.PL_EV_GONE] = function(w, id)
    assert(w.exchanges[id] and not w.exchanges[id].gone, "gone twice, or after release")
    w.exchanges[id].gone = true
    w.n_gone = w.n_gone + 1
  end,
  [C.PL_EV_PIECE] = function(w, id)
    assert(w.streams[id], "a piece of a stream that is closed")
    local len, tokens = ffi.new "size_t[1]", ffi.new "const pl_token *[1]"
    C.pl_stream_take(w.streams[id].p, len)
    local n = C.pl_stream_tokens(w.streams[id].p, tokens, ffi.new "const int32_t *[1]")
    for i = 0, n - 1 do
      assert(tokens[0][i].n_top == 0 or tokens[0][i].top[0].token == tokens[0][i].token)
    end
  end,
  [C.PL_EV_DONE] = function(w, id)
    assert(w.streams[id], "done twice, or after close")
    C.pl_stream_close(w.streams[id].p)
    w.streams[id] = nil
    w.n_done = w.n_done + 1
  end,
}

function World:poll(timeout_ms)
  local kind, id, object = self.s:event(timeout_ms)
  if kind then on[kind](self, id, object) end
  return kind
end

describe("io under stress", function()
  it("ends everything once", function()
    C.pl_log_level(4)
    math.randomseed(SEED)
    local s = server.open { max_pending_write = 20000, max_connections = 64 }
    local e = engine.open(s.rt)
    local pieces = {}
    for i = 1, engine.VOCAB do pieces[i] = tostring(i) end
    local text = engine.text(pieces)
    local w = new_world(s, e, text)
    local acts = { "connect", "connect", "leave", "read", "start", "start", "start",
      "cancel", "close", "write", "write", "finish" }
    local function round(wait_ms)
      w[acts[math.random(#acts)]](w)
      for _ = 1, 3 do w:poll(wait_ms) end
    end
    for _ = 1, ROUNDS do round(0) end
    -- On a busy machine the io thread may have done next to nothing by now.
    local deadline = os.time() + 60
    while w.n_done == 0 or w.n_gone == 0 do
      assert.is_true(os.time() < deadline, "nothing was done, or nobody has gone")
      round(1)
    end
    while next(w.exchanges) or #w.clients > 0 do
      w:leave()
      w:finish()
      w:poll(1)
    end
    while next(w.streams) do
      assert.is_truthy(w:poll(5000))
    end
    e:close()
    s:close()
    C.pl_text_close(text)
    C.pl_log_level(C.PL_LOG_INFO)
  end)
end)
