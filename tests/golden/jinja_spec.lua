-- SPDX-License-Identifier: Apache-2.0
-- Snippets against what Jinja itself renders: jinja.py wrote jinja.json.
local json = require "perilune.json"
local template = require "perilune.jinja.template"

local now = os.time { year = 2025, month = 2, day = 3, hour = 4, min = 5, sec = 6 }

-- What became of a source, in the words of jinja.json.
local function render(source, vars)
  local t = template.compile(source)
  if not t then return "refused", true end
  local text, why, kind = t:render(vars, { now = now })
  if text then return "text", text end
  if kind == "raised" then return kind, why end
  return "error", true
end

describe("template", function()
  it("renders what Jinja renders", function()
    local file = assert(io.open("tests/golden/jinja.json", "rb"))
    local doc = assert(json.decode(file:read "*a"))
    file:close()
    local vars = {}
    for _, key, v in json.pairs(doc.vars) do vars[key] = v end
    assert.is_true(#doc.cases > 500)
    for _, case in ipairs(doc.cases) do
      local kind, result = render(case.source, vars)
      assert.equal(case[kind], result, case.source)
    end
  end)
end)
