-- SPDX-License-Identifier: Apache-2.0
local pl = require "perilune.ffi"
local cjson = require "cjson"
local files = require "weights_files"
local model = require "perilune.model.load"
local small = require "model_files"
local C, ffi = pl.C, pl.ffi
local llama, with, qwen, moe = small.llama, small.with, small.qwen, small.moe
local shapes, encode, folder = small.shapes, small.encode, small.folder
local tensors = small.tensors

local function describe_config(config, opts)
  return model.describe(folder(config), opts)
end

local function refused(config, why, opts)
  local desc, message, name = model.describe(files.folder {
    ["config.json"] = encode(config) }, with({ load_format = "dummy" }, opts or {}))
  assert.is_nil(desc)
  assert.truthy(message:find("config.json: ", 1, true), message)
  assert.truthy(message:find(why, 1, true), message)
  return name
end

-- Describes without weights.
local function options(config, opts)
  local desc, why = model.describe(files.folder { ["config.json"] = encode(config) },
                                   with({ load_format = "dummy" }, opts or {}))
  return assert(desc, why).options
end

-- ---- config.json ---------------------------------------------------------------------

describe("model.describe of a folder", function()
  after_each(files.clean)

  it("reads a model", function()
    local path = folder(llama(), { ["generation_config.json"] = cjson.encode {
      temperature = 0.6, top_p = 0.9, top_k = 20, eos_token_id = { 5, 3 },
      do_sample = true, max_new_tokens = 9 } })
    local desc = assert(model.describe(path))
    local o = desc.options
    assert.same({ "hf", "LlamaForCausalLM", "float32", 0, 0, 64 },
                { desc.format, desc.architecture, desc.dtype, o.qkv_bias, o.o_bias,
                  desc.max_positions })
    assert.same({ 8, 12, 2, 2, 1, 4, 16, 64 },
                { o.hidden, o.ffn, o.n_layers, o.n_heads, o.n_kv_heads, o.head_dim,
                  o.vocab,
                  o.max_positions })
    assert.same({ 1e-5, 5000, 0, 0, 0 },
                { o.norm_eps, o.rope_theta, o.tied, o.window, o.rope_scaling })
    assert.same({ temperature = 0.6, top_p = 0.9, top_k = 20, max_new_tokens = 9 },
                desc.generation)
    assert.same({ 5, 3 }, desc.eos_ids)
    assert.equal(1, desc.bos_id)
    assert.same({ path .. "/model.safetensors" }, desc.files)
    assert.equal(path:match "[^/]+$", desc.name)
    assert.truthy(desc.fingerprint:find "^%x%x%x%x%x%x%x%x%x%x%x%x%x%x%x%x$")
    assert.is_true(pcall(ffi.new, "pl_model_options", o))
  end)

  -- Python's json writes them, of fields that mean nothing here.
  it("minds numbers that JSON has not only where it reads them", function()
    local function with_field(field)
      local text = encode(llama()):gsub("^{", "{" .. field .. ",")
      return model.describe(files.folder { ["config.json"] = text },
                            { load_format = "dummy" })
    end
    for _, value in ipairs { "Infinity", "-Infinity", "NaN" } do
      assert(with_field('"time_step_limit":[0.0,' .. value .. "]"))
      local desc, why = with_field('"partial_rotary_factor":' .. value)
      assert.is_nil(desc)
      assert.truthy(why:find("'partial_rotary_factor' is '", 1, true), why)
    end
  end)

  it("takes what ends a text from config.json where nothing else says", function()
    local function ends(ids)
      return describe_config(with(llama(), { eos_token_id = ids })).eos_ids
    end
    assert.same({ 3 }, ends(3))
    assert.same({ 3, 4 }, ends { 3, 4 })
    assert.same({}, ends(cjson.null))
  end)

  it("names a snapshot by its repository", function()
    local root = files.folder { ["models--org--a-b/snapshots/01/config.json"] =
                                encode(llama()) }
    local desc = model.describe(root .. "/models--org--a-b/snapshots/01",
                                { load_format = "dummy" })
    assert.equal("org/a-b", desc.name)
  end)

  it("has a fingerprint of what matters", function()
    local function print_of(config, opts, more)
      return assert(model.describe(folder(config, more), opts)).fingerprint
    end
    local one = print_of(llama())
    assert.equal(one, print_of(llama()))
    assert.equal(one, print_of(with(llama(), { unheard_of = 1 })))
    assert.not_equal(one, print_of(with(llama(), { rope_theta = 5001 })))
    assert.not_equal(one, print_of(llama(), { hf_overrides = { sliding_window = 3,
      layer_types = { "full_attention", "sliding_attention" } } }))
    local bytes = files.zeros(shapes(llama()))
    assert.not_equal(one, print_of(llama(), nil, {
      ["model.safetensors"] = bytes:gsub("(%]}} *)%z", "%1\1", 1) .. "" }))
  end)

  it("finds tensors over several files", function()
    local all, first, second, map = shapes(llama()), {}, {}, {}
    for i, row in ipairs(all) do
      local half = i <= 9 and first or second
      half[#half + 1] = row
      map[row[1]] = i <= 9 and "a.safetensors" or "b.safetensors"
    end
    local function make(changes)
      local index = { weight_map = with(map, changes or {}) }
      return files.folder {
        ["config.json"] = encode(llama()), ["a.safetensors"] = files.zeros(first),
        ["b.safetensors"] = files.zeros(second),
        ["model.safetensors.index.json"] = cjson.encode(index) }
    end
    local desc = assert(model.describe(make()))
    assert.equal(2, #desc.files)
    assert.equal(#all, #tensors(desc))
    local _, message = model.describe(make { ["model.norm.weight"] = "b.safetensors" })
    assert.truthy(message:find("b.safetensors: no tensor 'model.norm.weight'", 1, true))
    _, message = model.describe(make { ["model.norm.weight"] = "../b.safetensors" })
    assert.truthy(message:find("is in '../b.safetensors'", 1, true))
    _, message = model.describe(make { ["model.norm.weight"] = "c.safetensors" })
    assert.truthy(message:find("c.safetensors: No such file", 1, true))
  end)

  it("needs weights, unless they are to be made up", function()
    local path = files.folder { ["config.json"] = encode(llama()) }
    local desc, message, name = model.describe(path)
    assert.is_nil(desc)
    assert.equal("PL_ENOTFOUND", name)
    assert.truthy(message:find("no model.safetensors", 1, true))
    assert.same({}, model.describe(path, { load_format = "dummy" }).files)
  end)

  it("reads every scaling of rope", function()
    local function rope(scaling, key)
      return options(with(llama(), { [key or "rope_scaling"] = scaling }))
    end
    local o = rope { type = "linear", factor = 2 }
    assert.same({ C.PL_ROPE_LINEAR, 2, 128 }, { o.rope_scaling, o.rope_factor,
                                                o.max_positions })
    o = rope { rope_type = "llama3", factor = 8, low_freq_factor = 1,
               high_freq_factor = 4,
               original_max_position_embeddings = 32 }
    assert.same({ C.PL_ROPE_LLAMA3, 8, 1, 4, 32, 64 },
                { o.rope_scaling, o.rope_factor, o.rope_low, o.rope_high, o.rope_original,
                  o.max_positions })
    o = rope { type = "yarn", factor = 4, original_max_position_embeddings = 32 }
    assert.same({ C.PL_ROPE_YARN, 4, 1, 32, 0, 32, 128 },
                { o.rope_scaling, o.rope_factor, o.rope_low, o.rope_high,
                  o.rope_attention,
                  o.rope_original, o.max_positions })
    o = rope { rope_type = "yarn", factor = 2, beta_fast = 16, beta_slow = 2,
               attention_factor = 1.5 }
    assert.same({ 2, 16, 1.5, 64, 128 },
                { o.rope_low, o.rope_high, o.rope_attention, o.rope_original,
                  o.max_positions })
    o = rope({ rope_type = "default", rope_theta = 7000 }, "rope_parameters")
    assert.same({ C.PL_ROPE_PLAIN, 7000 }, { o.rope_scaling, o.rope_theta })
    o = rope(cjson.null)
    assert.same({ C.PL_ROPE_PLAIN, 5000, 64 }, { o.rope_scaling, o.rope_theta,
                                                 o.max_positions })
  end)

  it("lets overrides change config.json", function()
    local newer = with(llama(), { rope_parameters = { rope_type = "default",
                                                      rope_theta = 7 } })
    local yarn = { rope_type = "yarn", factor = 4, original_max_position_embeddings = 64 }
    for _, key in ipairs { "rope_scaling", "rope_parameters" } do
      local o = options(newer, { hf_overrides = { [key] = yarn } })
      assert.same({ C.PL_ROPE_YARN, 7, 256 }, { o.rope_scaling, o.rope_theta,
                                                o.max_positions })
    end
    assert.is_nil(yarn.rope_theta)
    for _, config in ipairs { newer, llama() } do
      assert.equal(9, options(config, { hf_overrides = { rope_theta = 9 } }).rope_theta)
    end
    assert.equal(9, options(newer, { hf_overrides = { rope_theta = 9,
                                                      rope_parameters = yarn } }).rope_theta)
    assert.equal(32, options(llama(), { hf_overrides = { vocab_size = 32 } }).vocab)
    assert.equal("PL_EFORMAT", refused(llama(), "'vocab_size' is 'many'",
                                       { hf_overrides = { vocab_size = "many" } }))
  end)

  it("knows which layers have a window", function()
    local function window(kind, changes)
      local desc = assert(describe_config(qwen(kind, changes)))
      return { desc.options.window, unpack(desc.full_layers or {}) }
    end
    local kinds = { "full_attention", "sliding_attention" }
    assert.same({ 5 }, window("MistralForCausalLM", { sliding_window = 5 }))
    assert.same({ 0 }, window("MistralForCausalLM", { sliding_window = cjson.null }))
    assert.same({ 0 }, window("LlamaForCausalLM", { sliding_window = 5 }))
    for _, kind in ipairs { "Qwen2ForCausalLM", "Qwen3ForCausalLM" } do
      assert.same({ 0 }, window(kind, { sliding_window = 5, max_window_layers = 1 }))
      assert.same({ 5, 0 }, window(kind, { sliding_window = 5, max_window_layers = 1,
                                           use_sliding_window = true }))
      assert.same({ 0 }, window(kind, { sliding_window = 5, max_window_layers = 2,
                                        use_sliding_window = true }))
      assert.same({ 5, 0 }, window(kind, { sliding_window = 5, layer_types = kinds,
                                           use_sliding_window = true }))
    end
    assert.same({ 5, 1 }, window("MistralForCausalLM", { sliding_window = 5,
      layer_types = { "sliding_attention", "full_attention" } }))
    refused(qwen("MistralForCausalLM", { sliding_window = 5, layer_types = {
      "sliding_attention", "chunked_attention" } }),
      "wanted full_attention and sliding_attention")
    refused(qwen("MistralForCausalLM", { sliding_window = 5,
                                         layer_types = { kinds[1] } }),
            "wanted 2 of them")
    refused(qwen("MistralForCausalLM", { sliding_window = 0 }), "'sliding_window' is '0'")
    refused(moe { use_sliding_window = true, sliding_window = 5 }, "'use_sliding_window'")
  end)

  it("reads Gemma-2, whose config.json leaves things out", function()
    local function gemma(changes)
      return with(with(llama(), { architectures = { "Gemma2ForCausalLM" }, head_dim = 6,
        hidden_act = cjson.null, hidden_activation = "gelu_pytorch_tanh",
        tie_word_embeddings = nil, hidden_size = 72 }), changes or {})
    end
    local config = gemma()
    config.tie_word_embeddings = nil
    local desc = assert(describe_config(config, { load_format = "dummy" }))
    local o = desc.options
    assert.same({ 1, 1, 1, 4096, 50, 30, 1 / 16, 0, 0 },
                { o.tied, o.post_norms, o.norm_plus_one, o.window, o.attention_cap,
                  o.logit_cap, o.attention_scale, o.qk_norm, o.qkv_bias })
    assert.equal(C.PL_GATE_GELU_TANH, o.gate)
    assert.same({ 1 }, desc.full_layers)
    o = options(gemma { attn_logit_softcapping = cjson.null, sliding_window = cjson.null,
                        final_logit_softcapping = 20, query_pre_attn_scalar = 144 })
    assert.same({ 0, 20, 1 / 12, 0 },
                { o.attention_cap, o.logit_cap, o.attention_scale, o.window })
    refused(gemma { hidden_activation = "gelu" },
            "'hidden_activation' is 'gelu', wanted silu or gelu_pytorch_tanh")
    refused(gemma { use_bidirectional_attention = true }, "'use_bidirectional_attention'")
  end)

  it("reads Gemma-3, in both spellings of rope", function()
    local function gemma(changes)
      local config = with(with(llama(), { architectures = { "Gemma3ForCausalLM" },
        head_dim = 6, hidden_act = cjson.null, sliding_window = 5, num_hidden_layers = 7 }),
        changes)
      config.rope_theta, config.tie_word_embeddings = changes.rope_theta, nil
      return config
    end
    local function rope(changes)
      local o = options(gemma(changes))
      return { o.rope_theta, o.rope_theta_window, o.rope_scaling, o.rope_factor,
               o.max_positions }
    end
    assert.same({ 1e6, 1e4, C.PL_ROPE_PLAIN, 1, 64 }, rope {})
    assert.same({ 9, 8, C.PL_ROPE_LINEAR, 4, 64 }, rope { rope_theta = 9,
      rope_local_base_freq = 8, rope_scaling = { rope_type = "linear", factor = 4 } })
    assert.same({ 9, 1e4, C.PL_ROPE_LINEAR, 4, 64 }, rope { rope_parameters = {
      full_attention = { rope_type = "linear", factor = 4, rope_theta = 9 },
      sliding_attention = { rope_type = "default" } } })
    assert.same({ 1e6, 8, C.PL_ROPE_PLAIN, 1, 64 }, rope { rope_parameters = {
      full_attention = { rope_type = "default" },
      sliding_attention = { rope_type = "default", rope_theta = 8 } } })
    refused(gemma { rope_parameters = { full_attention = {},
      sliding_attention = { rope_type = "linear", factor = 2 } } },
      "'rope_parameters.sliding_attention.rope_type' is 'linear'")
    local desc = assert(describe_config(gemma {}, { load_format = "dummy" }))
    assert.same({ 5, 1, 0, 0 }, { desc.options.window, desc.options.qk_norm,
                                  desc.options.attention_cap, desc.options.logit_cap })
    assert.same({ 5 }, desc.full_layers)
    local every = gemma { sliding_window_pattern = 2 }
    assert.same({ 1, 3, 5 }, describe_config(every, { load_format = "dummy" }).full_layers)
    assert.equal(0, options(gemma { sliding_window_pattern = 1 }).window)
  end)

  it("reads Phi-3, whose rope depends on what is served", function()
    local function phi(scaling, changes)
      local config = with(with(llama(), { architectures = { "Phi3ForCausalLM" },
        hidden_size = 16, partial_rotary_factor = 0.5, sliding_window = 7,
        original_max_position_embeddings = 16, rope_scaling = scaling }), changes or {})
      config.rms_norm_eps = nil
      return config
    end
    local factors = { type = "su", short_factor = { 1, 2 }, long_factor = { 3, 4 } }
    local function served(length)
      return assert(describe_config(phi(factors), { load_format = "dummy",
                                                    max_model_len = length }))
    end
    local desc = served()
    local o = desc.options
    assert.same({ 4, 7, 64, 1e-5, C.PL_ROPE_PLAIN },
                { o.rope_dims, o.window, o.max_positions, o.norm_eps, o.rope_scaling })
    assert.equal(math.sqrt(1.5), o.rope_attention)
    for length, long in pairs { [16] = false, [17] = true, auto = true, [-1] = true } do
      assert.same(long and { 3, 4 } or { 1, 2 }, served(length).rope_factors)
    end
    assert.equal(desc.fingerprint, served(64).fingerprint)
    assert.not_equal(desc.fingerprint, served(16).fingerprint)
    assert.is_nil(describe_config(phi(cjson.null), { load_format = "dummy" }).rope_factors)
    refused(phi { type = "longrope", short_factor = { 1 }, long_factor = { 3, 4 } },
            "'rope_scaling.short_factor' is '[1]', wanted 2 numbers")
    refused(phi { type = "yarn", short_factor = { 1, 0 }, long_factor = { 3, 4 } },
            "wanted numbers above 0")
    refused(phi(factors, { partial_rotary_factor = 0.4 }),
            "'partial_rotary_factor' is '0.4', wanted an even part of 8")
  end)

  it("rounds the scale of embeddings to their type", function()
    for dtype, scale in pairs { float32 = 8.4852809906005859375, float16 = 8.484375,
                                bfloat16 = 8.5 } do
      local config = with(llama(), { architectures = { "Gemma2ForCausalLM" },
        hidden_activation = "gelu_pytorch_tanh", head_dim = 6, hidden_size = 72,
        torch_dtype = dtype })
      assert.equal(scale, options(config).embed_scale)
    end
    assert.equal(0, options(llama()).embed_scale)
  end)

  it("reads experts", function()
    local desc = assert(describe_config(moe()))
    local o = desc.options
    assert.same({ 1, 2, 1, 5, 1, 6 },
                { o.qk_norm, o.n_experts, o.n_experts_used, o.expert_ffn, o.norm_topk,
                  o.head_dim })
    local list = tensors(desc)
    local last = list[#list]
    assert.same({ tonumber(C.PL_ROLE_DOWN), 1, 1,
                  "model.layers.1.mlp.experts.1.down_proj.weight" },
                { last.role, last.layer, last.expert, last.name })
    refused(moe { decoder_sparse_step = 0 }, "'decoder_sparse_step' is '0', wanted an")
    refused(moe { mlp_only_layers = { "1" } }, "'mlp_only_layers' is")
    refused(moe { shared_expert_intermediate_size = 4 },
            "'shared_expert_intermediate_size'")
    refused(moe { num_experts_per_tok = 3 }, "'num_experts_per_tok' is '3'")
    refused(with(llama(), { num_experts = 4 }), "'num_experts' is '4'")
  end)

  it("refuses what it does not do, by field and value", function()
    local null = cjson.null
    for key, case in pairs {
      architectures = { { "GPT2LMHeadModel" }, "GPT2LMHeadModel" },
      hidden_act = { "gelu", "'hidden_act' is 'gelu', wanted silu" },
      quantization_config = { { quant_method = "fp8" },
                              "is '{\"quant_method\":\"fp8\"}'" },
      dual_chunk_attention_config = { { chunk_size = 8 }, "'{\"chunk_size\":8}'" },
      mlp_bias = { true, "'mlp_bias' is 'true'" },
      partial_rotary_factor = { 0.5, "'partial_rotary_factor' is '0.5'" },
      torch_dtype = { "float64", "'torch_dtype' is 'float64'" },
      head_dim = { 5, "'head_dim' is '5', wanted an even number" },
    } do
      assert.equal("PL_EUNSUPPORTED", refused(with(llama(), { [key] = case[1] }),
                                              case[2]))
    end
    local function scaling(values) return with(llama(), { rope_scaling = values }) end
    refused(scaling { type = "dynamic", factor = 2 }, "'rope_scaling.type' is 'dynamic'")
    refused(scaling { type = "yarn", factor = 2, mscale = 1 },
            "'rope_scaling.mscale' is '1'")
    refused(scaling { type = "yarn", factor = 2, truncate = false },
            "truncate' is 'false'")
    refused(scaling { type = "yarn" }, "'rope_scaling.factor' is missing")
    refused(scaling { type = "yarn", factor = 2, beta_fast = 1 }, "beta_fast' is '1'")
    refused(scaling { type = "linear", factor = 0.5 }, "'rope_scaling.factor' is '0.5'")
    refused(scaling { type = "linear", factor = 9e5 },
            "wanted at most 16777216 positions")
    refused(scaling { type = "llama3", factor = 2, low_freq_factor = 4,
                      high_freq_factor = 4,
                      original_max_position_embeddings = 8 }, "high_freq_factor' is '4'")
    refused(scaling "yarn", "'rope_scaling' is 'yarn', wanted an object")
    refused(with(llama(), { architectures = null }), "'architectures' is missing")
  end)

  it("checks every number", function()
    for key, bad in pairs {
      num_hidden_layers = 0, hidden_size = -8, intermediate_size = 1.5,
      vocab_size = 2 ^ 40, num_attention_heads = "2", num_key_value_heads = 3,
      max_position_embeddings = true,
      rms_norm_eps = 0, rope_theta = 0, eos_token_id = 16, bos_token_id = -1,
    } do
      local name = refused(with(llama(), { [key] = bad }),
                           ("'%s' is '%s'"):format(key, tostring(bad)))
      assert.equal("PL_EFORMAT", name)
    end
    for _, key in ipairs { "num_hidden_layers", "hidden_size", "intermediate_size",
                           "num_attention_heads", "vocab_size",
                           "max_position_embeddings" } do
      refused(with(llama(), { [key] = cjson.null }), ("'%s' is missing"):format(key))
    end
    refused(with(llama(), { num_attention_heads = 3, num_key_value_heads = 3 }),
            "hidden size of 8")
    refused(with(llama(), { eos_token_id = { 1, "x" } }), "a list of numbers")
    assert.equal(2, options(with(llama(),
                                 { num_key_value_heads = cjson.null })).n_kv_heads)
    refused(qwen("Qwen2ForCausalLM", { num_key_value_heads = cjson.null }), "is missing")
  end)

  it("checks generation_config.json too", function()
    for key, bad in pairs { temperature = -1, top_p = 1.5, top_k = 0.5, min_p = 2,
                            repetition_penalty = 0, max_new_tokens = 0,
                            eos_token_id = 99 } do
      local desc, message = model.describe(folder(llama(), {
        ["generation_config.json"] = cjson.encode { [key] = bad } }))
      assert.is_nil(desc)
      assert.truthy(message:find("generation_config.json: '" .. key, 1, true), message)
    end
  end)

  it("takes sampling defaults from beside a GGUF file", function()
    local beside = files.folder { ["generation_config.json"] =
      '{"temperature":0.2,"top_p":0.9,"eos_token_id":5}' }
    for path, want in pairs { [beside] = { { temperature = 0.2, top_p = 0.9 }, { 5 } },
        [files.folder { ["x"] = "" }] = { {}, nil } } do
      local file = path .. "/model.gguf"
      os.execute(("cp tests/golden/llama-gguf/model.gguf '%s'"):format(file))
      local desc = assert(model.describe(file))
      assert.same(want[1], desc.generation)
      if want[2] then assert.same(want[2], desc.eos_ids) end
      desc = assert(model.describe(file, { generation_config = "vllm" }))
      assert.same({}, desc.generation)
    end
  end)

  it("takes sampling defaults from elsewhere, or from nowhere", function()
    local own = folder(llama(), { ["generation_config.json"] = cjson.encode {
      temperature = 0.5, top_k = 7, eos_token_id = 5 } })
    local other = files.folder { ["generation_config.json"] = '{"top_p":0.25}' }
    local function from(opts)
      local desc = assert(model.describe(own, opts))
      return { desc.generation, desc.eos_ids }
    end
    assert.same({ { temperature = 0.5, top_k = 7 }, { 5 } },
                from { generation_config = "auto" })
    assert.same({ {}, { 3 } }, from { generation_config = "vllm" })
    assert.same({ { top_p = 0.25 }, { 3 } }, from { generation_config = other })
    assert.same({ { temperature = 0, top_k = 7 }, { 6 } }, from {
      override_generation_config = { temperature = 0, eos_token_id = 6 } })
    assert.same({ { min_p = 0.5 }, { 3 } }, from {
      generation_config = "vllm", override_generation_config = { min_p = 0.5 } })
    local _, message = model.describe(own, { generation_config = "/nowhere" })
    assert.truthy(message:find("/nowhere/generation_config.json: No such", 1, true))
    _, message = model.describe(own, { override_generation_config = { top_p = 2 } })
    assert.truthy(message:find("override_generation_config: 'top_p' is '2'", 1, true))
    _, message = model.describe(own, { override_generation_config = { topp = 0.5 } })
    assert.truthy(message:find("has 'topp', wanted one of bos_token_id, ", 1, true))
  end)

  it("refuses files that are not JSON objects", function()
    for text, why in pairs { ["{"] = "not JSON", ["3"] = "is '3', wanted an object",
                             [""] = "not JSON",
                             ['{"hidden_size":NaN}'] = "'architectures' is missing" } do
      local desc, message = model.describe(files.folder { ["config.json"] = text })
      assert.is_nil(desc)
      assert.truthy(message:find("config.json: " .. why, 1, true), message)
    end
    local _, message, name = model.describe(files.folder {})
    assert.truthy(message:find("config.json: No such file", 1, true), message)
    assert.equal("PL_ENOTFOUND", name)
    _, message = model.describe(folder(llama()) .. "/model.safetensors")
    assert.truthy(message:find("lacks a config.json", 1, true), message)
  end)
end)

