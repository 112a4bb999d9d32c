-- SPDX-License-Identifier: Apache-2.0
-- Runs busted inside the program: build/perilune lua tests/run.lua [FOLDER|FILE] [busted's words]
-- So tests see the engine, the host and the pool as users do.
package.path = "./lua/?.lua;./lua/?/init.lua;./tests/?.lua;" .. package.path
for i, word in ipairs { "--ignore-lua", "-f", "tests/busted.conf" } do
  table.insert(arg, i, word)
end
require "busted.runner" { standalone = false }
