-- SPDX-License-Identifier: Apache-2.0
-- fleet/sent.lua - what was sent to each worker of late, and so may be in its cache.
--
-- Three memories of a served model. served.sent: of all workers, for predicted_ttl, since
-- one that tells what it caches takes a moment to do so. served.guessed: of those that do
-- not tell, for router_ttl_secs. These two count as cached. served.routed: of all, for
-- router_ttl_secs, once a hook has read the column `sent`, which it fills.

local pl = require "perilune.ffi"
local flow = require "perilune.flow"
local C = pl.C

local M = {}

local MEMORIES = {
  { key = "sent", seconds = "predicted_ttl", column = "cached",
    of = function() return true end },
  { key = "guessed", seconds = "router_ttl_secs", column = "cached",
    of = function(w) return w.tells == false end },
  { key = "routed", seconds = "router_ttl_secs", column = "sent",
    of = function(w) return w.pool.view.reads_sent end },
}

-- How long a memory lasts, in milliseconds; nil: nothing is to be remembered.
local function lasts(memory, recipe)
  local seconds = recipe[memory.seconds]
  return seconds and seconds > 0 and seconds * 1e3 or nil
end

-- The columns' prompt, which is named, goes to worker `w`, that row.
function M.add(recipe, w, columns, row)
  local served = w.served
  for _, memory in ipairs(MEMORIES) do
    local ms = memory.of(w) and lasts(memory, recipe)
    if ms then
      served[memory.key] = served[memory.key] or C.pl_sent_open()
      C.pl_sent_add(served[memory.key], columns, row, flow.now() * 1e3, ms)
    end
  end
end

-- Raises `cached` and `sent` of the columns to what is remembered.
function M.match(recipe, served, columns)
  for _, memory in ipairs(MEMORIES) do
    local sent, ms = served[memory.key], lasts(memory, recipe)
    if sent and ms then
      C.pl_sent_match(sent, columns, columns[memory.column], flow.now() * 1e3, ms)
    end
  end
end

-- The worker is gone.
function M.forget(w)
  for _, memory in ipairs(MEMORIES) do
    local sent = w.served[memory.key]
    if sent then C.pl_sent_forget(sent, w.number) end
  end
end

function M.close(served)
  for _, memory in ipairs(MEMORIES) do
    if served[memory.key] then C.pl_sent_close(served[memory.key]) end
    served[memory.key] = nil
  end
end

return M
