-- SPDX-License-Identifier: Apache-2.0
-- api/door.lua - a process's HTTP port, from before its model is loaded.
--
-- A port that is taken is found out at once, not after minutes of loading. Whoever
-- connects while the model loads is told so: 503 with Retry-After. /live answers as it
-- always does.

local pl = require "perilune.ffi"
local health = require "perilune.api.health"
local log = require "perilune.log"
local machine = require "perilune.recipe.machine"
local serve = require "perilune.api.serve"
local health_routes = require "perilune.api.health_routes"
local C, ffi = pl.C, pl.ffi

local M = {}

local SIGHUP = 1
local BATCH = 8
local exchange_ptr = ffi.typeof "pl_exchange *"
local LOADING = { status = 503,
  message = "The model is still being loaded; try again in a moment." }

-- Listens: the URL of it, or nil and why. `flag` chooses another port.
function M.open(rt, host, port, flag)
  local bound = C.pl_listen(rt, host, port)
  if bound >= 0 then return ("http://%s:%d"):format(host, bound) end
  local _, why, name = pl.refusal(bound)
  local holder = name == "PL_EIO" and machine.listener(port)
  if holder then why = ("%s by %s; %s chooses another"):format(why, holder, flag) end
  return nil, why
end

local function answer(x)
  if ffi.string(C.pl_exchange_path(x)) == "/live" then
    health_routes.reply(x, health.live())
  else
    serve.refuse(x, LOADING)
  end
  C.pl_exchange_release(x)
end

-- A function to call now and then while nobody else polls for events, that is, before
-- flow.run. It answers those who connect, and says whether a signal asks for the end.
function M.watcher(rt)
  local events, asked = ffi.new("pl_event[?]", BATCH), false
  return function()
    for i = 0, C.pl_poll(rt, events, BATCH, 0) - 1 do
      local ev = events[i]
      if ev.kind == C.PL_EV_REQUEST then
        answer(ffi.cast(exchange_ptr, ev.object))
      elseif ev.kind == C.PL_EV_SIGNAL and ev.a ~= SIGHUP then
        log.info("stopping: signal %d", ev.a)
        asked = true
      end
    end
    return asked
  end
end

return M
