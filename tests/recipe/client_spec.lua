-- SPDX-License-Identifier: Apache-2.0
local bench = require "perilune.tools.bench"
local client = require "perilune.tools.http_client"
local json = require "cjson.safe"
local fake = require "support.fake"
local scratch = require "scratch"

-- Feeds an answer in pieces of n bytes: its body and the response, or nil and why.
local function read(text, n)
  local parts = {}
  local response = client.response(function(piece) parts[#parts + 1] = piece end)
  for at = 1, #text, n do
    local ok, why = response:feed(text:sub(at, at + n - 1))
    if not ok then return nil, why end
  end
  return table.concat(parts), response
end

describe("the HTTP client", function()
  it("takes URLs apart", function()
    local url = assert(client.parse_url "http://[::1]:80/api/v1/")
    assert.same({ host = "::1", authority = "[::1]:80", port = 80, prefix = "/api" }, url)
    assert.equal(80, client.parse_url("somewhere").port)
    assert.is_nil((client.parse_url "https://somewhere"))
    assert.is_nil((client.parse_url "http://a:b:c/"))
    assert.is_nil((client.parse_url "http://a b"))
    assert.is_nil((client.parse_url "/v1"))
  end)

  it("reads answers of a length, in chunks and to the end, however they are cut",
     function()
    for n = 1, 80 do
      local body, r = read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello", n)
      assert.equal("hello", body)
      assert.equal(200, r.status)
      assert.equal("y", r.headers.x)
      assert.is_true(r.done and r.keep)
      body, r = read("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"
        .. "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        .. "3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n", n)
      assert.equal("hello", body)
      assert.is_true(r.done)
      assert.is_false(r.keep)
      body, r = read("HTTP/1.0 500 Oh\r\n\r\nhello", n)
      assert.equal("hello", body)
      assert.is_nil(r.done)
      assert.is_true(r:close())
      assert.is_false(r.keep)
      assert.is_true(r.done)
    end
  end)

  it("refuses what is not an answer", function()
    for text, why in pairs {
      ["SSH-2.0-x\r\n\r\n"] = "not HTTP/1.1",
      [("HTTP/1.1 200 OK\r\n" .. ("X: y\r\n"):rep(20000))] = "head of the answer",
      ["HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"] = "not a number",
      ["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"] = "no size",
      ["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffff\r\n"] =
        "no size",
      ["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n"] = "longer",
    } do
      for _, n in ipairs { 1, 1e6 } do
        local ok, said = read(text, n)
        assert.is_nil(ok)
        assert.matches(why, said)
      end
    end
    local _, r = read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", 99)
    assert.is_nil((r:close()))
  end)

  it("reads events, however they are cut", function()
    local text = ": note\r\ndata: one\r\n\r\nevent: x\ndata: two\ndata:three\n\n\n"
                 .. "data: [DONE]\n\ndata: unfinished\n"
    for n = 1, #text do
      local seen = {}
      local feed = client.events(function(data) seen[#seen + 1] = data end)
      for at = 1, #text, n do assert(feed(text:sub(at, at + n - 1))) end
      assert.same({ "one", "two\nthree", "[DONE]" }, seen)
    end
    local feed = client.events(function() end)
    local ok = true
    for _ = 1, 80 do ok = ok and feed(("x"):rep(65536)) end
    assert.is_nil(ok)
  end)

  it("says why it cannot connect, in time", function()
    local url = client.parse_url "http://127.0.0.1:1"
    local socket, why, name = client.open(url, 1000)
    assert.is_nil(socket)
    assert.matches("^cannot connect to 127.0.0.1:1: ", why)
    assert.equal("PL_EIO", name)
    local _, not_found = client.open({ host = ("x"):rep(300), port = 1 }, 1000)
    assert.matches("^host 'xxx", not_found)
    _, why = client.open({ host = "127.0.0.1", port = 70000 }, 1000)
    assert.matches("70000", why)
  end)
end)

describe("the bench's figures", function()
  it("are means and nearest ranks", function()
    local list = {}
    for i = 100, 1, -1 do list[#list + 1] = i end
    assert.same({ n = 100, mean = 50.5, p50 = 50, p90 = 90, p99 = 99 },
                bench.summary(list))
    assert.same({ n = 1, mean = 7, p50 = 7, p90 = 7, p99 = 7 }, bench.summary { 7 })
    assert.same({ n = 0 }, bench.summary {})
  end)
end)

describe("chat and bench, with a server", function()
  local server, dir, url
  local has_python = os.execute "python3 -c '' >/dev/null 2>&1" == 0

  setup(function()
    if not has_python then return end
    server = fake.start()
    dir, url = server.dir, server.url
  end)

  teardown(function()
    if server then server:stop() end
  end)

  local function with_server(text, fn)
    it(text, function()
      if not has_python then return pending "wants python3" end
      fn()
    end)
  end

  local function chat(lines, words)
    local command = "printf '%s' | env -u PERILUNE_API_KEY %s chat --url %s %s"
    return scratch.sh(command:format(lines, scratch.program, url, words or ""))
  end

  local function run_bench(words)
    local path = dir.path .. "/figures.json"
    os.remove(path)
    local code, out, err = scratch.sh(("%s bench --url %s --json %s %s"):format(
      scratch.program, url, path, words))
    local file = io.open(path)
    local figures = file and json.decode(file:read "*a")
    if file then file:close() end
    return code, figures, out, err
  end

  with_server("chat keeps what was said, until /reset", function()
    local code, out, err = chat("a\\nb\\n/reset\\nc\\n")
    assert.equal("", err)
    assert.equal(0, code)
    local a = "a0 a1 a2 "
    assert.equal(a .. "\n" .. ("a %s b0 a %s b1 a %s b2 \n"):format(a, a, a)
                 .. "c0 c1 c2 \n", out)
  end)

  with_server("chat says the system's words first, and ends at /quit", function()
    local code, out = chat("a\\n/quit\\nb\\n", "--system S --max-tokens 1")
    assert.equal(0, code)
    assert.equal("S a0 \n", out)
  end)

  with_server("chat goes on over connections that the server closed", function()
    local code, out, err = chat("a\\n/reset\\nb\\n", "--model forgetful --max-tokens 1")
    assert.equal("", err)
    assert.equal(0, code)
    assert.equal("a0 \nb0 \n", out)
  end)

  with_server("chat says what the server refuses, and goes on", function()
    local code, out, err = chat("a\\nb\\n", "--model nobody")
    assert.equal(1, code)
    assert.equal("", out)
    local line = "perilune: the server says 404: no model 'nobody'\n"
    assert.equal(line .. line, err)
    assert.equal("perilune: the server says 401: Unauthorized\n",
                 select(3, chat("a\\n", "--model closed")))
    assert.equal("", select(3, chat("a\\n", "--model closed --api-key k")))
    code, out, err = chat("a\\n", "--model dies")
    assert.equal(1, code)
    assert.equal("a0 \n", out)
    assert.matches("closed the connection in the middle of its answer", err)
  end)

  with_server("Ctrl-C ends an answer and not the chat", function()
    local script = [[
      cd %s; mkfifo q
      %s chat --url %s --model slow --max-tokens 50 <q >a & pid=$!
      exec 3>q; echo one >&3
      until grep -q one1 a; do sleep 0.02; done
      kill -INT $pid; echo /reset >&3; echo two >&3
      until grep -q two0 a; do sleep 0.02; done
      kill -INT $pid; exec 3>&-; wait $pid]]
    assert.equal(0, (scratch.sh(script:format(dir.path, scratch.program, url))))
    local file = assert(io.open(dir.path .. "/a"))
    local text = file:read "*a"
    file:close()
    assert.matches("^one0 one1 .*\ntwo0 ", text)
    assert.is_nil(text:find "one49")
  end)

  with_server("bench counts requests and tokens by the server's usage", function()
    local code, f, out, err = run_bench "--requests 40 --concurrency 7 --output-len 5 "
    assert.equal("", err)
    assert.equal(0, code)
    assert.equal(40, f.requests)
    assert.equal(0, f.failed)
    assert.equal(40 * 5, f.output_tokens)
    assert.equal(40 * 128, f.input_tokens)
    assert.equal("usage", f.counted_by)
    assert.equal(40, f.ttft_ms.n)
    assert.equal(40 * 4, f.itl_ms.n)
    assert.matches("^40 requests, 0 failed", out)
  end)

  with_server("bench reports what there is at Ctrl-C", function()
    -- Ignored until bench asks for it, so that one can knock until it does.
    local script = [[
      trap '' INT
      %s bench --url %s --model slow --output-len 60 --requests 9 --json %s/f & pid=$!
      while kill -INT $pid; do sleep 0.1; done; wait $pid]]
    local code, out = scratch.sh(script:format(scratch.program, url, dir.path))
    assert.equal(1, code)
    assert.matches("^0 requests, 0 failed, in [%d.]+ s, interrupted\n", out)
  end)

  with_server("bench sends at a rate, and survives closed connections", function()
    local code, f, _, err = run_bench(
      "--requests 30 --rate 300 --output-len 2 --input-len 3 --model forgetful")
    assert.equal("", err)
    assert.equal(0, code)
    assert.equal(30, f.requests)
    assert.equal(90, f.input_tokens)
    assert.equal(300, f.options.rate)
  end)

  with_server("bench counts events where there is no usage, and failures by their reason",
              function()
    local code, f, out = run_bench "--requests 4 --output-len 3 --model countless"
    assert.equal(0, code)
    assert.equal("events", f.counted_by)
    assert.equal(12, f.output_tokens)
    assert.matches("counted by events", out)
    code, f = run_bench "--requests 5 --model nobody"
    assert.equal(1, code)
    assert.same({ { text = "the server says 404: no model 'nobody'", n = 5 } }, f.errors)
    code, f = run_bench "--requests 5 --model dies"
    assert.equal(1, code)
    assert.equal(5, f.failed)
  end)
end)
