-- SPDX-License-Identifier: Apache-2.0
-- A frontend and workers as processes on a bus, as docs/operate.md tells of them: what
-- clients get and what the log says when a worker is lost, drained, or a stranger.
local console = require "support.console"
local deployment = require "support.deployment"
local process = require "support.process"
local scratch = require "scratch"

local COMPLETION = "/v1/completions"
-- Of the null device, a step each 10 ms: a request of 1900 tokens outlasts what is done to it.
local FLAGS = { "--device", "null", "--num-gpu-blocks-override", "512" }

local function body(tokens, stream)
  return { model = "llama", prompt = "x", max_tokens = tokens, ignore_eos = true,
    temperature = 0, stream = stream or nil }
end

local function has(text, wanted)
  assert.is_truthy(text:find(wanted, 1, true), ("no '%s' in:\n%s"):format(wanted, text))
end

describe("a deployment", function()
  local dir, env, f
  setup(function() dir, env = console.folder() end)
  teardown(function() dir.remove() end)
  after_each(function()
    if f then f:remove() end
    f = nil
  end)

  local function start(options)
    local flags = { unpack(FLAGS) }
    for _, flag in ipairs(options.worker or {}) do flags[#flags + 1] = flag end
    f = deployment.start { workers = options.workers, frontend = options.frontend,
      worker = flags, env = { PERILUNE_NULL_STEP_US = "10000",
        XDG_RUNTIME_DIR = env.XDG_RUNTIME_DIR } }
    return f.frontends[1]
  end

  -- `home`: a folder of sockets, if not the deployment's own.
  local function perilune(words, home)
    return scratch.sh(("export XDG_RUNTIME_DIR='%s'; %s %s --bus %s"):format(
      home or env.XDG_RUNTIME_DIR, scratch.program, words, f.bus))
  end

  local function runs(member, n)
    assert.is_true(process.wait_for(30, function()
      return member:metric "vllm:num_requests_running" == n
    end))
  end

  it("tells the worker's log whose request was given up, and its trace", function()
    local front = start { workers = 1 }
    local trace = ("4bf92f3577b34da6"):rep(2)
    local stream = front:begin("POST", COMPLETION, body(1900, true),
      { ["X-Request-Id"] = "left", traceparent = ("00-%s-00f067aa0ba902b7-01"):format(trace) })
    runs(f.workers[1], 1)
    stream.connection:close()
    runs(f.workers[1], 0)
    local line = f.workers[1]:await "(Aborted Request ID: [^\n]*)"
    assert.equal(("Aborted Request ID: left [request_id=left trace_id=%s]"):format(trace), line)
  end)

  it("ends with an error what nobody may go on with", function()
    local front = start { workers = 1 }
    local whole = front:begin("POST", COMPLETION, body(1900), { ["X-Request-Id"] = "w" })
    local stream = front:begin("POST", COMPLETION, body(1900, true))
    runs(f.workers[1], 2)
    f.workers[1]:signal "KILL"
    assert.equal(503, whole:finish().status)
    local events = stream:finish():events()
    assert.equal(503, events[#events].error.code)
    assert.is_true(process.wait_for(30, function()
      return front:get("/health").status == 503
    end))
    local log = front.process:log()
    has(log, "Cannot recreate stream: Worker worker/0 was lost (gone); "
      .. "migration limit exhausted [request_id=w]")
    assert.is_nil(log:find("Aborted Request ID", 1, true))
    assert.equal(0, front:metric "dynamo_frontend_model_cancellation_total")
  end)

  it("is seen and drained by name, from anywhere on the bus", function()
    local front = start { workers = 2, worker = { "--drain-timeout", "0" } }
    local away = dir.path .. "/away"
    local code, out = perilune("ps", away)
    assert.equal(0, code)
    assert.matches("\nfrontend/0 +frontend +llama +0%+0 0%% +ok ", out)
    assert.matches("\nworker/1 +worker +llama +0%+0 0%% +ok ", out)
    local begun = {}
    for i = 1, 2 do begun[i] = front:begin("POST", COMPLETION, body(300)) end
    for _, w in ipairs(f.workers) do runs(w, 1) end
    assert.same({ 0, "draining worker/1\n", "" }, { perilune("drain worker/1", away) })
    for _, answer in ipairs(begun) do
      assert.equal("length", answer:finish().json.choices[1].finish_reason)
    end
    has(front.process:log(), "Stream disconnected (worker/1: recalled)... recreating stream...")
    assert.matches("\nworker/1 .* leaving ", (select(2, perilune("ps", away))))
    assert.equal(1, (perilune("drain worker/1", away)))
    assert.equal(0, (perilune("resume worker/1", away)))
    assert.same({ 1, "", "perilune: no process 'worker/7' on the bus\n" },
      { perilune("drain worker/7", away) })
    f:close()
    f = nil
  end)

  it("has a frontend that takes nobody new while it is drained", function()
    local front = start { workers = 1 }
    local running = front:begin("POST", COMPLETION, body(300))
    runs(f.workers[1], 1)
    assert.equal(0, (perilune "drain frontend/0"))
    assert.equal("draining", front:get("/health").json.status)
    local refused = front:post(COMPLETION, body(3))
    assert.equal(503, refused.status)
    assert.equal("1", refused.headers["retry-after"])
    assert.equal("1", front:get("/health").headers["retry-after"])
    assert.equal("The server is draining.", refused.json.error.message)
    assert.equal("length", running:finish().json.choices[1].finish_reason)
    assert.equal(0, (perilune "resume frontend/0"))
    assert.equal(200, front:post(COMPLETION, body(3)).status)
  end)

  it("ends a request by its time, and by its id", function()
    local front = start { workers = 1 }
    local late = front:post(COMPLETION, body(1900), { ["X-Request-Timeout"] = "0.2",
      ["X-Request-Id"] = "late" })
    assert.equal(504, late.status)
    assert.equal("GatewayTimeoutError", late.json.error.type)
    for _, id in ipairs { "mine", "cmpl-mine" } do
      local begun = front:begin("POST", COMPLETION, body(1900), { ["X-Request-Id"] = "mine" })
      runs(f.workers[1], 1)
      assert.equal(200, front:post("/v1/cancel/" .. id, "").status)
      assert.equal("abort", begun:finish().json.choices[1].finish_reason)
      assert.equal(404, front:post("/v1/cancel/" .. id, "").status)
    end
    runs(f.workers[1], 0)
    has(front.process:log(), "Aborted Request ID: late (The request has taken too long.)")
    has(front.process:log(), "Aborted Request ID: mine (cancelled)")
  end)

  it("serves a model whose path the frontend spells in its own way", function()
    start { workers = 1, worker = { "--served-model-name", "tiny" } }
    local here = select(2, scratch.sh "pwd"):gsub("%s+$", "")
    for _, path in ipairs { here .. "/tests/golden/llama/", "./tests/golden/llama",
        "/nowhere/llama", "tiny" } do
      f.frontend = { "--model", path }
      local front = f:add_frontend()
      front:await "(serving tiny at )"
      assert.equal(200, front:post(COMPLETION, { model = "tiny", prompt = "x" }).status)
      front:signal "TERM"
      front:ended()
      f:forget(front)
    end
    f.frontend = { "--model", "other" }
    local front = f:add_frontend()
    front:await "(waiting for a worker of model 'other' in namespace 'perilune' at )"
    front:await "(worker/0 is not taken: its model is 'tests/golden/llama', wanted 'other')"
    assert.equal(503, front:get "/health".status)
    assert.is_nil(front.process:log():find "serving ")
  end)

  it("tells both sides of a worker in another namespace, whoever came first", function()
    start { workers = 1 }
    local first, flags = f.workers[1], f.worker
    f.worker = { "--namespace", "else", unpack(flags) }
    local other = f:add_worker()
    f.worker = flags
    local late = f:add_worker()
    for _, member in ipairs { f.frontends[1], first, late } do
      member:await "(namespace 'else' on this bus; this one is in 'perilune')"
    end
    other:await "(namespace 'perilune' on this bus; this one is in 'else')"
    for _, member in ipairs(f.all) do
      local _, n = member.process:log():gsub("there are processes in namespace", "")
      assert.equal(1, n)
    end
    f:ready(2)
  end)

  it("does not take a worker of another kind, and says why", function()
    local front = start { workers = 1 }
    f.worker = { "--device", "null", "--num-gpu-blocks-override", "512", "--block-size", "32" }
    f:add_worker()
    front:await "(worker/1 is not taken: its block_size is 32, that of worker/0 is 16)\n"
    assert.equal(1, #front:get("/health").json.instances)
  end)
end)
