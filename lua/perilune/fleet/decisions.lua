-- SPDX-License-Identifier: Apache-2.0
-- fleet/decisions.lua - which workers requests were given, and what was known then.
--
--     decisions.note(served, view, row, by, job, choice)      one more
--     decisions.last(models, n)                               the newest first
--     decisions.find(models, "cmpl-5f")                       of a request
--     decisions.plain(d)                                      as a plain table
--
-- The last ones of each model are kept in C (perilune/decide.h), with all columns. Where
-- a hook was asked, the facts that it was told are kept beside them, by number.

local pl = require "perilune.ffi"
local hook_fields = require "perilune.recipe.hook_fields"
local lru = require "perilune.lru"
local C, ffi = pl.C, pl.ffi

local M = {}

local KEPT = 1000
local MAX_WORKERS = 16384                   -- whose names are known after they have gone

local about = ffi.new "pl_decision"
local ID, BY = ffi.sizeof(about.id) - 1, ffi.sizeof(about.by) - 1

local known = lru.new(MAX_WORKERS)          -- w.number -> w

-- A worker is here: decisions name it by its number.
function M.know(w)
  known:put(w.number, w)
end

local function put(to, text, most)
  local n = math.min(#text, most)
  ffi.copy(to, text, n)
  to[n] = 0
end

local function fill(job, choice, block_size)
  local prompt, plan = choice.prompt, job.plan
  about.tokens, about.max_tokens = prompt.n_tokens, prompt.max_tokens or 0
  about.total, about.moves = prompt.n_tokens, choice.moves or 0
  about.n, about.stream, about.priority = plan.n, plan.stream and 1 or 0, plan.priority
  about.block_size = block_size
  put(about.id, job.id, ID)
end

-- A choice was given the worker of that row of a pool's view, has to wait (-1), or was
-- refused (-2). `by`: who has decided. The decision's number.
function M.note(pool, view, row, by, job, choice)
  local served = pool.served
  if not served.decisions then
    served.decisions, served.facts = C.pl_decisions_open(), {}
  end
  fill(job, choice, served.terms.block_size)
  put(about.by, by, BY)
  about.row, about.reads = row, pool == served.prefill and 1 or 0
  local facts = job.facts
  if facts then about.total, about.moves = facts.total, facts.moves end
  local number = C.pl_decisions_add(served.decisions, about, view.columns)
  served.facts[tonumber(number) % KEPT] = facts or false
  return number
end

-- The worker that a choice was given has found so many of its tokens cached. How many
-- blocks that are fewer than the decision took to be there; nil: nobody decided, or the
-- choice had begun before.
function M.found(served, choice, n_cached)
  local believed = choice.believed
  if not believed then return nil end
  local blocks = math.floor(n_cached / served.terms.block_size)
  C.pl_decisions_found(served.decisions, choice.decision, blocks)
  return math.max(0, believed - blocks)
end

local function all(models)
  local list = {}
  for _, served in ipairs(models.list) do
    local log = served.decisions
    local last = log and tonumber(C.pl_decisions_last(log)) or 0
    for number = last, 1, -1 do
      local d = C.pl_decisions_get(log, number)
      if d == nil then break end
      list[#list + 1] = { d = d, served = served, facts = served.facts[number % KEPT],
        at = tonumber(d.at_ns), id = ffi.string(d.id) }
    end
  end
  table.sort(list, function(a, b) return a.at > b.at end)
  return list
end

-- The last n of all models, the newest first: { d, served, facts, at, id }, of which d, a
-- pl_decision, is there until the next one is noted.
function M.last(models, n)
  local list = all(models)
  for i = #list, (n or KEPT) + 1, -1 do list[i] = nil end
  return list
end

-- Those of the request whose id, or that of its answer, begins so, the newest first.
function M.find(models, id)
  local found = {}
  id = id:gsub("^chatcmpl%-", ""):gsub("^cmpl%-", "")
  for _, one in ipairs(all(models)) do
    local same = one.id == id:sub(1, ID)
    if same or one.id:sub(1, #id) == id then found[#found + 1] = one end
  end
  return found
end

function M.name_of(number)
  local w = known:get(number)
  return w and w.name or "worker " .. number, w and w.tags
end

local COLUMNS = {}                          -- all that hooks see, but for words
for _, row in ipairs(hook_fields.Worker) do
  if row[2] == "integer" or row[2] == "number" then COLUMNS[#COLUMNS + 1] = row[1] end
end

local function worker_plain(fleet, row)
  local cost = fleet.cost[row]
  local out = { name = M.name_of(fleet.worker[row]), excluded = cost == math.huge or nil,
    cost = cost == cost and math.abs(cost) < math.huge and cost or nil }
  for _, column in ipairs(COLUMNS) do out[column] = fleet[column][row] end
  return out
end

-- An entry of `last` or `find` as a plain table.
function M.plain(one)
  local d = one.d
  local workers = {}
  for row = 0, d.fleet.n - 1 do workers[row + 1] = worker_plain(d.fleet, row) end
  table.sort(workers, function(a, b) return a.name < b.name end)
  return { id = one.id, number = tonumber(d.number), model = one.served.key,
    at = one.at / 1e9, by = ffi.string(d.by), tokens = d.tokens, total = d.total,
    blocks = math.ceil(d.total / d.block_size), moves = d.moves, priority = d.priority,
    reads = d.reads == 1 or nil, refused = d.row == -2 or nil,
    worker = d.row >= 0 and M.name_of(d.fleet.worker[d.row]) or nil,
    found = d.found >= 0 and d.found or nil, workers = workers }
end

return M
