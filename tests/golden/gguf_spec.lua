-- SPDX-License-Identifier: Apache-2.0
-- GGUF files of the reference models against the outputs of the same network. What such a
-- file has and no folder: of kind `llama`, Q and K rows in pairs and the factors of rope
-- scaling as a tensor; of Gemma, norms with their 1; of Phi-3, both lists of rope's factors;
-- a tokenizer with scores, not merges.
local engine = require "support.engine"
local golden = require "support.golden"
local pl = require "perilune.ffi"
local tokenizer = require "perilune.model.tokenizer"
local tools = require "text_tools"

local function check_group(e, want, list)
  local ids = {}
  for _, i in ipairs(list) do
    local g = want.generation[i]
    ids[i] = e:submit(g.prompt_ids,
      { temperature = 0, max_tokens = #g.greedy_ids, logprobs = 0 })
  end
  local results = e:run()
  for _, i in ipairs(list) do
    local g, r = want.generation[i], results[ids[i]]
    assert.same(g.greedy_ids, r.tokens)
    for k, top in ipairs(r.tops) do
      local off = math.abs(top[1].logprob - g.top5[k][1][2])
      assert.is_true(off < 0.001, ("prompt %d, token %d: off by %.4f"):format(i, k, off))
    end
  end
end

for _, name in ipairs(golden.GGUF) do
  describe("the GGUF file of " .. name, function()
    local want, folder = golden.of(name)
    if not want then return pending("no " .. name .. " in " .. golden.root) end
    local path = folder .. "/model.gguf"

    for _, kernels in ipairs { "scalar", "auto" } do
      it("continues prompts as transformers does, " .. kernels, function()
        for length, list in pairs(golden.groups(want)) do
          local e = engine.open(path, { kernels = kernels, activations = "float32",
            kv_cache_dtype = "float32", max_model_len = length or nil })
          check_group(e, want, list)
          e:close(true)
        end
      end)
    end

    it("encodes and decodes by the scores of its pieces", function()
      local file = pl.C.pl_weights_open(path)
      local t = assert(tokenizer.from_gguf(file))
      local nothing = want.tokenizer.encode[1]
      assert.equal("", nothing.text)
      assert.same(nothing.ids_special, t.prefix_ids)
      for _, case in ipairs(want.tokenizer.encode) do
        -- A file spells added runs of U+2581 as spaces: it knows them only as such.
        if not case.text:find "\226\150\129\226\150\129" then
          assert.same(case.ids, tools.encode(t.text, case.text), case.text)
        end
      end
      for _, case in ipairs(want.tokenizer.decode) do
        local skipped = case.text_skip_special or case.text
        assert.equal(case.text, tools.decode(t.text, case.ids, false))
        assert.equal(skipped, tools.decode(t.text, case.ids, true))
      end
      pl.C.pl_weights_close(file)
    end)
  end)
end
