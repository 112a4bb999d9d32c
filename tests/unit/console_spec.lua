-- SPDX-License-Identifier: Apache-2.0
-- What is typed into a process: it ends, it reaches nothing, it is shown.
local admin = require "perilune.console.admin"
local console = require "perilune.console.session"
local engine = require "support.engine"
local hooks = require "perilune.recipe.hooks"
local hook_view = require "perilune.recipe.hook_view"
local json = require "perilune.json"
local recipe = require "perilune.recipe.resolve"
local run = require "perilune.console.run"
local scratch = require "scratch"

describe("the console", function()
  local e, dir, server, changes, gone, doing

  local HOOKED = 'local pl = require "perilune" pl.args { { "share", 5, "x", min = 1 } } '
    .. 'pl.keep("seen", pl.lru(3)):put("red", { 1 }) pl.keep("n", "x") return {' .. [[

  http = { port = 0, api_key = "hush" },
  worker = { cost = function(n) local i = 0 while i ~= n do i = i + 1 end return i end },
}]]

  local budget = run.SECONDS
  setup(function()
    dir = scratch.folder()
    e = engine.open("tests/golden/llama", { device = "null", load_format = "dummy" })
    server = { w = { engines = { { engine = e.engine, device = e.loaded.device,
      pool = { device = "cpu" } } } },
      name = "worker/0", state = "ready", metrics = { refresh = function() end },
      recipe = assert(recipe.resolve(dir.write("hooked.lua", HOOKED), { "--model", "m" })) }
    function server:set(path, value, by)
      assert(self == server)
      assert(jit.status() and not debug.gethook())    -- it may watch for itself
      if path == "http.response_role" and value == "boom" then error "boom" end
      changes[#changes + 1] = { path, value, by }
      if value == "no" then return nil, path .. " does not want that", 'help "it"' end
      return true, path .. " replaced"
    end
    function server.doing(_, what) doing[#doing + 1] = what end
  end)
  teardown(function()
    run.SECONDS = budget
    e:close(true)
    dir.remove()
  end)
  before_each(function()
    changes, doing, gone = {}, {}, function() return false end
    run.SECONDS = 10
  end)

  local function eval(text, more)
    local body = { text = text }
    for k, v in pairs(more or {}) do body[k] = v end
    return console.eval(server, { body = body, by = "a test",
      gone = function() return gone() end })
  end

  local function shows(expected, text, more)
    local r = eval(text, more)
    assert.is_nil(r.error)
    assert.equal(expected, r.text)
  end

  -- It fails with this in its message.
  local function fails(expected, text)
    local r = eval(text)
    assert.is_truthy(r.error, text .. " gave " .. tostring(r.text))
    assert.is_truthy(r.error:find(expected, 1, true), r.error)
  end

  it("needs no return, and prints all values", function()
    shows("2", "1 + 1")
    shows("1\tb\tnil", "1, 'b', nil")
    shows("", "local x = 1")
    shows("3", "return 3")
    shows('{ 1, 2, [4.5] = true, a = { b = "c\\n" } }', "{1, 2, a = { b = 'c\\n' }, [4.5] = true}")
    shows("nil", "nil")
    shows("9.007199254741e+15", "2^53 + 2")
    shows("nan\tinf", "math.abs(0/0), math.huge")
    shows("a\tb\nc", "print('a', 'b') return 'c'")
    shows("{ { itself } }", "(function() local t = {} t[1] = t return t end)()")
  end)

  it("asks for more where a line is not whole, if somebody can type it", function()
    for _, text in ipairs { "for i = 1, 2 do", "x = function()", "{ 1,", "[[a", "--[[ a" } do
      assert.is_true(eval(text, { interactive = true }).more, text)
      assert.is_truthy(eval(text).error, text)
    end
    for _, text in ipairs { "for for", "1 +* 2", "x = = 1", "'abc" } do
      assert.is_truthy(eval(text, { interactive = true }).error, text)
    end
    shows("6", "local s = 0\nfor i = 1, 3 do\n  s = s + i\nend\nreturn s")
  end)

  it("keeps each console's variables apart", function()
    shows("", "x = 1", { console = "a" })
    shows("", "x = 2", { console = "b" })
    shows("1", "x", { console = "a" })
    shows("2", "x", { console = "b" })
    fails("'x' is not defined", "x")
    for i = 1, 30 do eval("y = 1", { console = "c" .. i }) end
    shows("1", "x", { console = "a" })
    for _ = 1, 40 do eval "y = 1" end                         -- those without a name last not
    for i = 1, 31 do eval("y = 1", { console = "d" .. i }) end
    shows("1", "x", { console = "a" })
    assert.is_truthy(eval("x", { console = "b" }).error)      -- unused for longest
  end)

  describe("ends", function()
    before_each(function() run.SECONDS = 0.3 end)

    it("loops, however they resist", function()
      for _, text in ipairs {
        "while true do end",
        "while true do pcall(error) end",
        "local function f() return pcall(f) end while true do f() end",
        "repeat local ok = pcall(function() while true do end end) until false",
        "return setmetatable({}, { __tostring = function() while true do end end })",
        "return setmetatable({}, { __index = function(t, k) return t[k + 1] end })[1]",
        "for i = 1, math.huge do end",
        "local t = { 1, 2, 3 } while true do table.sort(t, function() return true end) end",
      } do
        local r = eval(text)
        assert.is_truthy(r.error, text)
        assert.is_truthy(r.error:find "budget" or r.error:find "stack overflow"
          or r.error:find "invalid order function", r.error)
      end
      shows("2", "1 + 1")
    end)

    it("a hook of the recipe that has been compiled", function()
      local hook = server.recipe.worker.cost
      for i = 1, 2000 do hook(i) end
      shows("7", "recipe.worker.cost(7)")
      fails("budget", "recipe.worker.cost(-1)")
      fails("budget", "(function() return pcall(recipe.worker.cost, -1) end)()")
      assert.is_true(jit.status())
    end)

    it("what its console does not wait for", function()
      local looks = 0
      gone = function()
        looks = looks + 1
        return looks > 3
      end
      fails("interrupted", "while true do end")
      assert.equal(4, looks)
    end)

    it("what takes too much memory", function()
      run.SECONDS = 30
      fails("MiB of memory", "local t = {} for i = 1, 1e9 do t[i] = ('x'):rep(1e6 + i) end")
      fails("MiB of memory", "local s = 'x' while true do s = s .. s end")
      fails("at most 4194304", "('x'):rep(1e9)")
      fails("at most 4194304", "string.rep('ab', 1e7, '--')")
      fails("at most 4194304", "(function() local s = ('x'):rep(4e6) return table.concat { s, s } end)()")
      shows("a-b", "table.concat({ 'a', 'b' }, '-')")
      fails("might not end", "('a'):rep(50000):find(('a*'):rep(30) .. 'b')")
      fails("might not end", "string.match(('a'):rep(50000), ('.-'):rep(30))")
      shows("3\t3", "('abc'):find('c', 1, true)")
      shows("abc", "('  abc '):match '^%s*(.-)%s*$'")
      shows("b\t1", "('a.b'):gsub('a%.', '')")
    end)

    it("strings of ours are as before", function()
      eval "while true do end"
      assert.equal(string, getmetatable("").__index)
      assert.is_nil((debug.gethook()))
    end)
  end)

  it("bounds what it shows", function()
    local r = eval "(function() local s = '' for i = 1, 7 do s = s .. ('ü'):rep(6e4) end return s end)()"
    assert.is_true(#r.text < 66000)
    assert.is_truthy(r.text:find "cut: 840000 bytes in all")
    r = eval "(function() local t = {} for i = 1, 1e5 do t[i] = i end return t end)()"
    assert.is_true(#r.text < 2000)
    r = eval "for i = 1, 1e5 do print(i) end"
    assert.is_true(#r.text < 66000)
    assert.is_truthy(eval(("x"):rep(70000)).error:find "at most 65536 bytes")
    assert.is_truthy(eval(7).error)
  end)

  it("survives errors in errors", function()
    shows("a value whose __tostring fails: no",
      "setmetatable({}, { __tostring = function() error('no', 0) end })")
    assert.is_truthy(eval "error(setmetatable({}, { __tostring = error }))".error)
    assert.is_truthy(eval "error(nil)".error)
    fails("{ a = 1 }", "error { a = 1 }")
    local r = eval "print 'before' error('after', 0)"
    assert.equal("before", r.text)
    assert.equal("after", r.error)
  end)

  it("reaches no file, process, or C", function()
    for _, name in ipairs { "io", "ffi", "require", "load", "loadstring", "dofile", "debug",
        "jit", "package", "getfenv", "setfenv", "rawset", "rawget", "collectgarbage",
        "newproxy", "coroutine", "module", "getmetatable", "arg", "_G" } do
      fails("not defined", name)
    end
    shows("nil\tnil\tnil\tnil", "os.execute, os.getenv, os.exit, string.dump")
    fails("cannot be assigned", "string.rep = 1")
    fails("cannot be assigned", "os.time = nil")
    fails("the console's own", "requests = 1")
    fails("protected", "setmetatable(string, {})")
    fails("protected", "setmetatable(recipe, {})")
    fails("not for the console", "pl.load 'agg'")
    fails("cannot be assigned", "pl.version = 1")
    local r = eval "next(recipe), next(w(0)), next(requests())"
    assert.equal("nil\tnil\tnil", r.text)
    assert.is_truthy(eval("\27LJ\2").error)
    for _, text in ipairs { "w(0).engine", "w(0).steps(1)", "w(9)", "trace 'none'",
        "slow(1, 'x')", "help 'nothing'", "w('x')", "recipe()" } do
      assert.is_truthy(eval(text).error or eval(text).text == "nil", text)
    end
  end)

  describe("the recipe", function()
    it("is shown with who set what, but for secrets", function()
      local r = eval "recipe"
      assert.is_truthy(r.text:find("hooked.lua:2", 1, true))
      assert.is_truthy(r.text:find("(secret)", 1, true))
      assert.is_nil(eval("options()").text:find("hush", 1, true))
      shows("(secret)", "recipe.http.api_key")
      shows("16", "recipe.worker.block_size")
      assert.is_truthy(eval("recipe.worker.cost").text:find "worker.cost   %S+hooked.lua:3   the cost")
      assert.is_truthy(eval("options 'block'").text:find "worker.block_size +16 +default")
      fails("did you mean 'block_size'?", "recipe.worker.blok_size")
      fails("has no option 'x'", "recipe.x")
    end)

    it("is changed through one door, and says so", function()
      local r = eval "recipe.worker.cost = function(req, w) return 2 end"
      assert.equal("worker.cost replaced", r.text)
      assert.equal("worker.cost", changes[1][1])
      assert.equal(2, changes[1][2]())
      assert.equal("the console", changes[1][3])
      eval "recipe.worker.cost = recipe.worker.cost"
      assert.equal(server.recipe.worker.cost, changes[2][2])
      eval "recipe.http.api_key = { 'a', 'b' }"
      assert.same({ "http.api_key", { "a", "b" }, "the console" }, changes[3])
      eval "recipe.uvicorn_log_level = 'debug'"
      assert.equal("log_level", changes[4][1])
      eval "recipe.migrate = nil"
      assert.same({ "migrate", nil, "the console" }, changes[5])
      run.SECONDS = 0.3
      fails("budget", "recipe.http.response_role = 'x' while true do end")
      fails("boom", "recipe.http.response_role = 'boom'")
      fails("budget", "pcall(function() recipe.http.response_role = 'boom' end) while true do end")
      fails('http.response_role does not want that   (help "it")', "recipe.http.response_role = 'no'")
    end)

    it("refuses what is fixed", function()
      fails('worker.block_size is fixed while running   (help "block_size")',
        "recipe.worker.block_size = 32")
      fails("cannot be replaced as a whole", "recipe.worker = {}")
      fails("has no option", "recipe.nothing = 1")
      assert.same({}, changes)
    end)

    it("has no secrets in what is logged", function()
      local clean = require("perilune.console.recipe").without_secrets
      assert.equal("recipe.http.api_key = (secret)", clean 'recipe.http.api_key = "hush"')
      assert.equal('recipe.http["api_key"] = (secret)', clean 'recipe.http["api_key"]="hush"')
      assert.equal("recipe.http.api_key", clean "recipe.http.api_key")
      assert.equal("x = 1", clean "x = 1")
    end)
  end)

  it("sees and sets what the recipe keeps", function()
    shows('n = "x"\nseen = { red = { 1 } }', "pl.keep")
    shows("1", "pl.keep.seen:get('red')[1]")
    shows("x\tx", "pl.keep.n, pl.keep('n')")
    shows("pl.keep.n = 7 from the console (was x). The recipe takes it up when it is read again: "
      .. "reload().", "pl.keep.n = 7")
    shows("7", "pl.keep.n")
    assert.equal(7, recipe.kept(server.recipe).n)
    assert.equal(7, recipe.kept(recipe.again(server.recipe)).n)
    eval "pl.keep.new = { 1 }"
    eval "pl.keep.n = nil"
    shows('new = { 1 }\nseen = { red = { 1 } }', "pl.keep")
    fails("keeps no 'n'", "pl.keep.n")
    fails("wants a name", "pl.keep[1] = 2")
    assert.equal('{"new":[1],"seen":{"red":[1]}}', json.encode(eval("pl.keep", { json = true }).value))
    eval("pl.keep.seen:put('loop', function(n) local i = 0 while i ~= n do i = i + 1 end end)")
    local spin = recipe.kept(server.recipe).seen:get "loop"
    for i = 1, 2000 do spin(i) end
    run.SECONDS = 0.3
    fails("budget", "pl.keep.seen:get 'loop' (-1)")
    recipe.kept(server.recipe).seen:put("loop", nil)
  end)

  it("sees and sets the recipe's own arguments", function()
    assert.matches("args.share +5 +live +default", eval("recipe.args").text)
    shows("5", "recipe.args.share")
    shows("args.share replaced", "recipe.args.share = 9")
    assert.same({ "args.share", 9, "the console" }, changes[1])
    fails("the recipe has no argument 'shar'", "recipe.args.shar")
    fails("cannot be replaced as a whole", "recipe.args = {}")
    assert.equal(1, #changes)
  end)

  it("shows what pl has", function()
    local text = eval("pl").text
    assert.is_truthy(text:find("pl.lru(n)  ", 1, true) and text:find("pl.keep  ", 1, true))
    shows("429", "pl.reject(429, 'no').status")
    assert.matches("^pl   ", eval("help(pl)").text)
    assert.matches("^pl.keep   ", eval("help(pl.keep)").text)
  end)

  it("tells how a hook does", function()
    assert.matches("not called yet$", eval("recipe.worker.cost").text)
    local set = server.set
    function server:set(path, v)
      recipe.change(self.recipe, path, v, "the console")
      return true, path .. " replaced"
    end
    local function ask()
      hooks.ask(server, "admit", hook_view.new { id = "r", tokens = 7, total = 7, block_size = 16 })
    end
    local mine = { console = "mine" }
    eval("recipe.admit = function(r) print('saw', r.tokens) if r.tokens > 5 then r.nope() end end", mine)
    assert.matches("\n  not called yet$", eval("recipe.admit").text)
    ask()
    ask()
    shows("2", "1 + 1")                              -- another console's business
    shows("the hook admit, set here, failed 2 times, the default applies: "
      .. "console:1: req has no 'nope'\n2", "1 + 1", mine)
    shows("2", "1 + 1", mine)
    assert.matches("\n  called 2 times, [%d.]+us each; on probation, 62 calls to go\n  "
      .. "2 errors; the last %d+ s ago: console:1: req has no 'nope'$", eval("recipe.admit").text)
    ask()
    assert.equal(3, json.decode(json.encode(eval("recipe.admit", { json = true }).value)).errors)
    eval("recipe.admit = function() while true do end end", mine)
    ask()
    shows("the hook admit, set here, failed, the default applies: it took more than 1000000 "
      .. "instructions, and was at console:1", "", mine)
    assert.matches("\n  called 1 times, [%d.]+us each; disabled\n", eval("recipe.admit").text)
    server.set = set
    recipe.change(server.recipe, "admit", nil, "default")
  end)

  it("says where Lua is meanwhile", function()
    eval "1"
    assert.same({ "the console", "" }, doing)
    doing = {}
    eval "error()"
    assert.same({ "the console", "" }, doing)
  end)

  describe("as JSON", function()
    local function value(text)
      local r = eval(text, { json = true })
      assert.is_nil(r.error)
      return assert(json.encode(r.value))
    end

    it("has lists, objects and null", function()
      assert.equal("[]", value "requests()")
      assert.equal('{"a":[1,2,{"b":true}]}', value "{ a = { 1, 2, { b = true } } }")
      assert.equal("null", value "nil")
      assert.equal("null", value "local x")
      assert.equal('"inf"', value "math.huge")
      assert.equal('{"1":1,"3":3}', value "{ 1, [3] = 3 }")
      assert.equal('["itself"]', value "(function() local t = {} t[1] = t return t end)()")
      assert.is_truthy(value("w(0)"):find '"name":"worker/0"')
      assert.is_truthy(value("w(0):steps()"):find '"rows":%[{')
      assert.is_truthy(value("blocks()"):find '"free":')
      assert.equal('"log_level replaced"', value "log_level 'debug'")
      local options = value "recipe"
      assert.is_truthy(options:find('"path":"max_logprobs","set_by":"default","value":20}', 1, true))
      assert.is_truthy(options:find('"path":"worker.count","set_by":"default","value":1}', 1, true))
      assert.is_truthy(options:find('"path":"hf_overrides","set_by":"default","value":{}}', 1, true))
    end)

    it("is bounded", function()
      local text = value [[(function()
        local t = {} for i = 1, 900 do t[i] = ('x'):rep(6e4) end return t end)()]]
      assert.is_true(#text < 400000)
    end)
  end)

  describe("completes", function()
    local function complete(text)
      local r = console.complete(server, { body = { text = text } })
      return table.concat(r.candidates, " "), text:sub(r.from)
    end

    it("names, members and words of help", function()
      assert.equal("requests(", (complete "requ"))
      assert.equal("recipe reload( replay( requests(", (complete "x = re"))
      local names, part = complete "recipe.worker.block"
      assert.equal("block_size", names)
      assert.equal("block", part)
      assert.equal("steps(", (complete "w(0):ste"))
      assert.equal("block_size", (complete 'help "block_s'))
      assert.is_truthy(complete("metrics('vllm:prefix"):find "vllm:prefix_cache_hits_total")
      assert.equal("floor( fmod( frexp(", (complete "math.f"))
      assert.is_truthy(complete "":find "requests%(")
      assert.equal("keep", (complete "pl.k"))
      assert.equal("reject( retry(", (complete "pl.re"))
      assert.equal("new seen", (complete "pl.keep."))
      assert.equal("args", (complete "recipe.ar"))
      assert.equal("share", (complete "recipe.args."))
    end)

    it("nothing, where there is nothing, and evaluates nothing", function()
      for _, text in ipairs { "nothing.here", "x.y.z.", "requests().", "'abc", "f(1)", "recipe.x.y.",
          "1.", ("a."):rep(2000), ":::", "recipe.worker.cost." } do
        assert.equal("", (complete(text)), text)
      end
      assert.same({}, changes)
    end)
  end)

  describe("and its routes", function()
    local function ask(method, path, body)
      local status, text = admin.answer(server, method, path,
        { body = body, by = "a test", gone = function() return false end })
      return status, json.decode(text)
    end

    it("answer JSON, errors too", function()
      local status, out = ask("POST", "/eval", { text = "1 + 1" })
      assert.equal(200, status)
      assert.equal("2", out.text)
      assert.equal(404, (ask("GET", "/nothing", {})))
      assert.equal(405, (ask("GET", "/eval", {})))
      assert.equal(400, (ask("POST", "/eval", nil)))
      status, out = ask("GET", "/steps", {})
      assert.equal(200, status)
      assert.equal("worker/0", out.workers[1].name)
    end)

    it("answer 500 where one of them breaks", function()
      local status, text = admin.answer({}, "GET", "/about", { body = {} })
      assert.equal(500, status)
      assert.is_truthy(text:find("internal error; see the log", 1, true))
    end)
  end)
end)
