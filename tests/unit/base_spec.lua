-- SPDX-License-Identifier: Apache-2.0
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

describe("base", function()
  it("names its version and its statuses", function()
    assert.equal("0.1.0", ffi.string(C.pl_version()))
    assert.equal("PL_EINVAL", ffi.string(C.pl_status_name(C.PL_EINVAL)))
    assert.equal("PL_UNKNOWN", ffi.string(C.pl_status_name(-99)))
  end)

  it("has a clock that stands still until it is set", function()
    local before = C.pl_now_ns()
    assert.is_true(C.pl_now_ns() >= before)
  end)
end)
