-- SPDX-License-Identifier: Apache-2.0
-- Lines of the log: text for people, JSON for programs, each on its line.
local pl = require "perilune.ffi"
local cjson = require "cjson.safe"
local captured = require "support.captured"
local log = require "perilune.log"
local C = pl.C

local function lines(text)
  local list = {}
  for line in text:gmatch "([^\n]*)\n" do list[#list + 1] = line end
  assert.equal("", text:match "[^\n]*$")
  return list
end

describe("a log", function()
  local function plain()
    log.format "text"
    log.level "info"
  end
  before_each(plain)
  after_each(plain)

  it("is text, with fields at the end of a line", function()
    local text = captured(function()
      log.info("%d workers", 2)
      log.with({ request_id = "a-1", trace_id = "ff" }):warning("lost %s", "it")
      log.with({}):error "100%"
    end)
    local list = lines(text)
    local stamp = "%d%d%-%d%d %d%d:%d%d:%d%d%.%d%d%d "
    assert.matches("^INFO " .. stamp .. "2 workers$", list[1])
    assert.matches("^WARNING " .. stamp .. "lost it %[request_id=a%-1 trace_id=ff%]$",
      list[2])
    assert.matches("^ERROR " .. stamp .. "100%%$", list[3])
    assert.equal(3, #list)
  end)

  it("is a JSON object a line", function()
    log.format "json"
    local list = lines(captured(function()
      log.info('say "%s"\n\tand \1 \255', "x")
      log.with({ request_id = "a", trace_id = "b" }):debug "unseen"
      log.with({ request_id = "a", trace_id = "b" }):error "seen"
    end))
    assert.equal(2, #list)
    local first, second = assert(cjson.decode(list[1])), assert(cjson.decode(list[2]))
    assert.equal('say "x"\n\tand \1 \239\191\189', first.message)
    assert.equal("INFO", first.level)
    assert.matches("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%d%d%d%dZ$", first.time)
    assert.is_nil(first.request_id)
    assert.same({ "seen", "ERROR", "a", "b" },
      { second.message, second.level, second.request_id, second.trace_id })
  end)

  it("has whole numbers as numbers, where they are named so and are such", function()
    local function line_of(name, value)
      return captured(function() log.with({ [name] = value }):info "m" end)
    end
    assert.matches("m %[n=12%]\n$", line_of("#n", "12"))
    log.format "json"
    for value, kind in pairs { ["12"] = "number", ["0"] = "number", ["007"] = "string",
        [""] = "string", ["1,\"x\":2"] = "string", ["-1"] = "string",
        [("9"):rep(40)] = "string" } do
      local n = assert(cjson.decode(line_of("#n", value))).n
      assert.equal(kind, type(n))
      assert.equal(value, tostring(n))
    end
    assert.equal("12", cjson.decode(line_of("n", "12")).n)
  end)

  it("is JSON where nobody reads along", function()
    local text = captured(function()
      log.format "auto"
      log.info "x"
    end)
    assert.equal("x", assert(cjson.decode(text)).message)
  end)

  it("keeps hostile fields on their line", function()
    local hostile = { a = 'q"] \\', b = "two\nlines", c = "", d = ("x"):rep(300) }
    local text = lines(captured(function() log.with(hostile):info "m" end))
    assert.equal(1, #text)
    assert.is_truthy(text[1]:find([[a="q\"] \\" b="two\nlines" c="" d=xxx]], 1, true))
    log.format "json"
    local json = lines(captured(function() log.with(hostile):info "m" end))
    assert.equal(1, #json)
    local got = assert(cjson.decode(json[1]))
    for name, value in pairs(hostile) do assert.equal(value, got[name]) end
  end)

  it("takes only whole fields, and not endless ones", function()
    local cases = { { "a", {} }, { "a\0", {} }, { "a\0b", {} }, { "a\0b\0c", { a = "b" } },
      { "a\0b\0" .. ("k"):rep(2000) .. "\0v\0", { a = "b" } } }
    log.format "json"
    for _, case in ipairs(cases) do
      local got = assert(cjson.decode(captured(function()
        C.pl_log_fields(C.PL_LOG_INFO, "m", 1, case[1], #case[1])
      end)))
      got.time, got.level, got.message = nil, nil, nil
      assert.same(case[2], got)
    end
  end)

  it("cuts what is too long", function()
    log.format "json"
    local got = cjson.decode(captured(function() log.info(("é"):rep(5000)) end))
    assert.equal(("é"):rep(992), got.message)
    log.format "text"
    assert.is_true(#captured(function() log.info(("x"):rep(5000)) end) < 2100)
  end)

  it("changes its level while it runs", function()
    local about = log.with { request_id = "r" }
    local list = lines(captured(function()
      about:debug "1"
      log.level "debug"
      about:debug "2"
      log.level "error"
      about:warning "3"
      log.warning "4"
    end))
    assert.equal(1, #list)
    assert.matches("^DEBUG .* 2 %[request_id=r%]$", list[1])
    assert.has_error(function() log.level "loud" end, "log.level: no level 'loud'")
  end)
end)
