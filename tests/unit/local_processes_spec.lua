-- SPDX-License-Identifier: Apache-2.0
-- Sockets that only their owner can open; who asks through them; a Lua that does not poll.
local client = require "perilune.tools.http_client"
local locals = require "perilune.tools.local_processes"
local pl = require "perilune.ffi"
local process = require "support.process"
local scratch = require "scratch"
local server = require "support.server"
local C, ffi = pl.C, pl.ffi

ffi.cdef "int setenv(const char *, const char *, int);"

local function why() return ffi.string(C.pl_error_text()) end

local function mode(path, bits) assert(os.execute(("chmod %s '%s'"):format(bits, path)) == 0) end

local function exists(path) return os.execute(("test -e '%s'"):format(path)) == 0 end

describe("a local socket", function()
  local dir, path, s
  before_each(function()
    dir = scratch.folder()
    mode(dir.path, "700")
    path = dir.path .. "/a.sock"
    s = server.open()
  end)
  after_each(function()
    if s then s:close() end
    dir.remove()
  end)

  local function connect(at)
    local c = C.pl_client_open("unix:" .. (at or path), 0, 1000)
    assert(c ~= nil, why())
    return c
  end

  local function send(c, text) assert.equal(0, C.pl_client_send(c, text, #text, 1000)) end

  it("serves HTTP, and its exchanges say so", function()
    assert.equal(0, C.pl_listen_local(s.rt, path))
    local c = connect()
    send(c, "GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    local x = s:request()
    assert.equal(1, C.pl_exchange_is_local(x))
    assert.is_truthy(ffi.string(C.pl_exchange_peer(x)):find "^process %d+ of user %d+$")
    s:reply(x, 200, "hello")
    local answer = client.receive(c, 5000)
    assert.is_truthy(answer:find("hello", 1, true))
    local tcp = s:connect "GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
    x = s:request()
    assert.equal(0, C.pl_exchange_is_local(x))
    s:reply(x, 200)
    tcp:close()
    C.pl_client_close(c)
  end)

  it("says that a client is gone before any event is taken", function()
    assert.equal(0, C.pl_listen_local(s.rt, path))
    local c = connect()
    send(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    local x = s:request()
    assert.equal(0, C.pl_exchange_is_gone(x))
    C.pl_client_close(c)
    assert.is_true(process.wait_for(5, function() return C.pl_exchange_is_gone(x) == 1 end))
    C.pl_exchange_release(x)
  end)

  it("is for its owner, and goes with the runtime", function()
    assert.equal(0, C.pl_listen_local(s.rt, path))
    local _, out = scratch.sh(("stat -c %%a '%s'"):format(path))
    assert.equal("600\n", out)
    s:close()
    s = nil
    assert.is_false(exists(path))
  end)

  it("stays open where the others are closed", function()
    assert.equal(0, C.pl_listen_local(s.rt, path))
    C.pl_unlisten(s.rt)
    local c = connect()
    send(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    s:reply(s:request(), 204)
    assert.is_truthy(client.receive(c, 5000):find "^HTTP/1.1 204")
    C.pl_client_close(c)
  end)

  it("is not taken from a process that runs, but from one that is gone", function()
    local other = server.open()
    assert.equal(0, C.pl_listen_local(other.rt, path))
    assert.equal(C.PL_EIO, C.pl_listen_local(s.rt, path))
    assert.is_truthy(why():find "process that runs")
    os.execute(("mv '%s' '%s.x'"):format(path, path))
    other:close()                             -- it removes what has its name: nothing
    os.execute(("mv '%s.x' '%s'"):format(path, path))
    assert.is_true(exists(path))
    assert.is_true(C.pl_client_open("unix:" .. path, 0, 1000) == nil)
    assert.equal(0, C.pl_listen_local(s.rt, path))
    C.pl_client_close(connect())
  end)

  it("is refused where others could come in, or the path is none", function()
    for _, bits in ipairs { "750", "701", "770" } do
      mode(dir.path, bits)
      assert.equal(C.PL_EIO, C.pl_listen_local(s.rt, path))
      assert.is_truthy(why():find("others can enter", 1, true))
    end
    mode(dir.path, "700")
    dir.write("file.sock", "text")
    assert.equal(C.PL_EIO, C.pl_listen_local(s.rt, dir.path .. "/file.sock"))
    assert.equal(C.PL_EIO, C.pl_listen_local(s.rt, dir.path .. "/no/a.sock"))
    os.execute(("ln -s '%s' '%s/link'"):format(dir.path, dir.path))
    assert.equal(C.PL_EIO, C.pl_listen_local(s.rt, dir.path .. "/link/a.sock"))
    for _, bad in ipairs { "", "a.sock", "/a.sock", dir.path .. "/" .. ("x"):rep(100) } do
      assert.equal(C.PL_EINVAL, C.pl_listen_local(s.rt, bad))
    end
    for _, bad in ipairs { "", ("x"):rep(200) } do
      assert.is_true(C.pl_client_open("unix:" .. bad, 0, 1000) == nil)
    end
  end)

  it("does not count as one of the others' connections", function()
    s:close()
    s = server.open { max_connections = 1 }
    assert.equal(0, C.pl_listen_local(s.rt, path))
    local one = s:connect "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    local x = s:request()
    local c = connect()
    send(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    s:reply(s:request(), 200, "in")
    assert.is_truthy(client.receive(c, 5000):find("in", 1, true))
    s:reply(x, 200)
    one:close()
    C.pl_client_close(c)
  end)

  it("has a name, the lowest that is free", function()
    local before = os.getenv "XDG_RUNTIME_DIR"
    C.setenv("XDG_RUNTIME_DIR", dir.path, 1)
    finally(function() C.setenv("XDG_RUNTIME_DIR", before or "", 1) end)
    local other = server.open()
    assert.equal("worker/0", locals.listen(s.rt, "worker"))
    assert.equal("worker/1", locals.listen(other.rt, "worker"))
    assert.equal("frontend/0", locals.listen(other.rt, "frontend"))
    local function names()
      local out = {}
      for _, p in ipairs(assert(locals.list())) do
        assert.equal(dir.path, p.path:sub(1, #dir.path))
        out[#out + 1] = p.name
      end
      return table.concat(out, " ")
    end
    assert.equal("frontend/0 worker/0 worker/1", names())
    s:close()
    s = server.open()
    assert.equal("frontend/0 worker/1", names())
    assert.equal("worker/0", locals.listen(s.rt, "worker"))
    other:close()
    mode(dir.path .. "/perilune", "755")
    assert.is_nil((locals.listen(s.rt, "worker")))
    assert.is_nil((locals.list()))
  end)
end)

describe("a Lua that does not poll", function()
  it("is counted, once a time", function()
    local s = server.open()
    local stalls = C.pl_metric_open(C.PL_COUNTER, "perilune_lua_stalls_total", "", "", nil, 0)
    local before = C.pl_metric_value(stalls)
    s:event(1)
    process.sleep(1.6)                        -- nobody minds yet
    assert.equal(before, C.pl_metric_value(stalls))
    C.pl_doing(s.rt, ("hook migrate, agg.lua:12 "):rep(20))
    local function more(n)
      return process.wait_for(10, function() return C.pl_metric_value(stalls) == before + n end)
    end
    assert.is_true(more(1))
    process.sleep(0.6)
    assert.equal(before + 1, C.pl_metric_value(stalls))
    s:event(1)
    assert.is_true(more(2))
    C.pl_doing(s.rt, nil)
    s:event(1)
    process.sleep(1.6)
    assert.equal(before + 2, C.pl_metric_value(stalls))
    s:close()
  end)
end)
