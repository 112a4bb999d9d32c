-- SPDX-License-Identifier: Apache-2.0
-- What a GGUF file of kind `llama` has and no folder: Q and K rows in pairs, the factors of
-- rope scaling as a tensor, a tokenizer with scores instead of merges.
local engine = require "support.engine"
local golden = require "support.golden"
local pl = require "perilune.ffi"
local tokenizer = require "perilune.model.tokenizer"
local tools = require "text_tools"

local want, folder = golden.of "llama-gguf"
local path = folder .. "/model.gguf"

describe("a GGUF file of kind llama", function()
  if not want then return pending("no llama-gguf in " .. golden.root) end

  for _, kernels in ipairs { "scalar", "auto" } do
    it("continues prompts as transformers does, " .. kernels, function()
      local e = engine.open(path, { kernels = kernels, activations = "float32",
        kv_cache_dtype = "float32" })
      local ids = {}
      for i, g in ipairs(want.generation) do
        ids[i] = e:submit(g.prompt_ids,
          { temperature = 0, max_tokens = #g.greedy_ids, logprobs = 0 })
      end
      local results = e:run()
      for i, g in ipairs(want.generation) do
        local r = results[ids[i]]
        assert.same(g.greedy_ids, r.tokens)
        for k, top in ipairs(r.tops) do
          local off = math.abs(top[1].logprob - g.top5[k][1][2])
          assert.is_true(off < 0.001,
            ("prompt %d, token %d: off by %.4f"):format(i, k, off))
        end
      end
      e:close(true)
    end)
  end

  it("encodes and decodes by the scores of its pieces", function()
    local file = pl.C.pl_weights_open(path)
    local t = assert(tokenizer.from_gguf(file))
    assert.same({ 1 }, t.prefix_ids)
    for _, case in ipairs(want.tokenizer.encode) do
      assert.same(case.ids, tools.encode(t.text, case.text), case.text)
    end
    for _, case in ipairs(want.tokenizer.decode) do
      assert.equal(case.text, tools.decode(t.text, case.ids, false))
      assert.equal(case.text_skip_special or case.text, tools.decode(t.text, case.ids, true))
    end
    pl.C.pl_weights_close(file)
  end)
end)
