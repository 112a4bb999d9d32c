-- SPDX-License-Identifier: Apache-2.0
-- device.lua - for tests: devices by name. Returns the device, or nil, message, name.

local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

return function(name, kernels, threads, depth)
  local d = C.pl_device_open(ffi.new("pl_device_options", {
    name = name, kernels = kernels, n_threads = threads or 1, depth = depth or 0 }))
  if d == nil then return pl.refusal(C.PL_EINVAL) end
  return d
end
