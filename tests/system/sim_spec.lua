-- SPDX-License-Identifier: Apache-2.0
-- What the simulator foretells of recorded requests, next to what became of them.
local cjson = require "cjson.safe"
local scratch = require "scratch"
local serving = require "support.serving"

local RECIPE = [[
  local pl = require "perilune"
  return { worker = { count = 4, pick = pl.pick.%s, num_kv_blocks = 24, max_model_len = "auto",
    threads = 1 } }]]

-- Conversations in an order that returns to some sooner than to others: each turn's prompt
-- is that before and two blocks of 16 tokens more.
local function turns()
  local prompts, so_far = {}, {}
  for i = 1, 60 do
    local c = i % 3 == 0 and i % 4 or 4 + i % 5
    local text = so_far[c] or {}
    if #text >= 192 then text = {} end
    local prompt = { unpack(text) }
    for k = 1, 32 do prompt[#prompt + 1] = 10 + (c * 37 + #prompt * 11 + k + i) % 200 end
    so_far[c], prompts[i] = prompt, prompt
  end
  return prompts
end

describe("a simulation of recorded requests", function()
  local dir
  setup(function() dir = scratch.folder() end)
  teardown(function() dir.remove() end)

  -- The share of prompt tokens that were cached, of real requests one after the other.
  local function serve(policy)
    local recipe = dir.write(policy .. ".lua", RECIPE:format(policy))
    local server = serving.start({ "--record", dir.path .. "/" .. policy .. ".jsonl",
      "--enable-prompt-tokens-details" }, nil, recipe)
    local cached, all = 0, 0
    for _, prompt in ipairs(turns()) do
      local r = server:post("/v1/completions", { prompt = prompt, max_tokens = 3, ignore_eos = true })
      assert.equal(200, r.status, r.text)
      local usage = r.json.usage
      local details = usage.prompt_tokens_details
      cached = cached + (type(details) == "table" and details.cached_tokens or 0)
      all = all + usage.prompt_tokens
    end
    server:stop()
    return cached / all
  end

  -- The same, foretold. The steps of so small a model take next to nothing.
  local function foretell(policy)
    local timing = dir.write("t.json", '{"prefill": 0.1, "decode": 0.1}')
    local code, out, err = scratch.sh(("%s sim '%s/%s.lua' --trace '%s/%s.jsonl' --timing %s --json")
      :format(scratch.program, dir.path, policy, dir.path, policy, timing))
    assert.equal(0, code, err)
    local told = cjson.decode(out:match "([^\n]*)\n$")
    assert.same({ 60, 0 }, { told.requests, told.refused })
    return told.reuse
  end

  it("finds what the caches found, and so the same order of policies", function()
    local real, told = {}, {}
    for _, policy in ipairs { "least_loaded", "round_robin", "sticky" } do
      real[policy], told[policy] = serve(policy), foretell(policy)
      assert.near(real[policy], told[policy], 0.02, policy)
    end
    for a in pairs(real) do
      for b in pairs(real) do
        if real[a] > real[b] + 0.04 then assert.is_true(told[a] > told[b]) end
      end
    end
    assert.is_true(real.sticky > real.round_robin + 0.1, "the policies do not differ")
  end)

  it("takes what the bench has fitted to a server", function()
    local server, path = serving.start({ "--max-model-len", "512", "--device", "null",
      "--num-gpu-blocks-override", "512" }, { PERILUNE_NULL_STEP_US = "2000" }), dir.path
    local code, out, err = scratch.sh(("%s bench --url http://127.0.0.1:%d --fit '%s/fit.json' "
      .. "--input-len 64 --output-len 20 --concurrency 4"):format(scratch.program, server.port, path))
    server:stop()
    assert.equal(0, code, err)
    assert.is_truthy(out:match "the timing is within [%d.]+ %% of all of these\n$")
    local file = assert(io.open(path .. "/fit.json"))
    local figures = cjson.decode(file:read "*a")
    file:close()
    local prefills, decodes = 0, 0
    for name, ms in pairs(figures) do
      assert.is_true(ms >= 0)
      if name:match "^prefill" then prefills = prefills + ms else decodes = decodes + ms end
    end
    assert.is_true(prefills > 0 and decodes > 0)
    local trace = dir.write("one.jsonl",
      '{"timestamp":0,"input_length":32,"output_length":1,"hash_ids":[1],"block_size":32}')
    code, out, err = scratch.sh(("%s sim agg --trace %s --timing '%s/fit.json' --json"):format(
      scratch.program, trace, path))
    assert.equal(0, code, err)
    local ttft = cjson.decode(out:match "([^\n]*)\n$").ttft_ms.mean
    local told = (figures.prefill or 0) + 32 * (figures.prefill_token or 0)
      + 32 * 31 / 2 * (figures.prefill_back or 0)
    assert.near(told, ttft, 0.001 + 0.01 * told)
  end)

  it("is not told what a server did not count", function()
    local server, path = serving.start { "--max-model-len", "512" }, dir.path
    for words, why in pairs {
      ["--output-len 1"] = "perilune: --fit wants an --output-len of 2 or more\n",
      ["--input-len 600"] = "perilune: a request failed: ",
      ["--rate 3"] = "perilune: --fit goes with neither --rate nor --json\n",
    } do
      local code, _, err = scratch.sh(("%s bench --url http://127.0.0.1:%d --fit '%s/no' %s"):format(
        scratch.program, server.port, path, words))
      assert.is_true(code > 0)
      assert.equal(why, err:sub(1, #why))
      assert.is_nil(io.open(path .. "/no"))
    end
    server:stop()
  end)

  it("records no text, and a file that cannot be written is an error at once", function()
    local file = assert(io.open(dir.path .. "/sticky.jsonl"))
    local first = cjson.decode(file:read "*l")
    file:close()
    local keys = {}
    for key in pairs(first) do keys[#keys + 1] = key end
    table.sort(keys)
    assert.same({ "block_size", "hash_ids", "input_length", "output_length", "priority",
      "timestamp" }, keys)
    assert.same({ 32, 3, 16, 2 }, { first.input_length, first.output_length, first.block_size,
      #first.hash_ids })
    local ok, why = pcall(serving.start, { "--record", "/no/where" })
    assert.is_false(ok)
    assert.truthy(why:find("record: /no/where", 1, true), why)
  end)
end)
