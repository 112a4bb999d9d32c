-- SPDX-License-Identifier: Apache-2.0
-- fair.lua - cheapest worker first, and under load each tenant in turn by tokens.

local pl = require "perilune"

local opt = pl.args {
  { "backlog", 64, "blocks to prefill from which a worker gets no more", min = 0 },
}

return {
  worker = {
    pick = pl.pick.unless_busy { prefilling = opt.backlog },
    queue = pl.queue.tenants,
  },
}
