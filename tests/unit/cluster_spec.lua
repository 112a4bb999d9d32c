-- SPDX-License-Identifier: Apache-2.0
-- Who is here, as a frontend sees it: cards that are fetched, strangers, choosing.
local calls = require "perilune.calls"
local card = require "perilune.card"
local cjson = require "cjson"
local cluster = require "perilune.cluster"
local fleet = require "support.fleet"
local flow = require "perilune.flow"
local pl = require "perilune.ffi"
local C = pl.C

local function hello(name, changes)
  local model = { names = { "m" }, fingerprint = "f", vocab = 9, max_model_len = 99,
    block_size = 16, max_num_batched_tokens = 64, numerics = "n" }
  local h = { name = name, state = "ready", engines = 1, model = model }
  for k, v in pairs(changes or {}) do
    if h[k] ~= nil then h[k] = v else model[k] = v end
  end
  return cjson.encode(h)
end

-- Stands in for models.lua.
local Models = {}
Models.__index = Models

function Models:find(name) return self[name] end

function Models:add(summary)
  local entry = self[summary.names[1]] or { workers = {} }
  self[summary.names[1]], self.n_added = entry, self.n_added + 1
  return entry
end

describe("the workers that a frontend sees", function()
  local f, front, c, ask, read
  local asked, answer                       -- of cards: how often; what comes

  before_each(function()
    f = fleet.open { kind = "null" }
    front = f:process { hello = false }
    c = cluster.new(front.rt, setmetatable({ n_added = 0 }, Models),
      function() return true end)
    ask, read, asked = calls.ask, card.read, 0
    answer = function() return "card" end
    calls.ask = function(_, peer)
      asked = asked + 1
      flow.sleep(0.02)
      return answer(peer)
    end
    card.read = function() return { names = { "m" } }, {} end
    C.pl_log_level(C.PL_LOG_ERROR)
  end)
  after_each(function()
    calls.ask, card.read = ask, read
    C.pl_log_level(C.PL_LOG_INFO)
    f:close()
  end)

  -- A process that says that; and its number.
  local function worker(said)
    local p = f:process { hello = false }
    C.pl_bus_hello(p.rt, said, #said)
    return front:peer(p), p
  end

  -- Runs fn in a task, and those that it begins, while nothing comes from C.
  local function run(fn)
    flow.spawn(function()
      fn()
      flow.stop()
    end).on_error = flow.stop
    assert.is_true(flow.run(front.rt, function(_, _, _, ms)
      C.pl_poll(front.rt, nil, 0, math.min(ms, 5))
      return 0
    end))
  end

  local function tell(peer, why)
    flow.spawn(c.on_peer, c, { id = peer, a = why or 0 })
  end

  -- In a task.
  local function await(test)
    local deadline = os.time() + 20
    repeat flow.sleep(0.01) until test() or os.time() > deadline
  end

  local function names()
    local list = {}
    for i, w in ipairs(c.workers) do list[i] = w.name end
    table.sort(list)
    return table.concat(list, " ")
  end

  it("fetches one card of a model, however many come at a time", function()
    local a, b, d = worker(hello "a"), worker(hello "b"), worker(hello "d")
    run(function()
      for _, peer in ipairs { a, b, d } do tell(peer) end
      await(function() return #c.workers == 3 end)
    end)
    assert.equal("a b d", names())
    assert.same({ 1, 1 }, { asked, c.models.n_added })
  end)

  it("asks one that has not answered again, but none that says no", function()
    local a, b = worker(hello "a"), worker(hello("b", { names = { "other" } }))
    answer = function(peer)
      if peer == b then return nil, "it has no model" end
      if asked < 3 then return nil, "nothing came", true end
      return "card"
    end
    run(function()
      tell(a)
      tell(b)
      await(function() return c.workers[1] end)
    end)
    assert.equal("a", names())
    assert.equal(3, asked)
  end)

  it("stops asking one that has left", function()
    local a = worker(hello "a")
    answer = function() return nil, "nothing came", true end
    run(function()
      tell(a)
      flow.sleep(0.1)
      tell(a, C.PL_LOST_GONE)
      flow.sleep(1.2)
    end)
    assert.equal("", names())
    assert.is_true(asked <= 2)
  end)

  it("takes a stranger once all those are gone that it differed from", function()
    local old, new = worker(hello "old"), worker(hello("new", { max_model_len = 50 }))
    run(function()
      tell(old)
      await(function() return c.workers[1] end)
      tell(new)
      flow.sleep(0.1)
      assert.equal("old", names())
      tell(old, C.PL_LOST_LEFT)
      await(function() return names() == "new" end)
    end)
    assert.equal("new", names())
  end)

  it("hears what a worker said while its card was on its way", function()
    local a, p = worker(hello "a")
    answer = function()
      local text = hello("a", { state = "draining" })
      C.pl_bus_hello(p.rt, text, #text)
      repeat flow.sleep(0.01) until front:hello_of(a).hello.state == "draining"
      return "card"
    end
    run(function()
      tell(a)
      flow.sleep(0.02)
      tell(a)                               -- its new word
      repeat flow.sleep(0.01) until c.workers[1]
    end)
    assert.equal("draining", c.workers[1].state)
  end)

  it("takes no nonsense", function()
    local peers = {}
    for i, changes in ipairs { { engines = 0 }, { engines = 1.5 }, { engines = "2" },
        { names = {} }, { names = "m" }, { block_size = 0 }, { block_size = "16" },
        { max_num_batched_tokens = cjson.null } } do
      peers[i] = worker(hello("w" .. i, changes))
    end
    run(function()
      for _, peer in ipairs(peers) do tell(peer) end
      flow.sleep(0.1)
    end)
    assert.equal("", names())
    assert.equal(0, asked)
  end)
end)
