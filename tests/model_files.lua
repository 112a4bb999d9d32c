-- SPDX-License-Identifier: Apache-2.0
-- model_files.lua - small models of every kind, and folders and files that hold them.

local C = require("perilune.ffi").C
local cjson = require "cjson"
local files = require "weights_files"
local model = require "perilune.model.load"

local M = {}

-- ---- small models --------------------------------------------------------------------

function M.llama()
  return {
    architectures = { "LlamaForCausalLM" }, hidden_size = 8, intermediate_size = 12,
    num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 1,
    vocab_size = 16, hidden_act = "silu", max_position_embeddings = 64,
    rms_norm_eps = 1e-5, rope_theta = 5000, tie_word_embeddings = false,
    torch_dtype = "float32", eos_token_id = 3, bos_token_id = 1,
  }
end

function M.with(config, changes)
  for key, value in pairs(changes) do config[key] = value end
  return config
end

function M.qwen(kind, changes)
  return M.with(M.with(M.llama(), { architectures = { kind } }), changes or {})
end

function M.moe(changes)
  return M.with(M.qwen("Qwen3MoeForCausalLM", {
    head_dim = 6, num_experts = 2, num_experts_per_tok = 1, moe_intermediate_size = 5,
    norm_topk_prob = true, decoder_sparse_step = 1, mlp_only_layers = {},
  }), changes or {})
end

-- The tensors of a config in safetensors, as { name, dims }.
function M.shapes(c)
  local list = { { "model.embed_tokens.weight", { c.vocab_size, c.hidden_size } },
                 { "model.norm.weight", { c.hidden_size } } }
  local function add(name, ...) list[#list + 1] = { name, { ... } } end
  local head = c.head_dim or c.hidden_size / c.num_attention_heads
  local q, kv = c.num_attention_heads * head, c.num_key_value_heads * head
  if not c.tie_word_embeddings then add("lm_head.weight", c.vocab_size, c.hidden_size) end
  for layer = 0, c.num_hidden_layers - 1 do
    local p = "model.layers." .. layer .. "."
    add(p .. "input_layernorm.weight", c.hidden_size)
    add(p .. "post_attention_layernorm.weight", c.hidden_size)
    add(p .. "self_attn.q_proj.weight", q, c.hidden_size)
    add(p .. "self_attn.k_proj.weight", kv, c.hidden_size)
    add(p .. "self_attn.v_proj.weight", kv, c.hidden_size)
    add(p .. "self_attn.o_proj.weight", c.hidden_size, q)
    if c.architectures[1]:find "Qwen3" then
      add(p .. "self_attn.q_norm.weight", head)
      add(p .. "self_attn.k_norm.weight", head)
    end
    local function mlp(prefix, width)
      add(prefix .. "gate_proj.weight", width, c.hidden_size)
      add(prefix .. "up_proj.weight", width, c.hidden_size)
      add(prefix .. "down_proj.weight", c.hidden_size, width)
    end
    if c.num_experts then
      add(p .. "mlp.gate.weight", c.num_experts, c.hidden_size)
      for e = 0, c.num_experts - 1 do
        mlp(p .. "mlp.experts." .. e .. ".", c.moe_intermediate_size)
      end
    else
      mlp(p .. "mlp.", c.intermediate_size)
    end
  end
  return list
end

function M.encode(config)
  return (cjson.encode(config):gsub('"mlp_only_layers":{}', '"mlp_only_layers":[]'))
end

function M.folder(config, more)
  return files.folder(M.with({ ["config.json"] = M.encode(config),
                             ["model.safetensors"] = files.zeros(M.shapes(config)) },
                           more or {}))
end

-- Opens the files of a description, calls, closes.
function M.opened(desc, act)
  local list = {}
  for i, path in ipairs(desc.files) do
    list[i] = C.pl_weights_open(path)
    assert(list[i] ~= nil)
  end
  local ok, a, b, c = pcall(act, list)
  for _, w in ipairs(list) do C.pl_weights_close(w) end
  assert(ok, a)
  return a, b, c
end

function M.tensors(desc)
  return M.opened(desc, function(list) return model.tensors(desc, list) end)
end

-- ---- GGUF ----------------------------------------------------------------------------

function M.gguf_metas(kind)
  local function own(key, type, value) return { kind .. "." .. key, type, value } end
  return {
    { "general.architecture", "str", kind }, own("block_count", "u32", 1),
    own("embedding_length", "u32", 8), own("feed_forward_length", "u32", 12),
    own("attention.head_count", "u32", 2), own("attention.head_count_kv", "u32", 1),
    own("attention.layer_norm_rms_epsilon", "f32", 1e-5),
    own("context_length", "u32", 64),
    own("rope.freq_base", "f32", 5000), { "tokenizer.ggml.eos_token_id", "u32", 2 },
    { "tokenizer.ggml.bos_token_id", "u32", 1 },
  }
end

M.gguf_llama = {
  { "token_embd.weight", { 16, 8 } }, { "output_norm.weight", { 8 } },
  { "blk.0.attn_norm.weight", { 8 } }, { "blk.0.ffn_norm.weight", { 8 } },
  { "blk.0.attn_q.weight", { 8, 8 } }, { "blk.0.attn_k.weight", { 4, 8 } },
  { "blk.0.attn_v.weight", { 4, 8 } }, { "blk.0.attn_output.weight", { 8, 8 } },
  { "blk.0.ffn_gate.weight", { 12, 8 } }, { "blk.0.ffn_up.weight", { 12, 8 } },
  { "blk.0.ffn_down.weight", { 8, 12 } },
}

function M.gguf(metas, shapes_of, options_of)
  local list = {}
  for i, row in ipairs(shapes_of) do
    local bytes = 4
    for _, dim in ipairs(row[2]) do bytes = bytes * dim end
    list[i] = { row[1], row[2], 0, ("\0"):rep(bytes) }
  end
  return files.write(files.gguf(metas, list, options_of), ".gguf")
end

function M.joined(list, ...)
  local all = {}
  for _, item in ipairs(list) do all[#all + 1] = item end
  for _, item in ipairs { ... } do all[#all + 1] = item end
  return all
end

return M
