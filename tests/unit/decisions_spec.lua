-- SPDX-License-Identifier: Apache-2.0
-- Past decisions: kept, found, explained, and taken again.
local chance = require "perilune.recipe.chance"
local console = require "perilune.console.decisions"
local decisions = require "perilune.fleet.decisions"
local fleet_view = require "perilune.recipe.fleet_view"
local memory = require "perilune.recipe.memory"
local pl = require "perilune.ffi"
local public = require "perilune"
local replay = require "perilune.fleet.replay"
local run = require "perilune.console.run"
local C = pl.C

local TERMS = { block_size = 16 }

describe("decisions", function()
  local served, models, view, process

  before_each(function()
    served = { key = "m", terms = TERMS }
    served.pool = { served = served }
    models = { list = { served } }
    process = { server = { models = models } }
    view = fleet_view.new()
    for i = 0, 2 do decisions.know { number = 9000 + i, name = "w" .. i } end
  end)
  after_each(function()
    C.pl_decisions_close(served.decisions)
    view:close()
  end)

  -- One between three workers that hold so much of a prompt of ten blocks.
  local function note(id, row, cached, o)
    view:begin()
    for i = 0, 2 do
      view:add(nil, -1, 0, 9000 + i, "w" .. i)
      view.columns.cached[i] = cached[i + 1]
    end
    local facts = o and o.headers and { read = o.headers, total = 160, moves = 0 }
    decisions.note(served.pool, view, row, "worker.cost (r.lua:1)",
      { id = id, plan = { n = 1, priority = 0 }, facts = facts },
      { prompt = { n_tokens = 160, max_tokens = 5 } })
  end

  local function ids(list)
    local out = {}
    for i, one in ipairs(list) do out[i] = one.id end
    return table.concat(out, " ")
  end

  it("are kept, the last thousand, as they were", function()
    assert.same({}, decisions.last(models))
    note("first", 1, { 1, 2, 3 })
    note("second", 0, { 4, 5, 6 })
    assert.equal("second first", ids(decisions.last(models)))
    assert.equal("second", ids(decisions.last(models, 1)))
    local d = decisions.plain(decisions.find(models, "first")[1])
    assert.equal("w1", d.worker)
    assert.same({ 1, 2, 3 }, { d.workers[1].cached, d.workers[2].cached, d.workers[3].cached })
    assert.same({ 160, 10, "m", "worker.cost (r.lua:1)" }, { d.tokens, d.blocks, d.model, d.by })
    for i = 1, 1000 do note("n" .. i, 0, { 0, 0, 0 }) end
    local list = decisions.last(models)
    assert.equal(1000, #list)
    assert.equal("n1", list[1000].id)
    assert.same({}, decisions.find(models, "first"))
  end)

  it("are fewer where there are many workers", function()
    view:begin()
    for i = 1, 8000 do view:add(nil, -1, 0, i, "x") end
    for i = 1, 60 do
      decisions.note(served.pool, view, 0, "x", { id = "i" .. i, plan = { n = 1, priority = 0 } },
        { prompt = { n_tokens = 1 } })
    end
    local n = #decisions.last(models)
    assert.is_true(n > 20 and n < 60, n)
  end)

  it("are found by how an id begins, also that of an answer", function()
    note("abc-1", 0, { 0, 0, 0 })
    note("abd-2", 0, { 0, 0, 0 })
    note(("x"):rep(200), 0, { 0, 0, 0 })
    assert.equal("abc-1", ids(decisions.find(models, "abc")))
    assert.equal("abd-2 abc-1", ids(decisions.find(models, "ab")))
    assert.equal("abc-1", ids(decisions.find(models, "chatcmpl-abc-1")))
    assert.equal("abd-2", ids(decisions.find(models, "cmpl-abd-2")))
    assert.equal(1, #decisions.find(models, ("x"):rep(200)))
    assert.same({}, decisions.find(models, "zz"))
  end)

  it("are explained", function()
    note("r1", 2, { 1, 2, 10 })
    view.columns.cost[0], view.columns.cost[1], view.columns.cost[2] = 9, math.huge, 0.123456
    decisions.note(served.pool, view, 2, "worker.cost (r.lua:1)",
      { id = "r2", plan = { n = 1, priority = 0 } },
      { prompt = { n_tokens = 160 } })
    local text = tostring(console.explain(process, "r2"))
    assert.matches("^request r2   160 tokens, 10 blocks   by worker.cost %(r.lua:1%)\n", text)
    assert.matches("\n  w2 +10 .* 0.1235  <%- taken\n  w0 +1 .* 9\n  w1 +2 .* inf$", text)
    assert.equal(text, tostring(console.explain(process)))
    assert.matches(" %-  <%- taken", tostring(console.explain(process, "r1")))
    assert.has_error(function() console.explain(process, "r3") end)
    assert.matches("r2 +w2 +10 +10 ", tostring(console.list(process)))
    assert.has_error(function() console.explain({}, "r1") end)
  end)

  it("that made one wait say so", function()
    note("late", -1, { 0, 0, 0 })
    assert.matches("it had to wait", tostring(console.explain(process, "late")))
    assert.is_nil(decisions.plain(decisions.last(models)[1]).worker)
  end)

  local function again(kind, fn)
    local last
    local ok, r = pcall(replay.run, models, kind, fn, {}, function(f) last = f end)
    last()
    assert(ok, r)
    return r
  end

  it("that refused one say so", function()
    note("no", -2, { 0, 0, 0 })
    assert.matches("refused", tostring(console.explain(process, "no")))
    assert.matches("no +refused", tostring(console.list(process)))
    assert.is_true(decisions.plain(decisions.last(models)[1]).refused)
  end)

  it("are told what was cached indeed", function()
    local function found(believed, n_cached)
      view:begin()
      view:add(nil, -1, 0, 9001, "w1")
      view.columns.cached[0] = 9
      local choice = { prompt = { n_tokens = 160 }, believed = believed }
      choice.decision = decisions.note(served.pool, view, 0, "x",
        { id = "f", plan = { n = 1, priority = 0 } }, choice)
      return decisions.found(served, choice, n_cached)
    end
    assert.equal(0, found(9, 144))
    assert.is_nil(tostring(console.explain(process)):find "had")
    assert.equal(0, found(9, 160))
    assert.equal(7, found(9, 32))
    assert.matches("   w1 had 2 blocks cached, not 9\n", tostring(console.explain(process)))
    assert.equal(2, decisions.plain(decisions.last(models)[1]).found)
    assert.is_nil(found(nil, 0))
    assert.is_nil(decisions.plain(decisions.last(models)[1]).found)
  end)

  it("are taken again with what the recipe keeps and counts as it was", function()
    for i = 1, 4 do note("r" .. i, 0, { 0, 0, 0 }) end
    local kept, last = { ["pl.queue.tenants"] = { clock = 1, ends = public.lru(3) } }, nil
    kept.other = {}                         -- too much to be put back, but not fn's
    for i = 1, 1e6 do kept.other[i] = i end
    local count = { name = "x" }
    local function cost(req)
      count.n = (count.n or 0) + 1
      return public.queue.tenants(req)
    end
    assert(pcall(replay.run, models, "cost", cost, kept, function(f) last = f end))
    assert.is_true(kept["pl.queue.tenants"].clock > 1)
    last()
    assert.equal(1, kept["pl.queue.tenants"].clock)
    assert.is_nil(kept["pl.queue.tenants"].ends:get "")
    assert.is_nil(count.n)
  end)

  it("would be refused by some", function()
    note("r", 0, { 0, 0, 0 })
    local r = again("pick", function() return public.reject(503, "no") end)
    assert.same({ 1, 0, 0 }, { r.refused, r.decided, r.errors })
    r = again("pick", public.pick.direct { header = "x-to" })
    assert.same({ 0, 1 }, { r.refused, r.decided })
    local typed_in = function() return public.reject(503, "no") end
    assert.equal(1, again("cost", typed_in).refused)
  end)

  -- replay(...) as it is typed into a console, which ends what that began.
  local function typed(...)
    local ok, r = run.run(function() return false end, console.replay, process, ...)
    assert(ok, r)
    return r
  end

  it("are taken again, and compared", function()
    for i = 1, 10 do note("r" .. i, i % 2, { 2, 4, 8 }) end
    local r = again("cost", function(req, w) return req.blocks - w.cached end)
    assert.same({ 10, 0, 0, 0 }, { r.decided, r.same, r.waits, r.errors })
    assert.same({ hits = 0.3, busiest = 0.5 }, r.before)
    assert.same({ hits = 0.8, busiest = 1 }, r.after)
    r = again("pick", function(req, fleet)
      if req.id == "r3" then return nil end
      if req.id == "r4" then error "oh" end
      if req.id == "r5" then return 7 end
      return fleet:named "w0"
    end)
    assert.same({ 7, 4, 1, 2 }, { r.decided, r.same, r.waits, r.errors })
    assert.matches("oh$", r.error)
    assert.matches("7 decided again: 4 the same worker, 3 another, 1 would wait\n",
      tostring(typed(function(req, fleet)
        if req.id == "r3" then return nil end
        return req.id ~= "r4" and req.id ~= "r5" and fleet:named "w0" or error "oh"
      end, "pick")))
    assert.matches("prefix hits", tostring(typed(public.pick.least_loaded)))
    assert.has_error(function() console.replay(process, 5) end)
    assert.has_error(function() console.replay(process, function() end, "admit") end)
  end)

  it("are taken again with the headers that were asked for, and their own clock and dice", function()
    for i = 1, 4 do note("r" .. i, 0, { 0, 0, 0 }, { headers = { ["x-s"] = "w" .. i % 2 } }) end
    local now, random = chance.now, chance.random
    local outside, touched = {}, false      -- a module is none of its memories
    package.loaded["decisions_spec.out"] = outside
    local function pick(req, fleet)
      local out = package.loaded["decisions_spec.out"]
      touched = true
      table.insert(out, { req.headers["X-S"] .. tostring(req.headers.other), public.random(), public.now() })
      return fleet:named(req.headers["x-s"])
    end
    local r
    local function all(k)
      for i = #outside, 1, -1 do outside[i] = nil end
      r = again("pick", pick)
      local list = {}
      for i, one in ipairs(outside) do list[i] = one[k] end
      return list
    end
    local seen1, dice1, times1 = all(1), all(2), all(3)
    assert.same(dice1, all(2))
    package.loaded["decisions_spec.out"] = nil
    assert.same({ "w1nil", "w0nil", "w1nil", "w0nil" }, seen1)
    assert.equal(4, #dice1)
    assert.equal(2, r.same)
    assert.is_false(touched)
    assert.is_true(times1[1] > 1e9 and times1[4] >= times1[1])
    assert.same({ now, random }, { chance.now, chance.random })
  end)

  it("leave no trace in what a function remembers", function()
    note("r", 0, { 0, 0, 0 }, { headers = { ["x-s"] = "a" } })
    local n, kept = 0, { list = { 1, 2 }, deep = setmetatable({}, { __index = { x = 1 } }) }
    local seats = public.lru(10)
    seats:put("k", "v")
    local restore = memory.keep(function() return n, kept, seats end)
    n, kept.list[3], kept.new, kept.deep.y = 5, 3, {}, 1
    kept.list[1] = nil
    getmetatable(kept.deep).__index.x = 2
    seats:put("k2", "v2")
    restore()
    assert.equal(0, n)
    assert.same({ 1, 2 }, kept.list)
    assert.is_nil(kept.new)
    assert.is_nil(rawget(kept.deep, "y"))
    assert.equal(1, kept.deep.x)
    assert.equal("v", seats:get "k")
    assert.is_nil(seats:get "k2")
    local sticky = public.pick.sticky { header = "x-s" }
    local first = again("pick", sticky)
    assert.same(first, again("pick", sticky))
  end)
end)
