-- SPDX-License-Identifier: Apache-2.0
-- perilune new and perilune test: a recipe of one's own, and its tests.
local cjson = require "cjson.safe"
local new = require "perilune.tools.new"
local recipe = require "perilune.recipe.resolve"
local scratch = require "scratch"
local root = require("perilune.host").root

local dir
before_each(function() dir = scratch.folder() end)
after_each(function() dir.remove() end)

-- The program run in the folder: exit code, stdout, stderr.
local function run(words, env)
  return scratch.sh(("cd '%s' && env -u PERILUNE_MODEL %s %s %s"):format(dir.path, env or "",
    scratch.program, words))
end

local function slurp(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

local function shipped()
  local list = io.popen(("cd '%s/recipes' && ls *.lua policies/*.lua"):format(root))
  local out = {}
  for name in list:lines() do out[#out + 1] = name:gsub("%.lua$", "") end
  list:close()
  return out
end

-- What a recipe's file says, hooks as that they are there.
local function settings(path)
  local out = {}
  for _, s in ipairs(recipe.settings(assert(recipe.resolve(path, {}, function() end)))) do
    out[s.path] = type(s.value) == "function" and "a hook" or s.value
  end
  return out
end

describe("perilune new", function()
  it("begins a recipe that is the same as the shipped one, for each of them", function()
    for i, name in ipairs(shipped()) do
      local file = ("own%d.lua"):format(i)
      local path = dir.write(file, new.text(slurp(root .. "/recipes/" .. name .. ".lua"), name, file))
      assert.same(settings(root .. "/recipes/" .. name .. ".lua"), settings(path), name)
      local text = slurp(path)
      assert.matches("^%-%- " .. file .. " %- ", text, name)
      assert.matches("\n%-%-\n%-%- Begun from " .. name .. "%.\n\n", text)
      assert.matches("\n%-%-%-@type perilune.Recipe\nlocal recipe = {", text, name)
      assert.is_nil(text:find "SPDX")
    end
  end)

  it("says of the hooks what they are given", function()
    local code, out, err = run "new my --from agg_router"
    assert.same({ 0, "" }, { code, err })
    assert.matches("perilune run my.lua %-%-model MODEL %-%-watch", out)
    local text = slurp(dir.path .. "/my.lua")
    assert.truthy(text:find("\n---@param req perilune.Request\n---@param w perilune.Worker\n"
      .. "local function cost(req, w)\n", 1, true), text)
    assert.truthy(text:find("\n---@param req perilune.Request\n---@param fleet perilune.Fleet\n"
      .. "local function pick(req, fleet)\n", 1, true), text)
    local rc = cjson.decode(slurp(dir.path .. "/.luarc.json"))
    assert.equal("LuaJIT", rc["runtime.version"])
    assert.truthy(slurp(rc["workspace.library"][1] .. "/perilune.lua"):find "^%-%-%-@meta perilune\n")
    assert.equal(0, (run "check my.lua --port 9"))
  end)

  it("begins from agg, overwrites nothing, and leaves an editor's settings alone", function()
    dir.write(".luarc.json", "mine")
    dir.write("there.lua", "old")
    assert.equal(0, (run "new sub.lua"))
    assert.matches("Begun from agg%.", slurp(dir.path .. "/sub.lua"))
    assert.equal("mine", slurp(dir.path .. "/.luarc.json"))
    local code, out, err = run "new there.lua"
    assert.same({ 1, "", "perilune: 'there.lua' exists already\n" }, { code, out, err })
    assert.equal("old", slurp(dir.path .. "/there.lua"))
    code, out, err = run "new nowhere/x.lua"
    assert.equal("", out)
    assert.equal(1, code)
    assert.matches("nowhere/x.lua", err)
  end)

  it("says what is wrong, and which recipes there are", function()
    for words, why in pairs {
      ["new"] = "'new' needs a file",
      ["new --from agg"] = "'new' needs a file",
      ["new x --from agg_route"] = "no recipe 'agg_route' comes with perilune; did you mean 'agg_router'%?\n"
        .. "    .*tenants, policies/bounded_load.*policies/warm\n",
      ["new x --from ../tests/busted"] = "no recipe '../tests/busted'",
      ["new x --form agg"] = "no option '%-%-form'",
      ["new x y"] = "'y' is one word too many",
    } do
      local code, out, err = run(words)
      assert.same({ 2, "" }, { code, out }, words)
      assert.matches(why, err)
      assert.is_nil(io.open(dir.path .. "/x.lua"))
    end
    local code, out = run "new --help"
    assert.equal(0, code)
    assert.matches("policies/warm", out)
  end)
end)

local RECIPE = [[
local pl = require "perilune"
local function cost(req, w) return req.blocks - w.cached + w.decoding end
return { worker = { cost = cost } }]]

local SPEC = [[
local pl = require "perilune"
describe("my recipe", function()
  it("goes where it is warm", function()
    local recipe = pl.load "my.lua"
    local fleet = pl.fleet { { name = "idle" }, { name = "warm", cached = %d } }
    assert.equal("warm", fleet:cheapest({ blocks = 20 }, recipe.worker.cost).name)
    assert.is_truthy(jit)
  end)
end)]]

describe("perilune test", function()
  it("runs specs of recipes, as many as there are", function()
    dir.write("my.lua", RECIPE)
    dir.write("my_spec.lua", SPEC:format(5))
    dir.write("other_spec.lua", SPEC:format(7))
    local code, out, err = run "test my_spec.lua other_spec.lua -o plainTerminal"
    assert.same({ 0, "" }, { code, err }, out)
    assert.matches("2 successes / 0 failures", out)
  end)

  it("fails where a test does, or a spec is wrong", function()
    dir.write("my.lua", RECIPE)
    dir.write("my_spec.lua", SPEC:format(0))
    local code, out = run "test my_spec.lua -o plainTerminal"
    assert.equal(1, code)
    assert.matches("0 successes / 1 failure", out)
    dir.write("bad_spec.lua", "this is no Lua")
    assert.equal(1, (run "test bad_spec.lua -o plainTerminal"))
  end)

  it("says what is wrong with the command", function()
    local code, out, err = run "test"
    assert.same({ 2, "" }, { code, out })
    assert.matches("'test' needs a spec", err)
    code, out, err = run "test none_spec.lua"
    assert.equal("", out)
    assert.equal(2, code)
    assert.equal("perilune: no file 'none_spec.lua'\n", err)
    assert.matches("busted", select(2, run "test --help"))
  end)

  it("says how to get busted where there is none", function()
    dir.write("my_spec.lua", "")
    local code, _, err = run("test my_spec.lua", "LUA_PATH=/nowhere/?.lua")
    assert.equal(2, code)
    assert.matches("'test' needs busted\n    apt%-get install lua%-busted", err)
  end)
end)
