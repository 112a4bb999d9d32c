-- SPDX-License-Identifier: Apache-2.0
-- ffi.lua - the engine's functions: the only ffi.cdef and ffi.load of the project.
--
-- In the `perilune` program they are there already; a plain LuaJIT finds libperilune.so
-- by $PERILUNE_LIB or as the system does. One function is declared by hand; the library
-- itself says what the rest are, so header and library cannot differ.

local ffi = require "ffi"

ffi.cdef "const char *pl_cdef(void);"

local linked = pcall(function() return ffi.C.pl_cdef end)
local C = linked and ffi.C or ffi.load(os.getenv "PERILUNE_LIB" or "perilune")

ffi.cdef(ffi.string(C.pl_cdef()))

local M = { C = C, ffi = ffi }

-- What the last refusal on this thread was: nil, message, name. Return it as it is.
function M.refusal(status)
  return nil, ffi.string(C.pl_error_text()), ffi.string(C.pl_status_name(status or 0))
end

-- For calls that return a pl_status: the number, or nil, message, name.
function M.check(status)
  if status < 0 then return M.refusal(status) end
  return status
end

-- The bytes of a pl_buf as a string; frees the buffer.
function M.take(buf)
  local s = buf.len > 0 and ffi.string(buf.data, buf.len) or ""
  C.pl_buf_fini(buf)
  return s
end

return M
