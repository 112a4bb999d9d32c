-- SPDX-License-Identifier: Apache-2.0
-- A pool whose workers are other perilunes, which publish KV events as vLLM does: a
-- request goes to whom says that it has the prompt, and outlives its server.
local process = require "support.process"
local serving = require "support.serving"
local upstream = require "support.upstream"

local function engine(events, flags)
  local words = { "--max-model-len", "2048", "--kv-events-config",
    ('{"enable_kv_cache_events":true,"endpoint":"ipc://%s"}'):format(events) }
  for _, word in ipairs(flags or {}) do words[#words + 1] = word end
  return serving.start(words)
end

describe("a pool of other perilunes", function()
  local a, b, front
  local sockets = { os.tmpname(), os.tmpname() }

  setup(function()
    a, b = engine(sockets[1]), engine(sockets[2])
    front = upstream.front({ a, b }, { "--prefix-caching-hash-algo", "sha256_cbor",
      "--kv-events", "ipc://" .. sockets[1], "ipc://" .. sockets[2],
      "--served-model-name", "the-model", "--max-model-len", "2048" })
    assert(process.wait_for(15, function()
      return front:metric "perilune_upstream_up" == 2
    end))
  end)
  teardown(function()
    front:stop()
    for _, s in ipairs { a, b } do s.process:remove() end
    for _, path in ipairs(sockets) do os.remove(path) end
  end)

  -- What the newest decision knew: blocks of the prompt by worker; who was chosen.
  local function decision()
    local d = front:get("/v1/decisions").json.data[1]
    local cached = {}
    for _, w in ipairs(d.workers) do cached[w.name] = w.cached end
    return cached, d.chosen or d.worker
  end

  it("is asked for by its own name, not by theirs", function()
    local r = front:post("/v1/completions", { model = "the-model", prompt = "x",
      max_tokens = 2, temperature = 0 })
    assert.equal(200, r.status, r.text)
    assert.equal(404, front:post("/v1/completions", { model = "llama", prompt = "x" }).status)
  end)

  it("answers as they do", function()
    for _, path in ipairs { "/v1/completions", "/v1/chat/completions" } do
      local body = { prompt = path:find "chat" == nil and "Once upon a time" or nil,
        messages = path:find "chat" and { { role = "user", content = "Hi" } } or nil,
        max_tokens = 12, temperature = 0, logprobs = path:find "chat" == nil and 2 or nil }
      local here, there = front:post(path, body).json, a:post(path, body).json
      here.id, here.created, there.id, there.created = nil, nil, nil, nil
      assert.same(there, here)
    end
  end)

  it("tells what it has cached, also what came by another way", function()
    local prompt = ("a prompt that only one of them has read "):rep(12)
    local body = { prompt = prompt, max_tokens = 2, temperature = 0 }
    b:post("/v1/completions", body)
    local name, cached, chosen = "127.0.0.1:" .. b.port, nil, nil
    assert.truthy(process.wait_for(10, function()
      local r = front:post("/v1/completions", body)
      assert.equal(200, r.status, r.text)
      cached, chosen = decision()
      return cached[name] > 0
    end))
    assert.truthy(cached[name] > 10)
    assert.equal(name, chosen)
  end)

  it("loses no stream when one of them is killed", function()
    local begun, n_tokens = {}, 1200        -- too many to be over before it is killed
    for i = 1, 8 do
      begun[i] = front:begin("POST", "/v1/completions", { prompt = "tell me " .. i,
        max_tokens = n_tokens, temperature = 0, ignore_eos = true, stream = true,
        stream_options = { include_usage = true } })
    end
    for _, c in ipairs(begun) do       -- all have begun
      assert(c.response:feed(assert(c.connection:receive(20000))))
    end
    -- One that has some of them: all may have gone to the other.
    local busy = a:metric "vllm:num_requests_running" > 0 and a or b
    busy.process:signal "KILL"
    for _, c in ipairs(begun) do
      local events = c:finish():events()
      local last, usage = events[#events - 1], events[#events].usage
      assert.equal("length", last.choices[1].finish_reason)
      assert.equal(n_tokens, usage.completion_tokens)
      assert.truthy(usage.prompt_tokens < 20, c.text:sub(-300))
    end
    assert.truthy(front:metric "perilune_moves_to_other_numerics_total" >= 1)
  end)
end)

describe("KV events that match nothing", function()
  local a, front
  local path = os.tmpname()

  setup(function() a = engine(path) end)
  teardown(function()
    a:stop()
    os.remove(path)
  end)
  after_each(function() front:stop() end)

  -- What is said after a prompt of several blocks was answered.
  local function said(events, env)
    front = upstream.front({ a }, { "--prefix-caching-hash-algo", "sha256_cbor",
      "--kv-events", events, "--max-model-len", "2048" }, env)
    for i = 1, 5 do
      local r = front:post("/v1/completions", { prompt = ("a long prompt "):rep(20)
        .. ("%s and %d and more and more and more"):format(events .. (env and 1 or 0), i),
        max_tokens = 2 })
      assert.equal(200, r.status, r.text)
    end
    local log
    process.wait_for(3, function()
      log = front.process:log()
      return log:find "WARN"
    end)
    return log
  end

  it("are told of: named in another way, or not there at all", function()
    assert.truthy(said("ipc://" .. path, { PYTHONHASHSEED = "5" }):find(
      "its KV events have none of the prompts that it has just read", 1, true))
    front:stop()
    assert.truthy(said("ipc://" .. path .. ".none"):find(
      "no KV events have come from ipc://" .. path .. ".none", 1, true))
    front:stop()
    assert.is_nil(said("ipc://" .. path):find "WARN")
  end)
end)
