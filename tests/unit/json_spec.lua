-- SPDX-License-Identifier: Apache-2.0
local json = require "perilune.json"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local function refused(text, what)
  local value, why, name = json.decode(text)
  assert.is_nil(value, text)
  assert.truthy(why:find(what, 1, true), why)
  assert.truthy(name:find "^PL_E", name)
end

describe("json.decode", function()
  it("keeps the order of keys, whatever they are called", function()
    local v = json.decode '{"z":1,"__index":2,"a":3,"keys":4,"n":5,"1":6,"":7}'
    assert.same({ "z", "__index", "a", "keys", "n", "1", "" }, json.keys(v))
    assert.equal(2, v.__index)
    assert.equal(4, v.keys)
    assert.is_nil(v.absent)
  end)

  it("takes the last of equal keys, at the first one's place", function()
    assert.equal('{"a":3,"b":2}', json.encode(json.decode '{"a":1,"b":2,"a":3}'))
  end)

  it("tells empty arrays from empty objects, and null from absent", function()
    local v = json.decode '{"a":[],"o":{},"n":null,"l":[null,1,null]}'
    assert.is_true(json.is_array(v.a))
    assert.is_true(json.is_object(v.o))
    assert.equal(json.null, v.n)
    assert.equal(3, #v.l)
  end)

  it("keeps integers of any size, and 1.0 apart from 1", function()
    local text = "[1,1.0,-0.0,9007199254740992,9007199254740993,-9223372036854775808,"
      .. "1e+300,9223372036854775807,9223372036854775808,-9223372036854775809,"
      .. "18446744073709551615," .. ("7"):rep(5000) .. "]"
    local v = json.decode(text)
    assert.equal("number", type(v[4]))
    assert.is_true(json.is_long(v[5]))
    assert.equal("9007199254740993", v[5].digits)
    assert.equal(2 ^ 64, json.tonumber(v[11]))
    assert.is_true(json.is_real(v[2]))
    assert.equal(1, json.tonumber(v[2]))
    assert.equal(1, json.tonumber(v[1]))
    assert.is_nil(json.tonumber "1")
    assert.equal(text, json.encode(v))
  end)

  it("has an int64_t of what fits", function()
    for text, wanted in pairs { ["0"] = 0LL, ["-7"] = -7LL, ["1.5"] = false,
      ["9007199254740993"] = 9007199254740993LL, ["9223372036854775808"] = false,
      ["9223372036854775807"] = 0x7fffffffffffffffLL, ["-9223372036854775809"] = false,
      ["-9223372036854775808"] = -0x8000000000000000LL, ["1e30"] = false,
      ["18446744073709551617"] = false, ["-99999999999999999999"] = false } do
      assert.equal(wanted, json.to_int64(json.decode(text)) or false, text)
    end
  end)

  it("does not take a string for a long integer, or that for a string", function()
    for _, text in ipairs { '"\\u0000"', '"\\u000012345678901234567890"',
      '"\\u0000\\u0000a"', '"12345678901234567890"', '"\\\\u0000"', '"a\\u0000"' } do
      local alone = json.decode(text)
      assert.equal("string", type(alone))
      assert.equal(text, json.encode(alone))
      local list = json.decode("[" .. text .. ",12345678901234567890,{\"k\":" .. text .. "}]")
      assert.equal(alone, list[1])
      assert.equal("12345678901234567890", list[2].digits)
      assert.equal(alone, list[3].k)
    end
    local digits = C.pl_json_open("-12345678901234567890", 21)
    assert.equal(C.PL_JSON_INTEGER, C.pl_json_kind(digits))
    assert.equal(-0x8000000000000000LL, C.pl_json_integer(digits))
    assert.equal(-12345678901234567890, C.pl_json_number(digits))
    assert.is_true(C.pl_json_string(digits, ffi.new "size_t[1]") == nil)
    C.pl_json_close(digits)
  end)

  it("keeps NUL and every other character of a string", function()
    assert.equal("a\0b\195\169\240\159\145\139/",
      json.decode '"a\\u0000b\\u00e9\\ud83d\\udc4b\\/"')
  end)

  it("refuses what RFC 8259 does", function()
    refused('{"a":\n tru}', "line 2, column 4")
    refused("[1] x", "end of file expected")
    refused("[12345678901234567890, é?", "line 1, column 24: invalid token near 'é'")
    refused('{"a":[1,', "column 8: ']' expected near end of file")
    refused("", "line 1")
    refused("099999999999999999999", "line 1")
    refused("99999999999999999999x", "line 1")
    refused('{99999999999999999999:1}', "line 1")
    refused("1e999", "overflow")
    refused('"\\ud800"', "Unicode")
    refused('"\255"', "0xff")
    refused('{"a\\u0000b":1}', "NUL")
    for _, text in ipairs { "NaN", "[Infinity]", "01", "0x1", "1.", ".5", "+1", "[1,]",
      "{\"a\":1,}", "{a:1}", "'a'", "\"\t\"", "//", "nul" } do
      refused(text, "json: line 1")
    end
  end)

  it("bounds the depth", function()
    assert.truthy(json.decode(("["):rep(512) .. ("]"):rep(512)))
    refused(("["):rep(513) .. ("]"):rep(513), "deeper than 512")
    assert.truthy(json.decode('["' .. ("["):rep(600) .. '\\"["]'))
  end)
end)

describe("json.encode", function()
  it("writes plain tables: sequences as arrays, others with their keys sorted", function()
    assert.equal('{"a":[1,2],"b":{},"c":[]}', json.encode {
      c = json.array(), b = {}, a = { 1, 2 } })
  end)

  it("writes objects in the order given, without what is nil", function()
    local v = json.object("z", 1, "gone", nil, "a", json.null)
    json.set(v, "b", true)
    json.set(v, "z", nil)
    json.set(v, "z", 2)
    assert.equal('{"a":null,"b":true,"z":2}', json.encode(v))
    local seen = {}
    for i, key, value in json.pairs(v) do seen[i] = key .. "=" .. tostring(value) end
    assert.same({ "a=null", "b=true", "z=2" }, seen)
  end)

  it("escapes", function()
    assert.equal('"\\"\\\\\\n\\u0001\\u0000/\127é\239\191\189"',
      json.encode '"\\\n\1\0/\127é\255')
  end)

  it("writes numbers so that they read back", function()
    for _, x in ipairs { 0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 2 ^ 60, -2.5e-7 } do
      assert.equal(x, json.tonumber(json.decode(json.encode(x))))
    end
    assert.equal("[3,-7,100000,0.1,1e+16]", json.encode { 3, -7, 1e5, 0.1, 1e16 })
    assert.equal("9007199254740992", json.encode(2 ^ 53))
  end)

  it("refuses what is not JSON", function()
    local loop = {}
    loop[1] = loop
    for what, v in pairs { nan = 0 / 0, inf = math.huge, ["function"] = print,
      number = { [1.5] = 1 }, ["512"] = loop, ["C value"] = ffi.new "int[1]" } do
      local text, why, name = json.encode(v)
      assert.is_nil(text)
      assert.truthy(why:find(what, 1, true), why)
      assert.equal("PL_EINVAL", name)
    end
  end)

  it("prints as Python's json.dumps does", function()
    local v = json.decode '{"b":[1.0,"é<&",{}],"a":{"x":[]}}'
    assert.equal('{"b": [1.0, "é<&", {}], "a": {"x": []}}', json.encode_python(v))
    local indented = '{\n  "b": [\n    1.0,\n    "é<&",\n    {}\n  ],\n'
      .. '  "a": {\n    "x": []\n  }\n}'
    assert.equal(indented, json.encode_python(v, { indent = 2 }))
    assert.equal('{"a":{"x":[]},"b":[1.0,"é<&",{}]}',
      json.encode_python(v, { sort_keys = true, separators = { ",", ":" } }))
  end)
end)

describe("pl_json", function()
  local function open(text)
    return ffi.gc(C.pl_json_open(text, #text), C.pl_json_close)
  end

  it("reads integers without a table", function()
    local out = ffi.new "int32_t[4]"
    assert.equal(3, C.pl_json_ints(open "[1,-2,2147483647]", out, 4))
    assert.same({ 1, -2, 2147483647 }, { out[0], out[1], out[2] })
    assert.equal(0, C.pl_json_ints(open "[]", out, 0))
    assert.equal(C.PL_ELIMIT, C.pl_json_ints(open "[1,2,3]", out, 2))
    for _, bad in ipairs { "[1,2.0]", "[2147483648]", "[\"1\"]", "[true]", "{}", "1" } do
      assert.equal(C.PL_EINVAL, C.pl_json_ints(open(bad), out, 4), bad)
    end
    assert.equal(1, out[0])
  end)

  it("finds, and says null of what is absent", function()
    local doc = open '{"a":{"b":[7]}}'
    local a = C.pl_json_find(doc, "a")
    assert.equal(7, C.pl_json_number(C.pl_json_item(C.pl_json_find(a, "b"), 0)))
    assert.equal(C.PL_JSON_NULL, C.pl_json_kind(C.pl_json_find(doc, "x")))
    assert.is_true(C.pl_json_item(C.pl_json_find(a, "b"), 1) == nil)
    assert.is_true(C.pl_json_item(C.pl_json_find(a, "b"), -1) == nil)
  end)
end)
