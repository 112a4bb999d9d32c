-- SPDX-License-Identifier: Apache-2.0
-- sim/timing.lua - how long a worker's steps take: a name, or a file of figures in ms.
--
--   {"prefill": 16.5, "prefill_token": 0.0152, "decode": 5.7, "decode_seq": 0.02}

local pl = require "perilune.ffi"
local json = require "cjson.safe"
local nearest = require "perilune.recipe.nearest"
local ffi = pl.ffi

local M = {}

local FIELDS = { "prefill", "prefill_token", "prefill_square", "prefill_back", "decode",
  "decode_seq", "decode_back", "decode_used", "decode_used_square", "transfer",
  "transfer_block" }

-- In ms. "dynamo": what the mock engine of NVIDIA Dynamo 1.6.1 takes, as its simulations
-- of single requests tell.
M.NAMED = {
  dynamo = { prefill = 16.50142, prefill_token = 1.518344e-2,
    prefill_square = 4.209989e-7, decode = 5.74, decode_used = 54.01,
    decode_used_square = -25.74 },
}

local function from(figures, what)
  local timing = ffi.new "pl_timing"
  for key, value in pairs(figures) do
    local known = false
    for _, field in ipairs(FIELDS) do known = known or field == key end
    if not known then
      local near = nearest(tostring(key), FIELDS)
      return nil, ("%s: no figure '%s'%s"):format(what, key,
        near and ("; did you mean '%s'?"):format(near) or "")
    end
    if type(value) ~= "number" or value ~= value or math.abs(value) > 1e9 then
      return nil, ("%s: '%s' must be a number of ms"):format(what, key)
    end
    timing[key] = value * 1e6
  end
  return timing
end

-- A pl_timing; or nil and why.
function M.open(name)
  if M.NAMED[name] then return from(M.NAMED[name], name) end
  local file = io.open(name, "r")
  if not file then
    return nil, ("timing '%s' is neither 'dynamo' nor a file"):format(name)
  end
  local text = file:read "*a"
  file:close()
  local figures, why = json.decode(text or "")
  if type(figures) ~= "table" then
    return nil, ("%s: %s"):format(name, why or "not a JSON object")
  end
  return from(figures, name)
end

return M
