-- SPDX-License-Identifier: Apache-2.0
-- What a frontend knows of its workers' caches: processes over a real bus.
local deployment = require "support.deployment"
local process = require "support.process"

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
