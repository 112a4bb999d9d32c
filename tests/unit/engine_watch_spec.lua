-- SPDX-License-Identifier: Apache-2.0
-- What a process counts of its engines and its requests.
local pl = require "perilune.ffi"
local answer = require "perilune.api.answer"
local metrics = require "perilune.watch.metrics"
local null = require "support.null"
local rows = require "perilune.watch.metrics_rows"
local C, ffi = pl.C, pl.ffi

local SECOND = 1000000000LL

-- The values of a rendering, by series.
local function values(text)
  local list = {}
  for series, value in text:gmatch "\n([^#\n][^\n]-) (%S+)%f[\n]" do
    list[series] = tonumber(value)
  end
  return list
end

local function job(kind, stream, n)
  return { plan = { kind = kind, stream = stream, n = n or 1 }, answer = answer,
    arrived = C.pl_now_ns() - 2 * SECOND }
end

-- A choice that ended: its tokens came one second after the request, each after another.
local function choice(j, n_tokens, finish, cached)
  local last = ffi.new "pl_stream_end"
  last.finish, last.n_tokens, last.n_cached = finish or C.PL_FINISH_LENGTH, n_tokens, cached or 0
  last.submitted_ns, last.scheduled_ns = j.arrived, j.arrived
  last.first_ns = j.arrived + SECOND
  last.last_ns = last.first_ns + math.max(0, n_tokens - 1) * SECOND / 10
  return { last = last, prompt = { n_tokens = 10, max_tokens = 16 } }
end

describe("Dynamo's buckets", function()
  it("begin with 0 and grow by one ratio, of two digits", function()
    assert.same({ 0, 2, 4, 8, 16, 32, 64, 130, 260, 510 }, rows.log_buckets(1, 512, 10))
    local list = rows.log_buckets(.001, 480, 18)
    assert.equal(18, #list)
    assert.equal(480, list[18])
    assert.same({ 0, 10 }, rows.log_buckets(1, 10, 2))
    assert.same({ 0, 1.1 }, rows.log_buckets(1.06, 1.07, 4))   -- what rounds alike is one
  end)
end)

describe("the metrics of requests", function()
  it("count them by what they are and how they end", function()
    local m = metrics.new { model = "m1" }
    local done = job("chat", true)
    m:started(done)
    m:done(done, { choice(done, 3, C.PL_FINISH_STOP, 4) })
    local runs = job("completion", false)
    m:started(runs)
    m:started(job("completion", false))
    local v = values(m:render())
    local chat = 'model="m1",endpoint="chat_completions",request_type="stream"'
    assert.equal(1, v[("dynamo_frontend_requests_started_total{%s}"):format(chat)])
    assert.equal(1, v[('dynamo_frontend_requests_total{%s,status="success",error_type=""}')
      :format(chat)])
    assert.equal(2, v['dynamo_frontend_requests_started_total{model="m1",'
      .. 'endpoint="completions",request_type="unary"}'])
    assert.equal(2, v['dynamo_frontend_active_requests{model="m1"}'])
    assert.equal(2, v['dynamo_frontend_inflight_requests{model="m1"}'])
    m:refused(runs, 500)
    assert.equal(1, values(m:render())['dynamo_frontend_active_requests{model="m1"}'])
  end)

  it("observe a request once, its choices each", function()
    local m = metrics.new { model = "m2" }
    local j = job("completion", false, 2)
    m:started(j)
    m:done(j, { choice(j, 1), choice(j, 5) })
    local v = values(m:render())
    local function of(name, label) return v[("%s{%s}"):format(name, label)] end
    local model, name = 'model="m2"', 'model_name="m2"'
    assert.equal(1, of("dynamo_frontend_request_duration_seconds_count", model))
    assert.equal(10, of("dynamo_frontend_input_sequence_tokens_sum", model))
    assert.equal(6, of("dynamo_frontend_output_sequence_tokens_sum", model))
    assert.equal(6, of("dynamo_frontend_output_tokens_total", model))
    assert.equal(1, of("dynamo_frontend_time_to_first_token_seconds_count", model))
    assert.equal(1, of("dynamo_frontend_time_to_first_token_seconds_sum", model))
    assert.equal(2, of("vllm:time_to_first_token_seconds_count", name))
    assert.equal(2, of("vllm:e2e_request_latency_seconds_count", name))
    assert.equal(1, of("vllm:request_time_per_output_token_seconds_count", name))
    assert.equal(5, of("vllm:request_max_num_generation_tokens_sum", name))
    assert.equal(2, v['vllm:request_success_total{model_name="m2",finished_reason="length"}'])
  end)

  it("say why a request was refused", function()
    local m = metrics.new { model = "m3" }
    local kinds = { [400] = "validation", [404] = "not_found", [413] = "validation",
      [422] = "validation", [429] = "overload", [500] = "internal", [501] = "not_implemented",
      [503] = "overload", [529] = "overload", [504] = "internal" }
    local want, rejected = {}, 0
    for status, kind in pairs(kinds) do
      m:refused({ plan = { kind = "chat" } }, status)
      want[kind] = (want[kind] or 0) + 1
      if kind == "overload" then rejected = rejected + 1 end
    end
    m:refused({ plan = { kind = "chat" } }, 418, "overload")
    want.overload = want.overload + 1
    local v = values(m:render())
    for kind, n in pairs(want) do
      assert.equal(n, v[('dynamo_frontend_requests_total{model="m3",endpoint="chat_completions",'
        .. 'request_type="unary",status="error",error_type="%s"}'):format(kind)], kind)
    end
    assert.equal(rejected + 1, v['dynamo_frontend_model_rejection_total{model="m3",'
      .. 'endpoint="chat_completions"}'])
    assert.equal(0, v['dynamo_frontend_active_requests{model="m3"}'])
  end)

  it("count a cancellation once, a move each time", function()
    local m = metrics.new { model = "m4" }
    local gone, aborted = job("chat", true), job("chat", true)
    local before = values(m:render())["dynamo_frontend_disconnected_clients"] or 0
    aborted.over = {}
    for _, j in ipairs { gone, aborted } do m:started(j) end
    m:cancelled(gone, true)
    m:done(gone, { choice(gone, 2, C.PL_FINISH_ABORT) })
    m:done(aborted, { choice(aborted, 0, C.PL_FINISH_ABORT) })
    m:moved(gone, "ongoing_request")
    m:moved(gone, "ongoing_request")
    m:moved(gone, "new_request")
    m:moved_numerics(gone)
    m:too_long(gone)
    local v = values(m:render())
    local chat = 'model="m4",endpoint="chat_completions",request_type="stream"'
    assert.equal(2, v[("dynamo_frontend_model_cancellation_total{%s}"):format(chat)])
    assert.equal(2, v[('dynamo_frontend_requests_total{%s,status="error",'
      .. 'error_type="cancelled"}'):format(chat)])
    assert.equal(before + 1, v["dynamo_frontend_disconnected_clients"])
    local moves = 'dynamo_frontend_model_migration_total{model="m4",migration_type="%s"}'
    assert.equal(2, v[moves:format "ongoing_request"])
    assert.equal(1, v[moves:format "new_request"])
    assert.equal(1, v['perilune_moves_to_other_numerics_total{model="m4"}'])
    assert.equal(1, v['dynamo_frontend_model_migration_max_seq_len_exceeded_total{model="m4"}'])
    local one = 'dynamo_frontend_time_to_first_token_seconds_count{model="m4"}'
    assert.equal(1, v[one])                 -- the other never had a token
  end)

  it("tell the gap between tokens to both names", function()
    local m = metrics.new { model = "m5" }
    C.pl_metric_observe(m:gap(job("chat")), 0.25)
    local v = values(m:render())
    assert.equal(0.25, v['vllm:inter_token_latency_seconds_sum{model_name="m5"}'])
    assert.equal(0.25, v['dynamo_frontend_inter_token_latency_seconds_sum{model="m5"}'])
  end)

  it("are of the model that a request is for, whatever its name", function()
    local m = metrics.new {}
    local odd = 'a"b\\c\nd'
    local j = job("chat")
    j.model = odd
    m:add_model(odd, { context_length = 512, migration_limit = 3 })
    m:started(j)
    m:done(j, { choice(j, 1) })
    m:add_model(odd, { migration_limit = 4 })
    local v = values(m:render())
    local label = 'model="a\\"b\\\\c\\nd"'
    assert.equal(1, v[("dynamo_frontend_output_tokens_total{%s}"):format(label)])
    assert.equal(512, v[("dynamo_frontend_model_context_length{%s}"):format(label)])
    assert.equal(4, v[("dynamo_frontend_model_migration_limit{%s}"):format(label)])
  end)
end)

describe("the metrics of engines", function()
  it("are of each, in a process without requests too", function()
    local m = metrics.new { namespace = "ns" }
    local engines = { null.engine(), null.engine() }
    for i, e in ipairs(engines) do
      m:add_engine(i - 1, e.handle, { model = "m6", load_seconds = i,
        cache = { { "block_size", 16 }, { "cache_dtype", "auto" } } })
      for k = 1, i do e:submit(null.text(k, 20), { max_tokens = 4 }) end
      e:run()
    end
    local v = values(m:render())
    for i = 0, 1 do
      local own = ('model_name="m6",engine="%d"'):format(i)
      local component = ('dynamo_namespace="ns",dynamo_component="backend",'
        .. 'dynamo_endpoint="generate",model="m6",model_name="m6",engine="%d"'):format(i)
      local function of(name) return v[("dynamo_component_%s{%s}"):format(name, component)] end
      assert.equal(i + 1, of "requests_total")
      assert.equal(i + 1, of "request_duration_seconds_count")
      assert.equal(0, of "inflight_requests")
      assert.equal(0, of "cancellation_total")
      assert.equal(10, of "total_blocks")
      assert.equal(i + 1, of "model_load_time_seconds")
      assert.is_true(of "uptime_seconds" > 0)
      assert.equal(4 * (i + 1), v[("vllm:generation_tokens_total{%s}"):format(own)])
      assert.equal(20 * (i + 1), v[("vllm:prompt_tokens_total{%s}"):format(own)])
      assert.equal(v[("perilune_engine_steps_total{%s}"):format(own)],
        v[("vllm:iteration_tokens_total_count{%s}"):format(own)])
      assert.equal(1, v[('vllm:cache_config_info{%s,block_size="16",cache_dtype="auto"}')
        :format(own)])
    end
    assert.is_nil(v['dynamo_frontend_output_tokens_total{model="m6"}'])
    for _, e in ipairs(engines) do e:close() end
  end)

  it("count who was cancelled", function()
    local m = metrics.new {}
    local e = null.engine()
    m:add_engine(0, e.handle, { model = "m7" })
    local id = e:submit({ 1, 2, 3 }, { max_tokens = 100 })
    e:step(2)
    local inflight = "dynamo_component_inflight_requests"
    local function of(name)
      for series, value in pairs(values(m:render())) do
        if series:find(name, 1, true) == 1 and series:find('model="m7"', 1, true) then
          return value
        end
      end
    end
    assert.equal(1, of(inflight))
    e:cancel(id)
    e:run()
    assert.equal(0, of(inflight))
    assert.equal(1, of "dynamo_component_cancellation_total")
    assert.equal(1, of "dynamo_component_requests_total")
    e:close()
  end)
end)
