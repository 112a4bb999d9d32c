-- SPDX-License-Identifier: Apache-2.0
-- The CUDA device's products have the bits of a twin in plain C (cuda_twin.c), and it draws
-- as core/sample.c does (cuda_draw.c).
local open_device = require "support.device"

local function run(name)
  local program = (os.getenv "PERILUNE" or "build/perilune"):gsub("perilune$", name)
  local pipe = io.popen(program .. " 2>&1")
  local said = pipe:read "*a"
  pipe:close()
  return said
end

describe("CUDA", function()
  it("multiplies as its twin in C does", function()
    if not open_device.has "cuda" then return pending "no GPU here" end
    assert.matches("\n0 differ\n", run "cuda_twin")
  end)

  it("draws as the sampler in C does", function()
    if not open_device.has "cuda" then return pending "no GPU here" end
    assert.matches("^%d+ sampled, 0 differ\n$", run "cuda_draw")
  end)
end)
