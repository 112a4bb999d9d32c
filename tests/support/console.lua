-- SPDX-License-Identifier: Apache-2.0
-- console.lua - a server whose sockets are in a folder of the test's own, and consoles.
--
--   local c = console.start()
--   local code, out, err = c:attach "-e 'requests()'"
--   c.server:stop()

local scratch = require "scratch"
local serving = require "support.serving"

local M = {}

local Console = {}
Console.__index = Console

-- A folder that sockets can be in; env: what makes processes use it.
function M.folder()
  local dir = scratch.folder()
  assert(os.execute(("chmod 700 '%s'"):format(dir.path)) == 0)
  return dir, { XDG_RUNTIME_DIR = dir.path, XDG_STATE_HOME = dir.path .. "/state" }
end

function M.start(flags, recipe)
  local dir, env = M.folder()
  local self = { dir = dir, env = env, server = serving.start(flags, env, recipe) }
  return setmetatable(self, Console)
end

-- A shell command with PERILUNE as the program: exit code, output, errors.
function Console:sh(command)
  local words = {}
  for name, value in pairs(self.env) do
    words[#words + 1] = ("export %s='%s'"):format(name, value)
  end
  words[#words + 1] = ("PERILUNE='%s'"):format(scratch.program)
  words[#words + 1] = command
  return scratch.sh(table.concat(words, "; "))
end

function Console:attach(words)
  return self:sh("$PERILUNE attach " .. words .. " </dev/null")
end

-- What an expression prints; it must go well.
function Console:eval(expression)
  local code, out, err = self:attach(("-e '%s'"):format(expression))
  assert(code == 0, err)
  return (out:gsub("\n$", ""))
end

-- Types lines into a console, as a script does: exit code, output, errors.
function Console:type(lines, words)
  local file = self.dir.write("typed", table.concat(lines, "\n") .. "\n")
  return self:sh(("$PERILUNE attach %s <'%s'"):format(words or "", file))
end

-- Whether a terminal can be made up: an empty root has no /dev/pts.
function M.has_terminals()
  return (scratch.sh(("'%s' -c 'import os; os.openpty()'"):format(
    os.getenv "PERILUNE_PYTHON" or "python3"))) == 0
end

-- Talks to a command in a terminal, by the steps of pty_talk.py: exit code and all that was
-- shown.
function Console:talk(command, steps)
  local file = self.dir.write("steps", table.concat(steps, "\n") .. "\n")
  local code, out, err = self:sh(("'%s' tests/support/pty_talk.py 60 '%s' $PERILUNE %s"):format(
    os.getenv "PERILUNE_PYTHON" or "python3", file, command))
  assert(code ~= 99, err .. out)
  return code, out
end

-- Stops the server and forgets the folder; what it logged.
function Console:stop()
  local log = self.server:stop()
  self.dir.remove()
  return log
end

return M
