-- SPDX-License-Identifier: Apache-2.0
-- Tokenizers read from GGUF metadata and from tokenizer.json, and what is refused.
local cjson = require "cjson"
local scratch = require "scratch"
local tokenizer = require "perilune.model.tokenizer"
local tools = require "text_tools"
local encode, decode = tools.encode, tools.decode

local SPACE = "\226\150\129"

describe("a tokenizer from GGUF metadata", function()
  local function meta(values)
    return {
      get = function(key)
        local v = values[key]
        if type(v) == "table" then return #v end
        if v ~= nil then return v end
      end,
      item = function(key, i) return values[key][i + 1] end,
    }
  end

  local function gpt2(change)
    local values = {
      ["tokenizer.ggml.model"] = "gpt2", ["tokenizer.ggml.pre"] = "smollm",
      ["tokenizer.ggml.tokens"] = { "<|end|>", "a", "b", "ab", "1", "Ġ" },
      ["tokenizer.ggml.token_type"] = { 3, 1, 1, 1, 1, 1 },
      ["tokenizer.ggml.merges"] = { "a b" }, ["tokenizer.ggml.eos_token_id"] = 0,
      ["tokenizer.chat_template"] = "{{ messages }}",
    }
    for key, value in pairs(change or {}) do values["tokenizer." .. key] = value end
    return tokenizer.from_gguf(meta(values))
  end

  local function llama(change)
    local values = {
      ["tokenizer.ggml.model"] = "llama",
      ["tokenizer.ggml.tokens"] = { "<unk>", "<s>", "</s>", "<0x0A>", SPACE, "a",
                                    SPACE .. "a" },
      ["tokenizer.ggml.scores"] = { 0, 0, 0, 0, -3, -2, -1 },
      ["tokenizer.ggml.token_type"] = { 2, 3, 3, 6, 1, 1, 1 },
      ["tokenizer.ggml.unknown_token_id"] = 0, ["tokenizer.ggml.bos_token_id"] = 1,
      ["tokenizer.ggml.eos_token_id"] = 2,
    }
    for key, value in pairs(change or {}) do values["tokenizer." .. key] = value end
    return tokenizer.from_gguf(meta(values))
  end

  it("of kind gpt2 has its pre-tokenizer, merges and special tokens", function()
    local t = assert(gpt2())
    assert.same({ 3, 4, 5, 3, 0 }, encode(t.text, "ab1 ab<|end|>"))
    assert.same({ ["<|end|>"] = 0 }, t.special)
    assert.same({ eos_token = "<|end|>" }, t.special_tokens)
    assert.equal(0, t.eos_id)
    assert.same({ default = "{{ messages }}" }, t.chat_templates)
    assert.same({}, t.prefix_ids)
    assert.is_false(t.add_bos)
  end)

  it("has the templates that it names, and no others", function()
    assert.same({ default = "{{ messages }}", tool_use = "T" }, gpt2 {
      chat_templates = { "tool_use", "lost" }, ["chat_template.tool_use"] = "T",
      ["chat_template.lost"] = 5, ["chat_template.hidden"] = "H" }.chat_templates)
    assert.same({}, gpt2 { chat_template = 5, chat_templates = "x" }.chat_templates)
    assert.same({}, llama().chat_templates)
  end)

  it("of kind llama has scores, a space before, bytes, and begin-of-text", function()
    local t = assert(llama())
    assert.same({ 6, 3, 5, 0, 2 }, encode(t.text, "a\naq</s>"))
    assert.same({ 1 }, t.prefix_ids)
    assert.equal("a a\n", decode(t.text, { 1, 6, 6, 3 }, true))
    t = assert(llama { ["ggml.add_space_prefix"] = false, ["ggml.add_bos_token"] = false,
                       ["ggml.add_eos_token"] = true })
    assert.same({ 5 }, encode(t.text, "a"))
    assert.same({}, t.prefix_ids)
    assert.same({ 2 }, t.suffix_ids)
    assert.equal(" a", decode(t.text, { 6 }))
  end)

  -- -1, in whatever width it was written, or simply too much.
  it("has no token where an id is none", function()
    for _, id in ipairs { 4294967295, -1, 77, 65535, 2 ^ 40 } do
      local change = { ["ggml.bos_token_id"] = id, ["ggml.eos_token_id"] = id,
                       ["ggml.unknown_token_id"] = id, ["ggml.padding_token_id"] = id,
                       ["ggml.seperator_token_id"] = id, ["ggml.add_bos_token"] = true }
      for _, make in ipairs { gpt2, llama } do
        local t = assert(make(change))
        assert.same({ {}, {} }, { t.prefix_ids, t.suffix_ids })
        assert.is_nil(t.bos_id or t.eos_id or t.unk_id or t.pad_id)
      end
    end
  end)

  it("ends at the end of a turn, by its name or by its text", function()
    local function ends(tokens, kinds, change)
      change = change or {}
      change["ggml.tokens"], change["ggml.token_type"] = tokens, kinds
      return assert(gpt2(change))
    end
    local t = ends({ "<|end_of_text|>", "a", "b", "ab", "<|im_end|>", "<x>" },
                   { 3, 1, 1, 1, 3, 3 })
    table.sort(t.end_ids)
    assert.same({ 0, 0, 4 }, t.end_ids)
    t = ends({ "<s>", "a", "b", "ab", "<|eot_id|>", "<x>" }, { 3, 1, 1, 1, 1, 3 },
             { ["ggml.eos_token_id"] = 99, ["ggml.eot_token_id"] = 5 })
    assert.same({ 4, 5 }, t.end_ids)
    -- Of whatever kind the file says it is.
    assert.same({ 1, 4 }, encode(t.text, "a<|eot_id|>"))
    assert.equal("a", decode(t.text, { 1, 4 }, true))
  end)

  it("is refused by what is wrong", function()
    local cases = {
      { gpt2, "ggml.model", "wordpiece", "'wordpiece' is not supported, only gpt2" },
      { gpt2, "ggml.pre", "odd", "pre 'odd' is not supported, only codeshell" },
      { gpt2, "ggml.token_type", { 1 }, "'tokenizer.ggml.token_type' has not as many" },
      { gpt2, "ggml.tokens", { "a", 1, "", "", "", "" }, "tokens' item 1 is not a string" },
      { gpt2, "ggml.merges", { "ab" }, "merge 0 is not a pair" },
      { gpt2, "ggml.merges", { "a z" }, "names 'a' 'z'" },
      { llama, "ggml.scores", { 1 }, "'tokenizer.ggml.scores' has not as many" },
    }
    for _, case in ipairs(cases) do
      local t, why, name = case[1] { [case[2]] = case[3] }
      assert.is_nil(t)
      assert.equal(why:find "not supported" and "PL_EUNSUPPORTED" or "PL_EFORMAT", name)
      assert.is_truthy(why:find(case[4], 1, true), why)
    end
  end)
end)

describe("a tokenizer from a directory", function()
  local folder, dir

  before_each(function()
    folder = scratch.folder()
    dir = folder.path
  end)

  after_each(function() folder.remove() end)

  local function write(name, content)
    folder.write(name, type(content) == "string" and content or cjson.encode(content))
  end

  local byte_level = { type = "ByteLevel", add_prefix_space = false, use_regex = false }

  local function document()
    return {
      added_tokens = { { id = 5, content = "<s>", special = true },
                       { id = 6, content = "<t>", special = false } },
      pre_tokenizer = { type = "Sequence", pretokenizers = {
        { type = "Split", pattern = { String = "." }, behavior = "Isolated" },
        byte_level } },
      post_processor = { type = "TemplateProcessing",
        single = { { SpecialToken = { id = "<s>" } }, { Sequence = { id = "A" } } },
        special_tokens = { ["<s>"] = { ids = { 5 } } } },
      decoder = byte_level,
      model = { type = "BPE", vocab = { a = 0, b = 1, ab = 2, ["."] = 3, ["ab."] = 4 },
                merges = { "a b", { "ab", "." } } },
    }
  end

  it("has its tokens, its ids around a prompt, its templates", function()
    write("tokenizer.json", document())
    write("tokenizer_config.json", {
      bos_token = { content = "<s>" }, eos_token = "<t>", pad_token = "<none>",
      chat_template = { { name = "default", template = "D" },
                        { name = "tool_use", template = "T" } } })
    local t = assert(tokenizer.from_directory(dir))
    assert.same({ 2, 3, 5, 0, 6 }, encode(t.text, "ab.<s>a<t>"))    -- '.' is a piece
    assert.equal("ab.", decode(t.text, { 5, 4, 6 }, true))
    assert.same({ 5 }, t.prefix_ids)
    assert.same({}, t.suffix_ids)
    assert.is_true(t.add_bos)
    assert.is_false(t.add_eos)
    assert.same({ 5, 6, 7 }, { t.bos_id, t.eos_id, t.pad_id })
    assert.same({ bos_token = "<s>", eos_token = "<t>", pad_token = "<none>" },
      t.special_tokens)
    assert.same({ default = "D", tool_use = "T" }, t.chat_templates)
    assert.same({ ["<s>"] = 5, ["<t>"] = 6, ["<none>"] = 7 }, t.special)
  end)

  it("has the templates of its files, whatever the configuration says", function()
    write("tokenizer.json", document())
    write("tokenizer_config.json", { chat_template = "C" })
    local function templates() return tokenizer.from_directory(dir).chat_templates end
    assert.same({ default = "C" }, templates())
    write("additional_chat_templates/tool_use.jinja", "T")
    write("additional_chat_templates/rag.jinja", "R")
    write("additional_chat_templates/notes.txt", "N")
    assert.same({ tool_use = "T", rag = "R" }, templates())
    write("chat_template.jinja", "F")
    assert.same({ default = "F", tool_use = "T", rag = "R" }, templates())
    assert.same({ default = "F", rag = "R" }, tokenizer.from_files {
      ["tokenizer.json"] = cjson.encode(document()), ["chat_template.jinja"] = "F",
      ["additional_chat_templates/rag.jinja"] = "R" }.chat_templates)
  end)

  -- Values as transformers 4.57 gives them.
  it("has the tokens that only tokenizer_config.json adds", function()
    write("tokenizer.json", document())
    write("tokenizer_config.json", { added_tokens_decoder = {
      ["9"] = { content = "<y>", special = true }, ["8"] = { content = "<x>" },
      ["6"] = { content = "<t>", special = true, rstrip = true } } })
    local t = assert(tokenizer.from_directory(dir))
    -- New ones get the next free ids, in the order of their keys.
    assert.same({ 0, 7, 0, 8, 6, 0 }, encode(t.text, "a<x>a<y><t>  a"))
    assert.equal("a<x>a", decode(t.text, { 0, 7, 8, 6, 0 }, true))
    assert.same({ ["<s>"] = 5, ["<t>"] = 6, ["<y>"] = 8 }, t.special)
    for wanted, decoder in pairs {
      ["added_tokens_decoder['x']: the key"] = { x = { content = "<x>" } },
      ["added_tokens_decoder['-1']: the key"] = { ["-1"] = { content = "<x>" } },
      ["added_tokens_decoder['8']: no object"] = { ["8"] = "<x>" },
      ["added_tokens_decoder['7']: no object"] = { ["7"] = { content = 1 } },
    } do
      write("tokenizer_config.json", { added_tokens_decoder = decoder })
      local none, why = tokenizer.from_directory(dir)
      assert.is_nil(none)
      assert.is_truthy(why:find(wanted, 1, true), why)
    end
  end)

  it("has special tokens by their roles, of two files", function()
    write("tokenizer.json", document())
    write("special_tokens_map.json", { bos_token = "<t>", eos_token = { content = "<t>" },
      additional_special_tokens = { "ab" }, pad_token = "b" })
    local t = assert(tokenizer.from_directory(dir))
    assert.same({ 6, 6, 1 }, { t.bos_id, t.eos_id, t.pad_id })
    assert.same({ 6 }, t.end_ids)
    assert.same({ ["<s>"] = 5, ["<t>"] = 6, ab = 2, b = 1 }, t.special)
    assert.equal("a.", decode(t.text, encode(t.text, "ab<t>a.b"), true))
    local config = { bos_token = "<s>", pad_token = cjson.null, eos_token = "<e>",
                     additional_special_tokens = {} }
    write("tokenizer_config.json", config)
    assert.equal(6, assert(tokenizer.from_directory(dir)).eos_id)
    config.added_tokens_decoder = { ["5"] = { content = "<s>", special = true } }
    write("tokenizer_config.json", config)
    t = assert(tokenizer.from_directory(dir))
    assert.same({ 5, 7, 1 }, { t.bos_id, t.eos_id, t.pad_id })
    assert.same({ ["<s>"] = 5, ["<e>"] = 7, b = 1 }, t.special)
  end)

  local function refused(name, wanted)
    local t, why, code = tokenizer.from_directory(dir)
    assert.is_nil(t)
    assert.is_truthy(why:find(wanted, 1, true), why)
    assert.equal(name, code)
  end

  it("is refused where there is none, or no JSON", function()
    refused("PL_EIO", "tokenizer.json' cannot be read")
    write("tokenizer.json", "{")
    refused("PL_EFORMAT", "is not JSON")
    write("tokenizer.json", "[]")
    refused("PL_EFORMAT", "model: not an object")
  end)

  local function refused_each(name, cases)
    for wanted, change in pairs(cases) do
      local d = document()
      change(d)
      write("tokenizer.json", d)
      refused(name, wanted)
    end
  end

  it("is refused by the field that is not supported", function()
    local unigram = { type = "Unigram", vocab = {}, merges = {} }
    refused_each("PL_EUNSUPPORTED", {
      ["model.type: 'Unigram' is not"] = function(d) d.model = unigram end,
      ["model.dropout: not"] = function(d) d.model.dropout = 0.1 end,
      ["model.end_of_word_suffix: not"] = function(d)
        d.model.end_of_word_suffix = "x"
      end,
      ["model.byte_fallback: not"] = function(d) d.model.byte_fallback = true end,
      ["normalizer.type: 'Odd'"] = function(d) d.normalizer = { type = "Odd" } end,
      ["pre_tokenizer.pretokenizers[0].behavior: 'Removed'"] = function(d)
        d.pre_tokenizer.pretokenizers[1].behavior = "Removed"
      end,
      ["pre_tokenizer.pretokenizers[2]: not supported after ByteLevel"] = function(d)
        table.insert(d.pre_tokenizer.pretokenizers, byte_level)
      end,
      ["decoder.type: 'Odd'"] = function(d) d.decoder = { type = "Odd" } end,
      ["decoder: not supported without"] = function(d) d.decoder = nil end,
      ["post_processor.type: 'Odd'"] = function(d)
        d.post_processor = { type = "Odd" }
      end,
      ["pre-tokenizer '(': missing"] = function(d)
        d.pre_tokenizer.pretokenizers[1].pattern = { Regex = "(" }
      end,
    })
  end)

  it("is refused by what is malformed", function()
    refused_each("PL_EFORMAT", {
      ["model.unk_token: 'nil'"] = function(d) d.model.unk_token = "?" end,
      ["pretokenizers[0].pattern: not an object"] = function(d)
        d.pre_tokenizer.pretokenizers[1].pattern = 7
      end,
      ["post_processor: 77 is not a token"] = function(d)
        d.post_processor.special_tokens["<s>"].ids[1] = 77
      end,
      ["added_tokens[0].id: 'x'"] = function(d) d.added_tokens[1].id = "x" end,
      ["two tokens have the id 0"] = function(d) d.model.vocab.b = 0 end,
      ["token 'b' has the id '0.5'"] = function(d) d.model.vocab.b = 0.5 end,
      ["merge 0 is not a pair"] = function(d) d.model.merges[1] = { "a" } end,
    })
  end)
end)
