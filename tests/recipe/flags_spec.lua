-- SPDX-License-Identifier: Apache-2.0
local elsewhere = require "perilune.recipe.flags_elsewhere"
local recipe = require "perilune.recipe.resolve"
local schema = require "perilune.recipe.schema"
local values = require "perilune.recipe.option_value"

local function resolve(...)
  return recipe.resolve("agg", { ... }, function() return nil end)
end

-- What a wrong command line is told.
local function refused(...)
  local resolved, list = resolve(...)
  assert.is_nil(resolved)
  return list[1].text, list[1].hint, list[1].usage
end

describe("flags", function()
  it("mean - and _ alike, with = or without, the last one wins", function()
    local r = assert(resolve("--max-num-seqs", "8", "--block_size=32",
                             "--max_num-seqs", "9"))
    assert.equal(9, r.worker.max_num_seqs)
    assert.equal(32, r.worker.block_size)
  end)

  it("mean every pool, or one, which is more exact wherever it stands", function()
    local r = assert(resolve("--worker.seed", "1", "--seed", "2"))
    assert.equal(1, r.worker.seed)
    assert.equal("--worker.seed", recipe.origin(r, "worker.seed"))
    assert.equal("'--decode.seed': the recipe has no pool 'decode'",
                 (refused("--decode.seed", "1")))
  end)

  it("say booleans by --x and --no-x", function()
    assert.is_false(assert(resolve "--no-enable-prefix-caching")
                      .worker.enable_prefix_caching)
    assert.is_true(assert(resolve "--disable-log-stats").disable_log_stats)
    assert.is_false(assert(resolve "--disable-log-stats=false").disable_log_stats)
    assert.equal("'--no-enable-prefix-caching' takes no value",
                 (refused("--no-enable-prefix-caching", "x")))
    assert.equal("no option '--no-port'", (refused "--no-port"))
  end)

  it("say integers as people do", function()
    local r = assert(resolve("--max-model-len", "25.6k",
                             "--max-num-batched-tokens", "2K"))
    assert.equal(25600, r.worker.max_model_len)
    assert.equal(2048, r.worker.max_num_batched_tokens)
    assert.equal("auto", assert(resolve("--max-model-len", "auto")).worker.max_model_len)
    for text, n in pairs { ["1k"] = 1000, ["1K"] = 1024, ["4G"] = 2 ^ 32, ["-1"] = -1,
                           ["0.5m"] = 500000 } do
      assert.equal(n, values.integer(text))
    end
    for _, text in ipairs { "", "k", "1.5", "1.5K", "1kk", "1 k", "0x10", "1e3", "nan",
                            "99999999999999999999", "1.0001k", "1.k" } do
      assert.is_nil(values.integer(text), text)
    end
  end)

  it("say lists by several words or JSON, tables by JSON or fields", function()
    local r = assert(resolve("--api-key", "a", "b", "--allowed-origins", '["x"]',
                             "--hf-overrides", '{"a": {"b": 1}}',
                             "--hf-overrides.a.c", "2", "--hf-overrides.d", "text",
                             "--override-generation-config.temperature", "0.5"))
    assert.same({ "a", "b" }, r.http.api_key)
    assert.same({ "x" }, r.http.allowed_origins)
    assert.same({ a = { b = 1, c = 2 }, d = "text" }, r.hf_overrides)
    assert.same({ temperature = 0.5 }, r.override_generation_config)
    assert.same({}, assert(resolve()).hf_overrides)
    r = assert(resolve("--hf-overrides.a", "1,2", "--hf-overrides.b", "false"))
    assert.same({ a = "1,2", b = false }, r.hf_overrides)
    assert.equal("no option '--hf-overrides.'", (refused("--hf-overrides.", "1")))
    assert.equal("no option '--hf-overrides..a'", (refused("--hf-overrides..a", "1")))
    assert.equal("'--hf-overrides' is '{'; it wants a table (a JSON object)",
                 (refused("--hf-overrides", "{")))
  end)

  it("are refused with what was meant", function()
    local text, hint, usage = refused("--max-num-seq", "5")
    assert.equal("no option '--max-num-seq'", text)
    assert.equal("did you mean '--max-num-seqs'?  "
                 .. "maximum sequences running at once (default 256)", hint)
    assert.is_true(usage)
    text, hint = refused("--wholly-unheard-of", "0.9")
    assert.equal("no option '--wholly-unheard-of'", text)
    assert.equal("perilune help options lists them all", hint)
    text, hint = refused("--worker.blok-size", "5")
    assert.equal("no option '--worker.blok-size'", text)
    assert.matches("^did you mean '%-%-worker.block%-size'%?", hint)
    assert.equal("no option '--wxyz.seed'", (refused("--wxyz.seed", "1")))
    assert.equal("no option '--http.seed'", (refused("--http.seed", "1")))
    assert.equal("'--port' needs a value: an integer from 0 to 65535", (refused "--port"))
    assert.equal("'--port' takes one value; '2' is one too many",
                 (refused("--port", "1", "2")))
    assert.equal("'--port' is 'http'; it wants an integer from 0 to 65535",
                 (refused("--port", "http")))
    assert.equal("'decode' is not a flag", (refused("decode", "--port", "1")))
  end)

  it("hold together: as many tokens in a step as sequences", function()
    local r = assert(resolve("--max-num-batched-tokens", "64"))
    assert.equal(64, r.worker.max_num_seqs)
    assert.equal("max_num_batched_tokens", recipe.origin(r, "worker.max_num_seqs"))
    local text = refused("--max-num-batched-tokens", "64", "--max-num-seqs", "65")
    assert.equal("--max-num-seqs: worker.max_num_seqs is 65, max_num_batched_tokens 64 "
                 .. "(--max-num-batched-tokens)", text)
  end)

  it("come after the environment", function()
    local function getenv(name)
      return ({ PERILUNE_MODEL = "m.gguf", VLLM_SERVER_DEV_MODE = "1" })[name]
    end
    local r = assert(recipe.resolve("agg", {}, getenv))
    assert.equal("m.gguf", r.model)
    assert.is_true(r.http.enable_dev_endpoints)
    r = assert(recipe.resolve("agg", { "--model", "n.gguf" }, getenv))
    assert.equal("n.gguf", r.model)
    local _, list = recipe.resolve("agg", {}, function(name)
      return name == "VLLM_SERVER_DEV_MODE" and "perhaps" or nil
    end)
    assert.equal("$VLLM_SERVER_DEV_MODE is 'perhaps'; it wants true or false",
                 list[1].text)
  end)
end)

describe("a value for everybody's eyes", function()
  it("has no secret in it", function()
    local function public(path, v) return values.public(schema.find(path), v) end
    assert.equal("(secret)", public("bus_password", "x"))
    assert.equal("nats://...@h:1,...@g,nats://f",
      public("bus", "nats://u:p@h:1,t@g,nats://f"))
    assert.equal("a@b", public("model", "a@b"))
    assert.equal("5", values.public(nil, 5))
  end)
end)

describe("the schema", function()
  it("has defaults that pass their own rows, and a doc for each", function()
    local seen = {}
    for _, section in ipairs(schema.sections) do
      for _, row in ipairs(schema.rows[section]) do
        assert.is_nil(seen[row.name], row.name)
        seen[row.name] = true
        local default = schema.default(row)
        if default ~= nil then assert.is_not_nil(values.check(row, default), row.name) end
        assert.is_true(default ~= nil or row.unset ~= nil, row.name)
        assert.is_true(#row.doc > 0 and not row.doc:find "\n", row.name)
      end
    end
  end)

  it("gives every caller a default of its own", function()
    local row = schema.find "allowed_origins"
    schema.default(row)[1] = "changed"
    assert.same({ "*" }, schema.default(row))
  end)

  it("is what docs/options.md says", function()
    local root = require("perilune.host").root
    local file = assert(io.open(root .. "/docs/options.md"))
    local text = file:read "*a"
    file:close()
    assert.equal(require("perilune.console.manual").options() .. "\n", text,
                 "write it anew: perilune help options > docs/options.md")
  end)
end)

describe("flags of other servers", function()
  local names = {}
  for _, row in ipairs(elsewhere.ROWS) do
    for _, flag in ipairs(row) do names[#names + 1] = flag end
  end

  it("are none of ours, and each stands in one row", function()
    local seen = {}
    for _, flag in ipairs(names) do
      assert.is_nil(seen[flag], flag)
      seen[flag] = true
      local name = flag:gsub("^%-+", ""):gsub("-", "_")
      assert.is_true(flag:sub(1, 2) ~= "--" or not schema.find(name), flag)
    end
  end)

  it("are answered with an option that there is, or why there is none", function()
    for _, row in ipairs(elsewhere.ROWS) do
      assert.is_true((row.to == nil) ~= (row.why == nil), row[1])
      for option in (row.to or row.why):gmatch "%-%-([%l][%l%d.-]+)" do
        local name = option:gsub("^worker%.", ""):gsub("%..*", ""):gsub("-", "_")
        assert.is_truthy(schema.find(name), option)
      end
      for _, flag in ipairs(row) do
        local text, hint, usage = refused(flag, "1")
        assert.equal(("no option '%s'"):format(flag), text)
        assert.is_truthy(hint:find(row.to or row.why, 1, true), hint)
        assert.is_true(usage)
      end
    end
  end)
end)
