-- SPDX-License-Identifier: Apache-2.0
-- fleet/acquainted.lua - which names the workers of a pool have: whether to wait for
-- the one that a request names.
--
--     acquainted.gone(w)                      it is not here any more
--     acquainted.knows(pool, "worker/3")    it is here, or may soon be

local flow = require "perilune.flow"
local lru = require "perilune.lru"

local M = {}

-- A worker that went may be starting anew for so long; and for so long after the pool's
-- first one came, others may still say hello.
local BACK_SECONDS, HELLO_SECONDS = 60, 5
local MAX_GONE = 1024

-- A worker is here.
function M.come(w)
  w.pool.since = w.pool.since or flow.now()
end

function M.gone(w)
  local pool = w.pool
  pool.gone = pool.gone or lru.new(MAX_GONE)
  pool.gone:put(w.name, flow.now())
end

function M.knows(pool, name)
  for _, w in ipairs(pool.workers) do
    if w.name == name then return true end
  end
  local t, went = flow.now(), pool.gone and pool.gone:get(name)
  return went and t < went + BACK_SECONDS or t < (pool.since or t) + HELLO_SECONDS
end

return M
