-- SPDX-License-Identifier: Apache-2.0
-- Which worker a request goes to: what is known of workers, the hooks, the default.
local acquainted = require "perilune.fleet.acquainted"
local cluster = require "perilune.fleet.cluster"
local decide = require "perilune.fleet.decide"
local flow = require "perilune.flow"
local hook_view = require "perilune.recipe.hook_view"
local line = require "perilune.fleet.line"
local log = require "perilune.log"
local models = require "perilune.fleet.served_models"
local pl = require "perilune.ffi"
local run_by = require "support.virtual_time"
local server_of = require "support.server"
local waits = require "perilune.watch.waits"
local C, ffi = pl.C, pl.ffi

local TERMS = { block_size = 16, hash_algo = "sha256_cbor", hash_seed = "vllm-none-hash",
  max_num_batched_tokens = 512, kv_events = true }

describe("a decision", function()
  local c, served, server, seqs, w

  local function worker(name, o)
    local one = { name = name, served = served, numerics = o and o.numerics or "n" }
    one = c:add(one)
    one.number_in_index = C.pl_route_join(served.index)
    return one
  end

  before_each(function()
    c = cluster.new(nil, {}, nil, function() end)
    served = models.blank({ main = "worker" }, "m")
    served.terms, served.index = TERMS, C.pl_route_open(10000)
    served.naming = models.naming(TERMS)
    server = { cluster = c, waiting = 0,
      recipe = { main = "worker", worker = {}, http = { max_waiting = 1000 } } }
    seqs, w = {}, {}
    for i = 1, 3 do w[i] = worker("w" .. i) end
  end)
  after_each(function()
    for _, seq in ipairs(seqs) do C.pl_seq_close(seq) end
    c:close()
    decide.close { list = { served } }
    C.pl_route_close(served.index)
    C.pl_naming_close(served.naming)
  end)

  -- A choice of a request with that text as tokens, a byte each.
  local function choice_of(text, salt)
    local ids, params = ffi.new("int32_t[?]", #text), ffi.new "pl_params"
    for i = 0, #text - 1 do ids[i] = text:byte(i + 1) end
    C.pl_params_init(params)
    local seq = C.pl_seq_open(ids, #text, params)
    if salt then C.pl_seq_salt(seq, salt, #salt) end
    seqs[#seqs + 1] = seq
    return { full = {}, prompt = { n_tokens = #text },
      seq = tonumber(ffi.cast("uintptr_t", seq)) }
  end

  local job = { id = "r", plan = { n = 1, priority = 0 }, look = function(self, choice, naming, seq)
    return hook_view.new { id = self.name, tokens = choice.prompt.n_tokens, total = choice.prompt.n_tokens,
      block_size = 16, naming = naming, seq = seq, priority = 0 }
  end }

  local function choose(choice, avoid, numerics)
    return decide.choose(server, served, job, choice, avoid, numerics)
  end

  -- The first n blocks of the text are at that worker from now on.
  local function holds(one, text, n)
    local naming = C.pl_naming_open(C.PL_HASH_SHA256_CBOR, TERMS.hash_seed, 16)
    local keys = ffi.new("uint64_t[?]", n)
    local seq = ffi.cast("pl_seq *", choice_of(text).seq)
    assert.equal(n, C.pl_naming_keys(naming, seq, 0, keys, n))
    C.pl_naming_close(naming)
    C.pl_route_store(served.index, one.number_in_index, keys, n)
  end

  local function busy(one, stats)
    local s = ffi.new "pl_engine_stats"
    s.blocks = 1000
    for key, v in pairs(stats) do s[key] = v end
    C.pl_load_report(one.load, s, 0)
  end

  local A, B = ("a"):rep(160), ("b"):rep(160)

  it("goes where the prompt is, and knows how much of it", function()
    holds(w[2], A, 9)
    holds(w[3], A, 4)
    for _ = 1, 6 do
      local choice = choice_of(A .. "x")
      assert.equal(w[2], choose(choice))
      assert.equal(144, choice.n_cached)
    end
    assert.equal(0, (function()
      local choice = choice_of(A, "salt")   -- another's cache
      choose(choice)
      return choice.n_cached
    end)())
  end)

  it("goes elsewhere where that worker has too much to do", function()
    holds(w[2], A, 9)
    busy(w[2], { blocks_used = 130 })       -- 9 blocks are worth 144 in use
    assert.equal(w[2], choose(choice_of(A)))
    busy(w[2], { blocks_used = 150 })
    assert.not_equal(w[2], choose(choice_of(A)))
    busy(w[2], { prefill_tokens = 161 })
    assert.not_equal(w[2], choose(choice_of(A)))
    busy(w[2], {})
    assert.equal(w[2], choose(choice_of(A)))
  end)

  it("knows what was sent where before that worker says so, if it is to", function()
    local function next_two()
      local text = ("%s%d"):format(("n"):rep(64), #seqs):rep(3)
      return choose(choice_of(text .. "x")), choose(choice_of(text .. "y"))
    end
    local a, b = next_two()
    assert.not_equal(a, b)                  -- in turn
    server.recipe.predicted_ttl = 3600
    for _ = 1, 5 do
      a, b = next_two()
      assert.equal(a, b)
    end
    local text = ("gone"):rep(40)
    local first = choose(choice_of(text))
    C.pl_sent_forget(served.sent, first.number)
    first.state = "draining"
    assert.is_truthy(choose(choice_of(text)))
    first.state = "ready"
    decide.close { list = { served } }
    served.decisions = nil
  end)

  it("forgets what was sent after a while", function()
    local sent, columns = C.pl_sent_open(), C.pl_fleet_open()
    local seq = ffi.cast("pl_seq *", choice_of(A).seq)
    local function cached(now)
      C.pl_fleet_clear(columns)
      for i = 0, 1 do C.pl_fleet_add(columns, nil, -1, 0, 70 + i) end
      C.pl_fleet_name(columns, served.naming, seq)
      C.pl_sent_match(sent, columns, columns.cached, now, 100)
      return { columns.cached[0], columns.cached[1] }
    end
    assert.same({ 0, 0 }, cached(0))
    C.pl_sent_add(sent, columns, 1, 0, 100)
    assert.same({ 0, 10 }, cached(0))
    assert.same({ 0, 10 }, cached(99))
    assert.same({ 0, 10 }, cached(100))
    C.pl_sent_add(sent, columns, 0, 150, 100)
    assert.same({ 10, 10 }, cached(160))
    assert.same({ 10, 0 }, cached(250))
    assert.same({ 0, 0 }, cached(350))
    C.pl_sent_add(sent, columns, 0, 360, 100)
    assert.same({ 0, 0 }, cached(10000))
    C.pl_sent_add(sent, columns, 0, 10000, 100)
    C.pl_sent_forget(sent, 70)
    assert.same({ 0, 0 }, cached(10000))
    C.pl_sent_close(sent)
    C.pl_fleet_close(columns)
  end)

  it("knows what it has sent where since a hook asked for that, whatever workers say", function()
    server.recipe.router_ttl_secs = 120
    local first, seen = choose(choice_of(A)), {}
    server.recipe.worker.pick = function(req, fleet)
      for i = 1, #fleet do seen[fleet[i].name] = { fleet[i].sent, fleet[i].cached } end
      return fleet:cheapest(req, require("perilune").cost.approx)
    end
    holds(w[3], A, 10)
    local at = choose(choice_of(A))
    assert.same({ w1 = { 0, 0 }, w2 = { 0, 0 }, w3 = { 0, 10 } }, seen)
    assert.is_truthy(first)
    for _ = 1, 3 do assert.equal(at, choose(choice_of(A))) end
    assert.equal(10, seen[at.name][1])
    server.recipe.worker.pick = function(_, fleet)
      return fleet:sum "sent" == 10 and fleet:min "sent" == 0 and fleet:named(at.name) or nil
    end
    assert.equal(at, choose(choice_of(A)))
  end)

  it("is refused by a hook, and by one who is asked for a worker that never was", function()
    server.recipe.worker.pick = require("perilune").pick.direct { header = "x-to" }
    local to
    local direct = { id = "d", plan = job.plan, look = function(_, choice)
      return hook_view.new { id = "d", tokens = choice.prompt.n_tokens, total = 160, block_size = 16,
        recorded = { ["x-to"] = to } }
    end }
    local function ask(name)
      to = name
      return decide.choose(server, served, direct, choice_of(A))
    end
    assert.equal(w[2], (ask "w2"))
    w[2].state = "draining"                 -- it may be back
    assert.same({ nil, true }, { ask "w2" })
    assert.same({ nil, true }, { ask "w9" })          -- it may not have said hello yet
    served.pool.since = served.pool.since - 6
    local got, waits_for_it, refused = ask "w9"
    assert.same({ nil, false, 404, "The worker `w9` does not exist." },
      { got, waits_for_it, refused.status, refused.message })
    assert.equal("w2", w[2].name)
    acquainted.gone { name = "w8", pool = served.pool }
    assert.is_true(select(2, ask "w8"))
    served.pool.gone:put("w8", flow.now() - 61)
    assert.equal(404, select(3, ask "w8").status)
  end)

  it("remembers what it took to be cached of a choice that begins", function()
    holds(w[2], A, 10)
    local choice = choice_of(A)
    choose(choice)
    assert.equal(9, choice.believed)        -- one token is computed
    local longer = choice_of(A .. "x")
    choose(longer)
    assert.equal(10, longer.believed)
    choose(longer, nil, "n")
    assert.is_nil(longer.believed)
    choose(longer)
    assert.equal(10, longer.believed)
    for _, one in ipairs(w) do one.state = "draining" end
    choose(longer)
    assert.is_nil(longer.believed)
  end)

  it("remembers that of the worker which reads the prompt", function()
    local was, index = served, served.index
    served = models.blank({ main = "decode" }, "two")
    served.terms, served.index, served.naming = TERMS, index, models.naming(TERMS)
    server.recipe = { main = "decode", decode = {}, prefill = {}, http = { max_waiting = 1000 } }
    local taker = worker "taker"
    local reader = c:add { name = "reader", served = served, pool = served.prefill, numerics = "n" }
    reader.number_in_index = C.pl_route_join(index)
    holds(reader, A, 7)
    holds(taker, A, 3)
    local two = { id = "r", plan = { n = 1, priority = 0, prompt_logprobs = -1 }, look = job.look }
    local function believed()
      local choice = choice_of(A)
      choice.prompt.max_tokens = 9
      assert.equal(taker, (decide.choose(server, served, two, choice)))
      return choice.believed, choice.reader
    end
    assert.same({ 7, reader }, { believed() })
    server.recipe.decode.split = function() return false end
    assert.same({ 3 }, { believed() })
    server.recipe.decode.split = nil
    server.recipe.prefill.pick = function(_, fleet)
      reader.numerics = "other"             -- found out too late
      return fleet[1]
    end
    assert.same({ 3 }, { believed() })
    C.pl_naming_close(served.naming)
    decide.close { list = { served } }
    served = was
  end)

  it("uses every worker though all prompts begin alike", function()
    local long = ("p"):rep(16) .. ("q"):rep(16 * 25)
    holds(w[1], long, 1)
    local seen = {}
    for _ = 1, 3 do seen[choose(choice_of(long))] = true end
    assert.is_true(seen[w[1]] and seen[w[2]] and seen[w[3]])
  end)

  it("goes in turn where nothing is known, a model's own turn", function()
    local other = models.blank({ main = "worker" }, "m")
    other.terms = TERMS
    for i = 1, 2 do c:add { name = "o" .. i, served = other, numerics = "n" } end
    local seen = {}
    for _ = 1, 4 do
      seen[choose(choice_of(B))] = true
      seen[decide.choose(server, other, job, choice_of(B))] = true
    end
    for _, one in ipairs(w) do assert.is_true(seen[one]) end
    for _, one in ipairs(other.workers) do assert.is_true(seen[one]) end
  end)

  it("does without names where its workers do not say how they name blocks", function()
    for _, terms in ipairs { { hash_seed = 7 }, { hash_algo = 7 }, { hash_algo = "md5" },
        { hash_seed = {} }, { prefix_caching = false }, { block_size = 2 ^ 40 } } do
      assert.is_nil(models.naming(setmetatable(terms, { __index = TERMS })))
    end
    C.pl_naming_close(served.naming)
    served.naming = nil
    assert.is_truthy(choose(choice_of(A)))
  end)

  it("is between those that may take it", function()
    holds(w[2], A, 10)
    assert.not_equal(w[2], choose(choice_of(A), w[2]))
    local choice = choice_of(A)
    choice.full[w[2]] = true
    assert.not_equal(w[2], choose(choice))
    w[2].state = "draining"
    assert.not_equal(w[2], choose(choice_of(A)))
    w[2].state = "ready"
    cluster.suspect(w[2])
    assert.not_equal(w[2], choose(choice_of(A)))
    w[2].suspect_until = 0
    assert.equal(w[2], choose(choice_of(A)))
    w[3].numerics = "m"                     -- only it goes on with the same bits
    assert.equal(w[3], choose(choice_of(A), nil, "m"))
    assert.not_equal(w[3], choose(choice_of(A), w[3], "m"))
    for _, one in ipairs(w) do one.state = "draining" end
    assert.is_nil(choose(choice_of(A)))
  end)

  it("is the hook's, which sees the eligible alone", function()
    local seen
    server.recipe.worker.pick = function(req, fleet)
      seen = {}
      for i = 1, #fleet do seen[#seen + 1] = fleet[i].name .. " " .. fleet[i].cached end
      table.sort(seen)
      return req.blocks == 10 and fleet:named "w3" or fleet[1]
    end
    holds(w[2], A, 7)
    w[1].state = "draining"
    assert.equal(w[3], choose(choice_of(A)))
    assert.same({ "w2 7", "w3 0" }, seen)
  end)

  it("is the default's where the hook fails", function()
    local said, error_of = {}, log.error
    log.error = function(...) said[#said + 1] = string.format(...) end
    server.recipe.worker.cost = function() error "oh" end
    holds(w[3], A, 10)
    assert.equal(w[3], choose(choice_of(A)))
    log.error = error_of
    assert.equal(1, #said)
    assert.matches("hook worker.cost %(.*decide_spec.lua:%d+%) failed, the default applies", said[1])
  end)

  it("adds up what was sent there and what others have sent", function()
    local view
    server.recipe.worker.pick = function(_, fleet)
      view = {}
      for _, key in ipairs { "prefilling", "decoding", "free", "capacity", "waiting", "running" } do
        view[key] = fleet:named("w1")[key]
      end
    end
    busy(w[1], { prefill_tokens = 100, blocks_used = 40, waiting = 2, running = 3 })
    assert.is_true(select(2, choose(choice_of(A))))
    assert.same({ prefilling = 7, decoding = 40, free = 960, capacity = 1000, waiting = 2,
      running = 3 }, view)
    busy(w[1], { prefill_tokens = -5, blocks_used = -1, waiting = -2 ^ 31, blocks = -1 })
    choose(choice_of(A))
    assert.same({ prefilling = 0, decoding = 0, free = 0, capacity = 0, waiting = 0,
      running = 0 }, view)
    local most = 2 ^ 31 - 1
    busy(w[1], { prefill_tokens = 2 ^ 53, blocks_used = most, waiting = most, running = most })
    choose(choice_of(A))
    assert.is_true(view.decoding > 0 and view.prefilling > 0 and view.free == 0)
  end)

  describe("to wait", function()
    local http, client, x, time, look
    setup(function()
      http = server_of.open()
      client = http:connect "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
      x = http:request()
    end)
    teardown(function()
      C.pl_exchange_release(x)
      client:close()
      http:close()
    end)
    before_each(function()
      time, look, waits.LOOK_SECONDS = 1000, waits.LOOK_SECONDS, 1e9
    end)
    after_each(function() waits.LOOK_SECONDS = look end)

    local function run(fn)
      run_by(function() return time end, function(t) time = t end, fn)
    end

    -- The hook lets so many go, and has the others wait.
    local room
    local function let_nobody_go()
      room = 0
      server.recipe.worker.pick = function(_, fleet)
        if room == 0 then return nil end
        room = room - 1
        return fleet[1]
      end
    end

    local gone
    local function waiter(name, priority)
      local one = setmetatable({ exchange = x, log = { info = function() end }, name = name,
        plan = { n = 1, priority = priority or 0 } }, { __index = job })
      local choice = choice_of(A)
      choice.deadline = time + 10
      flow.spawn(function()
        local got = line.of(server, served):wait(one, choice)
        gone[#gone + 1] = got and name or name .. " gave up"
      end)
      return one
    end

    before_each(function() gone = {} end)
    local function left() return table.concat(gone, " ") end

    it("holds up nobody else, and ends when the hook finds a worker", function()
      local open, asked = {}, 0
      server.recipe.worker.pick = function(req, fleet)
        asked = asked + 1
        return open[req.id] and fleet[1] or nil
      end
      run(function()
        waiter "a"
        waiter "b"
        open.c = true
        waiter "c"
        flow.sleep(0.1)
        assert.equal("c", left())
        assert.equal(2, served.line.n)
        open.b = true
        flow.sleep(0.1)
        assert.equal("c b", left())
        open.a = true
        served.line:room(w[1], 1)
        flow.sleep(0)
        flow.sleep(0)
        assert.equal("c b a", left())
        local n = asked
        flow.sleep(5)
        assert.equal(n, asked)              -- nobody is aside: nobody is asked
      end)
      assert.same({ 0, 0 }, { served.line.n, server.waiting })
    end)

    it("keeps the order of those who came, and of priorities", function()
      let_nobody_go()
      run(function()
        for _, name in ipairs { "1", "2", "3" } do
          waiter(name)
          flow.sleep(0)
        end
        waiter("first", -1)
        flow.sleep(0.1)
        for i = 1, 4 do
          room = 1
          flow.sleep(0.1)
          assert.equal(i, #gone)
        end
      end)
      assert.equal("first 1 2 3", left())
    end)

    it("is in the order of the hook queue, if there is one", function()
      let_nobody_go()
      server.recipe.worker.queue = function(req) return -tonumber(req.id) end
      run(function()
        for _, name in ipairs { "1", "3", "2" } do waiter(name) end
        flow.sleep(0.1)
        for _ = 1, 3 do
          room = 1
          flow.sleep(0.1)
        end
      end)
      assert.equal("3 2 1", left())
    end)

    it("lets a newcomer by only after the first who waits was asked", function()
      let_nobody_go()
      run(function()
        waiter "old"
        flow.sleep(0.015)
        room = 1
        waiter "new"
        flow.sleep(0.001)
        assert.equal("old", left())
        room = 1
        flow.sleep(0.1)
        assert.equal("old new", left())
      end)
    end)

    it("does not go to those alone who are asked first", function()
      local open
      server.recipe.worker.pick = function(req, fleet) return req.id == open and fleet[1] or nil end
      run(function()
        for i = 1, 200 do waiter(tostring(i)) end
        flow.sleep(0.1)
        open = "200"
        flow.sleep(10)
        assert.equal("200", left())
        open = "150"
        flow.sleep(10)
        assert.equal("200 150", left())
      end)
    end)

    it("ends with the request, and after ten minutes", function()
      server.recipe.worker.pick = function() end
      run(function()
        local one = waiter "over"
        waiter "long"
        flow.sleep(0.1)
        one.over = {}
        line.release(one)
        flow.sleep(0.1)
        assert.equal("over gave up", left())
        flow.sleep(500)
        assert.equal(1, #gone)
        flow.sleep(120)
        assert.equal("over gave up long gave up", left())
      end)
      assert.equal(0, served.line.n)
    end)
  end)
end)
