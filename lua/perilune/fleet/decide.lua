-- SPDX-License-Identifier: Apache-2.0
-- fleet/decide.lua - which worker a request goes to.
--
--     local w, waits, refused = decide.choose(server, served, job, choice, avoid,
--       numerics)
--
-- The workers that may take it are put into columns (recipe/fleet_view.lua): what each
-- has to do, and how much of the prompt it holds. Then the pool's pick or cost is asked.
-- Without either it is the default's turn: a cost where it is known who holds what, else
-- the worker with the least to do.

local pl = require "perilune.ffi"
local acquainted = require "perilune.fleet.acquainted"
local cluster = require "perilune.fleet.cluster"
local counters = require "perilune.fleet.counters"
local cost = require "perilune.recipe.cost"
local decisions = require "perilune.fleet.decisions"
local fleet_view = require "perilune.recipe.fleet_view"
local hooks = require "perilune.recipe.hooks"
local sent = require "perilune.fleet.sent"
local C, ffi = pl.C, pl.ffi

local M = {}

local seq_ptr = ffi.typeof "pl_seq *"

-- The default calls costs equal that differ by less than this share. Saving one block of
-- many is not worth a queue: if all prompts begin alike, the worker that was first to
-- read that beginning would get every request, as long as one ends before the next comes.
local EQUAL = 0.05

local function sequence(choice)
  if choice.seq then return ffi.cast(seq_ptr, choice.seq) end
  local kept = choice.stream and C.pl_stream_kept(choice.stream)
  return kept ~= nil and kept or nil
end

local function add(w, view)
  counters.look(w)
  local row = view:add(w.load, w.number_in_index or -1, w.index or 0, w.number, w.name,
    w.tags)
  if row then view.workers[row + 1] = w end
end

-- The workers that may take it, as a view; view.workers: by row, from 1.
local function look(served, choice, avoid, numerics)
  local view = served.view
  if not view then
    view = fleet_view.new()
    served.view, view.workers = view, {}
    view.knows = function(name) return acquainted.knows(served, name) end
  end
  view:begin()
  cluster.each(served, avoid, choice.full, numerics, add, view)
  return view
end

-- A block to prefill against one in use: on recorded conversations anything from 8 on
-- serves better than less, and at 1, Dynamo's, half of what could be found is not.
local default_cost = cost.kv { prefill_load_scale = 16 }
local plain = {}                            -- what the default looks at, of any request
local default_loop = fleet_view.loop()

-- The first row, as they stand in turn, of those that are as cheap as the cheapest.
local function by_default(view, blocks)
  plain.blocks = blocks
  return view:first_within(default_loop(default_cost, plain, view), EQUAL)
end

local DEFAULT = "the default"

-- How much of the prompt each worker has: by its own word, or since it was sent there.
-- Whether that is known.
local function match(server, served, view, naming, seq)
  if not naming or not seq then return false end
  C.pl_fleet_name(view.columns, naming, seq)
  if served.index then C.pl_fleet_match(view.columns, served.index) end
  sent.match(server.recipe, served, view.columns)
  return true
end

-- What the decision took to be cached at that row's worker, for decisions.found: of a
-- choice that has no tokens yet, and no more than an engine uses: it computes one token.
local function believe(choice, columns, row, block_size, has_begun)
  local most = math.floor((choice.prompt.n_tokens - 1) / block_size)
  choice.believed = not has_begun and math.min(columns.cached[row], most) or nil
end

local function decide(server, served, job, choice, view, has_begun)
  local seq, naming, pool = sequence(choice), served.naming, server.recipe.worker
  local is_named = match(server, served, view, naming, seq)
  local block_size = served.terms.block_size
  local row, by, refused
  if pool.pick or pool.cost then
    row, by, refused = hooks.choose(server, "worker", job:look(choice, naming, seq), view)
  end
  if not row and served.index then
    row = by_default(view, math.ceil(choice.prompt.n_tokens / block_size))
  end
  if not row then return nil end
  if row ~= -1 or not choice.told_to_wait then
    choice.decision = decisions.note(served, view, row, by or DEFAULT, job, choice)
  end
  choice.told_to_wait = row == -1
  if row < 0 then return nil, row == -1, refused end
  local w = view.workers[row + 1]
  if is_named then sent.add(server.recipe, w, view.columns, row) end
  choice.n_cached = view.columns.cached[row] * block_size
  believe(choice, view.columns, row, block_size, has_begun)
  return w
end

-- Of these models: nothing is decided any more.
function M.close(models)
  for _, served in ipairs(models.list) do
    if served.view then served.view:close() end
    if served.decisions then C.pl_decisions_close(served.decisions) end
    sent.close(served)
    served.view, served.decisions = nil, nil
  end
end

-- A worker for the choice; nil: nobody can take it now, or, with true, its pool's hook
-- wants it to wait; or, third, refuses it: { status, message, headers }. `avoid`,
-- choice.full, numerics: as cluster.choose. choice.n_cached: how many of its tokens that
-- worker is thought to hold.
function M.choose(server, served, job, choice, avoid, numerics)
  local pool = server.recipe.worker
  local has_hook = pool and (pool.pick or pool.cost)
  choice.n_cached, choice.believed = 0, nil
  if has_hook or served.index and served.workers[2] then
    local view = look(served, choice, avoid, numerics)
    if view.n == 0 then return nil end
    local w, waits, refused = decide(server, served, job, choice, view, numerics ~= nil)
    if w or waits or refused then return w, waits, refused end
  end
  return server.cluster:choose(served, avoid, choice.full, numerics)
end

return M
