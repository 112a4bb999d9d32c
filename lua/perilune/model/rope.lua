-- SPDX-License-Identifier: Apache-2.0
-- model/rope.lua - what config.json says of rotary positions.

local F = require "perilune.model.fields"
local C = require("perilune.ffi").C

local limits = F.limits

local M = {}

local scalings = {}

function scalings.default(_, o) o.rope_scaling = C.PL_ROPE_PLAIN end

-- `from` positions become more by the factor, unless what is said of them counts it in.
local function stretch(scaling, o, from, row)
  o.rope_factor = F.number(scaling, "factor", 1, limits.factor)
  if row.stretched then return end
  o.max_positions = math.floor(from * o.rope_factor)
  if o.max_positions > limits.positions then
    F.wrong(scaling, "factor", "at most " .. limits.positions .. " positions")
  end
end

function scalings.linear(scaling, o, row)
  o.rope_scaling = C.PL_ROPE_LINEAR
  stretch(scaling, o, o.max_positions, row)
end

function scalings.llama3(scaling, o)
  o.rope_scaling = C.PL_ROPE_LLAMA3
  o.rope_factor = F.number(scaling, "factor", 1, limits.factor)
  o.rope_low = F.number(scaling, "low_freq_factor", 1e-3, 1e3)
  o.rope_high = F.number(scaling, "high_freq_factor", 1e-3, 1e3)
  o.rope_original = F.integer(scaling, "original_max_position_embeddings", 1,
                              limits.positions)
  if o.rope_high <= o.rope_low then
    F.wrong(scaling, "high_freq_factor", "more than low_freq_factor, " .. o.rope_low)
  end
end

function scalings.yarn(scaling, o, row)
  for _, key in ipairs { "mscale", "mscale_all_dim", "attn_factor" } do
    if F.has(scaling, key) then F.unsupported(scaling, key, "none") end
  end
  if not F.boolean(scaling, "truncate", true) then
    F.unsupported(scaling, "truncate", "true")
  end
  o.rope_scaling = C.PL_ROPE_YARN
  o.rope_low = F.number(scaling, "beta_slow", 1e-3, 1e3, 1)
  o.rope_high = F.number(scaling, "beta_fast", 1e-3, 1e3, 32)
  if o.rope_high <= o.rope_low then
    F.wrong(scaling, "beta_fast", "more than beta_slow, " .. o.rope_low)
  end
  o.rope_attention = F.number(scaling, "attention_factor", 1e-3, 1e3, 0)
  o.rope_original = F.integer(scaling, "original_max_position_embeddings", 1,
                              limits.positions, o.max_positions)
  stretch(scaling, o, o.rope_original, row)
end

-- A list of what each frequency is divided by.
local function read_factors(scaling, key, o)
  local factors = F.list(scaling, key, "number")
  local n = (o.rope_dims > 0 and o.rope_dims or o.head_dim) / 2
  if #factors ~= n then F.wrong(scaling, key, n .. " numbers") end
  for _, factor in ipairs(factors) do
    if not (factor > 0 and factor < math.huge) then
      F.wrong(scaling, key, "numbers above 0")
    end
  end
  return factors
end

-- By how much cos and sin grow where `original` positions become more by that factor.
function M.longrope_attention(factor, original)
  if factor <= 1 then return 1 end
  return math.sqrt(1 + math.log(factor) / math.log(original))
end

-- Whether a model that is to see so many positions takes the long factors. The reference
-- changes to them when a text outgrows the original positions, and then the keys cached
-- so far are wrong; so what is served decides here, as in vLLM and llama.cpp.
function M.is_long(max_model_len, original)
  local given = type(max_model_len) == "number" and max_model_len > 0
  return not given or max_model_len > original
end

function scalings.longrope(scaling, o, _, config, opts)
  local key = "original_max_position_embeddings"
  local where = F.has(config, key) and config or scaling
  local original = F.integer(where, key, 2, limits.positions, o.max_positions)
  local factor = F.number(scaling, "factor", 1, limits.factor, o.max_positions / original)
  o.rope_attention = F.number(scaling, "attention_factor", 1e-3, 1e3,
                              M.longrope_attention(factor, original))
  local short = read_factors(scaling, "short_factor", o)
  local long = read_factors(scaling, "long_factor", o)
  return M.is_long(opts.max_model_len, original) and long or short
end

scalings.su = scalings.longrope

-- The base of layers with a window, where it is another one.
local function read_window_theta(config, own)
  local where = own and F.has(own, "rope_theta") and own or config
  local key = where == config and "rope_local_base_freq" or "rope_theta"
  if own and F.string(own, "rope_type", "default") ~= "default" then
    F.unsupported(own, "rope_type", "default")
  end
  return F.number(where, key, 1, limits.theta, 0)
end

local function read_dims(config, parameters, o, row)
  for _, fields in ipairs { config, parameters or nil } do
    local part = F.number(fields, "partial_rotary_factor", 0, 1, 1)
    if part ~= 1 and not row.partial_rope then
      F.unsupported(fields, "partial_rotary_factor", "1")
    end
    local dims = math.floor(o.head_dim * part)
    if dims < 2 or dims % 2 ~= 0 then
      F.wrong(fields, "partial_rotary_factor", "an even part of " .. o.head_dim)
    end
    if part ~= 1 then o.rope_dims = dims end
  end
end

-- `rope_parameters` is the newer spelling of `rope_scaling` and holds theta as well, for
-- each kind of layers if these differ. Answers what frequencies are divided by, if
-- anything. opts: max_model_len.
function M.read(config, o, row, opts)
  local parameters = F.object(config, "rope_parameters", false)
  local full = parameters and F.object(parameters, "full_attention", false)
  o.rope_theta_window = read_window_theta(config, full
                          and F.object(parameters, "sliding_attention", false))
  parameters = full or parameters
  local scaling = F.object(config, "rope_scaling", false) or parameters
  local where = parameters and F.has(parameters, "rope_theta") and parameters or config
  o.rope_theta = F.number(where, "rope_theta", 1, limits.theta, 10000)
  read_dims(config, parameters, o, row)
  if not scaling then return scalings.default(nil, o) end
  local key = F.has(scaling, "rope_type") and "rope_type" or "type"
  local kind = F.string(scaling, key, "default")
  local read = scalings[row.rope_types and row.rope_types[kind] or kind]
  if not read then
    F.unsupported(scaling, key, "default, linear, llama3, longrope or yarn")
  end
  return read(scaling, o, row, config, opts)
end

return M
