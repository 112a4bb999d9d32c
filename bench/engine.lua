-- SPDX-License-Identifier: Apache-2.0
-- engine.lua - the engine's speed on a model, without a server: one line of JSON.
--
--   build/perilune lua bench/engine.lua MODEL [THREADS] [KERNELS] [ACTIVATIONS]
--
-- decode: one sequence, 128 tokens after a prompt of 8; prefill: one prompt of 512
-- tokens; batch: 16 sequences at once, 64 tokens each after prompts of 32. Tokens per
-- second, the median of three.

package.path = "./tests/?.lua;" .. package.path
local engine = require "support.engine"
local json = require "perilune.json"
local pl = require "perilune.ffi"
local C = pl.C

local path = assert(arg[1], "bench/engine.lua MODEL [THREADS] [KERNELS] [ACTIVATIONS]")
local loaded = engine.load(path, { threads = tonumber(arg[2] or 2),
  kernels = arg[3] or "auto", activations = arg[4] or "auto" })

local function prompt(n, seed)
  local ids = {}
  for i = 1, n do
    ids[i] = tonumber(C.pl_random_at(seed, i, 0) % loaded.desc.options.vocab)
  end
  return ids
end

local function seconds(f)
  local start = C.pl_now_ns()
  f()
  return tonumber(C.pl_now_ns() - start) / 1e9
end

local function open()
  return engine.over(loaded, { enable_prefix_caching = 0, max_num_batched_tokens = 512,
    max_model_len = 1024 })
end

-- Time from the first token of all sequences to the last, per token.
local function decode(n_seqs, n_prompt, n_tokens)
  local e = open()
  local none = { temperature = 0, max_tokens = n_tokens + 1, ignore_eos = 1 }
  for i = 1, n_seqs do e:submit(prompt(n_prompt, i), none) end
  local first = 0
  while first < n_seqs do first = first + e:step() end
  local extra = first - n_seqs   -- tokens that came before all had started
  local t = seconds(function() e:run() end)
  e:close()
  return (n_seqs * n_tokens - extra) / t
end

local function prefill(n)
  local e = open()
  e:submit(prompt(n, 99), { temperature = 0, max_tokens = 1, ignore_eos = 1 })
  local t = seconds(function() e:run() end)
  e:close()
  return n / t
end

local function median(f)
  local all = {}
  for i = 1, 3 do all[i] = f() end
  table.sort(all)
  return math.floor(all[2] * 10 + 0.5) / 10
end

prefill(64)   -- warms the caches
print(json.encode(json.object("model", path, "kernels",
  pl.ffi.string(C.pl_device_kernels(loaded.device)),
  "threads", tonumber(arg[2] or 2), "activations", arg[4] or "auto",
  "decode", median(function() return decode(1, 8, 128) end),
  "prefill_512", median(function() return prefill(512) end),
  "batch_16", median(function() return decode(16, 32, 64) end))))
engine.unload(loaded)
