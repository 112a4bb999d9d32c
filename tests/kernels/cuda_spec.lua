-- SPDX-License-Identifier: Apache-2.0
-- The CUDA device's products have the bits of a twin in plain C (cuda_twin.c).
local open_device = require "support.device"

local twin = (os.getenv "PERILUNE" or "build/perilune"):gsub("perilune$", "cuda_twin")

describe("CUDA", function()
  it("multiplies as its twin in C does", function()
    if not open_device.has "cuda" then return pending "no GPU here" end
    local pipe = io.popen(twin .. " 2>&1")
    local said = pipe:read "*a"
    pipe:close()
    assert.matches("\n0 differ\n", said)
  end)
end)
