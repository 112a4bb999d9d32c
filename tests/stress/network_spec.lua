-- SPDX-License-Identifier: Apache-2.0
-- A worker behind a network of its own, which is cut: shortly, and for longer than a
-- process may be silent. Needs Linux's network namespaces, and the right to make one.
local deployment = require "support.deployment"
local load = require "stress.load"
local nats = require "support.nats"
local process = require "support.process"
local requests = require "stress.requests"
local scratch = require "scratch"
local traffic = require "support.traffic"

local SEED = tonumber(os.getenv "PERILUNE_SEED") or 1

local function must(command)
  local code, _, err = scratch.sh(command)
  assert(code == 0, command .. ": " .. err)
end

-- A namespace with one cable to here, or nil.
local function network()
  local n = tonumber(tostring(os.time()):sub(-4)) % 250 + 1
  local self = { name = "perilune" .. n, cable = "perilune" .. n,
    here = ("10.213.%d.1"):format(n), there = ("10.213.%d.2"):format(n) }
  if scratch.sh("ip netns add " .. self.name) ~= 0 then return nil end
  local made = scratch.sh(("ip link add %s type veth peer name inner netns %s"):format(
    self.cable, self.name))
  if made ~= 0 then
    scratch.sh("ip netns del " .. self.name)
    return nil
  end
  must(("ip addr add %s/30 dev %s && ip link set %s up"):format(self.here, self.cable,
    self.cable))
  must(("ip -n %s addr add %s/30 dev inner && ip -n %s link set inner up && "
    .. "ip -n %s link set lo up"):format(self.name, self.there, self.name, self.name))
  function self.set(state) must(("ip link set %s %s"):format(self.cable, state)) end
  function self.remove() scratch.sh("ip netns del " .. self.name) end
  return self
end

describe("a network that is cut", function()
  local net
  setup(function() net = network() end)
  teardown(function() if net then net.remove() end end)

  local function tick_for(l, seconds)
    local stop = traffic.now() + seconds
    while traffic.now() < stop do l:tick(true) end
  end

  it("shortly or for long changes no answer, and the worker comes back", function()
    if not net then return pending "no network namespaces here" end
    if process.slow then return pending "the chaos does as much under a sanitizer" end
    local list = load.record(load.ENGINE, SEED)
    local server = nats.start "0.0.0.0"
    local f = deployment.start { workers = 1, nats = server,
      worker = load.ENGINE, frontend = { "--migration-limit", "100" } }
    finally(function()
      f:remove()
      server:close()
    end)
    f:add_worker { bus = ("nats://%s:%d"):format(net.here, server.port),
      inside = { "ip", "netns", "exec", net.name } }
    f:ready(2)
    local l = load.open { list = list, streams = 2 * #requests.KINDS, seed = SEED,
      port = function() return f.frontends[1].port end }
    for _, seconds in ipairs { 1, 5 } do
      tick_for(l, 2)
      net.set "down"
      tick_for(l, seconds)
      net.set "up"
      tick_for(l, 3)
    end
    l:settle(120)
    assert.same({}, l.failures)
    local moves = f.frontends[1].process:log()
    assert.is_truthy(moves:find("recreating stream", 1, true))
    f:ready(2)                              -- it is back
    f:close()
  end)

  it("lets a socket across by TCP, by TLS, and for long loses it only", function()
    if not net then return pending "no network namespaces here" end
    local server = nats.start "0.0.0.0"
    local f = deployment.start { workers = 0, frontends = 0, nats = server }
    f.worker = { "--device", "null", "--direct-host", net.there, "--direct-port", "5600" }
    finally(function()
      f:remove()
      server:close()
    end)
    local worker = f:add_worker {
      bus = ("nats://%s:%d"):format(net.here, server.port),
      inside = { "ip", "netns", "exec", net.name } }
    local front = f:add_frontend()
    f:ready(1)
    local function connected()
      local r = front:post("/v1/completions", { prompt = "x", max_tokens = 4 })
      return r.status == 200 and front:metric "perilune_direct_links" == 1
    end
    assert.is_truthy(process.wait_for(60, connected))
    local before = front:metric "perilune_direct_frames_received_total"
    front:post("/v1/completions", { prompt = "x", max_tokens = 50, ignore_eos = true })
    assert.is_true(front:metric "perilune_direct_frames_received_total" > before)
    net.set "down"
    assert.is_truthy(process.wait_for(60, function()
      return front:metric "perilune_direct_links" == 0
    end))
    net.set "up"
    assert.is_truthy(process.wait_for(60, connected))
    worker:signal "TERM"
    worker:ended()
    f:forget(worker)
    f:close()
  end)
end)
