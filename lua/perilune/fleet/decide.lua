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
local counters = require "perilune.fleet.counters"
local cost = require "perilune.recipe.cost"
local decisions = require "perilune.fleet.decisions"
local eligible = require "perilune.fleet.eligible"
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

local NOBODY = {}

-- The workers of a pool that may take it, as a view; view.workers: by row, from 1. How
-- much of the prompt each has is not filled in yet.
local function gather(pool, avoid, full, numerics)
  local view = pool.view
  if not view then
    view = fleet_view.new()
    pool.view, view.workers = view, {}
    view.knows = function(name) return acquainted.knows(pool, name) end
  end
  view:begin()
  eligible.each(pool, avoid, full, numerics, add, view)
  return view
end

-- All workers of a pool that take requests, for a hook that is not about one of them.
function M.view(pool)
  return gather(pool, nil, NOBODY)
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
local function match(server, served, view, seq)
  if not served.naming or not seq then return false end
  C.pl_fleet_name(view.columns, served.naming, seq)
  if served.index then C.pl_fleet_match(view.columns, served.index) end
  sent.match(server.recipe, served, view.columns)
  return true
end

-- The workers of a pool that may take it, with all that is known of them; nil: there is
-- none. view.is_named: whether it is known what each has of the prompt.
local function look(server, pool, choice, avoid, full, numerics)
  local view = gather(pool, avoid, full, numerics)
  if view.n == 0 then return nil end
  view.is_named = match(server, pool.served, view, sequence(choice))
  return view
end

-- What the decision took to be cached at that row's worker, for decisions.found: of a
-- choice that has no tokens yet, and no more than an engine uses: it computes one token.
-- Of two workers it is about the reader, whose first token says what was cached.
local function believe(choice, columns, row, block_size, has_begun)
  local most = math.floor((choice.prompt.n_tokens - 1) / block_size)
  choice.believed = not has_begun and math.min(columns.cached[row], most) or nil
end

-- The row of a pool's view that its hook chooses, or the default; -1: the request waits;
-- -2: it is refused; nil: it is not known who has what. Who has decided, and the refusal.
local function choose_row(server, pool, job, choice, view)
  local served, row, by, refused = pool.served, nil, nil, nil
  local of = server.recipe[pool.name]
  if of and (of.pick or of.cost) then
    local req = job:look(choice, served.naming, sequence(choice))
    row, by, refused = hooks.choose(server, pool.name, req, view)
  end
  if not row and served.index then
    row = by_default(view, math.ceil(choice.prompt.n_tokens / served.terms.block_size))
  end
  return row, by or DEFAULT, refused
end

-- The same, once all is noted; the refusal, and how much of the prompt the worker of that
-- row is thought to hold, in tokens.
local function decide(server, pool, job, choice, view, has_begun)
  local row, by, refused = choose_row(server, pool, job, choice, view)
  if not row then return nil end
  if row ~= -1 or not choice.told_to_wait then
    choice.decision = decisions.note(pool, view, row, by, job, choice)
  end
  if row < 0 then return row, refused end
  if view.is_named then
    sent.add(server.recipe, view.workers[row + 1], view.columns, row)
  end
  local block_size = pool.served.terms.block_size
  believe(choice, view.columns, row, block_size, has_begun)
  return row, nil, view.columns.cached[row] * block_size
end

local function row_of(view, w)
  for row = 0, view.n - 1 do
    if view.workers[row + 1] == w then return row end
  end
end

-- ---- prompts read elsewhere ---------------------------------------------------------

-- An answer of one token has nobody to go on, and a prompt whose own logprobs are wanted
-- is computed where they are told.
local function can_split(job, choice, pool)
  local prompt = choice.prompt
  return pool.workers[1] and not choice.unsplit and prompt.n_tokens > 1
    and prompt.max_tokens > 1 and job.plan.prompt_logprobs < 0
end

-- A worker of the pool, and how much it is thought to hold; nil: none, or a hook would
-- have it wait, or refuse it.
local function a_reader(server, pool, job, choice, view, has_begun)
  local row, _, n_cached = decide(server, pool, job, choice, view, has_begun)
  if not row then
    choice.believed = nil
    return eligible.least_loaded(pool, nil, NOBODY)
  end
  return view.workers[row + 1], n_cached
end

-- The prefill worker that reads the choice's prompt for `w`, and how much it holds of it;
-- nil: `w` reads it itself.
local function reader_for(server, served, job, choice, w, has_begun)
  local pool = served.prefill
  if not can_split(job, choice, pool) then return nil end
  local view, main = look(server, pool, choice, nil, NOBODY, w.numerics), served.pool.view
  if not view then return nil end
  if not hooks.split(server, job:look(choice, served.naming, sequence(choice)),
      main:worker(row_of(main, w)), view:fleet()) then return nil end
  local reader, n_cached = a_reader(server, pool, job, choice, view, has_begun)
  if not reader or reader.numerics ~= w.numerics then return nil end
  return reader, n_cached
end

-- ---- choosing -----------------------------------------------------------------------

-- Of these models: nothing is decided any more.
function M.close(models)
  for _, served in ipairs(models.list) do
    for _, pool in ipairs { served.pool, served.prefill } do
      if pool.view then pool.view:close() end
      pool.view = nil
    end
    if served.decisions then C.pl_decisions_close(served.decisions) end
    sent.close(served)
    served.decisions = nil
  end
end

-- As M.choose, of the pool that answers.
local function choose(server, served, job, choice, avoid, numerics)
  local pool = served.pool
  local of = server.recipe[pool.name]
  if of and (of.pick or of.cost) or served.prefill.workers[1]
      or served.index and served.workers[2] then
    local view = look(server, pool, choice, avoid, choice.full, numerics)
    if not view then return nil end
    local row, refused, n_cached = decide(server, pool, job, choice, view,
      numerics ~= nil)
    choice.told_to_wait = row == -1
    if row and row < 0 then return nil, row == -1, refused end
    if row then
      choice.n_cached = n_cached
      return view.workers[row + 1]
    end
  end
  return eligible.least_loaded(pool, avoid, choice.full, numerics)
end

-- A worker for the choice; nil: nobody can take it now, or, with true, its pool's hook
-- wants it to wait; or, third, refuses it: { status, message, headers }. `avoid`,
-- choice.full, numerics: fleet/eligible.lua's. choice.n_cached: how many of its tokens
-- that worker is thought to hold; choice.reader: the prefill worker that is to read its
-- prompt, and choice.reader_cached.
function M.choose(server, served, job, choice, avoid, numerics)
  choice.n_cached, choice.believed, choice.reader = 0, nil, nil
  local w, waits, refused = choose(server, served, job, choice, avoid, numerics)
  if not w then return nil, waits, refused end
  local believed, decision = choice.believed, choice.decision
  choice.reader, choice.reader_cached = reader_for(server, served, job, choice, w,
    numerics ~= nil)
  if not choice.reader then choice.believed, choice.decision = believed, decision end
  return w
end

return M
