-- SPDX-License-Identifier: Apache-2.0
-- null_engine.lua - an engine on the "null" device whose sequences say what the test wants:
-- its tokens depend on their position alone, so a vocabulary can be made to fit.
local open_device = require "support.device"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local M = { VOCAB = 128 }

local PROMPT = 3
local STEP, START = 7, 11      -- it answers (p * STEP + START) % VOCAB at position p

local function fill(struct, values)
  for k, v in pairs(values) do struct[k] = v end
  return struct
end

local function must(v)
  return v ~= nil and v or error(ffi.string(C.pl_error_text()), 2)
end

local Engine = {}
Engine.__index = Engine

function M.open(rt)
  local device = assert(open_device "null")
  local model = must(C.pl_model_open(device, fill(ffi.new "pl_model_options", {
    n_layers = 1, hidden = 32, n_heads = 2, n_kv_heads = 1, head_dim = 16, ffn = 32,
    vocab = M.VOCAB, max_positions = 4096, norm_eps = 1e-5, rope_theta = 10000, tied = 1,
    activations = C.PL_ACT_FLOAT32, kv_type = C.PL_KV_FLOAT32, block_size = 16, dummy_seed = 1,
  })))
  assert(C.pl_model_dummy(model) == 0 and C.pl_model_ready(model) == 0)
  local handle = must(C.pl_engine_open(model, fill(ffi.new "pl_engine_options", {
    n_blocks = 1024, max_num_seqs = 64, max_num_batched_tokens = 1024,
    max_model_len = 4096, enable_chunked_prefill = 1, max_waiting = 64,
  })))
  assert(C.pl_runtime_attach(rt, handle) == 0)
  local self = { rt = rt, handle = handle, model = model, device = device }
  return setmetatable(self, Engine)
end

function Engine:close()
  C.pl_runtime_detach(self.rt, self.handle)
  C.pl_engine_close(self.handle)
  C.pl_model_close(self.model)
  C.pl_device_close(self.device)
end

-- A sequence; `more` are fields of pl_params.
function M.seq(more)
  local p = ffi.new "pl_params"
  C.pl_params_init(p)
  fill(p, { temperature = 0, ignore_eos = 0 })
  fill(p, more or {})
  return must(C.pl_seq_open(ffi.new("int32_t[?]", PROMPT), PROMPT, p))
end

-- The id of the i-th token that a sequence produces.
function M.id(i)
  return ((PROMPT + i - 1) * STEP + START) % M.VOCAB
end

local function utf8(c)
  if c < 0x80 then return string.char(c) end
  return string.char(0xc0 + math.floor(c / 64), 0x80 + c % 64)
end

-- Bytes as a byte-level vocabulary writes them.
local function written(bytes)
  local map, n = {}, 256
  for b = 0, 255 do
    local printable = (b >= 33 and b <= 126) or (b >= 161 and b <= 172) or b >= 174
    map[string.char(b)] = utf8(printable and b or n)
    if not printable then n = n + 1 end
  end
  return (bytes:gsub(".", map):gsub("%z", map["\0"]))
end

-- A vocabulary in which the i-th token of a sequence is the i-th piece; then come dots.
-- `special`: the number of the piece that is a special token.
function M.text(pieces, special)
  local t = must(C.pl_text_open(fill(ffi.new "pl_text_options", {
    kind = C.PL_TEXT_BYTES, vocab_size = M.VOCAB, unk_id = -1,
  })))
  for i = 1, M.VOCAB do
    local kind = i == special and C.PL_TOKEN_SPECIAL or C.PL_TOKEN_NORMAL
    local s = i == special and pieces[i] or written(pieces[i] or ".")
    assert(C.pl_text_token(t, M.id(i), s, #s, kind, 0) == 0)
  end
  assert(C.pl_text_ready(t) == 0, ffi.string(C.pl_error_text()))
  return t
end

return M
