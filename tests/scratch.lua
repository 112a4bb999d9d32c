-- SPDX-License-Identifier: Apache-2.0
-- scratch.lua - a folder of its own for a test, and programs run as processes.

local M = {}

-- A new folder; write(name, text) puts a file into it and answers its path.
function M.folder()
  local path = os.tmpname()
  os.remove(path)
  assert(os.execute(("mkdir -p '%s'"):format(path)) == 0)
  local folder = { path = path }
  function folder.write(name, text)
    local inner = name:match "^(.*)/"
    if inner then os.execute(("mkdir -p '%s/%s'"):format(path, inner)) end
    local file = assert(io.open(path .. "/" .. name, "w"))
    file:write(text)
    file:close()
    return path .. "/" .. name
  end
  function folder.remove() os.execute(("rm -rf '%s'"):format(path)) end
  return folder
end

local function slurp(path)
  local file = assert(io.open(path))
  local text = file:read "*a"
  file:close()
  os.remove(path)
  return text
end

-- Runs a shell command: its exit code, stdout, stderr.
function M.sh(command)
  local out, err = os.tmpname(), os.tmpname()
  local status = os.execute(("( %s ) >'%s' 2>'%s'"):format(command, out, err))
  return math.floor(status / 256), slurp(out), slurp(err)
end

-- The program that runs the tests, for a shell in any folder.
local program = arg[-2]
M.program = program:sub(1, 1) == "/" and program or os.getenv "PWD" .. "/" .. program

return M
