-- SPDX-License-Identifier: Apache-2.0
-- watch/canary.lua - tries an engine that has had nothing to do for a while.
--
-- A sequence of one token goes through it to its first token, within TRIAL_SECONDS, or
-- api/health.lua is told that it did not. No metric counts it.
--
--     idle for `wait` --> trial --answered--> well
--                           |
--                           +--time is over--> told of --answered at last--> well

local pl = require "perilune.ffi"
local flow = require "perilune.flow"
local log = require "perilune.log"
local C, ffi = pl.C, pl.ffi

local M = {}

-- Within this an idle engine brings one token.
M.TRIAL_SECONDS = 3
-- How often it is asked whether there is something to try.
local LOOK_SECONDS = 1

local SLOW = ("did not answer a health check within %d s"):format(M.TRIAL_SECONDS)

local function trial_sequence(token)
  local params = ffi.new "pl_params"
  C.pl_params_init(params)
  params.temperature, params.max_tokens, params.ignore_eos = 0, 1, 1
  local seq = C.pl_seq_open(ffi.new("int32_t[1]", token), 1, params)
  if seq ~= nil then C.pl_seq_uncounted(seq) end
  return seq
end

-- What became of it, in words; nil if it ended as it should.
local function outcome(stream)
  local result = ffi.new "pl_stream_end"
  C.pl_stream_result(stream, result)
  if result.finish == C.PL_FINISH_LENGTH then return nil end
  return "failed a health check"
end

-- The process may end in the middle of a trial: then its stream is collected.
local function open_stream(o)
  return ffi.gc(C.pl_stream_open(o.rt, o.text, C.PL_STREAM_WHOLE, nil), C.pl_stream_close)
end

local function close_stream(stream)
  C.pl_stream_close(ffi.gc(stream, nil))
end

local function tell(o, why)
  if why then log.error("engine %d %s", o.index, why) end
  o.health:tried(o.index, why)
end

-- Waits for the trial's end; told of when the time for it is over.
local function watch(o, stream)
  local id, over = C.pl_stream_id(stream), false
  flow.listen(id, "done")
  flow.spawn(function()
    flow.sleep(M.TRIAL_SECONDS)
    if not over then tell(o, SLOW) end
  end)
  flow.await(id, "done")
  over = true
  tell(o, outcome(stream))
  close_stream(stream)
  flow.forget(id, "done")
end

-- One trial, to its end. `o`: rt, text, engine, index, health; token, what is asked.
function M.try(o)
  local seq = trial_sequence(o.token or 0)
  local stream = open_stream(o)
  local status = seq == nil and C.PL_EINVAL
    or C.pl_stream_start(stream, o.engine, seq)
  if status < 0 then
    local _, why = pl.refusal(status)
    close_stream(stream)
    if seq ~= nil then C.pl_seq_close(seq) end
    return tell(o, "refused a health check: " .. why)
  end
  watch(o, stream)
end

-- In a task of its own: tries the engine each time it has been idle for wait() seconds;
-- while wait() is nil, never.
function M.run(o)
  local s, since = ffi.new "pl_engine_stats", C.pl_now_ns()
  while true do
    local wait = o.wait()
    flow.sleep(math.min(wait or LOOK_SECONDS, LOOK_SECONDS))
    C.pl_engine_stats_get(o.engine, s)
    if s.last_step_ns > since then since = s.last_step_ns end
    local idle = tonumber(C.pl_now_ns() - since) / 1e9
    if wait and s.busy_since_ns == 0 and idle >= wait then
      M.try(o)
      since = C.pl_now_ns()
    end
  end
end

return M
