-- SPDX-License-Identifier: Apache-2.0
-- deadline.lua - earliest deadline first. A client says in a header by when, in seconds
-- from now, it wants the first token.

local pl = require "perilune"

local opt = pl.args {
  { "header", "x-deadline", "the header with the seconds" },
  { "seconds", 10.0, "the deadline of requests that name none", min = 0 },
  { "backlog", 64, "blocks to prefill from which a worker gets no more", min = 0 },
}

local function queue(req)
  return pl.now() + (tonumber(req.headers[opt.header]) or opt.seconds)
end

return {
  worker = { pick = pl.pick.unless_busy { prefilling = opt.backlog }, queue = queue },
}
