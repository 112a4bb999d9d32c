-- SPDX-License-Identifier: Apache-2.0
-- A console in a process that serves: as scripts use it, and as people do at a terminal.
local cjson = require "cjson.safe"
local console = require "support.console"
local process = require "support.process"
local scratch = require "scratch"
local serving = require "support.serving"

local COMPLETION = "/v1/completions"
local LONG = { prompt = "x", max_tokens = 1900, ignore_eos = true, temperature = 0, stream = true }

local function has(text, wanted)
  assert.is_truthy(text:find(wanted, 1, true), ("no '%s' in:\n%s"):format(wanted, text))
end

describe("a console", function()
  local c
  setup(function() c = console.start() end)
  teardown(function()
    if c then c:stop() end
  end)

  local function alive()
    assert.equal(200, c.server:post(COMPLETION, { prompt = "x", max_tokens = 1 }).status)
    assert.equal("2", c:eval "1 + 1")
  end

  it("evaluates for scripts, and says by its code how it went", function()
    assert.equal("2", c:eval "1 + 1")
    local code, out, err = c:attach "frontend/0 -e 'error(\"no\", 0)'"
    assert.same({ 1, "", "error: no\n" }, { code, out, err })
    code, out = c:attach "--json -e '{ a = { 1, 2 } }'"
    assert.same({ 0, '{"a":[1,2]}\n' }, { code, out })
    code, out = c:attach "--json -e 'requests()'"
    assert.same({ 0, "[]\n" }, { code, out })
    code, out = c:attach "--json -e 'nothing'"
    assert.same({ 1, "{\"error\":\"'nothing' is not defined\"}\n" }, { code, out })
    code, out, err = c:type { "x = 2", "for i = 1, 2 do", "  print(i * x)", "end", "x" }
    assert.same({ 0, "2\n4\n2\n", "" }, { code, out, err })
    code, out, err = c:type { "1", "nothing", "2", "function" }
    assert.same({ 1, "1\n2\n" }, { code, out })
    has(err, "error: 'nothing' is not defined\nerror: ")
  end)

  it("is told when the command is wrong", function()
    for words, code in pairs { ["frontend/7 -e 1"] = 1, ["-e"] = 2, ["--nothing"] = 2, ["a b"] = 2 } do
      local got, out, err = c:attach(words)
      assert.same({ code, "" }, { got, out })
      has(err, "perilune: ")
    end
    has(select(3, c:attach "frontend/7 -e 1"), "there are frontend/0")
    has(select(2, c:attach "--help"), "-e EXPR")
  end)

  it("is found by ps", function()
    local code, out = c:sh "$PERILUNE ps"
    assert.equal(0, code)
    assert.is_truthy(out:find "^name +role +model +load +health +uptime +version +recipe\n", out)
    assert.is_truthy(out:find "\nfrontend/0 +frontend +llama +0%+0 0%% +ok +%d+%a +[%d.]+ +agg.lua %x+\n",
      out)
    local list = cjson.decode((select(2, c:sh "$PERILUNE ps --json")))
    assert.equal(1, #list)
    assert.equal(c.server.process.pid, list[1].pid)
    assert.equal("ok", list[1].health)
    assert.equal(16, #list[1].recipe_hash)
    assert.equal(2, (c:sh "$PERILUNE ps nothing"))
  end)

  it("cannot be reached over TCP", function()
    for _, path in ipairs { "/about", "/steps" } do
      assert.equal(404, c.server:get(path).status)
    end
    for _, path in ipairs { "/eval", "/complete" } do
      assert.equal(404, c.server:post(path, { text = "1" }).status)
    end
  end)

  it("sees requests while they run, and after", function()
    local begun = {}
    for i = 1, 16 do begun[i] = c.server:begin("POST", COMPLETION, LONG) end
    assert.is_true(process.wait_for(20, function()
      local text = c:eval "print(requests()) print(requests()[1])"
      return text:find "completion +decoding at worker/0 +2 +%d+ +[%d.]+m?s " and text:find "arrived"
        and text:find "now: decoding at worker/0"
    end) ~= nil)
    local before = tonumber(c:eval "requests()[16].tokens")
    assert.is_true(process.wait_for(20, function()
      return tonumber(c:eval "requests()[16].tokens") > before
    end))
    assert.is_true(tonumber(c:eval "requests()[16].to_first") > 0)
    for _, answer in ipairs(begun) do answer:finish() end
    c.server:idle()
    assert.equal("no request is under way", c:eval "requests()")
    has(c:eval "slow(1)", "length")
    has(c:eval "slow(1, \"first\")", "completion")
    local number = c:eval("slow(1)"):match "\n +(%d+) "
    local trace = c:eval(("trace(%s)"):format(number))
    for _, stage in ipairs { "arrived", "prepared", "sent to worker/0", "scheduled", "first token",
        "last token", "ended: length" } do has(trace, stage) end
    has(c:eval "w(0):steps()", "device ms")
    has(c:eval "metrics \"lua_stalls\"", "perilune_lua_stalls_total")
    local code, out = c:sh "$PERILUNE top </dev/null"
    assert.equal(0, code)
    has(out, "waiting ms")
    assert.matches("\nthe last [%d.]+ s: 0.0 tokens/s made, 0.0 prompt tokens/s, 0.0 steps/s\n", out)
    local running = c.server:begin("POST", COMPLETION, LONG)
    running.connection:receive(10000)
    out = select(2, c:sh "$PERILUNE top </dev/null")
    assert.is_true(tonumber(out:match "s: ([%d.]+) tokens/s made") > 0)
    running.connection:close()
    assert.is_true(c.server:idle())
  end)

  it("changes what is live, and nothing else", function()
    has(c:eval "log_level \"debug\"", "log_level")
    has(c:eval "log_level \"info\"", "log_level")
    local _, _, err = c:attach "-e 'recipe.worker.block_size = 32'"
    assert.equal('error: worker.block_size is fixed while running   (help "block_size")\n', err)
    c:eval "recipe.http.api_key = \"k3y\""
    assert.equal(401, c.server:get("/v1/models").status)
    assert.equal(200, c.server:get("/v1/models", { Authorization = "Bearer k3y" }).status)
    c:eval "recipe.http.api_key = {}"
    assert.equal(200, c.server:get("/v1/models").status)
    assert.is_nil(c.server.process:log():find("k3y", 1, true))
  end)

  it("does not harm what is served", function()
    local begun = {}
    for i = 1, 4 do begun[i] = c.server:begin("POST", COMPLETION, LONG) end
    local consoles = {}
    for i, text in ipairs { "while true do end", "local t = {} while true do t[#t + 1] = {} end",
        "print(('x'):rep(1e6))", "error(setmetatable({}, { __tostring = error }))" } do
      consoles[i] = process.start({ "attach", "-e", text }, c.env)
    end
    for i, p in ipairs(consoles) do
      assert.equal(i == 3 and 0 or 1, p:wait(30))
      p:remove()
    end
    for _, answer in ipairs(begun) do
      local events = answer:finish():events()
      assert.equal("length", events[#events].choices[1].finish_reason)
    end
    alive()
    has(c.server.process:log(), "the console")          -- Lua did not poll meanwhile
  end)

  it("may go away in the middle of it", function()
    local p = process.start({ "attach", "-e", "x = 'gone' while true do end" }, c.env)
    assert.is_true(process.wait_for(10, function()
      return c.server.process:log():find("x = 'gone'", 1, true) ~= nil
    end))
    p:signal "KILL"
    assert.is_true(process.wait_for(10, function()
      return c.server.process:log():find('error: "stopped: interrupted"', 1, true) ~= nil
    end))
    p:remove()
    alive()
  end)

  it("takes nonsense", function()
    local huge = c.dir.write("huge", ("x"):rep(2e6) .. "\n1 + 2\n")
    local code, out, err = c:sh(("$PERILUNE attach <'%s'"):format(huge))
    assert.same({ 1, "3\n" }, { code, out })
    has(err, "at most 65536 bytes")
    code, out = c:sh "head -c 100000 /dev/urandom | $PERILUNE attach >/dev/null 2>&1; echo $?"
    assert.same({ 0, "1\n" }, { code, out })
    alive()
  end)

  it("is not for other users", function()
    local _, id = scratch.sh "id -u"
    if tonumber(id) ~= 0 then return pending "only root can be another user" end
    local path = c.dir.path .. "/perilune/frontend-0.sock"
    local function as_nobody()
      return (select(2, scratch.sh(([[python3 -c '
import os, socket
os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
try:
    s.connect("%s")
    s.sendall(b"GET /about HTTP/1.1\r\nHost: h\r\n\r\n")
    print("answer", len(s.recv(100)))
except OSError as e:
    print(type(e).__name__)']]):format(path))))
    end
    assert.equal("PermissionError\n", as_nobody())
    os.execute(("chmod 755 '%s' '%s/perilune' && chmod 777 '%s'"):format(c.dir.path, c.dir.path, path))
    assert.is_truthy(({ ["answer 0\n"] = true, ["ConnectionResetError\n"] = true,
      ["BrokenPipeError\n"] = true })[as_nobody()])
    local code, _, err = c:attach "-e 1"
    assert.equal(1, code)
    has(err, "others can enter")
    os.execute(("chmod 700 '%s' '%s/perilune'"):format(c.dir.path, c.dir.path))
    alive()
  end)

  describe("at a terminal", function()
    local function it_talks(name, test)
      it(name, function()
        if not console.has_terminals() then return pending "no terminal can be made up here" end
        test()
      end)
    end

    it_talks("edits, completes and remembers lines", function()
      local code, out = c:talk("attach", { "expect frontend/0> ", "send 1 + 1\\r", "expect 2\\r\\n",
        "expect frontend/0> ", "send bloc\\t", "expect ks(", "send )\\r", "expect prefix hits",
        "expect frontend/0> ", "send \\x10\\x10\\r", "expect 2\\r\\n", "expect frontend/0> ",
        "send recipe.worker.max_\\t", "expect max_num_seqs", "expect frontend/0> recipe.worker.max_",
        "send mod\\tn\\x15\"gr\\u00fc\\u00dfe\"\\r", "expect gr\\u00fc\\u00dfe\\r\\n",
        "expect frontend/0> ", "send \\x04" })
      assert.equal(0, code, out)
      code, out = c:talk("attach frontend/0", { "expect frontend/0> ", "send \\x10\\r",
        "expect gr\\u00fc\\u00dfe\\r\\n", "expect frontend/0> ", "send \\x04" })
      assert.equal(0, code, out)
      local _, mode = scratch.sh(("stat -c %%a '%s/state/perilune/history'"):format(c.dir.path))
      assert.equal("600\n", mode)
    end)

    it_talks("takes several lines, and gives them up", function()
      local code, out = c:talk("attach", { "expect frontend/0> ", "send x = function(a)\\r",
        "expect ...> ", "send return a end\\r", "expect frontend/0> ", "send x(7)\\r",
        "expect 7\\r\\n", "expect frontend/0> ", "send for\\r", "expect ...> ", "send \\x03",
        "expect frontend/0> ", "send abc", "expect abc", "send \\x03", "expect ^C",
        "expect frontend/0> ", "send 3 * 3\\r", "expect 9\\r\\n", "expect frontend/0> ", "send \\x04" })
      assert.equal(0, code, out)
    end)

    it_talks("ends what runs by Ctrl-C, and goes on", function()
      local code, out = c:talk("attach", { "expect frontend/0> ", "send while true do end\\r",
        "expect \\n", "send \\x03", "expect error: interrupted", "expect frontend/0> ",
        "send 2 * 4\\r", "expect 8\\r\\n", "expect frontend/0> ", "send \\x04" })
      assert.equal(0, code, out)
    end)

    it_talks("keeps no secret in its history", function()
      c:talk("attach", { "expect frontend/0> ", "send recipe.http.api_key = {}\\r", "expect reload()",
        "expect frontend/0> ", "send \\x04" })
      local f = assert(io.open(c.dir.path .. "/state/perilune/history"))
      local text = f:read "*a"
      f:close()
      assert.is_nil(text:find("api_key", 1, true))
      has(text, "bloc")
    end)

    it_talks("watches the steps until q", function()
      local code, out = c:talk("top frontend/0", { "expect device ms", "expect device ms",
        "send q" })
      assert.equal(0, code, out)
      code, out = c:talk("top", { "expect q ends", "send \\x03" })
      assert.equal(0, code, out)
    end)
  end)
end)

describe("processes", function()
  it("have names, the lowest that are free, and leave no socket behind", function()
    local c = console.start()
    local second = serving.start({}, c.env)
    local function names()
      local out = {}
      for name in (select(2, c:sh "$PERILUNE ps")):gmatch "\n(%l+/%d+)" do out[#out + 1] = name end
      return table.concat(out, " ")
    end
    assert.equal("frontend/0 frontend/1", names())
    local code, _, err = c:attach "-e 1"
    assert.equal(1, code)
    has(err, "which one?\n    there are frontend/0, frontend/1")
    assert.equal(0, (c:attach "frontend/1 -e 1"))
    c.server.process:signal "KILL"
    c.server.process:wait(10)
    assert.equal("frontend/1", names())
    local third = serving.start({}, c.env)
    assert.equal("frontend/0 frontend/1", names())
    has(third:stop(), "perilune attach frontend/0")
    second:stop()
    assert.equal("", names())
    local _, left = scratch.sh(("ls '%s/perilune'"):format(c.dir.path))
    assert.equal("", left)
    code, _, err = c:attach "-e 1"
    assert.equal(1, code)
    has(err, "you have no process running here")
    c.server.process:remove()
    c.dir.remove()
  end)

  it("serve without a console where there is no place for one", function()
    local dir, env = console.folder()
    os.execute(("mkdir -m 755 '%s/perilune'"):format(dir.path))
    local s = serving.start({}, env)
    has(s.process:log(), "WARNING")
    has(s.process:log(), "no console: others can enter folder")
    assert.equal(200, s:post(COMPLETION, { prompt = "x", max_tokens = 1 }).status)
    s:stop()
    dir.remove()
  end)
end)
