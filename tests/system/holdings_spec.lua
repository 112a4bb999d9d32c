-- SPDX-License-Identifier: Apache-2.0
-- What a frontend knows of its workers' caches: processes over a real bus.
local deployment = require "support.deployment"
local changes = require "support.changes"
local pl = require "perilune.ffi"
local process = require "support.process"
local zmq = require "support.zmq"
local C, ffi = pl.C, pl.ffi

local COMPLETION = "/v1/completions"
local SECONDS = 30

local function sum(members, name)
  local all = 0
  for _, member in ipairs(members) do
    for value in member:get "/metrics".text:gmatch("\n" .. name .. "%b{} (%S+)") do
      all = all + tonumber(value)
    end
  end
  return all
end

describe("a frontend over a bus", function()
  local f
  setup(function()
    f = deployment.start { workers = 2, frontends = 2,
      worker = { "--threads", "1", "--num-kv-blocks", "30", "--max-model-len", "auto" } }
  end)
  teardown(function() if f then f:remove() end end)

  local function known(frontend)
    return tonumber(frontend:get "/metrics".text:match "\nperilune_kv_index_blocks (%d+)")
  end

  -- Prompts of 2 to 5 blocks, and no text twice: no two blocks are then equal.
  local n_asked = 0
  local function ask(n)
    for i = 1, n do
      n_asked = n_asked + 1
      local r = f.frontends[i % #f.frontends + 1]:post(COMPLETION, { model = "llama", max_tokens = 1,
        prompt = ("%d and "):format(n_asked) .. ("so on "):rep(14 * (i % 4 + 1)) })
      assert.equal(200, r.status, r.text)
    end
  end

  local function agree()
    local ok = process.wait_for(SECONDS, function()
      for _, w in ipairs(f.workers) do if not w:is_idle() then return false end end
      local cached = sum(f.workers, "perilune_kv_blocks_cached")
      for _, frontend in ipairs(f.frontends) do
        if known(frontend) ~= cached or cached == 0 then return false end
      end
      return true
    end)
    assert(ok, ("cached: %d, known: %d, %d"):format(
      sum(f.workers, "perilune_kv_blocks_cached"), known(f.frontends[1]), known(f.frontends[2])))
  end

  it("knows what its workers hold, also one that came later or goes", function()
    ask(8)
    agree()
    ask(24)                                 -- more than both caches hold
    agree()
    f:add_frontend()
    f:ready(2)
    agree()
    for _, frontend in ipairs(f.frontends) do
      assert.matches("\nperilune_kv_index_gaps_total 0%.0\n", frontend:get "/metrics".text)
    end
    f.workers[1]:signal "KILL"
    f.workers[1].process:wait(SECONDS)
    f:forget(f.workers[1])
    f:ready(1)
    agree()
    f:add_worker()
    f:ready(2)
    ask(12)
    agree()
  end)
end)

describe("a frontend of workers that do not tell", function()
  local f, z
  setup(function()
    z = zmq.open()
    f = deployment.start { workers = 0, frontends = 0, worker = { "--threads", "1",
      "--kv-events", "false" }, frontend = { "--enable-prompt-tokens-details" } }
  end)
  teardown(function()
    if f then f:remove() end
    z:close()
  end)

  -- A worker that publishes vLLM's events, and where.
  local function publisher()
    local config = { "--kv-events-config", "" }
    for _, word in ipairs(config) do f.worker[#f.worker + 1] = word end
    for _ = 1, 20 do
      local port = 20000 + tonumber(C.pl_entropy() % 12000)
      f.worker[#f.worker] = ('{"enable_kv_cache_events":true,"publisher":"zmq",'
        .. '"endpoint":"tcp://*:%d","topic":"kv-events"}'):format(port)
      local ok, w = pcall(f.add_worker, f)
      if ok then return w, "tcp://127.0.0.1:" .. port end
      f:forget(f.workers[#f.workers])
    end
    error "no port to be had"
  end

  it("sends a prompt where it was sent before, and vLLM's events tell what is stored", function()
    f:add_frontend()
    f:add_worker()
    local _, endpoint = publisher()
    f:ready(2)
    local events = z:socket(zmq.SUB, "connect", endpoint)
    local stored = 0
    for i = 1, 12 do
      local body = { model = "llama", max_tokens = 1, prompt = i .. (" and so on"):rep(20) }
      for turn = 1, 3 do
        local r = f.frontends[1]:post(COMPLETION, body)
        assert.equal(200, r.status, r.text)
        local details = r.json.usage.prompt_tokens_details      -- null where none is cached
        assert.equal(turn > 1, type(details) == "table" and details.cached_tokens > 0)
      end
    end
    for frames in function() return events:receive(1000) end do
      assert.equal("kv-events", frames[1])
      local log = ffi.new "pl_change_log"
      assert.equal(0, C.pl_events_decode(frames[3], #frames[3], log))
      for _, run in ipairs(changes.table_of(C.pl_change_log_take(log, 0, 1))) do
        if run[1] == "stored" then stored = stored + #run - 1 end
      end
      C.pl_change_log_fini(log)
    end
    assert.is_true(stored > 0)
  end)
end)
