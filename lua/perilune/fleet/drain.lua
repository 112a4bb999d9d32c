-- SPDX-License-Identifier: Apache-2.0
-- fleet/drain.lua - how a process is emptied, and how it ends.
--
--   ready --drain--> draining --nothing runs, or drain_timeout--> leaving --> (exit)
--     ^                 |
--     +-----resume------+

local pl = require "perilune.ffi"
local bus = require "perilune.fleet.bus"
local counters = require "perilune.fleet.counters"
local flow = require "perilune.flow"
local log = require "perilune.log"
local C = pl.C

local M = {}

-- How long an end waits for answers that were cut off, and for sequences handed over.
local CUT_SECONDS, HAND_OVER_SECONDS = 1, 5
-- So long do the last acknowledgements take.
local LAST_WORDS_SECONDS = 0.15
local LOOK_SECONDS = 0.005

local function now()
  return tonumber(C.pl_now_ns()) * 1e-9
end

-- Whether nothing runs here, or at worker `w` alone.
function M.is_idle(self, w)
  if w then return counters.load(w) == 0 end
  if self.server and self.server.in_flight > 0 then return false end
  for _, e in ipairs(self.w and self.w.engines or {}) do
    C.pl_engine_stats_get(e.engine, self.stats)
    local s = self.stats          -- blocks in use without a sequence are still fetched
    if s.running + s.waiting + s.waiting_remote + s.blocks_used > 0 then return false end
  end
  return true
end

local function wait_idle(self, seconds)
  local deadline = now() + seconds
  while not M.is_idle(self) and now() < deadline and self.state ~= "ready" do
    flow.sleep(LOOK_SECONDS)
  end
  return M.is_idle(self)
end

-- Says how it stands, to the others too.
function M.set_state(self, state)
  self.state = state
  self.health:drain(state ~= "ready")
  bus.hello(self)
end

-- Lets what runs finish, within drain_timeout; the rest is handed over, or, where there
-- is nobody to take it, cut off. Whether it came to an end, and was not resumed.
function M.run(self)
  if self.state ~= "ready" then return false end
  log.info("draining: %.14g s for running requests", self.recipe.drain_timeout)
  M.set_state(self, "draining")
  if not wait_idle(self, self.recipe.drain_timeout) and self.state == "draining" then
    log.info("drain_timeout is over; moving the requests that still run")
    M.set_state(self, "leaving")
    if self.server then self.server:cut_off() end
    wait_idle(self, self.server and CUT_SECONDS or HAND_OVER_SECONDS)
  end
  if self.state == "ready" then return false end
  log.info("drained")
  return true
end

-- What was sent here before its sender knew better is refused, and goes elsewhere.
local function leave_bus(self)
  for i in ipairs(self.w and self.w.engines or {}) do
    C.pl_bus_serve(self.rt, i - 1, nil)
  end
  wait_idle(self, HAND_OVER_SECONDS)
  flow.sleep(LAST_WORDS_SECONDS)
  C.pl_bus_leave(self.rt)
end

-- Ends it in good order; asked a second time, at once.
function M.stop(self)
  if self.stopping then return flow.stop() end
  self.stopping = true
  if self.server then self.server:refuse_new() end
  self.state = "ready"                      -- a drain under way begins anew
  M.run(self)
  if self.on_bus then leave_bus(self) end
  flow.stop()
end

return M
