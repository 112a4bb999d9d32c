-- SPDX-License-Identifier: Apache-2.0
-- golden.lua - where reference models and outputs are: ours, or those of $PERILUNE_GOLDEN.

local bit = require "bit"
local cjson = require "cjson"
local ffi = require "ffi"
local files = require "weights_files"

local M = { root = os.getenv "PERILUNE_GOLDEN" or "tests/golden" }

M.NAMES = { "llama", "qwen2", "qwen3", "mistral", "qwen3-moe", "gemma2", "gemma3",
            "phi3" }
M.GGUF = { "llama-gguf", "gemma2", "gemma3", "phi3" }    -- those that have a model.gguf

function M.read(path)
  local f = io.open(path, "rb")
  if not f then return nil end
  local text = f:read "*a"
  f:close()
  return text
end

-- The parsed golden.json of a model, or nil where it is not there.
function M.of(name)
  local text = M.read(M.root .. "/" .. name .. "/golden.json")
  return text and cjson.decode(text), M.root .. "/" .. name
end

-- The numbers of the generations that need one loaded model: by the max_model_len that it
-- must be loaded for, false where any will do.
function M.groups(want)
  local groups = {}
  for i, g in ipairs(want.generation) do
    local length = g.max_model_len or false
    groups[length] = groups[length] or {}
    table.insert(groups[length], i)
  end
  return groups
end

-- bf16 to f16; the smallest are rounded.
local function f16_of(bits)
  local sign, exponent = bit.band(bits, 0x8000), bit.band(bit.rshift(bits, 7), 255)
  local mantissa = bit.band(bits, 127)
  if exponent > 112 then
    return sign + (exponent - 112) * 1024 + mantissa * 8
  end
  local value = exponent == 0 and 0 or (128 + mantissa) * 2 ^ (exponent - 134)
  return sign + math.floor(value * 2 ^ 24 + 0.5)
end

local function as_f16(bytes)
  local n = tonumber(ffi.cast("const uint64_t *", bytes)[0])
  local header = cjson.decode(bytes:sub(9, 8 + n))
  local data = ffi.new("uint16_t[?]", (#bytes - 8 - n) / 2)
  ffi.copy(data, bytes:sub(9 + n), #bytes - 8 - n)
  for _, t in pairs(header) do
    local at = t.dtype == "BF16" and t.data_offsets or { 0, 0 }
    for i = at[1] / 2, at[2] / 2 - 1 do data[i] = f16_of(data[i]) end
    if t.dtype then t.dtype = "F16" end
  end
  local head = cjson.encode(header)
  head = head .. (" "):rep(-#head % 8)
  return files.u64(#head) .. head .. ffi.string(data, #bytes - 8 - n)
end

-- A copy of a model in one file of bfloat16, in float16; files.clean() takes it away.
function M.in_f16(path)
  local name = "model.safetensors"
  return files.folder {
    ["config.json"] = M.read(path .. "/config.json"),
    ["tokenizer.json"] = M.read(path .. "/tokenizer.json"),
    [name] = as_f16(M.read(path .. "/" .. name)),
  }
end

return M
