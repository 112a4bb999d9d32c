-- SPDX-License-Identifier: Apache-2.0
-- What the documentation shows must work: recipes in it load, generated pages are current.

local fleet_view = require "perilune.recipe.fleet_view"
local help = require "perilune.console.manual"
local hook_view = require "perilune.recipe.hook_view"
local hooks = require "perilune.recipe.hooks"
local recipe = require "perilune.recipe.resolve"
local schema = require "perilune.recipe.schema"
local scratch = require "scratch"
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

-- The blocks of a page by what they are: specs, recipes, and what is neither.
local function code_of(path)
  local specs, pieces = {}, {}
  for block in read(path):gmatch "```lua\n(.-)```" do
    local to = block:find "\ndescribe%(" and specs or not block:find "\nreturn " and pieces
    if to then to[#to + 1] = block end
  end
  return specs, blocks(path), pieces
end

local function in_folder(fn)
  local dir = scratch.folder()
  local ok, why = pcall(fn, dir)
  dir.remove()
  if not ok then error(why, 0) end
end

local function run_spec(block)
  in_folder(function(dir)
    dir.write("my.lua", read(root .. "/recipes/agg_router.lua"))
    dir.write("my_spec.lua", block)
    local code, out, err = scratch.sh(("cd '%s' && %s test my_spec.lua -o plainTerminal"):format(
      dir.path, scratch.program))
    assert.equal(0, code, out .. err)
  end)
end

-- Asks all hooks of a recipe about requests, short and long, from several tenants.
local function ask_hooks(block)
  in_folder(function(dir)
    local r, problems = recipe.resolve(dir.write("r.lua", block), {})
    assert(r, problems and problems[1].text)
    local server, view = { recipe = r }, fleet_view.new()
    for i = 1, 12 do
      local tokens = 400 * i * i
      local req = hook_view.new { id = "r" .. i, model = "m", tenant = "t" .. i % 3, tokens = tokens,
        total = tokens, max_tokens = 9, n = 1, stream = true, priority = i % 2, moves = i % 4,
        block_size = 16, recorded = { ["x-user"] = "u" }, key = function(_, k) return k + 0ULL end }
      view:begin()
      for k = 0, 2 do view:add(nil, -1, 0, k, "worker/" .. k, { "small" }) end
      hooks.ask(server, "admit", req)
      for _, pool in ipairs(r.pools) do
        hooks.choose(server, pool, req, view)
        if r[pool].queue then hooks.rank(server, pool, req) end
        if r[pool].split then hooks.split(server, req, view:worker(0), view:fleet()) end
      end
      hooks.ask(server, "migrate", req, { name = "worker/1", reason = "gone", numerics = "n" })
      if r.done then hooks.tell(server, r.done, req, { finish = "length", tokens = 9, ttft = 0.1 }) end
    end
    view:close()
    local paths = { "admit", "migrate", "done" }
    for _, pool in ipairs(r.pools) do
      for _, hook in ipairs { "cost", "pick", "queue", "split" } do
        paths[#paths + 1] = pool .. "." .. hook
      end
    end
    for _, path in ipairs(paths) do
      local about = hooks.about(r, path)
      assert.is_true(not about or about.errors == 0, about and about.error)
      assert.equal(recipe.get(r, path) ~= nil, about ~= nil, path)
    end
  end)
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
  -- A recipe of a page is loaded, and its hooks are asked as a server asks them; a spec is
  -- run beside a copy of agg_router; what is left are lines that run by themselves.
  for _, page in ipairs(PAGES) do
    local specs, recipes, pieces = code_of(root .. "/" .. page)
    local n = #specs + #recipes + #pieces
    if n > 0 and not page:find "^docs/decisions/" then          -- these show parts of ours
      it(("shows code that runs: %s, %d times"):format(page, n), function()
        for _, block in ipairs(specs) do run_spec(block) end
        for _, block in ipairs(recipes) do ask_hooks(block) end
        for _, block in ipairs(pieces) do assert(loadstring(block, "=" .. page))() end
      end)
    end
  end

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
