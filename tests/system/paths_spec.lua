-- SPDX-License-Identifier: Apache-2.0
-- What a client is told that asks for what is not there, and what the log says of it.
local scratch = require "scratch"
local serving = require "support.serving"

local COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"

local function has(text, ...)
  for _, words in ipairs { ... } do
    assert.is_truthy(text:find(words, 1, true), ("no '%s' in %s"):format(words, text))
  end
end

local function hasnt(text, words)
  assert.is_nil(text:find(words, 1, true), text)
end

describe("who asks for what is not there", function()
  local s
  setup(function()
    s = serving.start { "--served-model-name", "plain", "Org/Name", "a model%2F" }
  end)
  teardown(function() s:stop() end)

  it("has each model by its name, however that is written", function()
    for path, id in pairs { plain = "plain", ["Org/Name"] = "Org/Name",
        ["Org%2FName"] = "Org/Name", ["%4frg%2fName"] = "Org/Name",
        ["a%20model%252F"] = "a model%2F" } do
      local r = s:get("/v1/models/" .. path)
      assert.equal(200, r.status, r.text)
      assert.equal(id, r.json.id)
      assert.equal("model", r.json.object)
    end
    assert.equal(200, s:request("HEAD", "/v1/models/plain").status)
  end)

  it("is told which models there are", function()
    for _, r in ipairs { s:get "/v1/models/Org", s:get "/v1/models/Org/Name/",
        s:get "/v1/models/Org%25", s:get "/v1/models/%ff",
        s:post(COMPLETION, { model = "other", prompt = "x" }),
        s:post(CHAT, { model = "other", messages = { { role = "user", content = "x" } } }),
        s:post("/tokenize", { model = "other", prompt = "x" }),
        s:post("/busy_threshold", { model = "other" }) } do
      assert.equal(404, r.status, r.text)
      assert.equal("NotFoundError", r.json.error.type)
      assert.equal("model", r.json.error.param)
      has(r.json.error.message, "does not exist", "`plain`, `Org/Name`, `a model%2F`")
      hasnt(r.json.error.message, serving.MODEL)        -- no path of this machine
    end
  end)

  it("is told which paths there are", function()
    for _, path in ipairs { "/", "/chat/completions", "/v1/v1/models", "/v1/models/",
        "/v1/nothing/of/the/kind", "/%ff" } do
      local r = s:get(path)
      assert.equal(404, r.status, r.text)
      has(r.json.error.message, "Not Found: no path '", "/health, ", " /v1/chat/completions, ",
        "/v1/models/{id}", "/busy_threshold")
      hasnt(r.json.error.message, "/reset_prefix_cache")
    end
    local long = s:get("/" .. ("x"):rep(5000))
    assert.equal(404, long.status)
    assert.is_true(#long.text < 1000)
  end)

  it("is told which methods there are", function()
    for _, case in ipairs { { "GET", COMPLETION, "POST" }, { "POST", "/v1/models", "GET, HEAD" },
        { "DELETE", "/v1/models/plain", "GET, HEAD" }, { "GET", "/v1/cancel/x", "POST" },
        { "PUT", "/busy_threshold", "GET, HEAD, POST" } } do
      local r = s:request(case[1], case[2])
      assert.equal(405, r.status, r.text)
      assert.equal(case[3], r.headers.allow)
      has(r.json.error.message, ("%s takes %s, not %s"):format(case[2], case[3], case[1]))
    end
  end)
end)

describe("the log", function()
  local s
  after_each(function()
    if s then s.process:remove() end
    s = nil
  end)

  -- The line about a request of this id.
  local function line_of(log, id)
    for line in log:gmatch "[^\n]+" do
      if line:find("HTTP/1.1", 1, true) and line:find("request_id=" .. id, 1, true) then
        return line
      end
    end
    error("no line of " .. id .. " in\n" .. log)
  end

  it("says why a request was refused", function()
    s = serving.start { "--api-key", "key", "--max-model-len", "64" }
    s:get("/v1/models", { ["X-Request-Id"] = "keyless" })
    s.key = "key"
    for id, ask in pairs {
        bad = { COMPLETION, { prompt = "x", temperature = -1 } },
        json = { COMPLETION, "{" },
        long = { COMPLETION, { prompt = ("x "):rep(2000) } },
        big = { COMPLETION, { prompt = ("x "):rep(20000) } },
        model = { CHAT, { model = "no\nINFO forged", messages = { {} } } } } do
      s:post(ask[1], ask[2], { ["X-Request-Id"] = id })
    end
    s:post(COMPLETION, { prompt = 5 })
    s:get("/nowhere", { ["X-Request-Id"] = "nowhere" })
    local log = s:stop()
    s = nil
    has(line_of(log, "keyless"), '" 401 [', 'reason="no valid key"')
    has(line_of(log, "bad"), '" 400 [', 'reason="temperature must be non-negative, got -1."')
    has(line_of(log, "json"), '" 400 [', "reason=")
    has(line_of(log, "long"), '" 400 [', "maximum context length is 64 tokens")
    has(line_of(log, "big"), '" 400 [', "maximum context length is 64 tokens")
    has(line_of(log, "model"), '" 404 [', "does not exist", "no\\nINFO forged")
    has(line_of(log, "nowhere"), '" 404 [', 'reason="no such path"')
    assert.matches('" 400 %[request_id=' .. ("%x"):rep(32) .. " reason=", log)   -- drawn
    assert.is_nil(log:find "\nINFO forged")
  end)

  it("says what a request took, whole, streamed and of many choices", function()
    s = serving.start()
    local body = { prompt = "Once upon a time", max_tokens = 5, temperature = 0,
      ignore_eos = true }
    local usage = s:post(COMPLETION, body, { ["X-Request-Id"] = "whole" }).json.usage
    body.stream = true
    s:post(COMPLETION, body, { ["X-Request-Id"] = "streamed" })
    body.stream, body.n, body.temperature = nil, 3, 1
    s:post(COMPLETION, body, { ["X-Request-Id"] = "three" })
    local log = s:stop()
    s = nil
    for id, n in pairs { whole = 5, streamed = 5, three = 15 } do
      assert.matches(('" 200 %%[request_id=%s prompt_tokens=%d completion_tokens=%d '
        .. "worker=worker/0 ms=%%d+%%]$"):format(id, usage.prompt_tokens, n), line_of(log, id))
    end
  end)

  it("says why a hook refused it, and a client when to come again", function()
    local dir = scratch.folder()
    finally(dir.remove)
    s = serving.start(nil, nil, dir.write("reject.lua", [[
      local pl = require "perilune"
      return { worker = {}, admit = function(req)
        return pl.reject(tonumber(req.headers["x-status"]), "not today",
          tonumber(req.headers["x-after"]))
      end }]]))
    for _, case in ipairs { { "503", nil, "1" }, { "503", "9", "9" }, { "429", nil, nil },
        { "429", "2", "2" } } do
      local r = s:post(COMPLETION, { prompt = "x" }, { ["X-Status"] = case[1],
        ["X-After"] = case[2], ["X-Request-Id"] = "no" })
      assert.equal(tonumber(case[1]), r.status)
      assert.equal(case[3], r.headers["retry-after"])
    end
    local log = s:stop()
    s = nil
    has(line_of(log, "no"), '" 503 [', 'reason="not today"')
  end)

  it("names each field that was ignored, once", function()
    s = serving.start()
    for _ = 1, 3 do
      s:post(COMPLETION, { prompt = "x", max_tokens = 1, temprature = 0, ["a\nb"] = 1,
        user = "me" })
      s:post("/tokenize", { prompt = "x", temprature = 0, max_tokens = 3 })
    end
    s:post(CHAT, { messages = { { role = "user", content = "x" } }, max_tokens = 1,
      temprature = 0, parallel_tool_calls = true })
    s:post(COMPLETION, { prompt = ("x "):rep(12000), far = 1 })   -- prepared in the pool,
    s:post(COMPLETION, { prompt = ("x"):rep(20), max_tokens = 1, far = 1 })
    for i = 1, 40 do
      local many = { prompt = "x", max_tokens = 1 }
      for k = 1, 40 do many[("f%d_%d"):format(i, k)] = 1 end
      s:post(COMPLETION, many)
    end
    local log = s:stop()
    s = nil
    local function times(words)
      return select(2, log:gsub("request field " .. words, ""))
    end
    local ignored = " is not known and was ignored"
    assert.equal(1, times '"temprature"')
    assert.equal(1, times('"temprature" of a completion' .. ignored))
    assert.equal(1, times('"a\\nb" of a completion' .. ignored))
    assert.equal(1, times('"far" of a completion' .. ignored))
    assert.equal(1, times('"max_tokens" of a tokenize' .. ignored))
    assert.equal(1, times '"user" of a completion has no effect here')
    assert.equal(1, times '"parallel_tool_calls" of a chat has no effect here')
    assert.equal(0, times '"prompt"')
    assert.equal(256, times '"')
    has(log, "further ignored fields will not be logged")
  end)
end)
