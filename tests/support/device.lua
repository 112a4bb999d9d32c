-- SPDX-License-Identifier: Apache-2.0
-- device.lua - for tests: devices by name.
--
--   open_device(name, kernels, threads, depth, eager)   the device, or nil, message, name
--   open_device.has(name, kernels)               whether it can be had, as those kernels

local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local M = {}

function M.open(name, kernels, threads, depth, eager)
  local d = C.pl_device_open(ffi.new("pl_device_options", {
    name = name, kernels = kernels, n_threads = threads or 1, depth = depth or 0,
    eager = eager or false }))
  if d == nil then return pl.refusal(C.PL_EINVAL) end
  return d
end

function M.has(name, kernels)
  local d = M.open(name, kernels)
  if d then C.pl_device_close(d) end
  return d ~= nil
end

return setmetatable(M, { __call = function(_, ...) return M.open(...) end })
