-- SPDX-License-Identifier: Apache-2.0
-- fleet/replay.lua - decides past requests once more, with another function.
--
--     local result = replay.run(models, "cost", fn, kept, at_end)
--
-- Each decision is taken on what was known then; what would have become of the later ones
-- is not asked (that is what a simulator is for). The clock shows the time of each, the
-- dice are the same each time, what the function remembers is put back at the end, and
-- what it counts is counted nowhere.

local chance = require "perilune.recipe.chance"
local decisions = require "perilune.fleet.decisions"
local fleet_view = require "perilune.recipe.fleet_view"
local hook_view = require "perilune.recipe.hook_view"
local memory = require "perilune.recipe.memory"
local metric = require "perilune.recipe.metric"
local own = require "perilune.recipe.own"
local verdict = require "perilune.recipe.verdict"

local M = {}

local SEED = 1

-- The request of a decision as the hook sees it: headers that no hook had asked for are
-- not known.
local function request(one)
  local d, facts = one.d, one.facts or {}
  return hook_view.new { id = one.id, model = one.served.key, tenant = facts.tenant,
    tokens = d.tokens, total = d.total, max_tokens = d.max_tokens, n = d.n,
    stream = d.stream == 1, priority = d.priority, moves = d.moves, hints = facts.hints,
    block_size = d.block_size, recorded = facts.read or {},
    key = function(_, k) return d.n_keys > 0 and d.keys[math.min(k, d.n_keys) - 1] end }
end

local function fill(view, columns)
  view:begin()
  for row = 0, columns.n - 1 do
    view:copy(columns, row, decisions.name_of(columns.worker[row]))
  end
end

local function share(counts, total)
  local most = 0
  for _, n in pairs(counts) do most = math.max(most, n) end
  return total > 0 and most / total or 0
end

-- Adds that the worker of that row is taken to one side of the comparison.
local function take(side, one, row)
  local fleet = one.d.fleet
  local worker = fleet.worker[row]
  side.cached = side.cached + fleet.cached[row]
  side.counts[worker] = (side.counts[worker] or 0) + 1
end

-- The row that fn decides for; nil: it wants the request to wait.
local function again(kind, fn, loop, one, view)
  fill(view, one.d.fleet)
  if kind == "cost" then
    local row = loop(fn, request(one), view)
    return row >= 0 and row or nil
  end
  local w = fn(request(one), view:fleet())
  if w == nil then return nil end
  if verdict.is(w, "reject") then error(w, 0) end
  return view:row_of(w) or error("pick returned no worker of its fleet", 0)
end

-- With the clock and the dice of then; put back by the function it answers.
local function go_back(fn, kept)
  local time = 0
  kept = own.part(kept)
  local restore = memory.keep(fn, kept)
  local done = chance.pretend(function() return time end, SEED)
  local was, was_of = own.enter(kept)
  local was_counted = metric.collect {}
  local function go_to(d)
    time = tonumber(d.at_ns) / 1e9
    own.enter(kept, d.reads == 1 and "prefill" or nil)
  end
  return go_to, function()
    metric.collect(was_counted)
    own.enter(was, was_of)
    done()
    restore()
  end
end

local function decide_all(r, kind, fn, list, view, go_to)
  local loop = kind == "cost" and fleet_view.loop()
  for i = #list, 1, -1 do                   -- as they came
    local one = list[i]
    if one.d.row >= 0 then
      go_to(one.d)
      local ok, row = pcall(again, kind, fn, loop, one, view)
      if not ok and verdict.is(row, "reject") then
        r.refused = r.refused + 1
      elseif not ok then
        r.errors, r.error = r.errors + 1, r.error or tostring(row)
      elseif not row then
        r.waits = r.waits + 1
      else
        r.decided, r.same = r.decided + 1, r.same + (row == one.d.row and 1 or 0)
        r.blocks = r.blocks + math.ceil(one.d.total / one.d.block_size)
        take(r.was, one, one.d.row)
        take(r.is, one, row)
      end
    end
  end
end

-- kind: "cost" or "pick"; kept: what the recipe keeps. at_end(f): f must be called once
-- this is over, however it ends. decided, same, waits, refused, errors and the first of
-- these; and, of those decided, before and after: hits, the share of prompts' blocks that
-- were cached, and busiest, the share of requests of the worker that got most.
function M.run(models, kind, fn, kept, at_end)
  local view = fleet_view.new()
  view.knows = function() return true end   -- who was not there may have come
  local go_to, put_back = go_back(fn, kept)
  at_end(function()
    put_back()
    view:close()
  end)
  local r = { decided = 0, same = 0, waits = 0, refused = 0, errors = 0, blocks = 0,
    was = { cached = 0, counts = {} }, is = { cached = 0, counts = {} } }
  decide_all(r, kind, fn, decisions.last(models), view, go_to)
  local blocks = math.max(r.blocks, 1)
  return { decided = r.decided, same = r.same, waits = r.waits, refused = r.refused,
    errors = r.errors, error = r.error,
    before = { hits = r.was.cached / blocks, busiest = share(r.was.counts, r.decided) },
    after = { hits = r.is.cached / blocks, busiest = share(r.is.counts, r.decided) } }
end

return M
