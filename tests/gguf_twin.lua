-- SPDX-License-Identifier: Apache-2.0
-- gguf_twin.lua - writes a llama model that is a folder of safetensors as a GGUF file.
--
-- As converters do it: the rows of Q and K are permuted, so that rope turns neighbours,
-- and llama3's scaling becomes the tensor rope_freqs.weight. Weights keep their type.

local pl = require "perilune.ffi"
local files = require "weights_files"
local model = require "perilune.model.load"

local C, ffi = pl.C, pl.ffi

local outer = { ["model.embed_tokens.weight"] = "token_embd.weight",
                ["model.norm.weight"] = "output_norm.weight",
                ["lm_head.weight"] = "output.weight" }
local inner = { ["input_layernorm"] = "attn_norm",
                ["post_attention_layernorm"] = "ffn_norm",
                ["self_attn.q_proj"] = "attn_q", ["self_attn.k_proj"] = "attn_k",
                ["self_attn.v_proj"] = "attn_v", ["self_attn.o_proj"] = "attn_output",
                ["mlp.gate_proj"] = "ffn_gate", ["mlp.up_proj"] = "ffn_up",
                ["mlp.down_proj"] = "ffn_down" }
local type_numbers = { [C.PL_F32] = 0, [C.PL_F16] = 1, [C.PL_BF16] = 30 }

local function twin_name(name)
  local layer, part = name:match "^model%.layers%.(%d+)%.(.+)%.weight$"
  return outer[name] or ("blk.%d.%s.weight"):format(layer, inner[part])
end

-- Row h * half + j of a head becomes row 2 * j + h.
local function permuted(bytes, rows, head_dim)
  local width, half, out = #bytes / rows, head_dim / 2, {}
  for row = 0, rows - 1 do
    local within = row % head_dim
    local to = row - within + 2 * (within % half) + math.floor(within / half)
    out[to + 1] = bytes:sub(row * width + 1, (row + 1) * width)
  end
  return table.concat(out)
end

-- What each frequency is divided by.
local function rope_factors(o)
  local n, low, high = o.head_dim / 2, o.rope_low, o.rope_high
  local factors = ffi.new("float[?]", n)
  for k = 0, n - 1 do
    local turns = o.rope_original * o.rope_theta ^ (-k / n) / (2 * math.pi)
    local smooth = math.max(0, math.min(1, (turns - low) / (high - low)))
    factors[k] = 1 / ((1 - smooth) / o.rope_factor + smooth)
  end
  return ffi.string(factors, 4 * n)
end

local function metas_of(desc)
  local o = desc.options
  local function own(key, kind, value) return { "llama." .. key, kind, value } end
  return {
    { "general.architecture", "str", "llama" }, own("block_count", "u32", o.n_layers),
    own("context_length", "u32", o.max_positions),
    own("embedding_length", "u32", o.hidden), own("feed_forward_length", "u32", o.ffn),
    own("rope.freq_base", "f32", o.rope_theta),
    own("attention.head_count", "u32", o.n_heads),
    own("attention.head_count_kv", "u32", o.n_kv_heads),
    own("attention.layer_norm_rms_epsilon", "f32", o.norm_eps),
    own("vocab_size", "u32", o.vocab), own("rope.dimension_count", "u32", o.head_dim),
    { "tokenizer.ggml.eos_token_id", "u32", desc.eos_ids[1] },
  }
end

local function tensor_of(row, head_dim)
  local bytes = ffi.string(row.tensor.data, row.tensor.bytes)
  if row.name:find "[qk]_proj" then bytes = permuted(bytes, row.shape[1], head_dim) end
  return { twin_name(row.name), row.shape, type_numbers[row.tensor.type], bytes }
end

-- The path of the twin; files.clean() removes it.
return function(folder)
  local desc = assert(model.describe(folder))
  local w = C.pl_weights_open(desc.files[1])
  local tensors = {}
  for i, row in ipairs(assert(model.tensors(desc, { w }))) do
    tensors[i] = tensor_of(row, desc.options.head_dim)
  end
  C.pl_weights_close(w)
  if desc.options.rope_scaling == C.PL_ROPE_LLAMA3 then
    tensors[#tensors + 1] = { "rope_freqs.weight", { desc.options.head_dim / 2 }, 0,
                              rope_factors(desc.options) }
  end
  return files.write(files.gguf(metas_of(desc), tensors), ".gguf")
end
