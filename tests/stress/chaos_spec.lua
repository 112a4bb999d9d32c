-- SPDX-License-Identifier: Apache-2.0
-- A minute of disturbances ($PERILUNE_CHAOS_SECONDS), drawn by $PERILUNE_SEED.
local chaos = require "stress.chaos"
local process = require "support.process"
local requests = require "stress.requests"

local SECONDS = tonumber(os.getenv "PERILUNE_CHAOS_SECONDS") or (process.slow and 30 or 60)
local SEED = tonumber(os.getenv "PERILUNE_SEED") or 1
local MOVES = math.max(1, math.min(10, math.floor(SECONDS / (process.slow and 12 or 6))))

local function counted(of)
  local list = {}
  for name, n in pairs(of) do list[#list + 1] = ("%s %d"):format(name, n) end
  table.sort(list)
  return table.concat(list, ", ")
end

describe("chaos", function()
  it("changes no answer and leaves nothing behind", function()
    local run = chaos.run { seconds = SECONDS, seed = SEED, moves = MOVES }
    print(("note: seed %d, %d s: %d answers, %d cancelled\nnote: disturbed: %s\nnote: moved: %s")
      :format(SEED, run.seconds or 0, run.load.done, run.load.cancelled,
        counted(run.acts), counted(run.moves)))
    assert.same({}, run.load.failures)
    for _, kind in ipairs(requests.KINDS) do
      assert.is_true((run.moves[kind] or 0) >= MOVES, kind .. " was moved too seldom")
    end
    assert.is_true(run.memory_after < run.memory * 1.5 + 16,
      ("memory grew from %d to %d MiB"):format(run.memory, run.memory_after))
  end)
end)
