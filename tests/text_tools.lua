-- SPDX-License-Identifier: Apache-2.0
-- text_tools.lua - a pl_text's functions over Lua tables and strings, for the specs.
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local M = {}

local function array(ids)
  return ffi.new("int32_t[?]", #ids, ids), #ids
end

-- The ids of s, or nil, message, name. `special` false: special tokens are text.
function M.encode(text, s, special)
  local out = ffi.new "pl_buf"
  local flag = special == false and 0 or 1
  local ok, why, name = pl.check(C.pl_text_encode(text, s, #s, flag, out))
  if not ok then return nil, why, name end
  local data, ids = ffi.cast("const int32_t *", out.data), {}
  for i = 0, tonumber(out.len) / 4 - 1 do ids[i + 1] = data[i] end
  C.pl_buf_fini(out)
  return ids
end

function M.decode(text, ids, skip)
  local out = ffi.new "pl_buf"
  local data, n = array(ids)
  assert(pl.check(C.pl_text_decode(text, data, n, skip and 1 or 0, out)))
  return pl.take(out)
end

-- What each token adds to a stream, and at last what was held back.
function M.stream(text, ids, skip, primed)
  local d = C.pl_detok_open(text, skip and 1 or 0)
  if primed then C.pl_detok_prime(d, array(primed)) end
  local parts, out = {}, ffi.new "pl_buf"
  for i, id in ipairs(ids) do
    C.pl_detok_push(d, id, out)
    parts[i] = pl.take(out)
  end
  C.pl_detok_flush(d, out)
  table.insert(parts, pl.take(out))
  C.pl_detok_close(d)
  return parts
end

return M
