-- SPDX-License-Identifier: Apache-2.0
-- The runner of specs: none that fails, dies or hangs is taken for a good one.
local process = require "support.process"
local scratch = require "scratch"

describe("the runner of specs", function()
  local dir
  before_each(function() dir = scratch.folder() end)
  after_each(function() dir.remove() end)

  -- What it says of a spec of that text, and its exit code.
  local function run(text)
    dir.write("a_spec.lua", text)
    local code, out = scratch.sh(("PERILUNE_SPEC_SECONDS=2 '%s' lua tests/run.lua 2 '%s'")
      :format(scratch.program, dir.path))
    return out, code, out:match ": (%d+ passed, %d+ failed)\n$"
  end

  it("adds up what passes, fails and is left out", function()
    local out, code, sum = run [[
      it("passes", function() print "not worth a word" end)
      it("passes too", function() print "note: but this" end)
      it("is wrong", function() assert.equal(1, 2) end)
      it("is broken", function() error "no such thing" end)
      it("is left out", function() pending "for now" end)]]
    assert.same({ 1, "2 passed, 2 failed" }, { code, sum })
    for _, word in ipairs { "FAILED ", "is wrong", "Expected objects to be equal", "is broken",
        "no such thing", "is left out", "for now", " 2 passed 2 failed 1 pending in ",
        "but this" } do
      assert.is_truthy(out:find(word, 1, true), word .. " is missing in " .. out)
    end
  end)

  it("says little of what passes", function()
    local out, code, sum = run [[
      it("passes", function() print "not worth a word" end)
      it("passes too", function() print "note: but this" end)]]
    assert.same({ 0, "2 passed, 0 failed" }, { code, sum })
    assert.matches("^ok +%d+%.%d s  %S+/a_spec.lua: 2 passed\n    but this\nslowest tests:\n", out)
    assert.is_nil(out:find "not worth")
  end)

  it("takes what cannot be read, dies or finds nothing for a failure", function()
    for text, word in pairs { ["it("] = "a_spec.lua", ["error 'at once'"] = "at once",
        ['it("dies", function() os.exit(3) end)'] = "exit code 3 after the start of .* dies",
        ['it("dies", function() require("ffi").C.abort() end)'] = "dies" } do
      local out, code, sum = run("require('ffi').cdef 'void abort(void);'\n" .. text)
      assert.same({ 1, "0 passed, 1 failed" }, { code, sum })
      assert.matches(word, out)
    end
    assert.equal(1, (scratch.sh(("'%s' lua tests/run.lua 2 /nowhere"):format(scratch.program))))
  end)

  it("ends what hangs, with all that it has begun, and names the test", function()
    local pid_file = dir.path .. "/pid"
    local out, code, sum = run(([[
      it("passes", function() end)
      it("hangs", function()
        os.execute "sleep 1000 & echo $! >%s"
        while true do end
      end)]]):format(pid_file))
    assert.same({ 1, "0 passed, 1 failed" }, { code, sum })
    assert.matches("it ran out of time in %S+/a_spec.lua @ %d+: hangs\n", out)
    local pid = io.open(pid_file):read "*n"
    assert.is_true(process.wait_for(10, function()
      return scratch.sh(("kill -0 %d"):format(pid)) ~= 0
    end))
  end)
end)
