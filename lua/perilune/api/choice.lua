-- SPDX-License-Identifier: Apache-2.0
-- api/choice.lua - one choice of a request: its stream from the start to the end.
--
-- The tokens flow from C to the client; Lua comes back for what is more than text, for
-- the loss of the worker, and for the end.

local pl = require "perilune.ffi"
local answer = require "perilune.api.answer"
local decisions = require "perilune.fleet.decisions"
local flow = require "perilune.flow"
local logprobs = require "perilune.api.logprobs"
local moves = require "perilune.fleet.moves"
local C, ffi = pl.C, pl.ffi

local M = {}

local new_end, seq_ptr = ffi.typeof "pl_stream_end", ffi.typeof "pl_seq *"
local len_out = ffi.new "size_t[1]"

local function write(x, text)
  C.pl_exchange_write(x, text, #text)
end

local function mode_of(plan)
  if not plan.stream then return C.PL_STREAM_WHOLE end
  local more = plan.logprobs >= 0 or plan.return_ids or plan.continuous_usage
    or plan.only_echo
  return more and C.PL_STREAM_PIECES or C.PL_STREAM_SSE
end

local function open(server, x, job, choice)
  local plan = job.plan
  local stream = C.pl_stream_open(server.rt, job.served.ctx.text, mode_of(plan), x)
  C.pl_stream_flags(stream, plan.skip_special, plan.include_stop,
    job.served.stream_interval or server.stream_interval, plan.min_tokens)
  C.pl_stream_prime(stream, ffi.cast(seq_ptr, choice.seq))
  C.pl_stream_observe(stream, server.metrics:gap(job))
  if server.moves then C.pl_stream_keep(stream) end
  for _, s in ipairs(plan.stop) do
    if C.pl_stream_stop(stream, s, #s) < 0 then
      local _, why = pl.refusal(C.PL_ELIMIT)
      C.pl_stream_close(stream)
      return nil, { status = 400, message = why }
    end
  end
  choice.stream, choice.id = stream, C.pl_stream_id(stream)
  if plan.logprobs >= 0 then choice.state = { offset = 0 } end
  flow.listen(choice.id, "done", "lost")
  choice.streamed = plan.stream
  if plan.stream then flow.listen(choice.id, "piece") end
  return true
end

-- Closes the sequence of a choice that no worker has been given yet.
function M.drop(choice)
  if not choice.seq then return end
  C.pl_seq_close(ffi.cast(seq_ptr, choice.seq))
  choice.seq = nil
end

-- Hands a choice's sequence to a worker. true, or nil and the refusal; then the sequence
-- is closed.
function M.start(server, x, job, choice)
  local ok, refused = open(server, x, job, choice)
  if not ok then
    M.drop(choice)
    return nil, refused
  end
  server.live[choice.id] = choice.stream
  ok, refused = moves.place(server, job, choice)
  if ok then return true end
  M.drop(choice)
  M.close(server, choice)
  return nil, refused
end

function M.close(server, choice)
  moves.left(choice)
  server.live[choice.id] = nil
  C.pl_stream_close(choice.stream)
  choice.stream = nil
  flow.forget(choice.id, "done", "lost")
  if choice.streamed then flow.forget(choice.id, "piece") end
end

local function next_event(choice)
  if choice.streamed then return flow.await(choice.id, "piece", "done", "lost") end
  return flow.await(choice.id, "done", "lost")
end

-- The next piece of a choice that is streamed, or its end, after as many moves as it
-- takes; "done" where none is possible, with choice.refused saying why.
local function await(server, job, choice)
  local ev = next_event(choice)
  while ev.kind == "lost" do
    local ok, refused = moves.move(server, job, choice, ev)
    if not ok then
      choice.refused = refused
      C.pl_stream_cancel(choice.stream)
    end
    ev = next_event(choice)
  end
  return ev
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

local BROKEN = { status = 500, message = "Internal server error" }

local function ended(choice)
  choice.last = new_end()
  C.pl_stream_result(choice.stream, choice.last)
  moves.left(choice)
end

-- Compares what its worker had cached with what the decision took it to have. A prompt
-- whose logprobs are wanted is computed, whatever is cached.
local function learn(server, job, choice)
  local plan, e = job.plan, choice.last
  local is_read = plan.prompt_logprobs >= 0 or plan.echo and plan.logprobs >= 0
  if e.n_tokens == 0 or is_read then return end
  local missed = decisions.found(job.served, choice, e.n_cached)
  if missed and missed > 0 then server.metrics:missed(job, missed) end
end

local function finish(server, job, choice)
  ended(choice)
  learn(server, job, choice)
  -- Nobody would go on with it: that was no wish of its client's.
  if choice.refused then choice.last.finish = C.PL_FINISH_ERROR end
  if choice.last.finish == C.PL_FINISH_ERROR then
    choice.refused = choice.refused or BROKEN
  elseif choice.last.finish == C.PL_FINISH_ABORT and job.over and job.over.status then
    choice.refused = job.over
  end
end

-- Streams one choice to its end.
function M.follow(server, job, x, choice)
  while true do
    local ev = await(server, job, choice)
    if ev.kind == "done" then break end
    local text, tokens, n = take(job, choice)
    write(x, job.answer:chunk(choice.index, text, extras(job, choice, tokens, n)))
  end
  finish(server, job, choice)
  local text, tokens, n = take(job, choice)
  if choice.refused then
    write(x, answer.error_event(choice.refused.message, choice.refused.status))
  else
    local more = extras(job, choice, tokens, n)
    write(x, job.answer:chunk(choice.index, text, more, choice.last))
  end
end

-- Waits for one choice's end and keeps what its body needs.
function M.gather(server, job, _, choice)
  await(server, job, choice)
  finish(server, job, choice)
  if choice.refused then return job:cancel(choice.refused) end   -- all or nothing
  local plan = job.plan
  local text, tokens, n = take(job, choice)
  if plan.echo then text = choice.prompt.text .. text end
  choice.text = text
  local shown = plan.only_echo and 0 or n
  choice.logprobs = job.answer:logprobs_of(choice.state, tokens, shown)
  if plan.return_ids then
    choice.ids = {}
    for i = 1, shown do choice.ids[i] = tokens[i - 1].token end
  end
  if plan.prompt_logprobs >= 0 and n > 0 then
    choice.prompt_logprobs = logprobs.prompt(job.answer, choice.prompt.n_tokens,
      tokens[0])
  end
end

-- Gives back what a choice holds when the process closes and no task goes on with it.
function M.abandon(choice)
  M.drop(choice)
  if not choice.stream then return end
  C.pl_stream_close(choice.stream)
  choice.stream = nil
end

-- Waits until a choice that was cancelled has ended.
function M.settle(choice)
  flow.await(choice.id, "done")
  ended(choice)
end

return M
