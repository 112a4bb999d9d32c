-- SPDX-License-Identifier: Apache-2.0
-- recipe/print.lua - what `print` does in a recipe: a line of the log that says who
-- printed it; to the console, where a function is called from there.

local log = require "perilune.log"

local M = {}

-- The hook that is being asked, nil: none; and where a console's lines go while it runs.
M.hook, M.console = nil, nil

function M.print(...)
  local parts = {}
  for i = 1, select("#", ...) do parts[i] = tostring((select(i, ...))) end
  local text = table.concat(parts, "\t")
  if M.console and not M.hook then return M.console(text) end
  log.info("%s: %s", M.hook or "the recipe", text)
end

return M
