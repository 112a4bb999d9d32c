-- SPDX-License-Identifier: Apache-2.0
-- What other processes say of KV on its way is checked: xfer_liar.c says what they should
-- not, and the answer is right all the same.

local program = (os.getenv "PERILUNE" or "build/perilune"):gsub("perilune$", "xfer_liar")

-- What it says, if it ends well within the time.
local function run(lie)
  local pipe = io.popen(("timeout 120 %s '%s' 2>&1; echo ended with $?"):format(program, lie))
  local said = pipe:read "*a"
  pipe:close()
  return said
end

describe("KV of another process", function()
  for what, lie in pairs {
    ["whose bytes are not those of its hash"] = "another hash",
    ["that is not what was to come next"] = "another block",
    ["that is more than was asked for"] = "too many",
    ["that is less than it says"] = "too short",
    ["that is none"] = "no blocks",
    ["that was asked of somebody else"] = "by a stranger",
    ["that comes after its end"] = "after the end",
  } do
    it(what .. " is not taken", function()
      assert.equal("ended with 0\n", run(lie))
    end)
  end

  it("is withdrawn by whoever gave the ticket, and nobody else", function()
    assert.equal("ended with 0\n", run "withdrawal")
  end)
end)
