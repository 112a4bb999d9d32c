-- SPDX-License-Identifier: Apache-2.0
-- GGUF models in parts, as gguf-split of llama.cpp writes them.

local files = require "weights_files"
local model = require "perilune.model.load"
local open_device = require "support.device"
local pl = require "perilune.ffi"
local small = require "model_files"
local C = pl.C
local joined = small.joined

local FIRST, SECOND, THIRD = "m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
  "m-00003-of-00003.gguf"

local function split(no, count, tensors)
  return { "split.no", "u16", no }, { "split.count", "u16", count },
    { "split.tensors.count", "i32", tensors }
end

-- The bytes of a file with these tensors, all zero.
local function part(metas, list)
  local tensors = {}
  for i, row in ipairs(list) do
    local bytes = 4
    for _, dim in ipairs(row[2]) do bytes = bytes * dim end
    tensors[i] = { row[1], row[2], 0, ("\0"):rep(bytes) }
  end
  return files.gguf(metas, tensors)
end

-- Three parts, of which the first has no tensors (`--no-tensor-first-split`).
local function parts(changes)
  local lists, n = { {}, {} }, #small.gguf_llama
  for i, row in ipairs(small.gguf_llama) do
    local list = lists[i <= 4 and 1 or 2]
    list[#list + 1] = row
  end
  local all = {
    [FIRST] = part(joined(small.gguf_metas "llama", split(0, 3, n)), {}),
    [SECOND] = part({ split(1, 3, n) }, lists[1]),
    [THIRD] = part({ split(2, 3, n) }, lists[2]),
  }
  for name, bytes in pairs(changes or {}) do all[name] = bytes or nil end
  return files.folder(all)
end

describe("a GGUF model in parts", function()
  after_each(files.clean)

  it("is found by any part, or by its folder", function()
    local folder = parts()
    for _, name in ipairs { "", "/", "/" .. FIRST, "/" .. SECOND, "/" .. THIRD } do
      assert.equal(folder .. "/" .. FIRST, assert(model.resolve(folder .. name)))
    end
    local desc = assert(model.describe(folder .. "/" .. FIRST))
    assert.equal("m", desc.name)
    assert.same({ FIRST, SECOND, THIRD }, { desc.files[1]:match "[^/]+$",
      desc.files[2]:match "[^/]+$", desc.files[3]:match "[^/]+$" })
    assert.same({ 16, 1 }, { desc.options.vocab, desc.options.tied })
    assert.equal(#small.gguf_llama, #assert(small.tensors(desc)))
    local device = open_device "cpu"
    local loaded = assert(model.load(desc, device))
    C.pl_model_close(loaded)
    C.pl_device_close(device)
  end)

  it("is another model if any part is another", function()
    local print_of = function(changes)
      return assert(model.describe(parts(changes) .. "/" .. FIRST)).fingerprint
    end
    local other = part({ { "note", "u8", 1 }, split(1, 3, #small.gguf_llama) },
                       { unpack(small.gguf_llama, 1, 4) })
    assert.equal(print_of(), print_of())
    assert.not_equal(print_of(), print_of { [SECOND] = other })
  end)

  local function refused(changes, why, name)
    local folder = parts(changes)
    local path = assert(model.resolve(folder))
    local desc, message, code = model.describe(path)
    assert.is_nil(desc)
    assert.equal(name or "PL_EFORMAT", code)
    assert.truthy(message:find(why, 1, true), message)
  end

  it("is refused by the part that is missing", function()
    refused({ [SECOND] = false }, SECOND .. "' is missing, part 2 of 3", "PL_ENOTFOUND")
    refused({ [FIRST] = false }, FIRST .. "' is missing, part 1 of 3", "PL_ENOTFOUND")
    local _, why = model.resolve(parts { [THIRD] = false } .. "/" .. THIRD)
    assert.truthy(why:find("no model at", 1, true), why)
  end)

  it("is refused by parts that are not its own", function()
    local n, first = #small.gguf_llama, small.gguf_metas "llama"
    local rest = { unpack(small.gguf_llama, 5) }
    refused({ [THIRD] = part({ split(1, 3, n) }, rest) },
            THIRD .. ": 'split.no' is '1', wanted 2")
    refused({ [THIRD] = part({ split(2, 4, n) }, rest) },
            THIRD .. ": 'split.count' is '4', wanted 3")
    refused({ [THIRD] = part({}, rest) }, THIRD .. ": 'split.count' is missing")
    refused({ [THIRD] = part({ { "split.count", "u16", 3 } }, rest) },
            THIRD .. ": 'split.no' is missing")
    refused({ [THIRD] = part({ { "split.count", "str", "3" } }, rest) },
            THIRD .. ": 'split.count' is '3', wanted an integer")
    refused({ [FIRST] = part(joined(first, split(0, 3, n + 1)), {}) },
            FIRST .. ": 'split.tensors.count' is '12', wanted 11")
    refused({ [FIRST] = part(joined(first, split(0, 3, -1)), {}) },
            FIRST .. ": 'split.tensors.count' is '-1'")
    refused({ [THIRD] = "GGUF" }, THIRD .. ": the version")
    -- A tensor that two parts have.
    local desc = assert(model.describe(parts {
      [THIRD] = part({ split(2, 3, n + 4) }, small.gguf_llama),
      [FIRST] = part(joined(first, split(0, 3, n + 4)), {}) } .. "/" .. FIRST))
    local list, why = small.tensors(desc)
    assert.is_nil(list)
    assert.truthy(why:find("is in '" .. desc.files[2] .. "' too", 1, true), why)
  end)

  it("has at most so many parts, and a number that makes sense", function()
    local bytes = part(small.gguf_metas "llama", small.gguf_llama)
    local folder = files.folder { ["a-00001-of-99999.gguf"] = bytes,
                                  ["b-00000-of-00002.gguf"] = bytes,
                                  ["c-00003-of-00002.gguf"] = bytes }
    local _, why = model.describe(folder .. "/a-00001-of-99999.gguf")
    assert.truthy(why:find("one of 99999 parts, wanted at most", 1, true), why)
    for _, name in ipairs { "b-00000-of-00002", "c-00003-of-00002" } do
      local path = folder .. "/" .. name .. ".gguf"
      assert.equal(path, model.resolve(path))
      assert.equal(name, assert(model.describe(path)).name)
    end
    _, why = model.resolve(folder)
    assert.truthy(why:find("holds 3 GGUF models, wanted the name of one", 1, true), why)
  end)
end)
