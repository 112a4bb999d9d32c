-- SPDX-License-Identifier: Apache-2.0
-- Workers as hooks see them, and the costs and picks that perilune brings.
local chance = require "perilune.recipe.chance"
local fleet_view = require "perilune.recipe.fleet_view"
local pl = require "perilune"

local function names(fleet)
  local list = {}
  for i = 1, #fleet do list[i] = fleet[i].name end
  return table.concat(list, " ")
end

-- A request of that many blocks; headers by name.
local function req(blocks, headers)
  return { blocks = blocks, headers = headers or {} }
end

describe("a fleet", function()
  local fleet
  before_each(function()
    fleet = pl.fleet {
      { name = "a", cached = 2, decoding = 10, running = 3, tags = { "old", "eu" } },
      { name = "b", cached = 5, decoding = 5, waiting = 1, tags = { "eu" } },
      { name = "c", cached = 8, decoding = 9, itl = 0.5, rank = 1 },
    }
  end)

  it("is counted, indexed and searched", function()
    assert.equal(3, #fleet)
    assert.equal("b", fleet[2].name)
    assert.is_nil(fleet[0])
    assert.is_nil(fleet[4])
    assert.equal(9, fleet:named("c").decoding)
    assert.is_nil(fleet:named "d")
    assert.is_nil(fleet:named(nil))
    assert.same({ 24, 5, 0 }, { fleet:sum "decoding", fleet:min "decoding", fleet:min "free" })
    assert.same({ 3, 1, 0.5, 1 },
      { fleet[1].running, fleet[2].waiting, fleet[3].itl, fleet[3].rank })
    assert.same({ "worker b", "3 workers" }, { tostring(fleet[2]), tostring(fleet) })
  end)

  it("finds the cheapest, the first of equals", function()
    local function cost(r, w) return r.blocks - w.cached + w.decoding end
    assert.equal("b", fleet:cheapest(req(10), cost).name)
    assert.equal("a", fleet:cheapest(req(10), function() return 1 end).name)
    local function only_c(_, w) return w.name == "c" and 1 or math.huge end
    assert.equal("c", fleet:cheapest(req(10), only_c).name)
    assert.is_nil(fleet:cheapest(req(10), function() return math.huge end))
    local function rising(_, w) return ({ a = 104, b = 100, c = 99 })[w.name] end
    assert.equal("c", fleet:cheapest(req(1), rising).name)
    assert.equal("b", fleet:cheapest(req(1), rising, 0.02).name)
    assert.equal("a", fleet:cheapest(req(1), rising, 0.06).name)
    assert.has_error(function() fleet:cheapest(req(1), function() return 0 / 0 end) end,
      "cost returned nan for a; wanted a number")
    assert.has_error(function()
      fleet:cheapest(req(1), function(_, w) if w.name ~= "b" then return 1 end end)
    end, "cost returned nil for b; wanted a number")
  end)

  it("is filtered by tags and functions, and again", function()
    local eu = fleet:filter "eu"
    assert.equal("a b", names(eu))
    assert.equal("b", names(eu:filter(function(w) return w.cached > 2 end)))
    assert.equal("", names(fleet:filter "us"))
    assert.equal("b", eu:cheapest(req(10), pl.cost.kv).name)
    assert.equal(15, eu:sum "decoding")
    assert.same({ "old", "eu" }, fleet[1].tags)
    assert.has_error(function() for _ = 1, 65 do fleet:filter "eu" end end,
      "more than 64 filters in one decision")
  end)

  it("says what it has not, and cannot be changed", function()
    for text, why in pairs {
      ["f[1].cache"] = "w has no 'cache'; did you mean 'cached'?",
      ["f.cheap"] = "fleet has no 'cheap'",
      ["f:sum 'cachd'"] = "w has no 'cachd'; did you mean 'cached'?",
    } do
      local ok, said = pcall(assert(loadstring("local f = ... return " .. text, "=t")), fleet)
      assert.is_false(ok)
      assert.truthy(said:find(why, 1, true), said)
    end
    assert.has_error(function() fleet[1].cached = 9 end)
    assert.has_error(function() fleet[1].row = 9 end)
    assert.has_error(function() fleet[1] = 9 end)
    assert.has_error(function() fleet.view = 9 end)
    assert.equal(2, fleet[1].cached)
  end)

  it("is made of what makes sense alone", function()
    assert.has_error(function() pl.fleet { { cached = 1 } } end, "pl.fleet: worker 1 is a table with a name")
    for _, bad in ipairs { { cached = 0.5 }, { cached = "1" }, { free = 2 ^ 40 }, { cached = 0 / 0 } } do
      bad.name = "a"
      assert.has_error(function() pl.fleet { bad } end)
    end
    assert.has_error(function() pl.fleet { { name = "a", cachd = 1 } } end,
      "w has no 'cachd'; did you mean 'cached'?")
    assert.equal(0, #pl.fleet {})
  end)

  it("keeps its workers to one decision", function()
    local view = fleet_view.new()
    view:begin()
    for i = 1, 3 do view:add(nil, -1, 0, 0, "w" .. i) end
    local kept, sub = view:fleet()[2], view:fleet():filter(function(w) return w.name == "w3" end)
    assert.same({ 1, 2 }, { view:row_of(kept), view:row_of(sub[1]) })
    view:begin()
    view:add(nil, -1, 0, 0, "new")
    assert.is_nil(view:row_of(kept))
    assert.has_error(function() return kept.name end,
      "this worker is of an earlier decision; keep its name instead")
    assert.equal("worker of an earlier decision", tostring(kept))
    assert.is_nil(view:row_of(fleet[1]))
    for _, v in ipairs { 1, "w1", {}, view } do assert.is_nil(view:row_of(v)) end
    view:close()
    assert.has_error(function() return kept.cached end)
  end)

  it("goes when nobody has it any more", function()
    local w
    do
      local f = pl.fleet { { name = "x" } }
      w = f[1]
      assert.equal("x", w.name)
      f = nil                               -- luacheck: ignore 311
    end
    collectgarbage()
    collectgarbage()
    assert.has_error(function() return w.name end)
  end)
end)

describe("pl.cost", function()
  -- Dynamo's documentation has this example.
  local fleet = pl.fleet {
    { name = "w1", cached = 2, decoding = 10 },
    { name = "w2", cached = 5, decoding = 5 },
    { name = "w3", cached = 8, decoding = 9 },
  }
  local function costs(cost, blocks, of)
    local out = {}
    for i = 1, #(of or fleet) do out[i] = cost(req(blocks), (of or fleet)[i], of or fleet) end
    return out
  end

  it("kv is Dynamo's formula", function()
    assert.same({ 18, 10, 11 }, costs(pl.cost.kv, 10))
    assert.same({ 18, 10, 11 }, costs(pl.cost.kv {}, 10))
    assert.same({ 20, 15, 19 }, costs(pl.cost.kv { overlap_score_credit = 0 }, 10))
    assert.same({ 26, 15, 13 }, costs(pl.cost.kv { prefill_load_scale = 2 }, 10))
    assert.same({ 10, 5, 9 }, costs(pl.cost.kv { overlap_score_credit = 9 }, 10))   -- never below 0
    local busy = pl.fleet {
      { name = "w1", cached = 10, prefilling = 20, running = 2, waiting = 1 },
      { name = "w2", cached = 10, prefilling = 0 },
    }
    assert.same({ 23, 0 }, costs(pl.cost.kv { decode_active_request_weight = 1 }, 10, busy))
    assert.same({ 30 - 10 / 3, 0 },           -- its load is 2 prompts above the least
      costs(pl.cost.kv { overlap_score_credit_decay = 1 }, 10, busy))
  end)

  it("approx is the same by what was sent there", function()
    local told = pl.fleet { { name = "a", cached = 9, sent = 2, decoding = 1 } }
    assert.same({ 9, 17 }, { pl.cost.approx(req(10), told[1], told),
      pl.cost.approx { prefill_load_scale = 2 } (req(10), told[1], told) })
  end)

  it("backlog is what comes before the first token", function()
    local busy = pl.fleet { { name = "a", prefilling = 7, cached = 3, decoding = 99 } }
    assert.equal(14, pl.cost.backlog(req(10), busy[1]))
  end)

  it("has weights by name, which are checked", function()
    for weights, why in pairs {
      [{ overlap = 1 }] = "pl.cost.kv has no option 'overlap'",
      [{ prefill_load_scal = 1 }] =
        "pl.cost.kv has no option 'prefill_load_scal'; did you mean 'prefill_load_scale'?",
      [{ prefill_load_scale = -1 }] = "pl.cost.kv: prefill_load_scale is '-1'; it wants a number, at least 0",
      [{ prefill_load_scale = "x" }] = "pl.cost.kv: prefill_load_scale is 'x'; it wants a number, at least 0",
    } do
      local ok, said = pcall(pl.cost.kv, weights)
      assert.is_false(ok)
      assert.truthy(said:find(why, 1, true), said)
    end
  end)
end)

describe("pl.pick", function()
  local random, now, drawn, t
  before_each(function()
    random, now, drawn, t = chance.random, chance.now, {}, 0
    chance.random = function() return table.remove(drawn, 1) end
    chance.now = function() return t end
  end)
  after_each(function() chance.random, chance.now = random, now end)

  local fleet = pl.fleet {
    { name = "a", running = 4, cached = 10 },
    { name = "b", running = 1, waiting = 1 },
    { name = "c", waiting = 3 },
  }
  local function pick(fn, r) return fn(r or req(10), fleet).name end

  it("takes them in turn, by chance, or by what they have to do", function()
    assert.equal("a", pick(pl.pick.round_robin))
    drawn = { 0, 0.5, 0.99 }
    assert.equal("a", pick(pl.pick.random))
    assert.equal("b", pick(pl.pick.random))
    assert.equal("c", pick(pl.pick.random))
    assert.equal("b", pick(pl.pick.least_loaded))
    drawn = { 0, 0.99 }                     -- a and c
    assert.equal("c", pick(pl.pick.power_of_two))
    drawn = { 0.5, 0 }                      -- b and a
    assert.equal("b", pick(pl.pick.power_of_two))
    drawn = { 0.5, 0.5 }                    -- b and c
    assert.equal("b", pick(pl.pick.power_of_two))
    assert.equal("x", pl.pick.power_of_two(req(1), pl.fleet { { name = "x" } }).name)
  end)

  it("takes the one that is named, and refuses who names none that there is", function()
    assert.equal("c", pick(pl.pick.direct, { hints = { worker = "c" }, headers = {} }))
    assert.equal("b", pick(pl.pick.direct))
    local by_header = pl.pick.direct { header = "x-w" }
    assert.equal("a", by_header(req(1, { ["x-w"] = "a" }), fleet).name)
    local no = by_header(req(1, { ["x-w"] = "d" }), fleet)
    assert.same({ "reject", 404, "The worker `d` does not exist." }, { no.kind, no.status, no.why })
  end)

  it("takes the cheapest, and of those about as cheap the first", function()
    assert.equal("a", pick(pl.pick.cheapest))
    local costs = { a = 104, b = 100, c = 101 }
    local function cost(_, w) return costs[w.name] end
    assert.equal("a", pick(pl.pick.cheapest { cost = cost }))
    assert.equal("b", pick(pl.pick.cheapest { cost = cost, within = 0 }))
  end)

  it("has requests wait while every worker has too much to read", function()
    local busy = pl.fleet { { name = "a", prefilling = 9, cached = 10 }, { name = "b", prefilling = 4 } }
    local pick_of = pl.pick.unless_busy { prefilling = 4 }
    assert.equal("b", pick_of(req(10), busy).name)
    assert.is_nil(pl.pick.unless_busy { prefilling = 3 } (req(10), busy))
    assert.equal("a", pl.pick.unless_busy(req(10), busy).name)
  end)

  it("keeps a session's worker, for a while", function()
    local sticky = pl.pick.sticky { header = "x-s", ttl = 60, sessions = 2 }
    local first = { ["x-s"] = "1" }
    assert.equal("a", pick(sticky, req(10, first)))
    local later = pl.fleet { { name = "b", cached = 10 }, { name = "a" } }
    assert.equal("a", sticky(req(10, first), later).name)
    t = 59
    assert.equal("a", sticky(req(10, first), later).name)
    t = 120                                 -- 61 s after the last one
    assert.equal("b", sticky(req(10, first), later).name)
    assert.equal("b", sticky(req(10), later).name)     -- of no session
    local without = pl.fleet { { name = "c" } }
    assert.equal("c", sticky(req(10, first), without).name)
    assert.equal("a", pick(pl.pick.sticky))  -- the plain one
  end)

  it("has Dynamo's temperature", function()
    local cold = pl.pick.softmax { temperature = 0 }
    assert.equal("a", pick(cold))
    local warm = pl.pick.softmax { temperature = 1 }     -- costs 0, 10, 10: shares 1, 1/e, 1/e
    local share = 1 / (1 + 2 / math.exp(1))
    drawn = { share - 0.01, share + 0.01, 0.99 }
    assert.equal("a b c", table.concat({ pick(warm), pick(warm), pick(warm) }, " "))
    drawn = { 0.4 }                         -- all alike: each as often
    local even = pl.pick.softmax { cost = function() return 7 end }
    assert.equal("b", pick(even))
  end)

  it("goes with an order of those that wait", function()
    local function of(fn, tokens, priority, tenant)
      return fn { tokens = tokens, tenant = tenant, hints = { priority = priority } }
    end
    t = 100
    local first = of(pl.queue.fcfs, 9)
    t = 101
    assert.is_true(first < of(pl.queue.fcfs, 9))
    assert.is_true(of(pl.queue.fcfs, 9, 5) < first)
    assert.is_true(of(pl.queue.lcfs, 9) > of(pl.queue.lcfs, 9, 1))
    assert.is_true(of(pl.queue.wspt, 10) < of(pl.queue.wspt, 20))
    assert.is_true(of(pl.queue.wspt, 20, 3) < of(pl.queue.wspt, 10))
    local red = {}
    for i = 1, 3 do red[i] = of(pl.queue.tenants, 100, nil, "red") end
    local blue = of(pl.queue.tenants, 100, nil, "blue")
    assert.is_true(red[1] < red[2] and red[2] < red[3])
    assert.is_true(blue <= red[3])          -- not behind all that red has asked for
    assert.is_true(of(pl.queue.tenants, 1, nil, "blue") > blue)
  end)

  it("has options that are checked", function()
    assert.has_error(function() pl.pick.sticky { heder = "x" } end)
    assert.has_error(function() pl.pick.sticky { ttl = "x" } end)
    assert.has_error(function() pl.pick.direct(7) end)
  end)
end)
