-- SPDX-License-Identifier: Apache-2.0
-- quant.lua - random matrices of every weight type, with the values that they stand for
-- by the definitions of GGUF: for tests of kernels.

local bit = require "bit"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi
local band, lshift, rshift = bit.band, bit.lshift, bit.rshift

local M = {
  TYPES = { "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K",
            "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS" },
}

-- Numbers in 0 <= x < 1, the same for the same seed.
function M.dice(seed)
  local state = seed * 2654435 + 12345
  return function()
    state = (state * 1103515 + 12345) % 2147483648
    return state / 2147483648
  end
end

local function half(p)
  local v = p[0] + p[1] * 256
  local exponent, fraction = band(rshift(v, 10), 31), band(v, 1023)
  local x = exponent == 0 and fraction * 2 ^ -24
    or (1 + fraction / 1024) * 2 ^ (exponent - 15)
  return v >= 32768 and -x or x
end

-- A half of either sign between 2^-7 and 2^-5: no sum of the tests overflows.
local function put_half(p, roll)
  p[0] = math.floor(roll() * 256)
  p[1] = 0x20 + math.floor(roll() * 8) + (roll() < 0.3 and 0x80 or 0)
end

-- Gives every scale and minimum of the blocks at p the value 2^-6.
function M.set_halves(name, p, bytes)
  local _, size, halves = unpack(M.blocks[name])
  for b = 0, bytes / size - 1 do
    for _, at in ipairs(halves) do p[b * size + at], p[b * size + at + 1] = 0, 0x24 end
  end
end

local function signed(byte) return byte >= 128 and byte - 256 or byte end

-- Scale and minimum `i` of a Q4_K or Q5_K block.
local function factors(s, i)
  if i < 4 then return band(s[i], 63), band(s[i + 4], 63) end
  return band(s[i + 4], 15) + lshift(rshift(s[i - 4], 6), 4),
    rshift(s[i + 4], 4) + lshift(rshift(s[i], 6), 4)
end

local function nibble(q, i) return i < 16 and band(q[i], 15) or rshift(q[i - 16], 4) end

-- Five bits: a nibble and a bit of four bytes.
local function five(q, high, i)
  return nibble(q, i) + 16 * band(rshift(high[math.floor(i / 8)], i % 8), 1)
end

-- Two bits of code i of 256: each 128 columns have 32 bytes, each 32 columns two bits.
local function two(q, i)
  return band(rshift(q[math.floor(i / 128) * 32 + i % 32], math.floor(i % 128 / 32) * 2), 3)
end

-- Six-bit factor i of 16 of a Q3_K block: twelve bytes, as llama.cpp unpacks them by words.
local function q3_factor(s, i)
  local low = band(rshift(s[i % 8], i < 8 and 0 or 4), 15)
  return low + 16 * band(rshift(s[8 + i % 4], math.floor(i / 4) * 2), 3) - 32
end

local iq4 = { [0] = -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 }

-- Per type: columns and bytes of a block, where its halves are, and value i of it.
M.blocks = {
  Q8_0 = { 32, 34, { 0 }, function(p, i) return half(p) * signed(p[2 + i]) end },
  Q4_0 = { 32, 18, { 0 }, function(p, i) return half(p) * (nibble(p + 2, i) - 8) end },
  Q4_1 = { 32, 20, { 0, 2 },
    function(p, i) return half(p) * nibble(p + 4, i) + half(p + 2) end },
  Q5_0 = { 32, 22, { 0 },
    function(p, i) return half(p) * (five(p + 6, p + 2, i) - 16) end },
  Q5_1 = { 32, 24, { 0, 2 },
    function(p, i) return half(p) * five(p + 8, p + 4, i) + half(p + 2) end },
  Q2_K = { 256, 84, { 80, 82 }, function(p, i)
    local factor = p[math.floor(i / 16)]
    return half(p + 80) * band(factor, 15) * two(p + 16, i)
           - half(p + 82) * rshift(factor, 4)
  end },
  Q3_K = { 256, 110, { 108 }, function(p, i)
    local third = band(rshift(p[i % 32], math.floor(i / 32)), 1)
    return half(p + 108) * q3_factor(p + 96, math.floor(i / 16))
           * (two(p + 32, i) + 4 * third - 4)
  end },
  IQ4_NL = { 32, 18, { 0 }, function(p, i) return half(p) * iq4[nibble(p + 2, i)] end },
  IQ4_XS = { 256, 136, { 0 }, function(p, i)
    local part = math.floor(i / 32)
    local low = band(rshift(p[4 + math.floor(part / 2)], part % 2 * 4), 15)
    local high = band(rshift(p[2] + 256 * p[3], part * 2), 3)
    return half(p) * (low + 16 * high - 32) * iq4[nibble(p + 8 + part * 16, i % 32)]
  end },
  Q4_K = { 256, 144, { 0, 2 }, function(p, i)
    local scale, min = factors(p + 4, math.floor(i / 32))
    local q = p[16 + math.floor(i / 64) * 32 + i % 32]
    local code = i % 64 < 32 and band(q, 15) or rshift(q, 4)
    return half(p) * scale * code - half(p + 2) * min
  end },
  Q5_K = { 256, 176, { 0, 2 }, function(p, i)
    local scale, min = factors(p + 4, math.floor(i / 32))
    local q = p[48 + math.floor(i / 64) * 32 + i % 32]
    local code = i % 64 < 32 and band(q, 15) or rshift(q, 4)
    code = code + 16 * band(rshift(p[16 + i % 32], math.floor(i / 32)), 1)
    return half(p) * scale * code - half(p + 2) * min
  end },
  Q6_K = { 256, 210, { 208 }, function(p, i)
    local at, quarter = math.floor(i / 128), math.floor(i % 128 / 32)
    local low = p[at * 64 + quarter % 2 * 32 + i % 32]
    low = quarter < 2 and band(low, 15) or rshift(low, 4)
    local high = band(rshift(p[128 + at * 32 + i % 32], quarter * 2), 3)
    return half(p + 208) * signed(p[192 + math.floor(i / 16)]) * (low + high * 16 - 32)
  end },
}

local function fill_blocks(name, data, bytes, values, roll)
  local columns, size, halves, value = unpack(M.blocks[name])
  for i = 0, bytes - 1 do data[i] = math.floor(roll() * 256) end
  for b = 0, bytes / size - 1 do
    for _, at in ipairs(halves) do put_half(data + b * size + at, roll) end
    for i = 0, columns - 1 do values[b * columns + i] = value(data + b * size, i) end
  end
end

local function fill_plain(name, data, n, values, roll)
  local one = ffi.new "union { float f; uint8_t b[4]; }"
  for i = 0, n - 1 do
    if name == "F16" then
      put_half(data + i * 2, roll)
      values[i] = half(data + i * 2)
    else
      one.f = roll() - 0.5
      if name == "BF16" then one.b[0], one.b[1] = 0, 0 end
      values[i] = one.f
      local from = name == "BF16" and 2 or 0
      ffi.copy(data + i * (4 - from), one.b + from, 4 - from)
    end
  end
end

-- The values that the bytes of a quantized row stand for, and how many.
function M.values(name, bytes)
  local columns, size, _, value = unpack(M.blocks[name])
  local p, values = ffi.cast("const uint8_t *", bytes), {}
  for i = 0, #bytes / size * columns - 1 do
    values[i] = value(p + math.floor(i / columns) * size, i % columns)
  end
  return values
end

-- { tensor, n, k, values, ... }: n rows of k columns of a type by its name.
function M.matrix(name, n, k, seed)
  local block = M.blocks[name]
  local item = name == "F32" and 4 or 2
  local bytes = block and n * k / block[1] * block[2] or n * k * item
  local m = { n = n, k = k, values = {}, data = ffi.new("uint8_t[?]", bytes) }
  if block then
    fill_blocks(name, m.data, bytes, m.values, M.dice(seed))
  else
    fill_plain(name, m.data, n * k, m.values, M.dice(seed))
  end
  local t = ffi.new "pl_tensor"
  t.type, t.n_dims, t.data, t.bytes = C["PL_" .. name], 2, m.data, bytes
  t.dims[0], t.dims[1] = n, k
  m.tensor = t
  return m
end

return M
