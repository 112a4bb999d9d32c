-- SPDX-License-Identifier: Apache-2.0
-- Two pools in several processes: what one worker would have answered, whoever comes and
-- goes, and a process that does not fit is refused by name.
local cjson = require "cjson"
local console = require "support.console"
local deployment = require "support.deployment"
local process = require "support.process"
local scratch = require "scratch"
local serving = require "support.serving"

local COMPLETION = "/v1/completions"
local WORKER = { "--max-model-len", "1024", "--kv-cache-memory-bytes", "64M", "--threads", "1" }
local POOLS = "prefill = {}, decode = {},"

local function words(n, seed)
  local out, x = {}, seed
  for i = 1, n do
    x = (x * 1103515245 + 12345) % 2 ^ 31
    out[i] = 3 + x % 500
  end
  return out
end

local function body(n, seed, max_tokens)
  return { prompt = words(n, seed), ignore_eos = true, return_token_ids = true,
    max_tokens = max_tokens or 24, temperature = seed % 2 * 0.9, seed = seed, logprobs = 1 }
end

local function bodies()
  local list = {}
  for i, n in ipairs { 1, 15, 16, 17, 64, 200, 700, 333 } do list[i] = body(n, i) end
  return list
end

describe("two pools on a bus", function()
  local f, want, dir, env

  setup(function()
    dir, env = console.folder()
    want = {}
    local s = serving.start(WORKER)
    for i, b in ipairs(bodies()) do want[i] = s:post(COMPLETION, b).json.choices end
    s:stop()
  end)
  teardown(function() dir.remove() end)
  after_each(function()
    if f then f:remove() end
    f = nil
  end)

  -- A command about this deployment: code, what it printed, and complained of.
  local function perilune(command)
    return scratch.sh(("export XDG_RUNTIME_DIR='%s'; %s %s --bus %s"):format(
      env.XDG_RUNTIME_DIR, scratch.program, command, f.bus))
  end

  local function start(workers, fields)
    f = deployment.start { workers = workers, pools = POOLS, worker = WORKER,
      fields = fields, env = { XDG_RUNTIME_DIR = env.XDG_RUNTIME_DIR },
      frontend = { "--migration-limit", "3" } }
    return f.frontends[1]
  end

  local function ask_all(front)
    local open = {}
    for i, b in ipairs(bodies()) do
      open[i] = front:begin("POST", COMPLETION, cjson.encode(b),
        { ["Content-Type"] = "application/json" })
    end
    for i in ipairs(open) do assert.same(want[i], open[i]:finish().json.choices) end
  end

  local function bytes()
    local sum = 0
    for _, w in ipairs(f.workers) do
      sum = sum + w:metric "perilune_kv_transfer_bytes_total"
    end
    return sum
  end

  it("answer as one worker does, and show who has read what", function()
    local front = start({ "prefill", "decode", "decode", "prefill" },
      "allow_remote_console = true,")
    ask_all(front)
    assert.is_true(bytes() > 0)
    local readers = {}
    for _, d in ipairs(front:get "/v1/decisions".json.data) do
      if d.reads then readers[d.worker] = true end
    end
    for name in pairs(readers) do assert.matches("^prefill/%d$", name) end
    assert.is_truthy(next(readers))
    local _, said = perilune [[attach frontend/0 -e 'role("prefill/1", "decode")']]
    assert.equal("prefill/1 is asked; soon it answers\n", said)
    assert(process.wait_for(20, function()
      return select(2, perilune "ps"):find "\nprefill/1 +decode "
    end))
    local _, listed, err = perilune "attach frontend/0 -e 'workers()'"
    assert.matches("\nprefill/0 +ready, prefill +0 ", listed, err)
    assert.matches("\ndecode/0 +ready +0 ", listed)
    for _, w in ipairs(f.workers) do assert.is_true(w:is_idle()) end
    f:close()
    f = nil
  end)

  it("do without readers while there are none, and have them when they come", function()
    local front = start { "decode" }
    ask_all(front)
    f:add_worker { role = "prefill" }
    f:ready(2)
    assert.equal(0, bytes())
    ask_all(front)
    assert.is_true(bytes() > 0)
    f.workers[2]:signal "TERM"
    f.workers[2]:ended()
    f:forget(f.workers[2])
    f:ready(1)
    ask_all(front)
    f:close()
    f = nil
  end)

  it("answer though a process of either pool is killed", function()
    local front = start { "prefill", "decode", "prefill", "decode" }
    for k = 1, 4 do
      local open = {}
      for i, b in ipairs(bodies()) do
        open[i] = front:begin("POST", COMPLETION, cjson.encode(b),
          { ["Content-Type"] = "application/json" })
      end
      local victim = f.workers[k % 2 + 1]
      local role = victim.role
      process.wait_for(0.02 * k, function() return false end)
      victim:signal "KILL"
      for i in ipairs(open) do assert.same(want[i], open[i]:finish().json.choices) end
      f:forget(victim)
      victim.process:remove()
      f:add_worker { role = role }
      f:ready(4)
    end
    f:close()
    f = nil
  end)

  it("refuse a process whose blocks are others", function()
    local front = start { "prefill", "decode" }
    f.worker = { "--max-model-len", "1024", "--kv-cache-memory-bytes", "64M",
      "--prefill.block-size", "32", "--decode.block-size", "32" }
    f:add_worker { role = "prefill" }
    front:await "prefill/%d is not taken: its block_size is 32, that of %w+/%d is (16)\n"
    assert.equal(2, #front:get "/health".json.instances)
    f:close()
    f = nil
  end)

  it("may be of workers that change their role while they serve", function()
    local front = start { "decode", "decode" }
    ask_all(front)
    assert.equal(0, bytes())
    local function role(name, wanted)
      local code, out, err = perilune(("role %s %s"):format(name, wanted))
      assert.equal(0, code, out .. err)
      return out
    end
    local open = front:begin("POST", COMPLETION, cjson.encode(body(100, 50, 400)),
      { ["Content-Type"] = "application/json" })
    assert.equal("decode/1 reads prompts\n", role("decode/1", "prefill"))
    local _, listed = perilune "ps"
    assert.matches("\ndecode/1 +prefill ", listed)
    assert(process.wait_for(20, function()
      ask_all(front)
      return bytes() > 0
    end))
    assert.equal(400, #open:finish().json.choices[1].token_ids)
    role("decode/1", "decode")
    role("decode/0", "prefill")
    local before, moved = bytes(), nil
    assert(process.wait_for(20, function()
      ask_all(front)
      moved = f.workers[2]:metric "perilune_kv_transfer_bytes_total" > 0
        and f.workers[1]:metric "perilune_kv_transfer_bytes_total" > 0
      return moved and bytes() > before
    end))
    local code, _, err = perilune "role decode/0 frontend"
    assert.equal(2, code)
    assert.matches("'frontend' is no role", err)
    f:close()
    f = nil
  end)

  it("may be of a recipe with one, whose processes say what they do as vLLM's", function()
    f = deployment.start { workers = 1, env = { XDG_RUNTIME_DIR = env.XDG_RUNTIME_DIR },
      worker = { "--disaggregation-mode", "decode",
      "--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both"}',
      unpack(WORKER) } }
    f.worker[2] = "prefill"
    f:add_worker()
    f:ready(2)
    ask_all(f.frontends[1])
    assert.is_true(f.workers[2]:metric "perilune_kv_transfer_bytes_total" > 0)
    f:close()
    f = nil
  end)

  it("change roles where the hook says so", function()
    local front = start({ "decode", "decode", "decode" },
      "roles = function(prefill, decode) if #prefill + #decode == 3 then return 1 end end")
    local function readers()
      local n = 0
      for _, w in ipairs(f.workers) do
        local _, k = w.process:log():gsub("role of decode/%d: prefill", "")
        n = n + k
      end
      return n
    end
    assert(process.wait_for(30, function() return readers() == 1 end))
    assert(process.wait_for(20, function()
      ask_all(front)
      return bytes() > 0
    end))
    assert.equal(1, readers())
    f:close()
    f = nil
  end)
end)
