-- SPDX-License-Identifier: Apache-2.0
-- Runs one spec file by busted inside the program, so tests see engine, host and pool as
-- users do:
--
--   build/perilune lua tests/spec.lua FILE [busted's words]
--
-- The exit code is 1 where a test failed. tests/run.lua runs many.

package.path = "./lua/?.lua;./lua/?/init.lua;./tests/?.lua;" .. package.path
for i, word in ipairs { "--ignore-lua", "-f", "tests/busted.conf" } do
  table.insert(arg, i, word)
end

-- busted tells of failed tests by an error without a message, and finds out by its caller
-- that it is embedded: hence a function of our own around it.
local ok, message = pcall(function()
  require "busted.runner" { standalone = false }
end)
if message then io.stderr:write("tests/spec.lua: ", tostring(message), "\n") end
return ok and 0 or 1
