-- SPDX-License-Identifier: Apache-2.0
-- What the log says of requests that wait.
local flow = require "perilune.flow"
local log = require "perilune.log"
local waits = require "perilune.waits"

describe("those who wait", function()
  local first, look, info, lines
  before_each(function()
    first, look, info, lines = waits.FIRST, waits.LOOK_SECONDS, log.info, {}
    waits.FIRST, waits.LOOK_SECONDS = 0.02, 0.001
    log.info = function(...) lines[#lines + 1] = (...):format(select(2, ...)) end
  end)
  after_each(function()
    waits.FIRST, waits.LOOK_SECONDS, log.info = first, look, info
  end)

  local own = { info = function(_, ...)
    lines[#lines + 1] = (...):format(select(2, ...))
  end }

  -- Runs fn in a task until it returns.
  local function run(fn)
    local ok, why
    flow.spawn(function()
      ok, why = pcall(fn)
      flow.stop()
    end)
    flow.run(nil, function() return 0 end)
    assert(ok, why)
  end

  it("are told, again after twice as long, and no more once it is over", function()
    local server = {}
    run(function()
      local wait = waits.begin(server, own, "waits for rain")
      while #lines < 1 do flow.sleep(0.001) end
      local due = wait.due - wait.since
      assert.is_true(due >= 2 * waits.FIRST)
      while #lines < 2 do flow.sleep(0.001) end
      assert.is_true(wait.due - wait.since >= 2 * due)
      waits.done(server, wait)
      while server.waits do flow.sleep(0.001) end
      waits.done(server, nil)
    end)
    assert.same({ "a request waits for rain: for 0 s so far",
      "a request waits for rain: for 0 s so far" }, lines)
  end)

  it("are not told where it was short", function()
    waits.FIRST = 1000
    local server = {}
    run(function()
      local wait = waits.begin(server, own, "waits for rain")
      flow.sleep(0.01)
      waits.done(server, wait)
      while server.waits do flow.sleep(0.001) end
    end)
    assert.same({}, lines)
  end)

  it("are counted where they are many", function()
    local server, many = {}, {}
    run(function()
      for i = 1, 10 do many[i] = waits.begin(server, own, "waits") end
      for _, wait in ipairs(many) do wait.due = 0 end
      while #lines == 0 do flow.sleep(0.001) end
      for _, wait in ipairs(many) do waits.done(server, wait) end
    end)
    assert.equal(5, #lines)
    assert.equal("6 more requests wait as long", lines[5])
  end)
end)
