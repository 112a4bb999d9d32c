-- SPDX-License-Identifier: Apache-2.0
-- tools/test.lua - perilune test: busted specs of recipes, inside this program, so that
-- `require "perilune"` works and Lua is the one that hooks run in. No server is needed.
--
-- 0: all passed. 1: a test failed, or a spec is wrong. 2: the command is, or there is no
-- busted.

local M = {}

local HELP = [[
perilune test SPEC... [busted's options]

Runs tests of recipes with busted (https://lunarmodules.github.io/busted). In a spec,
require "perilune" is what recipes see; pl.load "my.lua" is a recipe's table, whose hooks
can be called, and pl.fleet { { name = "a", cached = 3 } } stands in for workers.]]

local INSTALL = "apt-get install lua-busted; or luarocks --lua-version 5.1 install busted"

-- The first word that names a file that is not there.
local function missing(words)
  for _, word in ipairs(words) do
    if word:match "%.lua$" and not word:match "^%-" then
      local file = io.open(word, "rb")
      if not file then return word end
      file:close()
    end
  end
end

function M.run(words, complain)
  if words[1] == "--help" or words[1] == "-h" then
    print(HELP)
    return 0
  end
  if not words[1] or words[1]:match "^%-" then
    return complain("'test' needs a spec", "perilune test my_spec.lua")
  end
  local gone = missing(words)
  if gone then return complain(("no file '%s'"):format(gone)) end
  require "perilune"                        -- loaded before, it stays from spec to spec
  local there, runner = pcall(require, "busted.runner")
  if not there then return complain("'test' needs busted", INSTALL) end
  rawset(_G, "arg", { [0] = "perilune test", "--ignore-lua", unpack(words) })
  -- busted tells of failed tests by an error without a message, and finds out by its
  -- caller that it is embedded: hence a function of our own around it.
  local ok, message = pcall(function() runner { standalone = false } end)
  if message then io.stderr:write("perilune: ", tostring(message), "\n") end
  return ok and 0 or 1
end

return M
