-- SPDX-License-Identifier: Apache-2.0
-- Which fields a request may have: those that are read, and those that are documented.
local fields = require "perilune.api.fields"
local json = require "perilune.json"

local function text_of(path)
  local f = assert(io.open(path))
  local text = f:read "*a"
  f:close()
  return text
end

describe("the fields of requests", function()
  local all = {}
  setup(function()
    for _, known in pairs(fields.KNOWN) do
      for name in pairs(known) do all[name] = true end
    end
  end)

  it("are all known that are read anywhere", function()
    local n = 0
    for _, file in ipairs { "params", "prepare", "messages" } do
      local text = text_of("lua/perilune/api/" .. file .. ".lua")
      for name in text:gmatch '%f[%a]%a+%(req, "([%w_]+)"' do
        assert.is_true(all[name], name)
        n = n + 1
      end
    end
    assert.is_true(n > 30)
  end)

  it("are all known that are documented", function()
    local section = text_of "docs/http.md":match "\n## Fields\n(.-)\nIf a field"
    for name in text_of "docs/sampling.md":gmatch "\n| (`[%l_]+`)" do
      section = section .. name
    end
    local n = 0
    for name in section:gsub("%b()", ""):gmatch "`([%l_]+)`" do
      assert.is_true(all[name], name)
      n = n + 1
    end
    assert.is_true(n > 40)
  end)

  it("do something, but for those that are named", function()
    assert.is_nil(fields.idle(json.object("prompt", "x", "n", 1), "completion"))
    assert.same({ "messages", "x" }, fields.idle(json.object("messages", 1, "prompt", 2,
      "x", json.null), "completion"))
    assert.same({ "prompt", "user" }, fields.idle(json.object("prompt", 1, "messages", 2,
      "user", "me"), "chat"))
    local many = json.object()
    for i = 1, 100 do json.set(many, ("k"):rep(200) .. i, i) end
    local idle = fields.idle(many, "chat")
    assert.equal(16, #idle)
    assert.equal(64, #idle[1])
  end)
end)
