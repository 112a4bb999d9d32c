-- SPDX-License-Identifier: Apache-2.0
-- watch/requests.lua - what became of each request: those under way, and the last
-- thousand.
--
--     requests.begin(job)             it is understood and has an id
--     requests.note(job, "sent to worker/0") it got to a stage
--     requests.done(job, result)      it ended; `result` as `outcome` makes it
--
-- Times are of pl_now_ns. A record costs a request a table and a line per stage.

local pl = require "perilune.ffi"
local new_table = require "table.new"
local C, ffi = pl.C, pl.ffi

local M = {}

local KEPT = 1000

local live, n_live = {}, 0                  -- number -> record
local ring, last = {}, 0                    -- the ended ones; `last`: the newest number

local function now()
  return (tonumber(C.pl_now_ns()))
end

-- `job`: id, plan (kind, stream, prompts), arrived. Fields of a record: number, id, kind,
-- stream, arrived, prompt_tokens, choices, moves, stages = { name, ns, name, ns ... }.
function M.begin(job)
  local plan, tokens, choices = job.plan, 0, 0
  for _, prompt in ipairs(plan.prompts) do
    tokens = tokens + prompt.n_tokens
    choices = choices + #prompt.seqs
  end
  last = last + 1
  local record = new_table(0, 24)           -- `done` adds as many fields again
  record.number, record.id = last, job.answer and job.answer.id or job.id
  record.kind, record.stream = plan.kind, plan.stream
  record.arrived, record.stages = tonumber(job.arrived), { "prepared", now() }
  record.prompt_tokens, record.choices, record.moves = tokens, choices, 0
  record.under_way = job.choices or {}
  job.record = record
  live[last], n_live = record, n_live + 1
end

-- "sent to worker/0", "moved to worker/1 (worker/0: gone)": a move is counted too. `ns`:
-- when, if not now. The same stage again is counted at its first time.
function M.note(job, stage, ns)
  local record = job.record
  if not record then return end
  local stages = record.stages
  if stage:sub(1, 5) == "moved" then record.moves = record.moves + 1 end
  for i = 1, #stages, 2 do
    if stages[i] == stage then              -- of many choices each comes here
      record.again = record.again or {}
      record.again[stage] = (record.again[stage] or 1) + 1
      return
    end
  end
  stages[#stages + 1], stages[#stages + 2] = stage, ns and tonumber(ns) or now()
end

local progress, n_prompt = ffi.new "pl_stream_end", ffi.new "int32_t[1]"

-- How far a choice has come, or how it ended: a pl_stream_end, good until the next call;
-- nil: no worker ever took it.
function M.so_far(choice)
  if choice.last then return choice.last end
  if choice.relay then
    C.pl_relay_result(choice.relay, progress, n_prompt)
    return progress
  end
  if not choice.stream then return nil end
  C.pl_stream_result(choice.stream, progress)
  return progress
end

-- What a request's choices have come to: tokens of all, the most that one had cached,
-- when the first was scheduled and got its first token, when the last token came. Of
-- several ways to end the worst counts.
function M.outcome(choices, finish_names)
  local tokens, cached, finish = 0, 0, C.PL_FINISH_NONE
  local scheduled, first, latest = math.huge, math.huge, 0
  for _, choice in ipairs(choices) do
    local e = M.so_far(choice)
    if e then
      tokens, cached = tokens + e.n_tokens, math.max(cached, e.n_cached)
      finish = math.max(finish, e.finish)
      local at = tonumber(e.scheduled_ns)
      if at > 0 then scheduled = math.min(scheduled, at) end
      if e.n_tokens > 0 then
        first = math.min(first, tonumber(e.first_ns))
        latest = math.max(latest, tonumber(e.last_ns))
      end
    end
  end
  return { tokens = tokens, cached = cached, finish = finish_names[finish],
    last = latest, scheduled = scheduled < math.huge and scheduled or nil,
    first = first < math.huge and first or nil }
end

-- `result`: finish, and where they are known why, tokens, cached, scheduled, first, last.
function M.done(job, result)
  local record = job.record
  if not record or record.ended then return end
  record.ended, record.under_way = now(), nil
  record.finish, record.why = result.finish, result.why
  record.tokens, record.cached = result.tokens, result.cached
  record.scheduled, record.first, record.last = result.scheduled, result.first,
    result.last
  live[record.number], n_live = nil, n_live - 1
  ring[record.number % KEPT + 1] = record
end

function M.count()
  return n_live
end

-- ---- under way ----------------------------------------------------------------------

-- Where one choice is (api/choice.lua, fleet/moves.lua keep its fields).
local function stage_of(choice)
  if not choice.worker then
    local lost = choice.lost and (" (%s)"):format(choice.lost) or ""
    return (choice.waits or "waits for a worker") .. lost
  end
  local e, sent = M.so_far(choice), choice.sent_ns
  local name = choice.worker_name
  if e.n_tokens > 0 and e.last_ns >= sent then return "decoding at " .. name end
  if e.n_tokens > 0 then return "prefill again at " .. name end
  return (e.scheduled_ns > 0 and "prefill at " or "sent to ")
    .. (choice.reader_name or name)
end

local NO_NAMES = {}

-- Brings a record under way up to now: tokens, scheduled, first, last as `done` has them,
-- and `stage`, where it is: of several choices, where the first is that has not ended.
local function look(record)
  if not record.under_way then return record end
  for name, value in pairs(M.outcome(record.under_way, NO_NAMES)) do
    record[name] = value
  end
  record.stage = nil
  for _, choice in ipairs(record.under_way) do
    if not choice.last then record.stage = record.stage or stage_of(choice) end
  end
  record.stage = record.stage or record.stages[#record.stages - 1]
  return record
end

local function by_number(a, b) return a.number < b.number end

-- Those under way, oldest first.
function M.live()
  local out = {}
  for _, record in pairs(live) do out[#out + 1] = look(record) end
  table.sort(out, by_number)
  return out
end

-- Those that have ended, oldest first.
function M.ended()
  local out = {}
  for _, record in pairs(ring) do out[#out + 1] = record end
  table.sort(out, by_number)
  return out
end

-- By its number, its answer's id or how that begins, or the id that logs have.
function M.find(key)
  local found
  for _, list in ipairs { M.ended(), M.live() } do
    for _, record in ipairs(list) do
      if record.number == key or record.id == key or record.id:match "%-(.+)" == key then
        return record
      end
      if type(key) == "string" and record.id:sub(1, #key) == key then found = record end
    end
  end
  return key ~= "" and found or nil
end

-- Seconds, of a record: to its first token, to its end or until now; nil: not yet.
function M.to_first(record)
  return record.first and (record.first - record.arrived) / 1e9
end

function M.total(record)
  return ((record.ended or now()) - record.arrived) / 1e9
end

-- All that happened to it: a list of { name, ns }, in order of time.
function M.timeline(record)
  look(record)
  local out = { { "arrived", record.arrived } }
  for i = 1, #record.stages, 2 do
    local name = record.stages[i]
    local times = record.again and record.again[name] or 1
    if times > 1 then name = ("%s, %d times"):format(name, times) end
    out[#out + 1] = { name, record.stages[i + 1] }
  end
  local function add(name, ns)
    if ns and ns > 0 then out[#out + 1] = { name, ns } end
  end
  add("scheduled", record.scheduled)
  add("first token", record.first)
  if record.ended then
    add("last token", record.last)
    add("ended: " .. tostring(record.finish), record.ended)
  else
    add("now: " .. record.stage, now())
  end
  for i, entry in ipairs(out) do entry[3] = i end
  table.sort(out, function(a, b)
    if a[2] ~= b[2] then return a[2] < b[2] end
    return a[3] < b[3]
  end)
  return out
end

return M
