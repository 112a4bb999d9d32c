-- SPDX-License-Identifier: Apache-2.0
-- console_objects.lua - what there is to look at: requests, workers, blocks, steps.

local metrics = require "perilune.metrics"
local object = require "perilune.console_object"
local requests = require "perilune.requests"
local steps = require "perilune.steps"

local M = {}

local function seconds(s)
  if not s then return "-" end
  if s < 1 then return ("%.1fms"):format(s * 1e3) end
  return s < 100 and ("%.2fs"):format(s) or ("%.0fs"):format(s)
end

local function percent(part, whole)
  return ("%.1f%%"):format(whole > 0 and 100 * part / whole or 0)
end

local function short(id)
  return #id > 24 and id:sub(1, 21) .. "..." or id
end

-- ---- requests -------------------------------------------------------------------------

local function request_plain(r)
  local stages = {}                         -- never empty: it arrived
  for i, entry in ipairs(requests.timeline(r)) do
    stages[i] = { stage = entry[1], ms = (entry[2] - r.arrived) / 1e6 }
  end
  return { number = r.number, id = r.id, kind = r.kind, stream = r.stream == true,
    prompt_tokens = r.prompt_tokens, choices = r.choices, tokens = r.tokens,
    cached = r.cached, moves = r.moves, finish = r.finish, why = r.why,
    to_first = requests.to_first(r), total = requests.total(r), stages = stages }
end

local function trace_text(r)
  local cells, before = { { "at", "took", "stage" } }, r.arrived
  for _, entry in ipairs(requests.timeline(r)) do
    cells[#cells + 1] = { ("%.3fms"):format((entry[2] - r.arrived) / 1e6),
      ("%.3fms"):format((entry[2] - before) / 1e6), entry[1] }
    before = entry[2]
  end
  local head = ("request %d   %s   %s%s, %d prompt tokens, %d choices"):format(
    r.number, r.id, r.kind, r.stream and ", streamed" or "", r.prompt_tokens, r.choices)
  local tail = r.ended and ("\n%s tokens, %s of the prompt cached, %d moves%s"):format(
    r.tokens or "no", r.cached or "none", r.moves, r.why and "; " .. r.why or "") or ""
  return head .. "\n" .. object.columns(cells, "  ") .. tail
end

local Request = object.class {
  name = "a request", doc = "one request; printed: each stage it went through",
  explain = trace_text, plain = request_plain,
  index = function(r, key) return request_plain(r)[key] end,
  names = function(r)
    local names = {}
    for name in pairs(request_plain(r)) do names[#names + 1] = name end
    return names
  end,
}

local function listing_of(list, foot, empty)
  local cells = { { "number", "id", "kind", "stage", "prompt", "out", "first", "total",
    "moves" } }
  local items = {}
  for i, r in ipairs(list) do
    cells[i + 1] = { tostring(r.number), short(r.id), r.kind,
      r.finish or r.stages[#r.stages - 1], tostring(r.prompt_tokens),
      tostring(r.tokens or "-"), seconds(requests.to_first(r)),
      seconds(requests.total(r)), tostring(r.moves) }
    items[i] = Request(r)
  end
  return object.listing { cells = cells, items = items, foot = foot, empty = empty }
end

local MOST_SHOWN = 200

local function first_of(list, n)
  local out = {}
  for i = 1, math.min(#list, n) do out[i] = list[i] end
  return out
end

function M.requests()
  local list = requests.live()
  local foot = #list > MOST_SHOWN
    and ("... %d more"):format(#list - MOST_SHOWN) or nil
  return listing_of(first_of(list, MOST_SHOWN), foot, "no request is under way")
end

-- The slowest of those that have ended: by time to the first token ("first") or in all.
function M.slow(n, by)
  if by ~= nil and by ~= "first" and by ~= "total" then
    error("slow(n, by): by is \"first\" (time to the first token) or \"total\"", 3)
  end
  local measure = by == "first" and requests.to_first or requests.total
  local list, times = requests.ended(), {}
  for _, r in ipairs(list) do times[r] = measure(r) or 0 end
  table.sort(list, function(a, b)
    if times[a] ~= times[b] then return times[a] > times[b] end
    return a.number < b.number
  end)
  n = tonumber(n) or 10
  local foot = ("of the last %d"):format(#list)
  return listing_of(first_of(list, n), foot, "no request has ended yet")
end

function M.trace(key)
  local r = requests.find(key)
  if not r then
    error(("no request '%s' among those under way and the last thousand")
      :format(tostring(key)), 3)
  end
  return Request(r)
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
  local s = steps.stats(w.engine)
  s.name, s.device, s.kernels = w.name, w.device, w.kernels
  return s
end

local function worker_text(w)
  local s = worker_plain(w)
  local head = ("%s   device %s, kernels %s\n"):format(w.name, w.device, w.kernels)
  return head .. object.columns({
    { "  sequences", ("%d running, %d waiting"):format(s.running, s.waiting) },
    { "  blocks", ("%d of %d in use, %d more hold a prefix"):format(s.blocks_used,
      s.blocks, s.blocks_cached) },
    { "  tokens", ("%d of prompts (%s cached), %d generated"):format(s.prompt_tokens,
      percent(s.cached_tokens, s.prompt_tokens), s.generation_tokens) },
    { "  steps", ("%d, %d preemptions; the last %s ago"):format(s.steps, s.preemptions,
      seconds(s.idle_s)) },
  })
end

local Worker = object.class {
  name = "w", doc = "a worker; w:steps() says where its time goes",
  methods = { steps = function(w, last) return Steps(steps.summary(w.engine, last)) end },
  index = function(w, key) return worker_plain(w)[key] end,
  explain = worker_text, plain = worker_plain,
  names = function(w)
    local names = { "steps(" }
    for name in pairs(worker_plain(w)) do
      if name ~= "steps" then names[#names + 1] = name end
    end
    return names
  end,
}

function M.workers(server)
  local cells, items = { { "worker", "running", "waiting", "blocks", "used", "steps",
    "tokens" } }, {}
  for i, w in ipairs(server:local_workers()) do
    local s = steps.stats(w.engine)
    items[i] = Worker(w)
    cells[i + 1] = { w.name, tostring(s.running), tostring(s.waiting),
      tostring(s.blocks), percent(s.blocks_used, s.blocks), tostring(s.steps),
      tostring(s.generation_tokens) }
  end
  return object.listing { cells = cells, items = items, empty = "no worker is here" }
end

function M.w(server, number)
  for _, w in ipairs(server:local_workers()) do
    if w.name == "worker/" .. tostring(number or 0) or w.name == number then
      return Worker(w)
    end
  end
  error(("no worker '%s' here"):format(tostring(number)), 3)
end

function M.blocks(server)
  local cells = { { "worker", "blocks", "used", "cached", "free", "prefix hits" } }
  local json = {}
  for i, w in ipairs(server:local_workers()) do
    local s = steps.stats(w.engine)
    local free = s.blocks - s.blocks_used - s.blocks_cached
    cells[i + 1] = { w.name, tostring(s.blocks), tostring(s.blocks_used),
      tostring(s.blocks_cached), tostring(free),
      percent(s.prefix_hits, s.prefix_queries) }
    json[i] = { worker = w.name, blocks = s.blocks, used = s.blocks_used,
      cached = s.blocks_cached, free = free, queries = s.prefix_queries,
      hits = s.prefix_hits }
  end
  return object.listing { cells = cells, items = json, json = json,
    foot = ("a block holds %d tokens; cached ones are free, but hold a prefix still")
      :format(server.recipe.worker.block_size) }
end

-- ---- metrics --------------------------------------------------------------------------

-- The series whose name holds this text: those of /metrics.
function M.metrics(server, text)
  local all, cells, json = server.metrics:render(), { { "value", "series" } }, {}
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
