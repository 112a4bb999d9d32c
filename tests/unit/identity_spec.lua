-- SPDX-License-Identifier: Apache-2.0
-- Ids and traces that strangers bring.
local identity = require "perilune.api.identity"

local TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
local PARENT = "00f067aa0ba902b7"

describe("a request's id", function()
  it("is one plain word", function()
    for _, id in ipairs { "a", "req-1/2:3_4.5", '"quoted"', ("x"):rep(identity.MAX_ID) } do
      assert.equal(id, identity.id(id))
    end
  end)

  it("is nothing else", function()
    for _, id in ipairs { "", " ", "two words", "a\nb", "a\r\nX: y", "a\0b", "tab\t", "\127",
        "caf\195\169", "\255", ("x"):rep(identity.MAX_ID + 1), false, 7 } do
      assert.is_nil(identity.id(id))
    end
    assert.is_nil(identity.id(nil))
  end)

  it("is drawn, each a new one", function()
    local a, b = identity.draw(), identity.draw()
    assert.matches("^" .. ("%x"):rep(32) .. "$", a)
    assert.not_equal(a, b)
    assert.equal(a, identity.id(a))
  end)
end)

describe("a traceparent", function()
  local function header(version, trace, parent, flags)
    return ("%s-%s-%s-%s"):format(version, trace, parent, flags)
  end

  it("is read", function()
    local t = identity.trace(header("00", TRACE, PARENT, "01"))
    assert.same({ trace_id = TRACE, parent_id = PARENT, flags = "01",
      header = header("00", TRACE, PARENT, "01") }, t)
  end)

  it("of a later version is read as the first", function()
    for _, rest in ipairs { "", "-", "-what-comes" } do
      local t = identity.trace(header("cc", TRACE, PARENT, "09") .. rest)
      assert.equal(header("00", TRACE, PARENT, "09"), t.header)
    end
  end)

  it("is nothing else", function()
    local zero = "0"
    for _, text in ipairs {
      "", "-", "---", "00", TRACE,
      header("ff", TRACE, PARENT, "01"),
      header("0", TRACE, PARENT, "01"),
      header("0g", TRACE, PARENT, "01"),
      header("00", zero:rep(32), PARENT, "01"),
      header("00", TRACE, zero:rep(16), "01"),
      header("00", TRACE:upper(), PARENT, "01"),
      header("00", TRACE, PARENT:upper(), "01"),
      header("00", TRACE .. "0", PARENT, "01"),
      header("00", TRACE:sub(2), PARENT, "01"),
      header("00", TRACE, PARENT .. "0", "01"),
      header("00", TRACE, PARENT, "1"),
      header("00", TRACE, PARENT, "0x"),
      header("00", TRACE, PARENT, "01-"),
      header("00", TRACE, PARENT, "01-more"),
      header("01", TRACE, PARENT, "01more"),
      " " .. header("00", TRACE, PARENT, "01"),
      header("00", TRACE, PARENT, "01") .. "\n",
      header("00", TRACE:gsub("4", "\n"), PARENT, "01"),
      header("01", TRACE, PARENT, "01-" .. ("x"):rep(1000)),
    } do
      assert.is_nil(identity.trace(text), text)
    end
  end)
end)
