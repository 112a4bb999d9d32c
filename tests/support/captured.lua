-- SPDX-License-Identifier: Apache-2.0
-- captured.lua - what a function writes to standard error, as the log does.
--
--   local text = captured(function() log.info "hello" end)
local ffi = require "ffi"

ffi.cdef [[
int t_log_dup(int) __asm__("dup");
int t_log_dup2(int, int) __asm__("dup2");
int t_log_open(const char *, int, ...) __asm__("open");
int t_log_close(int) __asm__("close");
]]
local WRITE = 1

return function(fn)
  local name = os.tmpname()
  local file, before = ffi.C.t_log_open(name, WRITE), ffi.C.t_log_dup(2)
  ffi.C.t_log_dup2(file, 2)
  local ok, why = pcall(fn)
  ffi.C.t_log_dup2(before, 2)
  ffi.C.t_log_close(before)
  ffi.C.t_log_close(file)
  local f = assert(io.open(name))
  local text = f:read "*a"
  f:close()
  os.remove(name)
  assert(ok, why)
  return text
end
