-- SPDX-License-Identifier: Apache-2.0
-- model/facts.lua - the architectures: a row of facts for each, and no other place in Lua
-- or C that knows one by its name.
--
--   name, gguf      in config.json's `architectures`; in GGUF's general.architecture
--   options         fields of pl_model_options that files do not state
--   hf_options, gguf_options    the same, of one format
--   defaults        fields that config.json may leave out
--   window          which layers have one: "all"; "switched" (use_sliding_window and
--                   max_window_layers say); n: all but every n-th; nil: none, unless
--                   layer_types says so
--   experts         has them
--   scaled_embeddings   times the root of hidden_size
--   hidden_scale    layers of the one model whose scores are divided by the root of
--                   hidden / heads, not of head_dim: GGUF has no word for that
--   stretched       max_position_embeddings counts rope's scaling in
--   fused           q, k and v are one tensor, and so are gate and up
--   partial_rope    partial_rotary_factor may be less than 1
--   rope_types      names of rope's scaling that mean another here
--   rstrip          GGUF has no word for added tokens taking the space after them
--   kv_heads_optional   without num_key_value_heads, as many as num_attention_heads

local C = require("perilune.ffi").C

local M = {}

local gemma_defaults = {
  head_dim = 256, hidden_activation = "gelu_pytorch_tanh", query_pre_attn_scalar = 256,
  sliding_window = 4096, tie_word_embeddings = true,
}

local function with(more)
  local all = {}
  for key, value in pairs(gemma_defaults) do all[key] = value end
  for key, value in pairs(more) do all[key] = value end
  return all
end

-- Norms' weights are 1 + what a folder says; converters to GGUF have added it.
local gemma = { options = { post_norms = 1 }, hf_options = { norm_plus_one = 1 },
                gguf_options = { gate = C.PL_GATE_GELU_TANH } }

M.rows = {
  -- GGUF converters permute the rows of Q and K for this kind alone.
  { name = "LlamaForCausalLM", gguf = "llama", kv_heads_optional = true,
    gguf_options = { rope_order = C.PL_ROPE_PAIRS } },
  { name = "MistralForCausalLM", window = "all" },
  { name = "Qwen2ForCausalLM", gguf = "qwen2", window = "switched",
    options = { qkv_bias = 1, o_bias = 0 } },
  { name = "Qwen3ForCausalLM", gguf = "qwen3", window = "switched",
    options = { qk_norm = 1 } },
  { name = "Qwen3MoeForCausalLM", gguf = "qwen3moe", window = "switched", experts = true,
    options = { qk_norm = 1 } },
  { name = "Gemma2ForCausalLM", gguf = "gemma2", window = 2, scaled_embeddings = true,
    hidden_scale = 46, options = gemma.options, hf_options = gemma.hf_options,
    gguf_options = gemma.gguf_options,
    defaults = with { attn_logit_softcapping = 50, final_logit_softcapping = 30 } },
  { name = "Gemma3ForCausalLM", gguf = "gemma3", window = 6, scaled_embeddings = true,
    hidden_scale = 62, stretched = true, options = { post_norms = 1, qk_norm = 1 },
    hf_options = gemma.hf_options, gguf_options = gemma.gguf_options,
    defaults = with { rope_theta = 1e6, rope_local_base_freq = 1e4 } },
  { name = "Phi3ForCausalLM", gguf = "phi3", window = "all", kv_heads_optional = true,
    fused = true, partial_rope = true, rope_types = { yarn = "longrope" }, rstrip = true,
    defaults = { rms_norm_eps = 1e-5 } },
}

-- The row whose `key` is that value; nil, and all values that there are.
function M.find(key, value)
  local names = {}
  for _, row in ipairs(M.rows) do
    if row[key] == value and value then return row end
    names[#names + 1] = row[key]
  end
  table.sort(names)
  return nil, table.concat(names, ", ")
end

-- Fields of pl_model_options before a file is read.
function M.start()
  return { rope_order = C.PL_ROPE_HALVES, rope_scaling = C.PL_ROPE_PLAIN, rope_factor = 1,
           rope_low = 0, rope_high = 0, rope_attention = 0, rope_original = 0,
           n_experts = 0, n_experts_used = 0, expert_ffn = 0, norm_topk = 0, window = 0,
           qkv_bias = 0, o_bias = 0, qk_norm = 0, norm_plus_one = 0, post_norms = 0,
           gate = C.PL_GATE_SILU, embed_scale = 0, attention_scale = 0, attention_cap = 0,
           logit_cap = 0, rope_theta_window = 0, rope_dims = 0 }
end

-- The layers, counted from 0, that see everything where all but every n-th have a window.
function M.every(n, n_layers)
  local full = {}
  for layer = n - 1, n_layers - 1, n do full[#full + 1] = layer end
  return full
end

local DIGITS = { float32 = 24, float16 = 11, bfloat16 = 8 }    -- binary, of a number

-- The root of n, rounded as the reference has it: to the embedding's own type. (To
-- float32 where that type is a quantized one.)
local function root(n, dtype)
  local value = math.sqrt(n)
  local _, exponent = math.frexp(value)
  local unit = 2 ^ (exponent - (DIGITS[dtype] or DIGITS.float32))
  return math.floor(value / unit + 0.5) * unit
end

-- Lays the row's own over what was read. dtype: of the embedding.
function M.finish(options, row, format, dtype)
  for _, own in ipairs { row.options or {}, row[format .. "_options"] or {} } do
    for key, value in pairs(own) do options[key] = value end
  end
  if row.scaled_embeddings then options.embed_scale = root(options.hidden, dtype) end
end

return M
