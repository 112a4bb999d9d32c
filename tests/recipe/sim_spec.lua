-- SPDX-License-Identifier: Apache-2.0
-- perilune sim: traces, what is simulated, and how it is told.
local captured = require "support.captured"
local host = require "perilune.host"
local json = require "cjson.safe"
local line_of = require "perilune.fleet.line"
local report = require "perilune.sim.report"
local resolve = require "perilune.recipe.resolve"
local run = require "perilune.sim.run"
local scratch = require "scratch"
local timing = require "perilune.sim.timing"
local traces = require "perilune.sim.trace"

-- A line of a trace: `ids` of blocks of 512 tokens.
local function line(at, input, output, ids, more)
  return ('{"timestamp": %d, "input_length": %d, "output_length": %d, "hash_ids": [%s]%s}'):format(
    at, input, output, table.concat(ids, ","), more or "")
end

local function slurp(path)
  local file = assert(io.open(path))
  local text = file:read "*a"
  file:close()
  return text
end

-- Conversations that take turns: each turn's prompt is that before and two blocks more.
local function conversations(n, turns, gap_ms)
  local lines, ids, next_id = {}, {}, 1
  for turn = 1, turns do
    for i = 1, n do
      ids[i] = ids[i] or { 0 }
      for _ = 1, 2 do
        ids[i][#ids[i] + 1] = next_id
        next_id = next_id + 1
      end
      lines[#lines + 1] = line((turn * n + i) * gap_ms, 512 * #ids[i], 20, ids[i])
    end
  end
  return table.concat(lines, "\n") .. "\n"
end

describe("a trace", function()
  local dir
  setup(function() dir = scratch.folder() end)
  teardown(function() dir.remove() end)

  local function read(text, most)
    return traces.read(dir.write("t.jsonl", text), most)
  end

  it("is read in the order of its times, which begin at 0", function()
    local t = assert(read(line(3000, 600, 7, { 1, 2 }) .. "\n\n"
      .. line(1000, 512, 1, { 9 }, ', "priority": 3, "session_id": "s", "other": [1]') .. "\n"))
    assert.equal(2, #t)
    assert.same({ 0, 512, 1, 3, "s" }, { t[1].at, t[1].input, t[1].output, t[1].priority,
      t[1].session })
    assert.same({ 2, 600, 7, 0 }, { t[2].at, t[2].input, t[2].output, t[2].priority })
    assert.same({ 607, 600 }, { t.longest, t.longest_input })
    assert.equal(1, #assert(read(line(1, 5, 5, { 1 }) .. "\n" .. "rubbish", 1)))
  end)

  it("says which line is wrong, and why", function()
    local good = line(0, 10, 10, { 1 }) .. "\n"
    for bad, why in pairs {
      ["{"] = "t.jsonl:2: ", ["[1]"] = "t.jsonl:2: timestamp must be milliseconds",
      ["7"] = "is not a JSON object",
      [line(-1, 10, 10, { 1 })] = "timestamp must be milliseconds",
      [line(0, 0, 10, { 1 })] = "input_length must be 1 to",
      [line(0, 10, 0, { 1 })] = "output_length must be 1 to",
      [line(0, 1e9, 1, { 1 })] = "input_length must be 1 to",
      [line(0, 513, 1, { 1 })] = "hash_ids must be a list of one number for each 512",
      [line(0, 10, 1, { 1, 2 })] = "hash_ids must be a list of one number for each 512",
      [line(0, 10, 1, { -1 })] = "hash_ids must be whole numbers",
      [line(0, 10, 1, { 1.5 })] = "hash_ids must be whole numbers",
      [line(0, 10, 1, { 1 }, ', "block_size": 0')] = "block_size must be a count",
      [line(0, 10, 1, { 1 }, ', "priority": "high"')] = "priority must be a whole number",
      [line(0, 10, 1, { '"x"' })] = "hash_ids must be whole numbers",
    } do
      local t, said = read(good .. bad)
      assert.is_nil(t, bad)
      assert.truthy(said:find(why, 1, true), said)
    end
    assert.truthy(select(2, read ""):find("no requests", 1, true))
    assert.is_nil((traces.read(dir.path .. "/none")))
  end)

  it("names equal blocks equally, of every size that fits", function()
    local t = assert(read(line(0, 1200, 1, { 5, 6, 7 }) .. "\n" .. line(1, 1200, 1, { 5, 8, 9 })
      .. "\n" .. line(2, 1000, 1, { 5, 6 })))
    local function list(i, size)
      local keys, n = traces.keys(t[i], size)
      local out = {}
      for k = 1, n do out[k] = tostring(keys[k - 1]) end
      return out
    end
    for _, size in ipairs { 16, 64, 512 } do
      local a, b, c = list(1, size), list(2, size), list(3, size)
      assert.same({ math.floor(1200 / size), math.floor(1000 / size) }, { #a, #c })
      local per, seen = 512 / size, {}
      for k = 1, #a do
        assert.equal(k <= per, a[k] == b[k])
        assert.is_nil(seen[a[k]])
        seen[a[k]] = true
      end
      for k = 1, #c do assert.equal(a[k], c[k]) end
    end
    assert.same({ 1, 1 }, { #list(1, 1024), #list(2, 1024) })
    assert.equal(list(1, 1024)[1] == list(2, 1024)[1], false)
    local none, why = traces.keys(t[1], 48)
    assert.is_nil(none)
    assert.truthy(why:find("blocks of 48 tokens, but those of the trace have 512", 1, true))
  end)
end)

describe("a timing", function()
  it("is a name or a file of ms", function()
    local dir = scratch.folder()
    local path = dir.write("t.json", '{"decode": 2.5, "prefill_token": 0.01}')
    local t = assert(timing.open(path))
    assert.same({ 2.5e6, 1e4, 0 }, { t.decode, t.prefill_token, t.prefill })
    assert.near(5.74e6, timing.open("dynamo").decode, 1)
    for text, why in pairs {
      ["{"] = "t.json: ", ["[]7"] = "t.json: ", ['{"decoded": 1}'] = "did you mean 'decode'?",
      ['{"decode": "1"}'] = "'decode' must be a number of ms",
      ['{"decode": 1e300}'] = "'decode' must be a number of ms",
    } do
      dir.write("t.json", text)
      local none, said = timing.open(path)
      assert.is_nil(none)
      assert.truthy(said:find(why, 1, true), said)
    end
    assert.truthy(select(2, timing.open "x"):find("neither 'dynamo' nor a file", 1, true))
    dir.remove()
  end)
end)

describe("a simulation", function()
  local dir, steps
  setup(function() dir, steps = scratch.folder(), assert(timing.open "dynamo") end)
  teardown(function() dir.remove() end)

  local function simulate(trace, source, o, ...)
    local recipe = assert(resolve.resolve(dir.write("r.lua", source),
      { "--block-size", "64", ... }))
    o = o or {}
    o.timing = o.timing or steps
    local text = dir.write("t.jsonl", trace)
    return assert(run(recipe, assert(traces.read(text)), o))
  end

  local KV = 'local pl = require "perilune" return { worker = { cost = pl.cost.kv } }'
  local TURNS = 'local pl = require "perilune" return { worker = { pick = pl.pick.round_robin } }'

  it("takes for one request what the timing says", function()
    local f = simulate(line(500, 8192, 3, { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 }),
      "return { worker = {} }", {}, "--max-num-batched-tokens", "8192")
    assert.near(169.1369, f.ttft_ms.mean, 1e-3)
    assert.same({ 1, 0, 0 }, { f.requests, f.refused, f.reuse })
    assert.is_true(f.itl_ms.mean > 5.74 and f.itl_ms.mean < 6.2)
  end)

  it("asks the recipe's hooks: what is warm is found, and round robin finds less", function()
    local trace = conversations(9, 8, 60)
    local kv, turns = simulate(trace, KV, { workers = 4 }), simulate(trace, TURNS, { workers = 4 })
    assert.same({ 72, 72 }, { kv.requests, turns.requests })
    assert.is_true(kv.reuse > 0.45, kv.reuse)
    assert.is_true(kv.reuse > 1.3 * turns.reuse, turns.reuse)
    assert.is_true(kv.ttft_ms.mean < turns.ttft_ms.mean)
    assert.is_true(kv.busiest_share >= 0.25 and kv.busiest_share < 0.6, kv.busiest_share)
  end)

  it("is the same by the same seed, and pl.random() and pl.now() are its own", function()
    local source = [[
      local pl = require "perilune"
      local function pick(_, fleet)
        if pl.now() > 1e4 then error "this clock is not the simulation's" end
        return fleet[1 + math.floor(pl.random() * #fleet)]
      end
      return { worker = { pick = pick } }]]
    local trace = conversations(5, 6, 300)
    local function told(seed)
      return report.json { { policy = "p", figures = simulate(trace, source,
        { workers = 4, seed = seed }) } }
    end
    assert.equal(told(1), told(1))
    assert.not_equal(told(1), told(2))
  end)

  it("brings requests sooner at a higher speed, and counts those that fit nowhere", function()
    local trace = conversations(6, 4, 400)
    local slow, fast = simulate(trace, KV, { speed = 1 }), simulate(trace, KV, { speed = 8 })
    assert.is_true(fast.seconds < slow.seconds)
    assert.is_true(fast.ttft_ms.mean > slow.ttft_ms.mean)
    local f = simulate(line(0, 5000, 9, { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }) .. "\n"
      .. line(9, 100, 9, { 1 }), KV, {}, "--num-kv-blocks", "20")
    assert.same({ 1, 1 }, { f.requests, f.refused })
  end)

  it("reads prompts in one pool and goes on in another, when their blocks are across", function()
    local t = assert(traces.read(dir.write("one.jsonl", line(0, 1024, 3, { 1, 2 }))))
    local taken = assert(timing.open(dir.write("taken.json",
      '{"prefill": 100, "decode": 10, "transfer": 5, "transfer_block": 0.25}')))
    local function at(text)
      local r = assert(resolve.resolve(dir.write("two.lua", text), {}))
      local f = assert(run(r, t, { timing = taken }))
      return f.ttft_ms.mean, f.itl_ms.mean * 2, f.reuse
    end
    -- 64 blocks of 16; then the prompt's last token again, and two more.
    local first, gaps = at "return { prefill = {}, decode = {} }"
    assert.near(200, first, 0.01)            -- 512 tokens a step
    assert.near(8 + 30, gaps, 0.01)          -- the beginning and half of them crossed meanwhile
    first, gaps = at "return { prefill = {}, decode = { split = function() return false end } }"
    assert.near(200, first, 0.01)
    assert.near(20, gaps, 0.01)
  end)

  it("loses no request between two pools, and is the same each time", function()
    local t = assert(traces.read(dir.write("many.jsonl", conversations(6, 5, 5))))
    local r = assert(resolve.resolve("disagg_router", { "--decode.num-kv-blocks", "600",
      "--prefill.num-kv-blocks", "600" }))
    local taken = assert(timing.open "dynamo")
    local a = assert(run(r, t, { timing = taken }))
    assert.same({ 30, 0, 4 }, { a.requests, a.refused, a.workers })
    assert.is_true(a.reuse > 0.3)
    assert.same(a.ttft, assert(run(r, t, { timing = taken })).ttft)
  end)

  it("tells done what became of each, also where nobody took it", function()
    local f = simulate(line(0, 64, 5, { 1 }) .. "\n" .. line(5000, 64, 5, { 1 }) .. "\n"
      .. line(9000, 64, 5, { 2 }), [[
      local pl = require "perilune"
      local told = {}
      local function done(req, r)
        told[#told + 1] = ("%s %s %s %d %d %s"):format(req.id, r.worker, r.finish, r.tokens,
          req.total, r.itl and r.ttft > 0 and r.itl > 0 and #r.choices == 1)
      end
      local function pick(req, fleet) if req.id ~= "3" then return fleet[1] end end
      local function admit(req)
        if req.id == "2" then
          assert(told[1] == "1 worker/0 length 5 69 true", told[1])
          return pl.reject(429, "seen")
        end
      end
      return { admit = admit, done = done, worker = { pick = pick } }]])
    assert.same({ 1, 2 }, { f.requests, f.refused })
    assert.is_true(f.seconds > 600 and f.seconds < 700)     -- the third waited its ten minutes
  end)

  it("ends with an error of our own, instead of waiting for ever", function()
    local of = line_of.of
    line_of.of = function() error "broken" end
    local errors = captured(function()
      local recipe = assert(resolve.resolve("agg", { "--block-size", "64" }))
      local trace = assert(traces.read(dir.write("t.jsonl", line(0, 10, 1, { 1 }))))
      local none, why = run(recipe, trace, { timing = steps })
      assert.is_nil(none)
      assert.truthy(why:find("broken", 1, true), why)
    end)
    line_of.of = of
    assert.truthy(errors:find("broken", 1, true))
  end)

  it("collects what hooks count, each run by itself", function()
    local source = [[
      local pl = require "perilune"
      local n = pl.metric("t_runs_total", "requests that were asked about")
      local wait = pl.metric("t_runs_ttft_seconds", "time to the first token", { 1 })
      local function done(_, r) wait:observe(r.ttft) end
      return { worker = {}, admit = function() n:add(1) end, done = done }]]
    local f = simulate(conversations(2, 3, 300), source)
    assert.equal(6, f.metrics.t_runs_total)
    assert.equal(6, simulate(conversations(2, 3, 300), source).metrics.t_runs_total)
    assert.equal(6, f.metrics.t_runs_ttft_seconds.count)
    assert.near(f.ttft_ms.mean * 6e-3, f.metrics.t_runs_ttft_seconds.sum, 1e-6)
    local lines = report.metrics { { policy = "p", figures = f } }
    assert.equal("p  t_runs_total  6", lines[1])
    assert.matches("^p  t_runs_ttft_seconds  mean 0.0%d+ of 6$", lines[2])
    local told = json.decode(report.json { { policy = "p", figures = f } }).metrics
    assert.same({ 6, 6 }, { told.t_runs_total, told.t_runs_ttft_seconds.count })
    assert.same({}, simulate(conversations(2, 3, 300), KV).metrics)
  end)

  -- One request at a time: nobody ever has anything to do, and a policy that only asks where
  -- most is cached sends all to the worker that was first to read how all prompts begin.
  -- Dynamo's does, unless it has a temperature.
  local list = io.popen(("cd '%s/recipes' && ls policies/*.lua"):format(host.root))
  for file in list:lines() do
    it("uses every worker, however little there is to do: " .. file, function()
      local lines = {}
      for i = 1, 60 do
        local ids = { 0 }
        for k = 1, 23 do ids[k + 1] = 100 * i + k end
        lines[i] = line(20000 * i, 24 * 512, 4, ids)
      end
      local flags = file:find "dynamo" and { "--temperature", "0.5" } or {}
      local f = simulate(table.concat(lines, "\n"), ([[
        local pl = require "perilune"
        local n = {}
        for i = 0, 3 do n["worker/" .. i] = pl.metric("t_worker_" .. i .. "_total", "requests") end
        return pl.extend(%q, { done = function(_, result) n[result.worker]:add(1) end })]]):format(
          host.root .. "/recipes/" .. file), { workers = 4 }, unpack(flags))
      assert.equal(60, f.requests)
      for i = 0, 3 do assert.is_truthy(f.metrics[("t_worker_%d_total"):format(i)], i) end
    end)
  end
  list:close()

  it("lets a request wait for whom a hook wants, and asks admit", function()
    local f = simulate(conversations(4, 3, 10), [[
      local pl = require "perilune"
      local function pick(_, fleet)
        for i = 1, #fleet do
          if fleet[i].running + fleet[i].waiting == 0 then return fleet[i] end
        end
      end
      local function admit(req) if req.id == "3" then return pl.reject(429, "no") end end
      return { admit = admit, worker = { pick = pick } }]], { workers = 2 })
    assert.same({ 11, 1 }, { f.requests, f.refused })
  end)
end)

describe("perilune sim", function()
  local dir
  setup(function()
    dir = scratch.folder()
    dir.write("t.jsonl", conversations(4, 4, 300))
    dir.write("policies/kv.lua",
      'local pl = require "perilune" return { worker = { count = 2, cost = pl.cost.kv } }')
    dir.write("policies/turns.lua",
      'local pl = require "perilune" return { worker = { count = 2, pick = pl.pick.round_robin } }')
    dir.write("own.lua", [[
      local pl = require "perilune"
      local opt = pl.args { { "overlap", 1.0, "weight" } }
      local function cost(req, w) return opt.overlap * (req.blocks - w.cached) + w.decoding end
      return { worker = { count = 2, cost = cost } }]])
  end)
  teardown(function() dir.remove() end)

  local function sim(words)
    return scratch.sh(("cd '%s' && %s sim %s"):format(dir.path, scratch.program, words))
  end

  it("prints a table, and one object as its last line", function()
    local code, out = sim("own.lua --trace t.jsonl --workers 3 --block-size 64 --json")
    assert.equal(0, code)
    assert.truthy(out:find("16 requests of t.jsonl at speed 1; 3 workers", 1, true), out)
    assert.truthy(out:find("\npolicy +requests +reuse +ttft mean"), out)
    local o = json.decode(out:match "([^\n]*)\n$")
    assert.same({ "own", 16, 0 }, { o.policy, o.requests, o.refused })
    for _, key in ipairs { "reuse", "output_tokens_per_s", "busiest_share" } do
      assert.is_number(o[key], key)
    end
    for _, key in ipairs { "mean", "p50", "p99" } do
      assert.is_number(o.ttft_ms[key])
      assert.is_number(o.itl_ms[key])
    end
  end)

  it("compares a folder of policies, and writes CSV and a page", function()
    local code, out = sim("--policies policies --trace t.jsonl --block-size 64 --json "
      .. "--csv o.csv --html o.html")
    assert.equal(0, code)
    local list = json.decode(out:match "([^\n]*)\n$")
    assert.same({ "kv", "turns" }, { list[1].policy, list[2].policy })
    local csv = slurp(dir.path .. "/o.csv")
    assert.truthy(csv:find("^policy,requests,"))
    assert.truthy(csv:find("\nkv,16,0,"))
    local html = slurp(dir.path .. "/o.html")
    assert.truthy(html:find("<!DOCTYPE html>", 1, true))
    assert.truthy(html:find("<svg", 1, true))
    assert.is_nil(html:find "%$%a+")          -- all of the template is filled in
    assert.is_nil(html:find "https?://")      -- it needs nothing else
  end)

  it("sweeps an option", function()
    local code, out = sim("own.lua --trace t.jsonl --block-size 64 --sweep overlap=0,1 --json")
    assert.equal(0, code)
    local list = json.decode(out:match "([^\n]*)\n$")
    assert.same({ "own overlap=0", "own overlap=1" }, { list[1].policy, list[2].policy })
    assert.is_true(list[2].reuse > list[1].reuse)
  end)

  it("says what is wrong with its words", function()
    for words, wanted in pairs {
      [""] = { 2, "sim needs --trace FILE" },
      ["--trace t.jsonl"] = { 2, "sim needs a recipe, or --policies" },
      ["own.lua --trace none.jsonl"] = { 2, "none.jsonl" },
      ["own.lua --trace t.jsonl --sped 2"] = { 2, "no option '--sped'" },
      ["own.lua --trace t.jsonl --workers 0"] = { 2, "'--workers'" },
      ["own.lua --trace t.jsonl --block-size 48"] = { 2, "one must be a multiple of the other" },
      ["own.lua --trace t.jsonl --sweep overlap"] = { 2, "--sweep wants an option and values" },
      ["own.lua --trace t.jsonl --timing x"] = { 2, "neither 'dynamo' nor a file" },
      ["gone.lua --trace t.jsonl"] = { 2, "no recipe 'gone.lua'" },
      ["--policies nowhere --trace t.jsonl"] = { 2, "'nowhere' has no recipes in it" },
      ["own.lua --trace t.jsonl --html /no/where"] = { 2, "/no/where" },
    } do
      local code, _, err = sim(words)
      assert.same({ words, wanted[1] }, { words, code })
      assert.truthy(err:find(wanted[2], 1, true), err)
    end
    assert.equal(0, (sim "--help"))
  end)
end)
