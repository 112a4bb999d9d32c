-- SPDX-License-Identifier: Apache-2.0
local pl = require "perilune.ffi"
local server = require "support.server"
local engine = require "support.null_engine"
local C, ffi = pl.C, pl.ffi

local GET = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
local BEFORE, AFTER = 'data: {"t":"', '"}\n\n'

describe("stream", function()
  local s, e, len
  local texts = {}               -- of this test; its streams use them until the end

  local function new_text(pieces, special)
    texts[#texts + 1] = engine.text(pieces, special)
    return texts[#texts]
  end

  setup(function() C.pl_log_level(C.PL_LOG_ERROR) end)
  teardown(function() C.pl_log_level(C.PL_LOG_INFO) end)
  before_each(function()
    s, len = server.open { max_pending_write = 65536 }, ffi.new "size_t[1]"
    e = engine.open(s.rt)
  end)
  after_each(function()
    e:close()
    s:close()
    for i = 1, #texts do C.pl_text_close(texts[i]) end
    texts = {}
  end)

  -- `o`: mode, x; stop, skip_special, include_stop, interval, min_tokens; for the
  -- sequence: params, prepare; for the vocabulary: special.
  local function start(pieces, o)
    local text = new_text(pieces, o.special)
    local st = C.pl_stream_open(s.rt, text, o.mode or C.PL_STREAM_WHOLE, o.x)
    assert(st ~= nil, ffi.string(C.pl_error_text()))
    if not o.unframed then C.pl_stream_frame(st, BEFORE, #BEFORE, AFTER, #AFTER) end
    for _, stop in ipairs(o.stop or {}) do
      assert.equal(0, C.pl_stream_stop(st, stop, #stop))
    end
    C.pl_stream_flags(st, o.skip_special or 1, o.include_stop or 0, o.interval or 1,
      o.min_tokens or 0)
    local seq = engine.seq(o.params or { max_tokens = #pieces })
    if o.prepare then o.prepare(seq) end
    assert.equal(0, C.pl_stream_start(st, e.handle, seq))
    return st
  end

  local function take(st)
    return ffi.string(C.pl_stream_take(st, len), len[0])
  end

  local function done(st)
    local kind, id, object = s:event()
    assert.equal(C.PL_EV_DONE, kind)
    assert.equal(C.pl_stream_id(st), id)
    assert.is_true(ffi.cast("pl_stream *", object) == st)
    local r = ffi.new "pl_stream_end"
    C.pl_stream_result(st, r)
    return r
  end

  -- What becomes of the pieces: text and result.
  local function whole(pieces, o)
    local st = start(pieces, o or {})
    local r = done(st)
    local all = take(st)
    C.pl_stream_close(st)
    return all, r
  end

  -- The same when streamed: events, the text left for Lua, result.
  local function sse(pieces, o)
    local c = s:connect(GET)
    local x = s:request()
    o = o or {}
    o.mode, o.x = C.PL_STREAM_SSE, x
    C.pl_exchange_begin(x, 200, "text/event-stream", nil, 0)
    C.pl_exchange_write(x, "first;", 6)
    local st = start(pieces, o)
    local r = done(st)
    local rest = take(st)
    C.pl_stream_close(st)
    C.pl_exchange_write(x, "last", 4)
    C.pl_exchange_end(x)
    C.pl_exchange_release(x)
    local _, body = c:answer()
    c:close()
    local events = {}
    for t in body:gmatch 'data: {"t":"(.-)"}\n\n' do events[#events + 1] = t end
    assert.equal("first;", body:sub(1, 6))
    assert.equal("last", body:sub(-4))
    return events, rest, r
  end

  it("gives the whole text at the end", function()
    local all, r = whole { "Hel", "lo", ", w\195", "\182rld" }
    assert.equal("Hello, wörld", all)
    assert.equal(C.PL_FINISH_LENGTH, r.finish)
    assert.same({ 4, -1, -1 }, { r.n_tokens, r.stop_reason, r.stop_string })
    assert.is_true(r.submitted_ns > 0 and r.scheduled_ns > 0)
    assert.is_true(r.scheduled_ns <= r.first_ns and r.first_ns <= r.last_ns)
  end)

  it("writes an event for each piece but the last, none for half a character", function()
    local events, rest, r = sse { "a", "b\"\n", "\226", "\130\172", "end" }
    assert.same({ "a", 'b\\"\\n', "€" }, events)
    assert.equal("end", rest)
    assert.equal(5, r.n_tokens)
  end)

  it("writes nothing before it has a frame: the answer may begin later", function()
    local events, rest = sse({ "a", "b" }, { unframed = true })
    assert.same({}, events)
    assert.equal("ab", rest)
  end)

  it("flushes what never became a character", function()
    local all = whole { "a", "\226\130" }
    assert.equal("a\239\191\189", all)
  end)

  it("keeps to an interval, but lets the first piece go", function()
    local events, rest = sse({ "a", "b", "c", "d", "e", "f", "g" }, { interval = 3 })
    assert.same({ "a", "bcd" }, events)
    assert.equal("efg", rest)
  end)

  it("tells of pieces, with their tokens", function()
    local st = start({ "a", "b", "\195", "\182", "c" }, {
      mode = C.PL_STREAM_PIECES, params = { max_tokens = 5, logprobs = 2 },
    })
    local tokens, starts = ffi.new "const pl_token *[1]", ffi.new "const int32_t *[1]"
    local all, ids, at = "", {}, {}
    repeat
      local kind = s:event()
      all = all .. take(st)
      for i = 0, C.pl_stream_tokens(st, tokens, starts) - 1 do
        local t = tokens[0][i]
        ids[#ids + 1], at[#at + 1] = t.token, starts[0][i]
        assert.equal(3, t.n_top)
        assert.equal(t.token, t.top[0].token)
        assert.is_true(t.prompt_top == nil)
      end
    until kind == C.PL_EV_DONE
    assert.equal("aböc", all)
    assert.same({ 0, 1, 2, 2, 4 }, at)
    local want = {}
    for i = 1, 5 do want[i] = engine.id(i) end
    assert.same(want, ids)
    C.pl_stream_close(st)
  end)

  it("brings a prompt's logprobs with the first token", function()
    local st = start({ "a", "b" }, {
      params = { max_tokens = 2, logprobs = 0, prompt_logprobs = 1 },
    })
    done(st)
    take(st)
    local tokens, starts = ffi.new "const pl_token *[1]", ffi.new "const int32_t *[1]"
    assert.equal(2, C.pl_stream_tokens(st, tokens, starts))
    local first, second = tokens[0][0], tokens[0][1]
    assert.same({ 1, 4, 1, 0 },
      { first.n_top, first.n_prompt_top, second.n_top, second.n_prompt_top })
    assert.equal(engine.id(1), first.top[0].token)
    assert.equal(engine.id(2), second.top[0].token)
    assert.same({ 18, 25 }, { first.prompt_top[1].token, first.prompt_top[3].token })
    take(st)
    assert.equal(0, C.pl_stream_tokens(st, tokens, starts))
    C.pl_stream_close(st)
  end)

  it("ends at a stop string, wherever tokens begin", function()
    local all, r = whole({ "one ", "tw", "o thr", "ee" }, { stop = { "zz", "two t" } })
    assert.equal("one ", all)
    assert.equal(C.PL_FINISH_STOP, r.finish)
    assert.same({ 3, 1, -1 }, { r.n_tokens, r.stop_string, r.stop_reason })
  end)

  it("may include it", function()
    local all = whole({ "one", "two", "three" }, { stop = { "net" }, include_stop = 1 })
    assert.equal("onet", all)
  end)

  it("holds back only what may begin one", function()
    local events, rest, r = sse({ "abc", "ab", "x", "a", "ab", "cab", "abd", "z" },
      { stop = { "ababd" } })
    assert.same({ "abc", "abx", "a", "abc" }, events)
    assert.equal("", rest)
    assert.equal(0, r.stop_string)
    events, rest = sse({ "abc", "ab" }, { stop = { "abd" } })
    assert.same({ "abc" }, events)
    assert.equal("ab", rest)
  end)

  it("takes the stop string that ends first, the earlier of equals", function()
    local all, r = whole({ "xaby" }, { stop = { "y", "ab", "xab" } })
    assert.equal("x", all)
    assert.equal(1, r.stop_string)
  end)

  it("ends by a stop string in the last token too", function()
    local all, r = whole({ "a", "b", "cSTOP" }, { stop = { "STOP" } })
    assert.equal("abc", all)
    assert.equal(C.PL_FINISH_STOP, r.finish)
  end)

  it("ignores stop strings that end before min_tokens", function()
    local all, r = whole({ "a", "b", "ab", "x" }, { stop = { "ab" }, min_tokens = 2 })
    assert.equal("ab", all)
    assert.equal(3, r.n_tokens)
    all = whole({ "a", "b", "c" }, { stop = { "bc" }, min_tokens = 2 })
    assert.equal("a", all)
  end)

  it("finds one that begins inside another, which min_tokens had it ignore", function()
    local all, r = whole({ "aba", "ba", "x" }, { stop = { "aba" }, min_tokens = 1 })
    assert.equal("ab", all)
    assert.same({ 2, 0 }, { r.n_tokens, r.stop_string })
  end)

  -- So many stop strings that the engine is far ahead of the io thread: when Lua writes
  -- and lets the pieces go, tokens are in line already.
  it("writes pieces after what Lua wrote before it let them go", function()
    local t = server.open()
    local f = engine.open(t.rt)
    local c = t:connect(GET)
    local x = t:request()
    C.pl_exchange_begin(x, 200, "text/event-stream", nil, 0)
    local pieces = {}
    for i = 1, engine.VOCAB do pieces[i] = ("a"):rep(64) end
    local st = C.pl_stream_open(t.rt, new_text(pieces), C.PL_STREAM_SSE, x)
    for i = 1, 256 do
      local stop = ("a"):rep(i) .. "b"
      assert.equal(0, C.pl_stream_stop(st, stop, #stop))
    end
    C.pl_stream_flags(st, 1, 0, 1, 0)
    assert.equal(0, C.pl_stream_start(st, f.handle, engine.seq { max_tokens = 2000 }))
    local result = ffi.new "pl_stream_end"
    repeat C.pl_stream_result(st, result) until result.n_tokens > 10
    C.pl_exchange_write(x, "first;", 6)
    C.pl_stream_frame(st, BEFORE, #BEFORE, AFTER, #AFTER)
    assert.equal(C.PL_EV_DONE, (t:event(60000)))
    C.pl_stream_close(st)
    C.pl_exchange_end(x)
    C.pl_exchange_release(x)
    local _, body = c:answer()
    assert.equal("first;" .. BEFORE, body:sub(1, 6 + #BEFORE))
    c:close()
    f:close()
    t:close()
  end)

  it("leaves a token that ends the sequence out of the text", function()
    local function prepare(seq)
      C.pl_seq_stop_ids(seq, ffi.new("int32_t[1]", engine.id(3)), 1)
    end
    local params = { max_tokens = 9 }
    local all, r = whole({ "a", "b", "END" }, { prepare = prepare, params = params })
    assert.equal("ab", all)
    assert.same({ C.PL_FINISH_STOP, engine.id(3), 3 },
      { r.finish, r.stop_reason, r.n_tokens })
    all = whole({ "a", "b", "END" },
      { prepare = prepare, params = params, include_stop = 1 })
    assert.equal("abEND", all)
  end)

  it("skips special tokens, or does not", function()
    assert.equal("ac", (whole({ "a", "<s>", "c" }, { special = 2 })))
    assert.equal("a<s>c", (whole({ "a", "<s>", "c" }, { special = 2, skip_special = 0 })))
  end)

  it("refuses stop strings without end", function()
    local text = new_text {}
    local st = C.pl_stream_open(s.rt, text, C.PL_STREAM_WHOLE, nil)
    assert.equal(C.PL_EINVAL, C.pl_stream_stop(st, "", 0))
    assert.equal(C.PL_ELIMIT, C.pl_stream_stop(st, ("x"):rep(65537), 65537))
    for _ = 1, 256 do assert.equal(0, C.pl_stream_stop(st, "x", 1)) end
    assert.equal(C.PL_ELIMIT, C.pl_stream_stop(st, "x", 1))
    C.pl_stream_close(st)
    assert.is_true(C.pl_stream_open(s.rt, text, 3, nil) == nil)
    assert.is_true(C.pl_stream_open(s.rt, text, C.PL_STREAM_SSE, nil) == nil)
  end)

  it("ends by cancelling", function()
    local st = start({}, { params = { max_tokens = 4000 } })
    C.pl_stream_cancel(st)
    local r = done(st)
    assert.is_true(r.finish == C.PL_FINISH_ABORT or r.n_tokens == 4000)
    C.pl_stream_cancel(st)
    assert.is_nil(s:event(10))
    C.pl_stream_close(st)
  end)

  it("says nothing of streams that are closed, running or not", function()
    local text = new_text {}
    C.pl_stream_close(nil)
    C.pl_stream_close(C.pl_stream_open(s.rt, text, C.PL_STREAM_WHOLE, nil))
    C.pl_stream_close(start({}, { params = { max_tokens = 4000 } }))
    assert.is_nil(s:event(20))
  end)

  it("is cancelled when its client goes, before Lua knows", function()
    local c = s:connect(GET)
    local x = s:request()
    C.pl_exchange_begin(x, 200, "text/event-stream", nil, 0)
    local a = start({}, { mode = C.PL_STREAM_SSE, x = x, params = { max_tokens = 4000 } })
    local b = start({}, { x = x, params = { max_tokens = 4000 } })
    c:reset()
    local seen = {}
    for _ = 1, 3 do
      local kind, id = s:event()
      seen[kind .. ":" .. id] = true
    end
    assert.is_true(seen[C.PL_EV_DONE .. ":" .. C.pl_stream_id(a)])
    assert.is_true(seen[C.PL_EV_DONE .. ":" .. C.pl_stream_id(b)])
    assert.is_true(seen[C.PL_EV_GONE .. ":" .. C.pl_exchange_id(x)])
    local late = start({}, { x = x, params = { max_tokens = 4000 } })
    assert.equal(C.PL_FINISH_ABORT, done(late).finish)
    for _, st in ipairs { a, b, late } do C.pl_stream_close(st) end
    C.pl_exchange_release(x)
  end)

  it("carries several choices of one answer, each in order", function()
    local c = s:connect(GET)
    local x = s:request()
    C.pl_exchange_begin(x, 200, "text/event-stream", nil, 0)
    local n, streams = 8, {}
    for i = 1, n do
      streams[i] = start({ "a", "b", "c", "d", "e" }, { mode = C.PL_STREAM_SSE, x = x })
    end
    for _ = 1, n do assert.equal(C.PL_EV_DONE, (s:event())) end
    for i = 1, n do
      assert.equal("e", take(streams[i]))
      C.pl_stream_close(streams[i])
    end
    C.pl_exchange_end(x)
    C.pl_exchange_release(x)
    local _, body = c:answer()
    local counts = {}
    for t in body:gmatch '"t":"(.-)"' do counts[t] = (counts[t] or 0) + 1 end
    assert.same({ a = n, b = n, c = n, d = n }, counts)
    c:close()
  end)

  it("may be started on an engine that is going, by a client that is gone", function()
    for _ = 1, 50 do
      local t = server.open()
      local f = engine.open(t.rt)
      local c = t:connect(GET)
      local x = t:request()
      C.pl_runtime_detach(t.rt, f.handle)
      c:close()
      local st = C.pl_stream_open(t.rt, new_text {}, C.PL_STREAM_WHOLE, x)
      local seq = engine.seq()
      assert.equal(C.PL_ECANCELED, C.pl_stream_start(st, f.handle, seq))
      f:close()
      C.pl_seq_close(seq)
      C.pl_stream_close(st)
      C.pl_exchange_release(x)
      t:close()
    end
  end)

  it("ends with its engine, and with the runtime", function()
    local t = server.open()
    local f = engine.open(t.rt)
    local text = new_text {}
    local st = C.pl_stream_open(t.rt, text, C.PL_STREAM_WHOLE, nil)
    assert.equal(0, C.pl_stream_start(st, f.handle, engine.seq { max_tokens = 4000 }))
    C.pl_runtime_detach(t.rt, f.handle)
    assert.equal(C.PL_EV_DONE, (t:event()))
    local seq = engine.seq()
    local other = C.pl_stream_open(t.rt, text, C.PL_STREAM_WHOLE, nil)
    assert.is_true(C.pl_stream_start(other, f.handle, seq) < 0)
    C.pl_seq_close(seq)
    C.pl_stream_close(other)
    f:close()
    t:close()
    take(st)
    C.pl_stream_cancel(st)
    C.pl_stream_close(st)
  end)
end)
