-- SPDX-License-Identifier: Apache-2.0
-- Ids and texts of the reference models, exactly as Hugging Face's tokenizers give them.
local golden_models = require "support.golden"
local tokenizer = require "perilune.model.tokenizer"
local tools = require "text_tools"
local encode, decode = tools.encode, tools.decode

local function stream(text, ids, skip)
  return table.concat(tools.stream(text, ids, skip))
end

local function around(t, ids)
  local all = {}
  for _, list in ipairs { t.prefix_ids, ids, t.suffix_ids } do
    for _, id in ipairs(list) do table.insert(all, id) end
  end
  return all
end

for _, name in ipairs(golden_models.NAMES) do
  describe("tokenizer of " .. name, function()
    local golden, folder = golden_models.of(name)
    if not golden then return pending "no reference models: set PERILUNE_GOLDEN" end
    local t = assert(tokenizer.from_directory(folder))

    it("encodes", function()
      for _, case in ipairs(golden.tokenizer.encode) do
        local ids = encode(t.text, case.text)
        assert.same(case.ids, ids, case.text)
        assert.same(case.ids_special, around(t, ids))
      end
    end)

    it("encodes what the chat templates make", function()
      for _, chat in ipairs(golden.chat) do
        if chat.rendered then
          assert.same(chat.ids, encode(t.text, chat.rendered), chat.name)
        end
      end
    end)

    it("decodes, at once and as they come", function()
      for _, case in ipairs(golden.tokenizer.decode) do
        local skipped = case.text_skip_special or case.text
        assert.equal(case.text, decode(t.text, case.ids, false))
        assert.equal(skipped, decode(t.text, case.ids, true))
        assert.equal(case.text, stream(t.text, case.ids, false))
        assert.equal(skipped, stream(t.text, case.ids, true))
      end
    end)
  end)
end
