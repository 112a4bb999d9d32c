-- SPDX-License-Identifier: Apache-2.0
-- console/requests.lua - the requests that the console shows: those of this process's
-- clients, or, in a worker, the sequences that frontends have sent.

local object = require "perilune.console.object"
local pl = require "perilune.ffi"
local requests = require "perilune.watch.requests"
local C, ffi = pl.C, pl.ffi

local M = {}

local function short(id)
  return #id > 24 and id:sub(1, 21) .. "..." or id
end

local function request_plain(r)
  local stages = {}                         -- never empty: it arrived
  for i, entry in ipairs(requests.timeline(r)) do
    stages[i] = { stage = entry[1], ms = (entry[2] - r.arrived) / 1e6 }
  end
  return { number = r.number, id = r.id, kind = r.kind, stream = r.stream == true,
    prompt_tokens = r.prompt_tokens, choices = r.choices, tokens = r.tokens,
    cached = r.cached, moves = r.moves, stage = r.stage, finish = r.finish,
    why = r.why, to_first = requests.to_first(r), total = requests.total(r),
    stages = stages }
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
  local tail = ("\n%s tokens%s, %s of the prompt cached, %d moves%s"):format(
    r.tokens or "no", r.ended and "" or " so far", r.cached or "none", r.moves,
    r.why and "; " .. r.why or "")
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
      r.finish or r.stage, tostring(r.prompt_tokens),
      tostring(r.tokens or "-"), object.seconds(requests.to_first(r)),
      object.seconds(requests.total(r)), tostring(r.moves) }
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

-- ---- at a worker --------------------------------------------------------------------

local MOST_SEQUENCES = 4096
local infos

local function stage_of(s)
  if s.stage == C.PL_SEQ_ANSWERING then return "decoding" end
  if s.stage == C.PL_SEQ_REMOTE then return "waits for its KV from elsewhere" end
  if s.stage == C.PL_SEQ_IN_LINE then
    return s.first_ns > 0 and "waits again, preempted" or "waits in line"
  end
  return ("prefill, %d read"):format(s.stage)
end

local function since(from, to)
  return to > 0 and tonumber(to - from) / 1e9 or nil
end

local function sequence(s)
  return { number = s.seq, id = ffi.string(s.label), stage = stage_of(s),
    prompt_tokens = s.n_prompt, tokens = s.n_tokens,
    to_first = since(s.since_ns, s.first_ns), total = since(s.since_ns, C.pl_now_ns()) }
end

-- The sequences of a process's engines, those that came first first, and how many more
-- there are.
local function sequences(process)
  infos = infos or ffi.new("pl_seq_info[?]", MOST_SEQUENCES)
  local out, more = {}, 0
  for _, e in ipairs(process.w and process.w.engines or {}) do
    local n = C.pl_engine_seqs(e.engine, infos, MOST_SEQUENCES)
    for i = 0, math.min(n, MOST_SEQUENCES) - 1 do out[#out + 1] = sequence(infos[i]) end
    more = more + math.max(0, n - MOST_SEQUENCES)
  end
  table.sort(out, function(a, b) return a.total > b.total end)
  return out, more
end

local Sequence = object.class {
  name = "a sequence", doc = "one choice of a request, as this worker has it",
  explain = function(s)
    return ("sequence %d of request %s   %s\n  %d prompt tokens, %d made; "
      .. "the first after %s, here for %s"):format(s.number, s.id, s.stage,
      s.prompt_tokens, s.tokens, object.seconds(s.to_first),
      object.seconds(s.total))
  end,
  plain = function(s) return s end, index = function(s, key) return s[key] end,
  names = function(s)
    local names = {}
    for name in pairs(s) do names[#names + 1] = name end
    return names
  end,
}

local function sequence_list(process)
  local list, more = sequences(process)
  local cells, items = { { "number", "id", "stage", "prompt", "out", "first",
    "total" } }, {}
  for i = 1, math.min(#list, MOST_SHOWN) do
    local s = list[i]
    items[i] = Sequence(s)
    cells[i + 1] = { tostring(s.number), short(s.id), s.stage, tostring(s.prompt_tokens),
      tostring(s.tokens), object.seconds(s.to_first), object.seconds(s.total) }
  end
  more = more + #list - #items
  return object.listing { cells = cells, items = items,
    foot = more > 0 and ("... %d more"):format(more) or nil,
    empty = "no sequence is here" }
end

-- Those under way.
function M.requests(process)
  if not process.server then return sequence_list(process) end
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

return M
