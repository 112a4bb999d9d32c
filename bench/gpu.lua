-- SPDX-License-Identifier: Apache-2.0
-- gpu.lua - an engine's speed on a GPU, without a server, over random weights of a known
-- model's shape: one line of JSON a case, times in milliseconds, medians of three.
--
--   build/perilune lua bench/gpu.lua [SHAPE] [CASE...]
--
-- SHAPE: qwen3-0.6b (the default), llama-3.2-1b, qwen3-8b.
-- CASE: decode:SEQUENCES:CONTEXT, a step that draws one greedy token for each; sampled,
-- the same with temperature 1, top_k 50 and top_p 0.95; prefill:SEQUENCES:TOKENS, until
-- all have their first.

package.path = "./tests/?.lua;" .. package.path
local cjson = require "cjson"
local engine = require "support.engine"
local json = require "perilune.json"
local pl = require "perilune.ffi"
local C = pl.C

local SHAPES = {   -- fields of config.json that differ
  ["qwen3-0.6b"] = { "Qwen3ForCausalLM", hidden_size = 1024, intermediate_size = 3072,
    num_hidden_layers = 28, num_attention_heads = 16, head_dim = 128, vocab_size = 151936,
    tie_word_embeddings = true },
  ["llama-3.2-1b"] = { "LlamaForCausalLM", hidden_size = 2048, intermediate_size = 8192,
    num_hidden_layers = 16, num_attention_heads = 32, head_dim = 64, vocab_size = 128256,
    tie_word_embeddings = true },
  ["qwen3-8b"] = { "Qwen3ForCausalLM", hidden_size = 4096, intermediate_size = 12288,
    num_hidden_layers = 36, num_attention_heads = 32, head_dim = 128, vocab_size = 151936,
    tie_word_embeddings = false },
}
local CASES = { "decode:1:32", "decode:1:512", "decode:1:2000", "decode:64:512",
  "decode:256:512", "prefill:1:512", "prefill:1:2048" }

local shape = arg[1] or "qwen3-0.6b"
local cases = { select(2, unpack(arg)) }
if #cases == 0 then cases = CASES end

local function load_shape()
  local config = assert(SHAPES[shape], "no shape '" .. shape .. "'")
  config.architectures = { table.remove(config, 1) }
  config.num_key_value_heads, config.max_position_embeddings = 8, 40960
  config.rms_norm_eps, config.rope_theta = 1e-6, 1000000
  local dir = os.tmpname()
  os.remove(dir)
  os.execute("mkdir " .. dir)
  local f = assert(io.open(dir .. "/config.json", "w"))
  f:write(cjson.encode(config))
  f:close()
  local loaded = engine.load(dir, { device = "cuda", load_format = "dummy",
    activations = "float32" })
  os.execute("rm -r " .. dir)
  return loaded
end

local loaded = load_shape()

local function prompt(n, seed)
  local ids = {}
  for i = 1, n do
    ids[i] = tonumber(C.pl_random_at(seed, i, 0) % loaded.desc.options.vocab)
  end
  return ids
end

local function open(n_seqs, length)
  local blocks = n_seqs * (math.ceil(length / 16) + 1) + 16
  return engine.over(loaded, { enable_prefix_caching = 0, n_blocks = blocks,
    max_num_batched_tokens = 8192, max_num_seqs = 256, max_model_len = length + 16 })
end

local function ms_since(began) return tonumber(C.pl_now_ns() - began) / 1e6 end

local function submit(e, n_seqs, n_prompt, n_tokens, sampling)
  for i = 1, n_seqs do
    local params = { temperature = 0, max_tokens = n_tokens, ignore_eos = 1, seed = i }
    for name, value in pairs(sampling or {}) do params[name] = value end
    e:submit(prompt(n_prompt, i), params)
  end
end

-- Steps until every sequence has that many tokens.
local function step_to(e, n_tokens)
  local least
  repeat
    e:step()
    least = math.huge
    for _, r in pairs(e.results) do least = math.min(least, #r.tokens) end
  until least >= n_tokens
end

-- Steps in which each sequence draws a token; those that began first are ahead of the
-- others, and do not come to their end.
local function decode(n_seqs, context, sampling)
  local steps, spare = 48, 40
  local e = open(n_seqs, context + steps + spare)
  submit(e, n_seqs, context, steps + spare, sampling)
  step_to(e, 4)
  local began, counted = C.pl_now_ns(), 0
  while counted < n_seqs * steps do counted = counted + e:step() end
  local ms = ms_since(began) * n_seqs / counted
  e:close()
  return ms
end

local function sampled(n_seqs, context)
  return decode(n_seqs, context, { temperature = 1, top_k = 50, top_p = 0.95 })
end

local function prefill(n_seqs, n_prompt)
  local e, tokens = open(n_seqs, n_prompt + 16), 0
  submit(e, n_seqs, n_prompt, 1)
  local began = C.pl_now_ns()
  while tokens < n_seqs do tokens = tokens + e:step() end
  local ms = ms_since(began)
  e:close()
  return ms
end

local function median(f, ...)
  local all = {}
  for i = 1, 3 do all[i] = f(...) end
  table.sort(all)
  return all[2]
end

prefill(1, 64)   -- loads the kernels
for _, case in ipairs(cases) do
  local kind, n_seqs, length = case:match "^(%a+):(%d+):(%d+)$"
  local f = ({ decode = decode, sampled = sampled, prefill = prefill })[kind]
  assert(f, "no case '" .. case .. "'")
  local ms = median(f, tonumber(n_seqs), tonumber(length))
  print(json.encode(json.object("shape", shape, "case", case,
    "ms", math.floor(ms * 1000 + 0.5) / 1000)))
  io.stdout:flush()
end
engine.unload(loaded)
