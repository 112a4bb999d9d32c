-- SPDX-License-Identifier: Apache-2.0
-- explore.lua - exploit what is cached if that saves more than it imposes on those who
-- are there already; else explore: the worker with the least to do.

local pl = require "perilune"

local opt = pl.args {
  { "worth", 0.5, "share of the prompt to be cached to exploit that", min = 0, max = 1 },
}

local function load_of(_, w) return w.prefilling + w.decoding end

local function miss(req, w) return req.blocks - w.cached end

local function pick(req, fleet)
  local idle = fleet:cheapest(req, load_of)
  local warm = fleet:cheapest(req, miss)
  local saved = warm.cached - idle.cached
  local imposed = load_of(req, warm) - load_of(req, idle)
  if warm.cached >= opt.worth * req.blocks and saved >= imposed then return warm end
  return idle
end

return { worker = { pick = pick } }
