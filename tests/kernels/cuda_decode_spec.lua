-- SPDX-License-Identifier: Apache-2.0
-- A step that is one kernel on a GPU answers as the kernels do that are launched one by one:
-- the same tokens and logprobs, bit for bit.
local cjson = require "cjson"
local engine = require "support.engine"
local open_device = require "support.device"
local pl = require "perilune.ffi"
local C = pl.C

local VOCAB = 3001   -- neither a multiple of 8 nor of 16

-- What differs from the rest: widths of heads, biases, one or several queries a head of
-- keys, windows, and inputs of one piece or more of each product.
local MODELS = {
  qwen3 = { "Qwen3ForCausalLM", hidden_size = 1024, intermediate_size = 3072, head_dim = 128,
    num_attention_heads = 16, num_key_value_heads = 8, tie_word_embeddings = true },
  llama = { "LlamaForCausalLM", hidden_size = 320, intermediate_size = 1088, head_dim = 64,
    num_attention_heads = 12, num_key_value_heads = 2 },
  qwen2 = { "Qwen2ForCausalLM", hidden_size = 896, intermediate_size = 704, head_dim = 64,
    num_attention_heads = 14, num_key_value_heads = 2, tie_word_embeddings = true },
  mistral = { "MistralForCausalLM", hidden_size = 2048, intermediate_size = 1024,
    head_dim = 128, num_attention_heads = 4, num_key_value_heads = 4, sliding_window = 300 },
}

local function load(config, eager)
  local c = { vocab_size = VOCAB, num_hidden_layers = 3, max_position_embeddings = 4096,
    rms_norm_eps = 1e-6, rope_theta = 1000000 }
  for k, v in pairs(config) do c[k] = v end
  c.architectures = { c[1] }
  c[1] = nil
  local dir = os.tmpname()
  os.remove(dir)
  os.execute("mkdir " .. dir)
  local f = assert(io.open(dir .. "/config.json", "w"))
  f:write(cjson.encode(c))
  f:close()
  local loaded = engine.load(dir, { device = "cuda", load_format = "dummy", eager = eager,
    activations = "float32" })
  os.execute("rm -r " .. dir)
  return loaded
end

local function prompt(n, seed)
  local ids = {}
  for i = 1, n do ids[i] = tonumber(C.pl_random_at(seed, i, 0) % VOCAB) end
  return ids
end

-- So many sequences at once, of one split of attention and of several; some end early.
local function run(loaded, n)
  local lengths = { 700, 5, 1100, 390 }
  local e = engine.over(loaded, { n_blocks = 400, max_num_seqs = 4, max_model_len = 2000,
    max_num_batched_tokens = 2048, enable_prefix_caching = 0 })
  local ids, out = {}, {}
  for i = 1, n do
    ids[i] = e:submit(prompt(lengths[i], i), { temperature = i % 3 == 0 and 1 or 0, seed = i,
      max_tokens = 12 + 3 * i, logprobs = i % 2 == 0 and 3 or -1, ignore_eos = 1 })
  end
  local r = e:run()
  for i = 1, n do out[i] = { tokens = r[ids[i]].tokens, tops = r[ids[i]].tops } end
  e:close()
  return out
end

describe("a step in one kernel", function()
  for name, config in pairs(MODELS) do
    it("is as many kernels are: " .. name, function()
      if not open_device.has "cuda" then return pending "no GPU here" end
      local many, one = load(config, true), load(config, false)
      for _, n in ipairs { 1, 2, 3, 4 } do assert.same(run(many, n), run(one, n), n .. " rows") end
      engine.unload(many)
      engine.unload(one)
    end)
  end
end)
