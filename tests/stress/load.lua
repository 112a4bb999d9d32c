-- SPDX-License-Identifier: Apache-2.0
-- load.lua - requests of every kind kept under way, each answer held against the one that
-- a plain process gave when nothing was wrong.
--
--   local l = load.open { list = load.record(load.ENGINE, 1), streams = 64, seed = 1,
--                         port = function() return frontend.port end }
--   while ... do l:tick(true) end
--   l:settle(120)
--   l.failures, l.done, l.cancelled

local process = require "support.process"
local requests = require "stress.requests"
local serving = require "support.serving"
local traffic = require "support.traffic"

local M = {}

-- Small enough that prompts are cut and sequences preempted, slow enough that streams
-- last for seconds. The flags of whoever must give the same answers.
M.ENGINE = { "--threads", "1", "--max-num-seqs", "24", "--max-num-batched-tokens", "64",
  "--num-gpu-blocks-override", "500", "--max-model-len", "2048", "--load-format", "dummy",
  "--hf-overrides", ('{"num_hidden_layers":%d}'):format(process.slow and 3 or 24) }
M.TOKENS, M.VARIANTS = process.slow and 300 or 1200, 3

-- M.ENGINE and more.
function M.flags(more)
  local flags = { unpack(M.ENGINE) }
  for _, flag in ipairs(more) do flags[#flags + 1] = flag end
  return flags
end

-- Asks all of a list at once; each(request, x) with every answer, which must be one.
function M.ask_all(port, list, each)
  local t, left = traffic.open(), #list
  for i, request in ipairs(list) do
    t:send(port, traffic.post(request.path, request.body), i)
  end
  while left > 0 do
    t:poll(1000, function(x)
      left = left - 1
      assert(x.status == 200, ("%s: %s %s"):format(list[x.tag].kind, x.why, x.body))
      if each then each(list[x.tag], x) end
    end)
  end
end

-- The list of a seed's requests, each with its answer.
function M.record(flags, seed)
  local list, stops = requests.list(seed, M.VARIANTS, M.TOKENS), {}
  local plain = serving.start(flags)
  for _, request in ipairs(list) do
    if request.kind == "stop_string" then stops[#stops + 1] = request end
  end
  M.ask_all(plain.port, stops, function(request, x)
    requests.with_stop(request, traffic.value(x).choices[1].text)
  end)
  M.ask_all(plain.port, list, function(request, x)
    request.answer = traffic.plain(x, request.kind == "unseeded")
  end)
  plain:stop()
  return list
end

local Load = {}
Load.__index = Load

-- options: list, streams (how many at once), seed, port() of the frontend to ask next;
-- cancel: one in so many is hung up on (nil: none).
function M.open(options)
  return setmetatable({ list = options.list, streams = options.streams, port = options.port,
    cancel = options.cancel, roll = requests.dice(options.seed), traffic = traffic.open(),
    slots = {}, failures = {}, asked = 0, done = 0, cancelled = 0 }, Load)
end

function Load:fail(text, ...)
  local line = text:format(...)
  self.failures[#self.failures + 1] = line
  if #self.failures <= 5 then io.stderr:write(line, "\n") end
end

-- Puts the next request into a slot, of the slot's kind.
local function ask(self, slot)
  local kind = (slot - 1) % #requests.KINDS
  local request = self.list[kind * M.VARIANTS + self.roll(1, M.VARIANTS)]
  self.asked = self.asked + 1
  local id = ("%s-%d"):format(request.kind, self.asked)
  local x = self.traffic:send(self.port(), traffic.post(request.path, request.body, id),
    slot)
  x.request, x.id = request, id
  self.slots[slot] = x
  if self.cancel and self.roll(1, self.cancel) == 1 then
    x.cut_at = traffic.now() + self.roll(0, 4000) / 1000
  end
end

local function ended(self, x)
  self.slots[x.tag] = nil
  local answer = traffic.plain(x, x.request.kind == "unseeded")
  self.done = self.done + 1
  if answer == x.request.answer then return end
  self:fail("%s: %s", x.id, traffic.difference(x.request.answer, answer))
end

local function cut_some(self)
  local now = traffic.now()
  for slot, x in pairs(self.slots) do
    if x.cut_at and now >= x.cut_at then
      self.traffic:cut(x)
      self.slots[slot] = nil
      self.cancelled = self.cancelled + 1
    end
  end
end

-- Some 20 ms of it. `more`: those that have ended are followed by others.
function Load:tick(more)
  cut_some(self)
  for slot = 1, more and self.streams or 0 do
    if not self.slots[slot] then ask(self, slot) end
  end
  self.traffic:poll(20, function(x) ended(self, x) end)
end

-- So many bytes have come for what is under way.
function Load:bytes()
  local sum = 0
  for _, x in pairs(self.slots) do sum = sum + x.bytes end
  return sum
end

-- Waits for what is under way; while() is called now and then. Beyond the time: failures.
function Load:settle(seconds, meanwhile)
  local deadline = traffic.now() + seconds
  while next(self.slots) and traffic.now() < deadline do
    self:tick(false)
    if meanwhile then meanwhile() end
  end
  for slot, x in pairs(self.slots) do
    self:fail("%s: no end in %d s, %d bytes so far", x.id, seconds, x.bytes)
    self.traffic:cut(x)
    self.slots[slot] = nil
  end
end

return M
