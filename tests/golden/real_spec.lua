-- SPDX-License-Identifier: Apache-2.0
-- The file of SmolLM2-135M-Instruct (Q4_1), as its publisher's tools wrote it: what is read
-- from it. Needs $PERILUNE_MODEL, which may be another model.

local model = require "perilune.model.load"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local path = os.getenv "PERILUNE_MODEL"
local test = path and path:find "SmolLM2.*%.gguf$" and it or pending

local function text(m) return ffi.string(m.string, m.len) end

describe("a real model", function()
  test("is a file of tensors and metadata", function()
    local w, m = C.pl_weights_open(path), ffi.new "pl_meta"
    assert.is_false(w == nil)
    assert.equal(272, C.pl_weights_count(w))
    assert.equal(C.PL_OK, C.pl_weights_meta(w, "general.architecture", m))
    assert.equal("llama", text(m))
    assert.equal(C.PL_OK, C.pl_weights_meta(w, "tokenizer.ggml.tokens", m))
    assert.equal(49152, m.n)
    assert.equal(C.PL_OK, C.pl_weights_meta_item(w, "tokenizer.ggml.tokens", 2, m))
    assert.equal("<|im_end|>", text(m))
    local t = C.pl_weights_find(w, "blk.0.ffn_down.weight")
    assert.same({ C.PL_Q4_1, 576, 1536 }, { t.type, tonumber(t.dims[0]), tonumber(t.dims[1]) })
    C.pl_weights_close(w)
  end)

  test("is described by it", function()
    local desc = assert(model.describe(path))
    assert.same({ "gguf", "q4_1", 8192, { 2 }, 1 },
      { desc.format, desc.dtype, desc.max_positions, desc.eos_ids, desc.options.tied })
  end)
end)
