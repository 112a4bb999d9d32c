-- SPDX-License-Identifier: Apache-2.0
-- api/pool.lua - what a thread of the pool does: prepare big requests, one after the
-- other.
--
-- Each thread has a Lua state of its own (main.c opens it and calls this with the
-- runtime's address). A task's argument is the kind of request and the models' contexts,
-- as bytes; these are decoded again only when they have changed.

local pl = require "perilune.ffi"
local buffer = require "string.buffer"
local models = require "perilune.fleet.served_models"
local prepare = require "perilune.api.prepare"
local C, ffi = pl.C, pl.ffi

local last_blob, list

local function contexts(blob)
  if blob ~= last_blob then
    list, last_blob = models.decode(blob), blob
  end
  return list
end

local function work(task)
  local len = ffi.new "size_t[1]"
  local arg = C.pl_task_arg(task, len)
  local kind, blob = ffi.string(arg, len[0]):match "^(%a+)\n(.*)$"
  local body = C.pl_exchange_body(C.pl_task_exchange(task), len)
  local plan = prepare.run(contexts(blob), kind, body, len[0])
  local result = buffer.encode(plan)
  C.pl_task_done(task, result, #result)
  if math.max(#result, tonumber(len[0])) > 1e6 then collectgarbage() end
end

return function(address)
  local rt = ffi.cast("pl_runtime *", ffi.cast("uintptr_t", address))
  while C.pl_task_closing(rt) == 0 do
    local task = C.pl_task_take(rt, 1000)
    if task ~= nil then work(task) end
  end
end
