-- SPDX-License-Identifier: Apache-2.0
-- console/workers.lua - what there is to look at: workers, blocks, steps.

local holdings = require "perilune.fleet.holdings"
local metrics = require "perilune.watch.metrics"
local object = require "perilune.console.object"
local pl = require "perilune.ffi"
local steps = require "perilune.watch.steps"
local C, ffi = pl.C, pl.ffi

local M = {}

local function percent(part, whole)
  return ("%.1f%%"):format(whole > 0 and 100 * part / whole or 0)
end

-- ---- workers --------------------------------------------------------------------------

local function steps_text(s)
  if s.steps == 0 then return "no step was made yet" end
  return object.columns(steps.cells(s)) .. ("\n%d steps in %.2f s, %.1f tokens/s")
    :format(s.steps, s.seconds, s.tokens_per_s)
end

local Steps = object.class {
  name = "steps", doc = "an engine's last steps (at most 1024), summed up",
  explain = steps_text, plain = function(s) return s end,
}

local function worker_plain(w)
  local s = w.now()
  s.name, s.state, s.device, s.kernels = w.name, w.state, w.device, w.kernels
  return s
end

-- What a worker says of itself, and that it reads prompts only, if so.
local function state_of(w)
  return w.reads and w.state .. ", prefill" or w.state
end

local function worker_text(w)
  local s = worker_plain(w)
  local about = w.engine and ("device %s, kernels %s"):format(w.device, w.kernels)
    or "in another process, as of its last heartbeat"
  local rows = {
    { "  sequences", ("%d running, %d waiting"):format(s.running, s.waiting) },
    { "  blocks", ("%d of %d in use, %d more hold a prefix"):format(s.blocks_used,
      s.blocks, s.blocks_cached) },
  }
  if w.engine then
    rows[3] = { "  tokens", ("%d of prompts (%s cached), %d generated"):format(
      s.prompt_tokens, percent(s.cached_tokens, s.prompt_tokens), s.generation_tokens) }
    rows[4] = { "  steps", ("%d, %d preemptions; the last %s ago"):format(s.steps,
      s.preemptions, object.seconds(s.idle_s)) }
  end
  return ("%s   %s   %s\n"):format(w.name, state_of(w), about) .. object.columns(rows)
end

local function worker_steps(w, last)
  if w.engine then return Steps(steps.summary(w.engine, last)) end
  error(("%s is in another process: perilune attach %s -e 'w(0):steps()'"):format(w.name,
    w.name), 3)
end

local Worker = object.class {
  name = "w", doc = "a worker; w:steps() says where its time goes",
  methods = { steps = worker_steps },
  index = function(w, key) return worker_plain(w)[key] end,
  explain = worker_text, plain = worker_plain,
  names = function(w)
    local names = {}
    for name in pairs(worker_plain(w)) do
      if name ~= "steps" then names[#names + 1] = name end
    end
    return names
  end,
}

local function own(name, state, e)
  return { name = name, state = state, engine = e.engine, device = e.pool.device,
    kernels = ffi.string(C.pl_device_kernels(e.device)),
    now = function() return steps.stats(e.engine) end }
end

-- One of another process, by what it said last.
local function other(w)
  return { name = w.name, state = w.state, now = function()
    local out = {}
    for _, field in ipairs { "running", "waiting", "blocks", "blocks_used",
        "blocks_cached" } do
      out[field] = w.counts and w.counts[field] or 0
    end
    return out
  end }
end

-- The workers that a process has or knows: { name, state, now() } each, and of those here
-- engine, device, kernels; of those that a frontend knows known(), and whether it reads
-- prompts only.
function M.all_workers(process)
  local out, engines = {}, process.w and process.w.engines or {}
  if not process.server then
    local name = process.name or "worker"
    for i, e in ipairs(engines) do
      out[i] = own(#engines > 1 and name .. "." .. i - 1 or name, process.state, e)
    end
    return out
  end
  for i, w in ipairs(process.server.cluster.workers) do
    out[i] = not w.engine and other(w) or nil
    for _, e in ipairs(w.engine and engines or {}) do
      if e.engine == w.engine then out[i] = own(w.name, w.state, e) end
    end
    if out[i] then
      out[i].known = function() return holdings.count(w) end
      out[i].reads = w.pool == w.served.prefill
    end
  end
  return out
end

function M.workers(process)
  local cells, items = { { "worker", "state", "running", "waiting", "blocks", "used",
    "tokens" } }, {}
  for i, w in ipairs(M.all_workers(process)) do
    local s = w.now()
    items[i] = Worker(w)
    cells[i + 1] = { w.name, state_of(w), tostring(s.running), tostring(s.waiting),
      tostring(s.blocks), percent(s.blocks_used, s.blocks),
      tostring(s.generation_tokens or "-") }
  end
  return object.listing { cells = cells, items = items, empty = "no worker is available" }
end

-- By its place in that list, from 0, or its name.
function M.w(process, key)
  for i, w in ipairs(M.all_workers(process)) do
    if i - 1 == (key or 0) or w.name == key then return Worker(w) end
  end
  error(("no worker '%s' here"):format(tostring(key)), 3)
end

function M.blocks(process)
  local cells, json = { { "worker", "blocks", "used", "cached", "free", "known",
    "prefix hits" } }, {}
  for i, w in ipairs(M.all_workers(process)) do
    local s, known = w.now(), w.known and w.known()
    local free = s.blocks - s.blocks_used - s.blocks_cached
    cells[i + 1] = { w.name, tostring(s.blocks), tostring(s.blocks_used),
      tostring(s.blocks_cached), tostring(free), tostring(known or "-"),
      s.prefix_hits and percent(s.prefix_hits, s.prefix_queries) or "-" }
    json[i] = { worker = w.name, blocks = s.blocks, used = s.blocks_used,
      cached = s.blocks_cached, free = free, known = known, queries = s.prefix_queries,
      hits = s.prefix_hits }
  end
  return object.listing { cells = cells, items = json, json = json,
    empty = "no worker is available",
    foot = "cached ones are free, but hold a prefix still; known: to this frontend" }
end

-- ---- metrics --------------------------------------------------------------------------

-- The series whose name holds this text: those of /metrics.
function M.metrics(process, text)
  process.metrics:refresh()
  local buf = ffi.new "pl_buf"
  C.pl_metric_render(buf)
  local all, cells, json = pl.take(buf), { { "value", "series" } }, {}
  for line in string.gmatch(all, "[^\n]+") do
    local series, value = line:match "^([^#].*) (%S+)$"
    if series and (not text or series:find(text, 1, true)) then
      cells[#cells + 1] = { value, series }
      json[#json + 1] = { series = series, value = tonumber(value) or value }
    end
  end
  return object.listing { cells = cells, items = json, json = json,
    empty = ("no series has '%s' in its name"):format(tostring(text)) }
end

-- For completion.
function M.metric_names()
  local names = {}
  for i, row in ipairs(metrics.ROWS) do names[i] = row[2] end
  return names
end

return M
