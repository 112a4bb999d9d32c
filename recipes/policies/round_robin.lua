-- SPDX-License-Identifier: Apache-2.0
-- round_robin.lua - one after the other, whatever they hold: what the others must beat.

local pl = require "perilune"

return { worker = { pick = pl.pick.round_robin } }
