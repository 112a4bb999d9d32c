-- SPDX-License-Identifier: Apache-2.0
-- Hundreds of requests whose prompts are read in one process and continued in another give
-- the answers of one engine, bit for bit: with caches warm and cold on either side, too few
-- blocks, a bus that loses messages, and processes that stand still at any moment.
local fleet = require "support.fleet"
local pl = require "perilune.ffi"
local process = require "support.process"
local C = pl.C

local N = (tonumber(os.getenv "PERILUNE_STRESS") or 2000) / (process.slow and 10 or 4)
local SEED = tonumber(os.getenv "PERILUNE_SEED") or 1
local BLOCK, AT_ONCE = 16, 12

-- Prompts share their beginnings, so some of each is cached, here or there or nowhere.
local function prompt(i)
  local out, family = {}, i % 9
  local lengths = { 3, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 70, 130, 200, 15 * BLOCK }
  local n = lengths[math.random(#lengths)]
  local own = math.random(0, 3) == 0 and n or math.random(0, n)
  for k = 1, n do
    out[k] = (k <= n - own and k * 37 + family * 131 or k * 53 + i * 17) % 590
  end
  return out
end

local function params(i)
  local kinds = {
    { temperature = 0 },
    { temperature = 1, seed = i, logprobs = 2 },
    { temperature = 0.8, seed = i, top_p = 0.9, presence_penalty = 0.6 },
    { temperature = 0.7, seed = i, logprobs = 0, frequency_penalty = 0.4, min_tokens = 3 },
  }
  local p = kinds[i % #kinds + 1]
  p.max_tokens, p.ignore_eos = math.random(3, 24), 1
  return p
end

local function place(front, p, index) return { peer = front:peer(p), index = index or 0 } end

describe("requests that are split", function()
  setup(function() C.pl_log_level(C.PL_LOG_ERROR + 1) end)
  teardown(function() C.pl_log_level(C.PL_LOG_INFO) end)

  local function alone(p, ids, how)
    local st = p:stream(ids, how)
    assert.equal(0, st:start(p.engines[1]))
    return st:finish()
  end

  it("are answered as by one engine", function()
    math.randomseed(SEED)
    local f = fleet.open { kind = "llama" }
    local few = { max_model_len = 512, n_blocks = 60, max_num_batched_tokens = 64 }
    local front = f:process { engines = 2, options = few }
    local one = f:process { engines = 1, options = few }
    local two = f:process { engines = 1, options = few }
    local places = {
      { place(front, one), place(front, two) }, { front.engines[2], place(front, two) },
      { place(front, one), front.engines[2] }, { place(front, two), place(front, one) },
    }
    C.pl_hub_faults(f.hub, SEED, 10, 10, 10)
    local open = {}
    local function finish()
      local o = table.remove(open, 1)
      local answer = o.st:finish()
      assert.same(alone(front, o.ids, o.how), answer, "request " .. o.i)
    end
    for i = 1, N do
      local ids, how, at = prompt(i), params(i), places[math.random(#places)]
      local st = front:stream(ids, how)
      assert.equal(0, st:split(at[1], at[2]))
      open[#open + 1] = { st = st, ids = ids, how = how, i = i }
      if #open == AT_ONCE then finish() end
    end
    while #open > 0 do finish() end
    for _, p in ipairs { front, one, two } do assert.is_true(p:idle()) end
    f:close()
  end)

  it("are answered though either process stands still, at any moment", function()
    math.randomseed(SEED)
    local f = fleet.open()
    local bus = { lost_after_ms = 1500 }
    local front = f:process { engines = 1, bus = bus, options = { max_model_len = 2048 } }
    local slow = { max_model_len = 2048, max_num_batched_tokens = 32, max_num_seqs = 32 }
    local workers = { f:process { engines = 1, bus = bus, options = slow },
      f:process { engines = 1, bus = bus, options = slow } }
    for _, w in ipairs(workers) do front:peer(w) end
    local lost = 0
    for n = 1, N / (process.slow and 40 or 50) do
      local ids = prompt(n)
      for k = #ids + 1, 600 do ids[k] = (k * 41 + n * 13) % 590 end
      local how = { temperature = 0.8, seed = n, max_tokens = 40, ignore_eos = 1 }
      local reader = n % 2 + 1
      local st = front:stream(ids, how)
      assert.equal(0, st:split(place(front, workers[reader]),
        place(front, workers[3 - reader])))
      for _ = 1, math.random(0, 12) do front:poll(3) end
      local stopped = workers[math.random(2)]
      C.pl_hub_stop(f.hub, stopped.id, 1)
      local what
      repeat what = st:next() until what ~= "piece"
      C.pl_hub_stop(f.hub, stopped.id, 0)
      local answer
      if what == "lost" then
        lost = lost + 1
        assert.equal(0, st:start(front.engines[1]))
        answer = st:finish()
      else
        answer = st:close()
      end
      assert.same(alone(front, ids, how), answer, "request " .. n)
      for _, w in ipairs(workers) do
        assert.is_true(w:idle())
        front:peer(w)                          -- which may have been forgotten meanwhile
      end
    end
    assert.is_true(lost > 0)
    f:close()
  end)
end)
