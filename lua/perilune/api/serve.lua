-- SPDX-License-Identifier: Apache-2.0
-- api/serve.lua - the life of one request, told in order.
--
-- A request that generates text is prepared (here, or in the pool when it is big), each
-- of its choices is given to a worker (fleet/moves.lua) and followed to its end
-- (api/choice.lua). When the client hangs up, the io thread stops its sequences; each
-- still ends here, with finish "abort". What else ends a request early, its time limit or
-- a cancel, sets job.over and cancels its streams.

local pl = require "perilune.ffi"
local access_log = require "perilune.api.access_log"
local answer = require "perilune.api.answer"
local choice_of = require "perilune.api.choice"
local counters = require "perilune.fleet.counters"
local fields = require "perilune.api.fields"
local flow = require "perilune.flow"
local identity = require "perilune.api.identity"
local job_of = require "perilune.api.job"
local log = require "perilune.log"
local buffer = require "string.buffer"
local overload = require "perilune.fleet.overload"
local prepare = require "perilune.api.prepare"
local relay = require "perilune.api.relay"
local requests = require "perilune.watch.requests"
local health_routes = require "perilune.api.health_routes"
local waits = require "perilune.watch.waits"
local C, ffi = pl.C, pl.ffi

local M = {}

local task_ptr = ffi.typeof "pl_task *"
local len_out = ffi.new "size_t[1]"

-- Bodies from this size on are prepared in the pool: below it, it takes some 100 us.
local BIG = 16384

-- The plan for an exchange's body, made in the pool.
local function pooled(server, x, kind, who)
  local arg = kind .. "\n" .. server.models.blob
  local id = C.pl_task_push(server.rt, x, arg, #arg)
  if id < 0 then
    return { refused = { status = 503,
      message = "Too many large requests are waiting." } }
  end
  local wait = waits.begin(server, who.log, ("to be prepared (%s)"):format(
    ffi.string(C.pl_exchange_peer(x))))
  local task = ffi.cast(task_ptr, flow.await(id, "task").object)
  waits.done(server, wait)
  flow.forget(id, "task")
  local result = C.pl_task_result(task, len_out)
  local plan = buffer.decode(ffi.string(result, len_out[0]))
  C.pl_task_close(task)
  return plan
end

-- The plan for an exchange's body. `who`: api/identity.lua's.
function M.plan(server, x, kind, who)
  local body = C.pl_exchange_body(x, len_out)
  local len = len_out[0]
  -- A template of the client's may take long, however small the request is.
  local small = len < BIG and not server.recipe.http.trust_request_chat_template
  local plan = (small or not server.has_pool)
    and prepare.run(server.models.contexts, kind, body, len)
    or pooled(server, x, kind, who)
  if plan.idle then fields.tell(plan.idle, kind, who.log) end
  return plan
end

-- Says no: `refused` is status, message and perhaps param, headers, trace, and reason:
-- what the log says instead of the message.
function M.refuse(x, refused, headers)
  if refused.trace then log.error("request failed: " .. refused.trace) end
  local body = refused.body
    or answer.error_body(refused.message, refused.status, refused.param)
  access_log.refused(x, refused.reason or refused.message)
  health_routes.reply(x, refused.status, body, (refused.headers or "") .. (headers or ""))
end

local function write(x, text)
  C.pl_exchange_write(x, text, #text)
end

-- ---- a request ---------------------------------------------------------------------

local function drop_from(choices, first)
  for i = first, #choices do choice_of.drop(choices[i]) end
end

-- Every choice under way, or none: those started before a refusal are cancelled.
local function start_all(server, x, job, choices)
  for i, choice in ipairs(choices) do
    if i % 64 == 0 then flow.sleep(0) end   -- the others first, now and then
    local ok, refused = choice_of.start(server, x, job, choice)
    if not ok then
      drop_from(choices, i + 1)
      for k = 1, i - 1 do C.pl_stream_cancel(choices[k].stream) end
      for k = 1, i - 1 do
        choice_of.settle(choices[k])
        choice_of.close(server, choices[k])
      end
      return nil, refused
    end
  end
  return true
end

local function totals(choices, plan)
  local n_prompt, n_out, cached = 0, 0, 0
  for i, c in ipairs(choices) do
    if (i - 1) % plan.n == 0 then
      n_prompt = n_prompt + c.prompt.n_tokens
      cached = cached + c.last.n_cached
    end
    n_out = n_out + (plan.only_echo and 0 or c.last.n_tokens)
  end
  return n_prompt, n_out, cached
end

-- What stands before a choice's pieces.
local function opening(job, c)
  local plan, reply = job.plan, job.answer
  if not reply.chat then
    return plan.echo and reply:chunk(c.index, c.prompt.text, {}) or ""
  end
  local usage = plan.continuous_usage and reply:usage(c.prompt.n_tokens, 0)
  local text = reply:first_chunk(c.index, c.prompt, usage)
  if plan.echo and plan.echo_content ~= "" then
    text = text .. reply:chunk(c.index, plan.echo_content, {})
  end
  return text
end

-- The answer begins; then, and not before, C may write the pieces.
local function begin_stream(x, job, choices)
  C.pl_exchange_begin(x, 200, "text/event-stream; charset=utf-8", job.headers,
    #job.headers)
  for _, c in ipairs(choices) do write(x, opening(job, c)) end
  for _, c in ipairs(choices) do
    local before, after = job.answer:frame(c.index)
    C.pl_stream_frame(c.stream, before, #before, after, #after)
  end
end

-- Does something with all choices at once, for each may have to move. No closures: this
-- is every request's path.
local function with_all(each, server, job, x)
  local choices = job.choices
  if #choices == 1 then return each(server, job, x, choices[1]) end
  local tasks = {}
  for i, choice in ipairs(choices) do
    tasks[i] = flow.spawn(each, server, job, x, choice)
  end
  flow.join(tasks)
end

-- What went wrong with one of them, or nil.
local function refused_of(choices)
  for _, c in ipairs(choices) do
    if c.refused then return c.refused end
  end
end

local function stream(server, x, job, choices)
  begin_stream(x, job, choices)
  with_all(choice_of.follow, server, job, x)
  local last = answer.DONE
  local n_prompt, n_out, cached = totals(choices, job.plan)
  if job.plan.include_usage or server.force_usage then
    last = job.answer:usage_chunk(job.answer:usage(n_prompt, n_out, cached)) .. last
  end
  access_log.served(x, choices, n_prompt, n_out)
  local refused = refused_of(choices)
  if refused then access_log.refused(x, refused.message) end
  write(x, last)
  C.pl_exchange_end(x)
end

local function whole(server, x, job, choices)
  with_all(choice_of.gather, server, job, x)
  local refused = refused_of(choices)
  local n_prompt, n_out, cached = totals(choices, job.plan)
  access_log.served(x, choices, n_prompt, n_out)
  if refused then return M.refuse(x, refused, job.headers) end
  local body = job.answer:body(choices, job.answer:usage(n_prompt, n_out, cached))
  C.pl_exchange_reply(x, 200, "application/json", job.headers, #job.headers, body, #body)
end

local function stop(choice)
  if not choice.last then C.pl_stream_cancel(choice.stream) end
end

local function close(choice, server)
  if not choice.last then choice_of.settle(choice) end
  choice_of.close(server, choice)
end

-- Closes the streams; where something went wrong they are stopped first, so that nothing
-- goes on computing for nobody. The first by itself: most requests have no other, and
-- LuaJIT compiles no function whose loop it has compiled before.
local function settle(server, choices)
  stop(choices[1])
  for i = 2, #choices do stop(choices[i]) end
  close(choices[1], server)
  for i = 2, #choices do close(choices[i], server) end
end

-- Who answers a request: engines, or other servers (api/relay.lua).
local ENGINES = { start = start_all, stream = stream, whole = whole, settle = settle,
  abandon = choice_of.abandon }

local function way_of(job)
  return job.served.ctx.upstream and relay or ENGINES
end

local function log_request(job)
  local plan, tokens = job.plan, 0
  for _, prompt in ipairs(plan.prompts) do tokens = tokens + prompt.n_tokens end
  job.log:info("request %s: %s%s, %d prompts of %d tokens, n = %d",
    job.answer.id, plan.kind, plan.stream and ", streamed" or "",
    #plan.prompts, tokens, plan.n)
end

-- Why the request may not come in; nil: it may.
local function refusal(server, job)
  if server.stopping then
    return { status = 503, message = "The server is stopping." }
  end
  if server.process.state ~= "ready" then
    return { status = 503, message = "The server is draining." }
  end
  if server.may_overload then
    local no = overload.check(server, counters.of(job.served))
    if no then return no end
  end
  return job:admit(server)
end

local TOO_LATE = { status = 504, message = "The request has taken too long." }

-- Seconds that the request may take, by its header or the recipe; nil: any.
local function time_limit(server, x)
  local given = C.pl_exchange_header(x, "x-request-timeout")
  local limit = given ~= nil and tonumber(ffi.string(given)) or 0
  if limit > 0 then return limit end
  limit = server.recipe.http.request_timeout
  return limit > 0 and limit or nil
end

-- Why it was ended before its time.
local function why_over(job)
  return job.over and (job.over.message or "cancelled") or "client disconnected"
end

local function log_end(job)
  job.log:info("Aborted Request ID: %s (%s)", job.id, why_over(job))
end

-- Says no to a job that was taken on; what became of it.
local function turn_away(server, x, job, refused)
  server.metrics:refused(job, refused.status, refused.error_type)
  if refused.cancelled then
    server.metrics:cancelled(job, not job.over)
    log_end(job)
  end
  M.refuse(x, refused, job.headers)
  return job:outcome(refused.cancelled and "abort" or "refused", refused.message)
end

-- Why its choices did not all end as they would have by themselves; nil: they did.
local function why_ended(job)
  local refused = refused_of(job.choices)
  if refused then return refused.message end
  for _, c in ipairs(job.choices) do
    if c.last.finish == C.PL_FINISH_ABORT then return why_over(job) end
  end
end

-- Answers a request; what became of it. (No tail call: LuaJIT does not compile a function
-- that would return to a protected call.)
local function answer_job(server, x, job)
  local no = refusal(server, job)
  if no then
    drop_from(job.choices, 1)
    return turn_away(server, x, job, no)
  end
  if server.recorder then job.recorded = server.recorder:note(job) end
  local way = way_of(job)
  local ok, refused = way.start(server, x, job, job.choices)
  if not ok then return turn_away(server, x, job, refused) end
  local first = job.choices[1]
  if first.sent_ns then
    requests.note(job, "sent to " .. first.worker_name, first.sent_ns)
  end
  local give = job.plan.stream and way.stream or way.whole
  local answered, why = xpcall(give, debug.traceback, server, x, job, job.choices)
  way.settle(server, job.choices)
  if not answered then
    server.metrics:refused(job, 500)
    error(why, 0)
  end
  if server.metrics:done(job, job.choices) == "cancelled" then log_end(job) end
  local result = job:outcome(nil, why_ended(job))
  return result
end

-- The request has ended, one way or the other.
local function close_job(server, job, result)
  job.ended = true
  if job.recorded then server.recorder:write(job.recorded, job) end
  requests.done(job, result)
  job:tell_done(server, result)
end

-- Ends requests that nobody will go on with: the process closes, and the tasks that would
-- have given back what they hold have been dropped.
function M.abandon(server)
  for _, job in pairs(server.jobs) do
    close_job(server, job, job:outcome("abort", "the process ended"))
    for _, choice in ipairs(job.choices) do way_of(job).abandon(choice) end
  end
end

-- /v1/chat/completions and /v1/completions. `headers`: CORS and the like, for the answer;
-- `who`: api/identity.lua's.
function M.generate(server, x, kind, headers, who)
  local arrived = C.pl_now_ns()
  local plan = M.plan(server, x, kind, who)
  if plan.refused then
    identity.settle(who, x)
    server.metrics:refused({ plan = { kind = kind }, model = plan.refused.model_key },
      plan.refused.status)
    return M.refuse(x, plan.refused, headers)
  end
  local job = job_of.new(server, x, plan, arrived, headers, who)
  server.metrics:started(job)
  requests.begin(job)
  if server.log_requests then log_request(job) end
  local limit = time_limit(server, x)
  if limit then server:set_deadline(job, arrived, limit, TOO_LATE) end
  local id = C.pl_exchange_id(x)
  server.jobs[id] = job
  local ok, result = xpcall(answer_job, debug.traceback, server, x, job)
  server.jobs[id] = nil
  server:clear_deadline(job)
  close_job(server, job, ok and result or job:outcome("error", "internal error"))
  if not ok then error(result, 0) end
end

return M
