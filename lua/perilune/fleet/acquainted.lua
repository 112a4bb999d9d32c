-- SPDX-License-Identifier: Apache-2.0
-- fleet/acquainted.lua - which names workers of a served model have: whether to wait for
-- the one that a request names.
--
--     acquainted.gone(w)                      it is not here any more
--     acquainted.knows(served, "worker/3")    it is here, or may soon be

local flow = require "perilune.flow"
local lru = require "perilune.lru"

local M = {}

-- A worker that went may be starting anew for so long; and for so long after the model's
-- first one came, others may still say hello.
local BACK_SECONDS, HELLO_SECONDS = 60, 5
local MAX_GONE = 1024

-- A worker is here.
function M.come(w)
  w.served.since = w.served.since or flow.now()
end

function M.gone(w)
  local served = w.served
  served.gone = served.gone or lru.new(MAX_GONE)
  served.gone:put(w.name, flow.now())
end

function M.knows(served, name)
  for _, w in ipairs(served.workers) do
    if w.name == name then return true end
  end
  local t, went = flow.now(), served.gone and served.gone:get(name)
  return went and t < went + BACK_SECONDS or t < (served.since or t) + HELLO_SECONDS
end

return M
