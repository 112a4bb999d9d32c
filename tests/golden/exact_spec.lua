-- SPDX-License-Identifier: Apache-2.0
-- Cold = warm = batched = preempted: tokens and logprobs are the same bit for bit.
--
-- For every model, device, kernel variant and 1 and 2 threads and steps in flight: each of
-- some prompts is answered alone first; then random mixes of them run together, in chunks of
-- random size, over warm prefixes, in so few blocks that sequences are preempted, some
-- cancelled in the middle.
-- Variants with the same numerics id share the answers given alone. $PERILUNE_MIXES: how
-- many mixes in all (200).

local open_device = require "support.device"
local engine = require "support.engine"
local golden = require "support.golden"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local MIXES = tonumber(os.getenv "PERILUNE_MIXES" or 200)
local VARIANTS = { "avx512", "avx512bf16", "avx2", "scalar" }   -- the fastest gives the answers
local BLOCKS = 30   -- of 16 tokens: a few sequences of the longest kind

-- A generator of its own, so a failure can be had again from its seed.
local function dice(seed)
  local n = 0
  return function(low, high)
    n = n + 1
    return low + tonumber(C.pl_random_at(seed, n, 0) % (high - low + 1))
  end
end

-- Prompts that share beginnings, greedy and drawn, with every kind of penalty and mask.
local function cases(vocab)
  local roll, list, stem = dice(11), {}, {}
  for i = 1, 150 do stem[i] = roll(5, vocab - 1) end
  for i = 1, 12 do
    local ids, keep = {}, roll(0, 3) * 40
    for k = 1, keep do ids[k] = stem[k] end
    for _ = 1, roll(1, 45) do ids[#ids + 1] = roll(5, vocab - 1) end
    local params = { temperature = 0, max_tokens = roll(8, 40), logprobs = 3, seed = i }
    if i % 2 == 0 then
      params.temperature, params.top_p, params.top_k = 1, 0.95, 40
      params.min_p, params.presence_penalty = 0.01, 0.5
    end
    if i % 3 == 0 then params.repetition_penalty, params.frequency_penalty = 1.2, 0.3 end
    if i % 4 == 0 then params.prompt_logprobs = 2 end
    list[i] = { ids = ids, params = params }
  end
  return list
end

local function options(more)
  local o = { n_blocks = 400, max_num_batched_tokens = 2048, max_model_len = 300 }
  for k, v in pairs(more or {}) do o[k] = v end
  return o
end

-- Each case on an engine of its own, nothing cached, nothing beside it.
local function alone(loaded, list)
  local out = {}
  for i, case in ipairs(list) do
    local e = engine.over(loaded, options { enable_prefix_caching = 0 })
    local id = e:submit(case.ids, case.params)
    out[i] = e:run()[id]
    e:close()
  end
  return out
end

local function same_rows(what, got, want)
  assert.equal(#want, #got, what .. ": number of rows")
  for k, e in ipairs(want) do
    local g = got[k]
    assert.is_true(g.token == e.token and g.rank == e.rank and g.logprob == e.logprob,
      ("%s, entry %d: %d %.9g, alone %d %.9g"):format(what, k, g.token, g.logprob, e.token,
        e.logprob))
  end
end

local function same(what, got, want)
  assert.same(want.tokens, got.tokens, what)
  for i = 1, #want.tokens do same_rows(what .. (", token %d"):format(i), got.tops[i], want.tops[i]) end
  same_rows(what .. ", prompt", got.prompt, want.prompt)
end

-- One mix: an engine of random shape, up to `most` cases submitted at random steps.
local function mix(loaded, list, want, seed, seen, most)
  local roll = dice(seed)
  local e = engine.over(loaded, options { n_blocks = roll(BLOCKS, BLOCKS + 15),
    max_num_seqs = roll(2, 16), max_num_batched_tokens = roll(16, 200),
    long_prefill_token_threshold = roll(0, 1) * roll(3, 40) })
  local running, cancelled = {}, {}
  for _ = 1, roll(math.min(10, most), most) do
    local which = roll(1, #list)
    local id = e:submit(list[which].ids, list[which].params)
    running[id] = which
    for _ = 1, roll(0, 4) do e:step() end
    if roll(1, 12) == 1 then
      C.pl_engine_cancel(e.engine, id)
      cancelled[id] = true
    end
  end
  local results = e:run()
  for id, which in pairs(running) do
    if not cancelled[id] then
      same(("seed %d, case %d"):format(seed, which), results[id], want[which])
    end
  end
  local s = e:statistics()
  seen.preemptions = seen.preemptions + tonumber(s.preemptions)
  seen.hits = seen.hits + tonumber(s.prefix_hits)
  seen.chunked = seen.chunked + tonumber(s.chunked)
  assert.equal(0, s.blocks_used, "blocks left over")
  e:close()
end

local function models()
  local list = {}
  for _, name in ipairs(golden.NAMES) do
    if golden.of(name) then list[#list + 1] = { name, golden.root .. "/" .. name } end
  end
  local real = os.getenv "PERILUNE_MODEL"
  if real then list[#list + 1] = { "smollm2", real } end
  return list
end

-- What there is to try: on the CPU by variants, and on a GPU.
local function combinations()
  local list = {}
  local function add(model, device, variant, threads, mixes)
    list[#list + 1] = { name = model[1], path = model[2], device = device,
      variant = variant, threads = threads, mixes = mixes }
  end
  for _, m in ipairs(models()) do
    for threads = 1, 2 do
      for _, variant in ipairs(VARIANTS) do
        -- The slower kernels take minutes for the real model: one small run of them.
        local slow = m[1] == "smollm2" and (variant == "scalar" or variant == "avx2")
        if open_device.has("cpu", variant) and not (slow and threads == 1) then
          add(m, "cpu", variant, threads, slow and 1 or nil)
        end
      end
      if open_device.has "cuda" then add(m, "cuda", "auto", threads) end
    end
  end
  return list
end

describe("exactness", function()
  local seen = { preemptions = 0, hits = 0, chunked = 0 }
  local combos = combinations()
  local answers = {}
  for i, combo in ipairs(combos) do
    it(("%s, %s %s, %d threads"):format(combo.name, combo.device, combo.variant,
        combo.threads), function()
      local refused = combo.device == "cuda" and engine.refusal(combo.path, "cuda")
      if refused then return pending(refused) end
      local loaded = engine.load(combo.path, { device = combo.device,
        kernels = combo.variant, threads = combo.threads, depth = combo.threads })
      local key = combo.name .. ffi.string(C.pl_model_numerics(loaded.model))
      local prompts = cases(math.min(loaded.desc.options.vocab, 500))
      answers[key] = answers[key] or alone(loaded, prompts)
      local n = combo.mixes or math.ceil(MIXES / #combos)
      local most = combo.mixes and 6 or 24
      for k = 1, n do mix(loaded, prompts, answers[key], i * 1000 + k, seen, most) end
      engine.unload(loaded)
    end)
  end

  it("was put to the test", function()
    if #combos == 0 then return pending "no reference models here" end
    assert.is_true(seen.preemptions > 0, "no sequence was preempted")
    assert.is_true(seen.hits > 0, "no prefix was found in the cache")
    assert.is_true(seen.chunked > 0, "no prompt was cut into chunks")
  end)
end)
