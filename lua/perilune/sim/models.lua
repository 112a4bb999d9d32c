-- SPDX-License-Identifier: Apache-2.0
-- sim/models.lua - what a simulated worker's engine stands on: a model without weights on
-- a device that computes nothing.

local pl = require "perilune.ffi"
local worker = require "perilune.fleet.worker"
local C, ffi = pl.C, pl.ffi

local M = {}

-- Tokens of KV cache where the recipe does not say how many blocks.
M.CACHE_TOKENS = 2 ^ 20

local function open_model(pool, longest)
  local device = ffi.new "pl_device_options"
  device.name, device.depth = "null", 1
  local d = C.pl_device_open(device)
  if d == nil then return pl.refusal(C.PL_EINVAL) end
  local o = ffi.new "pl_model_options"
  o.n_layers, o.hidden, o.n_heads, o.n_kv_heads, o.head_dim = 1, 32, 1, 1, 32
  o.ffn, o.vocab, o.max_positions, o.norm_eps, o.rope_theta = 32, 32, longest, 1e-5, 1e4
  o.tied, o.activations, o.kv_type = 1, C.PL_ACT_FLOAT32, C.PL_KV_FLOAT32
  o.block_size, o.dummy_seed = pool.block_size, 1
  local m = C.pl_model_open(d, o)
  if m ~= nil and C.pl_model_dummy(m) >= 0 and C.pl_model_ready(m) >= 0 then
    return { device = d, model = m }
  end
  local _, why = pl.refusal(C.PL_EINVAL)
  C.pl_model_close(m)
  C.pl_device_close(d)
  return nil, why
end

-- Blocks of the KV cache of a pool's worker, with the one that the engine sets aside.
function M.blocks(pool)
  return pool.num_kv_blocks or math.ceil(M.CACHE_TOKENS / pool.block_size) + 1
end

-- Adds a worker of a pool, an entry of the recipe, to a run's simulation: its number, or
-- nil and why.
function M.join(run, pool, timing)
  local longest = run.trace.longest + 1
  if type(pool.max_model_len) == "number" and pool.max_model_len > 1 then
    longest = pool.max_model_len
  end
  local opened, why = open_model(pool, longest)
  if not opened then return nil, why end
  run.models[#run.models + 1] = opened
  local o = worker.engine_options(run.recipe, pool, longest, M.blocks(pool))
  local number = C.pl_sim_join(run.sim, opened.model, o, timing)
  if number < 0 then return pl.refusal(number) end
  return number
end

-- After the simulation.
function M.close(run)
  for _, opened in ipairs(run.models) do
    C.pl_model_close(opened.model)
    C.pl_device_close(opened.device)
  end
end

return M
