-- SPDX-License-Identifier: Apache-2.0
-- pool.lua - a thread of a pool, for tests: answers tasks with their words backwards.
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

return function(address)
  local rt = ffi.cast("pl_runtime *", ffi.cast("uintptr_t", address))
  local len = ffi.new "size_t[1]"
  while C.pl_task_closing(rt) == 0 do
    local j = C.pl_task_take(rt, 60000)
    if j ~= nil then
      local result = ffi.string(C.pl_task_arg(j, len), len[0]):reverse()
      C.pl_task_done(j, result, #result)
    end
  end
end
