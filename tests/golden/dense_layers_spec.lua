-- SPDX-License-Identifier: Apache-2.0
-- Layers without experts among layers with them. A layer whose experts are all alike, and
-- whose weights for them add up to 1, computes what one dense layer of such weights does:
-- so the reference model with such a layer says what is right.

local cjson = require "cjson"
local engine = require "support.engine"
local files = require "weights_files"
local golden = require "support.golden"
local model = require "perilune.model.load"
local open_device = require "support.device"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local WIDE = 100    -- of the dense layer; the experts' is 40, the rest adds nothing

-- The tensors of the reference model: { name, shape, bytes }.
local function read(folder)
  local desc, rows = assert(model.describe(folder)), {}
  local w = C.pl_weights_open(desc.files[1])
  for i, row in ipairs(assert(model.tensors(desc, { w }))) do
    rows[i] = { row.name, row.shape, ffi.string(row.tensor.data, row.tensor.bytes) }
  end
  C.pl_weights_close(w)
  return rows
end

local function safetensors(rows)
  local head, data, at = {}, {}, 0
  for i, row in ipairs(rows) do
    head[i] = ('"%s":{"dtype":"BF16","shape":[%s],"data_offsets":[%d,%d]}'):format(row[1],
      table.concat(row[2], ","), at, at + #row[3])
    data[i], at = row[3], at + #row[3]
  end
  return files.safetensors("{" .. table.concat(head, ",") .. "}", table.concat(data))
end

-- Rows of the columns' bytes, made wider by zeros.
local function widened(bytes, columns, to)
  local rows = {}
  for i = 1, #bytes, columns * 2 do
    rows[#rows + 1] = bytes:sub(i, i + columns * 2 - 1) .. ("\0"):rep((to - columns) * 2)
  end
  return table.concat(rows)
end

-- The model with one layer's experts all alike; and with that layer dense.
local function make(folder, rows, config, layer, changes)
  local prefix = ("model.layers.%d.mlp."):format(layer)
  local hidden, ffn, first = config.hidden_size, config.moe_intermediate_size, {}
  for _, row in ipairs(rows) do
    local part = row[1]:match("^" .. prefix:gsub("%.", "%%.") .. "experts%.0%.(.*)$")
    if part then first[part] = row end
  end
  local alike, dense = {}, {}
  for _, row in ipairs(rows) do
    local inside = row[1]:sub(1, #prefix) == prefix
    local part = inside and row[1]:match "experts%.%d+%.(.*)$"
    alike[#alike + 1] = { row[1], row[2], part and first[part][3] or row[3] }
    if not inside then dense[#dense + 1] = row end
  end
  -- Rows of gate and up that are not zero, but that down takes nothing of.
  local more = first["gate_proj.weight"][3]:rep(2):sub(1, (WIDE - ffn) * hidden * 2)
  for _, part in ipairs { "gate_proj.weight", "up_proj.weight" } do
    dense[#dense + 1] = { prefix .. part, { WIDE, hidden }, first[part][3] .. more }
  end
  dense[#dense + 1] = { prefix .. "down_proj.weight", { hidden, WIDE },
                        widened(first["down_proj.weight"][3], ffn, WIDE) }
  local own = { intermediate_size = WIDE }
  for key, value in pairs(changes) do own[key] = value end
  local function write(list, overrides)
    return files.folder { ["config.json"] = golden.read(folder .. "/config.json"),
                          ["model.safetensors"] = safetensors(list) }, overrides
  end
  return { write(alike, {}) }, { write(dense, own) }
end

local function answers(made, activations, prompts)
  local e = engine.open(made[1], { activations = activations, kv_cache_dtype = "float32",
                                   hf_overrides = made[2] })
  local ids, out = {}, {}
  for i, prompt in ipairs(prompts) do
    ids[i] = e:submit(prompt, { temperature = 0, max_tokens = 12, logprobs = 0 })
  end
  local results = e:run()
  for i, id in ipairs(ids) do out[i] = results[id] end
  e:close(true)
  return out
end

describe("a layer without experts among layers with them", function()
  local want, folder = golden.of "qwen3-moe"
  if not want then return pending("no qwen3-moe in " .. golden.root) end
  local rows = read(folder)
  local config = cjson.decode(golden.read(folder .. "/config.json"))
  local prompts = {}
  for i, g in ipairs(want.generation) do prompts[i] = g.prompt_ids end

  after_each(files.clean)

  for name, case in pairs {
    ["by mlp_only_layers, the first"] = { 0, { mlp_only_layers = { 0 } } },
    ["by mlp_only_layers, the last"] = { 1, { mlp_only_layers = { 1, 7 } } },
    ["by decoder_sparse_step"] = { 0, { decoder_sparse_step = 2 } },
  } do
    it("computes as it should, " .. name, function()
      local alike, dense = make(folder, rows, config, unpack(case))
      local a = answers(alike, "float32", prompts)
      local b = answers(dense, "float32", prompts)
      for i, r in ipairs(a) do
        assert.same(r.tokens, b[i].tokens)
        for k, top in ipairs(r.tops) do
          assert.is_true(math.abs(top[1].logprob - b[i].tops[k][1].logprob) < 1e-4)
        end
      end
    end)
  end

  it("is another model than one without", function()
    local alike, dense = make(folder, rows, config, 0, { mlp_only_layers = { 0 } })
    local one = assert(model.describe(alike[1]))
    local other = assert(model.describe(dense[1], { hf_overrides = dense[2] }))
    assert.same({ 0 }, other.dense_layers)
    assert.is_nil(one.dense_layers)
    assert.not_equal(one.fingerprint, other.fingerprint)
    local wrong = assert(model.describe(dense[1], {
      hf_overrides = { mlp_only_layers = { 1 }, intermediate_size = WIDE } }))
    local device = open_device "cpu"
    local loaded, why = model.load(wrong, device)
    C.pl_device_close(device)
    assert.is_nil(loaded)
    assert.truthy(why:find("no tensor 'model.layers.0.mlp.gate.weight'", 1, true), why)
  end)
end)
