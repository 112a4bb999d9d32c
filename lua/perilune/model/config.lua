-- SPDX-License-Identifier: Apache-2.0
-- model/config.lua - what a Hugging Face folder says of its model, without its weights.
--
-- config.json becomes pl_model_options; what the engine cannot do is refused by field.

local F = require "perilune.model.fields"
local facts = require "perilune.model.facts"
local pl = require "perilune.ffi"
local rope = require "perilune.model.rope"

local C = pl.C
local limits = F.limits

local M = {}

-- ---- windows -------------------------------------------------------------------------

-- The layers, counted from 0, that config.json's `layer_types` exempts from the window.
local function read_layer_types(config, o)
  local kinds, full = F.list(config, "layer_types", "string"), {}
  if #kinds ~= o.n_layers then
    F.wrong(config, "layer_types", o.n_layers .. " of them")
  end
  for i, kind in ipairs(kinds) do
    if kind == "full_attention" then
      full[#full + 1] = i - 1
    elseif kind ~= "sliding_attention" then
      F.unsupported(config, "layer_types", "full_attention and sliding_attention")
    end
  end
  return full
end

-- Those below the one that is named.
local function read_first(config)
  local full = {}
  for i = 1, F.integer(config, "max_window_layers", 0, limits.layers) do
    full[i] = i - 1
  end
  return full
end

-- The layers that see everything by the row's own rule.
local function read_full(config, o, row)
  if row.window == "switched" then return read_first(config) end
  if type(row.window) ~= "number" then return {} end
  local n = F.integer(config, "sliding_window_pattern", 1, limits.layers, row.window)
  return facts.every(n, o.n_layers)
end

-- The window, and the layers that see everything nevertheless; nil: none does.
local function read_window(config, o, row)
  local listed, switched = F.has(config, "layer_types"), row.window == "switched"
  if switched and not F.boolean(config, "use_sliding_window", false) then return end
  if not (row.window or listed) then return end
  if not F.has(config, "sliding_window") then return end
  if row.experts then F.unsupported(config, "use_sliding_window", "false") end
  local full = listed and read_layer_types(config, o) or read_full(config, o, row)
  if #full >= o.n_layers then return end
  o.window = F.integer(config, "sliding_window", 1, limits.positions)
  return full[1] and full
end

-- ---- the whole -----------------------------------------------------------------------

local function read_sizes(config, o, row)
  o.n_layers = F.integer(config, "num_hidden_layers", 1, limits.layers)
  o.hidden = F.integer(config, "hidden_size", 1, limits.hidden)
  o.n_heads = F.integer(config, "num_attention_heads", 1, limits.heads)
  o.n_kv_heads = F.integer(config, "num_key_value_heads", 1, limits.heads,
                           row.kv_heads_optional and o.n_heads or nil)
  o.head_dim = F.head_dim(config, "head_dim", "num_attention_heads", o)
  F.check_heads(config, o, { head_dim = "head_dim", n_kv_heads = "num_key_value_heads" })
  o.ffn = F.integer(config, "intermediate_size", 1, limits.ffn)
  o.vocab = F.integer(config, "vocab_size", 1, limits.vocab)
  o.max_positions = F.integer(config, "max_position_embeddings", 1, limits.positions)
  o.norm_eps = F.number(config, "rms_norm_eps", 1e-12, 1, 1e-6)
  o.tied = F.boolean(config, "tie_word_embeddings", false) and 1 or 0
end

local function read_experts(config, o)
  o.n_experts = F.integer(config, "num_experts", 1, limits.experts)
  o.n_experts_used = F.integer(config, "num_experts_per_tok", 1, o.n_experts)
  o.expert_ffn = F.integer(config, "moe_intermediate_size", 1, limits.ffn)
  o.norm_topk = F.boolean(config, "norm_topk_prob", false) and 1 or 0
  for _, key in ipairs { "n_shared_experts", "num_shared_experts",
                         "shared_expert_intermediate_size" } do
    if F.integer(config, key, 0, limits.ffn, 0) ~= 0 then
      F.unsupported(config, key, "0")
    end
  end
end

-- The layers without experts, counted from 0; nil where all have some.
local function read_dense_layers(config, o)
  local step = F.integer(config, "decoder_sparse_step", 1, 2 ^ 31 - 1, 1)
  local only, layers = {}, {}
  for _, layer in ipairs(F.list(config, "mlp_only_layers", "number", {})) do
    only[layer] = true
  end
  for layer = 0, o.n_layers - 1 do
    if only[layer] or (layer + 1) % step ~= 0 then layers[#layers + 1] = layer end
  end
  return layers[1] and layers
end

local function refuse_others(config, row)
  for _, key in ipairs { "quantization_config", "dual_chunk_attention_config" } do
    if F.has(config, key) then F.unsupported(config, key, "none") end
  end
  for _, key in ipairs { "mlp_bias", "use_bidirectional_attention" } do
    if F.boolean(config, key, false) then F.unsupported(config, key, "false") end
  end
  if not row.experts and F.integer(config, "num_experts", 0, limits.experts, 0) ~= 0 then
    F.unsupported(config, "num_experts", "0")
  end
end

local GATES = { silu = C.PL_GATE_SILU, gelu_pytorch_tanh = C.PL_GATE_GELU_TANH }

local function read_gate(config)
  local key = F.has(config, "hidden_activation") and "hidden_activation" or "hidden_act"
  return GATES[F.string(config, key, "silu")]
         or F.unsupported(config, key, "silu or gelu_pytorch_tanh")
end

local function read_scores(config, o)
  local scalar = F.number(config, "query_pre_attn_scalar", 1e-3, limits.scalar, false)
  o.attention_scale = scalar and scalar ^ -0.5 or 0
  o.attention_cap = F.number(config, "attn_logit_softcapping", 1e-3, limits.scalar, 0)
  o.logit_cap = F.number(config, "final_logit_softcapping", 1e-3, limits.scalar, 0)
end

local function read_dtype(config)
  local key = F.has(config, "dtype") and "dtype" or "torch_dtype"
  local dtype = F.string(config, key, false)
  if dtype and not ({ float32 = 1, float16 = 1, bfloat16 = 1 })[dtype] then
    F.unsupported(config, key, "float32, float16 or bfloat16")
  end
  return dtype or nil
end

local function read_architecture(config)
  local name = F.list(config, "architectures", "string")[1]
  local row, names = facts.find("name", name)
  if not row then F.unsupported(config, "architectures", "one of " .. names) end
  return row
end

local function read_config(config, raw, opts)
  local row = read_architecture(config)
  for key, value in pairs(row.defaults or {}) do
    if raw[key] == nil then raw[key] = value end
  end
  refuse_others(config, row)
  local o = facts.start()
  read_sizes(config, o, row)
  if row.experts then read_experts(config, o) end
  local factors = rope.read(config, o, row, opts)
  local full = read_window(config, o, row)
  local bias = F.boolean(config, "attention_bias", false) and 1 or 0
  o.qkv_bias, o.o_bias = bias, bias
  o.gate = read_gate(config)
  read_scores(config, o)
  local dtype = read_dtype(config)
  facts.finish(o, row, "hf", dtype)
  return { format = "hf", architecture = row.name, options = o, full_layers = full,
           fused = row.fused, rope_factors = factors,
           dense_layers = row.experts and read_dense_layers(config, o) or nil,
           dtype = dtype }
end

-- ---- the folder ----------------------------------------------------------------------

-- As when a configuration is loaded and then told so: a field replaces a field. The two
-- spellings of rope are one field, but for theta, which is one in either place.
local function override(config, overrides)
  local new, old = overrides.rope_parameters, config.rope_parameters
  for key, value in pairs(overrides) do config[key] = value end
  if type(old) ~= "table" then old = {} end
  local theta = overrides.rope_theta or old.rope_theta
  if not new then
    old.rope_theta = theta
    return
  end
  if overrides.rope_scaling == nil then config.rope_scaling = nil end
  if type(new) == "table" and new.rope_theta == nil then
    config.rope_parameters = { rope_theta = theta }
    for key, value in pairs(new) do config.rope_parameters[key] = value end
  end
end

-- The files that hold the weights, and which tensor the index says is in which.
local function find_files(path)
  local single = path .. "/model.safetensors"
  if F.kind_of(single) == "file" then return { single } end
  local index_path = path .. "/model.safetensors.index.json"
  if not F.kind_of(index_path) then return {} end
  local index = F.of(index_path, F.read_json(index_path))
  local map, names, files = index.get "weight_map", {}, {}
  if type(map) ~= "table" then F.wrong(index, "weight_map", "an object") end
  for tensor, name in pairs(map) do
    if type(name) ~= "string" or not name:find "^[%w._-]+%.safetensors$" then
      F.refuse("PL_EFORMAT", "%s: tensor '%s' is in '%s', wanted a .safetensors file",
               index_path, tensor, tostring(name))
    end
    if not names[name] then files[#files + 1] = path .. "/" .. name end
    names[name] = true
  end
  table.sort(files)
  return files, map
end

function M.describe(path, opts)
  local config_path = path .. "/config.json"
  local raw = F.read_json(config_path)
  override(raw, opts.hf_overrides or {})
  local config = F.of(config_path, raw)
  local desc = read_config(config, raw, opts)
  desc.eos_ids = F.ids(config, "eos_token_id", desc.options.vocab)
  desc.bos_id = F.integer(config, "bos_token_id", 0, desc.options.vocab - 1, false) or nil
  desc.files, desc.weight_map = find_files(path)
  return desc
end

return M
