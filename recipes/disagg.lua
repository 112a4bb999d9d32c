-- SPDX-License-Identifier: Apache-2.0
-- disagg.lua - prompts are read by one pool of workers and continued by another, so that
-- a long prompt does not hold up the answers that are being written.

local pl = require "perilune"

local opt = pl.args {
  { "remote", 32, "blocks new to the decode worker from which prefill reads", min = 0 },
}

-- Shall a prefill worker read the prompt? Only if enough of it is new to the decode
-- worker `w`, and the pool can start soon. Else `w` reads it itself, and no block moves.
local function split(req, w, prefill)
  return req.blocks - w.cached >= opt.remote
    and prefill:min "waiting" < 2
end

return {
  http    = { port = 8000 },
  prefill = { count = 1 },
  decode  = { count = 2, split = split },
}
