-- SPDX-License-Identifier: Apache-2.0
-- How hooks are asked, and what happens when they do not answer as they should.
local fleet_view = require "perilune.recipe.fleet_view"
local hooks = require "perilune.recipe.hooks"
local help = require "perilune.console.manual"
local hook_help = require "perilune.recipe.hook_help"
local hook_view = require "perilune.recipe.hook_view"
local live = require "perilune.recipe.live"
local log = require "perilune.log"
local metrics_rows = require "perilune.watch.metrics_rows"
local pl = require "perilune.ffi"
local public = require "perilune"
local recipe = require "perilune.recipe.resolve"
local schema = require "perilune.recipe.schema"
local scratch = require "scratch"
local C, ffi = pl.C, pl.ffi

local LOST = { name = "worker/1", reason = "gone", numerics = "x" }

-- A request of 20 prompt tokens, but for what the test says.
local function req(more)
  local facts = { id = "r1", model = "m", tokens = 20, total = 20, max_tokens = 7,
    stream = true, priority = 3, moves = 0, block_size = 16 }
  for key, value in pairs(more or {}) do facts[key] = value end
  return hook_view.new(facts)
end

-- So many workers that may be chosen.
local function workers(n)
  local view = fleet_view.new()
  view:begin()
  for i = 1, n do view:add(nil, -1, 0, 0, "worker/" .. i - 1) end
  return view
end

local function errors(hook)
  return C.pl_metric_value(C.pl_metric_open(C.PL_COUNTER, metrics_rows.hook[1][2],
    ('hook="%s"'):format(hook), metrics_rows.hook[1][3], nil, 0))
end

describe("a hook", function()
  local dir, said, kept
  setup(function()
    dir, kept = scratch.folder(),
      { error = log.error, warning = log.warning, info = log.info }
    for level in pairs(kept) do
      log[level] = function(text, ...) said[#said + 1] = level .. ": " .. text:format(...) end
    end
  end)
  teardown(function()
    dir.remove()
    for level, fn in pairs(kept) do log[level] = fn end
  end)
  before_each(function() said = {} end)

  -- A server with the recipe that has this body before its last `return`.
  local function server(fields, body, ...)
    local path = dir.write("r.lua", ('local pl = require "perilune"\n%s\nreturn { %s, '
      .. "worker = {} }"):format(body or "", fields))
    return { recipe = assert(recipe.resolve(path, { ... }, function() end)) }
  end

  local function said_once(...)
    assert.equal(1, #said, table.concat(said, "\n"))
    for _, words in ipairs { ... } do
      assert.is_truthy(said[1]:find(words, 1, true), said[1])
    end
  end

  it("need not be there: requests come in, and move as often as the limit says", function()
    local s = server "migration_limit = 2"
    assert.is_nil(hooks.ask(s, "admit", req()))
    assert.same({ avoid = "worker/1", after = 0 },
                hooks.ask(s, "migrate", req { moves = 1 }, LOST))
    assert.same({ fail = "Worker worker/1 was lost (gone); migration limit exhausted" },
                hooks.ask(s, "migrate", req { moves = 2 }, LOST))
    assert.is_nil(hooks.tell(s, s.recipe.done or function() end, req(), {}))
    s = server "migration_limit = 2, migration_max_seq_len = 30"
    assert.is_truthy(hooks.ask(s, "migrate", req { total = 30 }, LOST).avoid)
    local answer = hooks.ask(s, "migrate", req { total = 31 }, LOST)
    assert.is_true(answer.too_long)
    assert.matches("31 tokens are more than migration_max_seq_len %(30%)$", answer.fail)
  end)

  -- Whether LuaJIT compiles a loop of a thousand calls of fn: one trace, all of it. What is
  -- compiled when depends on what was hot before, so it gets a few loops to try.
  local function compiles(fn)
    local found, loop = false, nil
    local began = {}
    local function on_trace(what, trace, func, _, parent)
      if what == "start" then began[trace] = not parent and func end
      found = found or what == "stop" and began[trace] == loop
        and require("jit.util").traceinfo(trace).linktype == "loop"
    end
    jit.attach(on_trace, "trace")
    for _ = 1, 20 do
      jit.flush()    -- also forgets what LuaJIT has given up compiling
      loop = loadstring "local fn = ... for _ = 1, 1000 do fn() end"
      loop(fn)
      if found then break end
    end
    jit.attach(on_trace)
    return found
  end

  it("that is trusted is compiled, and what asks it too", function()
    for name, body in pairs {
      admit = "function(req) if req.tokens > 30 then return pl.reject(429, 'long') end end",
      migrate = "function(req, lost) if req.moves > 3 then return pl.fail 'far' end return pl.retry() end",
    } do
      local s, view = server(name .. " = hook", "local hook = " .. body), req()
      local function ask() hooks.ask(s, name, view, LOST) end
      for _ = 0, hooks.PROBATION do ask() end
      assert.is_true(compiles(ask), name)
    end
    assert.is_false(compiles(function() string.dump(function() end) end))   -- nothing compiles this
  end)

  -- A server whose pool has this hook.
  local function pool(hook, body)
    local path = dir.write("r.lua", ('local pl = require "perilune"\n%s\nreturn { '
      .. "worker = { %s = %s } }"):format(body, hook, hook))
    return { recipe = assert(recipe.resolve(path, {}, function() end)) }
  end

  it("of a pool is compiled once it is trusted, with all that asks it", function()
    for hook, body in pairs {
      cost = "local function cost(req, w) return 2 * (req.blocks - w.cached) + w.decoding end",
      pick = "local function pick(req, fleet) return fleet:cheapest(req, pl.cost.kv) end",
    } do
      local s, view, fleet = pool(hook, body), req(), workers(1)
      local function ask() return hooks.choose(s, "worker", view, fleet) end
      for _ = 0, hooks.PROBATION do ask() end
      assert.is_true(compiles(ask), hook)
      fleet = workers(64)
      assert.equal(0, ask())
      fleet.columns.cached[7] = 1
      assert.equal(7, ask())
    end
  end)

  it("of a pool chooses a worker, or has the request wait", function()
    local s = pool("cost", "local function cost(req, w) return w.name == 'worker/1' and 1 or 2 end")
    assert.equal(1, hooks.choose(s, "worker", req(), workers(3)))
    s = pool("cost", "local function cost() return 1 / 0 end")
    assert.equal(-1, hooks.choose(s, "worker", req(), workers(3)))
    s = pool("pick", "local function is(w) return w.name == 'worker/2' end "
      .. "local function pick(req, fleet) return fleet:filter(is)[1] end")
    assert.equal(2, hooks.choose(s, "worker", req(), workers(3)))
    s = pool("pick", "local function pick() end")
    assert.equal(-1, hooks.choose(s, "worker", req(), workers(3)))
    assert.is_nil(hooks.choose(server "migration_limit = 1", "worker", req(), workers(3)))
    assert.same({}, said)
  end)

  it("of a pool refuses a request, also by the cost that a pick asks about", function()
    local function refused(s)
      local row, by, no = hooks.choose(s, "worker", req(), workers(3))
      assert.equal(-2, row)
      assert.matches("^worker.%a+ %(", by)
      return no
    end
    assert.same({ status = 404, message = "who?", headers = "Retry-After: 2\r\n" },
      refused(pool("pick", "local function pick() return pl.reject(404, 'who?', 1.5) end")))
    local cost = "local function dear(_, w) return w.name == 'worker/1' and pl.reject(503, 'dear') or 1 end "
    assert.same({ status = 503, message = "dear" }, refused(pool("cost", cost .. "local cost = dear")))
    assert.same({ status = 503, message = "dear" }, refused(pool("pick", cost
      .. "local function pick(req, fleet) return fleet:cheapest(req, dear).name.x end")))
    local s = pool("pick", "local function pick() return pl.retry() end")
    assert.is_nil(hooks.choose(s, "worker", req(), workers(1)))
    said_once "it returned"
    local ok, no = pcall(function()         -- as a test of a recipe sees it
      public.fleet { { name = "a" } }:cheapest(req(), function() return public.reject(503, "dear") end)
    end)
    assert.same({ false, "pl.reject(dear)" }, { ok, tostring(no) })
  end)

  it("of a pool that gives no answer of use leaves it to the default", function()
    for body, why in pairs {
      ["cost = function() return 0 / 0 end"] = "cost returned nan for worker/0; wanted a number",
      ["cost = function() end"] = "cost returned nil for worker/0; wanted a number",
      ["cost = function() return '1' end"] = "cost returned '1' for worker/0; wanted a number",
      ["cost = function(req, w) return w.cache end"] = "w has no 'cache'; did you mean 'cached'?",
      ["cost = function(req, w) return req.block end"] = "req has no 'block'",
      ["cost = function(req, w) w.cached = 1 return 1 end"] = "w is read-only; 'cached' assigned",
      ["cost = function() error { 1 } end"] = "failed",
      ["pick = function(req, fleet) return 1 end"] =
        "it returned 1; wanted a worker of this fleet, or nil to wait",
      ["pick = function() return pl.fleet { { name = 'worker/0' } }[1] end"] =
        "wanted a worker of this fleet, or nil to wait",
      ["pick = function(req, fleet) return fleet end"] = "wanted a worker of this fleet, or nil to wait",
      ["pick = function(req, fleet) return fleet[1].name.x.y end"] = "r.lua:2: attempt to index field 'x'",
    } do
      local name = body:match "^%a+"
      local s, before = pool(name, "local " .. body), errors("worker." .. name)
      assert.is_nil(hooks.choose(s, "worker", req(), workers(2)), body)
      said_once("error: hook worker." .. name .. " (", "r.lua:2) failed, the default applies: ", why)
      assert.equal(before + 1, errors("worker." .. name))
      said = {}
    end
  end)

  it("of a pool that remembers a worker of another decision is told so", function()
    local s = pool("pick", "local last local function pick(req, fleet) "
      .. "local w = last or fleet[1] last = w return w end")
    local view = workers(2)
    assert.equal(0, hooks.choose(s, "worker", req(), view))
    view:begin()
    view:add(nil, -1, 0, 0, "other")
    assert.is_nil(hooks.choose(s, "worker", req(), view))
    said_once("it returned worker of an earlier decision; wanted a worker of this fleet")
  end)

  it("of a pool that does not end is stopped, and never asked again", function()
    for body, where in pairs {
      ["cost(req, w) while w do end end"] = "r.lua:2",
      ["pick(req, fleet) repeat until false end"] = "r.lua:2",
    } do
      local name = body:match "^%a+"
      local s = pool(name, "local function " .. body)
      for _ = 1, 3 do assert.is_nil(hooks.choose(s, "worker", req(), workers(2))) end
      said_once("warning: hook worker." .. name, "is disabled: it took more than", where)
      assert.equal("disabled", hooks.about(s.recipe, "worker." .. name).standing)
      said = {}
    end
  end)

  it("of a pool sees what the request's blocks fall to", function()
    local s = pool("pick", "local function pick(req, fleet) return fleet[req:bucket(2, #fleet)] end")
    local naming = C.pl_naming_open(C.PL_HASH_SHA256_CBOR, nil, 16)
    local function row(text, k)
      local ids, params = ffi.new("int32_t[?]", #text), ffi.new "pl_params"
      for i = 0, #text - 1 do ids[i] = text:byte(i + 1) end
      C.pl_params_init(params)
      local seq = C.pl_seq_open(ids, #text, params)
      local r = hooks.choose(s, "worker",
        req { tokens = #text, seq = seq, naming = naming }, workers(k))
      C.pl_seq_close(seq)
      return r
    end
    local begin, seen = ("a"):rep(32), {}
    for i = 1, 20 do
      assert.equal(row(begin .. "x", 5), row(begin .. ("y"):rep(i), 5))
      seen[row(("z"):rep(i) .. begin, 5)] = true
    end
    assert.is_true(seen[0] and seen[1] and seen[2] and seen[3] and seen[4])
    assert.equal(row(("b"):rep(16), 5), row(("b"):rep(31), 5))    -- of one block: by that
    assert.equal(3, row("abc", 5))                                -- of none: by its length
    C.pl_naming_close(naming)
  end)

  it("of a pool may put those that wait in order", function()
    local s = pool("queue", "local function queue(req) return req.tokens / 10 end")
    assert.equal(2, hooks.rank(s, "worker", req()))
    s = pool("queue", "local function queue(req) return 'first' end")
    assert.is_nil(hooks.rank(s, "worker", req()))
    said_once("it returned 'first'; wanted a number")
  end)

  it("sees hints in headers and in the body, and only known ones", function()
    local hints = require "perilune.recipe.hints"
    local json = require "perilune.json"
    local function of(body, headers)
      local text = json.encode { nvext = body }
      local doc = C.pl_json_open(text, #text)
      local nvext = json.value(C.pl_json_find(doc, "nvext"))
      C.pl_json_close(doc)
      return req { hints = hints.of_body(nvext), recorded = headers or {} }.hints
    end
    local h = of { backend_instance_id = 12345, agent_hints = { priority = 5, osl = 200,
      speculative_prefill = true }, session_control = { session_id = "s" }, extra_fields = { "x" } }
    assert.same({ "12345", 5, 200, true, "s" },
      { h.worker, h.priority, h.osl, h.speculative_prefill, h.session })
    assert.is_nil(h.rank)
    h = of({ backend_instance_id = "a", agent_hints = { priority = 5 } }, {
      ["x-dynamo-worker-instance-id"] = "b", ["x-request-priority"] = "7", ["x-dp-rank"] = "1" })
    assert.same({ "b", 7, 1 }, { h.worker, h.priority, h.rank })
    for _, bad in ipairs { "x", 7, true, json.null, { agent_hints = "x" },
        { agent_hints = { priority = "high" } },
        { agent_hints = { priority = {} } }, { backend_instance_id = ("x"):rep(300) },
        { backend_instance_id = "a\nb" }, { session_control = { session_id = 1.5 } } } do
      h = of(bad)
      assert.same({}, { h.priority, h.worker, h.session })
    end
    assert.has_error(function() return h.prio end, "req.hints has no 'prio'")
    assert.has_error(function() h.priority = 1 end)
  end)

  it("may turn a request away", function()
    local s = server("admit = admit", [[
      local function admit(req)
        if req.tokens > 10 then return pl.reject(429, "too long", 1.2) end
        if req.tokens > 5 then return pl.reject(400, "odd") end
      end]])
    assert.same({ status = 429, message = "too long", headers = "Retry-After: 2\r\n" },
                hooks.ask(s, "admit", req()))
    assert.same({ status = 400, message = "odd" },
                hooks.ask(s, "admit", req { tokens = 6 }))
    assert.is_nil(hooks.ask(s, "admit", req { tokens = 1 }))
    assert.same({}, said)
  end)

  it("says how a request moves, or that it does not", function()
    local s = server("migrate = migrate", [[
      local function migrate(req, lost)
        if req.moves == 0 then return pl.retry() end
        if req.moves == 1 then return pl.retry { avoid = lost.name, after = 0.5 } end
        return pl.fail(lost.reason .. " at " .. req.total .. " in " .. req.blocks)
      end]])
    local function ask(moves)
      return hooks.ask(s, "migrate", req { moves = moves, total = 50 }, LOST)
    end
    assert.same({ after = 0 }, ask(0))
    assert.same({ avoid = "worker/1", after = 0.5 }, ask(1))
    assert.same({ fail = "gone at 50 in 4", message = "gone at 50 in 4" }, ask(2))
  end)

  it("sees the request, and cannot change it", function()
    local s = server("admit = admit", [[
      local seen = pl.keep("seen", {})
      local function admit(req)
        seen.text = table.concat({ req.id, req.model, req.tokens, req.blocks, req.total,
          req.max_tokens, tostring(req.stream), req.priority, req.moves,
          tostring(req.headers["x-a"]) }, " ")
        return pl.reject(400, seen.text)
      end]])
    assert.equal("r1 m 20 2 20 7 true 3 0 nil", hooks.ask(s, "admit", req()).message)
    for text, why in pairs {
      ["req.tokens = 1"] = "req is read-only; 'tokens' assigned",
      ["req.headers.a = 1"] = "headers are read-only",
      ["return req.tokns"] = "req has no 'tokns'" } do
      said = {}
      assert.is_nil(hooks.ask(server("admit = function(req)\n " .. text .. " end"), "admit",
        req()))
      said_once("r.lua:4: " .. why)
    end
  end)

  it("may keep the request; its headers are gone then", function()
    local s = server("done = done", [[
      local kept = pl.keep("kept", {})
      local function done(req)
        if kept[1] then error(tostring(kept[1].headers["x-a"]) .. kept[1].id, 0) end
        kept[1] = req
      end]])
    hooks.tell(s, s.recipe.done, req { exchange = pl.ffi.cast("pl_exchange *", 1) })
    hooks.tell(s, s.recipe.done, req())
    said_once "the default applies: nilr1"
  end)

  it("is told what became of a request", function()
    local s = server "done = function(req, r) error(req.id .. ' ' .. r.tokens, 0) end"
    hooks.tell(s, s.recipe.done, req(), { tokens = 5 })
    said_once "the default applies: r1 5"
  end)

  describe("that fails", function()
    it("is answered for; its line is logged once a minute, each time is counted", function()
      local s = server("admit = admit", [[
        local function admit(req)
          return req.id .. nil
        end]])
      local before = errors "admit"
      for _ = 1, 100 do assert.is_nil(hooks.ask(s, "admit", req())) end
      assert.equal(before + 100, errors "admit")
      said_once("error: hook admit (", "r.lua:2) failed", "r.lua:3: attempt to concatenate")
    end)

    it("by another kind of answer", function()
      for _, text in ipairs { "5", "true", "pl.retry()", "{ status = 400 }" } do
        said = {}
        assert.is_nil(hooks.ask(server("admit = function() return " .. text .. " end"),
          "admit", req()))
        said_once "wanted nothing or pl.reject(status, why)"
      end
      said = {}
      local s = server "migrate = function() end"
      assert.matches("limit exhausted$", hooks.ask(s, "migrate", req(), LOST).fail)
      said_once "it returned nil; wanted pl.retry { avoid, after } or pl.fail(why)"
    end)

    it("by wrong use of pl, at its own line", function()
      for text, why in pairs {
        ["pl.reject(200, 'x')"] = "pl.reject: status is '200'; it wants an integer from 400",
        ["pl.reject(429)"] = "pl.reject: wants a status and a reason",
        ["pl.reject(429, 'x', -1)"] = "pl.reject: retry_after wants seconds",
        ["pl.retry { befor = 1 }"] = "pl.retry has no 'befor'; it wants avoid, after",
        ["pl.retry { after = 0/0 }"] = "pl.retry: after wants seconds",
        ["pl.fail()"] = "pl.fail: wants a reason",
        ["pl.keep('x', 1)"] = "pl.keep: only while a recipe is loaded" } do
        said = {}
        hooks.ask(server("admit = function()\nlocal v = " .. text .. " end"), "admit", req())
        said_once("r.lua:4: " .. why)
      end
    end)

    it("by an error that is not a string, or by overflow of the stack", function()
      hooks.ask(server "admit = function() error({}) end", "admit", req())
      said_once "the default applies"
      said = {}
      hooks.ask(server("admit = f", "local function f() return 1 + f() end"), "admit", req())
      said_once "stack overflow"
    end)
  end)

  describe("on probation", function()
    local LOOPS = {
      ["by itself"] = "while true do end",
      ["behind a pcall"] = "while true do pcall(function() while true do end end) end",
      ["in a function of the file"] = "spin()",
      ["in a kept table's"] = "kept.spin()",
    }
    for name, text in pairs(LOOPS) do
      it("is refused when it does not end: " .. name, function()
        local s = server("admit = admit", [[
          local function spin() while true do end end
          local kept = pl.keep("t", { spin = spin })
          local function admit(req)
            if req.id == "r1" then ]] .. text .. [[ end
            return pl.reject(429, "no")
          end]])
        assert.equal(429, hooks.ask(s, "admit", req { id = "r2" }).status)
        assert.equal("on probation", (hooks.about(s.recipe, "admit") or {}).standing)
        local before = errors "admit"
        assert.is_nil(hooks.ask(s, "admit", req()))
        said_once("warning: hook admit (", "r.lua:4) is disabled", "and was at ", "r.lua:")
        assert.equal(before + 1, errors "admit")
        assert.equal("disabled", (hooks.about(s.recipe, "admit") or {}).standing)
        assert.is_nil(hooks.ask(s, "admit", req { id = "r2" }))
        assert.is_nil(debug.gethook())
        assert.is_true((jit.status()))
      end)
    end

    it("is interrupted though it was compiled before", function()
      local s = server("admit = admit", [[
        local limit = pl.keep("limit", { 1000 })
        local function admit()
          local i = 0
          while i < limit[1] do i = i + 1 end
          return pl.reject(400, "counted")
        end]])
      for _ = 1, 200 do s.recipe.admit() end
      local limit
      local up = 1
      while true do
        local name, v = debug.getupvalue(s.recipe.admit, up)
        if not name then break end
        if name == "limit" then limit = v end
        up = up + 1
      end
      limit[1] = math.huge
      assert.is_nil(hooks.ask(s, "admit", req()))
      assert.equal("disabled", (hooks.about(s.recipe, "admit") or {}).standing)
    end)

    it("is trusted after its calls, and timed from then on; anew when it is replaced",
       function()
      local s = server "admit = function() end"
      local row = metrics_rows.hook[2]
      local seconds = C.pl_metric_open(C.PL_HISTOGRAM, row[2], 'hook="admit"', row[3],
        pl.ffi.new("double[?]", #row[4], row[4]), #row[4])
      local before = C.pl_metric_value(seconds)
      for _ = 1, hooks.PROBATION do hooks.ask(s, "admit", req()) end
      assert.equal("trusted", (hooks.about(s.recipe, "admit") or {}).standing)
      assert.equal(before, C.pl_metric_value(seconds))
      hooks.ask(s, "admit", req())
      assert.equal(before + 1, C.pl_metric_value(seconds))
      recipe.change(s.recipe, "admit", function() end, "a test")
      assert.is_nil((hooks.about(s.recipe, "admit") or {}).standing)
      hooks.ask(s, "admit", req())
      assert.equal("on probation", (hooks.about(s.recipe, "admit") or {}).standing)
      assert.equal(before + 1, C.pl_metric_value(seconds))
    end)
  end)

  it("is tested without a server: examples/fair.lua", function()
    local migrate = public.load("examples/fair.lua").migrate
    assert.equal("moved three times, then gone", migrate({ moves = 3 }, LOST).why)
    local again = migrate({ moves = 2 }, LOST)
    assert.equal("worker/1", again.avoid)
    assert.equal(0.2, again.after)
  end)

  it("prints to the log, under its name", function()
    local s = server("admit = admit", [[
      print("loaded", 1)
      local function admit(req)
        print("saw", req.tokens, nil)
        if req.id == "bad" then error "no" end
      end]])
    assert.same({ "info: the recipe: loaded\t1" }, said)
    for _, id in ipairs { "good", "bad" } do
      said = {}
      hooks.ask(s, "admit", req { id = id })
      assert.matches("^info: the hook admit %(%S+r.lua:3%): saw\t20\tnil$", said[1])
    end
    for _ = 1, hooks.PROBATION do hooks.ask(s, "admit", req()) end
    said = {}
    hooks.ask(s, "admit", req())
    assert.matches("^info: the hook admit ", said[1])
    said = {}
    s.recipe.admit(req())
    assert.same({ "info: the recipe: saw\t20\tnil" }, said)
  end)

  it("reads the recipe's arguments as they are now", function()
    local s = server("admit = function(req) return pl.reject(400, tostring(opt.most)) end",
      'local opt = pl.args { { "most", 5, "x", min = 1 }, { "mode", "a", "y", choices = { "a", "b" } } }')
    local function most() return hooks.ask(s, "admit", req()).message end
    assert.equal("5", most())
    assert.matches("^args.most = 7 from a test %(was 5, default%)%. ",
      select(2, live.set(s, "args.most", 7, "a test")))
    assert.equal("7", most())
    assert.equal("a test", recipe.origin(s.recipe, "args.most"))
    for value, why in pairs { [0] = "args.most is 0; it wants a number, at least 1",
        x = "args.most is 'x'; it wants a number, at least 1" } do
      assert.equal(why, select(2, live.set(s, "args.most", value, "a test")))
    end
    assert.equal("args.most is nil; it wants a number, at least 1",
      select(2, live.set(s, "args.most", nil, "a test")))
    assert.is_nil((live.set(s, "args.mode", "c", "a test")))
    assert.equal("7", most())
    assert.matches("args.most changed 7 %-> 5", select(2, live.reload(s)))
    assert.equal("5", most())
    live.set(s, "args.most", 8, "a test")
    assert.equal("8", most())
  end)

  it("is explained by help, with an example that works", function()
    for section, names in pairs(schema.hooks) do
      for name in pairs(names) do
        local text = assert(help.about(name))
        local given = name == "roles" and "prefill" or "req"
        for _, words in ipairs { name .. "%(" .. given,
            "\n  arguments\n    " .. given .. " ", "\n  returns\n    %S",
            "\n  without it: %S", "\n  example\n    %S" } do assert.matches(words, text) end
        local file = dir.write("e.lua", hook_help.hooks[name].example)
        local value = public.load(file)
        assert.is_function((section == "top" and value or value.worker or value.decode)[name])
        local path = section == "pool" and "worker." .. name or name
        assert.equal(name ~= "split", hooks.is_asked(path))
        assert.equal(name ~= "split", text:find("not called yet", 1, true) == nil)
        if hooks.is_asked(path) then
          local r = assert(recipe.resolve(file, {}, function() end))
          local s = { recipe = r }
          for _, tokens in ipairs { 20, 5000 } do
            if name == "done" then
              hooks.tell(s, r.done, req { tokens = tokens }, { tokens = 3 })
            elseif name == "roles" then
              assert.is_number(hooks.roles(s, r.roles, workers(1):fleet(), workers(2):fleet()))
            elseif name == "queue" then
              assert.is_number(hooks.rank(s, "worker", req { tokens = tokens }))
            elseif section == "pool" then
              assert.equal(0, hooks.choose(s, "worker", req { tokens = tokens }, workers(2)))
            else
              hooks.ask(s, name, req { tokens = tokens, moves = 2 }, LOST)
            end
          end
          assert.equal(0, hooks.about(r, path).errors, table.concat(said, "\n"))
        end
      end
    end
  end)

  it("is asked, or is not yet, by its path", function()
    for _, path in ipairs { "admit", "migrate", "done", "roles", "worker.cost", "worker.pick",
      "worker.queue", "decode.split", "decode.pick", "prefill.cost" } do
      assert.is_true(hooks.is_asked(path))
    end
    for _, path in ipairs { "prefill.split", "prefill.queue", "cost", "worker.admit" } do
      assert.is_false(hooks.is_asked(path))
    end
  end)
end)

describe("pl", function()
  it("has a clock and dice", function()
    local a = public.now()
    assert.is_true(public.now() >= a)
    local sum = 0
    for _ = 1, 1000 do
      local v = public.random()
      assert.is_true(v >= 0 and v < 1)
      sum = sum + v
    end
    assert.is_true(sum > 400 and sum < 600)     -- ten standard deviations
  end)

  it("has a table that forgets what was not used for longest", function()
    local t = public.lru(2)
    t:put("a", 1)
    t:put("b", 2)
    assert.equal(1, t:get "a")
    t:put("c", 3)
    assert.is_nil(t:get "b")
    assert.equal(1, t:get "a")
    t:put("a", nil)
    assert.is_nil(t:get "a")
    assert.equal(3, t:get "c")
    t:put("c", 4)
    t:put("d", 5)
    assert.equal(4, t:get "c")
    assert.equal(5, t:get "d")
    assert.is_nil(t:get(nil))
    assert.has_error(function() t:put(nil, 1) end, "lru:put: wants a key")
    for _, n in ipairs { 0, 1.5, "x" } do
      assert.has_error(function() public.lru(n) end)
    end
  end)

  it("has a table that never grows", function()
    local t = public.lru(10)
    for i = 1, 1000 do t:put(i, i) end
    local n = 0
    for i = 1, 1000 do n = n + (t:get(i) and 1 or 0) end
    assert.equal(10, n)
    assert.equal(1000, t:get(1000))
  end)
end)
