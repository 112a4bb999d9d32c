-- SPDX-License-Identifier: Apache-2.0
local pl = require "perilune.ffi"
local files = require "weights_files"
local model = require "perilune.model.load"
local small = require "model_files"
local C = pl.C
local llama, with, qwen = small.llama, small.with, small.qwen
local shapes, encode, folder = small.shapes, small.encode, small.folder
local joined, tensors = small.joined, small.tensors

-- ---- finding -------------------------------------------------------------------------

describe("model.resolve", function()
  after_each(files.clean)

  local function cache()
    local revision = "0123abcd"
    return files.folder {
      ["models--org--name/refs/main"] = revision .. "\n",
      ["models--org--name/snapshots/" .. revision .. "/config.json"] = "{}",
      ["models--org--half/refs/main"] = revision,
      ["models--org--bad/refs/main"] = "../../elsewhere",
      ["models--org--files/refs/main"] = revision,
      ["models--org--files/snapshots/" .. revision .. "/x-Q4_1.gguf"] = "GGUF",
    }
  end

  it("takes folders and files as they are", function()
    local path = files.folder { ["config.json"] = "{}" }
    assert.equal(path, model.resolve(path))
    assert.equal(path, model.resolve(path .. "/"))
    local file = files.write("GGUF", ".gguf")
    assert.equal(file, model.resolve(file))
  end)

  it("finds names in the local cache", function()
    local folder_of = cache()
    local found = folder_of .. "/models--org--name/snapshots/0123abcd"
    local function from(env)
      return model.resolve("org/name", { getenv = function(key) return env[key] end })
    end
    assert.equal(found, from { HF_HUB_CACHE = folder_of, HF_HOME = "/nowhere" })
    assert.equal(found, from { HF_HUB_CACHE = "~/", HOME = folder_of }
                          :gsub("//", "/") .. "")
    local home = files.folder { ["hub/x"] = "" }
    os.execute(("cp -r '%s/.' '%s/hub'"):format(folder_of, home))
    assert.equal(home .. "/hub/models--org--name/snapshots/0123abcd",
                 from { HF_HOME = home, HF_HUB_CACHE = "" })
    local by_revision = model.resolve("org/name", {
      revision = "0123abcd", getenv = function() return folder_of end })
    assert.equal(found, by_revision)
  end)

  it("finds one GGUF file of a repository in the local cache", function()
    local folder_of = cache()
    local opts = { getenv = function() return folder_of end }
    assert.equal(folder_of .. "/models--org--files/snapshots/0123abcd/x-Q4_1.gguf",
                 model.resolve("org/files/x-Q4_1.gguf", opts))
    assert.equal(folder_of .. "/models--org--files/snapshots/0123abcd/x-Q4_1.gguf",
                 model.resolve("org/files", opts))
    local none, message = model.resolve("org/files/y.gguf", opts)
    assert.is_nil(none)
    assert.truthy(message:find("hf download org/files y.gguf", 1, true), message)
  end)

  it("finds by its name what was fetched here", function()
    local folder_of = files.folder { ["perilune/small.Q4_1.gguf"] = "GGUF" }
    local opts = { getenv = function(key)
      return key == "XDG_CACHE_HOME" and folder_of or nil
    end }
    assert.equal(folder_of .. "/perilune/small.Q4_1.gguf",
                 model.resolve("small.Q4_1", opts))
    assert.is_nil((model.resolve("small.Q4_0", opts)))
  end)

  it("says how to get what is not there", function()
    local folder_of = cache()
    local opts = { getenv = function(key)
      return key == "HF_HUB_CACHE" and folder_of or nil
    end }
    for _, name in ipairs { "org/other", "org/half", "org/bad", "gpt2" } do
      local path, message, kind = model.resolve(name, opts)
      assert.is_nil(path)
      assert.truthy(message:find("hf download " .. name, 1, true), message)
      assert.equal("PL_ENOTFOUND", kind)
    end
  end)

  it("refuses what is no model", function()
    local path = files.folder { ["x.bin"] = "" }
    local none, message, kind = model.resolve(path)
    assert.is_nil(none)
    assert.equal("PL_ENOTFOUND", kind)
    assert.truthy(message:find("holds neither a config.json nor a .gguf file", 1, true))
    for _, name in ipairs { "/no/such/folder", "a/b/c", "../x", "x.gguf", "a b",
                            "", "org/", "a//x.gguf", "a/x.gguf", "/a/b/x.gguf" } do
      none, message = model.resolve(name, { getenv = function() return path end })
      assert.is_nil(none)
      assert.truthy(message:find("no model at '" .. name .. "'", 1, true), message)
    end
    assert.has_error(function() model.resolve(nil) end)
  end)
end)

-- ---- tensors -------------------------------------------------------------------------

describe("model.tensors", function()
  after_each(files.clean)

  local function changed(config, change)
    local list = shapes(config)
    list = change(list) or list
    local desc = assert(model.describe(folder(config, {
      ["model.safetensors"] = files.zeros(list) })))
    return tensors(desc)
  end

  it("gives each a role", function()
    local list = assert(tensors(model.describe(folder(llama()))))
    assert.equal(#shapes(llama()), #list)
    local by_name = {}
    for _, row in ipairs(list) do by_name[row.name] = row end
    local row = by_name["model.layers.1.self_attn.k_proj.weight"]
    assert.same({ tonumber(C.PL_ROLE_K), 1, -1, { 4, 8 } },
                { row.role, row.layer, row.expert, row.shape })
    assert.equal(-1, by_name["lm_head.weight"].layer)
  end)

  it("names what is missing, strange or of another shape", function()
    local function refuses(why, change)
      local list, message = changed(llama(), change)
      assert.is_nil(list)
      assert.truthy(message:find(why, 1, true), message)
    end
    refuses("no tensor 'model.norm.weight'", function(l) table.remove(l, 2) end)
    refuses("tensor 'x' is not one of LlamaForCausalLM (2 such)", function(l)
      return joined(l, { "x", { 1 } }, { "y", { 1 } })
    end)
    refuses("'model.norm.weight' has the shape [2, 4], wanted [8]",
            function(l) l[2][2] = { 2, 4 } end)
    refuses("'model.embed_tokens.weight' has the shape [17, 8], wanted [16, 8]",
            function(l) l[1][2] = { 17, 8 } end)
    refuses("'model.layers.0.self_attn.q_proj.bias' is not one of", function(l)
      return joined(l, { "model.layers.0.self_attn.q_proj.bias", { 8 } })
    end)
  end)

  it("wants biases where the configuration has them", function()
    local list, message = changed(with(llama(), { attention_bias = true }),
                                  function() end)
    assert.is_nil(list)
    assert.truthy(message:find("no tensor 'model.layers.0.self_attn.q_proj.bias'", 1,
                               true))
    list, message = changed(qwen "Qwen2ForCausalLM", function() end)
    assert.is_nil(list)
    assert.truthy(message:find("no tensor 'model.layers.0.self_attn.q_proj.bias'", 1,
                               true))
    list = changed(with(llama(), { attention_bias = true, num_hidden_layers = 1 }),
                   function(l)
      local p = "model.layers.0.self_attn."
      return joined(l, { p .. "q_proj.bias", { 8 } }, { p .. "k_proj.bias", { 4 } },
                    { p .. "v_proj.bias", { 4 } }, { p .. "o_proj.bias", { 8 } })
    end)
    assert.truthy(list)
  end)

  it("passes over what nothing reads", function()
    assert.truthy(changed(with(llama(), { tie_word_embeddings = true }), function(l)
      return joined(l, { "lm_head.weight", { 16, 8 } },
                    { "model.layers.0.self_attn.rotary_emb.inv_freq", { 2 } })
    end))
  end)
end)

-- ---- loading -------------------------------------------------------------------------

describe("model.load", function()
  local real, told

  before_each(function()
    real, told = pl.C, {}
    local function tell(name, answer)
      return function(...)
        told[#told + 1] = { name, ... }
        return answer
      end
    end
    pl.C = setmetatable({
      pl_model_open = function(device, o)
        told[#told + 1] = { "open", device, o.hidden, o.block_size, o.kv_type,
                            o.activations,
                            tonumber(o.dummy_seed) }
        return "a model"
      end,
      pl_model_tensor = tell("tensor", 0), pl_model_ready = tell("ready", 0),
      pl_model_dummy = tell("dummy", 0), pl_model_close = tell "close",
    }, { __index = real })
  end)

  after_each(function()
    pl.C = real
    files.clean()
  end)

  it("gives the model every tensor, then asks whether it is ready", function()
    local desc, seen = model.describe(folder(llama())), {}
    local m = model.load(desc, "a device", {
      block_size = 8, activations = "float32", kv_cache_dtype = "float32",
      progress = function(done, total) seen[#seen + 1] = { done, total } end })
    assert.equal("a model", m)
    assert.same({ "open", "a device", 8, 8, real.PL_KV_FLOAT32, real.PL_ACT_FLOAT32, 0 }, told[1])
    assert.equal(#shapes(llama()) + 2, #told)
    assert.equal("ready", told[#told][1])
    assert.equal(#told - 2, #seen)
    assert.equal(seen[#seen][1], seen[#seen][2])
  end)

  it("makes weights up", function()
    local desc = model.describe(files.folder { ["config.json"] = encode(llama()) },
                                { load_format = "dummy" })
    local m = model.load(desc, "a device", { load_format = "dummy", seed = 7 })
    assert.equal("a model", m)
    assert.same({ "open", "a device", 8, 16, real.PL_KV_INT16, real.PL_ACT_INT8X2, 7 }, told[1])
    assert.same({ "dummy", "a model" }, told[2])
  end)

  it("refuses choices that it does not know", function()
    local desc = model.describe(folder(llama()))
    for key, value in pairs { activations = "fp8", kv_cache_dtype = "int4" } do
      local m, message, name = model.load(desc, "a device", { [key] = value })
      assert.is_nil(m)
      assert.equal("PL_EINVAL", name)
      assert.truthy(message:find(key .. " is '" .. value .. "', wanted", 1, true),
                    message)
    end
    assert.same({}, told)
  end)

  it("closes what it opened when something is refused", function()
    local desc = model.describe(folder(llama()))
    desc.options.n_layers = 3
    local m, message, name = model.load(desc, "a device")
    local _
    assert.is_nil(m)
    assert.equal("PL_EFORMAT", name)
    assert.truthy(message:find("no tensor 'model.layers.2.", 1, true), message)
    assert.same({ "close", "a model" }, told[#told])
    desc.options.n_layers = 2
    pl.C.pl_model_ready = function() return real.PL_ENOMEM end
    m, _, name = model.load(desc, "a device")
    assert.is_nil(m)
    assert.equal("PL_ENOMEM", name)
    assert.same({ "close", "a model" }, told[#told])
  end)
end)

-- ---- models that are there -----------------------------------------------------------

local golden = os.getenv "PERILUNE_GOLDEN" or "tests/golden"
local have_golden = io.open(golden .. "/llama/config.json")
if have_golden then have_golden:close() end

describe("reference models", function()
  for _, name in ipairs { "llama", "mistral", "qwen2", "qwen3", "qwen3-moe" } do
    (have_golden and it or pending)("describes and matches " .. name, function()
      local desc = assert(model.describe(golden .. "/" .. name))
      assert.is_true(#assert(tensors(desc)) > 20)
      assert.is_true(desc.max_positions >= 1024)
    end)
  end
end)
