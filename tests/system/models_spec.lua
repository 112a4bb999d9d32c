-- SPDX-License-Identifier: Apache-2.0
-- What the files of a model say, as one sees it from outside.

local cjson = require "cjson"
local files = require "weights_files"
local serving = require "support.serving"
local small = require "model_files"

local function read(name)
  local f = assert(io.open(serving.MODEL .. "/" .. name, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

-- The reference model with these contents in place of its own; false: without that file.
local function folder(changes)
  local all = {}
  for _, name in ipairs { "config.json", "generation_config.json", "model.safetensors",
                          "tokenizer.json", "tokenizer_config.json" } do
    all[name] = read(name)
  end
  for name, text in pairs(changes) do all[name] = text or nil end
  return files.folder(all)
end

-- The metadata of a tiny model and of a tokenizer of 16 tokens, some replaced.
local function metas(changes)
  local tokens = { "<s>", "<unk>", "<|end_of_text|>", "<|im_end|>" }
  for i = 5, 16 do tokens[i] = string.char(92 + i) end
  local kinds = { 3, 3, 3, 3 }
  for i = 5, 16 do kinds[i] = 1 end
  local list = small.joined(small.gguf_metas "llama",
    { "tokenizer.ggml.model", "str", "gpt2" }, { "tokenizer.ggml.pre", "str", "gpt-2" },
    { "tokenizer.ggml.tokens", "str", tokens },
    { "tokenizer.ggml.token_type", "i32", kinds },
    { "tokenizer.ggml.merges", "str", { "a b" } })
  tokens[16] = "ab"
  for _, row in ipairs(list) do row[3] = changes[row[1]] or row[3] end
  return list
end

describe("an answer ends at", function()
  local server

  after_each(function()
    if server then server.process:remove() end
    server = nil
    files.clean()
  end)

  local function ends_at(id)
    local r = server:post("/v1/completions", { prompt = "a", max_tokens = 3,
      temperature = 0, allowed_token_ids = { id } })
    assert.equal(200, r.status, r.text)
    return r.json.choices[1].finish_reason == "stop" and r.json.choices[1].text == ""
      and r.json.usage.completion_tokens == 1
  end

  -- <|end_of_text|> 596 is what the files list; 599 <|eot_id|> is the tokenizer's own.
  it("the tokenizer's own end, whatever the configurations list", function()
    local config = cjson.decode(read "config.json")
    for _, case in ipairs {
      { eos = 596, lists = true }, { eos = nil, lists = false },
      { eos = nil, generation = '{"eos_token_id":596}', lists = true },
    } do
      config.eos_token_id = case.eos
      server = serving.start { "--model", folder {
        ["config.json"] = cjson.encode(config),
        ["generation_config.json"] = case.generation or false } }
      assert.is_true(ends_at(599))
      assert.equal(case.lists, ends_at(596))
      assert.is_false(ends_at(5))
      server:stop()
    end
  end)

  -- As files of 2023 are.
  it("the end of a turn that a GGUF file does not name", function()
    local path = small.gguf(metas { ["tokenizer.ggml.bos_token_id"] = 2 ^ 32 - 1 },
      small.gguf_llama, { version = 2 })
    server = serving.start { "--model", path }
    assert.is_true(ends_at(2))
    assert.is_true(ends_at(3))
    assert.is_false(ends_at(5))
    local r = server:post("/tokenize", { prompt = "ab<|im_end|>a" })
    assert.same({ 15, 3, 4 }, r.json.tokens)    -- no begin-of-text
    server:stop()
  end)
end)
