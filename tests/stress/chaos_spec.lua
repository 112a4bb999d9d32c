-- SPDX-License-Identifier: Apache-2.0
-- Disturbances for a while ($PERILUNE_CHAOS_SECONDS), drawn by $PERILUNE_SEED.
local chaos = require "stress.chaos"
local process = require "support.process"
local requests = require "stress.requests"

local SECONDS = tonumber(os.getenv "PERILUNE_CHAOS_SECONDS") or (process.slow and 24 or 42)
local SEED = tonumber(os.getenv "PERILUNE_SEED") or 1
local MOVES = math.max(1, math.min(10, math.floor(SECONDS / (process.slow and 12 or 6))))

local function counted(of)
  local list = {}
  for name, n in pairs(of) do list[#list + 1] = ("%s %d"):format(name, n) end
  table.sort(list)
  return table.concat(list, ", ")
end

describe("chaos", function()
  local function weather(options)
    local run = chaos.run(options)
    print(("note: seed %d, %d s: %d answers, %d cancelled\nnote: disturbed: %s\nnote: moved: %s")
      :format(SEED, run.seconds or 0, run.load.done, run.load.cancelled,
        counted(run.acts), counted(run.moves)))
    assert.same({}, run.load.failures)
    for _, kind in ipairs(requests.KINDS) do
      assert.is_true((run.moves[kind] or 0) >= options.moves, kind .. " was moved too seldom")
    end
    -- A sanitizer keeps what was freed for a while.
    assert.is_true(run.memory_after < run.memory * (process.slow and 2 or 1.5) + 16,
      ("memory grew from %d to %d MiB"):format(run.memory, run.memory_after))
  end

  it("changes no answer and leaves nothing behind", function()
    if process.slow then return pending "two pools do as much under a sanitizer" end
    weather { seconds = SECONDS, seed = SEED, moves = MOVES }
  end)

  it("does not where prompts are read in one pool and continued in another, either", function()
    weather { seconds = process.slow and SECONDS or SECONDS / 3, seed = SEED, moves = math.ceil(MOVES / 4),
      pools = "prefill = {}, decode = {},",
      workers = { "prefill", "decode", "prefill", "decode", "decode" } }
  end)
end)
