-- SPDX-License-Identifier: Apache-2.0
-- disagg_roles.lua - two pools that lend each other workers: where prompts pile up one
-- more reads them, and where answers do one more writes them.

local pl = require "perilune"

local opt = pl.args {
  { "pile", 64, "blocks to read for each prefill worker from which one more reads",
    min = 1 },
  { "busy", 64, "requests that a decode worker may write at a time; beyond that, one "
    .. "prefill worker less", min = 1 },
}

-- One more reads only where those that go on writing will not be too busy then, or the
-- next change would take it back.
local function roles(prefill, decode)
  local pile = prefill:sum "prefilling" / math.max(#prefill, 1)
  local writing = decode:sum "running" + decode:sum "waiting"
  if writing > opt.busy * #decode and #prefill > 1 then return #prefill - 1 end
  if pile > opt.pile and writing <= opt.busy * (#decode - 1) then return #prefill + 1 end
end

local router = pl.load "disagg_router"       -- who of a pool takes a request

return {
  http    = { port = 8000 },
  roles   = roles,
  prefill = { count = 1, pick = router.prefill.pick },
  decode  = { count = 2, pick = router.decode.pick, split = pl.split.always },
}
