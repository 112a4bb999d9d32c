-- SPDX-License-Identifier: Apache-2.0
-- Threads: each has a name, and outside release builds each function knows where it belongs.
local fleet = require "support.fleet"
local pl = require "perilune.ffi"
local process = require "support.process"
local C = pl.C

-- What a shell command prints, its errors too.
local function output(command)
  local pipe = io.popen(command .. " 2>&1")
  local text = pipe:read "*a"
  pipe:close()
  return text
end

describe("a process's threads", function()
  it("have names", function()
    C.pl_log_level(C.PL_LOG_ERROR)
    local f = fleet.open { kind = "null" }
    f:process { engines = 1 }
    local names = output "cat /proc/$PPID/task/*/comm"
    f:close()
    C.pl_log_level(C.PL_LOG_INFO)
    for _, name in ipairs { "perilune", "pl-io", "pl-step" } do
      assert.truthy(("\n" .. names):find("\n" .. name .. "\n", 1, true), names)
    end
  end)

  it("keep to their functions, or a build that is no release aborts", function()
    local script = os.tmpname()
    local file = assert(io.open(script, "w"))
    file:write [[
      local pl = require "perilune.ffi"
      pl.ffi.cdef "void pl_thread_check(int wanted, const char *function);"
      local ok, check = pcall(function() return pl.C.pl_thread_check end)
      if not ok then
        print "release"
      else
        check(0, "mine")
        print "lua"
        io.stdout:flush()
        check(1, "pl_io_only")
      end
    ]]
    file:close()
    local said = output(("'%s' lua '%s'"):format(process.own_path(), script))
    os.remove(script)
    if said == "release\n" then return pending "a release build checks nothing" end
    assert.equal("lua\nperilune: pl_io_only runs on a thread of kind 'lua', wanted 'io'\n",
      said:match "^lua\n[^\n]*\n")
  end)
end)
