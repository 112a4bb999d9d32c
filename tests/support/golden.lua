-- SPDX-License-Identifier: Apache-2.0
-- golden.lua - where reference models and outputs are: ours, or those of $PERILUNE_GOLDEN.

local cjson = require "cjson"

local M = { root = os.getenv "PERILUNE_GOLDEN" or "tests/golden" }

M.NAMES = { "llama", "qwen2", "qwen3", "mistral", "qwen3-moe" }

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

return M
