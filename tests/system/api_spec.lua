-- SPDX-License-Identifier: Apache-2.0
-- The HTTP API, endpoint by endpoint and field by field, against a small model.
local process = require "support.process"
local scratch = require "scratch"
local serving = require "support.serving"
local null = serving.null

local COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"
local MESSAGES = { { role = "user", content = "hi" } }
local TEXT = "Once upon a time"

local function keys(t)
  local list = {}
  for key in pairs(t) do list[#list + 1] = key end
  table.sort(list)
  return table.concat(list, " ")
end

-- `base` with `more` over it.
local function with(base, more)
  local t = {}
  for k, v in pairs(base) do t[k] = v end
  for k, v in pairs(more or {}) do t[k] = v end
  return t
end

local function completion(more)
  return with({ prompt = TEXT, max_tokens = 8, temperature = 0, ignore_eos = true }, more)
end

local function chat(more)
  return with({ messages = MESSAGES, max_tokens = 8, temperature = 0, ignore_eos = true },
    more)
end

local function error_of(status, r)
  assert.equal(status, r.status, r.text)
  assert.matches("^application/json", r.headers["content-type"])
  assert.equal("error", keys(r.json))
  assert.equal("code message param type", keys(r.json.error))
  assert.equal(status, r.json.error.code)
  return r.json.error
end

describe("the API", function()
  local s
  setup(function()
    s = serving.start { "--max-model-len", "512", "--max-logprobs", "10" }
  end)
  teardown(function() s:stop() end)

  local function complete(more)
    local r = s:post(COMPLETION, completion(more))
    assert.equal(200, r.status, r.text)
    return r.json
  end

  local function talk(more)
    local r = s:post(CHAT, chat(more))
    assert.equal(200, r.status, r.text)
    return r.json
  end

  -- A stream's events, and its text by choice.
  local function stream(path, body)
    local r = s:post(path, with(body, { stream = true }))
    assert.equal(200, r.status, r.text)
    assert.equal("text/event-stream; charset=utf-8", r.headers["content-type"])
    local events, texts = r:events(), {}
    for _, e in ipairs(events) do
      for _, c in ipairs(e.choices) do
        local text = c.text or c.delta.content or ""
        texts[c.index] = (texts[c.index] or "") .. text
      end
    end
    return events, texts
  end

  local function refused(path, body, words, param)
    local e = error_of(400, s:post(path, body))
    assert.equal("BadRequestError", e.type)
    assert.is_truthy(e.message:find(words, 1, true), e.message)
    if param then assert.equal(param, e.param) end
  end

  describe("beside generating", function()
    it("tells its health, version and load", function()
      for _, path in ipairs { "/health", "/ping" } do
        local r = s:get(path)
        assert.equal(200, r.status)
        assert.equal("healthy", r.json.status)
        assert.same({ "dyn://perilune.backend.generate" }, r.json.endpoints)
        assert.equal("ready", r.json.instances[1].status)
      end
      local live = s:get "/live"
      assert.equal(200, live.status)
      assert.same({ status = "live", message = "Service is live" }, live.json)
      assert.equal(200, s:post("/ping").status)
      assert.equal(200, s:request("HEAD", "/health").status)
      assert.matches("^%d+%.%d+", s:get("/version").json.version)
      assert.same({ server_load = 0 }, s:get("/load").json)
    end)

    it("lists its model as vLLM does", function()
      local list = s:get("/v1/models").json
      assert.equal("list", list.object)
      assert.equal(1, #list.data)
      local m = list.data[1]
      assert.equal("created id max_model_len object owned_by parent permission root",
        keys(m))
      assert.equal("llama", m.id)
      assert.equal("model", m.object)
      assert.equal(512, m.max_model_len)
      assert.equal(null, m.parent)
      assert.equal("allow_create_engine allow_fine_tuning allow_logprobs allow_sampling "
        .. "allow_search_indices allow_view created group id is_blocking object "
        .. "organization", keys(m.permission[1]))
    end)

    it("answers 404, 405 and 415 in OpenAI's words", function()
      assert.equal("NotFoundError", error_of(404, s:get "/v1/nothing").type)
      error_of(404, s:post("/reset_prefix_cache"))
      local r = s:get(COMPLETION)
      error_of(405, r)
      assert.equal("POST", r.headers.allow)
      error_of(405, s:post("/v1/models", {}))
      error_of(415, s:post(COMPLETION, completion(), { ["Content-Type"] = "text/plain" }))
      error_of(415, s:post(COMPLETION, completion(), { ["Content-Type"] = false }))
      r = s:post(COMPLETION, completion(),
        { ["Content-Type"] = "Application/JSON; charset=utf-8" })
      assert.equal(200, r.status)
    end)

    it("tokenizes text and back", function()
      for _, text in ipairs { TEXT, "  two  spaces", "\228\189\160\240\159\152\128 x\n" } do
        local r = s:post("/tokenize", { prompt = text, return_token_strs = true }).json
        assert.equal("count max_model_len token_strs tokens", keys(r))
        assert.equal(512, r.max_model_len)
        assert.equal(#r.tokens, r.count)
        assert.equal(#r.tokens, #r.token_strs)
        local plain = s:post("/tokenize", { prompt = text, add_special_tokens = false }).json
        assert.equal(null, plain.token_strs)
        assert.equal(r.count - 1, plain.count)      -- begin of text
        assert.equal(text, s:post("/detokenize", { tokens = plain.tokens }).json.prompt)
      end
      assert.equal("", s:post("/detokenize", '{"tokens":[]}').json.prompt)
    end)

    it("tokenizes chats, as it answers them", function()
      local r = s:post("/tokenize", { messages = MESSAGES }).json
      local ids = talk { return_token_ids = true }.prompt_token_ids
      assert.same(ids, r.tokens)
      local bare = s:post("/tokenize",
        { messages = MESSAGES, add_generation_prompt = false }).json
      assert.is_true(bare.count < r.count)
      local more = s:post("/tokenize",
        { messages = MESSAGES, add_special_tokens = true }).json
      assert.equal(r.count + 1, more.count)
    end)

    it("refuses what is no text and no tokens", function()
      refused("/tokenize", {}, "prompt must be a string", "prompt")
      refused("/tokenize", { prompt = { 1 } }, "prompt must be a string", "prompt")
      refused("/tokenize", { messages = false }, "messages must be a list", "messages")
      refused("/detokenize", { tokens = "x" }, "tokens must be a list", "tokens")
      refused("/detokenize", { tokens = { 600 } }, "out of vocabulary")
      refused("/detokenize", { tokens = { 1.5 } }, "")
    end)

    it("lets browsers call", function()
      local origin = { Origin = "https://a.example" }
      assert.equal("*", s:get("/health", origin).headers["access-control-allow-origin"])
      assert.is_nil(s:get("/health").headers["access-control-allow-origin"])
      local r = s:request("OPTIONS", COMPLETION, nil, with(origin, {
        ["Access-Control-Request-Method"] = "POST",
        ["Access-Control-Request-Headers"] = "authorization" }))
      assert.equal(200, r.status)
      assert.equal("authorization", r.headers["access-control-allow-headers"])
      assert.matches("POST", r.headers["access-control-allow-methods"])
      assert.equal("*", error_of and s:post(COMPLETION, {}, origin)
        .headers["access-control-allow-origin"])
    end)
  end)

  describe("completions", function()
    it("have every field that vLLM's have", function()
      local r = complete()
      assert.equal("choices created id kv_transfer_params model object service_tier "
        .. "system_fingerprint usage", keys(r))
      assert.matches("^cmpl%-%x+$", r.id)
      assert.equal("text_completion", r.object)
      assert.equal("llama", r.model)
      local c = r.choices[1]
      assert.equal("finish_reason index logprobs prompt_logprobs prompt_token_ids "
        .. "stop_reason text token_ids", keys(c))
      assert.equal(0, c.index)
      assert.equal("length", c.finish_reason)
      for _, name in ipairs { "logprobs", "prompt_logprobs", "prompt_token_ids",
          "stop_reason", "token_ids" } do
        assert.equal(null, c[name])
      end
      assert.equal("completion_tokens prompt_tokens prompt_tokens_details total_tokens",
        keys(r.usage))
      assert.equal(8, r.usage.completion_tokens)
      assert.equal(r.usage.prompt_tokens + 8, r.usage.total_tokens)
    end)

    it("have 16 tokens unless told", function()
      local r = s:post(COMPLETION, { prompt = TEXT, ignore_eos = true }).json
      assert.equal(16, r.usage.completion_tokens)
    end)

    it("stream what they answer whole", function()
      local whole = complete { n = 1 }
      local events, texts = stream(COMPLETION, completion())
      assert.equal(whole.choices[1].text, texts[0])
      for i, e in ipairs(events) do
        assert.equal("choices created id model object", keys(e))
        assert.equal(events[1].id, e.id)
        local c = e.choices[1]
        assert.equal("finish_reason index logprobs stop_reason text", keys(c))
        assert.equal(i == #events and "length" or null, c.finish_reason)
      end
    end)

    it("take prompts in every form", function()
      local ids = s:post("/tokenize", { prompt = TEXT }).json.tokens
      local one = complete().choices[1].text
      assert.equal(one, complete { prompt = ids }.choices[1].text)
      local r = complete { prompt = { TEXT, "The sea", TEXT } }
      assert.equal(3, #r.choices)
      assert.equal(24, r.usage.completion_tokens)
      for i, c in ipairs(r.choices) do assert.equal(i - 1, c.index) end
      assert.equal(one, r.choices[1].text)
      assert.equal(one, r.choices[3].text)
      assert.equal(one, complete { prompt = { ids, { 5 } } }.choices[1].text)
      local _, texts = stream(COMPLETION, completion { prompt = { TEXT, "The sea" } })
      assert.equal(r.choices[1].text, texts[0])
      assert.equal(r.choices[2].text, texts[1])
    end)

    it("refuse prompts that are none", function()
      refused(COMPLETION, { max_tokens = 1 }, "must be provided", "prompt")
      for _, prompt in ipairs { "", {}, { {} }, { "a", { 1 } }, { { 1 }, "a" }, { 1.5 }, 7,
          { -1 }, { 600 }, { 1e300 }, { { 600 } }, true, { a = 1 }, { null } } do
        refused(COMPLETION, { prompt = prompt, max_tokens = 1 }, "")
      end
    end)

    it("echo the prompt", function()
      local one = complete()
      assert.equal(TEXT .. one.choices[1].text, complete { echo = true }.choices[1].text)
      local only = complete { echo = true, max_tokens = 0 }
      assert.equal(TEXT, only.choices[1].text)
      assert.equal(0, only.usage.completion_tokens)
      local _, texts = stream(COMPLETION, completion { echo = true })
      assert.equal(TEXT .. one.choices[1].text, texts[0])
      _, texts = stream(COMPLETION, completion { echo = true, max_tokens = 0 })
      assert.equal(TEXT, texts[0])
      local ids = s:post("/tokenize", { prompt = TEXT, add_special_tokens = false }).json
      assert.equal(TEXT, complete { prompt = ids.tokens, echo = true, max_tokens = 0 }
        .choices[1].text)
    end)

    it("show logprobs", function()
      for count = 0, 5, 5 do
        local lp = complete { logprobs = count }.choices[1].logprobs
        assert.equal("text_offset token_logprobs tokens top_logprobs", keys(lp))
        assert.equal(8, #lp.tokens)
        assert.equal(8, #lp.text_offset)
        assert.equal(0, lp.text_offset[1])
        for i, value in ipairs(lp.token_logprobs) do
          assert.is_true(value <= 0)
          local best, n = -math.huge, 0
          for _, v in pairs(lp.top_logprobs[i]) do best, n = math.max(best, v), n + 1 end
          assert.equal(value, best)                -- greedy
          assert.is_true(n >= 1 and n <= math.max(1, count))
        end
      end
      refused(COMPLETION, completion { logprobs = 11 }, "max allowed: 10", "logprobs")
      refused(COMPLETION, completion { logprobs = -2 }, "non-negative", "logprobs")
    end)

    it("show logprobs of what they echo, streamed too", function()
      local n = complete().usage.prompt_tokens
      local lp = complete { echo = true, logprobs = 2 }.choices[1].logprobs
      assert.equal(n + 8, #lp.tokens)
      assert.equal(null, lp.token_logprobs[1])
      assert.equal(null, lp.top_logprobs[1])
      assert.is_true(lp.token_logprobs[2] < 0)
      local plain = complete { logprobs = 2 }.choices[1].logprobs
      for i = 1, 8 do
        assert.equal(plain.token_logprobs[i], lp.token_logprobs[n + i])
        assert.equal(plain.text_offset[i] + lp.text_offset[n + 1], lp.text_offset[n + i])
      end
      local streamed = { tokens = {}, token_logprobs = {}, text_offset = {} }
      for _, e in ipairs((stream(COMPLETION, completion { echo = true, logprobs = 2 }))) do
        local part = e.choices[1].logprobs
        for name, list in pairs(streamed) do
          for _, v in ipairs(part ~= null and part[name] or {}) do list[#list + 1] = v end
        end
      end
      for name, list in pairs(streamed) do assert.same(lp[name], list) end
    end)

    it("show prompt_logprobs", function()
      local r = complete { prompt_logprobs = 2, max_tokens = 1, return_token_ids = true }
      local c = r.choices[1]
      assert.equal(r.usage.prompt_tokens, #c.prompt_logprobs)
      assert.equal(null, c.prompt_logprobs[1])
      for i = 2, #c.prompt_logprobs do
        local e = c.prompt_logprobs[i][tostring(c.prompt_token_ids[i])]
        assert.equal("decoded_token logprob rank", keys(e))
        assert.is_true(e.logprob < 0 and e.rank >= 1)
      end
      refused(COMPLETION, completion { prompt_logprobs = 1, stream = true }, "stream",
        "prompt_logprobs")
    end)

    it("show token ids", function()
      local c = complete { return_token_ids = true }.choices[1]
      assert.equal(8, #c.token_ids)
      assert.same(s:post("/tokenize", { prompt = TEXT }).json.tokens, c.prompt_token_ids)
      local ids, prompts = {}, 0
      for _, e in ipairs((stream(COMPLETION, completion { return_token_ids = true }))) do
        for _, id in ipairs(e.choices[1].token_ids) do ids[#ids + 1] = id end
        if e.choices[1].prompt_token_ids then prompts = prompts + 1 end
      end
      assert.same(c.token_ids, ids)
      assert.equal(1, prompts)
      local names = complete { logprobs = 1, return_tokens_as_token_ids = true }
        .choices[1].logprobs.tokens
      for i, name in ipairs(names) do assert.equal("token_id:" .. c.token_ids[i], name) end
    end)

    it("end where they are told to", function()
      local all = complete { return_token_ids = true, max_tokens = 20 }.choices[1]
      local id = all.token_ids[5]
      local at = 1
      while all.token_ids[at] ~= id do at = at + 1 end
      local c = complete { stop_token_ids = { id }, max_tokens = 20,
        return_token_ids = true }.choices[1]
      assert.equal("stop", c.finish_reason)
      assert.equal(id, c.stop_reason)
      assert.equal(at, #c.token_ids)
      c = complete { stop_token_ids = { id }, max_tokens = 20, min_tokens = at + 3,
        return_token_ids = true }.choices[1]
      assert.is_true(#c.token_ids >= at + 3)
      for i = 1, at + 3 do assert.not_equal(id, c.token_ids[i]) end
    end)

    it("are cut to what truncate_prompt_tokens leaves", function()
      local ids = s:post("/tokenize", { prompt = TEXT }).json.tokens
      local last = { ids[#ids - 2], ids[#ids - 1], ids[#ids] }
      local c = complete { truncate_prompt_tokens = 3, return_token_ids = true }.choices[1]
      assert.same(last, c.prompt_token_ids)
      assert.equal(complete { prompt = last }.choices[1].text, c.text)
      local long = ("x "):rep(2000)
      refused(COMPLETION, completion { prompt = long }, "maximum context length", "prompt")
      assert.equal(500, complete { prompt = long, truncate_prompt_tokens = 500 }
        .usage.prompt_tokens)
      refused(COMPLETION, completion { truncate_prompt_tokens = 513 }, "max_model_len=512")
    end)

    it("refuse to be longer than the model can", function()
      refused(COMPLETION, completion { max_tokens = 512 },
        "This model's maximum context length is 512 tokens. However, you requested ")
      refused(COMPLETION, completion { max_tokens = 0 }, "max_tokens must be at least 1")
      local n = complete().usage.prompt_tokens
      assert.equal(512, complete { max_tokens = 512 - n }.usage.total_tokens)
    end)
  end)

  describe("chats", function()
    it("have every field that vLLM's have", function()
      local r = talk()
      assert.equal("choices created id kv_transfer_params model object prompt_logprobs "
        .. "prompt_token_ids service_tier system_fingerprint usage", keys(r))
      assert.matches("^chatcmpl%-%x+$", r.id)
      assert.equal("chat.completion", r.object)
      local c = r.choices[1]
      assert.equal("finish_reason index logprobs message stop_reason token_ids", keys(c))
      assert.equal("annotations audio content function_call reasoning refusal role",
        keys(c.message))
      assert.equal("assistant", c.message.role)
    end)

    it("stream a role, the text, how it ended and, if asked, usage", function()
      local whole = talk()
      local events, texts = stream(CHAT, chat { stream_options = { include_usage = true } })
      assert.equal(whole.choices[1].message.content, texts[0])
      assert.same({ role = "assistant", content = "" }, events[1].choices[1].delta)
      local last = table.remove(events)
      assert.same({}, last.choices)
      assert.same(whole.usage, last.usage)
      for i, e in ipairs(events) do
        assert.equal("chat.completion.chunk", e.object)
        assert.is_nil(e.usage)
        assert.equal(i == #events and "length" or null, e.choices[1].finish_reason)
        assert.is_true(i == 1 or e.choices[1].delta.role == nil)
      end
      events = stream(CHAT, chat { stream_options = {} })
      assert.equal(1, #events[#events].choices)
      events = stream(CHAT, chat {
        stream_options = { include_usage = true, continuous_usage_stats = true } })
      for _, e in ipairs(events) do
        assert.equal(whole.usage.prompt_tokens, e.usage.prompt_tokens)
      end
      assert.equal(8, events[#events].usage.completion_tokens)
      refused(CHAT, chat { stream_options = { include_usage = true } }, "Stream options")
    end)

    it("use the rest of the context unless told", function()
      local r = s:post(CHAT, { messages = MESSAGES, ignore_eos = true }).json
      assert.equal(512, r.usage.total_tokens)
      assert.equal(3, talk { max_completion_tokens = 3 }.usage.completion_tokens)
    end)

    it("show logprobs", function()
      local r = talk { logprobs = true, top_logprobs = 3 }
      local list = r.choices[1].logprobs.content
      assert.equal(8, #list)
      for _, e in ipairs(list) do
        assert.equal("bytes logprob token top_logprobs", keys(e))
        assert.equal(3, #e.top_logprobs)
        assert.equal("bytes logprob token", keys(e.top_logprobs[1]))
        assert.equal(e.logprob, e.top_logprobs[1].logprob)
      end
      assert.equal(0, #talk { logprobs = true }.choices[1].logprobs.content[1].top_logprobs)
      local streamed = {}
      for _, e in ipairs((stream(CHAT, chat { logprobs = true, top_logprobs = 3 }))) do
        local lp = e.choices[1].logprobs
        for _, t in ipairs(lp ~= null and lp.content or {}) do streamed[#streamed + 1] = t end
      end
      assert.same(list, streamed)
      refused(CHAT, chat { top_logprobs = 2 }, "logprobs", "top_logprobs")
      refused(CHAT, chat { logprobs = true, top_logprobs = 11 }, "max allowed: 10")
      assert.equal(null, talk { prompt_logprobs = 0 }.prompt_logprobs[1])
    end)

    it("stop at strings, wherever tokens end", function()
      local content = talk({ max_tokens = 24 }).choices[1].message.content
      local from = assert(content:find("[%w ][%w ][%w ][%w ]", 4))
      for length = 1, 4 do
        local stop = content:sub(from, from + length - 1)
        local before = content:sub(1, content:find(stop, 1, true) - 1)
        local c = talk({ max_tokens = 24, stop = stop }).choices[1]
        assert.equal(before, c.message.content)
        assert.equal("stop", c.finish_reason)
        assert.equal(stop, c.stop_reason)
        local events, texts = stream(CHAT, chat { max_tokens = 24, stop = { "zzz", stop } })
        assert.equal(before, texts[0])
        assert.equal(stop, events[#events].choices[1].stop_reason)
        c = talk { max_tokens = 24, stop = stop, include_stop_str_in_output = true }
          .choices[1]
        assert.equal(before .. stop, c.message.content)
      end
      refused(CHAT, chat { stop = { "" } }, "empty string", "stop")
    end)

    it("continue a message", function()
      local started = { MESSAGES[1], { role = "assistant", content = "The sea" } }
      local r = talk { messages = started, add_generation_prompt = false,
        continue_final_message = true, return_token_ids = true }
      assert.equal("assistant", r.choices[1].message.role)
      local text = s:post("/detokenize", { tokens = r.prompt_token_ids }).json.prompt
      assert.matches("The sea$", text)
      local echoed = talk { messages = started, add_generation_prompt = false,
        continue_final_message = true, echo = true }
      assert.equal("The sea" .. r.choices[1].message.content,
        echoed.choices[1].message.content)
      local _, texts = stream(CHAT, chat { messages = started, add_generation_prompt = false,
        continue_final_message = true, echo = true })
      assert.equal(echoed.choices[1].message.content, texts[0])
      assert.equal(talk().choices[1].message.content,
        talk { echo = true }.choices[1].message.content)
      refused(CHAT, chat { messages = started, continue_final_message = true },
        "Cannot set both")
    end)

    it("take content in parts, and what the template reads", function()
      local parts = { { role = "user", content = { { type = "text", text = "hi" } } } }
      assert.equal(talk().choices[1].message.content,
        talk { messages = parts }.choices[1].message.content)
      local n = talk().usage.prompt_tokens
      assert.not_equal(n, talk { chat_template_kwargs = { date_string = "today, no less" } }
        .usage.prompt_tokens)
      local tools = { { type = "function", ["function"] = { name = "look" } } }
      assert.is_true(talk { tools = tools }.usage.prompt_tokens > n)
      refused(CHAT, chat { tools = tools, tool_choice = "required" }, "tool_choice")
      refused(CHAT, chat { tool_choice = "auto" }, "`tools` must be set")
      refused(CHAT, chat { messages = { { role = "user",
        content = { { type = "image_url", image_url = { url = "x" } } } } } }, "text part")
      refused(CHAT, chat { chat_template = "x" }, "untrusted chat template")
    end)
  end)

  describe("sampling", function()
    it("repeats by its seed", function()
      local drawn = { temperature = 1.5, top_p = 1, max_tokens = 16 }
      local a = complete(with(drawn, { seed = 7 })).choices[1].text
      assert.equal(a, complete(with(drawn, { seed = 7 })).choices[1].text)
      assert.not_equal(a, complete(with(drawn, { seed = 8 })).choices[1].text)
      local r = complete(with(drawn, { seed = 7, n = 3 }))
      assert.equal(a, r.choices[1].text)
      assert.equal(complete(with(drawn, { seed = 8 })).choices[1].text, r.choices[2].text)
      assert.equal(48, r.usage.completion_tokens)
      local _, texts = stream(COMPLETION, completion(with(drawn, { seed = 7, n = 3 })))
      for i = 1, 3 do assert.equal(r.choices[i].text, texts[i - 1]) end
      assert.not_equal(complete(drawn).choices[1].text, complete(drawn).choices[1].text)
    end)

    it("heeds what forbids tokens", function()
      local ids = complete { return_token_ids = true }.choices[1].token_ids
      local function first(more)
        more.return_token_ids, more.max_tokens = true, 1
        return complete(more).choices[1].token_ids[1]
      end
      assert.not_equal(ids[1], first { logit_bias = { [tostring(ids[1])] = -100 } })
      assert.equal(77, first { logit_bias = { ["77"] = 100 } })
      assert.equal(33, first { allowed_token_ids = { 33 } })
      local word = complete { max_tokens = 1 }.choices[1].text
      assert.not_equal(ids[1], first { bad_words = { word } })
      assert.is_true(first { top_k = 1, temperature = 2, seed = 1 } == ids[1])
    end)

    it("refuses values out of range", function()
      for field, values in pairs {
        temperature = { -1, "hot", true }, top_p = { 0, 1.1, -1 }, top_k = { -2, 0.5 },
        min_p = { -0.1, 1.1 }, presence_penalty = { 2.1, -2.1 },
        frequency_penalty = { 2.1 }, repetition_penalty = { 0, -1 }, n = { 0, -1, 1.5 },
        min_tokens = { -1, 9 }, max_tokens = { 0, -5 }, seed = { 1.5, "x" },
        stop_token_ids = { { 600 }, { "x" }, 3 }, allowed_token_ids = { {}, { 600 } },
        logit_bias = { { ["600"] = 1 }, { x = 1 }, 5 }, cache_salt = { "", 5 },
        echo = { 1 }, stream = { "yes" }, priority = { 1 }, use_beam_search = { true },
        user = { 5 }, bad_words = { { 5 } }, stop = { 5, { 5 } },
        response_format = { { type = "json_object" } }, prompt_embeds = { "QUJD" },
      } do
        for _, value in ipairs(values) do
          local r = s:post(COMPLETION, completion { [field] = value })
          error_of(400, r)
        end
      end
      refused(COMPLETION, completion { n = 2 }, "n must be 1 when using greedy", "n")
      refused(COMPLETION, completion { n = 20000, temperature = 1 }, "at most 16384", "n")
      refused(COMPLETION, completion { n = 9000, temperature = 1 }, "9000 choices", "n")
      refused(COMPLETION, completion { priority = 3 },
        "Priority scheduling is not enabled", "priority")
      assert.equal(200, s:post(COMPLETION, completion { priority = 0 }).status)
    end)
  end)

  it("takes its model's name, and no other", function()
    assert.equal(200, s:post(COMPLETION, completion { model = "llama" }).status)
    local e = error_of(404, s:post(COMPLETION, completion { model = "other" }))
    assert.equal("The model `other` does not exist. Served here: `llama`.", e.message)
    assert.equal("NotFoundError", e.type)
    assert.equal("model", e.param)
    error_of(404, s:post("/tokenize", { model = "other", prompt = "x" }))
  end)

  it("is named by the client, if it likes", function()
    assert.equal("cmpl-mine", complete { request_id = "mine" }.id)
    local r = s:post(COMPLETION, completion(), { ["X-Request-Id"] = "header" })
    assert.equal("cmpl-header", r.json.id)
    assert.is_nil(r.headers["x-request-id"])
  end)

  it("keeps salted prompts apart", function()
    local long = { prompt = ("salt and water "):rep(20), max_tokens = 2 }
    local function hits(more)
      local before = s:metric "vllm:prefix_cache_hits_total"
      complete(with(long, more))
      return s:metric "vllm:prefix_cache_hits_total" - before
    end
    assert.equal(0, hits { cache_salt = "a" })
    assert.is_true(hits { cache_salt = "a" } > 0)
    assert.equal(0, hits { cache_salt = "b" })
    assert.equal(0, hits {})
  end)

  it("answers the same alone, in a crowd and over a warm cache", function()
    local bodies, alone = {}, {}
    for i = 1, 16 do
      bodies[i] = completion { prompt = ("word " .. i .. " "):rep(10 + i * 3),
        max_tokens = 12, temperature = i % 2, seed = i, logprobs = 2, cache_salt = "first" }
      alone[i] = complete(bodies[i]).choices[1]
    end
    for round = 1, 3 do
      for i = 1, 16 do bodies[i].cache_salt = round == 1 and "fresh" or "first" end
      for i, r in ipairs(s:post_all(COMPLETION, bodies)) do
        assert.same(alone[i], r.json.choices[1])
      end
    end
  end)

  it("leaves nothing behind when clients leave", function()
    for _, more in ipairs { { stream = true }, {} } do
      local gone = s:begin("POST", COMPLETION, completion(with(more, { max_tokens = 480 })))
      process.wait_for(5, function()
        return s:metric "vllm:num_requests_running" > 0
      end)
      gone.connection:close()
      assert.is_true(s:idle())
    end
  end)
end)

describe("metrics", function()
  it("count what was asked and answered", function()
    local s = serving.start { "--max-model-len", "2048" }
    local prompt, out, choices = 0, 0, 0
    for i = 1, 12 do
      local r = s:post(i % 2 == 0 and COMPLETION or CHAT,
        { prompt = TEXT, messages = MESSAGES, max_tokens = i, n = i % 3 + 1,
          ignore_eos = true }).json
      prompt, out = prompt + r.usage.prompt_tokens * (i % 3 + 1),
        out + r.usage.completion_tokens
      choices = choices + #r.choices
    end
    s:post(COMPLETION, completion { stop = { "e", "a", "\239\191\189" }, max_tokens = 100 })
    s:post(COMPLETION, { prompt = "" })
    local gone = s:begin("POST", COMPLETION, completion { max_tokens = 1900, stream = true,
      ignore_eos = true })
    assert.is_truthy(gone.connection:receive())       -- it runs
    gone.connection:close()
    assert.is_true(s:idle())
    local text = s:get("/metrics").text
    assert.equal("text/plain; version=0.0.4; charset=utf-8",
      s:get("/metrics").headers["content-type"])
    local function count(series)
      return tonumber(text:match("\n" .. series:gsub("[%-{}\"]", "%%%0") .. " (%S+)\n"))
    end
    assert.equal(1, count "dynamo_frontend_disconnected_clients")
    local labels, of_engine = 'model_name="llama"', 'model_name="llama",engine="0"'
    assert.equal(choices, count(('vllm:request_success_total{%s,finished_reason="length"}')
      :format(labels)))
    assert.equal(1, count(('vllm:request_success_total{%s,finished_reason="stop"}')
      :format(labels)))
    assert.equal(1, count(('vllm:request_success_total{%s,finished_reason="abort"}')
      :format(labels)))
    assert.equal(14, count(("vllm:request_params_n_count{%s}"):format(labels)))
    assert.equal(14, count(("vllm:request_prompt_tokens_count{%s}"):format(labels)))
    assert.equal(14, count(("vllm:request_params_max_tokens_count{%s}"):format(labels)))
    local asked = 12 * 13 / 2 + 100 + 1900
    assert.equal(asked, count(("vllm:request_params_max_tokens_sum{%s}"):format(labels)))
    assert.equal(choices + 2, count(("vllm:e2e_request_latency_seconds_count{%s}")
      :format(labels)))
    assert.is_true(count(("vllm:prompt_tokens_total{%s}"):format(of_engine)) >= prompt)
    assert.is_true(count(("vllm:generation_tokens_total{%s}"):format(of_engine)) > out)
    assert.equal(14,
      count(("vllm:request_max_num_generation_tokens_count{%s}"):format(labels)))
    assert.equal(count(("perilune_engine_steps_total{%s}"):format(of_engine)),
      count(("vllm:iteration_tokens_total_count{%s}"):format(of_engine)))
    assert.is_true(count(("vllm:inter_token_latency_seconds_count{%s}"):format(labels))
      >= out - choices)
    assert.is_truthy(text:match 'vllm:cache_config_info{[^}]*block_size="16"[^}]*} 1%.0\n')
    for _, name in ipairs { "num_requests_running", "num_requests_waiting",
        "kv_cache_usage_perc" } do
      assert.equal(0, count(("vllm:%s{%s}"):format(name, of_engine)))
    end
    -- Every series is named before it comes, histograms are cumulative.
    for name in text:gmatch "# TYPE (%S+) histogram" do
      local last = 0
      for v in text:gmatch(name .. "_bucket%b{} (%S+)\n") do
        assert.is_true(tonumber(v) >= last, name)
        last = tonumber(v)
      end
      assert.equal(last, tonumber(text:match("\n" .. name .. "_count[^ ]* (%S+)\n")))
    end
    s:stop()
  end)
end)

describe("flags", function()
  local s
  after_each(function()
    if s then s:stop() end
    s = nil
  end)

  it("name the model", function()
    s = serving.start { "--served-model-name", "one", "two" }
    local data = s:get("/v1/models").json.data
    assert.equal("one", data[1].id)
    assert.equal("two", data[2].id)
    assert.equal("one", s:post(COMPLETION, completion()).json.model)
    assert.equal("one", s:post(COMPLETION, completion { model = "two" }).json.model)
    error_of(404, s:post(COMPLETION, completion { model = "llama" }))
  end)

  it("ask for a key, and for it alone", function()
    s = serving.start { "--api-key", "sesame", "other" }
    for _, value in ipairs { false, "Bearer wrong", "Bearer sesam", "Bearer sesamee",
        "sesame", "Bearer ", "Basic sesame" } do
      local r = s:post(COMPLETION, completion(), { Authorization = value })
      assert.equal(401, r.status)
      assert.same({ error = "Unauthorized" }, r.json)
      assert.equal("Bearer", r.headers["www-authenticate"])
    end
    assert.equal(401, s:get("/%761/models").status)    -- by no other spelling
    assert.equal(401, s:get("/v1%2Fmodels").status)
    for _, value in ipairs { "Bearer sesame", "bearer other" } do
      assert.equal(200, s:get("/v1/models", { Authorization = value }).status)
    end
    assert.equal(200, s:get("/health").status)
    assert.equal(200, s:get("/metrics").status)
    assert.is_nil(s.process:log():find("sesame", 1, true))
  end)

  it("let developers reset the cache", function()
    s = serving.start { "--enable-dev-endpoints" }
    local function hits()
      local before = s:metric "vllm:prefix_cache_hits_total"
      s:post(COMPLETION, completion { prompt = ("a b "):rep(30) })
      return s:metric "vllm:prefix_cache_hits_total" - before
    end
    hits()
    assert.is_true(hits() > 0)
    assert.equal(200, s:post("/reset_prefix_cache").status)
    assert.equal(0, hits())
    error_of(405, s:get "/reset_prefix_cache")
  end)

  it("schedule by priority", function()
    s = serving.start { "--scheduling-policy", "priority" }
    assert.equal(200, s:post(COMPLETION, completion { priority = -5 }).status)
  end)

  it("choose the template, and trust those of requests", function()
    local dir = scratch.folder()
    finally(dir.remove)
    local file = dir.write("t.jinja", "{{ messages[0].content }}|{{ 'a' if tools else 'b' }}")
    s = serving.start { "--chat-template", file, "--trust-request-chat-template" }
    local function prompt(more)
      local r = s:post("/tokenize", with({ messages = MESSAGES }, more)).json
      return s:post("/detokenize", { tokens = r.tokens }).json.prompt
    end
    assert.equal("hi|b", prompt())
    assert.equal("<hi>", prompt { chat_template = "<{{ messages[0].content }}>" })
    local e = error_of(400, s:post(CHAT, chat { chat_template = "{% if %}" }))
    assert.matches("template", e.message)
    s:stop()
    s = serving.start { "--chat-template", "{{ messages | length }}" }
    assert.equal("1", prompt())
  end)

  it("shape answers", function()
    s = serving.start { "--enable-request-id-headers", "--enable-prompt-tokens-details",
      "--enable-force-include-usage", "--response-role", "oracle",
      "--return-tokens-as-token-ids", "--allowed-origins", "https://a.example",
      "--allow-credentials" }
    local r = s:post(CHAT, chat { logprobs = true }, { ["X-Request-Id"] = "mine" })
    assert.equal("mine", r.headers["x-request-id"])
    assert.equal("oracle", r.json.choices[1].message.role)
    assert.matches("^token_id:%d+$", r.json.choices[1].logprobs.content[1].token)
    r = s:post(CHAT, chat()).json
    assert.is_true(r.usage.prompt_tokens_details.cached_tokens > 0)
    local events = s:post(COMPLETION, completion { stream = true }):events()
    assert.equal(8, events[#events].usage.completion_tokens)
    r = s:get("/health", { Origin = "https://a.example" })
    assert.equal("https://a.example", r.headers["access-control-allow-origin"])
    assert.equal("true", r.headers["access-control-allow-credentials"])
    assert.is_nil(s:get("/health", { Origin = "https://b.example" })
      .headers["access-control-allow-origin"])
    assert.equal(400, s:request("OPTIONS", COMPLETION, nil, { Origin = "https://b.example",
      ["Access-Control-Request-Method"] = "POST" }).status)
  end)

  it("hold back tokens of a stream", function()
    s = serving.start { "--stream-interval", "4" }
    local events = s:post(COMPLETION, completion { stream = true, max_tokens = 16 }):events()
    assert.is_true(#events <= 5)
  end)
end)
