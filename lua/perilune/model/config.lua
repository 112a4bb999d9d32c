-- SPDX-License-Identifier: Apache-2.0
-- model/config.lua - what a Hugging Face folder says of its model, without its weights.
--
-- config.json becomes pl_model_options; what the engine cannot do is refused by field.

local F = require "perilune.model.fields"
local facts = require "perilune.model.facts"
local pl = require "perilune.ffi"

local C = pl.C
local limits = F.limits

local M = {}

-- ---- rope ----------------------------------------------------------------------------

local scalings = {}

function scalings.default(_, o) o.rope_scaling = C.PL_ROPE_PLAIN end

local function stretch(scaling, o, from)
  o.rope_factor = F.number(scaling, "factor", 1, limits.factor)
  o.max_positions = math.floor(from * o.rope_factor)
  if o.max_positions > limits.positions then
    F.wrong(scaling, "factor", "at most " .. limits.positions .. " positions")
  end
end

function scalings.linear(scaling, o)
  o.rope_scaling = C.PL_ROPE_LINEAR
  stretch(scaling, o, o.max_positions)
end

function scalings.llama3(scaling, o)
  o.rope_scaling = C.PL_ROPE_LLAMA3
  o.rope_factor = F.number(scaling, "factor", 1, limits.factor)
  o.rope_low = F.number(scaling, "low_freq_factor", 1e-3, 1e3)
  o.rope_high = F.number(scaling, "high_freq_factor", 1e-3, 1e3)
  o.rope_original = F.integer(scaling, "original_max_position_embeddings", 1,
                              limits.positions)
  if o.rope_high <= o.rope_low then
    F.wrong(scaling, "high_freq_factor", "more than low_freq_factor, " .. o.rope_low)
  end
end

function scalings.yarn(scaling, o)
  for _, key in ipairs { "mscale", "mscale_all_dim", "attn_factor" } do
    if F.has(scaling, key) then F.unsupported(scaling, key, "none") end
  end
  if not F.boolean(scaling, "truncate", true) then
    F.unsupported(scaling, "truncate", "true")
  end
  o.rope_scaling = C.PL_ROPE_YARN
  o.rope_low = F.number(scaling, "beta_slow", 1e-3, 1e3, 1)
  o.rope_high = F.number(scaling, "beta_fast", 1e-3, 1e3, 32)
  if o.rope_high <= o.rope_low then
    F.wrong(scaling, "beta_fast", "more than beta_slow, " .. o.rope_low)
  end
  o.rope_attention = F.number(scaling, "attention_factor", 1e-3, 1e3, 0)
  o.rope_original = F.integer(scaling, "original_max_position_embeddings", 1,
                              limits.positions, o.max_positions)
  stretch(scaling, o, o.rope_original)
end

-- `rope_parameters` is the newer spelling of `rope_scaling` and holds theta as well.
local function read_rope(config, o)
  local parameters = F.object(config, "rope_parameters", false)
  local scaling = F.object(config, "rope_scaling", false) or parameters
  local where = parameters and F.has(parameters, "rope_theta") and parameters or config
  o.rope_theta = F.number(where, "rope_theta", 1, limits.theta, 10000)
  for _, fields in ipairs { config, parameters or nil } do
    if F.number(fields, "partial_rotary_factor", 0, 1, 1) ~= 1 then
      F.unsupported(fields, "partial_rotary_factor", "1")
    end
  end
  if not scaling then return scalings.default(nil, o) end
  local key = F.has(scaling, "rope_type") and "rope_type" or "type"
  local read = scalings[F.string(scaling, key, "default")]
  if not read then F.unsupported(scaling, key, "default, linear, llama3 or yarn") end
  read(scaling, o)
end

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

-- The window, and the layers that see everything nevertheless; nil: none does.
local function read_window(config, o, row)
  local listed, switched = F.has(config, "layer_types"), row.window == "switched"
  if switched and not F.boolean(config, "use_sliding_window", false) then return end
  if not (row.window or listed) then return end
  if not F.has(config, "sliding_window") then return end
  if row.experts then F.unsupported(config, "use_sliding_window", "false") end
  local full = listed and read_layer_types(config, o) or switched and read_first(config)
               or {}
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
  if F.string(config, "hidden_act", "silu") ~= "silu" then
    F.unsupported(config, "hidden_act", "silu")
  end
  if F.boolean(config, "mlp_bias", false) then
    F.unsupported(config, "mlp_bias", "false")
  end
  if not row.experts and F.integer(config, "num_experts", 0, limits.experts, 0) ~= 0 then
    F.unsupported(config, "num_experts", "0")
  end
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

local function read_config(config)
  local row = read_architecture(config)
  refuse_others(config, row)
  local o = facts.start()
  read_sizes(config, o, row)
  if row.experts then read_experts(config, o) end
  read_rope(config, o)
  local full = read_window(config, o, row)
  local bias = F.boolean(config, "attention_bias", false) and 1 or 0
  o.qkv_bias, o.o_bias = bias, bias
  facts.finish(o, row, "hf")
  return { format = "hf", architecture = row.name, options = o, full_layers = full,
           dense_layers = row.experts and read_dense_layers(config, o) or nil,
           dtype = read_dtype(config) }
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
  local desc = read_config(config)
  desc.eos_ids = F.ids(config, "eos_token_id", desc.options.vocab)
  desc.bos_id = F.integer(config, "bos_token_id", 0, desc.options.vocab - 1, false) or nil
  desc.files, desc.weight_map = find_files(path)
  return desc
end

return M
