-- SPDX-License-Identifier: Apache-2.0
local pl = require "perilune.ffi"
local captured = require "support.captured"
local server = require "support.server"
local C, ffi = pl.C, pl.ffi

local function str(p) return p ~= nil and ffi.string(p) or nil end

describe("http", function()
  local s
  setup(function() C.pl_log_level(C.PL_LOG_ERROR) end)
  teardown(function() C.pl_log_level(C.PL_LOG_INFO) end)
  before_each(function() s = server.open() end)
  after_each(function() s:close() end)

  it("shows a request as it came", function()
    local c = s:connect("POST /v1/x%20y?a=1&b HTTP/1.1\r\nHost: h\r\n"
      .. "X-Two:  padded \t\r\nX-Empty:\r\nContent-Length: 5\r\n\r\nhello")
    local x = s:request()
    assert.equal("POST", str(C.pl_exchange_method(x)))
    assert.equal("/v1/x y", str(C.pl_exchange_path(x)))
    assert.equal("a=1&b", str(C.pl_exchange_query(x)))
    assert.equal("padded", str(C.pl_exchange_header(x, "X-TWO")))
    assert.equal("", str(C.pl_exchange_header(x, "x-empty")))
    assert.equal("h", str(C.pl_exchange_header(x, "host")))
    assert.is_nil(str(C.pl_exchange_header(x, "padded")))
    local len = ffi.new "size_t[1]"
    assert.equal("hello", ffi.string(C.pl_exchange_body(x, len), 5))
    assert.equal(5, tonumber(len[0]))
    s:reply(x, 200, "there", "X-More: 1\r\n")
    local status, body, head = c:answer()
    assert.equal(200, status)
    assert.equal("there", body)
    assert.is_truthy(head:find("\r\nX-More: 1\r\n", 1, true))
    assert.is_truthy(head:find("\r\nContent-Type: text/plain\r\n", 1, true))
    assert.is_truthy(head:find "\r\nDate: %a+, %d%d %a+ %d+ %d%d:%d%d:%d%d GMT\r\n")
    c:close()
  end)

  it("finds path and query in every form of target", function()
    for target, want in pairs {
      ["/v1/%6Dodels"] = "GET /v1/models ?  : ",
      ["/%e4%bd%A0?a=%41"] = "GET /你 ? a=%41 : ",
      ["/a%2Fb%3Fc%23d?e"] = "GET /a/b?c#d ? e : ",
      ["/%2541%2500"] = "GET /%41%00 ?  : ",     -- once only
      ["http://h/%61?q"] = "GET /a ? q : ",
      ["/"] = "GET / ?  : ",
      ["/a?"] = "GET /a ?  : ",
      ["/a?b?c#d"] = "GET /a ? b?c : ",
      ["http://h:1/p?q"] = "GET /p ? q : ",
      ["http://h"] = "GET / ?  : ",
      ["http://h?q"] = "GET / ? q : ",
      ["/p?u=http://x"] = "GET /p ? u=http://x : ",
    } do
      local c = s:connect("GET " .. target .. " HTTP/1.1\r\nHost: h\r\n\r\n")
      s:echo()
      local status, body = c:answer()
      assert.equal(200, status)
      assert.equal(want, body)
      c:close()
    end
  end)

  it("keeps the connection for the next request", function()
    local c = s:connect()
    for i = 1, 3 do
      c:send("GET /" .. i .. " HTTP/1.1\r\nHost: h\r\n\r\n")
      s:echo()
      local _, body, head = c:answer()
      assert.equal("GET /" .. i .. " ?  : ", body)
      assert.is_nil(head:find "Connection")
    end
    c:close()
  end)

  it("closes when asked to", function()
    local c = s:connect "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    s:echo()
    local all, why = c:read_all()
    assert.is_truthy(all:find("\r\nConnection: close\r\n", 1, true))
    assert.equal("end", why)
    c:close()
  end)

  it("streams in chunks, in order", function()
    local c = s:connect "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    local x = s:request()
    C.pl_exchange_begin(x, 200, "text/event-stream", "X-A: b\r\n", 8)
    for _, part in ipairs { "one", "", "two", ("x"):rep(300) } do
      C.pl_exchange_write(x, part, #part)
    end
    C.pl_exchange_end(x)
    C.pl_exchange_release(x)
    local status, body, head = c:answer()
    assert.equal(200, status)
    assert.equal("onetwo" .. ("x"):rep(300), body)
    assert.is_truthy(head:find("\r\nTransfer-Encoding: chunked\r\n", 1, true))
    c:send "GET /next HTTP/1.1\r\nHost: h\r\n\r\n"
    s:echo()
    assert.equal(200, (c:answer()))
    c:close()
  end)

  it("speaks HTTP/1.0 to whom does", function()
    local c = s:connect "GET /old HTTP/1.0\r\n\r\n"
    s:echo()
    local all, why = c:read_all()
    assert.is_truthy(all:find("\r\n\r\nGET /old ?  : ", 1, true))
    assert.equal("end", why)
    c:close()
    c = s:connect "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    s:echo()
    local _, _, head = c:answer()
    assert.is_truthy(head:find("\r\nConnection: keep-alive\r\n", 1, true))
    c:send "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    local x = s:request()
    C.pl_exchange_begin(x, 200, "text/plain", nil, 0)
    C.pl_exchange_write(x, "raw", 3)
    C.pl_exchange_end(x)
    C.pl_exchange_release(x)
    all, why = c:read_all()
    assert.is_nil(all:find "chunked")
    assert.is_truthy(all:find "\r\n\r\nraw$")
    assert.equal("end", why)
    c:close()
  end)

  it("answers HEAD, 204 and 304 without a body", function()
    local c = s:connect "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"
    s:reply(s:request(), 200, "12345")
    local _, _, head = c:answer(true)
    assert.is_truthy(head:find("\r\nContent-Length: 5\r\n", 1, true))
    for _, status in ipairs { 204, 304 } do
      c:send "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
      s:reply(s:request(), status, "nothing")
      local got, _, top = c:answer(true)
      assert.equal(status, got)
      assert.is_nil(top:find "Content%-Length")
    end
    c:send "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"
    local x = s:request()
    C.pl_exchange_begin(x, 200, "text/plain", nil, 0)
    C.pl_exchange_write(x, "body", 4)
    C.pl_exchange_end(x)
    C.pl_exchange_release(x)
    assert.equal(200, (c:answer(true)))
    c:send "GET /e HTTP/1.1\r\nHost: h\r\n\r\n"
    s:echo()
    local _, body = c:answer()
    assert.equal("GET /e ?  : ", body)
    c:close()
  end)

  it("survives an answer out of order, and answers nothing twice", function()
    C.pl_log_level(4)
    local c = s:connect "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    local x = s:request()
    C.pl_exchange_write(x, "early", 5)
    C.pl_exchange_end(x)
    C.pl_exchange_reply(x, 200, "a/b", nil, 0, "once", 4)
    C.pl_exchange_reply(x, 200, "a/b", nil, 0, "twice", 5)
    C.pl_exchange_begin(x, 200, "a/b", nil, 0)
    C.pl_exchange_write(x, "late", 4)
    C.pl_exchange_release(x)
    C.pl_log_level(C.PL_LOG_ERROR)
    local _, body = c:answer()
    assert.equal("once", body)
    c:send "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    s:echo()
    assert.equal(200, (c:answer()))
    c:close()
  end)

  it("cuts a connection whose request is released without an answer", function()
    local c = s:connect "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    C.pl_exchange_release(s:request())
    local all = c:read_all()
    assert.equal("", all)
    assert.is_nil(s:event(20))
    c:close()
  end)

  it("tells once that a client is gone, by close and by reset", function()
    for _, how in ipairs { "close", "reset", "shutdown" } do
      local c = s:connect "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
      local x = s:request()
      c[how](c)
      local kind, id = s:event()
      assert.equal(C.PL_EV_GONE, kind)
      assert.equal(C.pl_exchange_id(x), id)
      C.pl_exchange_begin(x, 200, "text/plain", nil, 0)
      C.pl_exchange_write(x, "to nobody", 9)
      C.pl_exchange_end(x)
      C.pl_exchange_release(x)
      assert.is_nil(s:event(20))
      c:close()
    end
  end)

  it("tells nothing of clients whose exchange Lua has released", function()
    local c = s:connect "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    s:echo()
    c:answer()
    c:close()
    assert.is_nil(s:event(20))
  end)

  it("sends large answers whole to slow readers", function()
    local big = ("0123456789abcdef"):rep(1024 * 1024)
    local c = s:connect("GET / HTTP/1.1\r\nHost: h\r\n\r\n", 4096)
    s:reply(s:request(), 200, big)
    local parts = {}
    repeat
      local part = c:receive()
      parts[#parts + 1] = part
      local n = 0
      for i = 1, #parts do n = n + #parts[i] end
    until not part or part == "" or n > #big
    assert.equal(big, table.concat(parts):match "\r\n\r\n(.*)$")
    c:close()
  end)

  it("lets a slow reader have the last answer too", function()
    local big = ("x"):rep(16 * 1024 * 1024)
    local c = s:connect("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 4096)
    s:reply(s:request(), 200, big)
    local n = 0
    for _ = 1, 15 do
      n = n + #c:receive()
      s:event(100)
    end
    repeat
      local part = c:receive()
      n = n + #part
    until part == ""
    assert.is_true(n > #big)
    c:close()
  end)

  -- What the log gets while fn runs.
  local function logged(fn)
    C.pl_log_level(C.PL_LOG_INFO)
    local text = captured(fn)
    C.pl_log_level(C.PL_LOG_ERROR)
    return text
  end

  local LINE = '^INFO .* 127%%.0%%.0%%.1:%%d+ %%- "GET %s HTTP/1.1" %s\n$'

  it("logs each request once it is over, with what Lua says of it", function()
    assert.matches(LINE:format("/a%?b", "404 %[ms=%d+%]"), logged(function()
      local c = s:connect "GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n"
      s:reply(s:request(), 404)
      c:answer()
      c:close()
    end))
    assert.matches(LINE:format("/s", '200 %[tokens=12 reason="a \\"b\\n" ms=%d+%]'),
      logged(function()
        local c = s:connect "GET /s HTTP/1.1\r\nHost: h\r\n\r\n"
        local x = s:request()
        C.pl_exchange_begin(x, 200, "text/plain", nil, 0)
        C.pl_exchange_write(x, "some", 4)
        c:receive()
        for _, fields in ipairs { "#tokens\00012\0", 'reason\0a "b\n\0' } do
          C.pl_exchange_label(x, fields, #fields)
        end
        C.pl_exchange_end(x)
        C.pl_exchange_release(x)
        c:receive()
        c:close()
      end))
  end)

  it("logs those whose client left, as 499 where there was no answer", function()
    for status, begin in pairs { [499] = false, [200] = true } do
      local text = logged(function()
        local c = s:connect "GET /left HTTP/1.1\r\nHost: h\r\n\r\n"
        local x = s:request()
        if begin then C.pl_exchange_begin(x, 200, "text/plain", nil, 0) end
        c:close()
        assert.equal(C.PL_EV_GONE, (s:event()))
        C.pl_exchange_release(x)
        s:connect("GET / HTTP/1.1\r\nHost: h\r\n\r\n"):close()   -- the io thread is past it
        local after = s:request()
        s:event()
        C.pl_exchange_release(after)
      end)
      assert.matches(LINE:format("/left", status
        .. ' %[ms=%d+ reason="the client is gone"%]'):gsub("\n%$$", "\n"), text)
    end
  end)

  it("does not log more refusals than it says, however many come", function()
    local began = C.pl_now_ns()
    local text = logged(function()
      for _ = 1, 200 do
        local c = s:connect "nonsense\r\n\r\n"
        c:read_all()
        c:close()
      end
    end)
    local n = select(2, text:gsub("refused: [^\n]*: 400\n", ""))
    local seconds = math.ceil(tonumber(C.pl_now_ns() - began) / 1e9)
    assert.is_true(n >= 20 and n <= 20 * (seconds + 1), text)
  end)

  it("closes with requests, streams and clients still there", function()
    local t = server.open()
    local c = t:connect "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    local x = t:request()
    local d = t:connect "GET /unseen HTTP/1.1\r\nHost: h\r\n\r\n"
    C.pl_exchange_begin(x, 200, "text/plain", nil, 0)
    t:close()
    assert.equal("GET", str(C.pl_exchange_method(x)))
    C.pl_exchange_write(x, "late", 4)
    C.pl_exchange_end(x)
    C.pl_exchange_release(x)
    c:close()
    d:close()
  end)

  it("stops listening, and lets those who are served finish", function()
    local idle, busy = s:connect(), s:connect "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    local x = s:request()
    C.pl_unlisten(s.rt)
    local all, why = idle:read_all()
    assert.same({ "", "end" }, { all, why })
    assert.is_false(pcall(s.connect, s))
    s:reply(x, 200, "bye")
    all, why = busy:read_all()
    assert.is_truthy(all:find("\r\nConnection: close\r\n.*\r\n\r\nbye$"))
    assert.equal("end", why)
    idle:close()
    busy:close()
  end)

  it("says what is wrong with options and addresses", function()
    local o = ffi.new "pl_runtime_options"
    assert.is_true(C.pl_runtime_open(o) == nil)
    assert.equal("a limit of the runtime is below 1", str(C.pl_error_text()))
    assert.equal(C.PL_EINVAL, C.pl_listen(s.rt, "127.0.0.1", 65536))
    assert.equal(C.PL_EINVAL, C.pl_listen(s.rt, "no such host", 0))
    assert.equal(C.PL_EIO, C.pl_listen(s.rt, "127.0.0.1", s.port))
    assert.is_truthy(str(C.pl_error_text()):find "^cannot listen on 127.0.0.1:%d+: add")
    assert.is_true(C.pl_listen(s.rt, "::1", 0) > 0 or str(C.pl_error_text()) ~= "")
  end)
end)

describe("signals", function()
  it("come as events", function()
    ffi.cdef "int kill(int, int); int getpid(void);"
    local s = server.open()
    for _, number in ipairs { 1, 2, 15 } do
      ffi.C.kill(ffi.C.getpid(), number)
      local kind, _, _, a = s:event()
      assert.same({ C.PL_EV_SIGNAL, number }, { kind, a })
    end
    s:close()
  end)
end)

describe("tasks", function()
  local s, len
  before_each(function()
    C.pl_log_level(C.PL_LOG_ERROR)
    s, len = server.open(), ffi.new "size_t[1]"
  end)
  after_each(function() s:close() end)

  it("go to the pool and come back", function()
    local id = C.pl_task_push(s.rt, nil, "work", 4)
    assert.is_true(id > 0)
    local j = C.pl_task_take(s.rt, 1000)
    assert.equal("work", ffi.string(C.pl_task_arg(j, len), len[0]))
    assert.is_true(C.pl_task_exchange(j) == nil)
    C.pl_task_done(j, "result", 6)
    local kind, got, object = s:event()
    assert.equal(C.PL_EV_TASK, kind)
    assert.equal(id, got)
    j = ffi.cast("pl_task *", object)
    assert.equal("result", ffi.string(C.pl_task_result(j, len), len[0]))
    C.pl_task_close(j)
  end)

  it("are refused when too many wait", function()
    local id
    for _ = 1, 5000 do
      id = C.pl_task_push(s.rt, nil, nil, 0)
      if id < 0 then break end
    end
    assert.equal(C.PL_ELIMIT, id)
  end)

  it("keep their exchange alive", function()
    local c = s:connect "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi"
    local x = s:request()
    C.pl_task_push(s.rt, x, "", 0)
    s:reply(x, 200)
    c:close()
    local j = C.pl_task_take(s.rt, 1000)
    assert.equal("hi", ffi.string(C.pl_exchange_body(C.pl_task_exchange(j), len), 2))
    C.pl_task_done(j, "", 0)
    local _, _, object = s:event()
    C.pl_task_close(ffi.cast("pl_task *", object))
  end)

  it("end with the pool", function()
    C.pl_task_push(s.rt, nil, "x", 1)
    assert.equal(0, C.pl_task_closing(s.rt))
    C.pl_task_stop(s.rt)
    assert.equal(1, C.pl_task_closing(s.rt))
    assert.is_true(C.pl_task_take(s.rt, 60000) == nil)
    assert.equal(C.PL_ECANCELED, C.pl_task_push(s.rt, nil, "x", 1))
  end)

  it("are done by other threads", function()
    local host = require "perilune.host"
    local address = tonumber(ffi.cast("uintptr_t", s.rt))
    for _ = 1, 3 do host.spawn("tests.support.pool", address) end
    local ids = {}
    for i = 1, 500 do
      local word = "word " .. i
      ids[C.pl_task_push(s.rt, nil, word, #word)] = word:reverse()
    end
    for _ = 1, 500 do
      local _, id, object = s:event()
      local j = ffi.cast("pl_task *", object)
      assert.equal(ids[id], ffi.string(C.pl_task_result(j, len), len[0]))
      C.pl_task_close(j)
      ids[id] = nil
    end
    assert.is_nil(next(ids))
    C.pl_task_stop(s.rt)
    assert.is_true(host.join(10))
  end)

  it("are waited for no longer than said", function()
    assert.is_true(C.pl_task_take(s.rt, 1) == nil)
  end)
end)
