-- SPDX-License-Identifier: Apache-2.0
-- model/facts.lua - the architectures: a row of facts for each, and no other place in Lua
-- or C that knows one by its name.
--
--   name, gguf      in config.json's `architectures`; in GGUF's general.architecture
--   options         fields of pl_model_options that files do not state
--   gguf_options    the same where GGUF files differ
--   window          which layers have one, by config.json: "all", "switched" (by
--                   use_sliding_window and max_window_layers); nil: those of layer_types
--   experts         has them
--   kv_heads_optional   without num_key_value_heads, as many as num_attention_heads

local C = require("perilune.ffi").C

local M = {}

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
           qkv_bias = 0, o_bias = 0, qk_norm = 0 }
end

-- Lays the row's own over what was read.
function M.finish(options, row, format)
  for key, value in pairs(row.options or {}) do options[key] = value end
  for key, value in pairs(format == "gguf" and row.gguf_options or {}) do
    options[key] = value
  end
end

return M
