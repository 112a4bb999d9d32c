-- SPDX-License-Identifier: Apache-2.0
-- Quantized weights stand for the values that the gguf package gives them.

local cjson = require "cjson"
local golden = require "support.golden"
local quant = require "support.quant"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local COLUMNS = 256

local function bytes_of(hex)
  return (hex:gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end))
end

-- A row's values as the kernels see them: its products with unit vectors.
local function seen_by_kernels(name, bytes)
  -- One more for the zero that a string ends with.
  local t, data = ffi.new "pl_tensor", ffi.new("char[?]", #bytes + 1, bytes)
  t.type, t.n_dims, t.data, t.bytes = C["PL_" .. name], 2, data, #bytes
  t.dims[0], t.dims[1] = 1, COLUMNS
  local rows = ffi.new("float[?]", COLUMNS * COLUMNS)
  for i = 0, COLUMNS - 1 do rows[i * (COLUMNS + 1)] = 1 end
  local out = ffi.new("float[?]", COLUMNS)
  assert(pl.check(C.pl_kernel_linear("auto", 1, t, C.PL_ACT_FLOAT32, rows, COLUMNS, out)))
  return out
end

describe("the values of", function()
  local text = golden.read(golden.root .. "/types.json")
  local types = text and cjson.decode(text).types or {}
  for _, name in ipairs(quant.TYPES) do
    if not name:find "^B?F%d" then
      it(name, function()
        if not text then return pending "no types.json" end
        local case = types[name]
        local bytes, values = bytes_of(case.bytes), bytes_of(case.values)
        local want = ffi.cast("const float *", values)
        local ours, defined = seen_by_kernels(name, bytes), quant.values(name, bytes)
        for i = 0, COLUMNS - 1 do
          local error_allowed = 1e-6 * math.max(1, math.abs(want[i]))
          assert.is_true(math.abs(ours[i] - want[i]) <= error_allowed,
                         ("%d: %.9g, wanted %.9g"):format(i, ours[i], want[i]))
          assert.is_true(math.abs(defined[i] - want[i]) <= error_allowed)
        end
      end)
    end
  end
end)
