-- SPDX-License-Identifier: Apache-2.0
-- log.lua - lines for the log: log.info("listening at %s:%d", host, port).

local engine = require "perilune.ffi"
local C = engine.C

local M = {}

local LEVELS = {
  debug = C.PL_LOG_DEBUG, info = C.PL_LOG_INFO, warning = C.PL_LOG_WARN,
  error = C.PL_LOG_ERROR,
}

local function writer(level)
  return function(text, ...)
    if select("#", ...) > 0 then text = text:format(...) end
    C.pl_log_write(level, text, #text)
  end
end

M.debug = writer(LEVELS.debug)
M.info = writer(LEVELS.info)
M.warning = writer(LEVELS.warning)
M.error = writer(LEVELS.error)

-- Writes only what is at least as grave as this.
function M.level(name)
  local level = LEVELS[name]
  if not level then error(("log.level: no level '%s'"):format(tostring(name)), 2) end
  C.pl_log_level(level)
end

return M
