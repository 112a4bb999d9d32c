-- SPDX-License-Identifier: Apache-2.0
-- Matrix kernels: every variant, any tile and any number of threads give the bits of
-- plain C; and plain C gives what the types' definitions say.

local open_device = require "support.device"
local bit = require "bit"
local quant = require "support.quant"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local VARIANTS = { "avx2", "avx512", "avx512bf16" }

local function has(variant)
  local d = open_device("cpu", variant, 1)
  C.pl_device_close(d)
  return d ~= nil
end

local function rows_of(seed, n, k)
  local roll, out = quant.dice(seed), ffi.new("float[?]", n * k)
  for i = 0, n * k - 1 do out[i] = (roll() - 0.5) * 4 end
  return out
end

local function linear(kernels, threads, matrix, activations, rows, n)
  local size = n * tonumber(matrix.tensor.dims[0])
  local out = ffi.new("float[?]", size)
  local t = matrix.tensor
  assert(pl.check(C.pl_kernel_linear(kernels, threads, t, activations, rows, n, out)))
  return out, size
end

local function same_bits(a, b, size)
  return ffi.string(a, size * 4) == ffi.string(b, size * 4)
end

-- The largest error over the size of the terms that make up a sum.
local function error_of(matrix, rows, n, out)
  local worst = 0
  for c = 0, n - 1 do
    for r = 0, matrix.n - 1 do
      local sum, size = 0, 1e-6
      for k = 0, matrix.k - 1 do
        local term = matrix.values[r * matrix.k + k] * rows[c * matrix.k + k]
        sum, size = sum + term, size + math.abs(term)
      end
      worst = math.max(worst, math.abs(out[c * matrix.n + r] - sum) / size)
    end
  end
  return worst
end

-- Those for which the variant promises the bits of plain C.
local function activations_of(name, variant)
  if name == "BF16" and variant == "avx512bf16" then
    return { C.PL_ACT_FLOAT32, C.PL_ACT_INT8X2 }
  end
  return { C.PL_ACT_FLOAT32, C.PL_ACT_INT8X2, C.PL_ACT_INT8 }
end

local SHAPES = { { 1, 256 }, { 15, 512 }, { 33, 768 }, { 48, 256 } }
local COLUMNS = { 1, 2, 3, 5, 8, 13, 70 }

describe("linear", function()
  for _, name in ipairs(quant.TYPES) do
    it(name .. " is what the type says", function()
      local m, rows = quant.matrix(name, 19, 512, 7), rows_of(3, 3, 512)
      local out = linear("scalar", 1, m, C.PL_ACT_FLOAT32, rows, 3)
      assert.is_true(error_of(m, rows, 3, out) < 1e-6)
      out = linear("scalar", 1, m, C.PL_ACT_INT8X2, rows, 3)
      assert.is_true(error_of(m, rows, 3, out) < 0.00002)
      out = linear("scalar", 1, m, C.PL_ACT_INT8, rows, 3)
      assert.is_true(error_of(m, rows, 3, out) < 0.005)
    end)

    for _, variant in ipairs(VARIANTS) do
      it(("%s with %s kernels has the bits of scalar"):format(name, variant), function()
        if not has(variant) then return pending "not on this CPU" end
        for i, shape in ipairs(SHAPES) do
          local m = quant.matrix(name, shape[1], shape[2], i)
          for k, n in ipairs(COLUMNS) do
            local rows = rows_of(i * 100 + k, n, shape[2])
            for _, activations in ipairs(activations_of(name, variant)) do
              local want, size = linear("scalar", 1, m, activations, rows, n)
              local got = linear(variant, k % 2 + 1, m, activations, rows, n)
              assert.is_true(same_bits(want, got, size),
                ("%d x %d by %d"):format(shape[1], shape[2], n))
            end
          end
        end
      end)
    end
  end

  it("takes columns that fill no block", function()
    for _, name in ipairs { "F32", "F16", "BF16" } do
      for _, k in ipairs { 1, 7, 72, 81 } do
        local m, rows = quant.matrix(name, 21, k, k), rows_of(k, 4, k)
        local want, size = linear("scalar", 1, m, C.PL_ACT_FLOAT32, rows, 4)
        assert.is_true(error_of(m, rows, 4, want) < 1e-6)
        if has "avx512" then
          assert.is_true(same_bits(want, linear("avx512", 2, m, C.PL_ACT_FLOAT32, rows, 4), size))
        end
      end
    end
  end)

  it("gives a row the same bits in any company", function()
    for _, case in ipairs { { "Q4_1", C.PL_ACT_INT8X2 }, { "Q6_K", C.PL_ACT_INT8X2 },
                            { "Q4_1", C.PL_ACT_INT8 }, { "BF16", C.PL_ACT_INT8 } } do
      local m, rows = quant.matrix(case[1], 40, 512, 5), rows_of(9, 70, 512)
      local all = linear("auto", 2, m, case[2], rows, 70)
      for row = 0, 69 do
        local alone = linear("auto", 1, m, case[2], rows + row * 512, 1)
        assert.is_true(same_bits(alone, all + row * 40, 40), case[1] .. ", row " .. row)
      end
    end
  end)

  it("rounds activations to bf16 where the CPU multiplies such", function()
    if not has "avx512bf16" then return pending "not on this CPU" end
    for _, k in ipairs { 1, 7, 81, 512 } do
      local m, rows = quant.matrix("BF16", 37, k, k), rows_of(k, 11, k)
      local out = linear("avx512bf16", 2, m, C.PL_ACT_INT8, rows, 11)
      assert.is_true(error_of(m, rows, 11, out) < 0.004)
    end
  end)

  it("has no error where activations are whole multiples of a scale", function()
    -- 127 in each block: the scale is 1 and the quantized rows are the rows.
    local m, rows = quant.matrix("Q8_0", 16, 256, 1), ffi.new("float[256]")
    for k = 0, 255 do rows[k] = k % 32 == 0 and 127 or bit.band(k * 7, 127) - 64 end
    local out = linear("auto", 1, m, C.PL_ACT_INT8, rows, 1)
    assert.is_true(error_of(m, rows, 1, out) < 1e-6)
    -- The same of two terms, with 32639 in each block: both ends of the second are there.
    local values = { -32639, -32383, -255, -127, -1, 0, 1, 127, 129, 255, 257, 32511 }
    for k = 0, 255 do rows[k] = k % 32 == 0 and 32639 or values[k % #values + 1] end
    out = linear("auto", 1, m, C.PL_ACT_INT8X2, rows, 1)
    assert.is_true(error_of(m, rows, 1, out) < 1e-6)
  end)

  -- The largest sums that there can be: codes and both terms at their ends, signs alike.
  it("does not overflow", function()
    for _, name in ipairs { "Q8_0", "Q4_0", "Q4_1", "Q5_K", "Q6_K" } do
      local m, rows = quant.matrix(name, 16, 256, 1), ffi.new("float[?]", 2 * 256)
      for k = 0, 255 do rows[k], rows[256 + k] = 3, -3 end
      local data = ffi.cast("uint8_t *", m.tensor.data)
      local size = tonumber(m.tensor.bytes)
      for _, byte in ipairs { 0xff, 0x80, 0x00 } do
        ffi.fill(data, size, byte)
        quant.set_halves(name, data, size)
        local want, n = linear("scalar", 1, m, C.PL_ACT_FLOAT32, rows, 2)
        for _, variant in ipairs { "scalar", unpack(VARIANTS) } do
          local got = has(variant) and linear(variant, 1, m, C.PL_ACT_INT8X2, rows, 2) or want
          for i = 0, n - 1 do
            assert.is_true(math.abs(got[i] - want[i]) <= math.abs(want[i]) * 1e-4 + 1e-4,
              ("%s, %s, bytes 0x%02x: %g, wanted %g"):format(name, variant, byte, got[i], want[i]))
          end
        end
      end
    end
  end)

  -- A worker that rounds otherwise than the caller would show here.
  it("gives sums that are hardly numbers the same bits on every thread", function()
    local m, rows = quant.matrix("F32", 512, 256, 5), rows_of(4, 130, 256)
    for i = 0, 512 * 256 - 1 do ffi.cast("float *", m.tensor.data)[i] = 1e-20 end
    for i = 0, 130 * 256 - 1 do rows[i] = 1e-20 end
    local want, size = linear("auto", 1, m, C.PL_ACT_FLOAT32, rows, 130)
    for _ = 1, 5 do
      assert.is_true(same_bits(want, linear("auto", 4, m, C.PL_ACT_FLOAT32, rows, 130), size))
    end
  end)

  it("quantizes what is hardly a number alike in every variant", function()
    local m, rows = quant.matrix("Q8_0", 16, 256, 1), ffi.new("float[256]")
    for _, activations in ipairs { C.PL_ACT_INT8X2, C.PL_ACT_INT8 } do
      for _, tiny in ipairs { 1e-36, 2e-37, 1e-38, 1e-40, 0 } do
        for k = 0, 255 do rows[k] = tiny * (k % 5 - 2) end
        local want, size = linear("scalar", 1, m, activations, rows, 1)
        for r = 0, 15 do assert.is_true(math.abs(want[r]) < 1e-33) end
        for _, variant in ipairs(VARIANTS) do
          if has(variant) then
            local got = linear(variant, 1, m, activations, rows, 1)
            assert.is_true(same_bits(want, got, size), variant .. ", " .. tiny)
          end
        end
      end
    end
  end)

  it("refuses a matrix of broken rows", function()
    local m, rows = quant.matrix("Q8_0", 16, 256, 1), ffi.new("float[256]")
    m.tensor.bytes = m.tensor.bytes - 1
    local status = C.pl_kernel_linear("auto", 1, m.tensor, C.PL_ACT_FLOAT32, rows, 1, rows)
    assert.equal(C.PL_EINVAL, status)
    m = quant.matrix("Q8_0", 16, 256, 1)
    assert.equal(C.PL_EINVAL, C.pl_kernel_linear("auto", 1, m.tensor, 3, rows, 1, rows))
  end)
end)
