-- SPDX-License-Identifier: Apache-2.0
-- Who waits for a worker: the order, the bound, and what wakes whom. Time is stepped here:
-- how often a task is resumed is counted, how long that takes is not looked at.
local cluster = require "perilune.fleet.cluster"
local flow = require "perilune.flow"
local line = require "perilune.fleet.line"
local models = require "perilune.fleet.served_models"
local pl = require "perilune.ffi"
local run_by = require "support.virtual_time"
local server_of = require "support.server"
local waits = require "perilune.watch.waits"
local C = pl.C

local quiet = { info = function() end }
local MANY = 4000

describe("the line", function()
  local http, clients, x                    -- an exchange whose client is there
  local served, c, server                    -- a model, and who serves it
  local time, n_resumed, resume, look
  local gone                                -- who has left the line, in order

  local function exchange()
    clients[#clients + 1] = http:connect "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    return http:request()
  end

  setup(function()
    http, clients = server_of.open(), {}
    x = exchange()
  end)
  teardown(function()
    C.pl_exchange_release(x)
    for _, client in ipairs(clients) do client:close() end
    http:close()
  end)

  before_each(function()
    served, gone, time, n_resumed = models.blank({ main = "worker" }, "m"), {}, 1000, 0
    c = cluster.new(nil, {}, nil, function() end)
    server = { cluster = c, waiting = 0, recipe = { main = "worker", http = { max_waiting = 2 * MANY } } }
    resume, look = coroutine.resume, waits.LOOK_SECONDS
    waits.LOOK_SECONDS = 1e9                -- one look for all; it is not counted
    coroutine.resume = function(...)        -- luacheck: ignore 122
      n_resumed = n_resumed + 1
      return resume(...)
    end
  end)
  after_each(function()
    coroutine.resume = resume               -- luacheck: ignore 122
    waits.LOOK_SECONDS = look
    c:close()
  end)

  local function worker(state)
    local w = c:add { name = "w", served = served, numerics = "n" }
    w.state = state or w.state
    return w
  end

  -- A task that waits: `o` has name, avoid, full, seconds, begun, priority, exchange, of
  -- (another model), and then(w), what it does with its worker.
  local function waiter(o)
    local full = {}
    for _, w in ipairs(o.full or {}) do full[w] = true end
    local choice = { full = full, deadline = time + (o.seconds or 1e6) }
    local job = { exchange = o.exchange or x, log = quiet,
      plan = { priority = o.priority or 0 } }
    flow.spawn(function()
      local w
      repeat
        w = line.of(server, o.of or served):wait(job, choice, o.avoid, o.begun and "n" or nil)
      until not (w and o.try) or o.try(w, choice)
      gone[#gone + 1] = w and o.name or o.name .. " gave up"
    end)
    return job, choice
  end

  -- Runs fn in a task until it returns; nothing comes from C.
  local function run(fn)
    run_by(function() return time end, function(t) time = t end, fn)
  end

  -- All that is ready now runs, and what that makes ready; no time goes by.
  local function settle()
    local n
    repeat
      n = n_resumed
      flow.sleep(0)
    until n_resumed == n + 1
  end

  local function left() return table.concat(gone, " ") end

  it("is no place to be where a worker is there", function()
    local w, got = worker(), nil
    run(function()
      got = line.of(server, served):wait({ exchange = x }, { full = {}, deadline = time })
    end)
    assert.equal(w, got)
    assert.equal(1, n_resumed)
  end)

  it("lets those go first who came first", function()
    run(function()
      for i = 1, 5 do waiter { name = tostring(i) } end
      settle()
      assert.equal("", left())
      worker()
      waiter { name = "late" }
      settle()
    end)
    assert.equal("1 2 3 4 5 late", left())
    assert.same({ 0, 0 }, { served.line.n, server.waiting })
  end)

  it("has streams that have begun before new requests, and low priorities before high", function()
    run(function()
      for i, o in ipairs { { priority = 1 }, {}, { priority = -3 }, { begun = true, priority = 9 },
          { priority = -3 }, { begun = true } } do
        o.name = tostring(i)
        waiter(o)
      end
      settle()
      worker()
      settle()
    end)
    assert.equal("6 4 3 5 2 1", left())
  end)

  it("is not overtaken by a newcomer that a worker would take, but by a better one", function()
    run(function()
      waiter { name = "1" }
      waiter { name = "2" }
      settle()
      waiter { name = "late" }
      waiter { name = "begun", begun = true }
      worker()                              -- calls the first before those two run
      settle()
    end)
    assert.equal("begun 1 2 late", left())
  end)

  it("keeps the place of one that had to come back", function()
    local a, n = nil, 0
    run(function()
      waiter { name = "1" }
      waiter { name = "2", try = function(w, choice)
        n = n + 1
        if n > 1 then return true end
        choice.full[w], w.state = true, "draining"   -- it had no room, and leaves
      end }
      waiter { name = "3" }
      settle()
      a = worker()
      settle()
      assert.equal("1", left())
      cluster.resume(a)
      settle()
    end)
    assert.equal("1 2 3", left())
    assert.equal(2, n)
  end)

  it("is bounded, over all models", function()
    server.recipe.http.max_waiting = 3
    local other = models.blank({ main = "worker" }, "m")
    run(function()
      waiter { name = "1" }
      waiter { name = "2", of = other }
      waiter { name = "3" }
      settle()
      waiter { name = "4" }
      waiter { name = "5", of = other, begun = true }
      settle()
      assert.equal("4 gave up 5 gave up", left())
      assert.equal(3, server.waiting)
      worker()
      settle()
      waiter { name = "6", of = other }
      settle()
    end)
    assert.equal("4 gave up 5 gave up 1 3", left())
    assert.equal(2, server.waiting)
  end)

  it("is passed by who can go where nobody else can, though it is full", function()
    server.recipe.http.max_waiting = 1
    run(function()
      waiter { name = "1", avoid = worker() }
      settle()
      waiter { name = "2" }
      settle()
    end)
    assert.equal("2", left())
  end)

  it("is left at once by who is cancelled in the middle, and by nobody else", function()
    run(function()
      local jobs = {}
      for i = 1, 5 do jobs[i] = waiter { name = tostring(i) } end
      settle()
      n_resumed = 0
      jobs[3].over = {}
      line.release(jobs[3])
      flow.sleep(0)
      assert.equal("3 gave up", left())
      assert.equal(2, n_resumed)            -- it, and this task
      worker()
      settle()
    end)
    assert.equal("3 gave up 1 2 4 5", left())
  end)

  it("is left by one that is cancelled as it is called, which keeps nobody", function()
    run(function()
      local job = waiter { name = "1" }
      waiter { name = "2" }
      settle()
      worker()                              -- calls it
      job.over = {}
      line.release(job)
      settle()
    end)
    assert.equal("1 gave up 2", left())
  end)

  it("is left by one whose client is gone", function()
    local away = exchange()
    run(function()
      local job = waiter { name = "1", exchange = away }
      waiter { name = "2" }
      settle()
      clients[#clients]:close()
      clients[#clients] = nil
      local kind, id = http:event()
      assert.same({ C.PL_EV_GONE, C.pl_exchange_id(away) }, { kind, id })
      line.release(job)
      settle()
    end)
    assert.equal("1 gave up", left())
    C.pl_exchange_release(away)
  end)

  it("is left in time", function()
    run(function()
      waiter { name = "1", seconds = 7 }
      waiter { name = "2", seconds = 3 }
      waiter { name = "3" }
      flow.sleep(2.9)
      assert.equal("", left())
      flow.sleep(0.2)
      assert.equal("2 gave up", left())
      flow.sleep(4)
    end)
    assert.equal("2 gave up 1 gave up", left())
  end)

  it("costs nothing while nothing happens, however many wait", function()
    run(function()
      for i = 1, MANY do waiter { name = tostring(i), begun = i % 2 == 0 } end
      settle()
      n_resumed = 0
      flow.sleep(1000)
      assert.equal(1, n_resumed)            -- this task
      n_resumed = 0
      worker()
      settle()
      assert.equal(MANY, #gone)
      assert.is_true(n_resumed <= 2 * MANY + 9) -- each once, and this task between
    end)
  end)

  it("wakes no more than can go, where the worker leaves again", function()
    local w
    run(function()
      for i = 1, MANY do
        waiter { name = tostring(i), try = function()
          if i == 10 then w.state = "draining" end
          return true
        end }
      end
      settle()
      n_resumed = 0
      w = worker()
      settle()
    end)
    assert.equal(10, #gone)
    assert.is_true(n_resumed < 30)
  end)

  it("does not stop at one who avoids the only worker", function()
    local a, b
    run(function()
      a = worker "draining"
      for i = 1, MANY do waiter { name = "avoids", avoid = a, begun = true, seconds = 50 + i } end
      waiter { name = "1" }
      settle()
      n_resumed = 0
      cluster.resume(a)
      settle()
      assert.equal("1", left())
      assert.is_true(n_resumed < 9)
      b = worker()
      b.state = "draining"
      settle()
      assert.equal("1", left())
      cluster.resume(b)
      settle()
    end)
    assert.equal(MANY + 1, #gone)
  end)

  it("wakes as many as a worker has room for, of those that found it full", function()
    local w
    local n_free, n_tried = 0, 0
    local function try(_, choice)
      n_tried = n_tried + 1
      if n_free > 0 then
        n_free = n_free - 1
        return true
      end
      choice.full[w] = true
      return false
    end
    run(function()
      w = worker()
      for i = 1, MANY do waiter { name = tostring(i), begun = true, full = { w }, try = try } end
      settle()
      assert.equal("", left())
      n_resumed, n_free = 0, 1
      served.line:room(w, 1)
      settle()
      assert.equal("1", left())
      n_free = 2
      served.line:room(w, 3)                 -- it was less than was said
      settle()
      assert.equal("1 2 3", left())
      assert.equal(4, n_tried)
      assert.is_true(n_resumed < 20)
      w.state = "draining"
      served.line:room(w, 5)
      settle()
      assert.equal(4, n_tried)              -- a worker that takes nobody is not asked
      n_free = MANY
      cluster.resume(w)
      settle()
    end)
    assert.equal(MANY, #gone)
  end)

  it("is told by a worker's counters what room there is", function()
    local w
    run(function()
      w = worker()
      for i = 1, 5 do waiter { name = tostring(i), begun = true, full = { w } } end
      w.counts = { waiting = 8192 }
      flow.spawn(c.watch, c)
      flow.sleep(2.8)                       -- it looks each half second
      assert.equal("", left())
      w.counts.waiting = 8190
      flow.sleep(0.6)
      assert.equal("1 2", left())
      w.counts = nil
      flow.sleep(3)
    end)
    assert.equal("1 2", left())
  end)

  it("waits until a suspect worker is trusted again", function()
    local w
    run(function()
      w = worker()
      for _ = 1, 100 do cluster.suspect(w) end
      waiter { name = "1" }
      flow.sleep(1)
      cluster.suspect(w)                    -- anew
      flow.sleep(1.5)
      assert.equal("", left())
      n_resumed = 0
      flow.sleep(0.6)
      assert.equal("1", left())
      assert.is_true(n_resumed < 9)
    end)
  end)
end)
