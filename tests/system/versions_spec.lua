-- SPDX-License-Identifier: Apache-2.0
-- A rolling upgrade: processes of this build, and of one (perilune_older) that lacks two
-- of the sampler's options, in one deployment over a real bus.
local deployment = require "support.deployment"
local process = require "support.process"

local COMPLETION = "/v1/completions"
local PLAIN = { temperature = 1.5, seed = 5, top_k = 300, presence_penalty = 0.5, logprobs = 2,
  stop_token_ids = { 3 }, logit_bias = { ["7"] = 1.5 } }
-- Drawn from far fewer tokens than the others.
local NEWER = { temperature = 1.5, seed = 5, min_p = 0.9 }

local function body(more)
  local out = { model = "llama", prompt = "the", max_tokens = 24, ignore_eos = true,
    return_token_ids = true }
  for name, value in pairs(more) do out[name] = value end
  return out
end

describe("a deployment of two builds", function()
  local OLDER = { build = process.own_path() .. "_older" }
  local f
  setup(function()
    f = deployment.start { workers = 0, frontends = 0,
      frontend = { "--scheduling-policy", "priority" },
      worker = { "--threads", "1", "--scheduling-policy", "priority" } }
  end)
  teardown(function() if f then f:remove() end end)

  local function complete(frontend, more)
    local r = frontend:post(COMPLETION, body(more))
    assert.equal(200, r.status, r.text)
    local choice = r.json.choices[1]
    assert.equal(24, #choice.token_ids)
    return choice.token_ids, choice.logprobs
  end

  it("answers alike whoever is the older, and leaves nothing out", function()
    local older, newer = f:add_frontend(OLDER), f:add_frontend()
    local worker = f:add_worker()
    f:ready(1)
    local plain, logprobs = complete(newer, PLAIN)
    assert.same({ plain, logprobs }, { complete(older, PLAIN) })
    local few = complete(newer, NEWER)
    assert.not_same(few, (complete(older, NEWER)))   -- it never heard of min_p
    assert.truthy(older.process:log():find("request field \"min_p\"", 1, true))

    worker:signal "TERM"
    worker:ended()
    f:forget(worker)
    local old_worker = f:add_worker(OLDER)
    f:ready(1)
    assert.same({ plain, logprobs }, { complete(newer, PLAIN) })
    local hurried = { priority = -3 }                -- changes no answer: may be left out
    for name, value in pairs(PLAIN) do hurried[name] = value end
    assert.same(plain, (complete(newer, hurried)))
    local refused = newer:post(COMPLETION, body(NEWER))
    assert.equal(503, refused.status)
    assert.equal("1", refused.headers["retry-after"])
    assert.matches("worker/%d+ refused the request: .* does not know part 34",
      refused.json.error.message)
    assert.same(plain, (complete(newer, PLAIN)))     -- that was the request's matter alone

    f:add_worker()
    f:ready(2)
    for _ = 1, 6 do
      assert.same(few, (complete(newer, NEWER)))     -- it finds who knows
      assert.same(plain, (complete(older, PLAIN)))
    end
    assert.is_true(old_worker:runs())
    f:close()
    f = nil
  end)
end)
