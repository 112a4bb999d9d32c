-- SPDX-License-Identifier: Apache-2.0
-- Is a process fit for work: progress, trials of idle engines, drains.
local pl = require "perilune.ffi"
local canary = require "perilune.watch.canary"
local cjson = require "cjson.safe"
local flow = require "perilune.flow"
local health = require "perilune.api.health"
local null = require "support.null"
local null_engine = require "support.null_engine"
local server = require "support.server"
local C, ffi = pl.C, pl.ffi

local function body_of(status, text)
  return status, assert(cjson.decode(text))
end

describe("health", function()
  local e
  before_each(function() e = null.engine() end)
  after_each(function() e:close() end)

  it("is told as Dynamo's frontends and workers do", function()
    local h = health.new { namespace = "ns" }
    h:add_engine(0, e.handle)
    local status, body = body_of(h:frontend())
    assert.equal(200, status)
    assert.same({ status = "healthy", message = cjson.null,
      endpoints = { "dyn://ns.backend.generate" }, instances = { {
        namespace = "ns", component = "backend", endpoint = "generate",
        instance_id = "0", transport = "local", status = "ready" } } }, body)
    status, body = body_of(h:worker())
    assert.equal(200, status)
    assert.equal("ready", body.status)
    assert.same({ generate = "ready" }, body.endpoints)
    assert.is_true(body.uptime.secs >= 0 and body.uptime.nanos < 1e9)
  end)

  it("is bad while queued work makes no progress", function()
    local before = health.STALL_SECONDS
    finally(function() health.STALL_SECONDS = before end)
    health.STALL_SECONDS = -1
    local h = health.new {}
    h:add_engine(3, e.handle)
    assert.equal(200, (h:frontend()))
    e:submit({ 1, 2, 3 }, { max_tokens = 2 })
    local status, body = body_of(h:frontend())
    assert.equal(503, status)
    assert.equal("unhealthy", body.status)
    assert.matches("^engine 3 has not finished a step for %d+ s$", body.message)
    assert.equal("notready", body.instances[1].status)
    status, body = body_of(h:worker())
    assert.equal(503, status)
    assert.same({ generate = "notready" }, body.endpoints)
    e:run()
    assert.equal(200, (h:frontend()))
  end)

  it("is bad where nobody could be served", function()
    local why = "no worker is available"
    local h = health.new { missing = function() return why end,
      instances = function() return {} end }
    local status, body = body_of(h:frontend())
    assert.equal(503, status)
    assert.equal(why, body.message)
    assert.same({}, body.instances)
    why = nil
    assert.equal(200, (h:frontend()))
  end)

  it("tells what is amiss though requests are served", function()
    local why
    local h = health.new { note = function() return "the bus is away" end,
      missing = function() return why end }
    local status, body = body_of(h:frontend())
    assert.same({ 200, "healthy", "the bus is away" }, { status, body.status, body.message })
    why = "no worker is available"
    status, body = body_of(h:frontend())
    assert.same({ 503, "unhealthy", why }, { status, body.status, body.message })
  end)

  it("says that it drains, and lives", function()
    local h = health.new {}
    h:drain(true)
    for _, form in ipairs { "frontend", "worker" } do
      local status, body = body_of(h[form](h))
      assert.equal(503, status)
      assert.equal("draining", body.status)
    end
    local status, body = body_of(h.live())
    assert.equal(200, status)
    assert.same({ status = "live", message = "Service is live" }, body)
    h:drain(false)
    assert.equal(200, (h:worker()))
  end)

  it("believes a step more than a trial before it", function()
    local h = health.new {}
    h:add_engine(0, e.handle)
    h:tried(0, "did not answer")
    assert.equal("engine 0 did not answer", select(2, h:problem()))
    e:submit({ 1 }, { max_tokens = 1 })
    e:run()
    assert.is_nil(h:problem())
    h:tried(0, "did not answer")
    h:tried(0, nil)
    assert.is_nil(h:problem())
  end)
end)

describe("a canary", function()
  local s, e, text, h, seconds
  before_each(function()
    C.pl_log_level(C.PL_LOG_ERROR + 1)
    seconds = canary.TRIAL_SECONDS
    s = server.open()
    text = null_engine.text {}
    h = health.new {}
  end)
  after_each(function()
    C.pl_log_level(C.PL_LOG_INFO)
    canary.TRIAL_SECONDS = seconds
    if e then e:close() end
    e = nil
    s:close()
    C.pl_text_close(text)
  end)

  local function options(engine, wait)
    return { rt = s.rt, text = text, engine = engine, index = 0, health = h,
      wait = function() return wait end }
  end

  local function stats(engine)
    local out = ffi.new "pl_engine_stats"
    C.pl_engine_stats_get(engine, out)
    return out
  end

  -- Runs fn as a task until it returns.
  local function within_flow(fn)
    local failed
    local task = flow.spawn(function()
      fn()
      flow.stop()
    end)
    task.on_error = function(why)
      failed = why
      flow.stop()
    end
    assert(flow.run(s.rt))
    assert.is_nil(failed)
  end

  it("goes through an idle engine, and nothing counts it", function()
    e = null_engine.open(s.rt)
    h:add_engine(0, e.handle)
    h:tried(0, "did not answer")
    local steps = C.pl_metric_open(C.PL_HISTOGRAM, "t_canary_steps", "", "",
      ffi.new("double[1]", 1), 1)
    C.pl_engine_observe(e.handle, C.PL_OBSERVE_STEP_TOKENS, steps)
    local before = stats(e.handle).last_step_ns
    within_flow(function() canary.try(options(e.handle)) end)
    assert.is_nil(h:problem())
    local st = stats(e.handle)
    assert.is_true(st.last_step_ns > before)
    for _, field in ipairs { "steps", "prompt_tokens", "generation_tokens", "finished",
        "aborted", "prefix_queries", "cached_tokens", "blocks_used" } do
      assert.equal(0, tonumber(st[field]), field)
    end
    assert.equal(0, C.pl_metric_value(steps))
  end)

  it("comes when an engine was idle for as long as is said, and again", function()
    e = null_engine.open(s.rt)
    h:add_engine(0, e.handle)
    within_flow(function()
      local wait, asked
      local o = options(e.handle)
      o.wait = function()
        asked = true
        return wait
      end
      flow.spawn(canary.run, o)
      while not asked do flow.sleep(0.01) end
      local last = stats(e.handle).last_step_ns
      wait = 0.01
      for _ = 1, 3 do
        local deadline = C.pl_now_ns() + 20000000000LL
        while stats(e.handle).last_step_ns == last and C.pl_now_ns() < deadline do
          flow.sleep(0.01)
        end
        assert.is_true(stats(e.handle).last_step_ns > last)
        last = stats(e.handle).last_step_ns
      end
      assert.equal(0, tonumber(stats(e.handle).steps))
    end)
  end)

  it("is not answered by an engine that stands still, till it moves", function()
    local model, device = null.model()
    local engine = C.pl_engine_open(model, null.options())
    h:add_engine(0, engine)
    canary.TRIAL_SECONDS = 0.02
    local stopped
    within_flow(function()
      local trial = flow.spawn(canary.try, options(engine))
      flow.sleep(0.2)
      stopped = select(2, h:problem())
      assert.equal(0, C.pl_runtime_attach(s.rt, engine))
      flow.join { trial }
    end)
    assert.matches("^engine 0 did not answer a health check within", stopped)
    assert.is_nil(h:problem())
    C.pl_runtime_detach(s.rt, engine)
    C.pl_engine_close(engine)
    C.pl_model_close(model)
    C.pl_device_close(device)
  end)

  it("that is refused is told of", function()
    local model, device = null.model()
    local engine = C.pl_engine_open(model, null.options { max_waiting = 1 })
    h:add_engine(0, engine)
    assert.equal(0, C.pl_engine_submit(engine, null.seq { 1, 2 }))
    within_flow(function() canary.try(options(engine)) end)
    assert.matches("^engine 0 refused a health check: .*max_waiting", select(2, h:problem()))
    C.pl_engine_close(engine)
    C.pl_model_close(model)
    C.pl_device_close(device)
  end)
end)
