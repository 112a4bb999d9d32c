-- SPDX-License-Identifier: Apache-2.0
-- The sampler, through pl_seq_sample: against a plain model of it written here.
local null = require "support.null"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local INF = math.huge

-- Numbers that look like logits: n of them, of which `from` chooses.
local function row(from, n, spread)
  local t, x = {}, from
  for i = 1, n do
    x = (x * 16807) % 2147483647
    local u = x / 2147483647
    x = (x * 16807) % 2147483647
    t[i] = (math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * x / 2147483647)) * spread
  end
  return ffi.new("float[?]", n, t), n
end

local function open(tokens, params, prepare)
  local s = null.seq(tokens, params)
  if prepare then prepare(s) end
  return s
end

local function draw(logits, n, params, o)
  o = o or {}
  local s = open(o.tokens or { 1 }, params, o.prepare)
  local copy = ffi.new("float[?]", n)
  ffi.copy(copy, logits, n * 4)
  local top = ffi.new("pl_logprob[?]", (params.logprobs or 0) + 1)
  local token = C.pl_seq_sample(s, copy, n, top)
  C.pl_seq_close(s)
  return token, top
end

-- Ids in order: by logit, then by id.
local function order(logits, n)
  local t = {}
  for i = 0, n - 1 do t[i + 1] = i end
  table.sort(t, function(a, b)
    if logits[a] ~= logits[b] then return logits[a] > logits[b] end
    return a < b
  end)
  return t
end

-- What min_p, top_k and top_p leave: id -> probability.
local function expect(logits, n, p, ids)
  ids = ids or order(logits, n)
  local best, kept, total = logits[ids[1]] / p.temperature, {}, 0
  for rank, id in ipairs(ids) do
    local w = math.exp(logits[id] / p.temperature - best)
    if w < (p.min_p or 0) or (p.top_k or 0) > 0 and rank > p.top_k then break end
    kept[#kept + 1] = { id = id, w = w }
    total = total + w
  end
  local probs, sum, mass = {}, 0, 0
  for _, k in ipairs(kept) do
    probs[k.id] = k.w
    mass = mass + k.w
    sum = sum + k.w
    if sum >= (p.top_p or 1) * total then break end
  end
  for id, w in pairs(probs) do probs[id] = w / mass end
  return probs
end

local function frequencies(logits, n, params, draws)
  local seen = {}
  for seed = 1, draws do
    params.seed = seed
    local token = draw(logits, n, params)
    seen[token] = (seen[token] or 0) + 1 / draws
  end
  return seen
end

describe("sample", function()
  it("takes the best when greedy, of equals the lowest id", function()
    for _, n in ipairs { 1, 2, 7, 8, 9, 1000, 50257 } do
      local logits = row(n, n, 3)
      assert.equal(order(logits, n)[1], draw(logits, n, {}, { tokens = { 0 } }))
      logits[n - 1], logits[math.floor(n / 2)] = 99, 99
      assert.equal(math.floor(n / 2), draw(logits, n, {}, { tokens = { 0 } }))
    end
  end)

  it("gives raw logprobs and ranks, before anything is applied", function()
    local n = 1000
    local logits = row(5, n, 3)
    local ids, sum = order(logits, n), 0
    for i = 0, n - 1 do sum = sum + math.exp(logits[i]) end
    local banned = ffi.new("int32_t[1]", ids[1])
    local token, top = draw(logits, n, { logprobs = 5, temperature = 0 }, {
      prepare = function(s) C.pl_seq_bias(s, banned, ffi.new("float[1]", -100), 1) end })
    assert.equal(ids[2], token)
    assert.equal(token, top[0].token)
    assert.equal(2, top[0].rank)
    for i = 1, 5 do
      assert.equal(ids[i], top[i].token)
      assert.equal(i, top[i].rank)
      assert.near(logits[ids[i]] - math.log(sum), top[i].logprob, 2e-6)
    end
    assert.near(top[2].logprob, top[0].logprob, 0)
  end)

  it("ranks all, and equals by id", function()
    local logits = ffi.new("float[6]", { 1, 2, 2, 0, 2, -1 })
    local _, top = draw(logits, 6, { logprobs = 5 })
    local got = {}
    for i = 1, 5 do got[i] = top[i].token end
    assert.same({ 1, 2, 4, 0, 3 }, got)
    local _, other = draw(logits, 6, { logprobs = 0 }, {
      prepare = function(s) C.pl_seq_allow(s, ffi.new("int32_t[1]", 4), 1) end })
    assert.equal(3, other[0].rank)
  end)

  it("draws the same for a seed and a position, alone or not", function()
    local logits, n = row(9, 500, 2)
    local differ = 0
    for seed = 1, 20 do
      local a = draw(logits, n, { temperature = 1, seed = seed })
      assert.equal(a, (draw(logits, n, { temperature = 1, seed = seed })))
      assert.equal(a, (draw(logits, n, { temperature = 1, seed = seed, logprobs = 3 })))
      local b = draw(logits, n, { temperature = 1, seed = seed }, { tokens = { 1, 2 } })
      differ = differ + (a ~= b and 1 or 0)
    end
    assert.is_true(differ > 10)
  end)

  local settings = {
    { temperature = 1 },
    { temperature = 0.5, top_k = 5 },
    { temperature = 1, top_p = 0.7 },
    { temperature = 2, min_p = 0.2 },
    { temperature = 1, top_k = 12, top_p = 0.8 },
    { temperature = 1.5, top_k = 30, top_p = 0.9, min_p = 0.02 },
  }
  for i, p in ipairs(settings) do
    it("draws as often as it should, setting " .. i, function()
      local n, draws = 60, 2500
      local logits = row(i, n, 2)
      local probs, seen = expect(logits, n, p), frequencies(logits, n, p, draws)
      for id in pairs(seen) do assert.is_truthy(probs[id], id .. " should be out") end
      for id, prob in pairs(probs) do
        -- five standard deviations; the seeds are fixed, so this does not change
        local slack = 5 * math.sqrt(prob * (1 - prob) / draws) + 1 / draws
        assert.near(prob, seen[id] or 0, slack)
      end
    end)
  end

  local cuts = {
    { top_k = 50 }, { top_k = 3000 }, { top_p = 0.3 }, { top_p = 0.95 },
    { top_k = 400, top_p = 0.9 }, { top_k = 4000, top_p = 0.9 },
    { top_k = 50, temperature = 0.05 }, { top_k = 50000, temperature = 0.02 },
  }
  it("cuts exactly in a large vocabulary", function()
    local n = 50257
    local logits = row(3, n, 2)
    local ids = order(logits, n)
    for _, p in ipairs(cuts) do
      p.temperature = p.temperature or 1
      local probs = expect(logits, n, p, ids)
      for seed = 1, 30 do
        p.seed = seed
        assert.is_truthy(probs[draw(logits, n, p)])
      end
    end
  end)

  it("cuts among equals by id", function()
    local n = 3000
    local flat = ffi.new("float[?]", n)
    for _, k in ipairs { 3, 2000 } do
      local most = 0
      for id in pairs(frequencies(flat, n, { temperature = 1, top_k = k }, 300)) do
        most = math.max(most, id)
      end
      assert.is_true(most < k and most >= k * 0.9 - 1)
    end
  end)

  it("applies penalties to prompt and output", function()
    local logits = ffi.new("float[5]", { 4, 3.9, 3, -1, 3.8 })
    local twice = { tokens = { 0, 0, 2 } }
    assert.equal(1, draw(logits, 5, { repetition_penalty = 1.5 }, twice))
    local neg = ffi.new("float[3]", { -1, -1.2, -1.3 })
    assert.equal(1, draw(neg, 3, { repetition_penalty = 1.5 }, { tokens = { 0 } }))
    -- presence and frequency look at output only
    local function resumed(n) return { tokens = { 0, 1, 1, 0 },
      prepare = function(s) assert.equal(0, C.pl_seq_resume(s, n)) end } end
    assert.equal(0, draw(logits, 5, { presence_penalty = 2 }, { tokens = { 0, 1 } }))
    assert.equal(1, draw(logits, 5, { presence_penalty = 2 }, resumed(1)))
    assert.equal(4, draw(logits, 5, { presence_penalty = 2 }, resumed(2)))
    assert.equal(0, draw(logits, 5, { frequency_penalty = 0.07 }, resumed(3)))
    assert.equal(4, draw(logits, 5, { frequency_penalty = 0.25 }, resumed(3)))
    assert.equal(0, draw(logits, 5, { frequency_penalty = -0.2 }, resumed(1)))
  end)

  it("allows, forbids, and holds back the end", function()
    local logits = ffi.new("float[5]", { 5, 4, 3, 2, 1 })
    local function ids(...) return ffi.new("int32_t[?]", select("#", ...), { ... }) end
    local function with(f, tokens, resume)
      return { tokens = tokens, prepare = function(s)
        assert.equal(0, f(s))
        if resume then assert.equal(0, C.pl_seq_resume(s, resume)) end
      end }
    end
    assert.equal(2, draw(logits, 5, {}, with(function(s)
      return C.pl_seq_allow(s, ids(4, 2, 2), 3) end)))
    assert.equal(1, draw(logits, 5, {}, with(function(s)
      return C.pl_seq_bad_word(s, ids(0), 1) end)))
    local function pair(s)
      return C.pl_seq_bad_word(s, ids(3), 1) + C.pl_seq_bad_word(s, ids(3, 1, 0), 3)
    end
    assert.equal(0, draw(logits, 5, {}, with(pair, { 2, 3, 1 }))) -- in the prompt
    assert.equal(1, draw(logits, 5, {}, with(pair, { 2, 3, 1 }, 2)))
    assert.equal(0, draw(logits, 5, {}, with(pair, { 2, 3, 4 }, 2)))
    local function ends(s)
      return C.pl_seq_eos(s, ids(0), 1) + C.pl_seq_stop_ids(s, ids(1), 1)
    end
    assert.equal(2, draw(logits, 5, { min_tokens = 2 }, with(ends)))
    assert.equal(2, draw(logits, 5, { min_tokens = 2 }, with(ends, { 4, 4 }, 1)))
    assert.equal(0, draw(logits, 5, { min_tokens = 2 }, with(ends, { 4, 4, 4 }, 2)))
    assert.equal(3, draw(logits, 5, {}, with(function(s)
      return C.pl_seq_bias(s, ids(3), ffi.new("float[1]", 1e9), 1) end)))
  end)

  it("answers when the masks leave nothing", function()
    local logits = ffi.new("float[3]", { 1, 2, 3 })
    for _, temperature in ipairs { 0, 1 } do
      local function prepare(s)
        local id = ffi.new("int32_t[1]", 1)
        C.pl_seq_allow(s, id, 1)
        C.pl_seq_bad_word(s, id, 1)
      end
      local p = { temperature = temperature }
      assert.equal(1, draw(logits, 3, p, { prepare = prepare }))
    end
  end)

  it("survives rows that are no numbers", function()
    local nan = 0 / 0
    local rows = { { nan, nan, nan }, { INF, nan, 1 }, { -INF, -INF, -INF },
      { INF, INF, -INF },
      { nan, 1, nan }, { 3e38, -3e38, nan }, { -INF, 0, INF } }
    local want = { 0, 0, 0, 0, 1, 0, 2 }
    for i, r in ipairs(rows) do
      local logits = ffi.new("float[3]", r)
      assert.equal(want[i], (draw(logits, 3, {})))
      for _, p in ipairs { { temperature = 1 }, { temperature = 0.01, top_k = 2 },
        { temperature = 1, top_p = 0.5, min_p = 0.1, repetition_penalty = 2 } } do
        p.logprobs = 2
        local token, top = draw(logits, 3, p)
        assert.is_true(token >= 0 and token < 3)
        for j = 0, 2 do assert.is_true(math.abs(top[j].logprob) < 4e38) end
      end
    end
  end)

  it("refuses parameters that mean nothing", function()
    local nan = 0 / 0
    for name, values in pairs {
      temperature = { -1, nan, INF }, top_p = { 0, 1.1, nan },
      min_p = { -0.1, 1.1, nan }, top_k = { -2 },
      repetition_penalty = { 0, nan, INF },
      presence_penalty = { 3, nan }, frequency_penalty = { -3 }, max_tokens = { 0 },
      min_tokens = { -1, 1000 }, logprobs = { -2 }, prompt_logprobs = { -2 } } do
      for _, v in ipairs(values) do
        local ids = ffi.new("int32_t[1]", 1)
        assert.is_true(C.pl_seq_open(ids, 1, null.params { [name] = v }) == nil)
        assert.is_truthy(ffi.string(C.pl_error_text()):find(name, 1, true))
      end
    end
    assert.is_true(C.pl_seq_open(nil, 0, null.params()) == nil)
  end)

  it("refuses ids out of vocabulary", function()
    local logits = ffi.new "float[4]"
    local id, value = ffi.new("int32_t[1]", 4), ffi.new "float[1]"
    for _, f in ipairs {
      function(s) return C.pl_seq_eos(s, id, 1) end,
      function(s) return C.pl_seq_stop_ids(s, id, 1) end,
      function(s) return C.pl_seq_bias(s, id, value, 1) end,
      function(s) return C.pl_seq_allow(s, id, 1) end,
      function(s) return C.pl_seq_bad_word(s, id, 1) end } do
      assert.equal(C.PL_EINVAL, (draw(logits, 4, {}, { prepare = f })))
    end
    assert.equal(C.PL_EINVAL, (draw(logits, 4, {}, { tokens = { -1 } })))
    assert.equal(C.PL_EINVAL, (draw(logits, 4, { logprobs = 4 })))
  end)
end)
