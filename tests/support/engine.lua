-- SPDX-License-Identifier: Apache-2.0
-- engine.lua - a model and an engine without a server, stepped by hand: for tests.
--
--   local e = engine.open("tests/golden/llama", { kernels = "scalar", activations = "float32" })
--   local id = e:submit({ 1, 2, 3 }, { temperature = 0, max_tokens = 8, logprobs = 5 })
--   local r = e:run()[id]      -- r.tokens, r.tops, r.finish, r.cached, r.prompt

local open_device = require "support.device"
local pl = require "perilune.ffi"
local model = require "perilune.model.load"
local C, ffi = pl.C, pl.ffi

local M = {}
M.__index = M

local LISTS = { stop_ids = "pl_seq_stop_ids", eos = "pl_seq_eos", allowed = "pl_seq_allow" }

local function need(object)
  if object == nil or object == false then
    error(ffi.string(C.pl_error_text()), 3)
  end
  return object
end

local function status(code)
  if code < 0 then error(ffi.string(C.pl_error_text()), 3) end
end
M.status = status

-- Loads a model on a device of its own. opts: device, kernels, threads, depth, eager, activations,
-- kv_cache_dtype, block_size and what model.describe takes.
function M.load(path, opts)
  opts = opts or {}
  local desc = assert(model.describe(path, opts))
  local device = assert(open_device(opts.device or "cpu", opts.kernels or "auto",
    opts.threads or 2, opts.depth, opts.eager))
  local loaded, why = model.load(desc, device, opts)
  if loaded then return { desc = desc, device = device, model = loaded } end
  C.pl_device_close(device)
  error(why, 2)
end

-- An engine over a loaded model. opts: fields of pl_engine_options.
function M.over(loaded, opts)
  opts = opts or {}
  local o = ffi.new "pl_engine_options"
  o.n_blocks = 256
  o.max_num_seqs, o.max_num_batched_tokens, o.max_model_len = 64, 512, 1024
  o.enable_prefix_caching, o.enable_chunked_prefill, o.max_waiting = 1, 1, 4096
  for key, value in pairs(opts) do o[key] = value end
  local engine = need(C.pl_engine_open(loaded.model, o))
  return setmetatable({ engine = engine, loaded = loaded, results = {}, open = 0,
    stats = ffi.new "pl_engine_stats" }, M)
end

function M.open(path, model_opts, engine_opts)
  return M.over(M.load(path, model_opts), engine_opts)
end

local function array(ids)
  return ffi.new("int32_t[?]", math.max(1, #ids), ids), #ids
end

-- A sequence. `params`: fields of pl_params and the lists of LISTS; bad_words (lists), bias
-- (by id), salt, and resumed: so many of `ids` are output already.
function M.seq(ids, params)
  local p = ffi.new "pl_params"
  C.pl_params_init(p)
  local more = { bad_words = true, bias = true, salt = true, resumed = true }
  for key, value in pairs(params or {}) do
    if not LISTS[key] and not more[key] then p[key] = value end
  end
  local tokens, n = array(ids)
  local seq = need(C.pl_seq_open(tokens, n, p))
  params = params or {}
  for key, name in pairs(LISTS) do
    if params[key] then status(C[name](seq, array(params[key]))) end
  end
  for _, word in ipairs(params.bad_words or {}) do
    status(C.pl_seq_bad_word(seq, array(word)))
  end
  for id, value in pairs(params.bias or {}) do
    status(C.pl_seq_bias(seq, array { id }, ffi.new("float[1]", value), 1))
  end
  if params.salt then status(C.pl_seq_salt(seq, params.salt, #params.salt)) end
  if params.resumed then status(C.pl_seq_resume(seq, params.resumed)) end
  return seq
end

-- Queues a prompt; `params` as of M.seq. Returns its id.
function M:submit(ids, params)
  local seq = M.seq(ids, params)
  local id = C.pl_seq_id(seq)
  status(C.pl_engine_submit(self.engine, seq))
  self.results[id] = { tokens = {}, tops = {}, prompt = {} }
  self.open = self.open + 1
  return id
end

local function copy(top, n)
  local out = {}
  for i = 0, n - 1 do
    out[i + 1] = { token = top[i].token, rank = top[i].rank, logprob = top[i].logprob }
  end
  return out
end

-- One step; keeps what it produced.
function M:step()
  status(C.pl_engine_step(self.engine))
  local out = ffi.new "const pl_token *[1]"
  local n = C.pl_engine_tokens(self.engine, out)
  for i = 0, n - 1 do
    local t = out[0][i]
    local r = self.results[t.seq]
    if t.token >= 0 then
      if #r.tokens == 0 then
        r.cached = t.n_cached
        r.prompt = copy(t.prompt_top, t.n_prompt_top)
      end
      r.tokens[#r.tokens + 1] = t.token
      r.tops[#r.tops + 1] = copy(t.top, t.n_top)
    end
    if t.finish ~= C.PL_FINISH_NONE then
      r.finish, r.stop_reason = t.finish, t.stop_reason
      self.open = self.open - 1
    end
  end
  return n
end

-- Steps until all have ended; returns results by id.
function M:run(max_steps)
  for _ = 1, max_steps or 100000 do
    if self.open == 0 then return self.results end
    self:step()
  end
  error "the engine does not come to an end"
end

function M:statistics()
  C.pl_engine_stats_get(self.engine, self.stats)
  return self.stats
end

-- The engine alone; or with `all` its model and device too.
function M:close(all)
  C.pl_engine_close(self.engine)
  if all then M.unload(self.loaded) end
end

function M.unload(loaded)
  C.pl_model_close(loaded.model)
  C.pl_device_close(loaded.device)
end

-- Why a device does not compute a model; nil where it does.
function M.refusal(path, device)
  local ok, loaded = pcall(M.load, path, { device = device })
  if ok then return M.unload(loaded) end
  if loaded:find "the model has .+, which this device .+ does not compute" then
    return loaded
  end
  error(loaded, 2)
end

return M
