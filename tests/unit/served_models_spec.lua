-- SPDX-License-Identifier: Apache-2.0
-- Which models of the bus a frontend serves, by what its recipe says of its own.
local model = require "perilune.model.load"
local models = require "perilune.fleet.served_models"
local prepare = require "perilune.api.prepare"
local recipe = require "perilune.recipe.resolve"
local scratch = require "scratch"
local tokenizer = require "perilune.model.tokenizer"

local SNAPSHOT = "/cache/hub/models--org--tiny/snapshots/0123abc"

describe("the models that a frontend serves", function()
  local dir
  setup(function() dir = scratch.folder() end)
  teardown(function() dir.remove() end)

  local function resolve(text, env)
    return assert(recipe.resolve(dir.write("r.lua", text), {},
      function(name) return env and env[name] end))
  end

  local function recipe_of(path, served)
    return resolve(("return { worker = {}, model = %s, served_model_name = %s }"):format(
      path and ("%q"):format(path) or nil, served and ("%q"):format(served) or nil))
  end

  -- What a worker says whose recipe has these, the model found at `found`.
  local function worker(path, served, found)
    local r = recipe_of(path, served)
    local desc = { name = model.name(found or path) }
    return { names = { served or desc.name }, known_as = models.known_as(r, desc) }
  end

  local function takes(front, m) return (models.wanted(front)(m)) end

  it("are those of its own recipe, however it spells them", function()
    for _, path in ipairs { "x.gguf", "/a/x.gguf", "folder", "folder/", "../a/folder//", ".",
        "org/name", SNAPSHOT } do
      for _, served in ipairs { false, "name" } do
        assert.is_true(takes(recipe_of(path, served), worker(path, served)), path)
      end
    end
    assert.is_true(takes(recipe_of "org/tiny", worker("org/tiny", nil, SNAPSHOT)))
  end)

  it("are those of another spelling, of another host too", function()
    for theirs, spellings in pairs {
      ["/data/x.gguf"] = { "x.gguf", "./x.gguf", "/nowhere/x.gguf", "x" },
      ["models/folder"] = { "models/folder/", "/nowhere/models/folder", "folder", "./folder/" },
    } do
      for _, ours in ipairs(spellings) do
        assert.is_true(takes(recipe_of(ours), worker(theirs)), ours)
        assert.is_true(takes(recipe_of(ours), worker(theirs, "served")), ours)
      end
      assert.is_true(takes(recipe_of "served", worker(theirs, "served")))
    end
    local hub = worker("org/tiny", nil, SNAPSHOT)
    for _, ours in ipairs { SNAPSHOT, SNAPSHOT .. "/" } do
      assert.is_true(takes(recipe_of(ours), hub), ours)
    end
    assert.is_true(takes(recipe_of "org/tiny", worker(SNAPSHOT)))
  end)

  it("are no others: which it wanted, and which came, is told", function()
    local matches, text = models.wanted(recipe_of "a/x.gguf")
    assert.equal("model 'a/x.gguf'", text)
    assert.same({ nil, "its model is 'a/y.gguf', wanted 'a/x.gguf'" },
      { nil, select(2, matches(worker "a/y.gguf")) })
    assert.is_nil(takes(recipe_of "mine/tiny", worker("org/tiny", nil, SNAPSHOT)))
    assert.is_nil(takes(recipe_of "x.gguf", worker("y.gguf", "z")))
    matches, text = models.wanted(recipe_of("x.gguf", "one"))
    assert.equal("model 'one'", text)
    assert.equal("it serves 'two', wanted 'one'", select(2, matches(worker("x.gguf", "two"))))
    assert.is_nil(takes(recipe_of("x.gguf", "one"), worker("y.gguf", "one")))
  end)

  it("are all where it names none", function()
    local matches, text = models.wanted(recipe_of())
    assert.equal("any model", text)
    assert.is_true(matches(worker "x.gguf"))
    assert.is_true(takes(resolve("return { worker = {} }", { PERILUNE_MODEL = "y" }),
      worker "x.gguf"))
    assert.is_nil(takes(recipe_of(nil, "one"), worker "x.gguf"))
  end)
end)

describe("a context", function()
  local dir
  setup(function() dir = scratch.folder() end)
  teardown(function() dir.remove() end)

  -- Contexts of models that differ in their names alone.
  local function contexts(...)
    local r = assert(recipe.resolve(dir.write("r.lua", "return { model = 'x', worker = {} }"),
      {},
      function() end))
    local list = models.new(r)
    for _, name in ipairs { ... } do
      list:add({ names = { name }, vocab = 600, max_model_len = 64, generation = {},
        eos_ids = { 596, 5 } }, assert(tokenizer.from_directory "tests/golden/llama"))
    end
    return list.contexts
  end

  it("ends at the tokenizer's own end besides what the files list", function()
    assert.same({ 596, 5, 599 }, contexts("a")[1].eos_ids)
  end)

  it("is told of a request that it refuses", function()
    local list = contexts("a", "b")
    local function refused(body)
      return assert(prepare.run(list, "completion", body, #body).refused)
    end
    for _, name in ipairs { "a", "b" } do
      local r = refused(('{"model":"%s","prompt":"x","temperature":-1}'):format(name))
      assert.same({ 400, name }, { r.status, r.model_key })
      r = refused(('{"model":"%s","prompt":7}'):format(name))
      assert.same({ 400, name }, { r.status, r.model_key })
    end
    assert.is_nil(refused('{"model":"c","prompt":"x"}').model_key)
    assert.is_nil(refused("[").model_key)
  end)
end)
