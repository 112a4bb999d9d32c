-- SPDX-License-Identifier: Apache-2.0
-- fleet/worker.lua - opens what answers: the model's description, its tokenizer, and
-- engines, each with a device and the model on it.

local pl = require "perilune.ffi"
local kv_events = require "perilune.fleet.kv_events"
local kv_transfer = require "perilune.fleet.kv_transfer"
local log = require "perilune.log"
local model = require "perilune.model.load"
local progress_bar = require "perilune.fleet.progress_bar"
local schema = require "perilune.recipe.schema"
local settings = require "perilune.recipe.resolve"
local tokenizer = require "perilune.model.tokenizer"
local C, ffi = pl.C, pl.ffi

local M = {}

local POLICIES = { fcfs = C.PL_POLICY_FCFS, priority = C.PL_POLICY_PRIORITY }
M.HASHES = { sha256_cbor = C.PL_HASH_SHA256_CBOR, sha256 = C.PL_HASH_SHA256,
  xxhash_cbor = C.PL_HASH_XXHASH_CBOR }

-- Most sequences in line; the rest is refused with 503.
M.MAX_WAITING = 8192
local MAX_BLOCKS = schema.find("num_kv_blocks").max

-- The null device takes no weights, so it needs none; nor does who serves no model.
local function load_format(pool)
  local without = pool.device == "null" or pool.upstream
  return without and "dummy" or pool.load_format
end

function M.describe(recipe, pool)
  local path, why, name = model.resolve(recipe.model)
  if not path then return nil, why, name end
  return model.describe(path, {
    hf_overrides = recipe.hf_overrides, load_format = load_format(pool),
    generation_config = recipe.generation_config,
    override_generation_config = recipe.override_generation_config,
    max_model_len = pool.max_model_len,
  })
end

function M.tokenizer(recipe, desc)
  if recipe.tokenizer then return tokenizer.from_directory(recipe.tokenizer) end
  if desc.format ~= "gguf" then return tokenizer.from_directory(desc.path) end
  local weights = C.pl_weights_open(desc.path)
  if weights == nil then return pl.refusal(C.PL_EFORMAT) end
  local tok, why, name = tokenizer.from_gguf(weights)
  C.pl_weights_close(weights)
  return tok, why, name
end

local function size(bytes)
  local mib = bytes / 2 ^ 20
  return mib < 1024 and ("%.2f MiB"):format(mib) or ("%.2f GiB"):format(mib / 1024)
end

-- Bytes of a device's own memory, left and in all; nil where it uses the host's.
local function device_memory(device)
  local left, all = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
  if C.pl_device_memory(device, left, all) < 0 then return nil end
  return tonumber(left[0]), tonumber(all[0])
end

-- How long a request may be: what was asked for, what the model can, what memory holds:
-- `bytes`, which option `from` says.
local function lengths(pool, desc, block_bytes, bytes, from)
  local trained = desc.max_positions
  local blocks = pool.num_kv_blocks
    or math.max(math.min(math.floor(bytes / block_bytes), MAX_BLOCKS), 0)
  local holds = math.max(blocks - 1, 0) * pool.block_size    -- the engine sets one aside
  local length = pool.max_model_len or trained
  if length == "auto" or length == -1 then
    length = math.max(math.min(trained, holds), 2)
  end
  if length > trained then
    return nil, ("max_model_len is %d, but the model was made for %d")
      :format(length, trained)
  end
  if length > holds then
    return nil, ("max_model_len is %d, which needs %s of KV cache; there is room for %d "
      .. "tokens. Set max_model_len to that or to auto, or raise %s")
      :format(length, size((math.ceil(length / pool.block_size) + 1) * block_bytes),
        holds, pool.num_kv_blocks and "num_kv_blocks" or from)
  end
  return length, blocks
end

-- Who has set an option of a pool, an entry of the recipe.
local function origin(recipe, pool, option)
  for _, name in ipairs(recipe.pools) do
    if recipe[name] == pool then return settings.origin(recipe, name .. "." .. option) end
  end
end

-- How many tokens a step may have: a prompt that is not cut needs room for all of it.
local function step_tokens(recipe, pool, length)
  local tokens = pool.max_num_batched_tokens
  local own = origin(recipe, pool, "max_num_batched_tokens") == "default"
  if pool.enable_chunked_prefill or tokens >= length or not own then return tokens end
  log.info("max_num_batched_tokens is %d, as max_model_len, as prompts are not chunked",
    length)
  return length
end

-- What the first block of a text has for a parent, as vLLM takes it.
function M.hash_seed()
  local seed = os.getenv "PYTHONHASHSEED"
  return seed ~= "random" and seed or "vllm-none-hash"
end

-- What a pool's options say of an engine, for requests of `length` tokens at most.
function M.engine_options(recipe, pool, length, blocks)
  local o = ffi.new "pl_engine_options"
  o.n_blocks, o.max_model_len = blocks, length
  o.max_num_seqs = pool.max_num_seqs
  o.max_num_batched_tokens = step_tokens(recipe, pool, length)
  o.enable_prefix_caching = pool.enable_prefix_caching
  o.enable_chunked_prefill = pool.enable_chunked_prefill
  o.long_prefill_token_threshold = pool.long_prefill_token_threshold
  o.policy = POLICIES[pool.scheduling_policy]
  o.hash_algo = M.HASHES[pool.prefix_caching_hash_algo]
  o.hash_seed = M.hash_seed()
  o.max_waiting = M.MAX_WAITING
  o.fail_without_kv = kv_transfer.fails(pool)
  return o
end

local function open_engine(recipe, pool, loaded, length, blocks)
  local engine = C.pl_engine_open(loaded, M.engine_options(recipe, pool, length, blocks))
  if engine == nil then return pl.refusal(C.PL_EINVAL) end
  return engine
end

-- What an engine takes of its device's memory besides the cache: found out by opening one
-- with the fewest blocks.
local function engine_bytes(recipe, pool, desc, e)
  local length = tonumber(pool.max_model_len) or desc.max_positions
  if length < 2 or length > desc.max_positions then length = desc.max_positions end
  local before = device_memory(e.device)
  local engine, why, name = open_engine(recipe, pool, e.model, length, 2)
  if not engine then return nil, why, name end
  local taken = before - device_memory(e.device)
  C.pl_engine_close(engine)
  return taken
end

-- Bytes of the KV cache, and which option says so. Engine number i of the pool's may use
-- the device's memory up to its part of gpu_memory_utilization.
local function kv_bytes(recipe, pool, desc, e, i)
  local own = origin(recipe, pool, "kv_cache_memory_bytes") ~= "default"
  local left, all = device_memory(e.device)
  if own or pool.num_kv_blocks or not left then
    return pool.kv_cache_memory_bytes, "kv_cache_memory_bytes"
  end
  local steps, why, name = engine_bytes(recipe, pool, desc, e)
  if not steps then return nil, why, name end
  local share = all * pool.gpu_memory_utilization * i / pool.count
  return share - (all - left) - steps, "gpu_memory_utilization"
end

local function load_model(pool, desc, device, stopped)
  local bar = progress_bar.open "loading"
  local loaded, why, name = model.load(desc, device, {
    activations = pool.activations, kv_cache_dtype = pool.kv_cache_dtype,
    block_size = pool.block_size, load_format = load_format(pool), seed = pool.seed,
    progress = function(done, total)
      bar.update(done, total)
      return not (stopped and stopped())
    end,
  })
  bar.done()
  return loaded, why, name
end

-- The sampling defaults that the model brings, if any.
local function report_sampling(desc)
  local said = {}
  for name, value in pairs(desc.generation) do
    said[#said + 1] = ("%s %.14g"):format(name, value)
  end
  if not said[1] then return end
  table.sort(said)
  log.info("sampling defaults of the model: %s", table.concat(said, ", "))
end

-- What the engines of a pool are, by the first of them.
local function report(self, first, kind)
  local pool = first.pool
  local tokens = (first.blocks - 1) * pool.block_size
  log.info("model %s: %s, %s of weights", self.desc.name, self.desc.architecture,
    size(tonumber(C.pl_model_weight_bytes(first.model))))
  report_sampling(self.desc)
  log.info("device %s, kernels %s, threads %s%s", kind,
    ffi.string(C.pl_device_kernels(first.device)),
    pool.threads == 0 and "one per core" or tostring(pool.threads),
    pool.count > 1 and (", %d engines"):format(pool.count) or "")
  log.info("KV cache size: %d tokens (%s when full)", tokens,
    size(tonumber(C.pl_model_block_bytes(first.model)) * first.blocks))
  log.info("Maximum concurrency for %d tokens per request: %.2fx", first.length,
    tokens / first.length)
end

-- Sets fields one after the other: { name, function } each; stops at the first refusal.
local function fill(fields, steps)
  for _, step in ipairs(steps) do
    local value, why, name = step[2]()
    if value == nil then return nil, why, name end
    fields[step[1]] = value
  end
  return fields
end

local function open_device(pool, kind)
  local d = C.pl_device_open(ffi.new("pl_device_options", {
    name = kind, kernels = pool.kernels, n_threads = pool.threads,
    eager = pool.enforce_eager }))
  if d == nil then return pl.refusal(C.PL_EINVAL) end
  return d
end

-- What "auto" comes to: the GPU if one can be used. Why not is worth a line, unless the
-- program was built without.
local function choose_device(pool)
  if pool.device ~= "auto" then return pool.device end
  local device, why, name = open_device(pool, "cuda")
  if device then
    C.pl_device_close(device)
    return "cuda"
  end
  if name ~= "PL_ENOTFOUND" then log.info("the CPU serves: %s", why) end
  return "cpu"
end

-- One engine more, in self.engines from the first of its parts on.
local function add_engine(self, recipe, pool, kind, stopped)
  local e, from = { pool = pool }, nil
  self.engines[#self.engines + 1] = e
  return fill(e, {
    { "device", function() return open_device(pool, kind) end },
    { "model", function()
      local began = C.pl_now_ns()
      local loaded, why, name = load_model(pool, self.desc, e.device, stopped)
      e.load_seconds = tonumber(C.pl_now_ns() - began) / 1e9
      return loaded, why, name
    end },
    { "kv_bytes", function()
      local bytes, why, name = kv_bytes(recipe, pool, self.desc, e, #self.engines)
      from = why
      return bytes, why, name
    end },
    { "length", function()
      local length, blocks = lengths(pool, self.desc,
        tonumber(C.pl_model_block_bytes(e.model)), e.kv_bytes, from)
      e.blocks = blocks
      if length and pool == recipe[recipe.main] then self.length = length end
      return length, blocks, "PL_ELIMIT"
    end },
    { "engine", function()
      return open_engine(recipe, pool, e.model, e.length, e.blocks)
    end },
    { "events", function()
      return kv_events.open(pool, e.engine, #self.engines - 1)
    end },
  })
end

local function drop_engine(e)
  if e.events then C.pl_events_close(e.events) end
  if e.engine then C.pl_engine_close(e.engine) end
  if e.model then C.pl_model_close(e.model) end
  if e.device then C.pl_device_close(e.device) end
end

-- The engines of one pool.
local function add_pool(self, recipe, pool, stopped)
  local fine, wrong = kv_transfer.check(pool)
  if not fine then return nil, wrong end
  local kind, first = choose_device(pool), #self.engines + 1
  for i = 1, pool.count do
    local ok, why, name = add_engine(self, recipe, pool, kind, stopped)
    if i == 1 and not ok and kind ~= pool.device and kind ~= "cpu"
        and name == "PL_EUNSUPPORTED" then
      log.info("the CPU serves: %s", why)   -- "auto" takes what can run the model
      drop_engine(table.remove(self.engines))
      kind = "cpu"
      ok, why, name = add_engine(self, recipe, pool, kind, stopped)
    end
    if not ok then return nil, why, name end
  end
  report(self, self.engines[first], kind)
  return true
end

-- The workers of these pools of a resolved recipe, that which answers first; or nil,
-- message, name. stopped(), if given, says whether they are not wanted any more. Fields:
-- desc, tokenizer, length, and engines, a list of { pool (the recipe's entry), device,
-- model, engine, length, blocks, load_seconds }.
function M.open(recipe, pools, stopped)
  local self, first = { engines = {} }, recipe[pools[1]]
  local ok, why, name = fill(self, {
    { "publishes", function() return kv_events.wanted(first) end },
    { "desc", function() return M.describe(recipe, first) end },
    { "tokenizer", function() return M.tokenizer(recipe, self.desc) end },
  })
  for _, pool in ipairs(pools) do
    if ok then ok, why, name = add_pool(self, recipe, recipe[pool], stopped) end
  end
  if not ok then
    M.close(self)
    return nil, why, name
  end
  self.length = self.length or self.engines[1].length
  return self
end

function M.close(self)
  for _, e in ipairs(self.engines) do drop_engine(e) end
  self.engines = {}
  if self.tokenizer then C.pl_text_close(ffi.gc(self.tokenizer.text, nil)) end
end

return M
