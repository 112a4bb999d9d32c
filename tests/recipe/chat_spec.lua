-- SPDX-License-Identifier: Apache-2.0
-- perilune chat at a terminal; and how its answers are wrapped.
local console = require "support.console"
local fake = require "support.fake"
local pl = require "perilune.ffi"
local scratch = require "scratch"
local wrap = require "perilune.tools.wrap"

local function columns(text) return pl.C.pl_terminal_columns(text, #text) end

describe("a terminal's columns", function()
  it("are those of letters, wide and combining ones too", function()
    for text, n in pairs { [""] = 0, abc = 3, ["äß"] = 2, ["中文"] = 4, ["e\204\129"] = 1,
                           ["\255\254"] = 2 } do
      assert.equal(n, columns(text), text)
    end
  end)
end)

describe("wrapped text", function()
  -- What is shown of a text that comes in pieces of n bytes.
  local function wrapped(width, text, n)
    local w, out = wrap.new(width, columns), {}
    for at = 1, #text, n do out[#out + 1] = w:push(text:sub(at, at + n - 1)) end
    return table.concat(out) .. w:flush()
  end

  it("breaks between words, however it comes", function()
    for text, want in pairs {
      ["the quick brown fox"] = "the quick\nbrown fox",
      ["one two  three\n\n  four five"] = "one two\nthree\n\n  four\nfive",
      ["1234567890 a"] = "1234567890\na",
      ["a 1234567890"] = "a\n1234567890",
      [" lead"] = " lead",
      ["ends "] = "ends",
      [""] = "",
    } do
      for n = 1, 20 do assert.equal(want, wrapped(10, text, n), text) end
    end
  end)

  it("loses nothing of what has no blanks", function()
    local long = ("x"):rep(35) .. " yes"
    assert.equal(long, wrapped(10, long, 3))
    assert.equal(("中"):rep(30), wrapped(10, ("中"):rep(30), 3))
  end)

  it("is shown once a word is whole, and what has no blanks at once", function()
    local w = wrap.new(10, columns)
    assert.equal("", w:push "hel")
    assert.equal("hello", w:push "lo w")
    assert.equal("\n中中", w:push "aaaa中中" and w:push " 中中" or "")
  end)
end)

describe("perilune chat at a terminal", function()
  local server, dir, url
  local here = console.has_terminals()

  setup(function()
    if not here then return end
    server = fake.start()
    dir, url = server.dir, server.url
  end)

  teardown(function()
    if server then server:stop() end
  end)

  -- Chats by the steps of pty_talk.py: what was shown. Ctrl-D ends it once a prompt is
  -- there; before, the terminal itself would take it.
  local function talk(steps, flags)
    local file = dir.write("steps", table.concat(steps, "\n")
      .. "\nexpect ?2004h\nsend \\x04\n")
    local code, out, err = scratch.sh(("XDG_STATE_HOME='%s' TERM=xterm python3 "
      .. "tests/support/pty_talk.py 60 '%s' '%s' chat --url %s %s"):format(dir.path, file,
        scratch.program, url, flags or ""))
    assert.equal(0, code, err .. out)
    return out
  end

  local function at_terminal(text, fn)
    it(text, function()
      if not here then return pending "wants a terminal" end
      fn()
    end)
  end

  at_terminal("edits a line, and finds the last again", function()
    local shown = talk { "expect /quit", "send helo\\x1b[Dl\\r", "expect hello2",
      "expect tokens/s)", "send /reset\\r", "send \\x1b[A\\x1b[A\\r", "expect hello2",
      "expect tokens/s)" }
    assert.is_nil(shown:find("hello hello", 1, true), shown)
    talk { "expect /quit", "send \\x1b[A\\r", "expect hello2" }
  end)

  at_terminal("takes what is pasted as one message, and Enter as its end", function()
    local shown = talk { "expect /quit", "send \\x1b[200~one\\r\\ttwo\\x1b[201~",
      "send three\\r", "expect twothree2", "expect 3 tokens, " }
    local _, answers = shown:gsub("tokens/s%)", "")
    assert.equal(1, answers, shown)
  end)

  at_terminal("wraps answers by words at the terminal's width", function()
    local shown = talk({ "size 24 20", "expect /quit", "send word\\r",
      "expect tokens/s)" }, "--max-tokens 12")
    assert.is_truthy(shown:find("word0 word1 word2\r\nword3 word4 word5\r\n", 1, true),
      shown)
  end)

  at_terminal("begins anew at Ctrl-C, and ends an answer by it", function()
    local shown = talk({ "expect /quit", "expect ?2004h", "send wrong\\x03", "expect ^C", "send one\\r",
      "expect one1", "send \\x03", "send /reset\\r", "send two\\r", "expect two0",
      "send \\x03" }, "--model slow --max-tokens 50")
    assert.is_nil(shown:find("wrong0", 1, true), shown)
    assert.is_nil(shown:find("one49", 1, true), shown)
  end)
end)
