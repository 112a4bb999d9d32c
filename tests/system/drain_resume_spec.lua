-- SPDX-License-Identifier: Apache-2.0
-- perilune ps, drain and resume where several deployments share a machine.
local cjson = require "cjson.safe"
local console = require "support.console"
local deployment = require "support.deployment"
local process = require "support.process"
local scratch = require "scratch"
local serving = require "support.serving"

local COMPLETION = "/v1/completions"
local SLOW = { "--device", "null", "--num-gpu-blocks-override", "512" }

local function body(tokens)
  return { model = "llama", prompt = "x", max_tokens = tokens, ignore_eos = true,
    temperature = 0 }
end

local function has(text, wanted)
  assert.is_truthy(text:find(wanted, 1, true), ("no '%s' in:\n%s"):format(wanted, text))
end

local dir, env

local function perilune(words)
  return scratch.sh(("export XDG_RUNTIME_DIR='%s'; %s %s"):format(env.XDG_RUNTIME_DIR,
    scratch.program, words))
end

describe("two deployments on a machine", function()
  local one, two
  setup(function()
    dir, env = console.folder()
    local function start(workers)
      return deployment.start { workers = workers, worker = SLOW,
        env = { PERILUNE_NULL_STEP_US = "10000", XDG_RUNTIME_DIR = env.XDG_RUNTIME_DIR } }
    end
    one, two = start(2), start(1)
  end)
  teardown(function()
    for _, f in ipairs { one, two } do f:remove() end
    dir.remove()
  end)

  -- The processes by name, of the machine or of a bus.
  local function list(f)
    local code, out, err = perilune("ps --json" .. (f and " --bus " .. f.bus or ""))
    assert.equal(0, code, err)
    local by_name = {}
    for _, p in ipairs(assert(cjson.decode(out))) do by_name[p.name] = p end
    return by_name
  end

  local function state(f, name) return list(f)[name].state end

  it("are seen on their bus as they are on the machine, and numbers are numbers", function()
    assert(process.wait_for(30, function()   -- a frontend hears from time to time of loads
      local here = list()
      return here["frontend/0"].load.blocks == 1022 and here["frontend/1"].load.blocks == 511
    end))
    local here, names = list(), {}
    for _, f in ipairs { one, two } do
      for name, p in pairs(list(f)) do
        names[#names + 1] = name
        local own = here[name]
        for _, field in ipairs { "name", "role", "pid", "model", "health", "state", "version",
            "recipe", "recipe_hash", "bus" } do
          assert.equal(own[field], p[field], field)
        end
        assert.same(own.load, p.load)
        for _, n in ipairs { p.pid, p.uptime, p.load.running, p.load.blocks } do
          assert.equal("number", type(n))
        end
        assert.equal(f.recipe, p.recipe)
        assert.equal(16, #p.recipe_hash)
      end
    end
    table.sort(names)
    assert.same({ "frontend/0", "frontend/1", "worker/0", "worker/1", "worker/2" }, names)
    local _, text = perilune("ps --bus " .. two.bus)
    assert.matches("\nfrontend/1 +frontend +llama +0%+0 0%% +ok +%d+s +[%d.]+%S* +recipe.lua %x+\n", text)
    assert.matches("\nworker/2 +worker +llama +0%+0 0%% +ok ", text)
    assert.is_nil(text:find "worker/1")
  end)

  it("are drained and resumed on the bus that is named, and nowhere else", function()
    for _, word in ipairs { "drain", "resume" } do
      assert.same({ 1, "", "perilune: no process 'worker/0' on the bus\n" },
        { perilune(word .. " worker/0 --bus " .. two.bus) })
    end
    assert.equal("ready", state(one, "worker/0"))
    assert.same({ 0, "draining worker/0\n", "" },
      { perilune("drain worker/0 --bus " .. one.bus) })
    assert.equal("ready", state(two, "worker/2"))
    assert.is_truthy(state(one, "worker/0") ~= "ready")
    assert.equal(0, (perilune("resume worker/0 --bus " .. one.bus)))
    assert.equal("ready", state(one, "worker/0"))
    assert.same({ 0, "draining worker/2\n", "" }, { perilune "drain worker/2" })   -- here
    assert.equal(0, (perilune "resume worker/2"))
  end)

  it("let consoles in on the bus that is named, and nowhere else", function()
    for _, f in ipairs { one, two } do
      local other = f == one and two or one
      local name = f == one and "worker/0" or "worker/2"
      assert.same({ 0, f.bus .. "\n", "" },
        { perilune(("attach %s -e recipe.bus --bus %s"):format(name, f.bus)) })
      assert.same({ 1, "", ("perilune: no process '%s' on the bus\n"):format(name) },
        { perilune(("attach %s -e recipe.bus --bus %s"):format(name, other.bus)) })
    end
    local code, _, err = perilune "attach worker/0 -e recipe.bus --bus nats://127.0.0.1:1"
    assert.equal(1, code)
    has(err, "no bus at 'nats://127.0.0.1:1'")
  end)

  it("are waited for until they are drained", function()
    local front, worker = two.frontends[1], two.workers[1]
    for _, way in ipairs { " --bus " .. two.bus, "" } do
      local answer = front:begin("POST", COMPLETION, body(150))
      assert(process.wait_for(30, function()
        return worker:metric "vllm:num_requests_running" == 1
      end))
      assert.same({ 0, "worker/2 is drained\n", "" },
        { perilune("drain worker/2 --wait" .. way) })
      assert.equal(0, worker:metric "vllm:num_requests_running")
      assert.equal("length", answer:finish().json.choices[1].finish_reason)
      assert.same({ 0, "worker/2 is drained\n", "" },      -- it is already
        { perilune("drain worker/2 --wait" .. way) })
      assert.equal(0, (perilune("resume worker/2" .. way)))
    end
  end)

  it("are not waited for once they are resumed", function()
    local answer = two.frontends[1]:begin("POST", COMPLETION, body(1900))
    assert(process.wait_for(30, function()
      return two.workers[1]:metric "vllm:num_requests_running" == 1
    end))
    local code, _, err = scratch.sh(([[
      export XDG_RUNTIME_DIR='%s'; p='%s'
      $p drain worker/2 --wait --bus %s & waiter=$!
      until $p ps --bus %s | grep -q 'worker/2 .*draining'; do :; done
      $p resume worker/2 --bus %s >/dev/null
      wait $waiter]]):format(env.XDG_RUNTIME_DIR, scratch.program, two.bus, two.bus, two.bus))
    assert.equal(1, code)
    assert.equal("perilune: worker/2 was resumed\n", err)
    answer.connection:close()
  end)
end)

describe("two servers without a bus", function()
  local servers
  setup(function()
    dir, env = console.folder()
    servers = {}
    for i = 1, 2 do servers[i] = serving.start({ "--worker.count", "2" }, env) end
  end)
  teardown(function()
    for _, s in ipairs(servers) do s:stop() end
    dir.remove()
  end)

  it("must be told apart", function()
    for _, word in ipairs { "drain", "resume" } do
      local code, out, err = perilune(word .. " worker/1")
      assert.equal(1, code)
      assert.equal("", out)
      has(err, "perilune: 'worker/1' may be any of\n")
      for i, s in ipairs(servers) do
        has(err, ("\n  worker/1 of process %d: frontend/%d, "):format(s.process.pid, i - 1))
      end
      has(err, "perilune attach")
    end
    for _, s in ipairs(servers) do
      for _, it in ipairs(s:get("/health").json.instances) do assert.equal("ready", it.status) end
    end
    assert.same({ 1, "", "perilune: you have no process 'worker7' running here\n" },
      { perilune "drain worker7" })
    assert.same({ 0, "draining frontend/1\n", "" }, { perilune "drain frontend/1" })
    assert.equal("draining", servers[2]:get("/health").json.status)
    assert.equal(200, servers[1]:get("/health").status)
    assert.equal(0, (perilune "resume frontend/1"))
  end)
end)
