-- SPDX-License-Identifier: Apache-2.0
-- Processes of one host that talk over sockets of their own: which way a stream goes, and
-- what becomes of it when the socket, the bus or the other process goes.
local deployment = require "support.deployment"
local process = require "support.process"
local serving = require "support.serving"

local COMPLETION = "/v1/completions"
-- Of the null device, a step each 5 ms.
local FLAGS = { "--device", "null", "--num-gpu-blocks-override", "512" }
local SENT, RECEIVED, LINKS = "perilune_direct_frames_sent_total",
  "perilune_direct_frames_received_total", "perilune_direct_links"

local function body(tokens)
  return { model = "llama", prompt = "x", max_tokens = tokens, ignore_eos = true,
    temperature = 0, stream = true, stream_options = { include_usage = true } }
end

describe("a link of its own", function()
  local f
  after_each(function()
    if f then f:remove() end
    f = nil
  end)

  local function start(options)
    f = deployment.start { workers = options.workers or 1, worker = FLAGS,
      frontend = options.frontend, env = { PERILUNE_NULL_STEP_US = "5000",
        PERILUNE_DIRECT_LINKS = options.direct } }
    return f.frontends[1], f.workers[1]
  end

  local function soon(condition)
    assert.is_truthy(process.wait_for(30, condition))
  end

  -- Streams until the link has its socket.
  local function connect(front)
    soon(function()
      assert.equal(200, front:post(COMPLETION, body(4)).status)
      return front:metric(LINKS) == #f.workers
    end)
  end

  -- The text of a stream, of which nothing may be missing.
  local function text_of(stream, tokens)
    local parts, usage = {}, nil
    assert.equal(200, stream.status)
    for _, event in ipairs(stream:events()) do
      assert.is_nil(event.error)
      local choice = event.choices and event.choices[1]
      if choice then parts[#parts + 1] = choice.text end
      if event.usage and event.usage ~= serving.null then usage = event.usage end
    end
    assert.equal(tokens, usage.completion_tokens)
    return table.concat(parts)
  end

  local function running(member, n)
    soon(function() return member:metric "vllm:num_requests_running" == n end)
  end

  local function busy_worker()
    local busy
    soon(function()
      for _, w in ipairs(f.workers) do
        if w:metric "vllm:num_requests_running" == 1 then busy = w end
      end
      return busy
    end)
    return busy
  end

  it("carries the tokens of a stream, and the bus none", function()
    local front, worker = start {}
    connect(front)
    local sent, received = worker:metric(SENT), front:metric(RECEIVED)
    local bus = worker:metric "perilune_bus_messages_sent_total"
    text_of(front:post(COMPLETION, body(400)), 400)
    assert.is_true(worker:metric(SENT) >= sent + 400)
    assert.is_true(front:metric(RECEIVED) >= received + 400)
    assert.is_true(worker:metric "perilune_bus_messages_sent_total" < bus + 100)
    assert.equal(0, front:metric "perilune_direct_refused_total")
  end)

  it("is not there where it is not wanted", function()
    local front, worker = start { direct = "false" }
    local bus = worker:metric "perilune_bus_messages_sent_total"
    text_of(front:post(COMPLETION, body(100)), 100)
    assert.is_true(worker:metric "perilune_bus_messages_sent_total" >= bus + 100)
    assert.is_nil(worker:metric(SENT))
  end)

  it("goes on with the bus away, for as long as that may be", function()
    local front, worker = start { frontend = { "--bus-patience", "0.5" } }
    connect(front)
    local whole = text_of(front:post(COMPLETION, body(600)), 600)
    local stream = front:begin("POST", COMPLETION, body(600))
    running(worker, 1)
    f.nats:kill()
    assert.equal(whole, text_of(stream:finish(), 600))
    assert.equal(whole, text_of(front:post(COMPLETION, body(600)), 600))
    assert.equal(0, front:metric "perilune_bus_lost_total")
    assert.equal(0, front:metric "perilune_bus_connected")
    f.nats:start_again()
    soon(function() return front:metric "perilune_bus_connected" == 1 end)
    assert.equal(whole, text_of(front:post(COMPLETION, body(600)), 600))
  end)

  it("tells of a process that dies, and its stream moves", function()
    local front = start { workers = 2, frontend = { "--migration-limit", "3" } }
    connect(front)
    local whole = text_of(front:post(COMPLETION, body(600)), 600)
    local stream = front:begin("POST", COMPLETION, body(600))
    local worker = busy_worker()
    worker:signal "KILL"
    assert.equal(whole, text_of(stream:finish(), 600))
    assert.is_truthy(front.process:log():find "%(worker/%d: gone%)")
    soon(function() return front:metric(LINKS) == 1 end)
  end)

  it("is left when the other process stands still, and comes back", function()
    local front = start { workers = 2, frontend = { "--migration-limit", "3",
      "--lost-after", "1" } }
    connect(front)
    local whole = text_of(front:post(COMPLETION, body(600)), 600)
    local stream = front:begin("POST", COMPLETION, body(600))
    local worker = busy_worker()
    worker:signal "STOP"
    assert.equal(whole, text_of(stream:finish(), 600))
    assert.is_truthy(front.process:log():find "%(worker/%d: silent%)")
    worker:signal "CONT"
    f:ready(2)
    connect(front)
  end)
end)
