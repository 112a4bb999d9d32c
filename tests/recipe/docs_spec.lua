-- SPDX-License-Identifier: Apache-2.0
-- What the documentation shows must work: recipes in it load, generated pages are current.

local recipe = require "perilune.recipe"
local root = require("perilune.host").root

local function read(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

local function blocks(path)
  local out = {}
  for block in read(path):gmatch "```lua\n(.-)```" do
    if block:find "\nreturn " then out[#out + 1] = block end
  end
  return out
end

describe("the documentation", function()
  for _, page in ipairs { "README.md", "docs/recipes.md", "docs/hooks.md" } do
    it("shows recipes that load: " .. page, function()
      local found = blocks(root .. "/" .. page)
      assert.is_true(#found > 0)
      for _, block in ipairs(found) do
        local path = os.tmpname() .. ".lua"
        local f = assert(io.open(path, "wb"))
        f:write(block)
        f:close()
        local resolved, problems = recipe.resolve(path, {})
        os.remove(path)
        assert.is_truthy(resolved, problems and problems[1] and problems[1].text)
      end
    end)
  end

  it("lists the metrics there are", function()
    assert.equal(require("perilune.help").metrics() .. "\n", read(root .. "/docs/metrics.md"),
      "write it anew: perilune help metrics > docs/metrics.md")
  end)
end)
