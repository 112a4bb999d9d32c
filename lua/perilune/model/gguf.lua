-- SPDX-License-Identifier: Apache-2.0
-- model/gguf.lua - what the header of a GGUF file says of its model.

local F = require "perilune.model.fields"
local facts = require "perilune.model.facts"
local rope = require "perilune.model.rope"
local parts = require "perilune.model.parts"
local pl = require "perilune.ffi"

local C, ffi = pl.C, pl.ffi
local limits = F.limits

local M = {}

local function value_of(weights, key)
  local m = ffi.new "pl_meta"
  if C.pl_weights_meta(weights, key, m) < 0 then return nil end
  if m.kind == C.PL_JSON_STRING then return ffi.string(m.string, m.len) end
  if m.kind == C.PL_JSON_ARRAY then return { n = m.n } end
  if m.kind == C.PL_JSON_TRUE then return true end
  if m.kind == C.PL_JSON_FALSE then return false end
  return m.number
end

local function fields_of(path, weights, prefix)
  local function get(key) return value_of(weights, prefix .. key) end
  return { file = path, prefix = prefix, get = get }
end

-- A tensor, whichever file it is in; nil where there is none.
local function find(files, name)
  for _, weights in ipairs(files) do
    local tensor = C.pl_weights_find(weights, name)
    if tensor ~= nil then return tensor end
  end
end

-- The file's own word for the vocabulary is optional; the embedding has the last one.
local function read_vocab(own, files)
  local embedding = find(files, "token_embd.weight")
  if not embedding or embedding.n_dims ~= 2 then
    F.refuse("PL_EFORMAT", "%s: no matrix 'token_embd.weight'", own.file)
  end
  local vocab = tonumber(embedding.dims[0])
  if vocab < 1 or vocab > limits.vocab then
    F.refuse("PL_EFORMAT", "%s: 'token_embd.weight' has %d rows, wanted 1 to %d",
             own.file, vocab, limits.vocab)
  end
  if F.integer(own, "vocab_size", 1, limits.vocab, vocab) ~= vocab then
    F.wrong(own, "vocab_size", vocab .. ", the rows of token_embd.weight")
  end
  return vocab
end

local function read_sizes(own, files, o, row)
  o.n_layers = F.integer(own, "block_count", 1, limits.layers)
  o.hidden = F.integer(own, "embedding_length", 1, limits.hidden)
  o.n_heads = F.integer(own, "attention.head_count", 1, limits.heads)
  o.n_kv_heads = F.integer(own, "attention.head_count_kv", 1, limits.heads, o.n_heads)
  o.head_dim = F.head_dim(own, "attention.key_length", "attention.head_count", o)
  F.check_heads(own, o, { head_dim = "attention.key_length",
                          n_kv_heads = "attention.head_count_kv" })
  local whole = { "attention.value_length" }
  if not row.partial_rope then whole[2] = "rope.dimension_count" end
  for _, key in ipairs(whole) do
    if F.integer(own, key, 1, limits.head_dim, o.head_dim) ~= o.head_dim then
      F.unsupported(own, key, o.head_dim .. ", as attention.key_length")
    end
  end
  o.ffn = F.integer(own, "feed_forward_length", 1, limits.ffn)
  o.vocab = read_vocab(own, files)
  o.max_positions = F.integer(own, "context_length", 1, limits.positions)
  o.norm_eps = F.number(own, "attention.layer_norm_rms_epsilon", 1e-12, 1)
  o.tied = find(files, "output.weight") and 0 or 1
end

local function read_experts(own, o, row)
  if not row.experts then
    if F.integer(own, "expert_count", 0, limits.experts, 0) ~= 0 then
      F.unsupported(own, "expert_count", "0")
    end
    return
  end
  o.n_experts = F.integer(own, "expert_count", 1, limits.experts)
  o.n_experts_used = F.integer(own, "expert_used_count", 1, o.n_experts)
  o.expert_ffn = F.integer(own, "expert_feed_forward_length", 1, limits.ffn)
  o.norm_topk = F.boolean(own, "expert_weights_norm", true) and 1 or 0
  if F.integer(own, "expert_shared_count", 0, limits.experts, 0) ~= 0 then
    F.unsupported(own, "expert_shared_count", "0")
  end
end

local function read_yarn(own, o)
  o.rope_scaling = C.PL_ROPE_YARN
  o.rope_low = F.number(own, "rope.scaling.yarn_beta_slow", 1e-3, 1e3, 1)
  o.rope_high = F.number(own, "rope.scaling.yarn_beta_fast", 1e-3, 1e3, 32)
  if o.rope_high <= o.rope_low then
    F.wrong(own, "rope.scaling.yarn_beta_fast", "more than " .. o.rope_low)
  end
  o.rope_original = F.integer(own, "rope.scaling.original_context_length", 1,
                              limits.positions)
  local attention = F.number(own, "rope.scaling.attn_factor", 1e-3, 1e3, 1)
  if attention ~= 1 then
    o.rope_attention = attention * (0.1 * math.log(o.rope_factor) + 1)
  end
end

-- llama3's scaling is no metadata here: it is the tensor rope_freqs.weight. A factor
-- without a type is linear; older files call it scale_linear. 0 is said for 1.
local function read_dims(own, o)
  local key = "rope.dimension_count"
  local dims = F.integer(own, key, 2, o.head_dim, o.head_dim)
  if dims % 2 ~= 0 then F.unsupported(own, key, "an even number") end
  if dims ~= o.head_dim then o.rope_dims = dims end
end

-- Of scaling `longrope`, which the metadata does not name: the name of the tensor with
-- what frequencies are divided by.
local function read_longrope(own, files, o, opts)
  if not find(files, "rope_factors_long.weight") then return end
  local original = F.integer(own, "rope.scaling.original_context_length", 2,
                             limits.positions, o.max_positions)
  local factor = rope.longrope_attention(o.max_positions / original, original)
  o.rope_attention = F.number(own, "rope.scaling.attn_factor", 1e-3, 1e3, factor)
  return rope.is_long(opts.max_model_len, original) and "rope_factors_long.weight"
         or "rope_factors_short.weight"
end

local function read_rope(own, o, row)
  local window_theta = row.defaults and row.defaults.rope_local_base_freq or 0
  o.rope_theta = F.number(own, "rope.freq_base", 1, limits.theta, 10000)
  o.rope_theta_window = F.number(own, "rope.freq_base_swa", 1, limits.theta, window_theta)
  local kind = F.string(own, "rope.scaling.type", "linear")
  if kind == "none" then return end
  local key = F.has(own, "rope.scaling.factor") and "rope.scaling.factor"
              or "rope.scale_linear"
  local factor = own.get(key) == 0 and 1 or F.number(own, key, 1, limits.factor, 1)
  if factor == 1 and kind == "linear" then return end
  o.rope_factor = factor
  if kind == "yarn" then
    read_yarn(own, o)
  elseif kind == "linear" then
    o.rope_scaling = C.PL_ROPE_LINEAR
  else
    F.unsupported(own, "rope.scaling.type", "none, linear or yarn")
  end
end

-- A file has no word for which biases there are; the first layer shows it.
local function read_bias(files, o)
  local function has(name) return find(files, "blk.0." .. name) and 1 or 0 end
  o.qkv_bias = has "attn_q.bias"
  o.o_bias = o.qkv_bias * has "attn_output.bias"
end

-- The window, and the layers that see everything nevertheless.
local function read_window(own, o, row)
  local key = "attention.sliding_window"
  if not row.window or row.window == "switched" then
    if F.has(own, key) then F.unsupported(own, key, "none") end
    return
  elseif row.window == "all" then    -- 0 is said where there is none
    o.window = F.integer(own, key, 0, limits.positions, 0)
    return
  end
  local n = F.integer(own, key .. "_pattern", 1, limits.layers, row.window)
  local full = facts.every(n, o.n_layers)
  if #full == o.n_layers then return end
  o.window = F.integer(own, key, 1, limits.positions, row.defaults.sliding_window)
  return full[1] and full
end

local function read_scores(own, o, row)
  o.attention_scale = F.number(own, "attention.scale", 1e-6, limits.scalar, 0)
  if o.attention_scale == 0 and o.n_layers == row.hidden_scale then
    o.attention_scale = (o.hidden / o.n_heads) ^ -0.5
  end
  o.attention_cap = F.number(own, "attn_logit_softcapping", 1e-3, limits.scalar, 0)
  o.logit_cap = F.number(own, "final_logit_softcapping", 1e-3, limits.scalar, 0)
end

local function read_options(own, files, row, opts)
  local o = facts.start()
  read_sizes(own, files, o, row)
  read_experts(own, o, row)
  if row.partial_rope then read_dims(own, o) end
  read_rope(own, o, row)
  local factors = read_longrope(own, files, o, opts)
  read_bias(files, o)
  local full = read_window(own, o, row)
  read_scores(own, o, row)
  local embedding = find(files, "token_embd.weight")
  facts.finish(o, row, "gguf", ffi.string(C.pl_type_name(embedding.type)))
  return o, full, factors
end

-- nil where it is no token: converters wrote -1, in whatever width, for "there is none".
local function token_id(tokenizer, key, vocab)
  local id = tokenizer.get(key)
  local is_token = type(id) == "number" and id % 1 == 0 and id >= 0 and id < vocab
  return is_token and id or nil
end

-- End of text, of turn and of message all end an answer.
local function read_ends(tokenizer, vocab)
  local ids, seen = {}, {}
  for _, key in ipairs { "eos_token_id", "eot_token_id", "eom_token_id" } do
    local id = token_id(tokenizer, key, vocab)
    if id and not seen[id] then
      ids[#ids + 1] = id
      seen[id] = true
    end
  end
  return ids
end

-- What the files at `paths`, open, are: the first has the metadata.
function M.describe(paths, files, opts)
  local path, weights, splits = paths[1], files[1], {}
  for i, w in ipairs(files) do splits[i] = fields_of(paths[i], w, "split.") end
  parts.check(splits, files)
  local general = fields_of(path, weights, "general.")
  local tokenizer = fields_of(path, weights, "tokenizer.ggml.")
  local kind = F.string(general, "architecture")
  local row, names = facts.find("gguf", kind)
  if not row then F.unsupported(general, "architecture", "one of " .. names) end
  local own = fields_of(path, weights, kind .. ".")
  local options, full, factors = read_options(own, files, row, opts)
  return {
    format = "gguf", architecture = row.name, options = options,
    full_layers = full, fused = row.fused, rope_factors = factors,
    eos_ids = read_ends(tokenizer, options.vocab),
    bos_id = token_id(tokenizer, "bos_token_id", options.vocab),
    files = paths,
  }
end

return M
