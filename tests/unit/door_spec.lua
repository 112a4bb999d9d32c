-- SPDX-License-Identifier: Apache-2.0
-- door.lua: a port that is bound while the model is still being loaded.
local door = require "perilune.api.door"
local log = require "perilune.log"
local pl = require "perilune.ffi"
local server = require "support.server"
local C = pl.C

describe("a port without a model behind it yet", function()
  local s, asked
  before_each(function()
    log.level "error"
    s = server.open()
    asked = door.watcher(s.rt)
  end)
  after_each(function()
    s:close()
    log.level "info"
  end)

  -- Everything that comes back while the watcher is called now and then.
  local function answer_to(bytes)
    local client, said = s:connect(bytes), ""
    repeat
      assert.is_false(asked())
      local more = client:receive(20)
      said = said .. (more or "")
    until more == ""
    client:close()
    return said
  end

  local function get(path)
    return answer_to("GET " .. path .. " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
  end

  it("tells all who ask to come again, whatever they ask", function()
    for _, path in ipairs { "/v1/models", "/health", "/metrics", "/nowhere" } do
      local said = get(path)
      assert.matches("^HTTP/1.1 503 ", said)
      assert.matches("\r\nRetry%-After: 1\r\n", said)
      assert.matches("still being loaded", said)
    end
    local body = ("x"):rep(100000)
    local said = answer_to(("POST /v1/completions HTTP/1.1\r\nHost: h\r\n"
      .. "Connection: close\r\nContent-Length: %d\r\n\r\n%s"):format(#body, body))
    assert.matches("^HTTP/1.1 503 .*\r\nRetry%-After: 1\r\n", said)
  end)

  it("lives", function()
    assert.matches("^HTTP/1.1 200 .*Service is live", get "/live")
  end)

  it("answers many on one connection, in order", function()
    local request = "GET /health HTTP/1.1\r\nHost: h\r\n\r\n"
    local last = "GET /live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    local said = answer_to(request:rep(20) .. last)
    assert.equal(20, select(2, said:gsub("HTTP/1.1 503 ", "")))
    assert.matches("HTTP/1.1 200 [^\n]*\n.*Service is live[^\n]*$", said)
  end)

  it("is refused where another has it, who is named", function()
    local url, why = door.open(s.rt, "127.0.0.1", s.port, "--port")
    assert.is_nil(url)
    local pid = assert(io.open "/proc/self/stat"):read "*n"
    assert.matches(("cannot listen on 127.0.0.1:%d: address already in use by perilune "
      .. "%%(process %d%%); %%-%%-port chooses another"):format(s.port, pid), why)
    url, why = door.open(s.rt, "no such host", 0, "--port")
    assert.is_nil(url)
    assert.equal("'no such host' is not an address", why:match "^'no such host' is not an address")
    assert.matches("^http://127.0.0.1:%d+$", (door.open(s.rt, "127.0.0.1", 0, "--port")))
  end)

  it("is given up at a signal", function()
    os.execute "kill -TERM $PPID"
    local deadline = C.pl_now_ns() + 10000000000LL
    while not asked() do assert.is_true(C.pl_now_ns() < deadline) end
  end)
end)
