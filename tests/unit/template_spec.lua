-- SPDX-License-Identifier: Apache-2.0
-- What tests/golden cannot compare with Jinja: refusals, limits, requests.
local json = require "perilune.json"
local template = require "perilune.jinja.template"

local function render(source, vars)
  local t, why = template.compile(source)
  if not t then return nil, why, "refused" end
  return t:render(vars or {})
end

local function fails(source, what, kind)
  local text, why, got = render(source)
  assert.is_nil(text, source:sub(1, 200))
  assert.truthy(why:find(what, 1, true), why)
  assert.equal(kind or "error", got)
end

describe("template", function()
  it("says on which line it is not a template", function()
    fails("a\n{% if x %}\n{{ 1 + }}", "line 3: unexpected the end of the tag", "refused")
    fails("{% if x %}\n", "wanted 'elif' or 'else' or 'endif'", "refused")
    fails("{{ x | nonsense }}", "no filter 'nonsense'", "refused")
    fails("{{ x is nonsense }}", "no test 'nonsense'", "refused")
    fails("\n\n{% nonsense %}", "line 3: unknown tag 'nonsense'", "refused")
    fails("{{ 'a }}", "a string without end", "refused")
    fails("{# ", "a comment without end", "refused")
    fails("{% raw %}", "a raw block without end", "refused")
    fails("{{ 9007199254740993 }}", "beyond 2^53", "refused")
    fails("{% for x in y recursive %}{% endfor %}", "not supported", "refused")
    fails(("x"):rep(2 ^ 20 + 1), "longer than", "refused")
    assert.has_error(function() template.compile(1) end)
  end)

  it("says on which line and of what it fails", function()
    fails("\n{{ a.b }}", "line 2: 'a' is undefined")
    fails("{% set a = {} %}\n{{ a.b['c'].d }}", "line 2: 'a.b' is undefined")
    fails("{{ messages[0] + 1 }}", "'messages' is undefined")
    fails("{{ 'a' + 1 }}", "'+' is not possible between str and int")
    fails("{{ nothing() }}", "'nothing' is undefined")
    fails("{{ 'a'.b() }}", "'b' is undefined")
    fails("{{ 9007199254740991 + 1 }}", "beyond 2^53")
  end)

  it("tells a refusal of the template's own from a failure", function()
    fails("{{ raise_exception('no ' ~ 1) }}", "no 1", "raised")
  end)

  it("can be rendered again, with other variables", function()
    local t = assert(template.compile "{% set x = x ~ '!' %}{{ x }}")
    assert.equal("a!", t:render { x = "a" })
    assert.equal("b!", t:render { x = "b" })
  end)

  it("reaches nothing but its variables", function()
    for _, name in ipairs { "_G", "string", "require", "os", "io", "c", "vars" } do
      assert.equal("False", render("{{ " .. name .. " is defined }}"))
    end
    for _, name in ipairs { "__class__", "__index", "gsub", "rep", "byte", "__name" } do
      for _, object in ipairs { "'a'", "[]", "{}", "range", "namespace()", "1" } do
        assert.equal("False", render("{{ " .. object .. "." .. name .. " is defined }}"))
      end
    end
    fails("{% set l = [] %}{{ l.append(1) }}", "'append' is undefined")
    fails("{% set d = {} %}{% set d.x = 1 %}", "not a namespace")
  end)

  it("ends what takes too long, too much or goes too deep", function()
    local loop = "{% for a in range(100000) %}"
    local double = "{% set ns.x = [ns.x, ns.x] %}"
    local start = "{% set ns = namespace(x = [1]) %}"
    fails(loop .. loop .. "{% endfor %}{% endfor %}", "too many steps")
    local doubled = start .. "{% for a in range(60) %}" .. double .. "{% endfor %}"
    fails(doubled .. "{{ ns.x }}", "too many steps")
    fails(doubled .. "{{ ns.x | tojson }}", "too many steps")
    local again = doubled:gsub("ns", "other")
    fails(doubled .. again .. "{{ ns.x == other.x }}", "too many steps")
    local deep = start .. loop .. "{% set ns.x = [ns.x] %}{% endfor %}"
    fails(deep .. "{{ ns.x }}", "too deep")
    fails(deep .. "{{ ns.x | tojson }}", "512")
    fails(loop .. "{{ 'x' * 10000 }}{% endfor %}", "bytes of output")
    fails("{{ 'x' * 10 ** 12 }}", "longer than")
    fails("{{ [1] * 10 ** 12 }}", "too many steps")
    fails("{{ range(100001) }}", "more than 100000")
    fails("{{ ('a' * 10 ** 7).find('a' * 10 ** 6) }}", "too many steps")
    fails("{{ ('a' * 10 ** 7).replace('a', 'bbbbbbbbbb') }}", "longer than")
    fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "macros nested deeper")
    fails("{{ '%9999d' % 1 }}", "no such format")
    fails("{{ " .. ("("):rep(200) .. "1" .. (")"):rep(200) .. " }}", "deeper", "refused")
    fails("{{ 1" .. ("+1"):rep(60000) .. " }}", "too deep", "refused")
    fails(("{% if 1 %}"):rep(200), "deeper", "refused")
    fails(("{{ 1 }}"):rep(70000), "more than 200000 tokens", "refused")
  end)

  it("prints the time it is given", function()
    local t = template.compile "{{ strftime_now('%Y-%m-%d *t !%H') }}"
    local now = os.time { year = 2025, month = 7, day = 8, hour = 9 }
    assert.equal("2025-07-08 *t !09", t:render({}, { now = now }))
    assert.truthy(t:render({}):find "^20%d%d")
  end)

  it("reads floats of any size", function()
    for source, want in pairs { ["{{ 1e400 }}"] = "inf", ["{{ 1E1115011343 }}"] = "inf",
        ["{{ 1e-99999999999 }}"] = "0.0", ["{{ 0.0e99999999999 }}"] = "0.0" } do
      assert.equal(want, assert(template.compile(source)):render({}))
    end
  end)

  it("passes integers of any size through, and computes nothing with long ones", function()
    local long = "18446744073709551617"
    local vars = { x = json.decode("[" .. long .. "," .. long .. ",9007199254740993]") }
    for source, wanted in pairs {
      ["{{ x | tojson }}"] = "[" .. long .. ", " .. long .. ", 9007199254740993]",
      ["{{ x[0] ~ x[2] }}"] = long .. "9007199254740993",
      ["{{ x[0] is integer }} {{ x[0] is number }}"] = "True True",
      ["{{ x[0] == x[1] }} {{ x[0] == x[2] }} {{ x[2] < x[0] }}"] = "True False True",
      ["{{ x[0] | int }} {{ x[0] | string | length }}"] = long .. " 20",
      ["{{ 'a' if x[0] else 'b' }}{{ x[0] / 2 }}"] = "a9.223372036854776e+18",
    } do
      assert.equal(wanted, render(source, vars))
    end
    for _, source in ipairs { "x[0] + 1", "x[0] % 10", "x[2] // x[2]", "x[0] is odd",
      "range(x[0])", "x[0:x[2]]", "x[2] ** 0" } do
      local text, why = render("{{ " .. source .. " }}", vars)
      assert.is_nil(text, source)
      assert.truthy(why:find("integer beyond 2^53", 1, true), source .. ": " .. why)
    end
  end)

  it("names a long chain by its end", function()
    local vars = { x = json.decode(('{"k":'):rep(40) .. "{}" .. ("}"):rep(40)) }
    for _, link in ipairs { ".k", "['k']" } do
      local text, why = render("{{ x" .. link:rep(40) .. ".y.z }}", vars)
      assert.is_nil(text)
      assert.matches("^template: line 1: '%.%.%.[%.%[]k.*[k%]]%.y' is undefined$", why)
      assert.is_true(#why < 100, why)
    end
  end)

  it("names what it does not do", function()
    fails("{{ '{:>4}'.format(1) }}", "format takes names and numbers alone in braces")
    fails("{% macro m(a) %}{{ varargs }}{% endmacro %}{{ m(1, 2) }}", "m takes at most 1")
    fails("{{ 2 ** 60 }}", "beyond 2^53")
    fails("{% if x is nothing %}{% endif %}", "no test 'nothing'")
    fails("{% if true %}\n{{ x | nothing }}{% endif %}", "line 2: no filter 'nothing'")
  end)
end)
