-- SPDX-License-Identifier: Apache-2.0
-- What a hostile or careless client may send, byte by byte.
local pl = require "perilune.ffi"
local server = require "support.server"
local C = pl.C

local limits = {
  max_body = 1000, max_header_bytes = 2000, max_headers = 10, max_connections = 3,
  idle_timeout_ms = 200, request_timeout_ms = 200, max_pending_write = 65536,
}
local GET = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
local POST = "POST / HTTP/1.1\r\nHost: h\r\n"
local CHUNKED = POST .. "Transfer-Encoding: chunked\r\n\r\n"

describe("raw HTTP", function()
  local s
  setup(function() C.pl_log_level(C.PL_LOG_ERROR) end)
  teardown(function() C.pl_log_level(C.PL_LOG_INFO) end)
  before_each(function() s = server.open(limits) end)
  after_each(function() s:close() end)

  -- The bytes are refused with the status; nothing of them reaches Lua; it closes.
  local function refused(want, bytes, split)
    local c = s:connect()
    if split then
      for i = 1, #bytes do
        if not c:send(bytes:sub(i, i)) then break end
      end
    else
      c:send(bytes)
    end
    local status, body, head = c:answer()
    assert.equal(want, status, bytes:sub(1, 200))
    assert.is_truthy(body:find('^{"error":{"message":".+","type":"%a+","param":null,'
      .. '"code":' .. want .. "}}$"), body)
    assert.is_truthy(head:find("\r\nConnection: close\r\n", 1, true))
    local _, why = c:read_all()
    assert.equal("end", why)
    c:close()
    assert.is_nil(s:event(0))
  end

  local bad = {
    { "an escaped NUL", 400, "GET /v1/models%00 HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "an escaped newline", 400, "GET /a%0a HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "an escaped DEL", 400, "GET /%7F HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "an escape without digits", 400, "GET /% HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "an escape of one digit", 400, "GET /a%4 HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "an escape cut by the query", 400, "GET /a%4?1 HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "an escape of other letters", 400, "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "a bare CR between headers", 400, "GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n" },
    { "a bare CR before the end", 400, "GET / HTTP/1.1\r\nHost: h\r\n\rX: y\r\n\r\n" },
    { "bare LF", 400, "GET / HTTP/1.1\nHost: h\n\n" },
    { "a folded header", 400, "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n" },
    { "a header folded by a tab", 400,
      "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n\tb\r\n\r\n" },
    { "a folded first header", 400, "GET / HTTP/1.1\r\n Host: h\r\n\r\n" },
    { "space before the colon", 400, POST .. "Transfer-Encoding : chunked\r\n\r\n" },
    { "both lengths", 400,
      POST .. "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" },
    { "both lengths, other way", 400,
      POST .. "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" },
    { "two lengths", 400, POST .. "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab" },
    { "two equal lengths", 400,
      POST .. "Content-Length: 1\r\nContent-Length: 1\r\n\r\na" },
    { "a list of lengths", 400, POST .. "Content-Length: 1, 1\r\n\r\na" },
    { "a signed length", 400, POST .. "Content-Length: +1\r\n\r\na" },
    { "a negative length", 400, POST .. "Content-Length: -1\r\n\r\n" },
    { "a hexadecimal length", 400, POST .. "Content-Length: 0x1\r\n\r\na" },
    { "an endless length", 400, POST .. "Content-Length: 99999999999999999999\r\n\r\n" },
    { "another coding", 501,
      POST .. "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" },
    { "chunked not last", 400,
      POST .. "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n" },
    { "two codings", 400,
      POST .. ("Transfer-Encoding: chunked\r\n"):rep(2) .. "\r\n0\r\n\r\n" },
    { "chunked in 1.0", 400,
      "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" },
    { "a chunk size that overflows", 400, CHUNKED .. "fffffffffffffffff\r\n" },
    { "a chunk size that is none", 400, CHUNKED .. "x\r\n" },
    { "a signed chunk size", 400, CHUNKED .. "-1\r\n" },
    { "a chunk longer than it says", 400, CHUNKED .. "1\r\nab\r\n0\r\n\r\n" },
    { "LF in a chunk's extension", 400, CHUNKED .. "1;a\nb\r\nx\r\n0\r\n\r\n" },
    { "no Host", 400, "GET / HTTP/1.1\r\nX: y\r\n\r\n" },
    { "two Hosts", 400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" },
    { "NUL in a header", 400, "GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n" },
    { "NUL in the target", 400, "GET /a\0b HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "a space in the target", 400, "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "TLS", 400, "\22\3\1\2\0\1\0\1\252\3\3" },
    { "an unknown method", 400, "HELLO / HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "HTTP/2's preface", 400, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" },
    { "HTTP/2", 505, "GET / HTTP/2.0\r\nHost: h\r\n\r\n" },
    { "HTTP/1.2", 400, "GET / HTTP/1.2\r\nHost: h\r\n\r\n" },
    { "HTTP/0.9", 505, "GET / HTTP/0.9\r\nHost: h\r\n\r\n" },
    { "CONNECT", 501, "CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "another expectation", 417, POST .. "Expect: cake\r\nContent-Length: 1\r\n\r\n" },
    { "a body too large", 413, POST .. "Content-Length: 1001\r\n\r\n" },
    { "chunks too large", 413,
      CHUNKED .. "3e9\r\n" .. ("x"):rep(1001) .. "\r\n0\r\n\r\n" },
    { "a chunk announced too large", 413,
      CHUNKED .. "7fffffffffffffff\r\n" .. ("x"):rep(1001) },
    { "huge extensions", 413,
      CHUNKED .. "1;" .. ("e"):rep(2100) .. "\r\nx\r\n0\r\n\r\n" },
    { "huge headers", 431,
      "GET / HTTP/1.1\r\nHost: h\r\nX: " .. ("x"):rep(2000) .. "\r\n\r\n" },
    { "endless headers", 431, "GET / HTTP/1.1\r\nHost: h\r\nX: " .. ("x"):rep(2000) },
    { "a huge target", 431,
      "GET /" .. ("x"):rep(2000) .. " HTTP/1.1\r\nHost: h\r\n\r\n" },
    { "many headers", 431,
      "GET / HTTP/1.1\r\nHost: h\r\n" .. ("a: b\r\n"):rep(10) .. "\r\n" },
    { "huge trailers", 431, CHUNKED .. "0\r\nX: " .. ("x"):rep(2100) .. "\r\n\r\n" },
    { "many trailers", 431, CHUNKED .. "0\r\n" .. ("a: b\r\n"):rep(10) .. "\r\n" },
  }
  for _, case in ipairs(bad) do
    it("refuses " .. case[1], function()
      refused(case[2], case[3])
      refused(case[2], case[3], true)
    end)
  end

  it("takes chunks, their extensions and trailers, in any pieces", function()
    local bytes = CHUNKED .. '5;a;c="d"\r\nhello\r\n1\r\n \r\n05\r\nworld\r\n'
      .. "0\r\nX: y\r\n\r\n" .. GET
    for size = 1, 40, 3 do
      local c = s:connect()
      for at = 1, #bytes, size do c:send(bytes:sub(at, at + size - 1)) end
      s:echo()
      local status, body = c:answer()
      assert.equal(200, status)
      assert.equal("POST / ?  : hello world", body)
      s:echo()
      assert.equal(200, (c:answer()))
      c:close()
    end
  end)

  it("answers pipelined requests one after the other", function()
    local requests = {}
    for i = 1, 20 do requests[i] = "GET /" .. i .. " HTTP/1.1\r\nHost: h\r\n\r\n" end
    local c = s:connect("\r\n" .. table.concat(requests, "\r\n"))
    for i = 1, 20 do
      local x = s:request()
      assert.is_nil(s:event(0))
      s:reply(x, 200, tostring(i))
    end
    for i = 1, 20 do
      local _, body = c:answer()
      assert.equal(tostring(i), body)
    end
    c:close()
  end)

  it("does not read a second request into the first one's answer", function()
    local c = s:connect(POST .. "Content-Length: 4\r\n\r\nGET " .. GET)
    s:echo()
    local _, body = c:answer()
    assert.equal("POST / ?  : GET ", body)
    s:echo()
    assert.equal(200, (c:answer()))
    c:close()
  end)

  it("refuses what follows a good request, after its answer", function()
    local c = s:connect(GET .. "rubbish\r\n\r\n")
    s:echo()
    assert.equal(200, (c:answer()))
    assert.equal(400, (c:answer()))
    c:close()
  end)

  it("says 100 Continue, once, to who waits for it", function()
    local c = s:connect(POST .. "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    c:read_until(function(got) return #got >= 25 end)
    assert.equal("HTTP/1.1 100 Continue\r\n\r\n", c.got)
    c.got = ""
    c:send "hi"
    s:echo()
    local status, body = c:answer()
    assert.equal(200, status)
    assert.equal("POST / ?  : hi", body)
    c:close()
  end)

  it("says no 100 Continue when the body is there, or will be refused", function()
    local c = s:connect(POST .. "Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi")
    s:echo()
    assert.equal(200, (c:answer()))
    c:close()
    refused(413, POST .. "Expect: 100-continue\r\nContent-Length: 2000\r\n\r\n")
  end)

  it("ignores offers to upgrade", function()
    local c = s:connect("GET / HTTP/1.1\r\nHost: h\r\n"
      .. "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n")
    s:echo()
    assert.equal(200, (c:answer()))
    c:send(POST .. "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi")
    s:echo()
    local _, body = c:answer()
    assert.equal("POST / ?  : hi", body)
    c:close()
  end)

  it("waits for headers and bodies no longer than said", function()
    for _, bytes in ipairs { "GET / HTTP/1.1\r\nHos", CHUNKED .. "5\r\nhel",
        POST .. "Content-Length: 5\r\n\r\nhel" } do
      local c = s:connect(bytes)
      assert.equal(408, (c:answer()))
      c:close()
    end
    assert.is_nil(s:event(0))
  end)

  it("gives one deadline to a request, however it trickles", function()
    local c, alive = s:connect(POST .. "Content-Length: 900\r\n\r\n"), true
    for _ = 1, 900 do
      alive = alive and c:send "x"
      if c:receive(2) then break end
    end
    assert.is_nil(s:event(0))
    c:close()
  end)

  it("closes idle connections in silence", function()
    local c = s:connect()
    local all, why = c:read_all()
    assert.same({ "", "end" }, { all, why })
    c:close()
    c = s:connect "\r\n\r\n"
    assert.equal("", (c:read_all()))
    c:close()
    c = s:connect(GET)
    s:echo()
    c:answer()
    all, why = c:read_all()
    assert.same({ "", "end" }, { all, why })
    c:close()
  end)

  it("has no deadline for Lua", function()
    local c = s:connect(GET)
    local x = s:request()
    assert.is_nil(s:event(500))
    s:reply(x, 200, "late")
    assert.equal(200, (c:answer()))
    c:close()
  end)

  it("turns away more connections than said", function()
    local first = {}
    for i = 1, 3 do
      first[i] = s:connect(GET)
      first[i].x = s:request()
    end
    local c = s:connect()
    local status, body, head = c:answer()
    assert.equal(503, status)
    assert.is_truthy(body:find("too many connections", 1, true))
    assert.equal("1", head:match "\r\nRetry%-After: (%d+)\r\n")
    c:close()
    for i = 1, 3 do
      s:reply(first[i].x, 200)
      assert.equal(200, (first[i]:answer()))
      first[i]:close()
    end
  end)

  it("holds no more abandoned requests than said", function()
    local held = {}
    for i = 1, 6 do
      local c = s:connect(GET)
      held[i] = s:request()
      c:reset()
      assert.equal(C.PL_EV_GONE, (s:event()))
    end
    refused(503, GET)
    for i = 1, 6 do C.pl_exchange_release(held[i]) end
    local c = s:connect(GET)
    s:echo()
    assert.equal(200, (c:answer()))
    c:close()
  end)

  it("holds no more of all bodies together than said", function()
    local t = server.open { max_body = 1000 }
    local held, bytes = {}, POST .. "Content-Length: 1000\r\n\r\n" .. ("x"):rep(1000)
    for i = 1, 17 do held[i] = t:connect(bytes) end
    local x = {}
    for i = 1, 16 do x[i] = t:request() end
    assert.is_nil(t:event(20))
    for i = 1, 16 do t:reply(x[i], 200) end
    local n = {}
    for i = 1, 17 do
      local status = held[i]:answer()
      n[status] = (n[status] or 0) + 1
      held[i]:close()
    end
    assert.same({ [200] = 16, [503] = 1 }, n)
    local c = t:connect(POST .. "Content-Length: 4\r\n\r\nbody")
    t:echo()
    assert.equal(200, (c:answer()))
    c:close()
    t:close()
  end)

  it("cuts off who does not read what is streamed", function()
    local c = s:connect(GET, 4096)
    local x = s:request()
    C.pl_exchange_begin(x, 200, "text/plain", nil, 0)
    local part, kind = ("x"):rep(16384), nil
    for _ = 1, 2000 do
      C.pl_exchange_write(x, part, #part)
      kind = s:event(0)
      if kind then break end
    end
    assert.equal(C.PL_EV_GONE, kind or (s:event()))
    C.pl_exchange_release(x)
    c:close()
  end)

  it("cuts off who stops reading an answer", function()
    local c = s:connect(GET, 4096)
    s:reply(s:request(), 200, ("x"):rep(16 * 1024 * 1024))
    local d = s:connect(GET)
    s:echo()
    d:answer()
    s:event(600)
    local n = 0
    repeat
      local part = c:receive()
      n = n + #(part or "")
    until not part or part == ""
    assert.is_true(n < 16 * 1024 * 1024)
    c:close()
    d:close()
  end)

  it("reads on while it answers, up to a bound", function()
    local c = s:connect(GET)
    local x = s:request()
    for _ = 1, 20 do c:send(("\r\n"):rep(4096)) end
    assert.is_nil(s:event(10))
    s:reply(x, 200, "first")
    local _, body = c:answer()
    assert.equal("first", body)
    c:send(GET)
    s:echo()
    assert.equal(200, (c:answer()))
    c:close()
  end)

  it("lets a client that has said all have the rest of its answer", function()
    local c = s:connect(GET, 4096)
    s:reply(s:request(), 200, ("x"):rep(8 * 1024 * 1024))
    c:read_until(function(got) return #got > 1000 end)
    c:shutdown()
    local n = #c.got
    repeat
      local part = c:receive()
      n = n + #(part or "")
    until not part or part == ""
    assert.is_true(n > 8 * 1024 * 1024)
    c:close()
  end)
end)
