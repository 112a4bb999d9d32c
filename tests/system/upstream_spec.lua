-- SPDX-License-Identifier: Apache-2.0
-- A pool whose workers are OpenAI servers of another make: what they are sent, what the
-- client gets of them, and what happens with those that misbehave.
local cjson = require "cjson.safe"
local process = require "support.process"
local socket = require "support.socket"
local upstream = require "support.upstream"

-- The text of a stream's events, and what they said of how it ended.
local function read(events)
  local text, finish, usage = {}, nil, nil
  for _, e in ipairs(events) do
    local c = e.choices and e.choices[1]
    if c then
      text[#text + 1] = c.text or c.delta and c.delta.content or ""
      if c.finish_reason and c.finish_reason ~= cjson.null then finish = c.finish_reason end
    end
    if e.usage and e.usage ~= cjson.null then usage = e.usage end
  end
  return table.concat(text), finish, usage
end

local function completion(mode, more)
  local body = { model = "llama", prompt = "hello", max_tokens = 5, user = mode }
  for k, v in pairs(more or {}) do body[k] = v end
  return body
end

local function chat(mode, more)
  local body = { messages = { { role = "user", content = "hello" } }, max_tokens = 5,
    user = mode }
  for k, v in pairs(more or {}) do body[k] = v end
  return body
end

local STREAM = { stream = true }
local WORDS = "w0 w1 w2 w3 w4 "

describe("a server of another make", function()
  local a, front

  setup(function()
    a = upstream.python "a"
    front = upstream.front({ a }, { "--read-timeout", "1", "--first-byte-timeout", "2",
      "--migration-limit", "0" })
  end)
  teardown(function()
    front:stop()
    a:stop()
  end)

  local function last_request()
    local list = a:seen().requests
    return list[#list]
  end

  it("gets a prompt as token ids, its own name for the model, and the request's id", function()
    local r = front:post("/v1/completions", completion("good", { top_k = 3, odd = { 1 } }),
      { ["X-Request-Id"] = "mine", traceparent =
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" })
    assert.equal(200, r.status, r.text)
    assert.equal(WORDS, r.json.choices[1].text)
    assert.equal(1, r.json.own_field)
    assert.equal("cmpl-mine", r.json.id)
    local got = last_request()
    local ids = front:post("/tokenize", { prompt = "hello" }).json.tokens
    assert.same(ids, got.body.prompt)
    assert.equal("served-as", got.body.model)
    assert.equal(3, got.body.top_k)
    assert.same({ 1 }, got.body.odd)
    assert.equal(5, got.body.max_tokens)
    assert.equal("mine", got.headers["x-request-id"])
    assert.truthy(got.headers.traceparent:find "^00%-0af7651916cd43dd8448eb211c80319c")
  end)

  it("gets several prompts as lists of ids, and a list of ids as it came", function()
    front:post("/v1/completions", completion("good", { prompt = { "hello", "hello" } }))
    local ids = front:post("/tokenize", { prompt = "hello" }).json.tokens
    assert.same({ ids, ids }, last_request().body.prompt)
    front:post("/v1/completions", completion("good", { prompt = { 5, 6 } }))
    assert.same({ 5, 6 }, last_request().body.prompt)
  end)

  it("gets a chat as it came, with fields that we do not know", function()
    local tools = { { type = "function", ["function"] = { name = "f" } } }
    local r = front:post("/v1/chat/completions", chat("good", { tools = tools,
      response_format = { type = "json_object" }, n = 2 }))
    assert.equal(200, r.status, r.text)
    assert.equal(WORDS, r.json.choices[1].message.content)
    local got = last_request().body
    assert.same({ { role = "user", content = "hello" } }, got.messages)
    assert.same(tools, got.tools)
    assert.equal(2, got.n)
    assert.equal("json_object", got.response_format.type)
  end)

  it("gets what cannot be rendered here, such as pictures", function()
    local parts = { { type = "image_url", image_url = { url = "data:," } } }
    local r = front:post("/v1/chat/completions", chat("good",
      { messages = { { role = "user", content = parts } } }))
    assert.equal(200, r.status, r.text)
    assert.same(parts, last_request().body.messages[1].content)
  end)

  it("streams, its own fields kept", function()
    for path, body in pairs { ["/v1/completions"] = completion("good", STREAM),
        ["/v1/chat/completions"] = chat("good", STREAM) } do
      local r = front:post(path, body)
      assert.equal(200, r.status, r.text)
      assert.truthy(r.headers["content-type"]:find "^text/event%-stream")
      local events = r:events()
      local text, finish, usage = read(events)
      assert.equal(WORDS, text)
      assert.equal("length", finish)
      assert.is_nil(usage)                  -- nobody asked for it
      assert.same({ 1, { a = '}"]' } }, events[2].own_field)
    end
  end)

  it("tells usage to who asks, and counts it for who does not", function()
    local before = front:metric "dynamo_frontend_output_tokens_total"
    local r = front:post("/v1/completions", completion("good", { stream = true,
      stream_options = { include_usage = true } }))
    local _, _, usage = read(r:events())
    assert.equal(5, usage.completion_tokens)
    front:post("/v1/completions", completion("good", STREAM))
    front:post("/v1/completions", completion "good")
    assert.equal(before + 15, front:metric "dynamo_frontend_output_tokens_total")
    assert.truthy(front.process:log():find '"?completion_tokens"?[=:]5')
  end)

  it("has its own errors passed on, with its words and Retry-After", function()
    for _, stream in ipairs { false, true } do
      for mode, message in pairs { ["400"] = "no such thing", ["429"] = "slow down",
          ["500"] = "it broke", ["503"] = "no room" } do
        local r = front:post("/v1/completions", completion(mode, { stream = stream }))
        assert.equal(tonumber(mode), r.status, r.text)
        assert.equal(message, r.json.error.message)
        local wait = ({ ["429"] = "7", ["503"] = "9" })[mode]
        if wait then assert.equal(wait, r.headers["retry-after"]) end
      end
    end
    local r = front:post("/v1/completions", completion "500_html")
    assert.equal(500, r.status)
    assert.truthy(r.json.error.message:find("answered 500: <html>it broke", 1, true), r.text)
  end)

  it("is told apart by what it does wrong before its answer", function()
    local cases = {
      html = { 502, "text/html, wanted JSON" },
      events_for_json = { 502, "a stream of events, wanted JSON" }, redirect = { 502, "a redirection" },
      no_http = { 503, "not HTTP/1.1" }, nothing = { 503, "without an answer" },
      huge_head = { 503, "its headers are too large" },
      short_body = { 503, "in the middle of its answer" },
      silent = { 503, "did not begin in time" }, ["504"] = { 504, "answered 504" },
    }
    for mode, want in pairs(cases) do
      process.wait_for(10, function() return front:get("/health").status == 200 end)
      local r = front:post("/v1/completions", completion(mode))
      assert.equal(want[1], r.status, mode .. r.text)
      assert.truthy(r.json.error.message:find(want[2], 1, true), mode .. ": " .. r.text)
    end
    local r = front:post("/v1/completions", completion("json_for_stream", STREAM))
    assert.equal(502, r.status)
    assert.truthy(r.text:find("wanted a stream of events", 1, true), r.text)
  end)

  it("is told apart by what it does wrong in the middle of its answer", function()
    local cases = {
      cut = "in the middle of its answer", cut_event = "in the middle of its answer",
      clean_cut = "its stream ended before its answer did",
      garbage = "an event that is no JSON object: {nonsense}",
      huge_line = "an event that does not end", huge_event = "an event that does not end",
      stall = "nothing more of its answer came in time", bad_chunk = "not HTTP/1.1",
      error_event = "EngineCore died", after_done = "an event after the last one",
    }
    for mode, want in pairs(cases) do
      process.wait_for(10, function() return front:get("/health").status == 200 end)
      local r = front:post("/v1/completions", completion(mode, STREAM))
      assert.equal(200, r.status, mode .. r.text)
      local events = r:events()
      assert.truthy(read(events):find "^w0 w1 ", mode)
      local last = events[#events]
      assert.equal(503, last.error.code, mode)
      assert.truthy(last.error.message:find(want, 1, true), mode .. ": " .. r.text:sub(-300))
    end
  end)

  it("serves the next request as if nothing had been", function()
    local r = front:post("/v1/completions", completion "good")
    assert.equal(WORDS, r.json.choices[1].text)
  end)

  it("learns that the client has left", function()
    local left = a:seen().left
    local c = front:begin("POST", "/v1/completions", completion("endless", STREAM))
    assert(c.connection:receive(5000))
    c.connection:close()
    assert.truthy(process.wait_for(5, function() return a:seen().left == left + 1 end))
    assert.truthy(process.wait_for(5, function()
      return front:metric "dynamo_frontend_active_requests" == 0
    end))
  end)

  it("is not read faster than the client reads", function()
    local left = a:seen().left
    local c = socket.connect(front.port, 4096)
    local body = cjson.encode(completion("endless", STREAM))
    c:send_all(("POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
      .. "Content-Length: %d\r\n\r\n%s"):format(#body, body))
    assert(c:receive(5000))
    process.sleep(0.5)
    assert.is_nil(front.process:log():find "reads too slowly")
    for _ = 1, 200 do assert(c:receive(5000)) end   -- it goes on when there is room
    c:close()
    assert.truthy(process.wait_for(5, function() return a:seen().left > left end))
  end)

  it("is cancelled by id, and by the time that a request may take", function()
    local left = a:seen().left
    local c = front:begin("POST", "/v1/completions", completion("endless", STREAM),
      { ["X-Request-Id"] = "victim" })
    assert(c.response:feed(assert(c.connection:receive(5000))))
    assert.equal(200, front:post("/v1/cancel/victim").status)
    local events = c:finish():events()
    assert.equal(200, c.status)
    assert.equal("abort", events[#events].choices[1].finish_reason)
    assert.equal(events[1].id, events[#events].id)
    local r = front:post("/v1/completions", completion "silent",
      { ["X-Request-Timeout"] = "0.2" })
    assert.equal(504, r.status)
    assert.truthy(process.wait_for(5, function() return a:seen().left > left end))
  end)

  it("counts with its metrics, and is shown as a worker", function()
    assert.truthy(process.wait_for(5, function()
      return front:metric "perilune_upstream_up" == 1
    end))
    local r = front:get "/v1/models"
    assert.equal("llama", r.json.data[1].id)
    assert.truthy(front:get("/health").text:find(a.name, 1, true))
  end)
end)

describe("several servers of another make", function()
  local a, b, front

  setup(function()
    a, b = upstream.python "a", upstream.python "b"
    front = upstream.front({ a, b }, { "--migration-limit", "1", "--read-timeout", "1" })
    assert(process.wait_for(10, function()
      return front:metric "perilune_upstream_up" == 2
    end))
  end)
  teardown(function()
    front:stop()
    a:stop()
    b:stop()
  end)

  -- Sends until server a has had one of them, for its fault is to show.
  local function until_a(path, body)
    for i = 1, 20 do
      body.cache_salt = path .. i .. body.user   -- nobody has it cached
      local before, r = #a:seen().requests, front:post(path, body)
      if #a:seen().requests > before then return r end
      process.sleep(0.3)                    -- it may be suspected still
    end
    error "server a gets no request"
  end

  local function last_of(s)
    local list = s:seen().requests
    return list[#list].body
  end

  it("share what there is to do", function()
    local bodies = {}
    for i = 1, 16 do bodies[i] = completion("good", { prompt = "hello " .. i }) end
    for _, r in ipairs(front:post_all("/v1/completions", bodies)) do
      assert.equal(200, r.status)
    end
    assert.truthy(#a:seen().requests >= 4 and #b:seen().requests >= 4)
  end)

  it("each keep a prompt that they were sent", function()
    local prompt = ("the same beginning "):rep(40)
    local function counts() return #a:seen().requests, #b:seen().requests end
    front:post("/v1/completions", completion("good", { prompt = prompt .. 1 }))
    local na, nb = counts()
    for i = 2, 6 do
      front:post("/v1/completions", completion("good", { prompt = prompt .. i }))
    end
    local ma, mb = counts()
    assert.truthy(ma - na == 5 or mb - nb == 5, (ma - na) .. " and " .. (mb - nb))
  end)

  it("stand in for one that is full", function()
    for _, mode in ipairs { "429@a", "503@a" } do
      local r = until_a("/v1/completions", completion(mode, STREAM))
      assert.equal(200, r.status, r.text)
      assert.equal(WORDS, (read(r:events())))
    end
  end)

  it("stand in for one that fails before its answer", function()
    for _, mode in ipairs { "nothing@a", "no_http@a", "504@a" } do
      local r = until_a("/v1/completions", completion(mode))
      assert.equal(200, r.status, mode .. r.text)
      assert.equal(WORDS, r.json.choices[1].text)
    end
  end)

  it("go on with a completion from the tokens so far", function()
    local before = front:metric "perilune_moves_to_other_numerics_total"
    local r = until_a("/v1/completions", completion("cut@a", { stream = true,
      stream_options = { include_usage = true } }))
    local text, finish, usage = read(r:events())
    -- The other one begins its count of words anew.
    assert.equal("w0 w1 w0 w1 w2 ", text)
    assert.equal("length", finish)
    local went = last_of(b)
    assert.equal(3, went.max_tokens)
    local want = front:post("/tokenize", { prompt = "hello" }).json.tokens
    local more = front:post("/tokenize", { prompt = "w0 w1 ",
      add_special_tokens = false }).json.tokens
    for _, id in ipairs(more) do want[#want + 1] = id end
    assert.same(want, went.prompt)
    local n = #want - #more
    assert.same({ 5, n, n + 5 }, { usage.completion_tokens, usage.prompt_tokens,
      usage.total_tokens })
    assert.equal(before + 1, front:metric "perilune_moves_to_other_numerics_total")
    assert.truthy(front.process:log():find "goes on with the text so far")
  end)

  it("go on with a chat from the text so far", function()
    local r = until_a("/v1/chat/completions", chat("cut@a", STREAM))
    local events = r:events()
    assert.equal("w0 w1 w0 w1 w2 ", (read(events)))
    local roles = 0
    for _, e in ipairs(events) do
      if e.choices[1].delta.role then roles = roles + 1 end
    end
    assert.equal(1, roles)
    local went = last_of(b)
    assert.same({ role = "assistant", content = "w0 w1 " }, went.messages[2])
    assert.is_true(went.continue_final_message)
    assert.is_false(went.add_generation_prompt)
    assert.equal(3, went.max_tokens)
  end)

  it("cannot go on with what is no text", function()
    local r = until_a("/v1/chat/completions", chat("tools@a", STREAM))
    local events = r:events()
    assert.truthy(events[#events].error.message:find("no plain text", 1, true), r.text)
  end)

  it("are left out while they are away, and come back into it", function()
    a.process:signal "KILL"
    assert.truthy(process.wait_for(10, function()
      return front:metric "perilune_upstream_up" == 1
    end))
    for _ = 1, 4 do
      assert.equal(200, front:post("/v1/completions", completion "good").status)
    end
    assert.truthy(front.process:log():find(a.name .. " is away", 1, true))
    b.process:signal "KILL"
    assert.truthy(process.wait_for(10, function()
      return front:get("/health").status == 503
    end))
  end)
end)

describe("a server behind TLS", function()
  local folder = os.tmpname()
  local key, good, other = folder .. ".key", folder .. ".good", folder .. ".other"
  local a

  -- A certificate of its own for these names, with the same key.
  local function certificate(path, names)
    local code = os.execute(("openssl req -x509 -key %s -subj /CN=x -days 2 -addext "
      .. "subjectAltName=%s -out %s 2>/dev/null"):format(key, names, path))
    assert.equal(0, code)
  end

  setup(function()
    assert.equal(0, os.execute("openssl genrsa -out " .. key .. " 2048 2>/dev/null"))
    certificate(good, "IP:127.0.0.1,DNS:localhost")
    certificate(other, "DNS:elsewhere")
  end)
  teardown(function()
    for _, path in ipairs { folder, key, good, other } do os.remove(path) end
  end)
  after_each(function() a:stop() end)

  it("serves, streams and is left as any other", function()
    a = upstream.python("a", good, key)
    for _, host in ipairs { "127.0.0.1", "localhost" } do
      local front = upstream.front({ { address = "https://" .. host .. ":" .. a.port } },
        { "--upstream-tls-ca", good, "--read-timeout", "1", "--migration-limit", "0" })
      for _ = 1, 3 do
        assert.equal(WORDS, front:post("/v1/completions", completion "good").json.choices[1]
          .text)
        assert.equal(WORDS, (read(front:post("/v1/completions",
          completion("good", STREAM)):events())))
      end
      local long = front:post("/v1/completions", completion("good", { stream = true,
        max_tokens = 3000, prompt = ("many words "):rep(20000) })):events()
      assert.equal(3000, #long)
      for _, mode in ipairs { "cut", "stall", "garbage" } do
        process.wait_for(10, function() return front:get("/health").status == 200 end)
        local events = front:post("/v1/completions", completion(mode, STREAM)):events()
        assert.equal(503, events[#events].error.code, mode)
      end
      local c = front:begin("POST", "/v1/completions", completion("endless", STREAM))
      for _ = 1, 50 do assert(c.connection:receive(5000)) end
      c.connection:close()
      assert.truthy(process.wait_for(5, function()
        return front:metric "dynamo_frontend_active_requests" == 0
      end))
      front:stop()
    end
  end)

  local function refusal(address, flags)
    local words = { "run", "in_front_of_vllm", "--port", "0", "--log-format", "text",
      "--model", "tests/golden/llama", "--upstream", address }
    for _, word in ipairs(flags) do words[#words + 1] = word end
    local p = process.start(words)
    local why
    process.wait_for(20, function()
      why = p:log():match "is not here yet: ([^\n]+)" or p:log():match "CA file[^\n]+"
      return why or not p:runs()
    end)
    local log = p:log()
    p:remove()
    return why or log
  end

  it("is believed only by a certificate of somebody who is trusted, for its name", function()
    a = upstream.python("a", good, key)
    local address = "https://127.0.0.1:" .. a.port
    assert.truthy(refusal(address, {}):find("its certificate is not trusted: self", 1, true))
    assert.truthy(refusal(address, { "--upstream-tls-ca", "/nowhere" }):find("CA file '/nowhere'",
      1, true))
    a:stop()
    a = upstream.python("a", other, key)
    local why = refusal("https://127.0.0.1:" .. a.port, { "--upstream-tls-ca", other })
    assert.truthy(why:find("its certificate is not trusted: IP address mismatch", 1, true), why)
  end)

  it("must speak TLS", function()
    a = upstream.python "a"
    local why = refusal("https://127.0.0.1:" .. a.port, {})
    assert.truthy(why:find("TLS", 1, true) or why:find("closed the connection", 1, true), why)
  end)
end)
