-- SPDX-License-Identifier: Apache-2.0
-- model/tensors.lua - which tensor of a file plays which role, and whether all are there.

local F = require "perilune.model.fields"
local pl = require "perilune.ffi"

local C, ffi = pl.C, pl.ffi

local M = {}

local function type_name(tensor) return ffi.string(C.pl_type_name(tensor.type)) end

-- Role, name in safetensors and in GGUF, shape, and what must hold for it to be there.
-- In safetensors an expert's matrices are three tensors; in GGUF all experts' are one.
local outer = {
  { C.PL_ROLE_EMBED, "model.embed_tokens.weight", "token_embd.weight",
    { "vocab", "hidden" } },
  { C.PL_ROLE_NORM, "model.norm.weight", "output_norm.weight", { "hidden" } },
  { C.PL_ROLE_HEAD, "lm_head.weight", "output.weight", { "vocab", "hidden" }, "head" },
}
local inner = {
  { C.PL_ROLE_ATTN_NORM, "input_layernorm.weight", "attn_norm.weight", { "hidden" } },
  { C.PL_ROLE_Q, "self_attn.q_proj.weight", "attn_q.weight", { "q", "hidden" }, "split" },
  { C.PL_ROLE_K, "self_attn.k_proj.weight", "attn_k.weight", { "kv", "hidden" },
    "split" },
  { C.PL_ROLE_V, "self_attn.v_proj.weight", "attn_v.weight", { "kv", "hidden" },
    "split" },
  { C.PL_ROLE_QKV, "self_attn.qkv_proj.weight", "attn_qkv.weight", { "qkv", "hidden" },
    "fused" },
  { C.PL_ROLE_O, "self_attn.o_proj.weight", "attn_output.weight", { "hidden", "q" } },
  { C.PL_ROLE_Q_BIAS, "self_attn.q_proj.bias", "attn_q.bias", { "q" }, "qkv_bias" },
  { C.PL_ROLE_K_BIAS, "self_attn.k_proj.bias", "attn_k.bias", { "kv" }, "qkv_bias" },
  { C.PL_ROLE_V_BIAS, "self_attn.v_proj.bias", "attn_v.bias", { "kv" }, "qkv_bias" },
  { C.PL_ROLE_O_BIAS, "self_attn.o_proj.bias", "attn_output.bias", { "hidden" },
    "o_bias" },
  { C.PL_ROLE_Q_NORM, "self_attn.q_norm.weight", "attn_q_norm.weight", { "head_dim" },
    "qk_norm" },
  { C.PL_ROLE_K_NORM, "self_attn.k_norm.weight", "attn_k_norm.weight", { "head_dim" },
    "qk_norm" },
  { C.PL_ROLE_FFN_NORM, "post_attention_layernorm.weight", "ffn_norm.weight",
    { "hidden" }, "two_norms" },
  { C.PL_ROLE_FFN_NORM, "pre_feedforward_layernorm.weight", "ffn_norm.weight",
    { "hidden" }, "post_norms" },
  { C.PL_ROLE_ATTN_POST_NORM, "post_attention_layernorm.weight",
    "post_attention_norm.weight", { "hidden" }, "post_norms" },
  { C.PL_ROLE_FFN_POST_NORM, "post_feedforward_layernorm.weight",
    "post_ffw_norm.weight", { "hidden" }, "post_norms" },
  { C.PL_ROLE_GATE, "mlp.gate_proj.weight", "ffn_gate.weight", { "ffn", "hidden" },
    "split_dense" },
  { C.PL_ROLE_UP, "mlp.up_proj.weight", "ffn_up.weight", { "ffn", "hidden" },
    "split_dense" },
  { C.PL_ROLE_GATE_UP, "mlp.gate_up_proj.weight", "ffn_up.weight",
    { "gate_up", "hidden" }, "fused" },
  { C.PL_ROLE_DOWN, "mlp.down_proj.weight", "ffn_down.weight", { "hidden", "ffn" },
    "dense" },
  { C.PL_ROLE_ROUTER, "mlp.gate.weight", "ffn_gate_inp.weight", { "experts", "hidden" },
    "moe" },
}
local experts = {
  { C.PL_ROLE_GATE, "gate_proj.weight", "ffn_gate_exps.weight",
    { "expert_ffn", "hidden" } },
  { C.PL_ROLE_UP, "up_proj.weight", "ffn_up_exps.weight",
    { "expert_ffn", "hidden" } },
  { C.PL_ROLE_DOWN, "down_proj.weight", "ffn_down_exps.weight",
    { "hidden", "expert_ffn" } },
}

local function sizes_of(o)
  return { vocab = o.vocab, hidden = o.hidden, q = o.n_heads * o.head_dim,
           kv = o.n_kv_heads * o.head_dim, head_dim = o.head_dim, ffn = o.ffn,
           qkv = (o.n_heads + 2 * o.n_kv_heads) * o.head_dim, gate_up = 2 * o.ffn,
           experts = o.n_experts, expert_ffn = o.expert_ffn }
end

-- What holds for a layer.
local function conditions_of(desc, dense)
  local o = desc.options
  local moe = o.n_experts > 0
  dense = dense or not moe
  return { head = o.tied == 0, moe = not dense, dense = dense, fused = desc.fused,
           split = not desc.fused, split_dense = dense and not desc.fused,
           two_norms = o.post_norms == 0, post_norms = o.post_norms == 1,
           qk_norm = o.qk_norm == 1, o_bias = o.o_bias == 1, qkv_bias = o.qkv_bias == 1 }
end

local function add_experts(add, desc, layer)
  if desc.format == "gguf" then
    for _, row in ipairs(experts) do
      add(row, layer, -1, ("blk.%d."):format(layer), desc.options.n_experts)
    end
    return
  end
  for e = 0, desc.options.n_experts - 1 do
    for _, row in ipairs(experts) do
      add(row, layer, e, ("model.layers.%d.mlp.experts.%d."):format(layer, e))
    end
  end
end

local function rope_row(desc, name, optional)
  local o = desc.options
  local n = (o.rope_dims > 0 and o.rope_dims or o.head_dim) / 2
  return { role = tonumber(C.PL_ROLE_ROPE_FREQS), layer = -1, expert = -1, name = name,
           shape = { n }, optional = optional }
end

-- What config.json says of rope's frequencies, as if a file had it.
local function given_factors(desc)
  local row = rope_row(desc, "rope_factors")
  local n = row.shape[1]
  row.values = ffi.new("float[?]", n, desc.rope_factors)
  row.tensor = ffi.new("pl_tensor", { type = C.PL_F32, n_dims = 1, dims = { n },
                                      data = row.values, bytes = 4 * n })
  return row
end

-- Every tensor that the model needs: { role, layer, expert, name, shape }.
local function plan(desc)
  local o, list = desc.options, {}
  local sizes, conditions, dense = sizes_of(o), conditions_of(desc), {}
  for _, layer in ipairs(desc.dense_layers or {}) do dense[layer] = true end
  local gguf = desc.format == "gguf"
  local function add(row, layer, expert, prefix, stacked)
    if row[5] and not conditions[row[5]] then return end
    local shape = { stacked }
    for _, word in ipairs(row[4]) do shape[#shape + 1] = sizes[word] end
    list[#list + 1] = { role = tonumber(row[1]), layer = layer, expert = expert,
                        name = prefix .. row[gguf and 3 or 2], shape = shape }
  end
  for _, row in ipairs(outer) do add(row, -1, -1, "") end
  if gguf then
    local name = desc.rope_factors or "rope_freqs.weight"
    list[#list + 1] = rope_row(desc, name, not desc.rope_factors)
  end
  for layer = 0, o.n_layers - 1 do
    conditions = conditions_of(desc, dense[layer])
    local prefix = (gguf and "blk.%d." or "model.layers.%d."):format(layer)
    for _, row in ipairs(inner) do add(row, layer, -1, prefix) end
    if conditions.moe then add_experts(add, desc, layer) end
  end
  return list
end

-- All tensors of all files: name -> { tensor, file }.
local function gather(desc, weights)
  local found = {}
  for i, w in ipairs(weights) do
    for k = 0, C.pl_weights_count(w) - 1 do
      local tensor = C.pl_weights_get(w, k)
      local name = ffi.string(tensor.name)
      if found[name] then
        F.refuse("PL_EFORMAT", "%s: tensor '%s' is in '%s' too", desc.files[i], name,
                 found[name].file)
      end
      found[name] = { tensor = tensor, file = desc.files[i] }
    end
  end
  return found
end

local function check_tensor(row, file, tensor)
  local dims = {}
  for i = 1, tensor.n_dims do dims[i] = tonumber(tensor.dims[i - 1]) end
  local is, wanted = table.concat(dims, ", "), table.concat(row.shape, ", ")
  if is ~= wanted then
    F.refuse("PL_EFORMAT", "%s: tensor '%s' has the shape [%s], wanted [%s]", file,
             row.name, is, wanted)
  end
  local last = #row.shape == 1 and C.PL_BF16 or C.PL_I32 - 1
  if tensor.type > last then
    F.refuse("PL_EUNSUPPORTED", "%s: tensor '%s' is of type '%s', wanted %s", file,
             row.name, type_name(tensor),
             last == C.PL_BF16 and "a float type" or "weights")
  end
end

-- Written by some and read by none.
local function is_ignored(desc, name, tensor)
  return name:find "rotary_emb%.inv_freq$" ~= nil or tensor.bytes == 0
         or desc.rope_factors and name:find "^rope_factors_" ~= nil
         or (desc.options.tied == 1 and name == "lm_head.weight")
end

local function check_rest(desc, found, used)
  local strangers = {}
  for name, hit in pairs(found) do
    if not used[name] and not is_ignored(desc, name, hit.tensor) then
      strangers[#strangers + 1] = name
    end
  end
  if #strangers == 0 then return end
  table.sort(strangers)
  F.refuse("PL_EUNSUPPORTED", "%s: tensor '%s' is not one of %s (%d such)",
           found[strangers[1]].file, strangers[1], desc.architecture, #strangers)
end

-- The list that loading goes through: { role, layer, expert, name, shape, tensor }, every
-- tensor there, of the right shape, and no other. Raises refusals.
function M.match(desc, weights)
  local found, used, list = gather(desc, weights), {}, {}
  for _, row in ipairs(plan(desc)) do
    local hit = found[row.name]
    if hit then
      check_tensor(row, hit.file, hit.tensor)
      row.tensor, row.optional = hit.tensor, nil
      used[row.name] = true
      list[#list + 1] = row
    elseif not row.optional then
      F.refuse("PL_EFORMAT", "%s: no tensor '%s'", desc.path, row.name)
    end
  end
  check_rest(desc, found, used)
  if type(desc.rope_factors) == "table" then list[#list + 1] = given_factors(desc) end
  return list
end

-- Refuses files that lack what model.safetensors.index.json says is in them.
function M.check_index(desc, weights)
  local by_name = {}
  for i, w in ipairs(weights) do by_name[desc.files[i]:match "[^/]+$"] = w end
  for name, file in pairs(desc.weight_map or {}) do
    if C.pl_weights_find(by_name[file], name) == nil then
      F.refuse("PL_EFORMAT", "%s/%s: no tensor '%s', which the index says is there",
               desc.path, file, name)
    end
  end
end

-- The type that holds most of the bytes.
function M.main_type(weights)
  local bytes, best = {}, nil
  for _, w in ipairs(weights) do
    for k = 0, C.pl_weights_count(w) - 1 do
      local tensor = C.pl_weights_get(w, k)
      local name = type_name(tensor)
      bytes[name] = (bytes[name] or 0) + tonumber(tensor.bytes)
      if not best or bytes[name] > bytes[best] then best = name end
    end
  end
  return best
end

return M
