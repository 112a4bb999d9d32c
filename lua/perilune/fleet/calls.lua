-- SPDX-License-Identifier: Apache-2.0
-- fleet/calls.lua - questions between processes: a word and JSON, or bytes, there and
-- back.
--
--   local card, why = calls.ask(rt, peer, "card")
--   calls.answer({ card = function(arg) return bytes end })          what others may ask
--
-- A handler answers a string, or nil and why; it runs in a task of its own.

local pl = require "perilune.ffi"
local flow = require "perilune.flow"
local log = require "perilune.log"
local C, ffi = pl.C, pl.ffi

local M = {}

local call_ptr = ffi.typeof "pl_call *"
local len_out = ffi.new "size_t[1]"
local TIMEOUT_MS = 20000

local function text_of(call)
  local text = C.pl_call_text(call, len_out)
  return ffi.string(text, len_out[0])
end

-- Asks a peer; only in a task. The answer, or nil and why, and whether none came at all.
function M.ask(rt, peer, word, arg, timeout_ms)
  local text = word .. "\n" .. (arg or "")
  local id = C.pl_call_send(rt, peer, text, #text, timeout_ms or TIMEOUT_MS)
  if id < 0 then return pl.refusal(id) end
  local ev = flow.await(id, "reply")
  flow.forget(id, "reply")
  if ev.object == nil then
    return nil, ("it did not answer '%s' (%s)"):format(word,
      ffi.string(C.pl_status_name(ev.a))), true
  end
  local call = ffi.cast(call_ptr, ev.object)
  local answer = text_of(call)
  C.pl_call_close(call)
  if answer:sub(1, 1) == "+" then return answer:sub(2) end
  return nil, answer:sub(2)
end

local function handle(handlers, ev)
  local call = ffi.cast(call_ptr, ev.object)
  local word, arg = text_of(call):match "^([%w_]*)\n(.*)$"
  local handler = word and handlers[word]
  local ok, answer, why = true, nil, ("it does not know '%s'"):format(tostring(word))
  if handler then ok, answer, why = xpcall(handler, debug.traceback, arg) end
  if not ok then
    log.error("%s", answer)
    answer, why = nil, "it failed"
  end
  local text = answer and "+" .. answer or "-" .. tostring(why)
  C.pl_call_answer(call, text, #text)
  C.pl_call_close(call)
end

-- From now on answers what others ask, by these handlers.
function M.answer(handlers)
  flow.on("call", function(ev) handle(handlers, ev) end)
end

return M
