-- SPDX-License-Identifier: Apache-2.0
-- The walk over a model of made up weights: what a row comes to depends on its sequence
-- alone. And the refusals of a model that is being put together.

local open_device = require "support.device"
local process = require "support.process"
local quant = require "support.quant"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local BASE = {
  n_layers = 2, hidden = 64, n_heads = 6, n_kv_heads = 2, head_dim = 24,
  ffn = 96, vocab = 90, max_positions = 1024, norm_eps = 1e-5, rope_theta = 10000,
  tied = 1, block_size = 16, dummy_seed = 5,
}

local function options(more)
  local o = ffi.new "pl_model_options"
  for _, from in ipairs { BASE, more or {} } do
    for key, value in pairs(from) do
      if key ~= "full" then    -- layers without a window
        o[key] = type(value) == "string" and C["PL_" .. value] or value
      end
    end
  end
  return o
end

local function ok(status) assert.is_true(status >= 0, ffi.string(C.pl_error_text())) end

local function with_model(more, kernels, threads, run)
  local device = open_device("cpu", kernels, threads)
  if not device then return false end
  local model = C.pl_model_open(device, options(more))
  assert.is_true(model ~= nil, ffi.string(C.pl_error_text()))
  for _, layer in ipairs(more and more.full or {}) do
    ok(C.pl_model_layer(model, layer, C.PL_LAYER_FULL))
  end
  run(model)
  C.pl_model_close(model)
  C.pl_device_close(device)
  return true
end

local function prompt(seed, n)
  local roll, ids = quant.dice(seed), {}
  for i = 1, n do ids[i] = math.floor(roll() * BASE.vocab) end
  return ids
end

-- The logits of sequences walked together, as one string a sequence.
local function logits(model, seqs, step)
  local total, flat, lens = 0, {}, ffi.new("int32_t[?]", #seqs)
  for i, ids in ipairs(seqs) do
    lens[i - 1] = #ids
    for _, id in ipairs(ids) do
      total = total + 1
      flat[total] = id
    end
  end
  local out = ffi.new("float[?]", total * BASE.vocab)
  ok(C.pl_model_logits(model, ffi.new("int32_t[?]", total, flat), lens, #seqs, step, out))
  local parts, at = {}, 0
  for i, ids in ipairs(seqs) do
    parts[i] = ffi.string(out + at * BASE.vocab, #ids * BASE.vocab * 4)
    at = at + #ids
  end
  return parts, out
end

local MODELS = {
  ["float32"] = { kv_type = "KV_FLOAT32", activations = "ACT_FLOAT32" },
  ["int8x2, int16 cache"] = { kv_type = "KV_INT16", activations = "ACT_INT8X2" },
  ["int8, float32 cache"] = { kv_type = "KV_FLOAT32", activations = "ACT_INT8" },
  ["window"] = { kv_type = "KV_INT16", window = 20, full = { 0 }, block_size = 32 },
  ["rope in pairs, yarn"] = { rope_order = C.PL_ROPE_PAIRS, rope_scaling = C.PL_ROPE_YARN,
    rope_factor = 4, rope_original = 128 },
  ["biases"] = { qkv_bias = 1, tied = 0 },
  ["norms after, caps, gelu"] = { post_norms = 1, norm_plus_one = 1, embed_scale = 8,
    gate = C.PL_GATE_GELU_TANH, attention_scale = 0.25, attention_cap = 2, logit_cap = 4,
    window = 20, full = { 1 }, kv_type = "KV_INT16", activations = "ACT_INT8X2" },
  ["window of another rope"] = { window = 20, full = { 0 }, rope_theta_window = 100,
    rope_scaling = C.PL_ROPE_LINEAR, rope_factor = 8, kv_type = "KV_INT16" },
  ["half a head turned"] = { rope_dims = 12, rope_attention = 1.25, kv_type = "KV_INT16" },
  ["head norms"] = { qk_norm = 1, head_dim = 32, n_heads = 4,
    rope_scaling = C.PL_ROPE_LLAMA3, rope_factor = 8,
    rope_low = 1, rope_high = 4, rope_original = 64 },
  ["experts"] = { qk_norm = 1, n_experts = 6, n_experts_used = 3, expert_ffn = 64,
    norm_topk = 1, activations = "ACT_INT8X2", ffn = 0 },
  ["experts, int8"] = { qk_norm = 1, n_experts = 6, n_experts_used = 3,
    expert_ffn = 64, norm_topk = 1, activations = "ACT_INT8", ffn = 0 },
}

describe("a walk", function()
  local long, short, one = prompt(1, 300), prompt(2, 37), prompt(3, 1)

  local function compare(model, want, steps, where)
    for _, step in ipairs(steps) do
      local got = logits(model, { long, short, one }, step)
      for i = 1, 3 do
        local message = ("%s, %d at a time: sequence %d"):format(where, step, i)
        assert.is_true(want[i] == got[i], message)
      end
    end
  end

  local function with_dummy(more, kernels, threads, run)
    with_model(more, kernels, threads, function(m)
      ok(C.pl_model_dummy(m))
      ok(C.pl_model_ready(m))
      run(m)
    end)
  end

  -- Each alone, a token at a time: what all with the same numerics must come to.
  local function alone(model)
    local want = {}
    for i, ids in ipairs { long, short, one } do
      want[i] = logits(model, { ids }, 1)[1]
    end
    assert.is_truthy(want[1]:find "[^%z]")
    return want
  end

  for name, more in pairs(MODELS) do
    it(("gives the same bits in any company and cut (%s)"):format(name), function()
      local wants = {}
      local function check(model, steps, where)
        local id = ffi.string(C.pl_model_numerics(model))
        wants[id] = wants[id] or alone(model)
        compare(model, wants[id], steps, where)
      end
      for _, kernels in ipairs { "avx512bf16", "avx512", "avx2" } do
        for threads = process.slow and 3 or 1, 3 do
          with_dummy(more, kernels, threads, function(m)
            check(m, process.slow and { 7 } or { 1, 7, 300 }, kernels .. " by " .. threads)
          end)
        end
      end
      with_dummy(more, "scalar", 2, function(m) check(m, { 7 }, "scalar") end)
    end)
  end

  it("has numerics of its own only by weights of its own", function()
    local function id_of(more, kernels)
      local id
      with_dummy(more, kernels, 1, function(m) id = ffi.string(C.pl_model_numerics(m)) end)
      return id
    end
    local q8 = { activations = "ACT_INT8", n_heads = 4, head_dim = 32 }
    local bf16 = { activations = "ACT_INT8" }    -- rows of 144 are no whole blocks
    local float = MODELS["float32"]
    assert.not_equal(id_of(q8, "scalar"), id_of(float, "scalar"))
    if not id_of(q8, "avx512bf16") then return pending "not on this CPU" end
    assert.equal(id_of(q8, "avx512"), id_of(q8, "avx512bf16"))
    assert.not_equal(id_of(bf16, "avx512"), id_of(bf16, "avx512bf16"))
    assert.equal(id_of(float, "avx512"), id_of(float, "avx512bf16"))
  end)

  it("survives weights that are no numbers, with experts too", function()
    for _, more in ipairs { MODELS.experts, MODELS.f32 } do
      with_model(more, "auto", 2, function(m)
        local embed = quant.matrix("F32", BASE.vocab, 64, 1)
        local values = ffi.cast("float *", embed.tensor.data)
        for i = 0, BASE.vocab * 64 - 1 do values[i] = 0 / 0 end
        ok(C.pl_model_tensor(m, C.PL_ROLE_EMBED, -1, -1, embed.tensor))
        ok(C.pl_model_dummy(m))
        ok(C.pl_model_ready(m))
        local many = prompt(4, 512)
        local _, out = logits(m, { many }, 512)
        assert.is_true(out[0] ~= out[0])
      end)
    end
  end)

  it("sees what is before a token and nothing after it", function()
    with_dummy({}, "auto", 1, function(m)
      local other = { unpack(short) }
      other[20] = (other[20] + 1) % BASE.vocab
      local a, b = logits(m, { short }, 37)[1], logits(m, { other }, 37)[1]
      local row = BASE.vocab * 4
      assert.equal(a:sub(1, 19 * row), b:sub(1, 19 * row))
      for i = 19, 36 do
        local from, to = i * row + 1, (i + 1) * row
        assert.is_true(a:sub(from, to) ~= b:sub(from, to))
      end
    end)
  end)

  -- Nor if what comes after is no number: the rows before may lie in a cached prefix.
  it("sees nothing of a later token that breaks", function()
    for _, name in ipairs { "float32", "int8x2, int16 cache", "window", "experts" } do
      with_model(MODELS[name], "auto", 2, function(m)
        local embed = quant.matrix("F32", BASE.vocab, 64, 1)
        local values = ffi.cast("float *", embed.tensor.data)
        for i = 0, 63 do values[i] = 0 / 0 end
        ok(C.pl_model_tensor(m, C.PL_ROLE_EMBED, -1, -1, embed.tensor))
        ok(C.pl_model_dummy(m))
        ok(C.pl_model_ready(m))
        local ids = {}
        for i = 1, 37 do ids[i] = i % (BASE.vocab - 1) + 1 end
        local want = logits(m, { ids }, 37)[1]
        ids[26] = 0
        local got, row = logits(m, { ids }, 37)[1], BASE.vocab * 4
        assert.is_true(want:sub(1, 25 * row) == got:sub(1, 25 * row), name)
      end)
    end
  end)

  it("forgets what is behind the window", function()
    with_dummy({ window = 8, n_layers = 1 }, "auto", 1, function(m)
      local other = { unpack(short) }
      other[5] = (other[5] + 1) % BASE.vocab
      local a, b = logits(m, { short }, 37)[1], logits(m, { other }, 37)[1]
      local row = BASE.vocab * 4
      -- Token 5 is seen by rows 5 to 12 (from one), no longer by row 13.
      assert.is_true(a:sub(11 * row + 1, 12 * row) ~= b:sub(11 * row + 1, 12 * row))
      assert.equal(a:sub(12 * row + 1), b:sub(12 * row + 1))
    end)
  end)
end)

describe("a model put together", function()
  local function refused(m, pattern, role, layer, e, tensor)
    assert.is_true(C.pl_model_tensor(m, role, layer, e, tensor) < 0)
    assert.matches(pattern, ffi.string(C.pl_error_text()))
  end

  it("says what is wrong with a tensor", function()
    with_model({}, "auto", 1, function(m)
      local t = quant.matrix("F32", 32, 64, 1).tensor
      refused(m, "layer 1 k%) is 32 x 64, wanted 48 x 64", C.PL_ROLE_K, 1, -1, t)
      refused(m, "layer 2 for k, wanted one of the model's", C.PL_ROLE_K, 2, -1, t)
      refused(m, "layer 0 for norm, wanted %-1", C.PL_ROLE_NORM, 0, -1, t)
      refused(m, "model whose head is the embedding", C.PL_ROLE_HEAD, -1, -1, t)
      refused(m, "expert 0 for gate of a model with 0", C.PL_ROLE_GATE, 0, 0, t)
      refused(m, "role 99 is unknown", 99, 0, -1, t)
      refused(m, "q_norm for a model without", C.PL_ROLE_Q_NORM, 0, -1, t)
      local right = quant.matrix("F32", 48, 64, 1)
      right.tensor.bytes = 100
      refused(m, "has 100 bytes, wanted 12288", C.PL_ROLE_K, 1, -1, right.tensor)
      right.tensor.bytes = 12288
      ok(C.pl_model_tensor(m, C.PL_ROLE_K, 1, -1, right.tensor))
      refused(m, "k of layer 1 was given before", C.PL_ROLE_K, 1, -1, right.tensor)
    end)
  end)

  it("splits a tensor that holds the rows of several", function()
    local function one(fill)
      local out
      with_model({ tied = 1 }, "auto", 1, function(m)
        for layer = 0, 1 do fill(m, layer) end
        ok(C.pl_model_dummy(m))
        ok(C.pl_model_ready(m))
        out = logits(m, { prompt(2, 20) }, 20)[1]
      end)
      return out
    end
    local qkv, gate_up = quant.matrix("Q8_0", 240, 64, 7), quant.matrix("Q8_0", 192, 64, 8)
    -- The rows from one on, of a matrix.
    local function rows(from, first, n)
      local t = ffi.new("pl_tensor", from.tensor)
      local row = from.tensor.bytes / from.tensor.dims[0]
      t.dims[0], t.bytes = n, n * row
      t.data = ffi.cast("const char *", from.tensor.data) + first * row
      return t
    end
    local fused = one(function(m, layer)
      ok(C.pl_model_tensor(m, C.PL_ROLE_QKV, layer, -1, qkv.tensor))
      ok(C.pl_model_tensor(m, C.PL_ROLE_GATE_UP, layer, -1, gate_up.tensor))
    end)
    local split = one(function(m, layer)
      ok(C.pl_model_tensor(m, C.PL_ROLE_Q, layer, -1, rows(qkv, 0, 144)))
      ok(C.pl_model_tensor(m, C.PL_ROLE_K, layer, -1, rows(qkv, 144, 48)))
      ok(C.pl_model_tensor(m, C.PL_ROLE_V, layer, -1, rows(qkv, 192, 48)))
      ok(C.pl_model_tensor(m, C.PL_ROLE_GATE, layer, -1, rows(gate_up, 0, 96)))
      ok(C.pl_model_tensor(m, C.PL_ROLE_UP, layer, -1, rows(gate_up, 96, 96)))
    end)
    assert.is_true(fused == split)
    with_model({}, "auto", 1, function(m)
      refused(m, "layer 0 qkv%) is 192 x 64, wanted 240 x 64", C.PL_ROLE_QKV, 0, -1,
        gate_up.tensor)
      refused(m, "layer 2 for gate, wanted one", C.PL_ROLE_GATE_UP, 2, -1, gate_up.tensor)
      gate_up.tensor.bytes = 7
      refused(m, "has 7 bytes, wanted 13056", C.PL_ROLE_GATE_UP, 0, -1, gate_up.tensor)
    end)
    with_model({ n_experts = 2, n_experts_used = 1, expert_ffn = 48 }, "auto", 1, function(m)
      refused(m, "gate_up for a layer with experts", C.PL_ROLE_GATE_UP, 0, -1,
        gate_up.tensor)
    end)
  end)

  it("says which layers differ before their tensors", function()
    with_model({ window = 8, ffn = 0, n_experts = 2, n_experts_used = 1, expert_ffn = 32 },
      "auto", 1, function(m)
        local function bad(pattern, layer, flags)
          assert.is_true(C.pl_model_layer(m, layer, flags) < 0)
          assert.matches(pattern, ffi.string(C.pl_error_text()))
        end
        bad("layer 2, wanted one of the model's 2", 2, C.PL_LAYER_FULL)
        bad("flags are 4, wanted PL_LAYER_%*", 0, 4)
        bad("ffn is 0, wanted 1 or more for layer 0", 0, C.PL_LAYER_DENSE)
        ok(C.pl_model_dummy(m))
        bad("layer 1 has tensors already", 1, C.PL_LAYER_FULL)
      end)
  end)

  it("says what is missing", function()
    with_model({}, "auto", 1, function(m)
      assert.is_true(C.pl_model_ready(m) < 0)
      assert.equal("the model has no embed", ffi.string(C.pl_error_text()))
    end)
  end)

  it("refuses options that cannot be", function()
    local device = open_device("cpu", "auto", 1)
    local function bad(pattern, more)
      assert.is_true(C.pl_model_open(device, options(more)) == nil)
      assert.matches(pattern, ffi.string(C.pl_error_text()))
    end
    bad("n_layers is 0, wanted 1", { n_layers = 0 })
    bad("do not divide", { n_kv_heads = 4 })
    bad("n_kv_heads is 7, wanted 1 to 6", { n_kv_heads = 7 })
    bad("block_size is 24, wanted a multiple of 16", { block_size = 24 })
    bad("rope_factor is 0", { rope_scaling = C.PL_ROPE_LINEAR })
    bad("kv_type is 2, wanted 0 to 1", { kv_type = 2 })
    bad("activations is 3, wanted 0 to 2", { activations = 3 })
    bad("n_experts_used is 0, wanted 1 to 4", { n_experts = 4, expert_ffn = 64 })
    bad("qk_norm is 2, wanted 0 to 1", { qk_norm = 2 })
    bad("gate is 2, wanted 0 to 1", { gate = 2 })
    bad("rope_dims is 26, wanted 0 to 24", { rope_dims = 26 })
    bad("rope_dims is 5, wanted an even number", { rope_dims = 5 })
    bad("logit_cap is %-1, wanted 0 or more", { logit_cap = -1 })
    bad("attention_cap is inf", { attention_cap = 1 / 0 })
    bad("post_norms is 1 with 2 experts", { post_norms = 1, n_experts = 2,
                                            n_experts_used = 1, expert_ffn = 64 })
    C.pl_device_close(device)
  end)

  it("counts the weights of what it packed", function()
    with_model({}, "auto", 1, function(m)
      local matrix = quant.matrix("Q4_1", 48, 64, 1)
      ok(C.pl_model_tensor(m, C.PL_ROLE_K, 1, -1, matrix.tensor))
      assert.equal(48 * 64 * 5 / 8, tonumber(C.pl_model_weight_bytes(m)))
    end)
  end)
end)

describe("a device", function()
  it("is found by name, with kernels that the CPU has", function()
    assert.is_nil(open_device("gpu", "auto", 1))
    assert.equal("no device 'gpu', wanted 'cpu' or 'null'", ffi.string(C.pl_error_text()))
    assert.is_nil(open_device("cpu", "avx1024", 1))
    assert.matches("no kernels 'avx1024' on this CPU", ffi.string(C.pl_error_text()))
    assert.is_nil(open_device("cpu", "auto", -1))
    local d = open_device("cpu", "scalar", 3)
    assert.equal("scalar", ffi.string(C.pl_device_kernels(d)))
    C.pl_device_close(d)
  end)

  it("may compute nothing", function()
    local d = open_device("null", nil, 0)
    local m = C.pl_model_open(d, options { n_layers = 0, hidden = 0, block_size = 3 })
    ok(C.pl_model_ready(m))
    assert.equal(0, tonumber(C.pl_model_weight_bytes(m)))
    assert.matches("null", ffi.string(C.pl_model_numerics(m)))
    local matrix = quant.matrix("F32", 2, 2, 1)
    assert.is_true(C.pl_model_tensor(m, 0, -1, -1, matrix.tensor) < 0)
    C.pl_model_close(m)
    C.pl_device_close(d)
  end)
end)
