-- SPDX-License-Identifier: Apache-2.0
-- What the documentation shows must work: recipes in it load, generated pages are current.

local help = require "perilune.console.manual"
local recipe = require "perilune.recipe.resolve"
local schema = require "perilune.recipe.schema"
local shape = require "shape"
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

-- The blocks that are no recipes.
local function fragments(path)
  local out = {}
  for block in read(path):gmatch "```lua\n(.-)```" do
    if not block:find "\nreturn " then out[#out + 1] = block end
  end
  return out
end

local function files(pattern)
  local list = io.popen(("cd '%s' && ls %s"):format(root, pattern))
  local out = {}
  for name in list:lines() do out[#out + 1] = name end
  list:close()
  return out
end

local PAGES = files("*.md docs/*.md docs/decisions/*.md core/README.md lua/README.md "
  .. "tests/golden/README.md examples/*.service")

-- fn(page, text) of each page answers what is wrong there: a list.
local function none_wrong(fn)
  local wrong = {}
  for _, page in ipairs(PAGES) do
    for _, what in ipairs(fn(page, read(root .. "/" .. page))) do
      wrong[#wrong + 1] = page .. ": " .. what
    end
  end
  assert.same({}, wrong)
end

-- What a shell is told in a page: indented lines, and what stands between backticks.
local function commands(text)
  local out = {}
  for line in text:gmatch "[^\n]+" do
    if line:find "^    " then
      out[#out + 1] = line
    else
      for code in line:gmatch "`([^`]+)`" do out[#out + 1] = code end
    end
  end
  return out
end

local function words_of_cli()
  local words = { lua = true }              -- main.c's own
  for word in read(root .. "/lua/perilune/tools/cli.lua"):gmatch "\nfunction words%.(%l+)" do
    words[word] = true
  end
  return words
end

-- Programs' texts in which a flag that is no option may be declared or read.
local function programs()
  local all = { read(root .. "/dev"), read(root .. "/tests/golden/generate.py") }
  for _, name in ipairs(files "lua/perilune/*/*.lua bench/*.lua") do
    all[#all + 1] = read(root .. "/" .. name)
  end
  return table.concat(all)
end

-- Flags that stand for any, and curl's.
local NO_FLAGS = { ["name"] = true, ["no-name"] = true, ["unix-socket"] = true }

describe("the documentation", function()
  it("shows code that runs: docs/hooks.md", function()
    local found = fragments(root .. "/docs/hooks.md")
    assert.is_true(#found > 0)
    for _, block in ipairs(found) do assert(loadstring(block, "=hooks.md"))() end
  end)

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

  it("shows a hook in README that does what it says", function()
    local hook
    for _, block in ipairs(blocks(root .. "/README.md")) do
      if block:find "admit" then hook = block end
    end
    local path = os.tmpname() .. ".lua"
    local f = assert(io.open(path, "wb"))
    f:write(hook)
    f:close()
    local loaded = require("perilune").load(path)
    os.remove(path)
    local one, other = { tokens = 1000, tenant = "one" }, { tokens = 10, tenant = "other" }
    assert.is_nil(loaded.admit(one))
    loaded.done(one, { tokens = 98999 })
    assert.is_nil(loaded.admit(one))
    loaded.done(one, { tokens = 1 })
    local answer = loaded.admit(one)
    assert.equal(429, answer.status)
    assert.is_true(answer.retry_after > 0 and answer.retry_after <= 3600)
    assert.is_nil(loaded.admit(other))
  end)

  it("lists the metrics there are", function()
    assert.equal(require("perilune.console.manual").metrics() .. "\n", read(root .. "/docs/metrics.md"),
      "write it anew: perilune help metrics > docs/metrics.md")
  end)

  it("lists the sampler's options", function()
    assert.equal(require("perilune.console.manual").sampling() .. "\n", read(root .. "/docs/sampling.md"),
      "write it anew: perilune help sampling > docs/sampling.md")
  end)

  it("names flags that there are", function()
    local known = programs()
    none_wrong(function(_, text)
      local wrong = {}
      for flag in text:gmatch "%f[%S`]%-%-(%l[%w.-]*)" do
        local name = flag:gsub("-", "_")
        local is_one = schema.find(name) or NO_FLAGS[flag]
          or schema.find((name:gsub("^no_", "")))
          or schema.find((name:gsub("^%l+%.", "")))   -- of one pool
          or schema.find((name:gsub("%..*", "")))     -- one field of a table
          or known:find("--" .. flag, 1, true)
          or (known .. text):find(('{ "%s",'):format(name), 1, true)
        if not is_one then wrong[#wrong + 1] = "--" .. flag end
      end
      return wrong
    end)
  end)

  it("names words of the command line that there are, and the usage all of them", function()
    local words = words_of_cli()
    none_wrong(function(_, text)
      local wrong = {}
      for _, command in ipairs(commands(text)) do
        local word = command:match "^%s*perilune (%l+)"
          or command:match "build/perilune (%l+)"
        if word and not words[word] then wrong[#wrong + 1] = "perilune " .. word end
      end
      return wrong
    end)
    for word in pairs(words) do
      assert.is_truthy(help.usage():find("\n  perilune " .. word .. "%f[^%l]"), word)
    end
  end)

  it("links to pages and files that there are", function()
    none_wrong(function(page, text)
      local wrong, folder = {}, page:match "^(.*/)" or ""
      for target in text:gmatch "%]%(([^)#:]+)%)" do
        local f = io.open(root .. "/" .. folder .. target)
        if f then f:close() else wrong[#wrong + 1] = target end
      end
      return wrong
    end)
  end)

  -- A name may leave out the folders that the page is about; NAME stands for any.
  it("names files that there are, where it says what is where", function()
    local list, wrong, n = "\n", {}, 0
    local pipe = io.popen(("cd '%s' && find . -type f ! -path './build*'"):format(root))
    list = list .. pipe:read "*a"
    pipe:close()
    local kinds = { lua = true, c = true, h = true, inl = true, py = true, json = true }
    for _, page in ipairs { "docs/adding.md", "docs/tour.md", "core/README.md",
                            "lua/README.md" } do
      for name, kind in read(root .. "/" .. page):gmatch "`([%w_/.*-]+%.(%l+))`" do
        if kinds[kind] and name ~= "lua.h" and not name:find "NAME" then
          local pattern = "/" .. name:gsub("[.-]", "%%%0"):gsub("%*", "[^/\n]*") .. "\n"
          n = n + 1
          if not list:find(pattern) then wrong[#wrong + 1] = page .. ": " .. name end
        end
      end
    end
    assert.same({}, wrong)
    assert.is_true(n > 200)
  end)

  it("maps the modules of core as their includes go", function()
    local there, lines = {}, {}
    for _, name in ipairs(files "core") do
      there[name:match "^(%w+)%.[ch]$" or ""] = true
    end
    for i, modules in ipairs(shape.lines) do
      local line = {}
      for _, module in ipairs(modules) do
        if there[module] then line[#line + 1] = module end
      end
      lines[i] = table.concat(line, "  ")
    end
    local map = read(root .. "/core/README.md"):match "```\n(.-)\n```"
    assert.equal(table.concat(lines, "\n"), map)
  end)
end)
