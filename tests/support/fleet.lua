-- SPDX-License-Identifier: Apache-2.0
-- fleet.lua - several processes in one: runtimes on a hub, each with engines that the
-- others may use, and streams that are sent, lost, and go on.
--
--   local f = fleet.open()
--   local front, worker = f:process(), f:process { engines = 1 }
--   local st = front:stream({ 1, 2, 3 }, { max_tokens = 8 })
--   st:send(front:peer(worker), 0)
--   local answer = st:finish()       -- text, tokens, tops, prompt, finish, ...

local open_device = require "support.device"
local cjson = require "cjson"
local engine = require "support.engine"
local golden = require "support.golden"
local null = require "support.null"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local M = { VOCAB = 600, WAIT = 20000 }

local function need(object)
  if object == nil or object == false then error(ffi.string(C.pl_error_text()), 3) end
  return object
end

local function must(status)
  if status < 0 then error(ffi.string(C.pl_error_text()), 3) end
  return status
end

-- ---- engines --------------------------------------------------------------------------

-- A model of random weights: big enough that a step takes longer than a test needs to
-- disturb it.
local SLOW = {
  n_layers = 4, hidden = 256, n_heads = 4, n_kv_heads = 2, head_dim = 64, ffn = 768,
  vocab = M.VOCAB, max_positions = 2048, norm_eps = 1e-5, rope_theta = 10000, tied = 1,
  activations = C.PL_ACT_FLOAT32, kv_type = C.PL_KV_FLOAT32, block_size = 16, dummy_seed = 1,
}

-- kind: "slow", "llama" (the small golden model), "null" (computes nothing).
local function load(kind)
  if kind == "llama" then
    return engine.load(golden.root .. "/llama", { threads = 1, activations = "float32" })
  elseif kind == "null" then
    local model, device = null.model()
    return { model = model, device = device }
  end
  local device = assert(open_device "cpu")
  local o = ffi.new "pl_model_options"
  for k, v in pairs(SLOW) do o[k] = v end
  local model = need(C.pl_model_open(device, o))
  must(C.pl_model_dummy(model))
  must(C.pl_model_ready(model))
  return { model = model, device = device }
end

local function open_engine(rt, kind, options)
  local e = engine.over(load(kind), options or { max_model_len = 2048 })
  must(C.pl_runtime_attach(rt, e.engine))
  return e
end

-- ---- streams --------------------------------------------------------------------------

local Stream = {}
Stream.__index = Stream

local function copy(top, n)
  local out = {}
  for i = 0, n - 1 do
    out[i + 1] = { top[i].token, top[i].rank, top[i].logprob }
  end
  return out
end

local out_tokens, out_starts = ffi.new "const pl_token *[1]", ffi.new "const int32_t *[1]"
local len = ffi.new "size_t[1]"

-- Takes what there is; how many tokens that were.
function Stream:take()
  self.text = self.text .. ffi.string(C.pl_stream_take(self.handle, len), len[0])
  local n = C.pl_stream_tokens(self.handle, out_tokens, out_starts)
  for i = 0, n - 1 do
    local t = out_tokens[0][i]
    if t.n_prompt_top > 0 then
      assert(#self.tokens == 0 and #self.prompt == 0, "a prompt's logprobs come first")
      self.prompt = copy(t.prompt_top, t.n_prompt_top)
    end
    assert(t.index == self.first + #self.tokens, "a token comes once, and in its turn")
    self.tokens[#self.tokens + 1] = t.token
    self.tops[#self.tops + 1] = copy(t.top, t.n_top)
    self.starts[#self.starts + 1] = out_starts[0][i]
  end
  return n
end

-- Starts here, on an engine, or sends to a peer's; the first time with its sequence.
function Stream:start(e)
  local seq = self.seq
  self.seq = nil
  return C.pl_stream_start(self.handle, e.engine, seq)
end

function Stream:send(peer, index)
  local seq = self.seq
  self.seq = nil
  return C.pl_stream_send(self.handle, peer, index or 0, seq)
end

local function target(at)
  return ffi.new("pl_target", { engine = at.engine, peer = at.peer,
    index = at.index })
end

-- In two places: one reads the prompt, the other goes on. Each is an engine of this
-- process, or { peer =, index = }.
function Stream:split(reader, taker)
  local status = C.pl_stream_split(self.handle, target(reader), target(taker), self.seq)
  if status == 0 then self.seq = nil end
  return status
end

-- The next event of it: "piece", "done", or "lost" and why, with what status; takes.
function Stream:next(ms)
  local ev = self.process:await(function(ev)
    return ev.id == self.id and (ev.kind == C.PL_EV_PIECE or ev.kind == C.PL_EV_DONE or
      ev.kind == C.PL_EV_LOST)
  end, ms)
  if not ev then return nil end
  if ev.kind == C.PL_EV_LOST then return "lost", ev.a, ev.b end
  self:take()
  return ev.kind == C.PL_EV_DONE and "done" or "piece"
end

-- Waits for LOST, which must come; why, status, text.
function Stream:lost()
  local what, why, status
  repeat what, why, status = self:next() until what ~= "piece"
  assert(what == "lost", "not lost, but " .. tostring(what))
  return why, status, ffi.string(C.pl_stream_why(self.handle))
end

-- Waits for the end, closes, and answers what came of it.
function Stream:finish()
  local what, why, status
  repeat what, why, status = self:next() until what ~= "piece"
  assert(what == "done", ("not done, but %s %s %s"):format(what, why, status))
  return self:close()
end

function Stream:close()
  local r = ffi.new "pl_stream_end"
  C.pl_stream_result(self.handle, r)
  C.pl_stream_close(self.handle)
  return { text = self.text, tokens = self.tokens, tops = self.tops, prompt = self.prompt,
    starts = self.starts, finish = r.finish, stop_reason = r.stop_reason,
    stop_string = r.stop_string, n_tokens = r.n_tokens }, r
end

-- ---- processes ------------------------------------------------------------------------

local Process = {}
Process.__index = Process

local events = ffi.new "pl_event[64]"

-- Brings what has come into the backlog.
function Process:poll(ms)
  local n = C.pl_poll(self.rt, events, 64, ms)
  for i = 0, n - 1 do
    local e = events[i]
    self.backlog[#self.backlog + 1] = { kind = e.kind, id = e.id, a = e.a, b = e.b,
      object = e.object }
  end
  return n
end

-- The first event that `wanted` takes, or nil when the time is over.
function Process:await(wanted, ms)
  local until_ns, at = C.pl_now_ns() + (ms or M.WAIT) * 1000000LL, 1
  while true do
    while at <= #self.backlog do
      if wanted(self.backlog[at]) then return table.remove(self.backlog, at) end
      at = at + 1
    end
    if C.pl_now_ns() > until_ns then return nil end
    self:poll(50)
  end
end

function Process:event(kind, id, ms)
  return self.await(self, function(ev)
    return ev.kind == kind and (not id or ev.id == id)
  end, ms)
end

-- What a peer says of itself, or nil.
function Process:hello_of(peer)
  local b = ffi.new "pl_buf"
  if C.pl_peer_hello(self.rt, peer, b) < 0 then return nil end
  return cjson.decode(pl.take(b))
end

-- The number by which another process is known here.
function Process:peer(other)
  local known = self.known[other.id]
  if known and self:hello_of(known) then return known end
  while true do
    local ev = assert(self:event(C.PL_EV_PEER), "a process was not seen")
    if ev.a == 0 then
      local hello = self:hello_of(ev.id)
      if hello then self.known[hello.id] = ev.id end
      if hello and hello.id == other.id then return ev.id end
    end
  end
end

-- A stream over a sequence of support/engine; `o`: mode, x, keep, stop, include_stop.
function Process:stream(ids, params, o)
  o = o or {}
  local handle = need(C.pl_stream_open(self.rt, self.fleet.text,
    o.mode or C.PL_STREAM_PIECES, o.x))
  if o.keep then C.pl_stream_keep(handle) end
  for _, stop in ipairs(o.stop or {}) do must(C.pl_stream_stop(handle, stop, #stop)) end
  C.pl_stream_flags(handle, 1, o.include_stop or 0, 1, params.min_tokens or 0)
  return setmetatable({ process = self, handle = handle, id = C.pl_stream_id(handle),
    seq = engine.seq(ids, params), first = params.resumed or 0, text = "", tokens = {},
    tops = {}, prompt = {}, starts = {} }, Stream)
end

-- Whether none of its engines has work or holds a block, within the time.
function Process:idle(ms)
  local until_ns, s = C.pl_now_ns() + (ms or M.WAIT) * 1000000LL, ffi.new "pl_engine_stats"
  for _, e in ipairs(self.engines) do
    repeat
      C.pl_engine_stats_get(e.engine, s)
      local busy = s.running + s.waiting + s.waiting_remote + s.blocks_used > 0
      if busy then self:poll(2) end
    until not busy or C.pl_now_ns() > until_ns
    if s.running + s.waiting + s.waiting_remote + s.blocks_used > 0 then return false end
    local checked
    repeat checked = C.pl_engine_check(e.engine) until checked ~= C.PL_EAGAIN
    must(checked)
  end
  return true
end

-- One engine more, and one less.
function Process:add(kind, options)
  local e = open_engine(self.rt, kind or self.fleet.kind, options)
  table.insert(self.engines, e)
  return e
end

function Process:remove(e)
  for i, other in ipairs(self.engines) do
    if other == e then table.remove(self.engines, i) end
  end
  C.pl_runtime_detach(self.rt, e.engine)
  e:close(true)
end

function Process:close()
  if not self.rt then return end
  C.pl_runtime_close(self.rt)
  self.rt = nil
  for _, e in ipairs(self.engines) do e:close(true) end
end

-- ---- the fleet ------------------------------------------------------------------------

local Fleet = {}
Fleet.__index = Fleet

-- `o`: engines (how many), kind, options (of an engine),
-- bus (false: none; or fields of pl_bus_options), hello (false: none).
function Fleet:process(o)
  o = o or {}
  local rt = need(C.pl_runtime_open(nil))
  local p = setmetatable({ fleet = self, rt = rt, id = ffi.string(C.pl_bus_id(rt)),
    engines = {}, backlog = {}, known = {} }, Process)
  for i = 1, o.engines or 0 do
    p.engines[i] = open_engine(rt, o.kind or self.kind, o.options)
    C.pl_bus_serve(rt, i - 1, p.engines[i].engine)
  end
  if o.bus ~= false then
    local options = ffi.new "pl_bus_options"
    C.pl_bus_options_init(options)
    options.hub, options.name_space = self.hub, "test"
    options.lost_after_ms = M.WAIT         -- a busy machine is no loss
    for k, v in pairs(o.bus or {}) do options[k] = v end
    must(C.pl_bus_open(rt, options))
    if o.hello ~= false then C.pl_bus_hello(rt, '{"a":"test"}', 12) end
  end
  self.processes[#self.processes + 1] = p
  return p
end

function Fleet:close()
  for _, p in ipairs(self.processes) do p:close() end
  if self.hub ~= nil then C.pl_hub_close(self.hub) end
  C.pl_text_close(self.text)
end

-- A vocabulary that is not the model's: short words, so that stop strings can be had.
local function open_text(vocab)
  local o = ffi.new "pl_text_options"
  o.kind, o.vocab_size, o.unk_id = C.PL_TEXT_BYTES, vocab, -1
  local t = need(C.pl_text_open(o))
  for i = 0, vocab - 1 do
    local word = string.char(97 + i % 26, 97 + math.floor(i / 26) % 26) .. "."
    if i >= 676 then word = word .. i end
    must(C.pl_text_token(t, i, word, #word, C.PL_TOKEN_NORMAL, 0))
  end
  must(C.pl_text_ready(t))
  return t
end

-- `o`: kind, of its engines (load); hub (false: none).
function M.open(o)
  o = o or {}
  return setmetatable({ kind = o.kind or "slow", processes = {},
    hub = o.hub ~= false and C.pl_hub_open() or nil,
    text = open_text(o.kind == "null" and null.VOCAB or M.VOCAB) }, Fleet)
end

M.must = must

return M
