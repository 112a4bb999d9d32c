-- SPDX-License-Identifier: Apache-2.0
-- Requests go where a recipe's hooks say: in one process, and over a bus.

local console = require "support.console"
local deployment = require "support.deployment"
local process = require "support.process"
local scratch = require "scratch"
local serving = require "support.serving"

local COMPLETION = "/v1/completions"

-- Says which worker had a request, as the hook done is told.
local DONE = "done = function(req, r) pl.log.info('had %s: %s', tostring(r.worker), req.headers['x-n']) end"

local function short(prompt)
  return { prompt = prompt or "hello", max_tokens = 3, ignore_eos = true }
end

-- The workers that a log names, by the header of their requests.
local function had(log)
  local by = {}
  for worker, n in log:gmatch "had (%S+): (%S+)" do by[n] = worker end
  return by
end

-- Three texts, each asked for four times with another end: where they went, and how much of
-- them was cached there. `settled()` is called after each answer.
local function shared(ask, settled)
  local texts = {}
  for i = 1, 3 do texts[i] = ("%d so it is, and "):format(i):rep(12) end
  for round = 1, 4 do
    for i, text in ipairs(texts) do
      ask(round .. "of" .. i, text .. ("end %d"):format(round))
      settled()
    end
  end
end

local function went_where_it_was_warm(log)
  local by, cached = had(log), {}
  for n, count in log:gmatch "cached (%S+): (%d+)" do cached[n] = tonumber(count) end
  local first = {}
  for i = 1, 3 do
    first[by["1of" .. i]] = true
    assert.equal(0, cached["1of" .. i])
    for round = 2, 4 do
      assert.equal(by["1of" .. i], by[round .. "of" .. i])
      assert.is_true(cached[round .. "of" .. i] >= 48, log)
    end
  end
  return first
end

local TOLD = "done = function(req, r) "
  .. "pl.log.info('had %s: %s', tostring(r.worker), req.headers['x-n']) "
  .. "pl.log.info('cached %s: %d', req.headers['x-n'], r.cached) end"

describe("workers of one process", function()
  local dir, path, s
  setup(function() dir = scratch.folder() end)
  teardown(function() dir.remove() end)
  after_each(function()
    if s then s.process:remove() end
    s = nil
  end)

  local function write(text)
    path = dir.write("r.lua", 'local pl = require "perilune"\n' .. text)
  end

  local function start(text, ...)
    write(text)
    s = serving.start({ "--count", "3", "--threads", "1", ... }, nil, path)
  end

  local function ask(n, headers, prompt)
    local all = { ["X-N"] = tostring(n) }
    for k, v in pairs(headers or {}) do all[k] = v end
    local r = s:post(COMPLETION, short(prompt), all)
    assert.equal(200, r.status, r.text)
  end

  it("are picked by a header", function()
    start("return { worker = { pick = pl.pick.direct { header = 'x-to' } }, " .. DONE .. " }")
    for i, to in ipairs { 2, 0, 1, 2, 2, 0 } do ask(i, { ["X-To"] = "worker/" .. to }) end
    local by = had(s:stop())
    assert.same({ "worker/2", "worker/0", "worker/1", "worker/2", "worker/2", "worker/0" },
      { by["1"], by["2"], by["3"], by["4"], by["5"], by["6"] })
  end)

  it("refuse, count and are found out by what the recipe says", function()
    start([[
      local asked = pl.metric("asked_total", "requests that a worker was sought for")
      local function pick(req, fleet)
        asked:add(1)
        if req.headers["x-no"] then return pl.reject(418, "a teapot") end
        return fleet:named "worker/1"
      end
      return { worker = { pick = pick }, predicted_ttl = 3600 }]], "--num-kv-blocks", "40",
      "--max-model-len", "512")
    local r = s:post(COMPLETION, short(), { ["X-No"] = "1" })
    assert.same({ 418, "a teapot" }, { r.status, r.json.error.message })
    r = s:post(COMPLETION, { prompt = { "a", "b" }, n = 2, max_tokens = 3, stream = true },
      { ["X-No"] = "1" })
    assert.equal(418, r.status)
    assert.equal(2, s:metric "asked_total")
    assert.equal(0, s:metric "perilune_router_missed_blocks_total")
    -- What was sent there is taken to be there; in truth the others have pushed it out.
    local texts = {}
    for i = 1, 3 do texts[i] = ("%d"):format(i):rep(320) end
    for i = 1, 3 do ask(i, nil, texts[i]) end
    assert.equal(0, s:metric "perilune_router_missed_blocks_total")
    ask(4, nil, texts[1])
    assert.is_true(s:metric "perilune_router_missed_blocks_total" > 0)
    local d = s:get "/v1/decisions".json.data[1]
    assert.equal("worker/1", d.worker)
    assert.is_true(d.found < 20)
  end)

  it("are told from each other by what they have to do", function()
    start("local function cost(req, w) return w.decoding + w.prefilling end "
      .. "return { worker = { cost = cost }, " .. DONE .. " }")
    local held = {}
    for i = 1, 2 do
      held[i] = s:begin("POST", COMPLETION, { prompt = ("x"):rep(60), stream = true, max_tokens = 1900,
        ignore_eos = true }, { ["X-N"] = "held" .. i })
      held[i].connection:receive(20000)     -- its first token has come
    end
    for i = 1, 4 do ask(i) end
    local busy = {}
    for i = 1, 2 do held[i].connection:close() end
    assert.is_true(s:idle())
    local by = had(s:stop())
    busy[by.held1], busy[by.held2] = true, true
    for i = 1, 4 do assert.is_nil(busy[by[tostring(i)]]) end
    assert.not_equal(by.held1, by.held2)
  end)

  it("get what they have read before, if nobody says otherwise", function()
    start("return { worker = {}, " .. TOLD .. " }")
    shared(function(n, text) ask(n, nil, text) end, function() assert.is_true(s:idle()) end)
    local log = s:stop()
    local first, n = went_where_it_was_warm(log), 0
    for _ in pairs(first) do n = n + 1 end
    assert.equal(3, n, log)                 -- who knows nothing of it goes in turn
  end)

  it("are chosen for reasons that can be asked", function()
    write("local function cost(req, w) return w.name == req.headers['x-to'] and 0 or 7 end "
      .. "return { worker = { cost = cost } }")
    local c = console.start({ "--count", "3", "--threads", "1", "--api-key", "k" }, path)
    s = c.server
    local r = s:post(COMPLETION, short(), { ["X-To"] = "worker/1", ["X-Request-Id"] = "abc-1",
      Authorization = "Bearer k" })
    assert.equal(200, r.status, r.text)
    assert.equal(401, s:get("/v1/decisions").status)
    for _, where in ipairs { "", "/abc", "/" .. r.json.id } do
      local list = s:get("/v1/decisions" .. where, { Authorization = "Bearer k" }).json.data
      assert.equal(1, #list)
      assert.same({ "abc-1", "worker/1", 3, "llama" },
        { list[1].id, list[1].worker, #list[1].workers, list[1].model })
      for i, cost in ipairs { 7, 0, 7 } do assert.equal(cost, list[1].workers[i].cost) end
    end
    assert.matches("^request abc%-1 .* by worker.cost %([^\n]*r.lua:2%)\n.*worker/1.* 0  <%- taken",
      c:eval 'explain "abc-1"')
    assert.matches("^1 decided again: 1 the same worker, 0 another",
      c:eval 'replay(function(req, w) return w.name == req.headers["x-to"] and 0 or 1 end)')
    assert.matches("1 decided again", c:eval "replay(pl.pick.random)")
    for text, why in pairs {
      ['explain "nobody"'] = "error: no decision about 'nobody'",
      ["replay(function() while true do end end)"] = "error: stopped: it ran for",
    } do
      local code, _, err = c:attach(("-e '%s'"):format(text))
      assert.equal(1, code)
      assert.matches(why, err)
    end
    assert.matches("request  worker .*abc%-1 ", c:eval "decisions()")
    local code, out = c:sh "$PERILUNE explain abc"
    assert.equal(0, code)
    assert.matches("^request abc%-1 .*worker/1.*taken", out)
    c:stop()
    s = nil
  end)

  it("serve on while the hook is swapped under load", function()
    local hooks = {
      "cost = function(req, w) return w.decoding end",
      "cost = pl.cost.kv",
      "pick = pl.pick.round_robin",
      "pick = function(req, fleet) return fleet[1 + #fleet] end",       -- has all wait
      "cost = function() error 'no' end",
      "pick = pl.pick.random",
    }
    local function recipe(i)
      return "return { worker = { " .. hooks[i] .. " }, " .. DONE .. " }"
    end
    start(recipe(1), "--max-num-seqs", "4")
    local begun = {}
    for i = 1, #hooks do
      for _ = 1, 6 do
        begun[#begun + 1] = s:begin("POST", COMPLETION, { prompt = "p" .. #begun, max_tokens = 20,
          ignore_eos = true, stream = #begun % 2 == 0 }, { ["X-N"] = tostring(#begun) })
      end
      if hooks[i + 1] then
        write(recipe(i + 1))
        local before = select(2, s.process:log():gsub("is read again", ""))
        s.process:signal "HUP"
        assert.is_truthy(process.wait_for(20, function()
          return select(2, s.process:log():gsub("is read again", "")) > before
        end), s.process:log())
      end
    end
    for _, one in ipairs(begun) do
      local answer = one:finish()
      assert.equal(200, answer.status, answer.text)
    end
    assert.is_true(s:idle())
    s.process:signal "TERM"
    assert.equal(0, s.process:wait(20))
  end)

  it("are the default's where a hook is of no use, which is counted", function()
    start [[
      local n = 0
      return { worker = { cost = function(req, w)
        n = n + 1
        if n % 2 == 0 then return 0 / 0 end
        while req.headers["x-loop"] do end
        return "none"
      end } }]]
    for i = 1, 4 do ask(i) end
    assert.equal(4, s:metric 'perilune_hook_errors_total')
    ask(5, { ["X-Loop"] = "1" })
    ask(6, { ["X-Loop"] = "1" })
    assert.equal(5, s:metric 'perilune_hook_errors_total')
    local log = s.process:log()
    assert.matches("hook worker.cost %([^\n]*r.lua:3%) failed, the default applies: "
      .. "cost returned 'none'", log)
    assert.matches("hook worker.cost %([^\n]*r.lua:3%) is disabled: it took more than", log)
    s.process:signal "TERM"
    assert.equal(0, s.process:wait(20))
  end)
end)

describe("workers on a bus", function()
  local f
  local dir, env = nil, nil                 -- names are a machine's: here, of this test alone
  before_each(function() dir, env = console.folder() end)
  after_each(function()
    if f then f:remove() end
    f = nil
    dir.remove()
  end)

  it("get what they have read before", function()
    f = deployment.start { workers = 2, worker = { "--threads", "1" }, env = env, fields = TOLD }
    local front, blocks = f.frontends[1], 0
    local function known()
      return tonumber(front:get "/metrics".text:match "\nperilune_kv_index_blocks (%d+)")
    end
    shared(function(n, text)
      local r = front:post(COMPLETION, short(text), { ["X-N"] = n })
      assert.equal(200, r.status, r.text)
      if n:sub(1, 1) ~= "1" then return end
      blocks = blocks + math.floor(r.json.usage.prompt_tokens / 16)
    end, function()
      assert.is_truthy(process.wait_for(20, function() return known() >= blocks end))
    end)
    process.wait_for(20, function() return had(front.process:log())["4of3"] end)
    went_where_it_was_warm(front.process:log())
    f:close()
    f = nil
  end)

  it("are picked by name, waited for if they were there, and otherwise not", function()
    f = deployment.start { workers = 2, worker = { "--threads", "1" }, env = env,
      fields = "worker = { pick = pl.pick.direct { header = 'x-to' } }, " .. DONE }
    local front = f.frontends[1]
    for i, to in ipairs { 1, 0, 1 } do
      local r = front:post(COMPLETION, short(), { ["X-To"] = "worker/" .. to, ["X-N"] = tostring(i) })
      assert.equal(200, r.status, r.text)
    end
    local r = process.wait_for(20, function()         -- while any might still say hello, it waits
      local no = front:post(COMPLETION, short(), { ["X-To"] = "worker/9" })
      return no.status == 404 and no
    end)
    assert.equal("The worker `worker/9` does not exist.", r.json.error.message)
    local one = f.workers[2].process:log():find "attach worker/1" and f.workers[2] or f.workers[1]
    one:signal "KILL"
    one.process:wait(20)
    f:forget(one)
    assert.is_truthy(process.wait_for(20, function()
      return front.process:log():find "worker/1 is not here any more"
    end), front.process:log())
    local waiting = front:begin("POST", COMPLETION, short(), { ["X-To"] = "worker/1", ["X-N"] = "late" })
    r = front:post(COMPLETION, short(), { ["X-N"] = "any" })
    assert.equal(200, r.status)
    f:add_worker()
    assert.equal(200, waiting:finish().status)
    local by = {}
    process.wait_for(20, function()
      by = had(front.process:log())
      return by.late
    end)
    assert.same({ "worker/1", "worker/0", "worker/1", "worker/1" }, { by["1"], by["2"], by["3"], by.late })
    f:close()
    f = nil
  end)
end)
