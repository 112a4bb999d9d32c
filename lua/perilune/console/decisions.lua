-- SPDX-License-Identifier: Apache-2.0
-- console/decisions.lua - why a request went where it went, and where it would go by
-- another function.

local decisions = require "perilune.fleet.decisions"
local object = require "perilune.console.object"
local pl = require "perilune"
local replay = require "perilune.fleet.replay"
local run = require "perilune.console.run"
local settings = require "perilune.recipe.resolve"

local M = {}

local MOST_SHOWN = 32                       -- workers of one decision
local SHOWN = { "cached", "prefilling", "decoding", "waiting", "running" }

local function models_of(process)
  if process.server then return process.server.models end
  error("only a frontend decides where requests go", 3)
end

local function cost_text(w)
  local cost = w.cost
  if not cost then return w.excluded and "inf" or "-" end
  return cost % 1 == 0 and math.abs(cost) < 1e15 and ("%.0f"):format(cost)
    or ("%.4g"):format(cost)
end

local function by_cost(d)
  local list = {}
  for i, w in ipairs(d.workers) do list[i] = w end
  table.sort(list, function(a, b)
    if (a.name == d.worker) ~= (b.name == d.worker) then return a.name == d.worker end
    if a.cost ~= b.cost then return (a.cost or math.huge) < (b.cost or math.huge) end
    return a.name < b.name
  end)
  return list
end

-- What became of it, where that is not the row of the worker taken.
local function what_came(d)
  if d.refused then return "   refused" end
  if not d.worker then return "   it had to wait" end
  local w = by_cost(d)[1]                   -- which was taken
  if not d.found or d.found >= w.cached then return "" end
  return ("   %s had %d blocks cached, not %d"):format(d.worker, d.found, w.cached)
end

local function text_of(d)
  local cells = { { "name", unpack(SHOWN) } }
  table.insert(cells[1], "cost")
  for i, w in ipairs(by_cost(d)) do
    if i > MOST_SHOWN then break end
    local row = { w.name }
    for k, column in ipairs(SHOWN) do row[k + 1] = tostring(w[column]) end
    row[#row + 1] = cost_text(w)
    row[#row + 1] = w.name == d.worker and "<- taken" or ""
    cells[#cells + 1] = row
  end
  local more = #d.workers - MOST_SHOWN
  local move = d.moves > 0 and (", move %d"):format(d.moves) or ""
  local reads = d.reads and "   to read its prompt" or ""
  return ("request %s   %d tokens, %d blocks%s%s   by %s%s\n"):format(d.id, d.total,
      d.blocks, move, reads, d.by, what_came(d))
    .. object.columns(cells, "  ")
    .. (more > 0 and ("\n  and %d more"):format(more) or "")
end

local Decision = object.class {
  name = "a decision", doc = "which worker a request was given, and what was known then",
  explain = text_of, plain = function(d) return d end,
  index = function(d, key) return d[key] end,
  names = function(d)
    local names = {}
    for name in pairs(d) do names[#names + 1] = name end
    return names
  end,
}

local function listed(list)
  local cells, items = { { "request", "worker", "cached", "blocks", "by" } }, {}
  for i, one in ipairs(list) do
    local d = decisions.plain(one)
    local cached = "-"
    for _, w in ipairs(d.workers) do
      if w.name == d.worker then cached = tostring(w.cached) end
    end
    items[i] = Decision(d)
    cells[i + 1] = { d.id, d.worker or d.refused and "refused" or "waits", cached,
      tostring(d.blocks), d.by .. (d.reads and " (reads)" or "") }
  end
  return object.listing { cells = cells, items = items,
    empty = "nothing has been decided yet: that takes two workers, or a hook" }
end

-- explain(id): the decisions of a request, all its moves; without one the last decision.
function M.explain(process, id)
  local models = models_of(process)
  if id == nil then
    local last = decisions.last(models, 1)[1]
    return last and Decision(decisions.plain(last)) or listed {}
  end
  local found = decisions.find(models, tostring(id))
  if #found == 0 then
    error(("no decision about '%s' is kept   (decisions() lists the last)"):format(
      tostring(id)), 3)
  end
  return #found == 1 and Decision(decisions.plain(found[1])) or listed(found)
end

-- decisions(n): the last n.
function M.list(process, n)
  n = n or 20
  if type(n) ~= "number" or n < 1 then error("decisions: wants how many", 3) end
  return listed(decisions.last(models_of(process), math.min(n, 1000)))
end

local function percent(v) return ("%.0f%%"):format(100 * v) end

local function result_text(r)
  local cells = {
    { "", "as it was", "as it would be" },
    { "  prefix hits", percent(r.before.hits), percent(r.after.hits) },
    { "  busiest worker", percent(r.before.busiest), percent(r.after.busiest) },
  }
  local text = ("%d decided again: %d the same worker, %d another"):format(r.decided,
    r.same, r.decided - r.same)
  if r.waits > 0 then text = text .. (", %d would wait"):format(r.waits) end
  if r.refused > 0 then text = text .. (", %d be refused"):format(r.refused) end
  if r.decided > 0 then text = text .. "\n" .. object.columns(cells) end
  if r.errors == 0 then return text end
  return ("%s\n%d failed, the first: %s"):format(text, r.errors, r.error)
end

local Result = object.class {
  name = "a replay", doc = "the last decisions, taken again by another function",
  explain = result_text, plain = function(r) return r end,
  index = function(r, key) return r[key] end,
}

local function is_pick(fn)
  for _, known in pairs(pl.pick) do
    if known == fn then return true end
  end
  return false
end

-- replay(fn), a cost; replay(fn, "pick").
function M.replay(process, fn, kind)
  local spec, hook = object.of(fn)
  if spec and hook.fn then
    fn, kind = hook.fn, kind or hook.path:match "[^.]*$"
  end
  if type(fn) ~= "function" then error("replay: wants a function", 3) end
  kind = kind or is_pick(fn) and "pick" or "cost"
  if kind ~= "cost" and kind ~= "pick" then
    error(("replay: '%s' is neither cost nor pick"):format(tostring(kind)), 3)
  end
  local models = models_of(process)
  run.forget()                              -- it may be compiled, and not end there
  return Result(replay.run(models, kind, fn, settings.kept(process.recipe), run.at_end))
end

return M
