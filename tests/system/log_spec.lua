-- SPDX-License-Identifier: Apache-2.0
-- What a server logs of its requests: JSON lines with their ids, whatever strangers send.
local cjson = require "cjson.safe"
local process = require "support.process"
local serving = require "support.serving"
local socket = require "support.socket"

local COMPLETION = "/v1/completions"
local TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
local PARENT = "00-" .. TRACE .. "-00f067aa0ba902b7-01"

local function completion(more)
  local body = { prompt = "a", max_tokens = 2, temperature = 0 }
  for key, value in pairs(more or {}) do body[key] = value end
  return body
end

-- The lines of a log, each of which must be a JSON object.
local function objects(log)
  local list = {}
  for line in log:gmatch "[^\n]+" do
    local o = assert(cjson.decode(line), line)
    assert(type(o.time) == "string" and type(o.level) == "string"
      and type(o.message) == "string", line)
    list[#list + 1] = o
  end
  return list
end

local function those_with(list, words)
  local found = {}
  for _, o in ipairs(list) do
    if o.message:find(words, 1, true) then found[#found + 1] = o end
  end
  return found
end

describe("a log that no terminal shows", function()
  local s
  after_each(function()
    if s then s.process:remove() end
    s = nil
  end)

  local function start(...) s = serving.start { "--log-format", "auto", ... } end

  it("is JSON lines, those of a request with its id and trace", function()
    start "--enable-log-requests"
    local r = s:post(COMPLETION, completion(), { ["X-Request-Id"] = "mine-1",
      traceparent = PARENT })
    assert.equal("cmpl-mine-1", r.json.id)
    local drawn = s:post(COMPLETION, completion { stream = true }):events()[1].id:match "^cmpl%-(%x+)$"
    assert.equal(200, s:get("/version", { ["X-Request-Id"] = "other" }).status)
    local list = objects(s:stop())
    s = nil
    local asked, answered = those_with(list, "request cmpl-"), those_with(list, "POST " .. COMPLETION)
    assert.equal(2, #asked)
    assert.equal(2, #answered)
    for _, lines in ipairs { asked, answered } do
      assert.same({ "mine-1", TRACE }, { lines[1].request_id, lines[1].trace_id })
      assert.same({ drawn }, { lines[2].request_id, lines[2].trace_id })
    end
    local version = those_with(list, "GET /version")
    assert.equal("other", version[1].request_id)
    assert.is_nil(those_with(list, "GET /health")[1].request_id)
  end)

  it("takes no hostile id or trace", function()
    start("--enable-log-requests", "--enable-request-id-headers")
    local ids = { "two words", "caf\195\169", "\255\254", ("x"):rep(5000), "a\tb" }
    for _, id in ipairs(ids) do
      local r = s:post(COMPLETION, completion(), { ["X-Request-Id"] = id,
        traceparent = "00-" .. ("0"):rep(32) .. "-00f067aa0ba902b7-01" })
      assert.equal(200, r.status)
      assert.matches("^cmpl%-%x+$", r.json.id)
      assert.equal(r.json.id:match "%-(%x+)$", r.headers["x-request-id"])
    end
    for _, id in ipairs { "x\ny", "x\0y", "", "two words", ("x"):rep(5000) } do
      local r = s:post(COMPLETION, completion { request_id = id })
      assert.matches("^cmpl%-%x+$", r.json.id)
    end
    for _, trace in ipairs { "", "00", PARENT:upper(), PARENT .. "-x", ("-"):rep(300),
        "ff" .. PARENT:sub(3) } do
      assert.equal(200, s:post(COMPLETION, completion(), { traceparent = trace }).status)
    end
    for _, o in ipairs(objects(s:stop())) do
      assert.is_true(o.request_id == nil or o.request_id:find "^%x+$" ~= nil, o.request_id)
      assert.is_nil(o.trace_id)
    end
    s = nil
  end)

  it("survives bytes that are no header at all", function()
    start()
    for _, bytes in ipairs { "X-Request-Id: a\rb", "X-Request-Id: a\0b", "X-Request-Id: a\127b",
        "X-Request-Id: \1\2", "traceparent: \0", "X-Request-Id: a\r\n b" } do
      local c = socket.connect(s.port)
      c:send_all("GET /version HTTP/1.1\r\nHost: h\r\n" .. bytes .. "\r\nConnection: close\r\n\r\n")
      while c:receive(5000) ~= "" do end
      c:close()
    end
    for _, o in ipairs(objects(s:stop())) do assert.is_nil(o.request_id) end
    s = nil
  end)

  it("names a request that its client gave up", function()
    start()
    local r = s:begin("POST", COMPLETION, completion { max_tokens = 1900, ignore_eos = true },
      { ["X-Request-Id"] = "gone-1" })
    process.wait_for(20, function() return s:metric "vllm:num_requests_running" == 1 end)
    r.connection:close()
    assert.is_true(s:idle())
    local found = those_with(objects(s:stop()), "Aborted Request ID: gone-1 (client disconnected)")
    s = nil
    assert.equal(1, #found)
    assert.equal("gone-1", found[1].request_id)
  end)

  it("says who was drawn to those who bring no id", function()
    start "--enable-request-id-headers"
    local r = s:post(COMPLETION, completion())
    assert.equal("cmpl-" .. r.headers["x-request-id"], r.json.id)
    assert.matches("^%x+$", s:get("/health").headers["x-request-id"])
    assert.equal("mine", s:get("/health", { ["X-Request-Id"] = "mine" }).headers["x-request-id"])
    s:stop()
    s = nil
  end)
end)
