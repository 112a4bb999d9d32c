-- SPDX-License-Identifier: Apache-2.0
-- power_of_two.lua - the less loaded of two random workers: no herd, though several
-- frontends decide at once.

local pl = require "perilune"

return { worker = { pick = pl.pick.power_of_two } }
