-- SPDX-License-Identifier: Apache-2.0
local pl = require "perilune.ffi"
local files = require "weights_files"
local C, ffi = pl.C, pl.ffi

local function with(bytes, act)
  local w = C.pl_weights_open(files.write(bytes))
  if w == nil then error(ffi.string(C.pl_error_text()), 2) end
  local ok, err = pcall(act, w)
  C.pl_weights_close(w)
  if not ok then error(err, 0) end
end

local function refused(bytes, why)
  local w = C.pl_weights_open(files.write(bytes))
  assert.is_true(w == nil)
  local text = ffi.string(C.pl_error_text())
  assert.truthy(text:find(why, 1, true), "got: " .. text)
end

local function meta(w, key)
  local m = ffi.new "pl_meta"
  assert.equal(C.PL_OK, C.pl_weights_meta(w, key, m))
  return m
end

local function item(w, key, i)
  local m = ffi.new "pl_meta"
  assert.equal(C.PL_OK, C.pl_weights_meta_item(w, key, i, m))
  return m
end

local function text(m) return ffi.string(m.string, m.len) end

-- Opens and closes it, whatever it holds; touches what it found.
local function survive(path)
  local w = C.pl_weights_open(path)
  if w == nil then return false end
  C.pl_weights_fingerprint(w, "", 0, 0)
  for i = 0, C.pl_weights_count(w) - 1 do
    local t = C.pl_weights_get(w, i)
    if t.bytes > 0 then
      local p = ffi.cast("const uint8_t *", t.data)
      assert(p[0] + p[t.bytes - 1] >= 0)
    end
  end
  C.pl_weights_close(w)
  return true
end

local f32 = { "w", { 2, 3 }, 0, ("\1"):rep(24) }
local q8 = { "blk.0.w", { 3, 64 }, 8, ("\2"):rep(3 * 2 * 34) }

local every_kind = {
  { "u8", "u8", 255 }, { "i8", "i8", -128 }, { "u16", "u16", 65535 },
  { "i16", "i16", -2 },
  { "u32", "u32", 4294967295 }, { "i32", "i32", -3 }, { "f32", "f32", 1.5 },
  { "yes", "bool", 1 }, { "no", "bool", 0 }, { "str", "str", "a\0b" },
  { "u64", "u64", 9007199254740993ULL }, { "i64", "i64", -4 }, { "f64", "f64", 0.1 },
  { "strs", "str", { "x", "", "zzz" } }, { "ints", "i16", { -1, 0, 7 } },
  { "reals", "f32", { 0.5, -0.5 } }, { "bools", "bool", { 1, 0 } }, { "none", "u32", {} },
}

describe("weights of GGUF", function()
  after_each(files.clean)

  it("reads every kind of metadata", function()
    with(files.gguf(every_kind, {}), function(w)
      assert.equal(255, tonumber(meta(w, "u8").integer))
      assert.equal(-128, tonumber(meta(w, "i8").integer))
      assert.equal(65535, tonumber(meta(w, "u16").integer))
      assert.equal(-2, tonumber(meta(w, "i16").integer))
      assert.equal(4294967295, tonumber(meta(w, "u32").integer))
      assert.equal(-3, meta(w, "i32").number)
      assert.equal(1.5, meta(w, "f32").number)
      assert.equal(C.PL_JSON_TRUE, meta(w, "yes").kind)
      assert.equal(C.PL_JSON_FALSE, meta(w, "no").kind)
      assert.equal("a\0b", text(meta(w, "str")))
      assert.is_true(meta(w, "u64").integer == 9007199254740993LL)
      assert.equal(-4, tonumber(meta(w, "i64").integer))
      assert.equal(0.1, meta(w, "f64").number)
      assert.equal(C.PL_JSON_REAL, meta(w, "f64").kind)
    end)
  end)

  it("reads arrays, item by item", function()
    with(files.gguf(every_kind, {}), function(w)
      local m = meta(w, "strs")
      assert.equal(C.PL_JSON_ARRAY, m.kind)
      assert.equal(C.PL_JSON_STRING, m.item_kind)
      assert.equal(3, m.n)
      assert.equal("x", text(item(w, "strs", 0)))
      assert.equal("", text(item(w, "strs", 1)))
      assert.equal("zzz", text(item(w, "strs", 2)))
      assert.equal(-1, tonumber(item(w, "ints", 0).integer))
      assert.equal(7, tonumber(item(w, "ints", 2).integer))
      assert.equal(-0.5, item(w, "reals", 1).number)
      assert.equal(C.PL_JSON_FALSE, item(w, "bools", 1).kind)
      assert.equal(0, meta(w, "none").n)
    end)
  end)

  it("says what is not there", function()
    with(files.gguf(every_kind, {}), function(w)
      local m = ffi.new "pl_meta"
      assert.equal(C.PL_ENOTFOUND, C.pl_weights_meta(w, "other", m))
      assert.equal(C.PL_ENOTFOUND, C.pl_weights_meta_item(w, "other", 0, m))
      assert.equal(C.PL_EINVAL, C.pl_weights_meta_item(w, "strs", 3, m))
      assert.equal(C.PL_EINVAL, C.pl_weights_meta_item(w, "strs", -1, m))
      assert.equal(C.PL_EINVAL, C.pl_weights_meta_item(w, "u8", 0, m))
      assert.is_true(C.pl_weights_find(w, "w") == nil)
      assert.is_true(C.pl_weights_get(w, 0) == nil)
    end)
  end)

  it("finds tensors, their dimensions outermost first", function()
    with(files.gguf({}, { f32, q8 }), function(w)
      assert.equal(2, C.pl_weights_count(w))
      local t = C.pl_weights_find(w, "blk.0.w")
      assert.equal("blk.0.w", ffi.string(t.name))
      assert.equal(C.PL_Q8_0, t.type)
      assert.equal(2, t.n_dims)
      assert.equal(3, tonumber(t.dims[0]))
      assert.equal(64, tonumber(t.dims[1]))
      assert.equal(204, tonumber(t.bytes))
      assert.equal(q8[4], ffi.string(t.data, 204))
      assert.equal(f32[4], ffi.string(C.pl_weights_find(w, "w").data, 24))
    end)
  end)

  it("reads version 2 as version 3", function()
    with(files.gguf(every_kind, { f32, q8 }, { version = 2 }), function(w)
      assert.equal(2, C.pl_weights_count(w))
      assert.equal(f32[4], ffi.string(C.pl_weights_find(w, "w").data, 24))
    end)
  end)

  -- Wherever the file has it: an offset that another tensor has too is no overlap.
  it("opens tensors without elements", function()
    local function empty(name, ...) return { name, { ... }, 0, "" } end
    with(files.gguf({}, { empty("a", 0), f32, empty("b", 3, 0), q8, empty("c", 0, 2) }),
      function(w)
        assert.equal(5, C.pl_weights_count(w))
        for _, name in ipairs { "a", "b", "c" } do
          assert.equal(0, tonumber(C.pl_weights_find(w, name).bytes))
        end
        assert.equal(q8[4], ffi.string(C.pl_weights_find(w, "blk.0.w").data, 204))
        C.pl_weights_fingerprint(w, "", 0, 0)
      end)
    with(files.gguf({}, { empty("only", 0) }), function(w)
      assert.equal(1, C.pl_weights_count(w))
    end)
  end)

  it("knows the size of each type", function()
    local sizes = { { 0, 1024 }, { 1, 512 }, { 2, 144 }, { 3, 160 }, { 6, 176 },
                    { 7, 192 }, { 8, 272 }, { 10, 84 }, { 11, 110 }, { 12, 144 },
                    { 13, 176 }, { 14, 210 }, { 20, 144 }, { 23, 136 }, { 26, 1024 },
                    { 30, 512 } }
    for _, row in ipairs(sizes) do
      with(files.gguf({}, { { "w", { 256 }, row[1], ("\0"):rep(row[2]) } }), function(w)
        assert.equal(row[2], tonumber(C.pl_weights_get(w, 0).bytes))
      end)
    end
  end)

  it("follows general.alignment", function()
    local bytes = files.gguf({ { "general.alignment", "u32", 64 } }, { f32, q8 },
                             { alignment = 64 })
    with(bytes, function(w)
      assert.equal(q8[4], ffi.string(C.pl_weights_find(w, "blk.0.w").data, 204))
    end)
    for _, bad in ipairs { 0, 4, 48, 131072 } do
      refused(files.gguf({ { "general.alignment", "u32", bad } }, { f32 }),
              "'general.alignment' is " .. bad)
    end
  end)

  it("refuses what is doubled, overlaps or lies outside", function()
    refused(files.gguf({}, { f32, f32 }), "tensor 'w' is there twice")
    refused(files.gguf({ { "a", "u8", 1 }, { "a", "u8", 2 } }, {}), "'a' is there twice")
    refused(files.gguf({}, { f32, { "v", { 2, 3 }, 0, f32[4], offset = 0 } }), "overlap")
    refused(files.gguf({}, { { "w", { 6 }, 0, f32[4], offset = 4 } }), "has the offset 4")
    refused(files.gguf({}, { { "w", { 6 }, 0, f32[4], offset = 2 ^ 62 } }),
            "has the offset 4611686018427387904")
    local bytes = files.gguf({}, { f32 })
    refused(bytes:sub(1, -10), ("tensor 'w' ends at byte %d, the file has %d"):format(
      #bytes - 8, #bytes - 9))
  end)

  it("refuses shapes that make no sense", function()
    refused(files.gguf({}, { { "w", { 2 ^ 40, 2 ^ 40 }, 0, "" } }), "more elements")
    refused(files.gguf({}, { { "w", { 2 ^ 63 }, 0, "" } }), "dimension")
    refused(files.gguf({}, { { "w", { 1, 1, 1, 1, 1 }, 0, "" } }), "has 5 dimensions")
    refused(files.gguf({}, { { "w", {}, 0, "" .. ("\0"):rep(8) } }), "has 0 dimensions")
    refused(files.gguf({}, { { "w", { 2, 48 }, 8, ("\0"):rep(102) } }), "rows of 48")
  end)

  it("names a type that it does not read", function()
    refused(files.gguf({}, { { "w", { 256 }, 16, "" } }), "'w' is of type 16 (IQ2_XXS)")
    refused(files.gguf({}, { { "w", { 256 }, 4, "" } }), "'w' is of type 4 (unknown)")
    refused(files.gguf({}, { { "w", { 256 }, 9999, "" } }), "type 9999")
  end)

  it("refuses counts and kinds that cannot be", function()
    refused(files.gguf({}, {}, { n_tensors = 1 }), "1 tensors in")
    refused(files.gguf({}, {}, { n_tensors = 2 ^ 60 }), "tensors in")
    refused(files.gguf({}, {}, { n_metas = 2 ^ 60 }), "values of metadata")
    refused(files.gguf({}, {}, { version = 1 }), "GGUF version 1, wanted 2 or 3")
    refused(files.gguf({}, {}, { version = 4 }), "GGUF version 4, wanted 2 or 3")
    refused(files.gguf({ { "b", "bool", 2 } }, {}), "'b' is a bool of 2")
    refused(files.gguf({ { "u", "u64", 2 ^ 63 } }, {}), "'u' is 9223372036854775808")
    refused(files.gguf({ { "", "u8", 1 } }, {}), "a key of 0 bytes")
    refused(files.gguf({ { "a\nb", "u8", 1 } }, {}), "control character 10")
    refused(files.gguf({}, { { ("n"):rep(256), { 6 }, 0, f32[4] } }), "name of 256 bytes")
    refused(files.gguf({}, { { "\255", { 6 }, 0, f32[4] } }), "not UTF-8")
    local nested = files.str "a" .. files.u32(9) .. files.u32(9) .. files.u64(1)
    refused(files.gguf({}, {}, { n_metas = 1 }):sub(1, 24) .. nested,
            "'a' is an array of type 9")
  end)

  it("survives a file cut anywhere, and one wrong byte anywhere", function()
    local bytes = files.gguf(every_kind, { f32, q8 })
    for n = 0, #bytes - 1 do
      local whole = survive(files.write(bytes:sub(1, n)))
      assert.is_true(not whole or n >= #bytes - 31)
    end
    files.clean()
    for i = 1, #bytes - 256 do
      local flipped = string.char(bit.bxor(bytes:byte(i), 2 ^ (i % 8)))
      survive(files.write(bytes:sub(1, i - 1) .. flipped .. bytes:sub(i + 1)))
      survive(files.write(bytes:sub(1, i - 1) .. "\255" .. bytes:sub(i + 1)))
      files.clean()
    end
  end)
end)

local function header(body) return "{" .. body .. "}" end
local x = '"x":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}'

describe("weights of safetensors", function()
  after_each(files.clean)

  it("reads tensors", function()
    local h = ' {"__metadata__" : {"format":"pt\\n\\u00e9"},\n' .. x
              .. ', "s":{"shape":[],"data_offsets":[8,10],"dtype":"BF16"}}  '
    with(files.safetensors(h:sub(2), "abcdefghij"), function(w)
      assert.equal(2, C.pl_weights_count(w))
      local t = C.pl_weights_find(w, "x")
      assert.equal(C.PL_F32, t.type)
      assert.equal(2, tonumber(t.dims[0]))
      assert.equal("abcdefgh", ffi.string(t.data, 8))
      t = C.pl_weights_find(w, "s")
      assert.equal(0, t.n_dims)
      assert.equal("ij", ffi.string(t.data, t.bytes))
      assert.equal(C.PL_ENOTFOUND, C.pl_weights_meta(w, "format", ffi.new "pl_meta"))
    end)
  end)

  it("leaves out 64-bit integers, but not their room", function()
    local i64 = ',"i":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}'
    with(files.safetensors(header(x .. i64), ("\0"):rep(16)), function(w)
      assert.equal(1, C.pl_weights_count(w))
      assert.is_true(C.pl_weights_find(w, "i") == nil)
    end)
    refused(files.safetensors(header(x .. i64:gsub("8,16", "4,12")), ("\0"):rep(16)),
            "overlap")
  end)

  it("takes data at any address", function()
    for spaces = 0, 3 do
      with(files.safetensors(header(x) .. (" "):rep(spaces), "abcdefgh"), function(w)
        assert.equal("abcdefgh", ffi.string(C.pl_weights_find(w, "x").data, 8))
      end)
    end
  end)

  it("refuses offsets that are wrong", function()
    local function offsets(pair, size)
      return files.safetensors(header((x:gsub("%[0,8%]", pair))), ("\0"):rep(size or 8))
    end
    refused(offsets "[0,4]", "has data_offsets of 4 bytes, its shape takes 8")
    refused(offsets "[8,0]", "data_offsets 8 to 0")
    refused(offsets("[4,12]", 12), "the tensors take 8 bytes, the file has 12")
    refused(offsets("[0,8]", 9), "the tensors take 8 bytes, the file has 9")
    refused(offsets("[0,8]", 7), "tensor 'x' ends at byte")
    refused(offsets "[9223372036854775800,9223372036854775807]", "tensor 'x'")
    refused(offsets "[0,9223372036854775808]", "an integer below 2^63")
    refused(offsets "[-1,7]", "an integer, 0 or more")
    refused(offsets "[00,8]", "leading zeros")
    refused(offsets "[0]", "two offsets")
    refused(offsets "[0,8,9]", "two offsets")
    refused(files.safetensors(header(x .. "," .. x:gsub('"x"', '"y"')), ("\0"):rep(16)),
            "overlap")
    refused(files.safetensors(header(x .. "," .. x:gsub("0,8", "8,16")), ("\0"):rep(16)),
            "'x' is there twice")
  end)

  it("refuses headers of another shape", function()
    local function bad(head, why) refused(files.safetensors(head, ("\0"):rep(8)), why) end
    bad(header((x:gsub('"shape":%[2,1%],', ""))), "tensor 'x' has no shape")
    bad(header((x:gsub("dtype", "dtipe"))), "has 'dtipe'")
    bad(header((x:gsub('"dtype"', '"shape":[2],"dtype"'))), "has 'shape'")
    bad(header((x:gsub("F32", "F8_E4M3"))), "tensor 'x' is of type 'F8_E4M3'")
    bad(header((x:gsub("%[2,1%]", "[1,1,1,1,2]"))), "at most 4 dimensions")
    bad(header((x:gsub("%[2,1%]", "[2.0,1]"))), "',' or ']'")
    bad(header((x:gsub("%[2,1%]", "[0,1]"))), "its shape takes 0")
    bad(header((x:gsub('"x"', '"\\u0078"'))), "name without escapes")
    bad(header((x:gsub('"x"', '""'))), "name of 0 bytes")
    bad(header(x .. ","), "a string")
    bad(header '"__metadata__":{},"__metadata__":{}', "only once")
    bad(header '"__metadata__":{"a":1}', "a string")
    bad(header '"__metadata__":{"a":"\\x"}', "good escapes")
    bad(header(x) .. "x", "nothing after")
    bad("{" .. x, "',' or '}'")
    bad(header(x):gsub('"x"', '"x\1"'), "control characters")
    refused(files.safetensors(header(x), ("\0"):rep(8), 2 ^ 62), "a header of 46116860")
    refused(files.safetensors(header(x), "", 1), "a header of 1 bytes")
    refused("whatever this may be", "neither GGUF nor safetensors")
    refused("", "empty")
  end)

  it("survives a file cut anywhere, and one wrong byte anywhere", function()
    local escaped = '"__metadata__":{"a":"\\u0041"},'
    local bytes = files.safetensors(header(escaped .. x), "12345678")
    for n = 0, #bytes - 1 do assert.is_false(survive(files.write(bytes:sub(1, n)))) end
    for i = 1, #bytes - 8 do
      for _, c in ipairs { "\0", '"', "\\", "{", "9", "\255" } do
        survive(files.write(bytes:sub(1, i - 1) .. c .. bytes:sub(i + 1)))
      end
      files.clean()
    end
  end)
end)

describe("weights", function()
  after_each(files.clean)

  it("says which file it could not open", function()
    assert.is_true(C.pl_weights_open "/nowhere/at.all" == nil)
    assert.equal("/nowhere/at.all: No such file or directory",
                 ffi.string(C.pl_error_text()))
    assert.is_true(C.pl_weights_open "/" == nil)
    assert.equal("/: not a regular file", ffi.string(C.pl_error_text()))
    C.pl_weights_close(nil)
  end)

  it("has a fingerprint of header, first bytes, text and seed", function()
    local function print_of(bytes, words, seed)
      local w = C.pl_weights_open(files.write(bytes))
      local value = C.pl_weights_fingerprint(w, words, #words, seed)
      C.pl_weights_close(w)
      return bit.tohex(value, 16)
    end
    local one = print_of(files.gguf({}, { f32 }), "", 0)
    assert.equal(one, print_of(files.gguf({}, { f32 }), "", 0))
    local seen = { [one] = true }
    for _, other in ipairs {
      print_of(files.gguf({}, { { "w", { 2, 3 }, 0, ("\3"):rep(24) } }), "", 0),
      print_of(files.gguf({}, { { "w", { 3, 2 }, 0, f32[4] } }), "", 0),
      print_of(files.gguf({}, { f32 }), "t", 0),
      print_of(files.gguf({}, { f32 }), "", 1),
      bit.tohex(C.pl_weights_fingerprint(nil, "", 0, 0), 16),
    } do
      assert.is_nil(seen[other])
      seen[other] = true
    end
  end)
end)
