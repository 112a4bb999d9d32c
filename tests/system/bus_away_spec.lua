-- SPDX-License-Identifier: Apache-2.0
-- A bus that cannot be reached, at the start or later: who says what of it.
local deployment = require "support.deployment"
local process = require "support.process"
local serving = require "support.serving"

describe("a bus that is away", function()
  local f
  setup(function()
    f = deployment.start { workers = 1, worker = { "--threads", "1" } }
  end)
  teardown(function() f:remove() end)

  local function health(member)
    local r = member:get "/health"
    local message = r.json.message
    return { r.status, r.json.status, message ~= serving.null and message or nil }
  end

  local function soon(member, status)
    assert.is_truthy(process.wait_for(30, function()
      return member:get "/health".status == status
    end))
  end

  -- Of a frontend at that bus.
  local function log_of(bus, pattern)
    f.frontend = { "--bus", bus }
    local front = f:add_frontend()
    front:await(pattern)
    front:signal "TERM"
    local log = front:ended()
    f.frontend = {}
    f:forget(front)
    return log
  end

  it("is told with its address and the reason, again and again, until it is there", function()
    local front, worker = f.frontends[1], f.workers[1]
    local place = "127.0.0.1:" .. f.nats.port
    local away = ("the bus at nats://%s is away"):format(place)
    local refused = ("cannot connect to %s: Connection refused"):format(place):gsub("%p", "%%%0")
    front:await("(the bus is connected: 127.0.0.1:%d+)")
    assert.same({ 200, "healthy" }, health(front))
    f.nats:kill()
    for _, member in ipairs { front, worker } do
      member:await("WARNING [^\n]*(the bus is away: [^\n]+); trying again\n")
      member:await("WARNING [^\n]*the bus has been away for (%d+ s): " .. refused)
    end
    soon(worker, 503)
    assert.same({ 503, "notready", away }, health(worker))
    assert.same({ 200, "healthy", away }, health(front))     -- within bus_patience

    local late = f:add_frontend()
    late:await("WARNING [^\n]*(the bus is away: " .. refused .. "); trying again\n")
    late:await("WARNING [^\n]*the bus has been away for (%d+ s): " .. refused)
    late:await("(waiting for a worker of model 'tests/golden/llama' in namespace 'perilune' at )")
    assert.same({ 503, "unhealthy", "no worker is available: " .. away }, health(late))
    assert.is_nil(late.process:log():find("serving ", 1, true))

    f.nats:start_again()
    f:ready(1)
    soon(worker, 200)
    assert.same({ 200, "healthy" }, health(front))
    late:await "(serving llama at )"
    assert.equal(200, late:post("/v1/completions", { prompt = "x" }).status)
  end)

  it("may be no NATS server at all", function()
    local place = "127.0.0.1:" .. f.frontends[1].port
    log_of("nats://" .. place,
      "WARNING [^\n]*away[^\n]*: (" .. place:gsub("%p", "%%%0") .. ": no NATS server answers there)")
  end)

  it("has each of its servers named, and no password", function()
    local log = log_of("nats://me:geheim@127.0.0.1:1,nats://127.0.0.1:2", "WARNING [^\n]*"
      .. "(cannot connect to 127.0.0.1:1: Connection refused; "
      .. "cannot connect to 127.0.0.1:2: Connection refused)")
    assert.is_nil(log:find("geheim", 1, true))
  end)
end)
