-- SPDX-License-Identifier: Apache-2.0
-- All threads of a server at once: clients that stream, gather and leave in the middle,
-- big bodies in the pool beside small ones, /metrics read all the while. Answers are what
-- they are alone; a race that ThreadSanitizer sees ends the server with another exit code.
local pl = require "perilune.ffi"
local serving = require "support.serving"
local C = pl.C

local CLIENTS = 24
local ROUNDS = math.floor((tonumber(os.getenv "PERILUNE_STRESS") or 2000) / 50)
local SEED = tonumber(os.getenv "PERILUNE_SEED") or 1
local PATH = "/v1/completions"

local function dice(seed)
  local n = 0
  return function(low, high)
    n = n + 1
    return low + tonumber(C.pl_random_at(seed, n, 7) % (high - low + 1))
  end
end

-- Requests whose answers are known: a seed each, so they are the same whoever else is there.
local function known(i)
  return { prompt = ("word " .. i .. " "):rep(1 + i * 7 % 40), max_tokens = 4 + i * 5 % 30,
    temperature = i % 2, seed = i, ignore_eos = true, logprobs = i % 3 == 0 and 2 or nil,
    n = i % 2 == 1 and 1 + i % 3 or 1 }
end

local function texts_of(r, streamed)
  local texts = {}
  if not streamed then
    for _, c in ipairs(r.json.choices) do texts[c.index] = c.text end
    return texts
  end
  for _, e in ipairs(r:events()) do
    for _, c in ipairs(e.choices) do texts[c.index] = (texts[c.index] or "") .. c.text end
  end
  return texts
end

describe("threads", function()
  local s, alone
  setup(function()
    s = serving.start { "--max-model-len", "512", "--max-num-seqs", "16",
      "--num-gpu-blocks-override", "160", "--max-num-batched-tokens", "128" }
    alone = {}
    for i = 1, 12 do alone[i] = texts_of(s:post(PATH, known(i))) end
  end)
  teardown(function()
    assert.is_true(s:idle(30))
    s:stop()
  end)

  local big = {
    { "/tokenize", { prompt = ("big words "):rep(20000) }, 200 },
    { PATH, { prompt = ("big words "):rep(20000), max_tokens = 1 }, 400 },
    { PATH, { prompt = ("x"):rep(20000), truncate_prompt_tokens = 64, max_tokens = 4 }, 200 },
  }

  -- Begins a request; answers the function that ends it.
  local function visit(roll)
    local kind = roll(1, 8)
    if kind == 1 then
      local path, body, status = unpack(big[roll(1, #big)])
      local r = s:begin("POST", path, body)
      return function() assert.equal(status, r:finish().status) end
    elseif kind <= 3 then
      local body = known(roll(1, 12))
      body.stream, body.max_tokens = roll(1, 2) == 1, roll(50, 300)
      local r, reads, hard = s:begin("POST", PATH, body), roll(0, 3), roll(1, 2) == 1
      return function()
        for _ = 1, reads do r.connection:receive(5) end
        if hard then r.connection:reset() else r.connection:close() end
      end
    end
    local i, streamed = roll(1, 12), roll(1, 2) == 1
    local body = known(i)
    body.stream = streamed
    local r = s:begin("POST", PATH, body)
    return function() assert.same(alone[i], texts_of(r:finish(), streamed)) end
  end

  it("keep out of each other's way", function()
    local roll, open = dice(SEED), {}
    for _ = 1, ROUNDS * 10 do
      if #open >= CLIENTS then table.remove(open, roll(1, #open))() end
      open[#open + 1] = visit(roll)
      if roll(1, 20) == 1 then assert.equal(200, s:get("/metrics").status) end
    end
    for _, finish in ipairs(open) do finish() end
  end)

  it("end while all are at work", function()
    for seed = 1, 3 do
      local other = serving.start { "--max-num-seqs", "8", "--drain-timeout", "0" }
      local open = {}
      for i = 1, 12 do
        local body = known(i)
        body.max_tokens, body.stream = 1500, i % 2 == 0
        open[i] = other:begin("POST", PATH, body)
      end
      open[13] = other:begin("POST", "/tokenize", { prompt = ("big words "):rep(50000) })
      for _ = 1, seed * 5 do other:get "/metrics" end
      other:stop(seed % 2 == 0 and "INT" or "TERM")
      for _, r in ipairs(open) do r.connection:close() end
    end
  end)
end)
