-- SPDX-License-Identifier: Apache-2.0
-- fleet/progress_bar.lua - a bar on a terminal; nothing where standard error is none.

local C = require("perilune.ffi").C

local M = {}

local WIDTH = 30
local NONE = { update = function() end, done = function() end }

-- bar.update(done, total) draws it; bar.done() takes it away.
function M.open(what)
  if C.pl_terminal_is(2) == 0 then return NONE end
  local last = -1
  local bar = {}
  function bar.update(done, total)
    local filled = math.floor(WIDTH * done / math.max(total, 1))
    if filled == last then return end
    last = filled
    io.stderr:write(("\r%s [%s%s]"):format(what, ("#"):rep(filled),
      (" "):rep(WIDTH - filled)))
    io.stderr:flush()
  end
  function bar.done()
    if last >= 0 then io.stderr:write("\r" .. (" "):rep(WIDTH + #what + 3) .. "\r") end
  end
  return bar
end

return M
