-- SPDX-License-Identifier: Apache-2.0
-- Every worker replaced, one after the other, by SIGTERM under load: none of the requests
-- is lost or changed, and each worker ends well.
local deployment = require "support.deployment"
local load = require "stress.load"
local process = require "support.process"
local traffic = require "support.traffic"

local SEED = tonumber(os.getenv "PERILUNE_SEED") or 1
local STREAMS, ENDING = 28, 120

describe("a rolling restart", function()
  local list
  setup(function() list = load.record(load.ENGINE, SEED) end)

  -- Replaces the worker that has been there longest.
  local function replace_one(f, l)
    f:add_worker()
    local old = table.remove(f.workers, 1)
    local before = l.done
    old:signal "TERM"
    while old:runs() do l:tick(true) end
    old:ended(1)
    local pause = traffic.now() + 1
    while traffic.now() < pause or l.done == before do l:tick(true) end
  end

  -- A drain that waits for what runs, one that hands it over soon, and at once.
  for _, drain in ipairs(process.slow and { "1" } or { "60", "1", "0" }) do
    it("loses nothing where a drain may take " .. drain .. " s", function()
      -- With a migration_limit of 0 nothing but a hand-over may move a request: so a busy
      -- machine's pauses must not count as losses.
      local f = deployment.start { workers = 3, frontend = { "--lost-after", "30" },
        worker = load.flags { "--drain-timeout", drain, "--lost-after", "30" } }
      finally(function() f:remove() end)
      local l = load.open { list = list, streams = STREAMS, seed = SEED,
        port = function() return f.frontends[1].port end }
      for _ = 1, 3 do replace_one(f, l) end
      l:settle(ENDING)
      assert.same({}, l.failures)
      assert.is_true(l.done >= STREAMS)
      f:close()
    end)
  end
end)
