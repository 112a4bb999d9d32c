-- SPDX-License-Identifier: Apache-2.0
-- perilune run --watch: which changes of files reload a recipe.
local follow = require "perilune.recipe.follow"
local live = require "perilune.recipe.live"
local log = require "perilune.log"
local recipe = require "perilune.recipe.resolve"
local scratch = require "scratch"

describe("a recipe that is watched", function()
  local dir, said, kept, process, follower
  before_each(function()
    dir, said, kept = scratch.folder(), {}, { info = log.info, error = log.error }
    for level in pairs(kept) do
      log[level] = function(text, ...) said[#said + 1] = level .. ": " .. text:format(...) end
    end
  end)
  after_each(function()
    for level, fn in pairs(kept) do log[level] = fn end
    dir.remove()
  end)

  local function start(text)
    local path = dir.write("r.lua", text)
    process = { recipe = assert(recipe.resolve(path, {}, function() end)), reload = live.reload }
    follower = follow.new(process)
  end

  -- As an editor does: beside it, then over it.
  local function rename(name, text)
    dir.write(name .. "~", text)
    assert(os.rename(dir.path .. "/" .. name .. "~", dir.path .. "/" .. name))
  end

  local function look(n)
    for _ = 1, n do follower:look() end
    local news = table.concat(said, "\n")
    said = {}
    return (news:gsub(dir.path .. "/", ""))
  end

  it("is reloaded once it has changed, by whatever way, and only then", function()
    start "return { worker = {}, max_logprobs = 7 }"
    assert.equal("", look(3))
    rename("r.lua", "return { worker = {}, max_logprobs = 8 }")
    assert.matches("^info: r.lua is read again: max_logprobs changed 7 %-> 8$", look(4))
    assert.equal(8, process.recipe.max_logprobs)
    dir.write("r.lua", "return { worker = {}, max_logprobs = 9 }")
    assert.matches("8 %-> 9$", look(4))
    assert.equal("", look(3))
  end)

  it("waits until a file is written", function()
    start "return { worker = {}, max_logprobs = 7 }"
    dir.write("r.lua", "return { worker = {}, max_logp")
    assert.equal("", look(1))
    dir.write("r.lua", "return { worker = {}, max_logprobs = 8 }")
    assert.equal("", look(1))
    assert.matches("7 %-> 8$", look(1))
  end)

  it("stays as it is where the file is broken, which is said once", function()
    start "return { worker = {}, max_logprobs = 7 }"
    dir.write("r.lua", "return { worker = {}, max_logprobs = 'x' }")
    local news = look(5)
    assert.matches("^error: reload: nothing changed: r.lua:1: max_logprobs is 'x'", news)
    assert.equal(1, select(2, news:gsub("nothing changed", "")))
    assert.equal(7, process.recipe.max_logprobs)
    dir.write("r.lua", "return { worker = {")
    assert.matches("^error: reload: nothing changed", look(5))
    os.remove(dir.path .. "/r.lua")
    assert.matches("^error: reload: nothing changed: no recipe", look(5))
    dir.write("r.lua", "return { worker = {}, max_logprobs = 7 }")
    assert.matches("no changes$", look(5))
    dir.write("r.lua", "return { worker = {}, max_logprobs = 5 }")
    assert.matches("7 %-> 5$", look(5))
  end)

  it("is reloaded for the sake of what it requires and extends, also what was not there", function()
    dir.write("base.lua", "return { worker = {}, max_logprobs = require 'number' }")
    dir.write("number.lua", "return 3")
    start "local pl = require 'perilune' return pl.extend('base', {})"
    assert.equal(3, process.recipe.max_logprobs)
    rename("number.lua", "return 4")
    assert.matches("3 %-> 4$", look(3))
    dir.write("base.lua", "return { worker = {}, max_logprobs = require 'other' }")
    assert.matches("no 'other': looked for 'other.lua'", look(3))
    dir.write("other.lua", "return 6")
    assert.matches("4 %-> 6$", look(3))
    dir.write("number.lua", "return 9")     -- nobody's any more
    assert.equal("", look(3))
  end)

  it("is not reloaded again for what a SIGHUP has taken up", function()
    start "return { worker = {}, max_logprobs = 7 }"
    look(1)
    dir.write("r.lua", "return { worker = {}, max_logprobs = 8 }")
    assert.is_true(process:reload())
    said = {}
    assert.equal("", look(3))
    assert.equal(8, process.recipe.max_logprobs)
  end)
end)
