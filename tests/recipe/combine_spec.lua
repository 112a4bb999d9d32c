-- SPDX-License-Identifier: Apache-2.0
-- Policies made of others, what they remember, and what recipes count: pl.mix,
-- pl.cost.blend, pl.metric, and the memory of pl.pick.sticky and pl.queue.tenants.
local fleet_view = require "perilune.recipe.fleet_view"
local hook_view = require "perilune.recipe.hook_view"
local hooks = require "perilune.recipe.hooks"
local live = require "perilune.recipe.live"
local log = require "perilune.log"
local metric = require "perilune.recipe.metric"
local pl = require "perilune"
local recipe = require "perilune.recipe.resolve"
local scratch = require "scratch"
local C = require("perilune.ffi").C

local dir
setup(function() dir = scratch.folder() end)
teardown(function() dir.remove() end)

-- A server with this recipe, and its file.
local function server(text, name)
  local path = dir.write(name or "r.lua", 'local pl = require "perilune"\n' .. text)
  local r, problems = recipe.resolve(path, {}, function() end)
  return { recipe = assert(r, problems and problems[1].text) }, path
end

local function why_not(text)
  local path = dir.write("bad.lua", 'local pl = require "perilune"\n' .. text)
  local r, problems = recipe.resolve(path, {}, function() end)
  assert.is_nil(r)
  return (problems[1].text:gsub("^.*/", ""))
end

local function req(id, facts)
  local all = { id = id, tokens = 320, total = 320, block_size = 16, moves = 0, priority = 0, recorded = {} }
  for key, v in pairs(facts or {}) do all[key] = v end
  return hook_view.new(all)
end

describe("pl.mix", function()
  it("gives each hook its share of the requests, and a request the same one each time", function()
    local mixed = pl.mix { { 3, function() return "a" end }, { 1, function() return "b" end },
      { 0, function() return "never" end } }
    local n = { a = 0, b = 0, never = 0 }
    for i = 1, 4000 do
      local one = req("id-" .. i)
      local got = mixed(one)
      n[got] = n[got] + 1
      mixed(req("another" .. i))
      assert.equal(got, mixed(one))
    end
    assert.equal(0, n.never)
    assert.is_true(math.abs(n.a / 4000 - 0.75) < 0.03, n.a)
  end)

  it("hands on what it is given, whatever kind of hook it is", function()
    local last
    local function keep(...) last = { ... } return 5 end
    local one = req "x"
    assert.equal(5, pl.mix { { 1, keep } }(one, "w", "fleet"))
    assert.same({ one, "w", "fleet" }, last)
  end)

  it("puts a request in the same arm of all mixes with these shares", function()
    local function one() return 1 end
    local function two() return 2 end
    local function arms() return pl.mix { { 0.3, one }, { 0.7, two } } end
    local cost, done = arms(), arms()
    for i = 1, 200 do assert.equal(cost(req("r" .. i)), done(req("r" .. i))) end
  end)

  it("wants shares and hooks", function()
    for _, bad in ipairs { "{}", "7", "{ { 0, print } }", "{ { -1, print } }", "{ { 0 / 0, print } }",
        "{ { 1 / 0, print } }", "{ { 1 } }", "{ print }", "{ { 1, {} } }" } do
      assert.matches("^bad.lua:2: pl.mix: ", why_not("local m = pl.mix " .. (bad == "7" and "(7)" or bad)
        .. " return { worker = { cost = m } }"))
    end
  end)
end)

describe("pl.cost.blend", function()
  local fleet = pl.fleet { { name = "a", decoding = 3, prefilling = 100 } }
  local function decoding(_, w) return w.decoding end
  local function prefilling(_, w) return w.prefilling end

  it("adds costs, each with its weight", function()
    assert.equal(3 + 50, pl.cost.blend { { 1, decoding }, { 0.5, prefilling } }(req "r", fleet[1], fleet))
    local function never() return math.huge end
    assert.equal(3, pl.cost.blend { { 0, never }, { 1, decoding } }(req "r", fleet[1], fleet))
    assert.equal(math.huge, pl.cost.blend { { 2, never }, { 1, decoding } }(req "r", fleet[1], fleet))
  end)

  it("leaves it to who asks what is no number", function()
    local s = server("local function no() return pl.reject(418, 'no') end "
      .. "return { worker = { cost = pl.cost.blend { { 1, no } } } }")
    local view = fleet_view.new()
    view:begin()
    view:add(nil, -1, 0, 0, "w")
    local row, _, refused = hooks.choose(s, "worker", req "r", view)
    assert.same({ -2, 418, "no" }, { row, refused.status, refused.message })
    view:close()
  end)

  it("wants weights and costs", function()
    for _, bad in ipairs { "{}", "{ { 1 } }", "{ pl.cost.kv }", "{ { 0, pl.cost.kv } }",
        "{ { 0 / 0, pl.cost.kv } }" } do
      assert.matches("^bad.lua:2: pl.cost.blend: ",
        why_not("local c = pl.cost.blend " .. bad .. " return { worker = { cost = c } }"))
    end
  end)
end)

describe("what a hook remembers", function()
  local view
  before_each(function() view = fleet_view.new() end)
  after_each(function() view:close() end)

  -- Where a session's request goes between these workers, the first of which is cheapest.
  local function place(s, session, ...)
    view:begin()
    for i, name in ipairs { ... } do view:add(nil, -1, 0, i, name) end
    local one = req("r", { recorded = { ["x-s"] = session }, hints = { session = session } })
    return view.names[hooks.choose(s, "worker", one, view) + 1]
  end

  for _, pick in ipairs { "pl.pick.sticky", "pl.pick.sticky { header = 'x-s' }" } do
    it("is a recipe's own, and there after a reload: " .. pick, function()
      local text = "return { worker = { pick = " .. pick .. " } }"
      local s, path = server(text)
      local other = server(text, "other.lua")
      assert.equal("a", place(s, "me", "a", "b"))
      assert.equal("b", place(other, "me", "b", "a"))
      assert.equal("a", place(s, "me", "b", "a"))
      assert.equal("b", place(other, "me", "a", "b"))
      local f = io.open(path, "a")
      f:write "-- changed\n"
      f:close()
      assert.is_true(live.reload(s))
      assert.equal("a", place(s, "me", "b", "a"))
    end)
  end

  for _, pick in ipairs { "pl.pick.sticky", "pl.pick.sticky { header = 'x-s' }" } do
    it("is each pool's own: " .. pick, function()
      local s = server("local pick = " .. pick
        .. " return { prefill = { pick = pick }, decode = { pick = pick } }")
      local function of(pool, ...)
        view:begin()
        for i, name in ipairs { ... } do view:add(nil, -1, 0, i, name) end
        local one = req("r", { recorded = { ["x-s"] = "me" }, hints = { session = "me" } })
        return view.names[hooks.choose(s, pool, one, view) + 1]
      end
      assert.same({ "p1", "d1" }, { of("prefill", "p1", "p2"), of("decode", "d1", "d2") })
      assert.same({ "p1", "d1" }, { of("prefill", "p2", "p1"), of("decode", "d2", "d1") })
    end)
  end

  it("is each hook's own where a recipe makes several", function()
    local s = server("local one, two = pl.pick.sticky { header = 'x-s' }, pl.pick.sticky { header = 'x-s' }\n"
      .. "return { worker = { pick = function(req, fleet) if #fleet == 2 then return one(req, fleet) end "
      .. "return two(req, fleet) end } }")
    assert.equal("a", place(s, "me", "a", "b"))
    assert.equal("c", place(s, "me", "c", "b", "a"))
    assert.equal("a", place(s, "me", "b", "a"))
  end)

  it("is a recipe's own: pl.queue.tenants", function()
    local text = "return { worker = { queue = pl.queue.tenants } }"
    local s, path = server(text)
    local other = server(text, "other.lua")
    local function rank(of, tenant) return hooks.rank(of, "worker", req("r", { tenant = tenant })) end
    assert.same({ 0, 320, 640 }, { rank(s, "a"), rank(s, "a"), rank(s, "a") })
    assert.equal(0, rank(other, "a"))
    dir.write("r.lua", 'local pl = require "perilune"\n-- changed\n' .. text)
    assert.equal(path, s.recipe.file)
    assert.is_true(live.reload(s))
    assert.equal(960, rank(s, "a"))
  end)
end)

describe("pl.metric", function()
  local info, error_of
  before_each(function()
    info, error_of = log.info, log.error
    log.info, log.error = function() end, function() end
  end)
  after_each(function() log.info, log.error = info, error_of end)

  -- A server whose recipe counts in `done`.
  local function counting(text, done)
    local s = server(text .. "\nreturn { worker = {}, done = function(req, result) " .. done .. " end }")
    metric.open(recipe.metrics(s.recipe))
    return s
  end
  local function tell(s) hooks.tell(s, s.recipe.done, req "r", { tokens = 7 }) end

  local function value(kind, name, buckets)
    return C.pl_metric_value(C.pl_metric_open(kind, name, "", "", buckets, 0))
  end

  it("counts at /metrics, and goes on after a reload", function()
    local s = counting("local n, g, h = pl.metric('t_one_total', 'one'), pl.metric('t_level', 'two'), "
      .. "pl.metric('t_size', 'three', { 1, 10 })",
      "n:add() n:add(2) g:set(5) g:add(-1) h:observe(result.tokens)")
    local rendered = require("perilune.watch.metrics").new {}
    assert.matches("# HELP t_one_total one\n# TYPE t_one_total counter\nt_one_total 0.0\n", rendered:render())
    tell(s)
    local text = rendered:render()
    assert.matches("\nt_one_total 3.0\n", text)
    assert.matches("\nt_level 4.0\n", text)
    assert.matches('\nt_size_bucket{le="10.0"} 1.0\n', text)
    assert.is_true(live.reload(s))
    metric.open(recipe.metrics(s.recipe))
    tell(s)
    assert.equal(6, value(C.PL_COUNTER, "t_one_total"))
    local about = hooks.about(s.recipe, "done")
    assert.equal(0, about.errors, about.error)
  end)

  it("is collected where what hooks are asked about is not so", function()
    local s = counting("local n, h = pl.metric('t_sim_total', 'x'), pl.metric('t_sim_size', 'x', { 1 })",
      "n:add(2) h:observe(3)")
    local found = {}
    local was = metric.collect(found)
    tell(s)
    tell(s)
    metric.collect(was)
    assert.same({ t_sim_total = 4, t_sim_size = { count = 2, sum = 6 } }, found)
    assert.equal(0, value(C.PL_COUNTER, "t_sim_total"))
  end)

  it("refuses bad names, kinds and values, where they are written", function()
    for text, why in pairs {
      ["'a b', 'x'"] = "'a b' is no name; it wants letters, digits and _",
      ["'', 'x'"] = "'' is no name",
      ["('x'):rep(200), 'x'"] = "x' is no name",
      ["7, 'x'"] = "'7' is no name",
      ["'perilune_x', 'x'"] = "'perilune_x' is reserved",
      ["'vllm_x', 'x'"] = "'vllm_x' is reserved",
      ["'x_bucket', 'x'"] = "'x_bucket' is reserved",
      ["'x'"] = "'x' wants a line of help",
      ["'x', 'a\\nb'"] = "'x' wants a line of help",
      ["'x', 'y', {}"] = "buckets of 'x' want 1 to 64 numbers",
      ["'x', 'y', { 2, 1 }"] = "buckets of 'x' want rising numbers",
      ["'x', 'y', { 0 / 0 }"] = "buckets of 'x' want rising numbers",
      ["'x_total', 'y', { 1 }"] = "'x_total' wants buckets as a list",
    } do
      local said = why_not("local m = pl.metric(" .. text .. ") return { worker = {} }")
      assert.is_truthy(said:find("^bad.lua:2: pl.metric: ") and said:find(why, 1, true), said)
    end
    assert.matches("'x' is declared twice", why_not("for _ = 1, 2 do local m = pl.metric('x', 'x') end"))
    assert.matches("more than 64 metrics", why_not("for i = 1, 65 do local m = pl.metric('x' .. i, 'x') end"))
    assert.has_error(function() pl.metric("x", "x") end, "pl.metric: only while a recipe is loaded")
    local s = counting("local n = pl.metric('t_bad_total', 'x')", "n:add(-1)")
    tell(s)
    assert.matches("r.lua:%d+: metric t_bad_total: '%-1' is no number, at least 0",
      hooks.about(s.recipe, "done").error)
    s = counting("local n = pl.metric('t_bad_total', 'x')", "n:set(1)")
    tell(s)
    assert.matches("a counter has no 'set'; it has :add", hooks.about(s.recipe, "done").error)
  end)

  it("keeps the kind that it had when the process began", function()
    counting("local n = pl.metric('t_kind', 'x')", "")
    assert.matches("'t_kind' was a gauge when this process began",
      why_not "local n = pl.metric('t_kind', 'x', { 1 })")
  end)
end)
