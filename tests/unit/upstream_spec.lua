-- SPDX-License-Identifier: Apache-2.0
-- What another server is sent: api/passed_on.lua, fleet/upstream.lua; its address.
local cjson = require "cjson.safe"
local passed_on = require "perilune.api.passed_on"
local json = require "perilune.json"
local pl = require "perilune.ffi"
local tokenizer = require "perilune.model.tokenizer"
local upstream = require "perilune.fleet.upstream"
local urls = require "perilune.recipe.url"
local C, ffi = pl.C, pl.ffi

describe("a server's address", function()
  it("is a URL of http or https", function()
    assert.same({ host = "gpu1", port = 8000, tls = false, authority = "gpu1:8000",
      prefix = "" }, urls.parse "http://gpu1:8000")
    assert.same({ host = "::1", port = 80, tls = false, authority = "[::1]", prefix = "" },
      urls.parse "http://[::1]/")
    assert.same({ host = "h.x", port = 443, tls = true, authority = "h.x", prefix = "/p" },
      urls.parse "https://h.x/p/v1/")
  end)

  it("is refused if it is none", function()
    for _, url in ipairs { "gpu1:8000", "http://", "http://a b", "http://h:0", "http://h:65536",
        "http://u@h", "http://h/\r\nX: y", "http://h/?q", "ftp://h", "http://" .. ("x"):rep(300) } do
      local ok, why = urls.parse(url)
      assert.is_nil(ok, url)
      assert.truthy(why:find("'" .. url:sub(1, 4), 1, true), why)
    end
  end)
end)

describe("the body for another server", function()
  local tok = assert(tokenizer.from_directory "tests/golden/llama")
  local ctx = { text = tok.text, vocab = 2 ^ 20, max_model_len = 512, max_n = 16,
    prefix_ids = tok.prefix_ids or {}, suffix_ids = tok.suffix_ids or {},
    special_tokens = tok.special_tokens, chat_templates = tok.chat_templates }
  local vllm, other = { model = 'their "name"', takes_ids = true }, { model = "m" }
  local opened = {}

  local function plan(kind, body)
    local text = type(body) == "string" and body or cjson.encode(body)
    local doc = C.pl_json_open(text, #text)
    local req = json.members(doc, { prompt = true }, {})
    local p = passed_on.plan(ctx, kind, req, C.pl_json_find(doc, "prompt"))
    C.pl_json_close(doc)
    for _, seq in ipairs(p.prompts[1].seqs) do
      if seq then opened[#opened + 1] = seq end
    end
    return p
  end
  local function sent(w, p, text, n)
    return assert(cjson.decode(upstream.body(w, ctx, p, text, n)))
  end
  after_each(function()
    for _, seq in ipairs(opened) do
      C.pl_seq_close(ffi.cast("pl_seq *", ffi.cast("uintptr_t", seq)))
    end
    opened = {}
  end)

  it("has ids for who takes them, and else the prompt as it came", function()
    local p = plan("completion", { prompt = "hello", model = "ours" })
    local ids = sent(vllm, p).prompt
    assert.equal(p.prompts[1].n_tokens, #ids)
    assert.equal('their "name"', sent(vllm, p).model)
    assert.equal("hello", sent(other, p).prompt)
    assert.equal(16, sent(other, p).max_tokens)
  end)

  it("goes on with text, and fewer tokens", function()
    local p = plan("completion", { prompt = "hello", max_tokens = 10 })
    local ids, more = sent(vllm, p).prompt, sent(vllm, p, [[ w\u00f6rld\n]], 4)
    assert.truthy(#more.prompt > #ids)
    assert.equal(6, more.max_tokens)
    assert.equal("hello w\195\182rld\n", sent(other, p, [[ w\u00f6rld\n]], 4).prompt)
    assert.equal(1, sent(other, p, "x", 10).max_tokens)
    p = plan("chat", { messages = { { role = "user", content = "hi" } },
      add_generation_prompt = true, max_completion_tokens = 5 })
    local body = sent(vllm, p, "so\\n", 2)
    assert.same({ { role = "user", content = "hi" }, { role = "assistant", content = "so\n" } },
      body.messages)
    assert.is_true(body.continue_final_message)
    assert.is_false(body.add_generation_prompt)
    assert.equal(3, body.max_completion_tokens)
    assert.is_nil(sent(vllm, p).continue_final_message)
  end)

  it("keeps numbers and order as they came", function()
    local p = plan("completion", '{"prompt":"x","seed":12345678901234567890,"top_p":1.0,'
      .. '"a":{"z":[],"y":{}},"temperature":0.1}')
    local body = upstream.body(other, ctx, p)
    assert.truthy(body:find('"seed":12345678901234567890,"top_p":1.0,"a":{"z":[],"y":{}},'
      .. '"temperature":0.1', 1, true), body)
  end)

  it("asks for usage in a stream, and leaves other options of it", function()
    local p = plan("chat", { stream = true, stream_options = { continuous_usage_stats = true },
      messages = {} })
    assert.same({ include_usage = true, continuous_usage_stats = true },
      sent(vllm, p).stream_options)
    assert.is_false(p.include_usage)
    p = plan("chat", { stream = true, stream_options = { include_usage = true } })
    assert.is_true(p.include_usage)
  end)

  it("is made also of what is wrong, for that server to say so", function()
    for _, body in ipairs { { messages = "x" }, { max_tokens = "many", messages = {} }, {},
        { messages = { { role = 1 } }, stream_options = 5 } } do
      local p = plan("chat", body)
      assert.is_false(p.prompts[1].seqs[1])
      local got = sent(vllm, p)
      for key, value in pairs(body) do assert.same(value, got[key]) end
    end
    assert.is_nil(sent(vllm, plan("completion", {})).prompt)
    assert.same({ -1 }, sent(vllm, plan("completion", { prompt = { -1 } })).prompt)
    assert.same({ { "x" } }, sent(vllm, plan("completion", { prompt = { { "x" } } })).prompt)
  end)

  it("names the prompt's blocks by its salt", function()
    local p = plan("completion", { prompt = "hello", cache_salt = "s" })
    assert.equal("number", type(p.prompts[1].seqs[1]))
    assert.equal("s", sent(vllm, p).cache_salt)
  end)
end)
