-- SPDX-License-Identifier: Apache-2.0
-- Prompts read by one pool and continued by another, in one process: answers are the same
-- as one worker's, hooks decide, and everyone can see who has read what.
local scratch = require "scratch"
local serving = require "support.serving"

local COMPLETION = "/v1/completions"
local FLAGS = { "--max-model-len", "1024", "--kv-cache-memory-bytes", "64M" }

local function words(n, seed)
  local out, x = {}, seed
  for i = 1, n do
    x = (x * 1103515245 + 12345) % 2 ^ 31
    out[i] = 3 + x % 500
  end
  return out
end

-- One worker's answers, to compare with.
local KINDS = {
  { max_tokens = 24, temperature = 0, logprobs = 2 },
  { max_tokens = 24, temperature = 0.9, seed = 5, logprobs = 0, n = 2 },
  { max_tokens = 1, temperature = 0 },
  { max_tokens = 16, temperature = 0, prompt_logprobs = 1 },
}

local function bodies()
  local list = {}
  for i, n in ipairs { 1, 15, 16, 17, 64, 200, 700 } do
    for _, kind in ipairs(KINDS) do
      local body = { prompt = words(n, i), ignore_eos = true, return_token_ids = true }
      for k, v in pairs(kind) do body[k] = v end
      list[#list + 1] = body
    end
  end
  return list
end

describe("two pools", function()
  local s, dir
  setup(function() dir = scratch.folder() end)
  teardown(function() dir.remove() end)
  after_each(function()
    if s then s.process:remove() end
    s = nil
  end)

  local function start(text)
    s = serving.start(FLAGS, nil, dir.write("r.lua",
      'local pl = require "perilune"\n' .. text))
  end

  local function metric(name)
    return tonumber(s:get("/metrics").text:match("\n" .. name .. " ([%d.e+]+)"))
  end

  local function decisions() return s:get("/v1/decisions").json.data end

  it("answer as one worker does", function()
    local want = {}
    s = serving.start(FLAGS)
    for i, body in ipairs(bodies()) do want[i] = s:post(COMPLETION, body).json.choices end
    s:stop()
    start "return { prefill = { count = 2 }, decode = { count = 2 } }"
    local open = {}
    for i, body in ipairs(bodies()) do open[i] = s:begin("POST", COMPLETION,
      require("cjson").encode(body), { ["Content-Type"] = "application/json" }) end
    for i in ipairs(open) do
      assert.same(want[i], open[i]:finish().json.choices)
    end
    assert.is_true(metric "perilune_kv_transfer_bytes_total" > 0)
    assert.equal(0, metric 'perilune_kv_transfer_failures_total{reason="ended"}')
    s:stop()
  end)

  it("ask split, which sees both", function()
    start [[
      local function split(req, w, prefill)
        assert(#prefill == 1 and prefill:sum "waiting" >= 0 and w.capacity > 0)
        return req.tokens > 32
      end
      return { prefill = {}, decode = { split = split } }]]
    assert.equal(200, s:post(COMPLETION, { prompt = words(20, 1), max_tokens = 4 }).status)
    assert.equal(0, metric "perilune_kv_transfer_bytes_total")
    assert.equal(200, s:post(COMPLETION, { prompt = words(50, 2), max_tokens = 4 }).status)
    assert.is_true(metric "perilune_kv_transfer_bytes_total" > 0)
    local reads = {}
    for _, d in ipairs(decisions()) do
      if d.reads then reads[#reads + 1] = d.worker end
    end
    assert.same({ "prefill/0" }, reads)
    assert.equal(0, metric 'perilune_hook_errors_total{hook="decode.split"}')
    s:stop()
  end)

  it("ask each pool's own cost, and done is told who has read", function()
    start [[
      local function last(req, w) return -tonumber(w.name:match "%d+$") end
      return { prefill = { count = 3, cost = last }, decode = { count = 2, cost = last },
        done = function(req, result)
          print("read by", result.choices[1].prefill_worker, "for", result.worker)
        end }]]
    assert.equal(200, s:post(COMPLETION, { prompt = words(50, 2), max_tokens = 4 }).status)
    assert.truthy(s.process:log():find("read by prefill/2 for decode/1", 1, true)
      or s.process:log():find("read by\tprefill/2\tfor\tdecode/1", 1, true), s.process:log())
    s:stop()
  end)

  it("are compared with what the decision took to be cached where the prompt is read", function()
    start [[
      local function split(req) return req.headers["x-split"] == "1" end
      return { prefill = {}, decode = { split = split } }]]
    local prompt = words(200, 1)
    for _, split in ipairs { "1", "1", "1", false, false, "1" } do
      local r = s:post(COMPLETION, { prompt = prompt, max_tokens = 4, ignore_eos = true },
        { ["X-Split"] = split or nil })
      assert.equal(200, r.status, r.text)
      assert.is_true(s:idle())
    end
    local found = 0
    for _, d in ipairs(decisions()) do found = found + (d.found or 0) end
    assert.is_true(found >= 3 * 12, found)
    assert.equal(0, s:metric "perilune_router_missed_blocks_total")
    s:stop()
  end)

  it("read prompts themselves where split fails, or nobody is to read", function()
    start [[
      return { prefill = { pick = function() return nil end }, decode = {} }]]
    assert.equal(200, s:post(COMPLETION, { prompt = words(50, 2), max_tokens = 4 }).status)
    assert.equal(0, metric "perilune_kv_transfer_bytes_total")
    s:stop()
  end)

  it("stop reading when the client goes", function()
    start "return { prefill = {}, decode = {} }"
    for i = 1, 8 do
      local r = s:begin("POST", COMPLETION, require("cjson").encode {
        prompt = words(900, i), max_tokens = 100, ignore_eos = true },
        { ["Content-Type"] = "application/json" })
      r.connection:close()
    end
    local answer = s:post(COMPLETION, { prompt = words(10, 1), max_tokens = 2 })
    assert.equal(200, answer.status)
    s:stop()
  end)
end)
