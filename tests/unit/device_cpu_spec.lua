-- SPDX-License-Identifier: Apache-2.0
local scratch = require "scratch"

-- Opens a device with a thread per core in a process of its own that may run on one core;
-- answers how many threads that added. ThreadSanitizer has one of its own from the start.
local COUNT = [[
local pl = require "perilune.ffi"
local function threads()
  local status = io.open "/proc/self/status":read "*a"
  return tonumber(status:match "Threads:%s*(%d+)")
end
local before = threads()
local device = pl.C.pl_device_open(pl.ffi.new("pl_device_options", { name = "cpu" }))
print(threads() - before)
pl.C.pl_device_close(device)
]]

describe("the CPU device", function()
  it("has a thread for each core that it may use, not for each there is", function()
    local folder = scratch.folder()
    finally(folder.remove)
    local file = folder.write("count.lua", COUNT)
    local code, out, err = scratch.sh(("taskset -c $(taskset -cp $$ | "
      .. "grep -oE '[0-9]+' | tail -1) %s lua %s"):format(scratch.program, file))
    assert.equal(0, code, err)
    assert.equal("0\n", out)
  end)
end)
