-- SPDX-License-Identifier: Apache-2.0
-- What changes under a running server: set by hand, or by reading the recipe again.
local live = require "perilune.recipe.live"
local log = require "perilune.log"
local recipe = require "perilune.recipe.resolve"
local scratch = require "scratch"

describe("a running recipe", function()
  local dir, path, said, refreshed
  local kept = { info = log.info, error = log.error }
  setup(function()
    dir = scratch.folder()
    for level in pairs(kept) do
      log[level] = function(text, ...) said[#said + 1] = text:format(...) end
    end
  end)
  teardown(function()
    dir.remove()
    for level, fn in pairs(kept) do log[level] = fn end
  end)
  before_each(function() said, refreshed = {}, 0 end)

  local function write(text)
    path = dir.write("r.lua", 'local pl = require "perilune"\n' .. text)
  end

  -- A process as live.lua knows one.
  local function server(text, ...)
    write(text)
    return { server = { refresh = function() refreshed = refreshed + 1 end },
      recipe = assert(recipe.resolve(path, { ... }, function() end)) }
  end

  local function without_folder(text)
    return (text:gsub(dir.path:gsub("%p", "%%%0") .. "/", ""))
  end

  describe("set by hand", function()
    it("takes a live option, tells who had set it, and whoever kept a copy", function()
      local s = server "return { http = { api_key = 'a' }, worker = {} }"
      local ok, text = live.set(s, "max_logprobs", 5, "the console")
      assert.is_true(ok)
      assert.equal("max_logprobs = 5 from the console (was 20, default). "
                   .. "reload() returns to the file.", text)
      assert.same({ text }, said)
      assert.equal(5, s.recipe.max_logprobs)
      assert.equal("the console", recipe.origin(s.recipe, "max_logprobs"))
      assert.equal(1, refreshed)
      ok, text = live.set(s, "http.api_key", { "b" }, "the console")
      assert.is_true(ok)
      assert.equal("http.api_key = (secret) from the console (was (secret), r.lua:2). "
                   .. "reload() returns to the file.", without_folder(text))
      assert.same({ "b" }, s.recipe.http.api_key)
      assert.equal(2, refreshed)
    end)

    it("takes nil where an option may be unset", function()
      local s = server "return { active_decode_blocks_threshold = 0.5, worker = {} }"
      assert.is_true(live.set(s, "active_decode_blocks_threshold", nil, "the console"))
      assert.is_nil(s.recipe.active_decode_blocks_threshold)
      local ok, why = live.set(s, "max_logprobs", nil, "the console")
      assert.is_nil(ok)
      assert.equal("max_logprobs is nil; it wants an integer, at least -1", why)
    end)

    it("takes a hook, or takes it away", function()
      local s = server [[
        local function admit() end
        return { admit = admit, worker = {} }]]
      local function new() end
      local _, text = live.set(s, "admit", new, "the console")
      assert.equal("admit replaced from the console (was r.lua:2). reload() returns to "
                   .. "the file.", without_folder(text))
      assert.equal(new, s.recipe.admit)
      _, text = live.set(s, "admit", nil, "the console")
      assert.matches("^admit removed from the console %(was the console%)", text)
      assert.is_nil(s.recipe.admit)
      _, text = live.set(s, "worker.cost", new, "the console")
      assert.matches("^worker.cost replaced .* %(was none%). reload%(%)", text)
    end)

    it("refuses the rest, and says why", function()
      local s = server "return { worker = { cost = function() end } }"
      local function refused(where, value)
        local ok, why, hint = live.set(s, where, value, "the console")
        assert.is_nil(ok)
        return why, hint
      end
      assert.equal("worker.block_size is fixed while running",
                   (refused("worker.block_size", 32)))
      assert.equal("max_logprobs is 'x'; it wants an integer, at least -1",
                   (refused("max_logprobs", "x")))
      local why, hint = refused("max_logprob", 5)
      assert.equal("recipe has no option 'max_logprob'", why)
      assert.matches("^did you mean 'max_logprobs'%?", hint)
      assert.equal("admit is 5; it wants a function", (refused("admit", 5)))
      assert.equal("the recipe has no 'decode.cost'", (refused("decode.cost", print)))
      assert.equal("worker.cost decides; set it to nil first",
                   (refused("worker.pick", print)))
      assert.equal("the recipe has no 'args.x'", (refused("args.x", 1)))
      assert.same({}, said)
      assert.equal(0, refreshed)
    end)
  end)

  describe("read again", function()
    it("has its hooks and live options from the file, whoever had set them", function()
      local s = server [[
        return { admit = function() return 1 end, max_logprobs = 7, worker = {} }]]
      live.set(s, "max_logprobs", 5, "the console")
      live.set(s, "migration_limit", 3, "the console")
      live.set(s, "done", function() end, "the console")
      write [[
        return {
          admit = function() return 2 end, migrate = function() end, max_logprobs = 8,
          http = { response_role = "bot" }, worker = {} }]]
      local ok, text = live.reload(s)
      assert.is_true(ok, text)
      assert.equal("r.lua is read again: admit swapped; done removed; http.response_role "
        .. "changed assistant -> bot; max_logprobs changed 5 -> 8; migrate is new; "
        .. "migration_limit changed 3 -> 0", without_folder(text))
      assert.equal(text, said[#said])
      assert.equal(2, s.recipe.admit())
      assert.equal(8, s.recipe.max_logprobs)
      assert.equal("bot", s.recipe.http.response_role)
      assert.is_nil(s.recipe.done)
      assert.equal(path .. ":3", recipe.origin(s.recipe, "admit"))
      assert.equal("default", recipe.origin(s.recipe, "migration_limit"))
      assert.equal(4, refreshed)
    end)

    it("names what is fixed and differs, and leaves it", function()
      local s = server "return { worker = { block_size = 16 } }"
      write "return { http = { port = 1 }, worker = { block_size = 32 } }"
      for _ = 1, 2 do
        local ok, text = live.reload(s)
        assert.is_true(ok)
        assert.equal("r.lua is read again: http.port changed 8000 -> 1: needs a restart; "
          .. "worker.block_size changed 16 -> 32: needs a restart", without_folder(text))
        assert.equal(16, s.recipe.worker.block_size)
      end
    end)

    it("says so where no changes", function()
      local s = server "return { worker = {} }"
      write "\n\nreturn { worker = {} }"
      local _, text = live.reload(s)
      assert.equal("r.lua is read again: no changes", without_folder(text))
    end)

    it("is read by the flags of the start", function()
      local s = server([[
        local opt = pl.args { { "most", 3, "most" } }
        return { max_logprobs = opt.most, worker = {} }]], "--most", "4",
        "--migration-limit", "2")
      write [[
        local opt = pl.args { { "most", 5, "most" } }
        return { max_logprobs = 2 * opt.most, migration_limit = 9, worker = {} }]]
      assert.is_true(live.reload(s))
      assert.equal(8, s.recipe.max_logprobs)
      assert.equal(2, s.recipe.migration_limit)
    end)

    it("changes nothing where the file is no good, and says where", function()
      local s = server [[
        local kept = pl.keep("kept", { 1 })
        return { admit = function() return kept[1] end, max_logprobs = 7, worker = {} }]]
      local admit = s.recipe.admit
      for text, why in pairs {
        ["return = 1"] = "r.lua:2: unexpected symbol near '='",
        ["error 'no'"] = "r.lua:2: no",
        ["return { max_logprobs = 'x', worker = {} }"]
          = "r.lua:2: max_logprobs is 'x'; it wants an integer",
        ["\nreturn { max_logprob = 1, worker = {} }"]
          = "r.lua:3: recipe has no option 'max_logprob'\n    did you mean",
        ["return { admit = 5, worker = {} }"] = "r.lua:2: recipe.admit is 5; it wants a",
        ["return {}"] = "r.lua: recipe has no pool" } do
        write(text)
        local ok, told = live.reload(s)
        assert.is_nil(ok)
        assert.equal("reload: nothing changed: " .. told, said[#said])
        assert.is_truthy(without_folder(told):find(why, 1, true), told)
        assert.equal(admit, s.recipe.admit)
        assert.equal(7, s.recipe.max_logprobs)
      end
      os.remove(path)
      assert.is_nil(live.reload(s))
      assert.equal(admit, s.recipe.admit)
      assert.equal(0, refreshed)
    end)

    it("finds what it kept, and only that", function()
      local body = [[
        local seen = pl.keep("seen", { n = 0 })
        return { admit = function() seen.n = seen.n + 1 return seen.n end, worker = {} }]]
      local s = server(body)
      assert.equal(1, s.recipe.admit())
      write "pl.keep('seen', {}); pl.keep('other', { n = 5 }); error 'no'"
      assert.is_nil(live.reload(s))
      write(body)
      assert.is_true(live.reload(s))
      assert.equal(2, s.recipe.admit())
      write(body:gsub("seen\"", "other\""))
      assert.is_true(live.reload(s))
      assert.equal(1, s.recipe.admit())
      local other = assert(recipe.resolve(path, {}, function() end))
      assert.equal(1, other.admit())
    end)
  end)
end)
