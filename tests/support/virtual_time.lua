-- SPDX-License-Identifier: Apache-2.0
-- virtual_time.lua - runs fn in a task until it returns, by a clock that goes on only while
-- nobody has anything to do; nothing comes from C.
--
--   local time = 1000
--   run_by(function() return time end, function(t) time = t end, function() ... end)
local flow = require "perilune.flow"

return function(get, set, fn)
  local ok, why
  flow.spawn(function()
    ok, why = pcall(fn)
    flow.stop()
  end)
  flow.run(nil, function(_, _, _, ms)
    set(get() + ms / 1000)
    return 0
  end, get)
  assert(ok, why)
end
