-- SPDX-License-Identifier: Apache-2.0
-- recipe/fleet_view.lua - workers as hooks see them: `fleet`, and each `w` of it.
--
--     local view = fleet_view.new()
--     view:begin()                                 a decision more
--     view:add(load, number, rank, worker, name, tags)    a row: a worker that may be
--                                                  chosen
--     view:fleet()                                 what `pick` is given
--     view:worker(row)                             what `cost` is given; rows from 0
--     view:row_of(w)                               which row a hook has chosen
--
-- What is known of workers is in C's columns (perilune/decide.h). A `w` is a small value,
-- (view, turn, row), and reading a field of it reads a column: compiled, nothing is
-- allocated. It is good for one decision; whoever keeps it longer gets an error, never
-- another worker's numbers.

local pl = require "perilune.ffi"
local hook_fields = require "perilune.recipe.hook_fields"
local nearest = require "perilune.recipe.nearest"
local values = require "perilune.recipe.option_value"
local verdict = require "perilune.recipe.verdict"
local C, ffi = pl.C, pl.ffi

local M = {}

local View = {}
View.__index = View

local MAX_FILTERS = 64                      -- of one decision
local MAX_LOOPS = 64

local Worker = ffi.typeof "struct { const int32_t view, turn, row; }"
local Fleet = ffi.typeof "struct { const int32_t view; }"

local views = {}                            -- number -> view, while it is open
local n_views = 0

-- What hooks may read of a worker, and where that is: COLUMNS in C's, the others here.
local FIELDS = { name = "names", tags = "tags" }
local ALL, COLUMNS = {}, {}
for _, row in ipairs(hook_fields.Worker) do
  ALL[row[1]] = true
  COLUMNS[row[1]] = not FIELDS[row[1]] or nil
end

local function unknown(what, key, known)
  local names = {}
  for name in pairs(known) do names[#names + 1] = name end
  local near = nearest(tostring(key), names)
  error(("%s has no '%s'%s"):format(what, tostring(key),
    near and ("; did you mean '%s'?"):format(near) or ""), 3)
end

-- A column that a hook reads. What is sent where is remembered once one asks for it.
local function column_of(view, key)
  if key == "sent" then (view.root or view).reads_sent = true end
  return view.columns[key]
end

-- The view of a worker, if that is still of the decision under way.
local function view_of(w)
  local view = views[w.view]
  if not view or view.turn ~= w.turn then
    error("this worker is of an earlier decision; keep its name instead", 3)
  end
  return view
end

ffi.metatype(Worker, {
  __index = function(w, key)
    local view = view_of(w)
    if COLUMNS[key] then return column_of(view, key)[w.row] end
    local field = FIELDS[key]
    if not field then unknown("w", key, ALL) end
    return view[field][w.row + 1]
  end,
  __newindex = function(_, key)
    error(("w is read-only; '%s' assigned"):format(tostring(key)), 2)
  end,
  __tostring = function(w)
    local view = views[w.view]
    local here = view and view.turn == w.turn
    return "worker " .. (here and view.names[w.row + 1] or "of an earlier decision")
  end,
})

-- ---- the cheapest -------------------------------------------------------------------

-- Each function gets a loop of its own, so that the compiler need not tell one from the
-- other: the answer is a row, -1 where no cost is below infinity, or nil, the row and
-- what was answered there that is no cost.
local LOOP = [[
local Worker, Fleet = ...
return function(cost, req, view)
  local number, turn, n, costs = view.number, view.turn, view.n, view.columns.cost
  local best, at, fleet = 1 / 0, -1, Fleet(view.number)
  for row = 0, n - 1 do
    local c = cost(req, Worker(number, turn, row), fleet)
    if type(c) ~= "number" or c ~= c then return nil, row, c end
    costs[row] = c
    if c < best then best, at = c, row end
  end
  return at
end]]

local function raw_loop()
  return assert(loadstring(LOOP, "=perilune"))(Worker, Fleet)
end

-- A function (cost, req, view) that answers the row of the cheapest worker, or -1; an
-- error names a worker for which `cost` answers no number. What `cost` refuses with is
-- raised, for it ends the decision.
function M.loop()
  local run = raw_loop()
  return function(cost, req, view)
    local at, row, bad = run(cost, req, view)
    if at then return at end
    if verdict.is(bad, "reject") then error(bad, 0) end
    error(("cost returned %s for %s; wanted a number"):format(values.show(bad, true),
      view.names[row + 1]), 0)
  end
end

local loops, n_loops = {}, 0                -- by function
local of_places, n_places = {}, 0           -- by where it is written

local function loop_of(cost)
  local loop = loops[cost]
  if loop then return loop end
  local info = debug.getinfo(cost, "S")
  local place = info.source .. ":" .. info.linedefined
  loop = of_places[place]
  if not loop then
    if n_places == MAX_LOOPS then of_places, n_places = {}, 0 end
    loop, n_places = M.loop(), n_places + 1
    of_places[place] = loop
  end
  if n_loops == MAX_LOOPS then loops, n_loops = {}, 0 end
  loops[cost], n_loops = loop, n_loops + 1
  return loop
end

-- ---- fleet --------------------------------------------------------------------------

local function open_view(fleet)
  local view = views[fleet.view]
  if not view then error("this fleet is closed", 3) end
  return view
end

local function worker_at(view, row)
  return Worker(view.number, view.turn, row)
end

local function has(tags, tag)
  for _, other in ipairs(tags) do
    if other == tag then return true end
  end
  return false
end

local function passes(view, row, test)
  if type(test) == "function" then return test(worker_at(view, row)) end
  return has(view.tags[row + 1], test)
end

-- A view for the rows of another that pass, which is reused from decision to decision.
local function child_of(view)
  local n = view.n_children + 1
  if n > MAX_FILTERS then
    error(("more than %d filters in one decision"):format(MAX_FILTERS), 4)
  end
  local child = view.children[n]
  if not child then
    child = M.new()
    child.root, view.children[n] = view, child
  end
  view.n_children = n
  child:begin()
  return child
end

local function filtered(view, test)
  local root = view.root or view
  local child = child_of(root)
  for row = 0, view.n - 1 do
    if passes(view, row, test) then
      child:copy(view.columns, row, view.names[row + 1], view.tags[row + 1])
      child.origin[child.n] = view.root and view.origin[row + 1] or row
    end
  end
  return child:fleet()
end

local function row_named(view, name)
  for row = 0, view.n - 1 do
    if view.names[row + 1] == name then return row end
  end
end

local METHODS = {
  -- The worker with the lowest cost; nil where there is none below infinity. `within`:
  -- costs above the lowest by at most this share of it count as equal.
  cheapest = function(fleet, req, cost, within)
    local view = open_view(fleet)
    if type(cost) ~= "function" then
      error("fleet:cheapest: wants a request and a function", 2)
    end
    local row = loop_of(cost)(cost, req, view)
    if row < 0 then return nil end
    return worker_at(view, within and view:first_within(row, within) or row)
  end,
  -- The worker of that name; nil where it is not among them.
  named = function(fleet, name)
    local view = open_view(fleet)
    local row = row_named(view, name)
    return row and worker_at(view, row)
  end,
  -- Whether there is a worker of that name, be it that it cannot take the request now.
  knows = function(fleet, name)
    local view = open_view(fleet)
    view = view.root or view
    return row_named(view, name) ~= nil or view.knows ~= nil and view.knows(name)
  end,
  sum = function(fleet, column)
    local view, total = open_view(fleet), 0
    if not COLUMNS[column] then unknown("w", column, COLUMNS) end
    local values_of = column_of(view, column)
    for row = 0, view.n - 1 do total = total + values_of[row] end
    return total
  end,
  -- The lowest value of a column; nil of no workers.
  min = function(fleet, column)
    local view, least = open_view(fleet), nil
    if not COLUMNS[column] then unknown("w", column, COLUMNS) end
    local values_of = column_of(view, column)
    for row = 0, view.n - 1 do
      if not least or values_of[row] < least then least = values_of[row] end
    end
    return least
  end,
  -- The workers that have a tag, or that a function passes, as a fleet.
  filter = function(fleet, test)
    if type(test) ~= "function" and type(test) ~= "string" then
      error("fleet:filter: wants a function or a tag", 2)
    end
    return filtered(open_view(fleet), test)
  end,
}

M.METHODS = METHODS

ffi.metatype(Fleet, {
  __len = function(fleet) return open_view(fleet).n end,
  __index = function(fleet, key)
    if type(key) ~= "number" then
      return METHODS[key] or unknown("fleet", key, METHODS)
    end
    local view = open_view(fleet)
    if key >= 1 and key <= view.n and key % 1 == 0 then
      return worker_at(view, key - 1)
    end
  end,
  __newindex = function() error("fleet is read-only", 2) end,
  __tostring = function(fleet) return ("%d workers"):format(open_view(fleet).n) end,
})

-- ---- views --------------------------------------------------------------------------

function M.new()
  n_views = n_views + 1
  local view = setmetatable({ number = n_views, turn = 0, n = 0, names = {}, tags = {},
    origin = {}, children = {}, n_children = 0, columns = C.pl_fleet_open() },
    View)
  views[n_views] = view
  return view
end

function View:close()
  for _, child in ipairs(self.children) do child:close() end
  views[self.number] = nil
  C.pl_fleet_close(self.columns)
  self.columns, self.children = nil, {}
end

-- All workers of the decision before are of the past.
function View:begin()
  C.pl_fleet_clear(self.columns)
  self.turn, self.n, self.n_children = (self.turn + 1) % 2 ^ 31, 0, 0
end

local NO_TAGS = {}

-- load: a pl_load or nil; number: in the index, or -1; worker: a number of the caller's.
-- Its row; nil: there are too many.
function View:add(load, number, rank, worker, name, tags)
  local row = C.pl_fleet_add(self.columns, load, number, rank, worker)
  if row < 0 then return nil end
  local n = row + 1
  self.n, self.names[n], self.tags[n] = n, name, tags or NO_TAGS
  return row
end

function View:fleet()
  return Fleet(self.number)
end

-- The first row, as they stand in turn, whose cost is above that of `row`, the lowest,
-- by at most this share of it.
function View:first_within(row, share)
  local costs = self.columns.cost
  local most = costs[row] + share * math.abs(costs[row])
  for i = 0, self.n - 1 do
    if costs[i] <= most then return i end
  end
end

function View:worker(row)
  return worker_at(self, row)
end

-- Puts a row of other columns (pl_fleet) into this one.
function View:copy(columns, row, name, tags)
  C.pl_fleet_copy(self.columns, columns, row)
  local n = self.n + 1
  self.n, self.names[n], self.tags[n] = n, name, tags or NO_TAGS
end

-- The row of what a hook has answered; nil: that is no worker of this decision.
function View:row_of(w)
  if not ffi.istype(Worker, w) then return nil end
  local view = views[w.view]
  if not view or view.turn ~= w.turn then return nil end
  if view == self then return w.row end
  return view.root == self and view.origin[w.row + 1] or nil
end

-- ---- pl.fleet -----------------------------------------------------------------------

local function add_row(view, i, row)
  if type(row) ~= "table" or type(row.name) ~= "string" then
    error(("pl.fleet: worker %d is a table with a name"):format(i), 3)
  end
  view:add(nil, -1, 0, i, row.name, row.tags)
  for key, v in pairs(row) do
    if COLUMNS[key] then
      local fits = type(v) == "number" and (v % 1 == 0 or key == "ttft" or key == "itl")
      if not fits or math.abs(v) >= 2 ^ 31 then
        error(("pl.fleet: %s of %s is '%s'; it wants a number"):format(key, row.name,
          tostring(v)), 3)
      end
      view.columns[key][i - 1] = v
    elseif not ALL[key] then
      unknown("w", key, ALL)
    end
  end
end

-- A fleet as hooks get it, of rows such as { name = "a", cached = 3 }: for tests of a
-- recipe, without a server.
function M.of(rows)
  if type(rows) ~= "table" then error("pl.fleet: wants a list of workers", 2) end
  local view = M.new()
  view:begin()
  for i, row in ipairs(rows) do add_row(view, i, row) end
  return ffi.gc(view:fleet(), function() view:close() end)
end

return M
