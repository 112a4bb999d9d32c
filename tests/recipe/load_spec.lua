-- SPDX-License-Identifier: Apache-2.0
local pl = require "perilune"
local recipe = require "perilune.recipe.resolve"
local scratch = require "scratch"

-- Words of a command line; nothing from the environment.
local function resolve(path, ...)
  return recipe.resolve(path, { ... }, function() return nil end)
end

describe("a recipe", function()
  local dir
  before_each(function() dir = scratch.folder() end)
  after_each(function() dir.remove() end)

  -- The problems of a recipe's text, as they are printed, without the folder.
  local function problems(text, ...)
    local path = dir.write("r.lua", text)
    local resolved, list = resolve(path, ...)
    assert.is_nil(resolved)
    local out = {}
    for _, p in ipairs(list) do
      out[#out + 1] = (p.text:gsub(dir.path:gsub("%p", "%%%0") .. "/", ""))
      if p.hint then out[#out + 1] = "    " .. p.hint end
    end
    return table.concat(out, "\n")
  end

  it("is found by name beside the program", function()
    local r = assert(resolve "agg")
    assert.matches("recipes/agg.lua$", r.file)
    assert.equal(8000, r.http.port)
    assert.same({ "worker" }, r.pools)
    local _, list = resolve "no_such_recipe"
    assert.matches("^no recipe 'no_such_recipe'", list[1].text)
    assert.is_true(list[1].usage)
  end)

  it("says who set each value: default, file and line, environment, flag", function()
    local path = dir.write("r.lua", [==[
local note = "worker = { count = 3 }"   --[[ http = { port = 1 } ]]
return {
  http = { host = "0.0.0.0",
           port = 9000 },
  worker = {
    max_num_seqs = 64, -- max_num_seqs = 65
    ["block_size"] = 32,
  },
}]==])
    local r = assert(recipe.resolve(path, { "--port", "7" }, function(name)
      return name == "VLLM_API_KEY" and "k" or nil
    end))
    assert.equal("--port", recipe.origin(r, "http.port"))
    assert.equal(7, r.http.port)
    assert.equal(path .. ":3", recipe.origin(r, "http.host"))
    assert.equal(path .. ":6", recipe.origin(r, "worker.max_num_seqs"))
    assert.equal(path .. ":7", recipe.origin(r, "worker.block_size"))
    assert.equal("default", recipe.origin(r, "worker.seed"))
    assert.equal("$VLLM_API_KEY", recipe.origin(r, "http.api_key"))
    assert.same({ "k" }, r.http.api_key)
  end)

  it("finds lines in locals and assignments, and names the file alone if it cannot",
     function()
    local path = dir.write("r.lua", [[
local worker = { seed = 1 }
local key = "block" .. "_size"
worker.stream_interval = 2
worker[key] = 8
return { worker = worker }]])
    local r = assert(resolve(path))
    assert.equal(path .. ":1", recipe.origin(r, "worker.seed"))
    assert.equal(path .. ":3", recipe.origin(r, "worker.stream_interval"))
    assert.equal(path, recipe.origin(r, "worker.block_size"))
  end)

  it("may not touch globals", function()
    assert.equal("r.lua:2: global 'split' assigned; say 'local split'",
                 problems "\nfunction split() end\nreturn { worker = {} }")
    assert.equal("r.lua:1: global 'prot' is not defined",
                 problems "return { http = { port = prot }, worker = {} }")
    assert.equal("r.lua:1: global 'io' is not for recipes",
                 problems "io.open 'x' return { worker = {} }")
    assert.equal("r.lua:1: string.rep assigned; a recipe cannot change it",
                 problems "string.rep = 1 return { worker = {} }")
    assert.equal("r.lua:1: pl.args assigned; a recipe cannot change pl",
                 problems "require 'perilune'.args = 1 return { worker = {} }")
    assert.equal("r.lua:1: global 'getmetatable' is not for recipes",
                 problems "getmetatable('').__index.rep = nil return { worker = {} }")
  end)

  it("may not be bytecode, broken, or no table", function()
    assert.equal("r.lua: is binary; a recipe is Lua source",
                 problems(string.dump(function() return {} end)))
    assert.equal("r.lua: returns nil; a recipe returns a table", problems "local x = 1")
    assert.matches("^r.lua:2: ", problems "return {\n  worker = = {} }")
    assert.equal("r.lua:2: boom", problems "\nerror 'boom'")
  end)

  it("is told of unknown keys with their line and what was meant", function()
    assert.equal([[
r.lua:4: worker has no option 'max_num_batched_token'
    did you mean 'max_num_batched_tokens'?  maximum tokens in one step (default 512)]],
      problems [[
return {
  worker = {
    seed = 1,
    max_num_batched_token = 8192,
  },
}]])
    assert.equal("r.lua: recipe has no pool\n    one is needed: worker = {}\n"
                 .. "r.lua:1: recipe has no option 'wroker'\n    did you mean 'worker'?",
                 problems "return { wroker = {} }")
    assert.equal("r.lua:1: recipe has no option 'max_num_seqs'\n"
                 .. "    it belongs in a pool: worker = { ... }",
                 problems "return { max_num_seqs = 5, worker = {} }")
    assert.equal("r.lua:1: worker has no option 'port'\n"
                 .. "    it belongs in http = { ... }",
                 problems "return { worker = { port = 5 } }")
    assert.matches("^r.lua.*: worker has no option '%[1%]'$",
                   problems "return { worker = { 5 } }")
  end)

  it("is told of wrong values, all at once, in order", function()
    assert.equal([[
r.lua:2: http.port is 70000; it wants an integer from 0 to 65535
    port to listen on; 0: any free one
r.lua:4: worker.scheduling_policy is 'lifo'; it wants one of 'fcfs', 'priority'
    first come first served, or by priority, lowest first
r.lua:5: worker.max_num_seqs is 'many'; it wants an integer from 1 to 65536
    maximum sequences running at once]],
      problems [[
return {
  http = { port = 70000 },
  worker = {
    scheduling_policy = "lifo",
    max_num_seqs = "many",
  },
}]])
    assert.equal("r.lua:1: 'http' is true; it wants a table\n"
                 .. "r.lua:1: 'worker' is 3; it wants a table",
                 problems "return { http = true, worker = 3 }")
  end)

  it("has one topology", function()
    assert.equal("r.lua:3: recipe has 'worker' and 'decode'; "
                 .. "aggregated or disaggregated, not both",
                 problems "return {\n worker = {},\n decode = {} }")
    assert.is_table(resolve(dir.write("r.lua", "return { prefill = {}, decode = {} }")))
    assert.equal("r.lua:2: prefill.block_size is 32, decode.block_size 16\n"
                 .. "    KV blocks go from one pool to the other, so both have the same",
                 problems "return {\n prefill = { block_size = 32 },\n decode = {} }")
    assert.equal("r.lua:2: prefill has no upstream\n"
                 .. "    servers of another make read and continue prompts: "
                 .. "worker = { upstream = ... }",
                 problems "return {\n prefill = { upstream = { 'http://a' } },\n decode = {} }")
    assert.equal("r.lua:2: prefill has no hook 'queue'\n"
                 .. "    requests wait for a worker of decode",
                 problems "return {\n prefill = { queue = function() end },\n decode = {} }")
    assert.equal("r.lua:1: recipe has 'decode' alone; prefill and decode come together",
                 problems "return { decode = {} }")
  end)

  it("has hooks: functions of known names, in their places", function()
    local path = dir.write("r.lua", [[
local function admit(req) return req end
local function cost(req, w) return w.decoding end
return { admit = admit, worker = { cost = cost } }]])
    local r = assert(resolve(path))
    assert.equal("function", type(r.admit))
    assert.equal(3, r.worker.cost(nil, { decoding = 3 }))
    assert.equal(path .. ":2", recipe.origin(r, "worker.cost"))
    assert.is_nil(r.worker.pick)
    assert.equal("r.lua:1: worker.cost is 5; it wants a function",
                 problems "return { worker = { cost = 5 } }")
    assert.equal("r.lua:1: recipe.admit is 'all'; it wants a function",
                 problems "return { admit = 'all', worker = {} }")
    assert.matches("^r.lua:1: worker has no hook 'split'",
                   problems "return { worker = { split = function() end } }")
    assert.equal("r.lua:1: worker has no option 'migrate'\n"
                 .. "    it belongs at the top of the recipe",
                 problems "return { worker = { migrate = function() end } }")
    assert.equal("r.lua:2: worker has 'cost' and 'pick'; one of them decides",
                 problems("local function f() end return { worker = { cost = f,\n"
                          .. "pick = function() end } }"))
  end)

  it("may require files of its own folder and no others", function()
    dir.write("site/limits.lua", "return { seqs = 12 }")
    local path = dir.write("r.lua",
      "return { worker = { max_num_seqs = require('site.limits').seqs } }")
    assert.equal(12, assert(resolve(path)).worker.max_num_seqs)
    assert.matches("^r.lua:1: no 'site.none': looked for '",
                   problems "require 'site.none' return { worker = {} }")
    for _, name in ipairs { "../etc", "/etc/x", "a..b" } do
      assert.matches("^r.lua:1: a recipe may require",
                     problems(("require %q return { worker = {} }"):format(name)))
    end
    dir.write("again.lua", "return require 'again'")
    assert.matches("again.lua: 'again' requires itself$",
                   problems "require 'again' return { worker = {} }")
  end)

  it("can be another recipe, changed, and still says who set what", function()
    local base = dir.write("base.lua",
      "return {\n  http = { port = 1, host = 'h' },\n  worker = { seed = 4 } }")
    local path = dir.write("r.lua", [[
local pl = require "perilune"
return pl.extend("base", {
  http = { port = 2 },
  model = "m",
})]])
    local r = assert(resolve(path))
    assert.equal(2, r.http.port)
    assert.equal(path .. ":3", recipe.origin(r, "http.port"))
    assert.equal(base .. ":2", recipe.origin(r, "http.host"))
    assert.equal(base .. ":3", recipe.origin(r, "worker.seed"))
    assert.equal(path .. ":4", recipe.origin(r, "model"))
    assert.equal("r.lua: pl.extend: wants the name of a recipe and a table",
                 problems "return require 'perilune'.extend('base')")
    assert.matches("^r.lua: no recipe 'bsae'",
                   problems "return require 'perilune'.extend('bsae', {})")
    assert.matches("r.lua: extends itself$",
                   problems "return require 'perilune'.extend('r', {})")
  end)

  it("can be loaded without being run", function()
    assert.equal(8000, pl.load("agg").http.port)
    assert.has_error(function() pl.load "no_such_recipe" end)
    assert.has_error(function() pl.load(5) end)
  end)

  it("gives arguments of its own flags", function()
    local path = dir.write("r.lua", [[
local pl = require "perilune"
local opt = pl.args {
  { "width", 64, "how wide", min = 1 },
  { "overlap", 1.0, "weight" },
  { "eager", false, "now" },
  { "shape", "round", "form", choices = { "round", "flat" } },
}
return { worker = { max_num_seqs = opt.width, enable_chunked_prefill = opt.eager,
                    long_prefill_token_threshold = opt.overlap * 2 } }]])
    local r = assert(resolve(path))
    assert.equal(64, r.worker.max_num_seqs)
    r = assert(resolve(path, "--width", "8", "--overlap=1.5", "--eager"))
    assert.equal(8, r.worker.max_num_seqs)
    assert.equal(3, r.worker.long_prefill_token_threshold)
    assert.is_true(r.worker.enable_chunked_prefill)
    assert.equal("--width", recipe.origin(r, "args.width"))
    local _, list = resolve(path, "--shape", "square")
    assert.equal("'--shape' is 'square'; it wants one of 'round', 'flat'", list[1].text)
    assert.is_true(list[1].usage)
    _, list = resolve(path, "--widht", "8")
    assert.equal("did you mean '--width'?", list[1].hint)
  end)

  it("may give an option another default, and read it", function()
    local path = dir.write("r.lua", [[
local pl = require "perilune"
local opt = pl.args {
  { "max_num_seqs", 4, "few, for long prompts" },
  { "namespace", "mine" },
  { "served_model_name" },
}
return { worker = { max_num_batched_tokens = 8 * opt.max_num_seqs },
         migration_limit = opt.served_model_name and #opt.served_model_name or 0 }]])
    local r = assert(resolve(path))
    assert.same({ 4, 32, "mine", 0 }, { r.worker.max_num_seqs, r.worker.max_num_batched_tokens,
      r.namespace, r.migration_limit })
    assert.equal(path .. ":2", recipe.origin(r, "worker.max_num_seqs"))
    r = assert(resolve(path, "--max-num-seqs", "6", "--served-model-name", "a", "b"))
    assert.same({ 6, 48, 2 }, { r.worker.max_num_seqs, r.worker.max_num_batched_tokens,
      r.migration_limit })
    assert.equal("--max-num-seqs", recipe.origin(r, "worker.max_num_seqs"))
    r = assert(resolve(path, "--worker.max-num-seqs", "9"))
    assert.same({ 9, 32 }, { r.worker.max_num_seqs, r.worker.max_num_batched_tokens })
    r = assert(recipe.resolve(path, {}, function(name)
      return name == "DYN_NAMESPACE" and "theirs" or nil
    end))
    assert.same({ "theirs", "$DYN_NAMESPACE" }, { r.namespace, recipe.origin(r, "namespace") })
    path = dir.write("also.lua", [[
local opt = require "perilune".args { { "num_kv_blocks", 50 } }
return { worker = { max_num_seqs = opt.num_kv_blocks } }]])
    r = assert(resolve(path, "--num-gpu-blocks-override", "90"))   -- by its other name
    assert.same({ 90, 90 }, { r.worker.num_kv_blocks, r.worker.max_num_seqs })
    path = dir.path .. "/r.lua"
    local _, list = resolve(path, "--max-num-seqs", "0")
    assert.equal("'--max-num-seqs' is '0'; it wants an integer from 1 to 65536", list[1].text)
    assert.is_true(list[1].usage)
  end)

  it("is told of wrong use of pl at its line", function()
    local function args(rows)
      return problems("local pl = require 'perilune'\npl.args { " .. rows
                      .. " }\nreturn { worker = {} }")
    end
    assert.equal("r.lua:2: pl.args: default of 'port' is -1; it wants an integer from 0 to 65535",
                 args "{ 'port', -1, 'x' }")
    assert.equal("r.lua:2: pl.args: 'port' is declared twice",
                 args "{ 'port', 1, '' }, { 'port', 2, '' }")
    assert.equal("r.lua:2: pl.args: 'x' needs a default", args "{ 'x' }")
    assert.equal("r.lua:2: pl.args: default of 'x' is 0; it wants a number, at least 1",
                 args "{ 'x', 0, 'doc', min = 1 }")
    assert.equal("r.lua:2: pl.args: 'x' is declared twice",
                 args "{ 'x', 0, '' }, { 'x', 0, '' }")
    assert.equal("r.lua:1: pl has no 'arsg'; did you mean 'args'?",
                 problems "require 'perilune'.arsg {} return { worker = {} }")
    assert.has_error(function() pl.args {} end, "pl.args: only while a recipe is loaded")
  end)

  it("resolves to what cannot be written or misspelt", function()
    local r = assert(resolve "agg")
    assert.has_error(function() r.http.port = 1 end, "http is read-only; 'port' assigned")
    assert.has_error(function() return r.http.prot end, "http has no 'prot'")
    assert.has_error(function() return r.modle end, "the recipe has no 'modle'")
    assert.is_nil(r.decode)
  end)
end)
