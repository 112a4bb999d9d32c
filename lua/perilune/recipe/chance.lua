-- SPDX-License-Identifier: Apache-2.0
-- recipe/chance.lua - the clock and the dice of hooks: pl.now() and pl.random().
--
-- Whoever asks hooks about another time than this sets others: chance.now, chance.random.

local pl = require "perilune.ffi"
local C = pl.C

local M = {}

local seed, drawn = C.pl_entropy(), 0

-- Seconds since some moment.
function M.now()
  return tonumber(C.pl_now_ns()) * 1e-9
end

-- A number from 0, below 1.
function M.random()
  drawn = drawn + 1
  return tonumber(bit.rshift(C.pl_random_at(seed, drawn, 0), 11)) * 2 ^ -53
end

return M
