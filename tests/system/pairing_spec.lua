-- SPDX-License-Identifier: Apache-2.0
-- Whatever becomes of a request that `admit` let in, `done` is told of it once: the `done`
-- that stood beside that `admit`.

local console = require "support.console"
local deployment = require "support.deployment"
local locals = require "perilune.tools.local_processes"
local process = require "support.process"
local serving = require "support.serving"

local COMPLETION = "/v1/completions"

-- A recipe whose hooks say in the log who came in and who went out, and that they are of
-- one generation.
local RECIPE = [[
local pl = require "perilune"
local inside = pl.keep("inside", {})
local function admit(req)
  if req.headers["x-no"] then return pl.reject(429, "no") end
  inside[req] = GENERATION
  pl.log.info("in <%%s> %%d", req.id, GENERATION)
  if req.headers["x-fail"] then error "after it was counted" end
end
local function done(req, r)
  assert(inside[req] == GENERATION, "told of another's")
  inside[req] = nil
  pl.log.info("out <%%s> %%d %%s %%d of %%d, %%d tokens", req.id, GENERATION, r.finish,
    #r.choices, req.n, r.tokens)
end
return { admit = admit, done = done, worker = { count = 2 } %s }
]]

describe("each request that is let in", function()
  local dir, env, path, s
  before_each(function() dir, env = console.folder() end)
  after_each(function()
    if s then s.process:remove() end
    s = nil
    dir.remove()
  end)

  local function write(generation, more)
    local text = RECIPE:format(more or ""):gsub("GENERATION", tostring(generation))
    path = dir.write("r.lua", text)
  end

  local function start(...)
    s = serving.start({ "--threads", "1", "--num-gpu-blocks-override", "600", ... }, env, path)
  end

  local function ask(route, body)
    local c = locals.connection(dir.path .. "/perilune/frontend-0.sock", 10000)
    assert(c:request("POST", route, body, function() end))
    c:close()
  end

  -- From the log: id -> generation that let it in, and id -> { generation, how it ended }.
  local function told(log)
    local came, went = {}, {}
    for id, generation in log:gmatch " in <(%S+)> (%d+)\n" do
      assert.is_nil(came[id], id .. " was let in twice")
      came[id] = generation
    end
    for id, generation, how in log:gmatch " out <(%S+)> (%d+) ([^\n]+)\n" do
      assert.is_nil(went[id], id .. " was told twice")
      went[id] = { generation, how }
    end
    return came, went
  end

  -- Ends the process; each that came in has gone out by the same pair. How they ended.
  local function ends_well()
    s.process:signal "TERM"
    assert.equal(0, s.process:wait(30))
    local came, went = told(s.process:log())
    for id, generation in pairs(came) do
      assert.is_truthy(went[id], id .. " was never told of:\n" .. s.process:log())
      assert.equal(generation, went[id][1])
    end
    for id in pairs(went) do assert.is_truthy(came[id], id) end
    assert.is_nil(s.process:log():find("told of another's", 1, true))
    return went, came
  end

  local function long(n, stream)
    return { prompt = "x", max_tokens = 1900, ignore_eos = true, n = n, stream = stream,
      temperature = 1 }
  end

  it("is told once, however it ends, while hooks are swapped", function()
    math.randomseed(20261130)
    write(1)
    start("--drain-timeout", "0")
    local open, n, generation = {}, 0, 1
    local function send(body, headers)
      n = n + 1
      headers = headers or {}
      headers["X-Request-Id"] = "r" .. n
      open[#open + 1] = { id = "r" .. n, answer = s:begin("POST", COMPLETION, body, headers) }
    end
    local short = { prompt = { "a", "b" }, max_tokens = 4, n = 2, temperature = 1 }
    local kinds = {
      function() send(short) end,
      function() send { prompt = "x", max_tokens = 8, stream = true } end,
      function() send(long(math.random(1, 3), math.random() < 0.5)) end,
      function() send(short, { ["X-No"] = "1" }) end,
      function() send(short, { ["X-Fail"] = "1" }) end,
      function() send(long(2), { ["X-Request-Timeout"] = "0.05" }) end,
      function() send { prompt = "x", max_tokens = 0 } end,
      function() send(short, { ["X-Request-Timeout"] = "0.000001" }) end,
      function()                                    -- a client goes
        local at = #open > 0 and math.random(#open)
        if at then table.remove(open, at).answer.connection:close() end
      end,
      function()                                    -- or has it cancelled
        local one = open[math.random(math.max(1, #open))]
        if one then s:post("/v1/cancel/" .. one.id, "") end
      end,
      function() ask(math.random() < 0.5 and "/drain" or "/resume", '{"worker":"worker/1"}') end,
      function()
        generation = generation + 1
        write(generation)
        s.process:signal "HUP"
      end,
    }
    for _ = 1, process.slow and 60 or 300 do
      kinds[math.random(#kinds)]()
      while #open > 24 do table.remove(open, 1).answer.connection:close() end
    end
    assert.equal(200, s:post(COMPLETION, short).status)
    for _ = 1, 6 do send(long(2)) end               -- the process ends under these
    assert.equal(429, s:post(COMPLETION, short, { ["X-No"] = "1" }).status)
    local went, came = ends_well()
    local ways, generations = {}, {}
    for _, entry in pairs(went) do ways[entry[2]:match "%l+"] = true end
    assert.same({ length = true, abort = true }, { length = ways.length, abort = ways.abort })
    for _, g in pairs(came) do generations[g] = true end
    assert.is_truthy(next(generations, next(generations)))
  end)

  it("is told that no worker ever took it", function()
    write(1)
    start("--max-waiting", "0")
    for i = 0, 1 do ask("/drain", ('{"worker":"worker/%d"}'):format(i)) end
    local r = s:post(COMPLETION, long(1), { ["X-Request-Id"] = "nobody" })
    assert.equal(503, r.status)
    assert.equal("refused 0 of 1, 0 tokens", ends_well().nobody[2])
  end)

  it("is told that it was given up while it waited", function()
    write(1)
    start()
    for i = 0, 1 do ask("/drain", ('{"worker":"worker/%d"}'):format(i)) end
    local late = s:begin("POST", COMPLETION, long(2),
      { ["X-Request-Id"] = "late", ["X-Request-Timeout"] = "0.1" })
    local left = s:begin("POST", COMPLETION, long(2), { ["X-Request-Id"] = "left" })
    assert.is_truthy(process.wait_for(10, function()
      return s.process:log():find("in <left>", 1, true)
    end))
    left.connection:close()
    assert.equal(504, late:finish().status)
    assert.is_truthy(process.wait_for(10, function()
      return s.process:log():find("out <left>", 1, true)
    end))
    local went = ends_well()
    assert.equal("refused 0 of 2, 0 tokens", went.late[2])
    assert.equal("abort 0 of 2, 0 tokens", went.left[2])
  end)

  it("is one, with all its choices", function()
    write(1)
    start()
    assert.equal(200, s:post(COMPLETION, { prompt = { "a", "b" }, n = 3, max_tokens = 5,
      ignore_eos = true, temperature = 1 }, { ["X-Request-Id"] = "six" }).status)
    assert.equal("length 6 of 3, 30 tokens", ends_well().six[2])
  end)

  it("is told by a process that ends at once", function()
    write(1)
    start("--drain-timeout", "30")
    for i = 1, 4 do s:begin("POST", COMPLETION, long(1), { ["X-Request-Id"] = "r" .. i }) end
    assert.is_truthy(process.wait_for(10, function()
      return s.process:log():find("in <r4>", 1, true)
    end))
    s.process:signal "TERM"
    assert.is_truthy(process.wait_for(10, function()
      return s.process:log():find("draining: 30 s", 1, true)
    end))
    local went = ends_well()                        -- the second signal
    for i = 1, 4 do assert.equal("abort", went["r" .. i][2]:match "%l+") end
  end)

  it("is told that its worker was lost, and how often it moved", function()
    local f = deployment.start { workers = 2 }
    finally(function() f:remove() end)
    local front = f.frontends[1]
    f.dir.write("recipe.lua", ([[
      local pl = require "perilune"
      return { model = %q, bus = %q, http = { port = 0 }, worker = {},
        admit = function(req) pl.log.info("in <%%s> 1", req.id) end,
        migrate = function(req, lost)
          if req.n == 2 then return pl.fail "not this one" end
          return pl.retry { avoid = lost.name }
        end,
        done = function(req, r)
          pl.log.info("out <%%s> 1 %%s %%d of %%d, %%d moves, %%s", req.id, r.finish, #r.choices,
            req.n, r.moves, r.why)
        end }]]):format(serving.MODEL, f.bus))
    front:signal "HUP"
    front:await "(admit is new)"
    local function begin(id, n)
      return front:begin("POST", COMPLETION, long(n), { ["X-Request-Id"] = id })
    end
    local fails, moves = begin("fails", 2), begin("moves", 1)
    assert.is_truthy(process.wait_for(10, function()
      local running = 0
      for _, w in ipairs(f.workers) do running = running + w:metric "vllm:num_requests_running" end
      return running == 3
    end))
    local lost = { unpack(f.workers) }
    for _, w in ipairs(lost) do w:signal "KILL" end
    for _, w in ipairs(lost) do
      w.process:wait(20)
      f:forget(w)
    end
    f:add_worker()
    assert.equal(503, fails:finish().status)
    assert.equal(200, moves:finish().status)
    local came, went = told(front.process:log())
    assert.same({ fails = "1", moves = "1" }, came)
    assert.equal("error 2 of 2, 0 moves, not this one", went.fails[2])
    assert.matches("^length 1 of 1, [12] moves, nil$", went.moves[2])
    f:close()
  end)

  it("is told to the done that stood there when it was let in", function()
    write(1, ", log_level = 'info'")
    start()
    local function set(text) ask("/eval", ('{"text":"recipe.%s"}'):format(text)) end
    local function begin(id)
      local answer = s:begin("POST", COMPLETION, long(1, true), { ["X-Request-Id"] = id })
      answer.connection:receive(10000)
      return answer
    end
    local first = begin "first"
    set "done = nil"
    local second = begin "second"
    set "admit = nil"
    s:post(COMPLETION, long(1), { ["X-Request-Timeout"] = "0.01" })
    first.connection:close()
    second.connection:close()
    assert.is_true(s:idle(20))
    s.process:signal "TERM"
    assert.equal(0, s.process:wait(20))
    local came, went = told(s.process:log())
    assert.same({ first = "1", second = "1" }, came)
    assert.equal("1", went.first[1])
    assert.is_nil(went.second)
  end)
end)
