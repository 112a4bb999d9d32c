-- SPDX-License-Identifier: Apache-2.0
-- What became of each request.
local pl = require "perilune.ffi"
local requests = require "perilune.watch.requests"
local C = pl.C

local function job(id, n_prompts)
  local prompts = {}
  for i = 1, n_prompts or 1 do prompts[i] = { n_tokens = 10, seqs = { {}, {} } } end
  return { id = id, arrived = C.pl_now_ns(), plan = { kind = "chat", prompts = prompts } }
end

local NAMES = { "stop", "length", "abort", "error" }

describe("requests", function()
  it("are under way until they are done, and are found by number, id and its beginning",
     function()
    local a, b = job("chatcmpl-aaa", 2), job "chatcmpl-bbb"
    requests.begin(a)
    requests.begin(b)
    assert.equal(2, requests.count())
    assert.equal("chatcmpl-aaa", requests.live()[1].id)
    assert.equal(20, a.record.prompt_tokens)
    assert.equal(4, a.record.choices)
    assert.equal(b.record, requests.find "chatcmpl-bbb")
    assert.equal(b.record, requests.find "chatcmpl-b")
    assert.equal(a.record, requests.find(a.record.number))
    assert.equal(b.record, requests.find "bbb")     -- as the log names it
    assert.is_nil(requests.find "")
    assert.is_nil(requests.find "chatcmpl-c")
    assert.is_nil(requests.find(nil))
    requests.done(a, { finish = "stop" })
    requests.done(a, { finish = "twice" })
    requests.done(b, { finish = "abort" })
    assert.equal(0, requests.count())
    assert.equal("stop", requests.find("chatcmpl-aaa").finish)
  end)

  it("have stages in the order of time", function()
    local a = job "x-1"
    requests.begin(a)
    requests.note(a, "submitted")
    for _ = 1, 3 do requests.note(a, "moved to worker/1") end
    local now = tonumber(C.pl_now_ns())
    requests.done(a, requests.outcome({
      { last = { n_tokens = 3, n_cached = 16, finish = 1, scheduled_ns = now + 5,
        first_ns = now + 50, last_ns = now + 70 } },
      { last = { n_tokens = 4, n_cached = 0, finish = 2, scheduled_ns = now + 4,
        first_ns = now + 60, last_ns = now + 90 } },
      { last = { n_tokens = 0, n_cached = -1, finish = 3, scheduled_ns = 0, first_ns = 0,
        last_ns = 0 } } }, NAMES))
    local r, names = a.record, {}
    r.ended = now + 100
    for i, entry in ipairs(requests.timeline(r)) do names[i] = entry[1] end
    assert.same({ "arrived", "prepared", "submitted", "moved to worker/1, 3 times", "scheduled",
      "first token", "last token", "ended: abort" }, names)
    assert.equal(7, r.tokens)
    assert.equal(16, r.cached)
    assert.equal(3, r.moves)
    assert.equal((now + 50 - r.arrived) / 1e9, requests.to_first(r))
    assert.equal((now + 100 - r.arrived) / 1e9, requests.total(r))
  end)

  it("say where they are while they are under way", function()
    local a = job "w-1"
    local now = tonumber(C.pl_now_ns())
    local ended = { last = { n_tokens = 3, n_cached = 0, finish = 1, scheduled_ns = now,
      first_ns = now + 5, last_ns = now + 7 } }
    local waiting = {}
    a.choices = { ended, waiting }
    requests.begin(a)
    local function seen()
      for _, r in ipairs(requests.live()) do
        if r == a.record then return r.stage, r.tokens, r.first end
      end
    end
    assert.same({ "waits for a worker", 3, now + 5 }, { seen() })
    waiting.waits = "waits for room: every worker is full"
    assert.equal("waits for room: every worker is full", (seen()))
    waiting.lost = "worker/3: gone"
    assert.equal("waits for room: every worker is full (worker/3: gone)", (seen()))
    local line = requests.timeline(a.record)
    assert.equal("now: waits for room: every worker is full (worker/3: gone)", line[#line][1])
    requests.note(a, "sent to worker/1")
    waiting.last = ended.last
    assert.equal("sent to worker/1", (seen()))
    requests.done(a, { finish = "stop", tokens = 6 })
    assert.is_nil(a.record.under_way)
    assert.equal(6, a.record.tokens)
  end)

  it("that never got a token have no time to the first", function()
    local a = job "x-2"
    requests.begin(a)
    requests.done(a, { finish = "refused", why = "full" })
    assert.is_nil(requests.to_first(a.record))
    assert.is_true(requests.total(a.record) >= 0)
  end)

  it("are forgotten after a thousand", function()
    local first = job "y-first"
    requests.begin(first)
    requests.done(first, {})
    for i = 1, 1000 do
      local a = job("z-" .. i)
      requests.begin(a)
      requests.done(a, {})
    end
    assert.equal(1000, #requests.ended())
    assert.is_nil(requests.find "y-first")
    assert.equal("z-1", requests.ended()[1].id)
  end)
end)
