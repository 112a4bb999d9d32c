-- SPDX-License-Identifier: Apache-2.0
-- recipe/chance.lua - the clock and the dice of hooks: pl.now() and pl.random().
--
-- Whoever asks hooks about another time than this pretends: chance.pretend.

local pl = require "perilune.ffi"
local C = pl.C

local M = {}

local function real_clock()
  return tonumber(C.pl_now_ns()) * 1e-9
end

local clock, seed, drawn = real_clock, C.pl_entropy(), 0

-- Seconds since some moment.
function M.now()
  return clock()
end

-- A number from 0, below 1.
function M.random()
  drawn = drawn + 1
  return tonumber(bit.rshift(C.pl_random_at(seed, drawn, 0), 11)) * 2 ^ -53
end

-- Another clock, and dice that fall as `with_seed` says, until what it returns is called.
function M.pretend(own_clock, with_seed)
  local was_clock, was_seed, was_drawn = clock, seed, drawn
  clock, seed, drawn = own_clock, with_seed, 0
  return function() clock, seed, drawn = was_clock, was_seed, was_drawn end
end

return M
