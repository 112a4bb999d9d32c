-- SPDX-License-Identifier: Apache-2.0
-- What the log says of requests that wait.
local buffer = require "string.buffer"
local flow = require "perilune.flow"
local log = require "perilune.log"
local pl = require "perilune.ffi"
local serve = require "perilune.api.serve"
local server_of = require "support.server"
local waits = require "perilune.watch.waits"
local C = pl.C

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
      local wait = waits.begin(server, own, "for rain")
      while #lines < 1 do flow.sleep(0.001) end
      local due = wait.due - wait.since
      assert.is_true(due >= 2 * waits.FIRST)
      while #lines < 2 do flow.sleep(0.001) end
      assert.is_true(wait.due - wait.since >= 2 * due)
      waits.done(server, wait)
      while server.waits do flow.sleep(0.001) end
      waits.done(server, nil)
    end)
    assert.same({ "a request has waited 0 s for rain",
      "a request has waited 0 s for rain" }, lines)
  end)

  it("are not told where it was short", function()
    waits.FIRST = 1000
    local server = {}
    run(function()
      local wait = waits.begin(server, own, "for rain")
      flow.sleep(0.01)
      waits.done(server, wait)
      while server.waits do flow.sleep(0.001) end
    end)
    assert.same({}, lines)
  end)

  it("are told where the pool does not come to a big request", function()
    local http = server_of.open()
    local client = http:connect(("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 20000\r\n\r\n%s")
      :format(("x"):rep(20000)))
    local x, plan = http:request(), nil
    local server = { rt = http.rt, has_pool = true, models = { blob = "" },
      recipe = { http = {} } }
    flow.spawn(function()
      while #lines == 0 do flow.sleep(0.001) end
      local task, result = C.pl_task_take(http.rt, 1000), buffer.encode { answer = 42 }
      C.pl_task_done(task, result, #result)
    end)
    flow.spawn(function()
      plan = serve.plan(server, x, "completion", { log = own })
      flow.stop()
    end).on_error = flow.stop
    flow.run(http.rt)
    assert.same({ answer = 42 }, plan)
    assert.matches("^a request has waited %d+ s to be prepared %(127.0.0.1:%d+%)$", lines[1])
    assert.is_nil(next(server.waits or {}))
    C.pl_exchange_release(x)
    client:close()
    http:close()
  end)

  it("are counted where they are many", function()
    local server, many = {}, {}
    run(function()
      for i = 1, 10 do many[i] = waits.begin(server, own, "for rain") end
      for _, wait in ipairs(many) do wait.due = 0 end
      while #lines == 0 do flow.sleep(0.001) end
      for _, wait in ipairs(many) do waits.done(server, wait) end
    end)
    assert.equal(5, #lines)
    assert.equal("6 more requests have waited as long", lines[5])
  end)
end)
