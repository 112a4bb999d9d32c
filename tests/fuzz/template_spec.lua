-- SPDX-License-Identifier: Apache-2.0
-- Templates and values at random, from a fixed seed: whatever they are, the answer is a
-- text or an error of the template's own, never a defect of perilune's.
local json = require "perilune.json"
local template = require "perilune.jinja.template"

local state

-- Park and Miller's generator: the same numbers everywhere.
local function draw(n)
  state = state * 16807 % 2147483647
  return state % n + 1
end

local function one_of(list)
  return list[draw(#list)]
end

local pieces = {
  "{{ ", " }}", "{% ", " %}", "{%- ", " -%}", "{# ", " #}", "\n", " ", "'", '"', "x",
  "l", "d", "s", "u", "n", "loop", "ns", "1", "0", "-3", "2.5", "1e9", "'é\\n'", "true",
  "none", "(", ")", "[", "]", "{", "}", ",", ":", ".", "|", "~", "+", "-", "*", "/",
  "//", "%", "**", "==", "<", "in", "not", "is", "and", "or", "if", "else", "for",
  "endfor", "endif", "elif", "set", "endset", "macro", "m()", "endmacro", "break",
  "continue", "raw", "endraw", "call", "endcall", "filter", "endfilter", "with",
  "endwith", "generation", "=", "items", "get", "split", "strip", "replace", "format",
  "join", "namespace(a=1)", "range(5)", "dict(a=1)", "cycler(1, 2)", "joiner()",
  "tojson", "trim", "map", "select", "selectattr", "sort", "unique", "default", "first",
  "last", "length", "round", "int", "batch", "indent", "defined", "string", "mapping",
  "odd", "'upper'", "attribute=", "*l", "**d", "strftime_now('%Y')", "\255", "é"
}

local expressions = {
  "x", "l", "d", "s", "u", "n", "undefined", "1", "-2", "2.5", "1.0", "'a'", "''",
  "true", "none", "[]", "{}", "(1, 'b')", "d.items()", "l | map('string')", "range(3)",
  "namespace(a=1)", "dict", "9007199254740991", "1e308", "d.keys()", "'%s'", "'{}'"
}

local filters = {
  "upper", "title", "capitalize", "trim", "replace", "indent", "tojson", "int", "float",
  "abs", "round", "sort", "dictsort", "unique", "min", "max", "sum", "length", "first",
  "last", "list", "reverse", "join", "items", "batch", "default", "map", "select",
  "reject", "selectattr", "rejectattr", "string", "escape", "format", "wordcount"
}

local methods = { "strip", "split", "rsplit", "partition", "splitlines", "startswith",
  "endswith", "replace", "find", "index", "count", "join", "upper", "title", "isdigit",
  "format", "get", "items", "keys", "values", "a", "0", "removeprefix", "isupper" }

local operators = { "+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "in",
  "not in", "and", "or", "is", "is not" }

local tests = { "odd", "divisibleby", "in", "eq", "lt", "sameas", "lower", "filter" }

local expression

local function arguments(depth)
  local list = {}
  for i = 1, draw(4) - 1 do list[i] = expression(depth + 1) end
  return "(" .. table.concat(list, ", ") .. ")"
end

local shapes = {
  function() return one_of(expressions) end,
  function(d)
    return expression(d) .. " " .. one_of(operators) .. " " .. expression(d)
  end,
  function(d)
    return "(" .. expression(d) .. ") | " .. one_of(filters) .. arguments(d)
  end,
  function(d) return "(" .. expression(d) .. ") | " .. one_of(filters) end,
  function(d)
    return "(" .. expression(d) .. ")." .. one_of(methods) .. arguments(d)
  end,
  function(d)
    return "(" .. expression(d) .. ") is " .. one_of(tests) .. arguments(d)
  end,
  function(d) return "(" .. expression(d) .. ")[" .. expression(d) .. "]" end,
  function(d)
    return "(" .. expression(d) .. ")[" .. expression(d) .. ":" .. expression(d) .. ":"
      .. one_of(expressions) .. "]"
  end,
  function(d) return "[" .. expression(d) .. ", " .. expression(d) .. "]" end,
  function(d) return "{" .. expression(d) .. ": " .. expression(d) .. "}" end,
}

function expression(depth)
  depth = (depth or 0) + 1
  return depth > 4 and one_of(expressions) or one_of(shapes)(depth)
end

local vars = {
  x = 3, s = " Hello <World>\n", u = "Größe 你好", n = json.null, bad = "\255\200",
  l = json.decode '[3, 1.0, "a", null, [2], {"a": 1}, 9007199254740993, true]',
  d = json.decode '{"b": 1, "a": [1, 2], "items": {"x": null}}',
}

local function check(source)
  local t, why = template.compile(source)
  if t then
    local text, message, kind = t:render(vars, { now = 0 })
    if text then return assert.equal("string", type(text)) end
    assert.truthy(kind == "error" or kind == "raised", source)
    why = message
  end
  assert.equal("string", type(why), source)
  assert.is_nil(why:find("internal:", 1, true), source .. "\n" .. why)
end

describe("template, at random", function()
  it("answers expressions made from the grammar", function()
    state = 20250101
    for _ = 1, 8000 do check("{{ " .. expression() .. " }}") end
  end)

  it("answers pieces in any order", function()
    state = 20250102
    for _ = 1, 6000 do
      local list = {}
      for i = 1, draw(12) do list[i] = one_of(pieces) end
      check("{% for x in l %}{{ " .. table.concat(list, " ") .. " }}{% endfor %}")
      check(table.concat(list))
    end
  end)

  it("answers real templates with bytes changed", function()
    state = 20250103
    local base = [[
{%- macro m(a, b=2) %}{{ a ~ b }}{% endmacro %}{% set ns = namespace(x=0) -%}
{% for k, v in d.items() if v %}{% set ns.x = ns.x + loop.index %}
{{ loop.first }}{{ k | trim }}: {{ v | tojson(indent=2) }}{{ m(k, b=v) }}
{%- if not loop.last and (l[1:] | length > 2 or s.split('l')[-1]) is string %}, {% else
%}.{%- endif %}{% endfor %}{% filter upper %}{{ ns.x }}{{ '%s' % u[::-1] }}{% endfilter %}
]]
    for _ = 1, 4000 do
      local source = base
      for _ = 1, draw(3) do
        local at = draw(#source)
        local piece = draw(2) == 1 and "" or one_of(pieces)
        source = source:sub(1, at - 1) .. piece .. source:sub(at + draw(4) - 1)
      end
      check(source)
    end
  end)
end)
