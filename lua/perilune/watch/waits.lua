-- SPDX-License-Identifier: Apache-2.0
-- watch/waits.lua - says in the log which requests wait here, and for what.
--
--   local wait = waits.begin(server, job.log, "for a worker")
--   ...
--   waits.done(server, wait)
--
-- What has waited for FIRST seconds is said, and again each time it has waited twice as
-- long. However many wait, a look says no more than MOST of them, the rest as a number.
-- How long a sequence waits for its engine, the engine says itself (core/engine_wait.c).

local pl = require "perilune.ffi"
local flow = require "perilune.flow"
local log = require "perilune.log"
local C = pl.C

local M = {}

M.FIRST, M.LOOK_SECONDS = 5, 1
local MOST = 4

local function now()
  return tonumber(C.pl_now_ns()) * 1e-9
end

-- Says what is due.
local function look(waiting)
  local t, said, unsaid = now(), 0, 0
  for wait in pairs(waiting) do
    if t >= wait.due then
      wait.due = wait.since + 2 * (t - wait.since)
      if said < MOST then
        wait.log:info("a request has waited %.0f s %s", t - wait.since, wait.what)
        said = said + 1
      else
        unsaid = unsaid + 1
      end
    end
  end
  if unsaid > 0 then log.info("%d more requests have waited as long", unsaid) end
end

local function watch(server)
  while next(server.waits) do
    flow.sleep(M.LOOK_SECONDS)
    look(server.waits)
  end
  server.waits = nil
end

-- From now on somebody waits. `what`: for what, or to do what.
function M.begin(server, to, what)
  local t = now()
  local wait = { log = to, what = what, since = t, due = t + M.FIRST }
  if not server.waits then
    server.waits = {}
    flow.spawn(watch, server)
  end
  server.waits[wait] = true
  return wait
end

-- It waits no longer; nil is let pass.
function M.done(server, wait)
  if wait then server.waits[wait] = nil end
end

return M
