-- SPDX-License-Identifier: Apache-2.0
-- null.lua - for tests: engines on the "null" device, stepped by hand and checked after
-- each step, and sequences for them.

local open_device = require "support.device"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local M = { VOCAB = 1000, BLOCK = 16 }

local MODEL = {
  n_layers = 1, hidden = 32, n_heads = 2, n_kv_heads = 1, head_dim = 16, ffn = 32,
  vocab = M.VOCAB, max_positions = 4096, norm_eps = 1e-5, rope_theta = 10000, tied = 1,
  activations = C.PL_ACT_FLOAT32, kv_type = C.PL_KV_FLOAT32, block_size = M.BLOCK, dummy_seed = 1,
}

local OPTIONS = {
  n_blocks = 11, max_num_seqs = 16, max_num_batched_tokens = 256, max_model_len = 1024,
  enable_prefix_caching = 1, enable_chunked_prefill = 1, max_waiting = 64,
}

local function fill(struct, values, more)
  for k, v in pairs(values) do struct[k] = v end
  for k, v in pairs(more or {}) do struct[k] = v end
  return struct
end

local function must(v)
  return v ~= nil and v or error(ffi.string(C.pl_error_text()), 2)
end

function M.model(device_name, depth)
  local device = assert(open_device(device_name or "null", nil, 1, depth))
  local model = must(C.pl_model_open(device, fill(ffi.new "pl_model_options", MODEL)))
  assert(C.pl_model_dummy(model) == 0 and C.pl_model_ready(model) == 0)
  return model, device
end

function M.options(more)
  return fill(ffi.new "pl_engine_options", OPTIONS, more)
end

local Engine = {}
Engine.__index = Engine

-- `device`: "cpu" for a model that computes, if only from dummy weights. `depth`: steps in
-- flight at once.
function M.engine(more, device_name, depth)
  local model, device = M.model(device_name, depth)
  local handle = must(C.pl_engine_open(model, M.options(more)))
  return setmetatable({ handle = handle, model = model, device = device, ends = {},
                        tokens = {}, first = {} }, Engine)
end

function M.ids(t)
  return ffi.new("int32_t[?]", math.max(#t, 1), t), #t
end

-- n tokens that depend on `from` only.
function M.text(from, n)
  local t = {}
  for i = 1, n do t[i] = (from * 31 + i * 7) % M.VOCAB end
  return t
end

function M.params(more)
  local p = ffi.new "pl_params"
  C.pl_params_init(p)
  return fill(p, { temperature = 0, max_tokens = 500, ignore_eos = 1 }, more)
end

function M.seq(tokens, more)
  local ids, n = M.ids(tokens)
  return must(C.pl_seq_open(ids, n, M.params(more)))
end

-- Submits; the sequence's id, or nil and why.
function Engine:submit(tokens, more, prepare)
  local s = M.seq(tokens, more)
  if prepare then prepare(s) end
  local id = C.pl_seq_id(s)
  local status = C.pl_engine_submit(self.handle, s)
  if status == 0 then return id end
  C.pl_seq_close(s)
  return pl.refusal(status)
end

-- Runs n steps and notes what they told; returns the tokens told, by sequence.
function Engine:step(n)
  local told = {}
  for _ = 1, n or 1 do
    assert(C.pl_engine_step(self.handle) == 0)
    local out = ffi.new "const pl_token *[1]"
    for i = 0, C.pl_engine_tokens(self.handle, out) - 1 do
      local t = out[0][i]
      assert(not self.ends[t.seq], "a token after the end")
      self.first[t.seq] = self.first[t.seq] or t.n_cached
      if t.finish ~= 0 then self.ends[t.seq] = t.finish end
      if t.token >= 0 then
        self.tokens[t.seq] = self.tokens[t.seq] or {}
        table.insert(self.tokens[t.seq], t.token)
        told[t.seq] = (told[t.seq] or 0) + 1
      end
    end
    assert(C.pl_engine_check(self.handle) == 0, ffi.string(C.pl_error_text()))
  end
  return told
end

function Engine:stats()
  local s = ffi.new "pl_engine_stats"
  C.pl_engine_stats_get(self.handle, s)
  return s
end

function Engine:run(max)
  for i = 1, max or 10000 do
    self:step()
    local s = self:stats()
    if s.running + s.waiting == 0 then return i end
  end
  error "it does not end"
end

function Engine:cancel(id)
  C.pl_engine_cancel(self.handle, id)
end

-- The blocks of a sequence; without one, the free ones in order.
function Engine:blocks(id)
  local out = ffi.new "int32_t[4096]"
  local n, t = C.pl_engine_blocks(self.handle, id or 0, out, 4096), {}
  for i = 1, n do t[i] = out[i - 1] end
  return t
end

function Engine:close()
  C.pl_engine_close(self.handle)
  C.pl_model_close(self.model)
  C.pl_device_close(self.device)
end

return M
