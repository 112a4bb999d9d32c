-- SPDX-License-Identifier: Apache-2.0
local pl = require "perilune.ffi"
local recipe = require "perilune.recipe.resolve"
local worker = require "perilune.fleet.worker"

local golden = os.getenv "PERILUNE_GOLDEN" or "tests/golden"

-- A worker over a small model, opened as these flags say.
local function open(...)
  local resolved = assert(recipe.resolve("agg", { "--model", golden .. "/qwen3",
    "--device", "null", ... }, function() return nil end))
  return worker.open(resolved, { "worker" })
end

local function length(...)
  local w = assert(open(...))
  worker.close(w)
  return w.length
end

describe("a worker", function()
  setup(function() pl.C.pl_log_level(pl.C.PL_LOG_ERROR) end)
  teardown(function() pl.C.pl_log_level(pl.C.PL_LOG_INFO) end)

  it("promises no length that its blocks do not hold: one of them is set aside", function()
    assert.equal(9 * 16, length("--num-kv-blocks", "10",
                                "--max-model-len", "auto"))
    assert.equal(144, length("--num-gpu-blocks-override", "10", "--max-model-len", "144"))
    local w, why, name = open("--num-gpu-blocks-override", "10", "--max-model-len", "145")
    assert.is_nil(w)
    assert.equal("PL_ELIMIT", name)
    assert.matches("room for 144 tokens.* num_kv_blocks$", why)
    w, why = open("--kv-cache-memory-bytes", "1", "--max-model-len", "auto")
    assert.is_nil(w)
    assert.matches("room for 0 tokens.* kv_cache_memory_bytes$", why)
  end)

  it("takes its share of a device's own memory, less what is in use", function()
    local function on_echo(...) return open("--device", "echo", "--load-format", "dummy", ...) end
    local function blocks(...)
      local w = assert(on_echo(...))
      local n = w.engines[1].blocks
      worker.close(w)
      return n
    end
    local BLOCK = 64   -- bytes of an echo's
    assert.equal((0.5 - 0.25) * 2 ^ 26 / BLOCK, blocks("--gpu-memory-utilization", "0.5"))
    assert.equal(300, blocks("--gpu-memory-utilization", "0.5",
                             "--kv-cache-memory-bytes", 300 * BLOCK .. ""))
    assert.equal(200, blocks("--num-gpu-blocks-override", "200"))
    local w, why, name = on_echo("--gpu-memory-utilization", "0.25")
    assert.is_nil(w)
    assert.equal("PL_ELIMIT", name)
    assert.matches("room for 0 tokens.* gpu_memory_utilization$", why)
  end)

  it("is as long as the model was made for, and no longer", function()
    assert.equal(2048, length())
    assert.equal(2048, length("--max-model-len", "auto"))
    assert.equal(2048, length("--max-model-len", "-1"))
    local w, why = open("--max-model-len", "2049")
    assert.is_nil(w)
    assert.equal("max_model_len is 2049, but the model was made for 2048", why)
    assert.equal(2048, length("--kv-cache-memory-bytes", "1T", "--max-model-len", "auto"))
  end)

  it("makes room in a step for prompts that are not cut", function()
    assert.equal(2048, length "--no-enable-chunked-prefill")
    local w, why = open("--no-enable-chunked-prefill", "--max-num-batched-tokens", "1024")
    assert.is_nil(w)
    assert.matches("^max_num_batched_tokens 1024: without chunked prefill wanted", why)
  end)
end)
