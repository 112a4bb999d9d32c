-- SPDX-License-Identifier: Apache-2.0
-- Hooks in a real process: asked, failing, endless, swapped by SIGHUP under load; and
-- overload as a client sees it.

local cjson = require "cjson.safe"
local console = require "support.console"
local hook_fields = require "perilune.recipe.hook_fields"
local locals = require "perilune.tools.local_processes"
local process = require "support.process"
local scratch = require "scratch"
local serving = require "support.serving"

local COMPLETION = "/v1/completions"
local SHORT = { prompt = "hello", max_tokens = 3, ignore_eos = true }

describe("hooks of a process", function()
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
    s = serving.start({ ... }, nil, path)
  end

  local function status(headers) return s:post(COMPLETION, SHORT, headers).status end

  -- How often the log has these words.
  local function said(words)
    local n, at = 0, 1
    while true do
      local from, to = s.process:log():find(words, at, true)
      if not from then return n end
      n, at = n + 1, to + 1
    end
  end

  -- Sends SIGHUP and waits until the log has these words once more.
  local function reload(words)
    local before = said(words)
    s.process:signal "HUP"
    assert.is_truthy(process.wait_for(20, function() return said(words) > before end),
      s.process:log())
  end

  it("turn requests away, and are told of the rest", function()
    start [[
      return { worker = {},
        admit = function(req)
          if req.headers["x-no"] then
            return pl.reject(429, "not " .. req.headers["X-No"], 7)
          end
        end,
        done = function(req, r)
          pl.log.info("done: %s %d %d %s %s", r.worker, r.tokens, req.total - req.tokens,
            r.finish, req.headers["x-team"])
        end }]]
    local r = s:post(COMPLETION, SHORT, { ["X-No"] = "you" })
    assert.equal(429, r.status)
    assert.equal("7", r.headers["retry-after"])
    assert.same({ message = "not you", type = "RateLimitError", param = serving.null,
      code = 429 }, r.json.error)
    assert.equal(200, status { ["X-Team"] = "red" })
    assert.equal(1, s:metric "dynamo_frontend_model_rejection_total")
    assert.is_truthy(s:stop():find("done: worker/0 3 3 length red\n", 1, true))
  end)

  it("are told of results what editors say, no more and no less", function()
    start [[
      local function tell(what, t)
        for key in pairs(t) do pl.log.info("%s has %s.", what, key) end
      end
      return { worker = {}, done = function(_, r)
        tell("Result", r)
        tell("Choice", r.choices[1])
      end }]]
    assert.equal(200, status())
    local log = s:stop()
    for _, class in ipairs { "Result", "Choice" } do
      local listed = {}
      for _, row in ipairs(hook_fields[class]) do
        listed[row[1]] = true
        local there = log:find(("%s has %s."):format(class, row[1]), 1, true)
        assert.is_true(there ~= nil or row[2]:sub(-1) == "?", row[1])
      end
      for key in log:gmatch(class .. " has ([%w_]+)") do assert.is_true(listed[key], key) end
    end
  end)

  it("are swapped when their file is changed: --watch", function()
    start("return { worker = {}, admit = function() return pl.reject(418, 'one') end }", "--watch")
    assert.equal(418, status())
    local function change(text, words, n)
      write(text)
      assert.is_truthy(process.wait_for(20, function() return said(words) == n end), s.process:log())
    end
    change("return { worker = {}, admit = function() return pl.reject(451, 'two') end }", "is read again", 1)
    assert.equal(451, status())
    change("return { worker = {}, admit = function( }", "nothing changed", 1)
    assert.equal(451, status())
    change("return { worker = {} }", "is read again", 2)
    assert.equal(200, status())
    assert.equal(1, said "nothing changed")
  end)

  it("know who asks: by the key, or where there is none by a header", function()
    local text = [[
      return { %s worker = {}, admit = function(req)
        return pl.reject(400, tostring(req.tenant) .. " wants " .. req.n)
      end }]]
    local function tenant(headers)
      return s:post(COMPLETION, SHORT, headers).json.error.message:match "^(.*) wants 1$"
    end
    start(text:format "")
    assert.equal("nil", tenant {})
    assert.equal("blue", tenant { ["X-Tenant-Id"] = "blue" })
    for _, bad in ipairs { "two words", "gr\195\188n", ("x"):rep(257) } do
      assert.equal("nil", tenant { ["X-Tenant-Id"] = bad })
    end
    write(text:format "http = { api_key = { 'first', 'second' } },")
    reload "http.api_key changed"
    local function by_key(key)
      return tenant { Authorization = "Bearer " .. key, ["X-Tenant-Id"] = "blue" }
    end
    local first, second = by_key "first", by_key "second"
    assert.matches("^key%-%x%x%x%x%x%x%x%x$", first)
    assert.matches("^key%-%x%x%x%x%x%x%x%x$", second)
    assert.not_equal(first, second)
    write(text:format "http = { api_key = { 'second', 'first' } },")
    reload "http.api_key changed"
    assert.equal(first, by_key "first")
    assert.is_nil(s:stop():find("first", 1, true))
  end)

  it("limit how many requests of a tenant are under way: docs/hooks.md", function()
    local f = assert(io.open "docs/hooks.md")
    local text = f:read("*a"):match "```lua\n(%-%- limit.lua.-)```"
    f:close()
    path = dir.write("r.lua", text)
    s = serving.start({ "--at-most", "2" }, nil, path)
    local long = { prompt = "x", max_tokens = 1900, ignore_eos = true, stream = true }
    local function tell(of) return { ["X-Tenant-Id"] = of } end
    for _ = 1, 3 do
      local open = {}
      for i = 1, 2 do
        open[i] = s:begin("POST", COMPLETION, long, tell "red")
        open[i].connection:receive(10000)
      end
      reload "is read again"
      assert.equal(429, status(tell "red"))
      assert.equal(200, status(tell "blue"))
      for _, answer in ipairs(open) do answer.connection:close() end
      assert.is_truthy(process.wait_for(10, function()
        return status(tell "red") == 200
      end))
      assert.is_true(s:idle())
    end
    s:stop()
  end)

  it("are set, watched and heard from a console", function()
    local home, env = console.folder()
    s = serving.start({}, env)
    local function type_in(text, name)
      local answer = {}
      local c = locals.connection(home.path .. "/perilune/frontend-0.sock", 10000)
      assert(c:request("POST", "/eval", cjson.encode { text = text, console = name },
        function(piece) answer[#answer + 1] = piece end))
      c:close()
      return cjson.decode(table.concat(answer)).text
    end
    type_in("recipe.admit = function(req) print('asked', req.tokens) return req.nope end", "mine")
    for _ = 1, 3 do assert.equal(200, status()) end
    assert.equal("the hook admit, set here, failed 3 times, the default applies: console:1: "
      .. "req has no 'nope'", type_in("", "mine"))
    assert.equal("", type_in("", "other"))
    assert.is_truthy(type_in("recipe.admit"):find "\n  called 3 times, %S+us each; on probation, 61 ")
    assert.equal(3, said " the hook admit (console:1): asked\t")
    home.remove()
  end)

  it("that fail or do not end let requests in", function()
    start [[
      return { worker = {}, admit = function(req)
        if req.headers["x-fail"] then return req.id() end
        if req.headers["x-loop"] then while true do end end
        return pl.reject(400, "no")
      end }]]
    assert.equal(400, status())
    for _ = 1, 3 do assert.equal(200, status { ["X-Fail"] = "1" }) end
    assert.equal(1, said "r.lua:3: attempt to call")
    assert.equal(400, status())
    assert.equal(200, status { ["X-Loop"] = "1" })
    assert.equal(200, status())
    assert.equal(1, said "hook admit (" and said "is disabled: it took more than")
    assert.equal(4, s:metric "perilune_hook_errors_total")
    write "return { worker = {}, admit = function() return pl.reject(400, 'no') end }"
    reload "is read again"
    assert.equal(400, status())
  end)

  it("are swapped under load, and no request is lost", function()
    local function text(code)
      return ([[
        local seen = pl.keep("seen", { n = 0 })
        return { worker = {}, admit = function(req)
          seen.n = seen.n + 1
          if req.headers["x-ask"] then return pl.reject(%d, "seen " .. seen.n) end
        end }]]):format(code)
    end
    start(text(431))
    local begun = {}
    for round = 1, 10 do
      for i = 1, 8 do
        begun[#begun + 1] = s:begin("POST", COMPLETION, { prompt = "x" .. i, n = 1,
          max_tokens = 600, ignore_eos = true, temperature = 0, stream = i % 2 == 0 })
      end
      if round % 2 == 0 then
        write "return { worker = {}, admit = 5 }"
        reload "r.lua:2: recipe.admit is 5; it wants a function"
      else
        write(text(430 + round))
        reload "admit swapped"
      end
      local r = s:post(COMPLETION, SHORT, { ["X-Ask"] = "1" })
      assert.equal(430 + round - (1 - round % 2), r.status)
    end
    for i, answer in ipairs(begun) do
      answer:finish()
      assert.equal(200, answer.status)
      local last = i % 2 == 1 and answer.json or table.remove(answer:events())
      assert.equal("length", last.choices[1].finish_reason)
    end
    local r = s:post(COMPLETION, SHORT, { ["X-Ask"] = "1" })
    assert.equal("seen " .. #begun + 11, r.json.error.message)
    assert.is_true(s:idle())
    s.process:signal "TERM"
    assert.equal(0, s.process:wait(20))
  end)

  it("leave live options to the file, and name what needs a restart", function()
    start("return { worker = {} }", "--max-logprobs", "3")
    assert.equal(200, s:get("/v1/models").status)
    write "return { http = { api_key = 'k', host = '::1' }, max_logprobs = 9, worker = {} }"
    reload "http.host changed"
    assert.equal(401, s:get("/v1/models").status)
    assert.equal(400, s:post(COMPLETION, { prompt = "x", logprobs = 4 },
      { Authorization = "Bearer k" }).status)
    local log = s:stop()
    assert.is_truthy(log:find("http.api_key changed none -> (secret)", 1, true))
    assert.is_nil(log:find("max_logprobs changed", 1, true))
  end)

  it("give each team its share: examples/fair.lua", function()
    s = serving.start({ "--share", "5" }, nil, "examples/fair.lua")
    local red, blue = { ["X-Team"] = "red" }, { ["X-Team"] = "blue" }
    assert.equal(200, status(red))
    assert.equal(200, status(red))
    reload "is read again"
    local r = s:post(COMPLETION, SHORT, red)
    assert.equal(429, r.status)
    assert.equal("red has had its share", r.json.error.message)
    local again = tonumber(r.headers["retry-after"])
    assert.is_true(again > 0 and again <= 60)
    assert.equal(200, status(blue))
    s:stop()
  end)
end)

describe("a hook that runs for ever once it is trusted", function()
  local dir, s
  before_each(function() dir = scratch.folder() end)
  after_each(function()
    if s then s.process:remove() end
    s = nil
    dir.remove()
  end)

  -- A server whose hook of that name is trusted; it loops for who sends X-Loop.
  local function start(hook)
    s = serving.start({}, nil, dir.write("loops.lua", ([[
      local function hook(req)
        local n = req.headers["x-loop"] and math.huge or 0
        for i = 1, n do n = n + i end
      end
      return { %s = hook, worker = {} }]]):format(hook)))
    for _ = 1, require("perilune.recipe.hooks").PROBATION + 1 do
      assert.equal(200, s:post(COMPLETION, SHORT).status)
    end
  end

  local function await(words)
    assert.is_truthy(process.wait_for(20, function()
      return s.process:log():find(words, 1, true)
    end), s.process:log())
  end

  -- Lua is in the hook, and all else goes on: who asks how it is hears of that.
  local function loops(hook)
    start(hook)
    local running = s:begin("POST", COMPLETION, { prompt = "x", stream = true,
      max_tokens = 300, ignore_eos = true })
    running.connection:receive(10000)
    s:begin("POST", COMPLETION, SHORT, { ["X-Loop"] = "1" })
    local words = ("it is in the hook %s (%s/loops.lua:1)"):format(hook, dir.path)
    await(words)
    assert.matches("WARNING [^\n]*Lua has not polled for [^\n]*%(", s.process:log())
    for _, path in ipairs { "/health", "/live", "/ping" } do
      local r = s:get(path)
      assert.equal(503, r.status)
      assert.equal("unhealthy", r.json.status)
      assert.is_truthy(r.json.message:find(words, 1, true), r.json.message)
    end
    local r = s:request("HEAD", "/health")
    assert.same({ 503, "" }, { r.status, r.text })
  end

  for _, hook in ipairs { "admit", "done" } do
    it("is named, and a second signal ends the process: " .. hook, function()
      loops(hook)
      assert.is_truthy(process.wait_for(20, function()      -- and again, if it goes on
        return select(2, s.process:log():gsub("Lua has not polled", "")) > 1
      end))
      s.process:signal "TERM"
      await "a second signal ends the process"
      s.process:signal(hook == "admit" and "TERM" or "INT")
      assert.equal(128 + 15, s.process:wait(20))
      assert.matches("a second signal ends the process: Lua has not polled[^\n]*loops.lua:1",
        s.process:log())
    end)
  end

  it("is named while the process ends", function()
    start "done"
    s:begin("POST", COMPLETION, { prompt = "x", max_tokens = 1900, ignore_eos = true },
      { ["X-Loop"] = "1" })
    assert.is_truthy(process.wait_for(10, function()
      return s:metric "vllm:num_requests_running" > 0
    end))
    s.process:signal "TERM"
    await "draining: 30 s"
    s.process:signal "TERM"
    await "the hook done"
    assert.equal(128 + 15, s.process:wait(20))
  end)
end)

describe("overload", function()
  local s
  after_each(function()
    if s then s.process:remove() end
    s = nil
  end)

  local function set(threshold, headers)
    return s:post("/busy_threshold", { model = "llama",
      active_decode_blocks_threshold = threshold }, headers)
  end

  it("turns requests away while every worker is busy", function()
    s = serving.start { "--overload-status", "529" }
    assert.equal(200, set(0).status)
    assert.equal(200, s:post(COMPLETION, SHORT).status)
    local long = s:begin("POST", COMPLETION, { prompt = "x", max_tokens = 1900, n = 20,
      temperature = 1, ignore_eos = true })
    assert.is_truthy(process.wait_for(20, function()
      return s:metric "vllm:kv_cache_usage_perc" > 0
    end))
    local r = s:post(COMPLETION, SHORT)
    assert.equal(529, r.status)
    assert.equal("1", r.headers["retry-after"])
    assert.equal("ServiceUnavailableError", r.json.error.type)
    assert.equal(1, s:metric "dynamo_frontend_model_rejection_total")
    assert.equal(200, set(serving.null).status)
    assert.equal(200, s:post(COMPLETION, SHORT).status)
    long.connection:close()
    assert.is_true(s:idle(20))
    s:stop()
  end)

  it("has its thresholds set by who has the key, or by nobody", function()
    s = serving.start { "--api-key", "k" }
    assert.equal(401, set(0.5).status)
    assert.equal(200, set(0.5, { Authorization = "Bearer k" }).status)
    assert.equal(0.5,
      s:get("/busy_threshold").json.thresholds[1].active_decode_blocks_threshold)
    s:stop()
    s = serving.start { "--disable-frontend-admin-api" }
    assert.equal(404, set(0.5).status)
    assert.equal(404, s:get("/busy_threshold").status)
    s:stop()
  end)
end)
