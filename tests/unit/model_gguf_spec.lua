-- SPDX-License-Identifier: Apache-2.0
local pl = require "perilune.ffi"
local files = require "weights_files"
local gguf_twin = require "gguf_twin"
local model = require "perilune.model.load"
local small = require "model_files"
local C = pl.C
local gguf, gguf_metas, gguf_llama = small.gguf, small.gguf_metas, small.gguf_llama
local joined, tensors = small.joined, small.tensors

describe("model.describe of a GGUF file", function()
  after_each(files.clean)

  local function refused_file(why, metas, list)
    local desc, message = model.describe(gguf(metas, list or gguf_llama))
    assert.is_nil(desc)
    assert.truthy(message:find(why, 1, true), message)
  end

  local function set(kind, key, type, value)
    local metas = gguf_metas(kind)
    for i, row in ipairs(metas) do
      if row[1] == key then table.remove(metas, i) break end
    end
    return joined(metas, type and { key, type, value } or nil)
  end

  it("reads a model", function()
    local path = gguf(joined(gguf_metas "llama", { "tokenizer.ggml.eot_token_id", "u32",
                                                   5 }),
                      gguf_llama)
    local desc = assert(model.describe(path))
    local o = desc.options
    assert.same({ "gguf", "LlamaForCausalLM", "float32", 64, 0, 0 },
                { desc.format, desc.architecture, desc.dtype, desc.max_positions,
                  o.qkv_bias, o.o_bias })
    assert.same({ 0, C.PL_ROPE_PAIRS, 1, 8, 12, 2, 1, 4, 16, 1 },
                { o.qk_norm, o.rope_order, o.n_layers, o.hidden, o.ffn, o.n_heads,
                  o.n_kv_heads,
                  o.head_dim, o.vocab, o.tied })
    assert.same({ 2, 5 }, desc.eos_ids)
    assert.equal(1, desc.bos_id)
    assert.same({ path }, desc.files)
    assert.equal(#gguf_llama, #tensors(desc))
  end)

  it("sees the head, biases and rope's factors by their tensors", function()
    local desc = model.describe(gguf(gguf_metas "llama", joined(gguf_llama,
      { "output.weight", { 16, 8 } }, { "rope_freqs.weight", { 2 } },
      { "blk.0.attn_q.bias", { 8 } }, { "blk.0.attn_k.bias", { 4 } },
      { "blk.0.attn_v.bias", { 4 } })))
    assert.same({ 0, 1, 0 },
                { desc.options.tied, desc.options.qkv_bias, desc.options.o_bias })
    local roles = {}
    for _, row in ipairs(assert(tensors(desc))) do roles[row.name] = row.role end
    assert.equal(tonumber(C.PL_ROLE_ROPE_FREQS), roles["rope_freqs.weight"])
    assert.equal(tonumber(C.PL_ROLE_HEAD), roles["output.weight"])
  end)

  it("reads the other architectures", function()
    local norms = { { "blk.0.attn_q_norm.weight", { 4 } },
                    { "blk.0.attn_k_norm.weight", { 4 } } }
    local full = joined(gguf_llama, unpack(norms))
    local desc = model.describe(gguf(gguf_metas "qwen3", full))
    assert.same({ 1, C.PL_ROPE_HALVES, "Qwen3ForCausalLM" },
                { desc.options.qk_norm, desc.options.rope_order, desc.architecture })
    assert.truthy(tensors(desc))
    desc = model.describe(gguf(gguf_metas "qwen2", gguf_llama))
    assert.same({ 1, 0 }, { desc.options.qkv_bias, desc.options.o_bias })
    local _, message = tensors(desc)
    assert.truthy(message:find("no tensor 'blk.0.attn_q.bias'", 1, true))
    local list = joined(norms, { "blk.0.ffn_gate_inp.weight", { 3, 8 } },
      { "blk.0.ffn_gate_exps.weight", { 3, 5, 8 } },
      { "blk.0.ffn_up_exps.weight", { 3, 5, 8 } },
      { "blk.0.ffn_down_exps.weight", { 3, 8, 5 } })
    for i = 1, 8 do list[#list + 1] = gguf_llama[i] end
    desc = assert(model.describe(gguf(joined(gguf_metas "qwen3moe",
      { "qwen3moe.expert_count", "u32", 3 }, { "qwen3moe.expert_used_count", "u32", 2 },
      { "qwen3moe.expert_feed_forward_length", "u32", 5 }), list)))
    assert.same({ 3, 2, 5, 1 }, { desc.options.n_experts, desc.options.n_experts_used,
                                  desc.options.expert_ffn, desc.options.norm_topk })
    local stacked = 0
    for _, row in ipairs(assert(tensors(desc))) do
      if row.name:find "_exps" then
        stacked = stacked + 1
        assert.same({ -1, 3 }, { row.expert, #row.shape })
      end
    end
    assert.equal(3, stacked)
  end)

  it("reads Gemma-2", function()
    local function describe_gemma(...)
      return model.describe(gguf(joined(gguf_metas "gemma2",
        { "gemma2.attn_logit_softcapping", "f32", 50 },
        { "gemma2.final_logit_softcapping", "f32", 30 }, ...), gguf_llama))
    end
    local window = { "gemma2.attention.sliding_window", "u32", 20 }
    local desc = assert(describe_gemma(window))
    local o = desc.options
    assert.same({ 1, 1, 0, 20, 50, 30, 0, C.PL_GATE_GELU_TANH },
                { o.tied, o.post_norms, o.norm_plus_one, o.window, o.attention_cap,
                  o.logit_cap, o.attention_scale, o.gate })
    assert.is_true(math.abs(o.embed_scale - math.sqrt(8)) < 1e-6)
    assert.equal("Gemma2ForCausalLM", desc.architecture)
    assert.is_nil(desc.full_layers)    -- the second would be one
    local metas = joined(gguf_metas "gemma2", window)
    for _, row in ipairs(metas) do
      if row[1] == "gemma2.block_count" then row[3] = 46 end
    end
    desc = assert(model.describe(gguf(metas, gguf_llama)))
    assert.equal(0.5, desc.options.attention_scale)    -- of 27B, by hidden / heads
    assert.equal(23, #desc.full_layers)
    assert.equal(4096, describe_gemma().options.window)
    local _, message = describe_gemma({ "gemma2.attention.sliding_window", "u32", 0 })
    assert.truthy(message:find("'gemma2.attention.sliding_window' is '0'", 1, true), message)
  end)

  it("reads Gemma-3", function()
    local function describe_gemma(...)
      local metas = joined(gguf_metas "gemma3", { "gemma3.attention.sliding_window", "u32", 20 },
                           ...)
      for _, row in ipairs(metas) do
        if row[1] == "gemma3.block_count" then row[3] = 7 end
      end
      return assert(model.describe(gguf(metas, gguf_llama)))
    end
    local desc = describe_gemma()
    local o = desc.options
    assert.same({ 5 }, desc.full_layers)
    assert.same({ 20, 1, 1, 5000, 1e4, 0, 0 }, { o.window, o.qk_norm, o.post_norms,
      o.rope_theta, o.rope_theta_window, o.attention_cap, o.logit_cap })
    desc = describe_gemma({ "gemma3.attention.sliding_window_pattern", "u32", 2 },
                          { "gemma3.rope.freq_base_swa", "f32", 500 })
    assert.same({ 1, 3, 5 }, desc.full_layers)
    assert.equal(500, desc.options.rope_theta_window)
  end)

  it("reads Phi-3, whose rope depends on what is served", function()
    local list = { { "rope_factors_long.weight", { 1 } },
                   { "rope_factors_short.weight", { 1 } },
                   { "blk.0.attn_qkv.weight", { 16, 8 } },
                   { "blk.0.ffn_up.weight", { 24, 8 } } }
    for _, row in ipairs(gguf_llama) do
      if not row[1]:find "attn_[qkv]%.w" and not row[1]:find "ffn_[gu][ap]" then
        list[#list + 1] = row
      end
    end
    local function served(length, more)
      return model.describe(gguf(joined(gguf_metas "phi3",
        { "phi3.rope.dimension_count", "u32", 2 },
        { "phi3.rope.scaling.original_context_length", "u32", 16 },
        { "phi3.rope.scaling.attn_factor", "f32", 1.5 },
        { "phi3.attention.sliding_window", "u32", 0 }, more), list),
        { max_model_len = length })
    end
    local desc = assert(served())
    local o = desc.options
    assert.same({ 2, 1.5, 0, 0 }, { o.rope_dims, o.rope_attention, o.window,
                                    o.rope_order })
    assert.equal("rope_factors_long.weight", desc.rope_factors)
    assert.equal("rope_factors_short.weight", served(16).rope_factors)
    local roles = {}
    for _, row in ipairs(assert(tensors(desc))) do roles[row.name] = row.role end
    assert.same({ tonumber(C.PL_ROLE_ROPE_FREQS), nil, tonumber(C.PL_ROLE_QKV),
                  tonumber(C.PL_ROLE_GATE_UP) },
                { roles["rope_factors_long.weight"], roles["rope_factors_short.weight"],
                  roles["blk.0.attn_qkv.weight"], roles["blk.0.ffn_up.weight"] })
    local _, message = served(nil, { "phi3.attention.value_length", "u32", 2 })
    assert.truthy(message:find("'phi3.attention.value_length' is '2'", 1, true), message)
  end)

  it("reads rope's scaling", function()
    local desc = model.describe(gguf(joined(gguf_metas "qwen3",
      { "qwen3.rope.scaling.type", "str", "yarn" }, { "qwen3.rope.scaling.factor", "f32",
                                                      4 },
      { "qwen3.rope.scaling.original_context_length", "u32", 32 }), gguf_llama))
    local o = desc.options
    assert.same({ C.PL_ROPE_YARN, 4, 1, 32, 32, 0 },
                { o.rope_scaling, o.rope_factor, o.rope_low, o.rope_high, o.rope_original,
                  o.rope_attention })
    refused_file("'llama.rope.scaling.factor' is '-2'", joined(gguf_metas "llama",
      { "llama.rope.scaling.factor", "f32", -2 }))
    refused_file("'llama.rope.scaling.type' is 'longrope'", joined(gguf_metas "llama",
      { "llama.rope.scaling.type", "str", "longrope" },
      { "llama.rope.scaling.factor", "f32", 4 }))
  end)

  it("takes a factor of rope without a type as linear, under its old name too", function()
    local function rope(...)
      local path = gguf(joined(gguf_metas "llama", ...), gguf_llama)
      local o = assert(model.describe(path)).options
      return { o.rope_scaling, o.rope_factor }
    end
    local factor = { "llama.rope.scaling.factor", "f32", 4 }
    local old = { "llama.rope.scale_linear", "f32", 2 }
    local function kind(name) return { "llama.rope.scaling.type", "str", name } end
    assert.same({ C.PL_ROPE_LINEAR, 4 }, rope(factor))
    assert.same({ C.PL_ROPE_LINEAR, 2 }, rope(old))
    assert.same({ C.PL_ROPE_LINEAR, 4 }, rope(factor, old))
    assert.same({ C.PL_ROPE_LINEAR, 2 }, rope(old, kind "linear"))
    assert.same({ C.PL_ROPE_PLAIN, 1 }, rope(factor, kind "none"))
    assert.same({ C.PL_ROPE_PLAIN, 1 }, rope(kind "linear"))
    for _, one in ipairs { 0, 1 } do
      assert.same({ C.PL_ROPE_PLAIN, 1 }, rope { "llama.rope.scale_linear", "f32", one })
    end
  end)

  it("has no end and no begin where their ids are no tokens", function()
    for _, id in ipairs { 16, 2 ^ 32 - 1 } do
      local metas = gguf_metas "llama"
      for _, row in ipairs(metas) do
        if row[1]:find "token_id$" then row[3] = id end
      end
      local desc = assert(model.describe(gguf(metas, gguf_llama)))
      assert.same({}, desc.eos_ids)
      assert.is_nil(desc.bos_id)
    end
  end)

  it("leaves out tensors without elements", function()
    local list = joined(gguf_llama, { "blk.0.attn_q.lora", { 0 } },
                        { "unheard.of", { 3, 0 } })
    local desc = assert(model.describe(gguf(gguf_metas "llama", list)))
    assert.equal(#gguf_llama, #tensors(desc))
    list[1] = { "token_embd.weight", { 0, 8 } }
    refused_file("'token_embd.weight'", gguf_metas "llama", list)
  end)

  it("refuses by field and value", function()
    refused_file("'general.architecture' is 'gpt2'", gguf_metas "gpt2")
    refused_file("'general.architecture' is missing", {})
    refused_file("'llama.block_count' is missing", set("llama", "llama.block_count"))
    refused_file("'llama.block_count' is '0'", set("llama", "llama.block_count", "u32",
                                                   0))
    refused_file("'llama.embedding_length' is 'x'",
                 set("llama", "llama.embedding_length", "str", "x"))
    refused_file("'llama.feed_forward_length' is '{\"n\":2}'",
                 set("llama", "llama.feed_forward_length", "u32", { 1, 2 }))
    refused_file("'llama.rope.dimension_count' is '2', wanted 4",
                 set("llama", "llama.rope.dimension_count", "u32", 2))
    refused_file("'llama.attention.head_count' is '3'",
                 set("llama", "llama.attention.head_count", "u32", 3))
    refused_file("'llama.vocab_size' is '17'", set("llama", "llama.vocab_size", "u32",
                                                   17))
    refused_file("'llama.expert_count' is '8'", set("llama", "llama.expert_count", "u32",
                                                    8))
    refused_file("'split.count' is '2', wanted 1 of a file that is not named "
                 .. "NAME-00001-of-00002.gguf", set("llama", "split.count", "u16", 2))
    refused_file("no matrix 'token_embd.weight'", gguf_metas "llama", {})
    local _, message = model.describe(files.write("GGUF", ".gguf"))
    assert.truthy(message:find("the version", 1, true), message)
    _, message = model.describe(gguf(gguf_metas "llama", gguf_llama),
                                { hf_overrides = { vocab_size = 3 } })
    assert.truthy(message:find("hf_overrides change a config.json", 1, true), message)
  end)
end)

local golden = os.getenv "PERILUNE_GOLDEN" or "tests/golden"
local probe = io.open(golden .. "/llama/config.json")
if probe then probe:close() end

describe("a GGUF twin", function()
  (probe and it or pending)("describes the model that its folder does", function()
    local folder = assert(model.describe(golden .. "/llama"))
    local file = assert(model.describe(gguf_twin(golden .. "/llama")))
    for _, key in ipairs { "n_layers", "hidden", "n_heads", "n_kv_heads", "head_dim",
                           "ffn", "vocab", "max_positions", "tied", "rope_theta" } do
      assert.equal(folder.options[key], file.options[key])
    end
    assert.equal(C.PL_ROPE_PAIRS, file.options.rope_order)
    assert.equal(#tensors(folder) + 1, #assert(tensors(file)))
    files.clean()
  end)
end)
