-- SPDX-License-Identifier: Apache-2.0
-- Which worker does what, where a process has several or changes what it does: it is seen
-- everywhere, and a worker that is lost counts by what it did for a request.
local cjson = require "cjson"
local console = require "support.console"
local deployment = require "support.deployment"
local process = require "support.process"
local scratch = require "scratch"

local COMPLETION = "/v1/completions"
local SMALL = { "--max-model-len", "1024", "--kv-cache-memory-bytes", "64M", "--threads", "1" }
-- Reads a block in 0.2 s, one request at a time.
local SLOW = { "--device", "null", "--num-gpu-blocks-override", "512", "--prefill.max-num-seqs", "1",
  "--prefill.max-num-batched-tokens", "16", "--decode.max-num-batched-tokens", "512" }
local POOLS = "prefill = {}, decode = {},"

local function body(n, max_tokens)
  local prompt = {}
  for i = 1, n do prompt[i] = 3 + i * 7 % 500 end
  return { prompt = prompt, ignore_eos = true, return_token_ids = true, temperature = 0,
    max_tokens = max_tokens }
end

describe("workers of two pools", function()
  local f, dir, env

  setup(function() dir, env = console.folder() end)
  teardown(function() dir.remove() end)
  after_each(function()
    if f then f:remove() end
    f = nil
  end)

  -- Its first frontend, if it begins with one.
  local function start(o)
    o.env = o.env or {}
    o.env.XDG_RUNTIME_DIR = env.XDG_RUNTIME_DIR
    f = deployment.start(o)
    return f.frontends[1]
  end

  local function close()
    f:close()
    f = nil
  end

  local function perilune(command)
    local code, out, err = scratch.sh(("export XDG_RUNTIME_DIR='%s'; %s %s --bus %s"):format(
      env.XDG_RUNTIME_DIR, scratch.program, command, f.bus))
    assert.equal(0, code, out .. err)
    return out
  end

  local function begin(front, b)
    return front:begin("POST", COMPLETION, cjson.encode(b),
      { ["Content-Type"] = "application/json" })
  end

  local function tokens(front, n)
    return front:post(COMPLETION, body(n, 24)).json.choices[1].token_ids
  end

  -- The names of those that do what a component of Dynamo's does, sorted.
  local function doing(front, component)
    local names = {}
    for _, it in ipairs(front:get "/health".json.instances) do
      if it.component == component then names[#names + 1] = it.instance_id end
    end
    table.sort(names)
    return names
  end

  local function comes(front, component, names)
    local found
    assert(process.wait_for(20, function()
      found = doing(front, component)
      return table.concat(found, " ") == names
    end), ("%s: %s"):format(component, table.concat(found, " ")))
  end

  it("may be in one process, and change one by one", function()
    start { workers = 0, frontends = 0, worker = SMALL,
      pools = "prefill = {}, decode = { count = 2 },", fields = "allow_remote_console = true," }
    local front = f:add_frontend()
    f:add_worker { role = "prefill decode" }
    f:ready(3)
    assert.same({ "worker/0.2" }, doing(front, "prefill"))
    assert.same({ "worker/0.0", "worker/0.1" }, doing(front, "backend"))
    local want = tokens(front, 100)
    assert.is_true(f.workers[1]:metric "perilune_kv_transfer_bytes_total" > 0)
    assert.matches("\nworker/0 +worker ", perilune "ps")

    assert.equal("worker/0.1 reads prompts\n", perilune "role worker/0.1 prefill")
    comes(front, "prefill", "worker/0.1 worker/0.2")
    local counted = {}
    for pool, n in front:get "/metrics".text:gmatch '\nperilune_workers{[^}]*pool="(%l+)"} (%d+)' do
      counted[pool] = n
    end
    assert.same({ decode = "1", prefill = "2" }, counted)
    assert.same(want, tokens(front, 100))
    assert.equal("worker/0.2 is asked; soon it answers\n",
      perilune [[attach frontend/0 -e 'role("worker/0.2", "decode")']])
    comes(front, "prefill", "worker/0.1")
    assert.same(want, tokens(front, 100))

    perilune "role worker/0 decode"
    comes(front, "backend", "worker/0.0 worker/0.1 worker/0.2")
    assert.matches("\nworker/0 +decode ", perilune "ps")
    assert.same(want, tokens(front, 100))
    close()
  end)

  it("are as many as the hook wants, though a process has several", function()
    start { workers = 0, frontends = 0, worker = SMALL,
      pools = "worker = { count = 3 },", fields = "roles = function() return 1 end" }
    local front = f:add_frontend()
    f:add_worker()
    comes(front, "prefill", "worker/0.0")
    local function changes()
      return select(2, f.workers[1].process:log():gsub("role of worker", ""))
    end
    process.wait_for(7, function() return changes() > 1 end)   -- it is asked once more
    assert.equal(1, changes())
    close()
  end)

  it("serve nobody where all read prompts", function()
    start { workers = 0, frontends = 0, worker = SMALL, pools = POOLS }
    local front = f:add_frontend()
    f:add_worker { role = "prefill" }
    comes(front, "prefill", "prefill/0")
    local health = front:get "/health"
    assert.same({ 503, "no worker takes requests now" }, { health.status, health.json.message })
    f:add_worker { role = "decode" }
    f:ready(2)
    close()
  end)

  it("say so where they round differently", function()
    start { workers = 0, frontends = 0, worker = SMALL, pools = POOLS }
    local front = f:add_frontend()
    f:add_worker { role = "prefill" }
    front:await "prefill/0 is here"
    f.worker = { "--decode.activations", "int8", "--prefill.activations", "int8", unpack(SMALL) }
    f:add_worker { role = "decode" }
    f:ready(2)
    assert.matches("decode/0 rounds differently from prefill/0: its numerics are ",
      front.process:log())
    assert.equal(24, #tokens(front, 100))
    assert.equal(0, f.workers[2]:metric "perilune_kv_transfer_bytes_total")
    close()
  end)

  it("that were to read a prompt may be lost, whatever they do by then", function()
    local front = start { workers = { "prefill", "decode" }, worker = SLOW, pools = POOLS,
      env = { PERILUNE_NULL_STEP_US = "200000" }, frontend = { "--migration-limit", "0" } }
    local open = {}
    for i = 1, 3 do open[i] = begin(front, body(800 + i, 2)) end
    local reader = f.workers[1]
    assert(process.wait_for(20, function()
      return reader:metric "vllm:num_requests_waiting" > 0
    end))
    perilune "role prefill/0 decode"
    comes(front, "backend", "decode/0 prefill/0")
    reader:signal "KILL"
    for i in ipairs(open) do
      local r = open[i]:finish()
      assert.equal(200, r.status, r.text)
    end
    f:forget(reader)
    reader.process:remove()
    close()
  end)

  it("that answer and are lost count, though they read prompts by then", function()
    local front = start { workers = { "decode", "decode" }, worker = SLOW, pools = POOLS,
      env = { PERILUNE_NULL_STEP_US = "50000" }, frontend = { "--migration-limit", "0" } }
    local open = begin(front, body(20, 400))
    local busy
    assert(process.wait_for(20, function()
      for i, w in ipairs(f.workers) do
        if w:metric "vllm:num_requests_running" > 0 then busy = i end
      end
      return busy
    end))
    local victim = f.workers[busy]
    local name = victim.process:log():match "called (decode/%d)"
    perilune(("role %s prefill"):format(name))
    comes(front, "prefill", name)
    victim:signal "KILL"
    local r = open:finish()
    assert.equal(503, r.status, r.text)
    f:forget(victim)
    victim.process:remove()
    close()
  end)
end)
