-- SPDX-License-Identifier: Apache-2.0
-- Requests given up at every moment of their life, streamed or not, by hanging up or by
-- name: nothing of them is left, in one process and over a bus whose workers die.
local deployment = require "support.deployment"
local process = require "support.process"
local requests = require "stress.requests"
local serving = require "support.serving"
local traffic = require "support.traffic"

local CANCELS = (process.slow and 1 or 5) * (tonumber(os.getenv "PERILUNE_STRESS") or 2000)
local SEED = tonumber(os.getenv "PERILUNE_SEED") or 1
local AT_ONCE = 64
local PATH = "/v1/completions"

-- Few run at once, so that others wait in line.
local ENGINE = { "--threads", "1", "--max-num-seqs", "8", "--max-num-batched-tokens", "64",
  "--num-gpu-blocks-override", "300", "--max-model-len", "2048" }

local function with(more)
  local flags = { unpack(ENGINE) }
  for _, flag in ipairs(more) do flags[#flags + 1] = flag end
  return flags
end

-- What is asked: short and long prompts, and some so big that the pool prepares them.
local function body_of(roll)
  local body = { max_tokens = 1000, ignore_eos = true, stream = roll(1, 2) == 1,
    temperature = roll(0, 1), n = roll(1, 8) == 1 and 3 or 1 }
  local size = roll(1, 40)
  if size == 1 then
    body.prompt, body.truncate_prompt_tokens = ("big words "):rep(4000), 64
  elseif size < 10 then
    body.prompt = ("word "):rep(roll(100, 300))
  else
    body.prompt = "x"
  end
  return body
end

local Canceller = {}
Canceller.__index = Canceller

local function open(port)
  return setmetatable({ port = port, roll = requests.dice(SEED), traffic = traffic.open(),
    under_way = {}, done = 0, asked = 0 }, Canceller)
end

-- When: at once, once something came, or after a while.
function Canceller:ask()
  local roll = self.roll
  self.asked = self.asked + 1
  local id = "cancel-" .. self.asked
  local x = self.traffic:send(self.port, traffic.post(PATH, body_of(roll), id), "request")
  x.id, x.by_name = id, roll(1, 10) == 1
  local way = roll(1, 4)
  if way == 1 then
    x.after_bytes = roll(1, 5000)
  elseif way > 2 then
    x.at = x.started + roll(0, 200) / 1000
  else
    x.at = x.started
  end
  x.latest = x.started + 0.4
  self.under_way[x] = true
end

function Canceller:give_up(x)
  self.under_way[x] = nil
  self.done = self.done + 1
  if x.by_name then                         -- then the server ends it
    self.traffic:send(self.port, traffic.post("/v1/cancel/" .. x.id, ""), "cancel")
  else
    self.traffic:cut(x)
  end
end

local function is_due(x, now)
  return x.at and now >= x.at or x.after_bytes and x.bytes >= x.after_bytes
    or now >= x.latest
end

function Canceller:run(n, meanwhile)
  local running = 0
  while self.done < n do
    for _ = running + 1, AT_ONCE do self:ask() end
    self.traffic:poll(2, function(x)
      self.under_way[x] = nil
    end)
    local now = traffic.now()
    for x in pairs(self.under_way) do
      if is_due(x, now) then self:give_up(x) end
    end
    running = 0
    for _ in pairs(self.under_way) do running = running + 1 end
    if meanwhile then meanwhile(now) end
  end
  for x in pairs(self.under_way) do self:give_up(x) end
  -- What was given up by name must end.
  local deadline = traffic.now() + 60
  while #self.traffic.active > 0 and traffic.now() < deadline do
    self.traffic:poll(100, function() end)
  end
  assert(#self.traffic.active == 0, "a request that was cancelled by name goes on")
end

describe("cancelled requests", function()
  it("leave nothing in one process", function()
    local s = serving.start(ENGINE)
    finally(function() s.process:remove() end)
    local c = open(s.port)
    c:run(300)
    assert.is_true(s:idle(30))
    local descriptors = deployment.descriptors(s.process)
    c.done = 0
    c:run(CANCELS)
    assert.is_true(s:idle(30))
    local now
    process.wait_for(10, function()
      now = deployment.descriptors(s.process)
      return now <= descriptors
    end)
    assert.is_true(now <= descriptors, ("%d descriptors, and were %d"):format(now, descriptors))
    s:stop()
  end)

  it("leave nothing in a frontend and its workers", function()
    local f = deployment.start { workers = 2, frontend = { "--migration-limit", "1000" },
      worker = with { "--drain-timeout", "0.2" } }
    finally(function() f:remove() end)
    local c, roll, next_at, leaving = open(f.frontends[1].port), requests.dice(SEED), nil, {}
    c:run(300)
    local descriptors = f.frontends[1]:descriptors()
    c.done = 0
    -- Every other second a worker dies or drains, another takes its place: some requests
    -- are given up while they move.
    c:run(CANCELS, function(now)
      if next_at and now < next_at then return end
      next_at = now + 2
      local w = table.remove(f.workers, 1)
      f:add_worker()
      local how = roll(1, 2) == 1 and "KILL" or "TERM"
      w:signal(how)
      leaving[#leaving + 1] = { w, how }
    end)
    for _, one in ipairs(leaving) do
      if one[2] == "TERM" then one[1]:ended() else one[1].process:remove() end
    end
    f:ready(2)
    for _, w in ipairs(f.workers) do
      assert.is_truthy(process.wait_for(30, function() return w:is_idle() end))
    end
    local now
    process.wait_for(10, function()
      now = f.frontends[1]:descriptors()
      return now <= descriptors
    end)
    assert.is_true(now <= descriptors, ("%d descriptors, and were %d"):format(now, descriptors))
    f:close()
  end)
end)
