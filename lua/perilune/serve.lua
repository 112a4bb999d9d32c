-- SPDX-License-Identifier: Apache-2.0
-- serve.lua - the life of one request, told in order.
--
-- A request that generates text is prepared (here, or in the pool when it is big), its
-- sequences are given to the engine, and their tokens flow from C to the client. Lua
-- comes back only for what is more than text, and for the end. When the client hangs up,
-- the io thread stops its sequences; each still ends here, with finish "abort".

local pl = require "perilune.ffi"
local answer = require "perilune.answer"
local flow = require "perilune.flow"
local json = require "perilune.json"
local log = require "perilune.log"
local logprobs = require "perilune.logprobs"
local buffer = require "string.buffer"
local prepare = require "perilune.prepare"
local requests = require "perilune.requests"
local C, ffi = pl.C, pl.ffi

local M = {}

local seq_ptr, job_ptr = ffi.typeof "pl_seq *", ffi.typeof "pl_job *"
local new_ids, new_end = ffi.typeof "int32_t[?]", ffi.typeof "pl_stream_end"
local len_out = ffi.new "size_t[1]"

-- Bodies from this size on are prepared in the pool: below it, it takes some 100 us.
local BIG = 16384

-- The plan for an exchange's body, or nil if the client went away meanwhile.
function M.plan(server, x, kind)
  local body = C.pl_exchange_body(x, len_out)
  local len = len_out[0]
  -- A template of the client's may take long, however small the request is.
  local small = len < BIG and not server.ctx.trust_request_chat_template
  if small or not server.has_pool then
    return prepare.run(server.ctx, kind, body, len)
  end
  local arg = kind .. "\n" .. server.ctx_blob
  local id = C.pl_job_push(server.rt, x, arg, #arg)
  if id < 0 then
    return { refused = { status = 503,
      message = "Too many large requests are waiting." } }
  end
  local job = ffi.cast(job_ptr, flow.await(id, "job").object)
  flow.forget(id, "job")
  local result = C.pl_job_result(job, len_out)
  local plan = buffer.decode(ffi.string(result, len_out[0]))
  C.pl_job_close(job)
  return plan
end

function M.refuse(x, refused)
  if refused.trace then log.error("request failed: " .. refused.trace) end
  local body = answer.error_body(refused.message, refused.status, refused.param)
  C.pl_exchange_reply(x, refused.status, "application/json", refused.headers or "",
    #(refused.headers or ""), body, #body)
end

local function write(x, text)
  C.pl_exchange_write(x, text, #text)
end

-- ---- one choice --------------------------------------------------------------------

local function mode_of(plan)
  if not plan.stream then return C.PL_STREAM_WHOLE end
  local more = plan.logprobs >= 0 or plan.return_ids or plan.continuous_usage
    or plan.only_echo
  return more and C.PL_STREAM_PIECES or C.PL_STREAM_SSE
end

local prime_ids = new_ids(prepare.PRIME)
local function prime(stream, ids)
  for i = 1, #ids do prime_ids[i - 1] = ids[i] end
  C.pl_stream_prime(stream, prime_ids, #ids)
end

-- Hands a choice's sequence to the engine; nil, message, name where it is refused.
local function start(server, x, job, choice)
  local plan = job.plan
  local stream = C.pl_stream_open(server.rt, server.ctx.text, mode_of(plan), x)
  C.pl_stream_flags(stream, plan.skip_special, plan.include_stop, server.stream_interval,
    plan.min_tokens)
  prime(stream, choice.prompt.prime)
  C.pl_stream_observe(stream, server.metrics.gap)
  local status = C.PL_OK
  for _, s in ipairs(plan.stop) do
    if status >= 0 then status = C.pl_stream_stop(stream, s, #s) end
  end
  local seq = ffi.cast(seq_ptr, choice.seq.address)
  if status >= 0 then status = C.pl_stream_start(stream, server.engine, seq) end
  if status < 0 then
    local _, why, name = pl.refusal(status)
    C.pl_stream_close(stream)
    C.pl_seq_close(seq)
    return nil, why, name
  end
  choice.stream, choice.id, choice.state = stream, C.pl_stream_id(stream), { offset = 0 }
  server.live[choice.id] = stream
  flow.listen(choice.id, "piece", "done")
  return true
end

-- The text and tokens that came since the last time; of an echo alone: no text.
local tokens_out, starts_out = ffi.new "const pl_token *[1]", ffi.new "const int32_t *[1]"
local function take(job, choice)
  local text = ffi.string(C.pl_stream_take(choice.stream, len_out), len_out[0])
  local n = C.pl_stream_tokens(choice.stream, tokens_out, starts_out)
  local tokens, plan = tokens_out[0], job.plan
  if plan.echo and plan.logprobs >= 0 and n > 0 and not choice.echoed
      and not job.answer.chat then
    logprobs.echo(job.answer, choice.state, choice.prompt, tokens)
    choice.echoed = true
  end
  if plan.only_echo then text = "" end
  return text, tokens, n
end

-- What a piece brings besides its text.
local function extras(job, choice, tokens, n)
  local plan, extra = job.plan, {}
  local shown = plan.only_echo and 0 or n
  extra.logprobs = n > 0 and job.answer:logprobs_of(choice.state, tokens, shown) or nil
  if plan.return_ids then
    extra.ids = {}
    for i = 1, shown do extra.ids[i] = tokens[i - 1].token end
    if not choice.told_prompt and not job.answer.chat then
      extra.prompt_ids, choice.told_prompt = choice.prompt.ids, true
    end
  end
  choice.n_out = (choice.n_out or 0) + shown
  if plan.continuous_usage then
    extra.usage = job.answer:usage(choice.prompt.n_tokens, choice.n_out)
  end
  return extra
end

-- Streams one choice to its end.
local function follow(job, x, choice)
  local result = new_end()
  while true do
    if flow.await(choice.id, "piece", "done").kind == "done" then break end
    local text, tokens, n = take(job, choice)
    write(x, job.answer:chunk(choice.index, text, extras(job, choice, tokens, n)))
  end
  C.pl_stream_result(choice.stream, result)
  choice.last = result
  local text, tokens, n = take(job, choice)
  if result.finish == C.PL_FINISH_ERROR then
    write(x, answer.error_event("Internal server error", 500))
  else
    write(x, job.answer:chunk(choice.index, text, extras(job, choice, tokens, n), result))
  end
end

-- Waits for one choice's end and keeps what its body needs.
local function gather(job, choice)
  local result = new_end()
  flow.await(choice.id, "done")
  C.pl_stream_result(choice.stream, result)
  choice.last = result
  local plan = job.plan
  local text, tokens, n = take(job, choice)
  if plan.echo then text = choice.prompt.text .. text end
  choice.text = text
  local shown = plan.only_echo and 0 or n
  choice.logprobs = job.answer:logprobs_of(choice.state, tokens, shown)
  choice.ids = {}
  for i = 1, shown do choice.ids[i] = tokens[i - 1].token end
  if plan.prompt_logprobs >= 0 and n > 0 then
    choice.prompt_logprobs = logprobs.prompt(job.answer, choice.prompt.n_tokens,
      tokens[0])
  end
end

-- ---- a request ---------------------------------------------------------------------

local function choices_of(plan)
  local list = {}
  for i, prompt in ipairs(plan.prompts) do
    for k, seq in ipairs(prompt.seqs) do
      list[#list + 1] = { index = (i - 1) * plan.n + k - 1, prompt = prompt, seq = seq }
    end
  end
  return list
end

local function close_from(choices, first)
  for i = first, #choices do
    C.pl_seq_close(ffi.cast(seq_ptr, choices[i].seq.address))
  end
end

local function close_streams(server, choices, n)
  for i = 1, n do
    server.live[choices[i].id] = nil
    C.pl_stream_close(choices[i].stream)
    flow.forget(choices[i].id, "piece", "done")
  end
end

-- Every choice under way, or none: those started before a refusal are cancelled.
local function start_all(server, x, job, choices)
  for i, choice in ipairs(choices) do
    if i % 64 == 0 then flow.sleep(0) end   -- the others first, now and then
    local ok, why, name = start(server, x, job, choice)
    if not ok then
      close_from(choices, i + 1)
      for k = 1, i - 1 do C.pl_stream_cancel(choices[k].stream) end
      for k = 1, i - 1 do flow.await(choices[k].id, "done") end
      close_streams(server, choices, i - 1)
      return nil, { status = name == "PL_ELIMIT" and 503 or 400, message = why }
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

local function follow_all(job, x, choices)
  local tasks = {}
  for i, choice in ipairs(choices) do tasks[i] = flow.spawn(follow, job, x, choice) end
  flow.join(tasks)
end

local function stream(server, x, job, choices)
  begin_stream(x, job, choices)
  if #choices == 1 then
    follow(job, x, choices[1])
  else
    follow_all(job, x, choices)
  end
  local last = answer.DONE
  if job.plan.include_usage or server.force_usage then
    local usage = job.answer:usage(totals(choices, job.plan))
    last = job.answer:usage_chunk(usage) .. last
  end
  write(x, last)
  C.pl_exchange_end(x)
end

local function whole(_, x, job, choices)
  for _, choice in ipairs(choices) do gather(job, choice) end
  for _, c in ipairs(choices) do
    if c.last.finish == C.PL_FINISH_ERROR then
      return M.refuse(x, { status = 500, message = "Internal server error" })
    end
  end
  local body = job.answer:body(choices, job.answer:usage(totals(choices, job.plan)))
  C.pl_exchange_reply(x, 200, "application/json", job.headers, #job.headers, body, #body)
end

-- Closes the streams; where something went wrong they are stopped first, so that nothing
-- goes on computing for nobody.
local function settle(server, choices)
  for _, c in ipairs(choices) do
    if not c.last then C.pl_stream_cancel(c.stream) end
  end
  for _, c in ipairs(choices) do
    if not c.last then flow.await(c.id, "done") end
  end
  close_streams(server, choices, #choices)
end

local function random_id()
  return bit.tohex(C.pl_entropy()) .. bit.tohex(C.pl_entropy())
end

-- An id may come from a client: as JSON it stays on its line.
local function log_request(job)
  local plan, tokens = job.plan, 0
  for _, prompt in ipairs(plan.prompts) do tokens = tokens + prompt.n_tokens end
  log.info("request %s: %s%s, %d prompts of %d tokens, n = %d",
    json.encode(job.answer.id), plan.kind, plan.stream and ", streamed" or "",
    #plan.prompts, tokens, plan.n)
end

-- /v1/chat/completions and /v1/completions. `headers`: CORS and the like, for the answer.
function M.generate(server, x, kind, headers)
  local arrived = C.pl_now_ns()
  local plan = M.plan(server, x, kind)
  if plan.refused then
    plan.refused.headers = headers
    return M.refuse(x, plan.refused)
  end
  local given = C.pl_exchange_header(x, "x-request-id")
  local id = given ~= nil and ffi.string(given) or plan.request_id or random_id()
  local job = { plan = plan, headers = headers, id = id, arrived = arrived,
    answer = answer.new(plan, server.ctx, id, server.name,
      math.floor(tonumber(C.pl_wall_ns()) / 1e9)) }
  if server.log_requests then log_request(job) end
  local choices = choices_of(plan)
  requests.begin(job)
  if server.stopping then
    close_from(choices, 1)
    requests.done(job, { finish = "refused", why = "the server is stopping" })
    return M.refuse(x, { status = 503, message = "The server is stopping.",
      headers = headers })
  end
  requests.note(job, "submitted")
  local ok, refused = start_all(server, x, job, choices)
  if not ok then
    refused.headers = headers
    requests.done(job, { finish = "refused", why = refused.message })
    return M.refuse(x, refused)
  end
  local give = plan.stream and stream or whole
  local answered, why = xpcall(give, debug.traceback, server, x, job, choices)
  settle(server, choices)
  if not answered then
    requests.done(job, { finish = "error", why = "a defect of perilune's" })
    error(why, 0)
  end
  requests.done(job, requests.outcome(choices, job.answer.FINISH))
  server.metrics:done(job, choices)
end

return M
