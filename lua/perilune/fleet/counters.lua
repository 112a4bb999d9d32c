-- SPDX-License-Identifier: Apache-2.0
-- fleet/counters.lua - what a worker has to do, as its engine counts it.
--
-- An engine of this process is looked at when that is asked; one elsewhere says it with
-- its heartbeats, each half second. w.load adds what was sent there from here since.

local pl = require "perilune.ffi"
local worker = require "perilune.fleet.worker"
local C, ffi = pl.C, pl.ffi

local M = {}

function M.open(w)
  local terms = w.served.terms
  w.load = C.pl_load_open(terms and terms.block_size or 1)
  if w.engine then w.stats = ffi.new "pl_engine_stats" end
end

function M.close(w)
  C.pl_load_close(w.load)
  w.load = nil
end

-- Takes up what a peer has said last of its workers.
function M.refresh(rt, peer, workers)
  for _, w in ipairs(workers) do
    local counts = w.counts or ffi.new "pl_engine_stats"
    if C.pl_peer_stats(rt, peer, w.index, counts) >= 0 then
      w.counts, w.others = counts, math.max(0, counts.running + counts.waiting - w.n)
      C.pl_load_report(w.load, counts, 0)
    end
  end
end

-- What its engine counts, of itself or by its last word; nil: it has said nothing.
local function stats_of(w)
  if not w.engine then return w.counts end
  C.pl_engine_stats_get(w.engine, w.stats)
  return w.stats
end

-- How many sequences it has, as far as one knows: ours, and the others' by its last word.
-- When it has read a prompt for another worker nobody is told.
function M.load(w)
  if w.pool == w.served.pool then return w.n + w.others end
  local s = stats_of(w)
  return s and s.running + s.waiting or 0
end

-- Brings w.load up to date, where that is a look.
function M.look(w)
  if w.engine then C.pl_load_report(w.load, stats_of(w), 1) end
end

local function counts_of(w)
  local s, model = stats_of(w), w.served.terms
  return { blocks = s and tonumber(s.blocks) or 0,
    blocks_used = s and tonumber(s.blocks_used) or 0,
    waiting_tokens = s and tonumber(s.prefill_tokens) or 0,
    max_num_batched_tokens = model.max_num_batched_tokens }
end

-- What the workers of a model that take requests count: for fleet/overload.lua.
function M.of(served)
  local out = {}
  for _, w in ipairs(served.workers) do
    if w.state == "ready" then out[#out + 1] = counts_of(w) end
  end
  return out
end

-- Tells those who wait what room the counters show.
function M.tell_room(w)
  local line = w.served.line
  local s = line and line.n > 0 and stats_of(w)
  if s then line:room(w, worker.MAX_WAITING - (tonumber(s.waiting) or 0)) end
end

return M
