-- SPDX-License-Identifier: Apache-2.0
-- api/relay.lua - a request that another server answers, from its start to its end.
--
-- It has one choice, as far as we know: `n`, several prompts and all else are that
-- server's. Events go from C to C (core/relay.c). Lua comes back for the beginning, the
-- end, and the loss of the server, which fleet/moves.lua answers.

local pl = require "perilune.ffi"
local access_log = require "perilune.api.access_log"
local answer = require "perilune.api.answer"
local cjson = require "cjson.safe"
local cluster = require "perilune.fleet.cluster"
local flow = require "perilune.flow"
local moves = require "perilune.fleet.moves"
local names = require "perilune.fleet.upstream_names"
local C, ffi = pl.C, pl.ffi

local M = {}

local new_end, seq_ptr = ffi.typeof "pl_stream_end", ffi.typeof "pl_seq *"
local len_out, n_prompt = ffi.new "size_t[1]", ffi.new "int32_t[1]"

local CANCELLED = { status = 499, message = "The request was cancelled.",
  cancelled = true }

-- ---- what the server has said -------------------------------------------------------

local function header(choice, name)
  local v = C.pl_relay_header(choice.relay, name)
  return v ~= nil and ffi.string(v) or nil
end

local function body_of(choice)
  local body = C.pl_relay_body(choice.relay, len_out)
  return ffi.string(body, len_out[0])
end

local function is_json(choice)
  local kind = header(choice, "content-type") or ""
  return kind:lower():find "^application/[%w.+-]*json" ~= nil
end

-- What an error's body says, in a few words.
local function message_of(body)
  local doc = cjson.decode(body)
  local e = type(doc) == "table" and (doc.error or doc.message or doc.detail)
  if type(e) == "table" then e = e.message end
  return type(e) == "string" and e or (body:sub(1, 200):gsub("%c+", " "))
end

-- A refusal of ours because of what the server answered.
local function bad_gateway(choice, fmt, ...)
  return { status = 502, message = ("%s %s"):format(choice.worker_name, fmt:format(...)) }
end

local function retry_after(choice)
  local seconds = header(choice, "retry-after")
  return seconds and #seconds < 64 and "Retry-After: " .. seconds .. "\r\n" or nil
end

-- A whole answer that is none: what to say of it; nil: it is one. The server's own words
-- go to the client if they are JSON.
local function refusal_of(job, choice)
  local status = C.pl_relay_status(choice.relay)
  if status >= 300 and status < 400 then
    return bad_gateway(choice, "answered %d, a redirection, which is not followed",
      status)
  elseif status >= 400 then
    local body = body_of(choice)
    return { status = status, message = is_json(choice) and message_of(body)
      or ("%s answered %d: %s"):format(choice.worker_name, status, message_of(body)),
      body = is_json(choice) and body or nil, headers = retry_after(choice) }
  elseif status ~= 200 or job.plan.stream or not is_json(choice) then
    return bad_gateway(choice, "answered %d with %s, wanted %s", status,
      header(choice, "content-type") or "no content type",
      job.plan.stream and "a stream of events" or "JSON")
  end
end

-- Who is full or on the way out says so with these; who stands before one that is gone,
-- with those.
local FULL = { [429] = true, [503] = true }
local GONE = { [502] = true, [504] = true }

local WHY = { [C.PL_ETIMEOUT] = C.PL_LOST_SILENT, [C.PL_EIO] = C.PL_LOST_RESET,
  [C.PL_EFORMAT] = C.PL_LOST_RESET }

-- How its server was lost, as fleet/moves.lua takes it; nil: it was not.
local function loss_of(choice, ev)
  local status = C.pl_relay_status(choice.relay)
  if ev.a == 0 then
    if FULL[status] then return { a = C.PL_LOST_REFUSED, b = C.PL_ELIMIT } end
    return GONE[status] and { a = C.PL_LOST_RESET, b = 0 } or nil
  end
  if not WHY[ev.a] then return nil end
  if ev.b ~= 0 then return { a = WHY[ev.a], b = 0 } end
  cluster.suspect(choice.worker)            -- it was not even reached
  return { a = C.PL_LOST_REFUSED, b = C.PL_EIO }
end

-- ---- hearing ------------------------------------------------------------------------

local function over(job)
  return job.over and job.over.status and job.over or CANCELLED
end

-- What it failed by, where that is for the client to know.
local function why_failed(choice, ev)
  if ev.a >= 0 then return nil end
  return bad_gateway(choice, "failed: %s", ffi.string(C.pl_relay_why(choice.relay)))
end

-- The next that is heard of the answer, after as many moves as it takes: "answer", its
-- events have begun; "answered", it is all there; or nil and the refusal.
local function hear(server, job, choice)
  while choice.worker do
    local ev = flow.await(choice.id, "answer", "answered")
    if ev.kind == "answer" then
      choice.streams = true
      return "answer"
    end
    choice.heard_end = true
    if ev.a == C.PL_ECANCELED then return nil, over(job) end
    local lost = loss_of(choice, ev)
    if not lost then
      local refused = why_failed(choice, ev)
      if refused then return nil, refused end
      return "answered"
    end
    local said = ev.a == 0 and refusal_of(job, choice) or nil
    choice.heard_end, choice.streams = false, false
    local ok, refused = moves.move(server, job, choice, lost)
    choice.heard_end = not ok or not choice.worker
    if not ok then return nil, refused.cancelled and refused or said or refused end
  end
  return nil, over(job)                     -- it was over before anybody had it
end

-- ---- a request ----------------------------------------------------------------------

local function open(server, x, job, choice)
  local plan = job.plan
  local relay = C.pl_relay_open(server.rt, x)
  local recipe = server.recipe
  local may_move = recipe.migrate ~= nil or recipe.migration_limit > 0
  C.pl_relay_flags(relay, not plan.include_usage, plan.stream and may_move,
    choice.prompt.n_tokens)
  C.pl_relay_observe(relay, server.metrics:gap(job))
  choice.relay, choice.id = relay, C.pl_relay_id(relay)
  flow.listen(choice.id, "answer", "answered")
end

local function drop(choice)
  if not choice.seq then return end
  C.pl_seq_close(ffi.cast(seq_ptr, choice.seq))
  choice.seq = nil
end

local function close(choice)
  moves.left(choice)
  drop(choice)
  C.pl_relay_close(choice.relay)
  choice.relay = nil
  flow.forget(choice.id, "answer", "answered")
end

-- How it ended, as api/choice.lua has it.
local function ended(choice, refused)
  local last = new_end()
  C.pl_relay_result(choice.relay, last, n_prompt)
  choice.prompt.n_tokens = n_prompt[0]
  if refused then
    last.finish = refused.cancelled and C.PL_FINISH_ABORT or C.PL_FINISH_ERROR
  elseif last.finish == C.PL_FINISH_NONE then
    last.finish = C.PL_FINISH_STOP
  end
  choice.last = last
  if not refused and choice.worker then names.check(choice.worker, choice) end
  moves.left(choice)
end

-- The request's one choice is answered by a server, or its answer begins; nil and the
-- refusal.
function M.start(server, x, job, choices)
  local choice = choices[1]
  if job.plan.unnamed then
    job.log:debug("goes by load alone: %s", job.plan.unnamed)
  end
  open(server, x, job, choice)
  local ok, refused = moves.place(server, job, choice)
  if ok then ok, refused = hear(server, job, choice) end
  if ok and not choice.streams then
    refused = refusal_of(job, choice)
    ok = not refused
  elseif ok and not job.plan.stream then
    ok, refused = nil, bad_gateway(choice,
      "answered with a stream of events, wanted JSON")
  end
  if ok then return true end
  close(choice)
  return nil, refused
end

local function write(x, text)
  C.pl_exchange_write(x, text, #text)
end

-- How a stream ends that its server has not ended.
local function end_stream(x, job, choice, refused)
  access_log.refused(x, refused.message)
  if refused.cancelled then
    write(x, job.answer:chunk(choice.index, "", {}, choice.last))
  else
    write(x, answer.error_event(refused.message, refused.status))
  end
end

function M.stream(server, x, job, choices)
  local choice = choices[1]
  C.pl_exchange_begin(x, 200, "text/event-stream; charset=utf-8", job.headers,
    #job.headers)
  C.pl_relay_go(choice.relay)
  local heard, refused = hear(server, job, choice)
  while heard == "answer" do heard, refused = hear(server, job, choice) end
  if heard and not choice.streams then      -- said by one that was to go on
    refused = refusal_of(job, choice)
  end
  ended(choice, refused)
  choice.refused = refused and not refused.cancelled and refused or nil
  access_log.served(x, choices, choice.prompt.n_tokens, choice.last.n_tokens)
  if refused then end_stream(x, job, choice, refused) end
  write(x, answer.DONE)
  C.pl_exchange_end(x)
end

local FINISH = { length = C.PL_FINISH_LENGTH, abort = C.PL_FINISH_ABORT,
  error = C.PL_FINISH_ERROR }

local function number(t, name)
  local v = type(t) == "table" and t[name]
  return type(v) == "number" and v >= 0 and v < 2 ^ 31 and v or 0
end

-- Of an answer that is not streamed only its whole is known.
local function read_whole(choice, body)
  local doc, last = cjson.decode(body), choice.last
  local usage = type(doc) == "table" and doc.usage
  local list = type(doc) == "table" and type(doc.choices) == "table" and doc.choices or {}
  local reason = type(list[1]) == "table" and list[1].finish_reason
  last.finish = FINISH[reason] or C.PL_FINISH_STOP
  last.n_tokens = number(usage, "completion_tokens")
  last.n_cached = number(type(usage) == "table" and usage.prompt_tokens_details,
    "cached_tokens")
  last.first_ns, last.last_ns = C.pl_now_ns(), C.pl_now_ns()
  local n = number(usage, "prompt_tokens")
  if n > 0 then choice.prompt.n_tokens = n end
end

function M.whole(_, x, job, choices)
  local choice = choices[1]
  local body = body_of(choice)
  ended(choice)
  read_whole(choice, body)
  access_log.served(x, choices, choice.prompt.n_tokens, choice.last.n_tokens)
  C.pl_exchange_reply(x, 200, "application/json", job.headers, #job.headers, body, #body)
end

-- Gives back what it holds; where something went wrong it is stopped first.
function M.settle(_, choices)
  local choice = choices[1]
  if not choice.heard_end then
    C.pl_relay_cancel(choice.relay)
    local ev = flow.await(choice.id, "answered", "answer")
    while ev.kind == "answer" do ev = flow.await(choice.id, "answered", "answer") end
  end
  if not choice.last then ended(choice, CANCELLED) end
  close(choice)
end

-- The process closes, and no task goes on with it.
function M.abandon(choice)
  drop(choice)
  if choice.relay then C.pl_relay_close(choice.relay) end
  choice.relay = nil
end

return M
