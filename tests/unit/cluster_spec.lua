-- SPDX-License-Identifier: Apache-2.0
-- Who is here, as a frontend sees it: cards that are fetched, strangers, choosing.
local calls = require "perilune.fleet.calls"
local card = require "perilune.fleet.card"
local cjson = require "cjson"
local cluster = require "perilune.fleet.cluster"
local eligible = require "perilune.fleet.eligible"
local fleet = require "support.fleet"
local flow = require "perilune.flow"
local holdings = require "perilune.fleet.holdings"
local log = require "perilune.log"
local models = require "perilune.fleet.served_models"
local pl = require "perilune.ffi"
local C = pl.C

local function hello(name, changes)
  local model = { names = { "m" }, known_as = { "m.gguf" }, fingerprint = "f", vocab = 9, max_model_len = 99,
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

function Models:add(told, _, terms)
  local served = self[told.names[1]] or models.blank({ main = "worker" }, "m")
  self[told.names[1]], self.n_added = served, self.n_added + 1
  self.all[self.n_added] = served
  served.terms = terms
  return served
end

describe("the workers that a frontend sees", function()
  local f, front, c, ask, read, warning
  local n_changes, warnings                 -- what is told
  local asked, answer                       -- of cards: how often; what comes

  before_each(function()
    f = fleet.open { kind = "null" }
    front = f:process { hello = false }
    c = cluster.new(front.rt, setmetatable({ n_added = 0, all = {} }, Models),
      function(m) return m.names[1] ~= "no", "its model is 'no', wanted 'm'" end,
      function() n_changes = n_changes + 1 end)
    ask, read, asked = calls.ask, card.decode, 0
    warning, warnings, n_changes = log.warning, {}, 0
    log.warning = function(...) warnings[#warnings + 1] = string.format(...) end
    answer = function() return "card" end
    calls.ask = function(_, peer)
      asked = asked + 1
      flow.sleep(0.02)
      return answer(peer)
    end
    card.decode = function() return { names = { "m" } }, {} end
    C.pl_log_level(C.PL_LOG_ERROR)
  end)
  after_each(function()
    calls.ask, card.decode, log.warning = ask, read, warning
    C.pl_log_level(C.PL_LOG_INFO)
    holdings.close { list = c.models.all }
    c:close()
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

  it("says once whom it does not take, with the values of both sides", function()
    local said = {}
    local list = { hello "first", hello("other", { names = { "no" } }),
      hello("small", { block_size = 32, vocab = 7 }), hello("new", { known_as = 5 }),
      hello("round", { numerics = "m" }), hello("forged", { fingerprint = "f\nERROR" }) }
    run(function()
      for i, text in ipairs(list) do
        local peer, p = worker(text)
        tell(peer)
        await(function() return #c.workers + #warnings >= i end)
        for state in pairs { ready = 1, draining = 1 } do
          local again = text:gsub('"ready"', '"' .. state .. '"')
          C.pl_bus_hello(p.rt, again, #again)
          tell(peer)
          flow.sleep(0.02)
        end
      end
    end)
    for _, line in ipairs(warnings) do said[line:match "^%S+"] = line end
    assert.equal(5, #warnings)
    assert.same({
      other = "other is not taken: its model is 'no', wanted 'm'",
      small = "small is not taken: its vocab is 7, that of first is 9; "
        .. "its block_size is 32, that of first is 16",
      new = ("new is not taken: what it says of its model is not understood "
        .. "(its version is malformed, ours %s)"):format(pl.ffi.string(C.pl_version())),
      round = "round rounds differently from first: its numerics are m, not n",
      forged = "forged is not taken: its fingerprint is malformed, that of first is f",
    }, said)
    assert.equal("first round", names())
  end)

  it("tells of each change of who is here", function()
    local a = worker(hello "a")
    run(function()
      tell(a)
      await(function() return c.workers[1] end)
      assert.equal(1, n_changes)
      cluster.resume(c.workers[1])
      assert.equal(1, n_changes)
      tell(a, C.PL_LOST_GONE)
      await(function() return not c.workers[1] end)
    end)
    assert.equal(2, n_changes)
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

  it("leaves one that was lost alone for a while, though it is there", function()
    local served, time = models.blank({ main = "worker" }, "m"), 1000
    local a = c:add { name = "a", served = served, numerics = "n" }
    local b = c:add { name = "b", served = served, numerics = "n" }
    local function chosen(avoid)
      local list = {}
      for i = 1, 4 do
        local w = eligible.least_loaded(served.pool, avoid, {}, "n")
        list[i] = w and w.name or "none"
      end
      return table.concat(list, " ")
    end
    local during, after
    flow.spawn(function()
      cluster.suspect(a)
      during = { chosen(), chosen(b), eligible.has(served.pool, b, {}) }
      flow.sleep(2.1)
      after = { chosen(), chosen(b), eligible.has(served.pool, b, {}) }
      flow.stop()
    end).on_error = flow.stop
    flow.run(nil, function(_, _, _, ms)     -- nothing comes from C; time is stepped
      time = time + ms / 1000
      return 0
    end, function() return time end)
    assert.same({ "b b b b", "none none none none", false }, during)
    assert.same({ "b a b a", "a a a a", true }, after)
    assert.is_nil(a.suspected or b.suspected)
  end)

  it("takes no nonsense", function()
    local peers = {}
    for i, changes in ipairs { { engines = 0 }, { engines = 1.5 }, { engines = "2" },
        { names = {} }, { names = "m" }, { names = { "m", 5 } }, { names = { "a\nb" } },
        { known_as = { {} } }, { block_size = 0 }, { block_size = "16" },
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
