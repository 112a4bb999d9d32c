-- SPDX-License-Identifier: Apache-2.0
-- api/answer.lua - what goes back: bodies and chunks of chat and text completions, as
-- vLLM writes them.
--
-- An answer knows its plan (api/prepare.lua), its id and its model. Everything here makes
-- strings; api/serve.lua sends them.

local pl = require "perilune.ffi"
local buffer = require "string.buffer"
local json = require "perilune.json"
local logprobs = require "perilune.api.logprobs"
local C = pl.C

local M = {}
M.__index = M

local quote = json.quote
local out = buffer.new()                    -- the body that is being made

local FINISH = { [C.PL_FINISH_STOP] = "stop", [C.PL_FINISH_LENGTH] = "length",
  [C.PL_FINISH_ABORT] = "abort", [C.PL_FINISH_ERROR] = "error" }
M.FINISH = FINISH

function M.new(plan, ctx, id, model, created)
  local chat = plan.kind == "chat"
  local self = {
    plan = plan, ctx = ctx, chat = chat,
    id = (chat and "chatcmpl-" or "cmpl-") .. id,
    model = model, created = created,
    head = plan.stream and ('{"id":%s,"object":"%s","created":%d,"model":%s,'):format(
      quote((chat and "chatcmpl-" or "cmpl-") .. id),
      chat and "chat.completion.chunk" or "text_completion", created, quote(model)),
  }
  setmetatable(self, M)
  return self
end

local function event(body)
  return "data: " .. body .. "\n\n"
end
M.DONE = "data: [DONE]\n\n"

local function id_array(ids)
  return ids and "[" .. table.concat(ids, ",") .. "]" or "null"
end

-- The stop reason of a choice that has ended: the string, the id or null.
function M:reason(last)
  if last.stop_string >= 0 then return quote(self.plan.stop[last.stop_string + 1]) end
  if last.stop_reason >= 0 then return (tostring(last.stop_reason)) end
  return "null"
end

-- Usage so far. n_prompt and n_out are sums over the choices; cached may be nil.
function M:usage(n_prompt, n_out, cached)
  local details = "null"
  if self.ctx.prompt_tokens_details and cached and cached > 0 then
    details = ('{"cached_tokens":%d}'):format(cached)
  end
  return (('{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,'
    .. '"prompt_tokens_details":%s}'):format(n_prompt, n_prompt + n_out, n_out, details))
end

-- ---- streaming ---------------------------------------------------------------------

local function with_usage(choice, usage)
  return choice .. (usage and ',"usage":' .. usage or "") .. "}"
end

-- The first chunk of a chat's choice.
function M:first_chunk(index, prompt, usage)
  local ids = ""
  if self.plan.return_ids then ids = ',"prompt_token_ids":' .. id_array(prompt.ids) end
  local choice = ('"choices":[{"index":%d,"delta":{"role":%s,"content":""},'
    .. '"logprobs":null,"finish_reason":null}]'):format(index, quote(self.plan.role))
  return event(self.head .. with_usage(choice .. ids, usage))
end

-- What C writes before and after the text of each piece.
function M:frame(index)
  if self.chat then
    return ('data: %s"choices":[{"index":%d,"delta":{"content":"'):format(self.head,
      index), '"},"logprobs":null,"finish_reason":null}]}\n\n'
  end
  return ('data: %s"choices":[{"index":%d,"text":"'):format(self.head, index),
    '","logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'
end

-- A chunk made here: a piece with more than text, or a choice's last one. `extra` may
-- hold logprobs (JSON), ids (new tokens), prompt_ids, usage (JSON); `last`: how it ended.
function M:chunk(index, text, extra, last)
  local finish = last and quote(FINISH[last.finish]) or "null"
  local body
  if self.chat then
    body = ('"choices":[{"index":%d,"delta":{"content":%s},"logprobs":%s,'
      .. '"finish_reason":%s'):format(index, quote(text), extra.logprobs or "null",
      finish)
    if last then body = body .. ',"stop_reason":' .. self:reason(last) end
  else
    body = ('"choices":[{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s,'
      .. '"stop_reason":%s'):format(index, quote(text), extra.logprobs or "null", finish,
      last and self:reason(last) or "null")
    if extra.prompt_ids then
      body = body .. ',"prompt_token_ids":' .. id_array(extra.prompt_ids)
    end
  end
  if extra.ids then body = body .. ',"token_ids":' .. id_array(extra.ids) end
  return event(self.head .. with_usage(body .. "}]", extra.usage))
end

function M:usage_chunk(usage)
  return event(self.head .. with_usage('"choices":[]', usage))
end

function M.error_event(message, code)
  return event(M.error_body(message, code))
end

-- ---- whole -------------------------------------------------------------------------

-- One choice of a body that is not streamed. `c`: index, text, last (pl_stream_end),
-- logprobs (JSON or nil), ids, prompt (the plan's), prompt_logprobs (JSON or nil).
local function put_choice(self, c)
  local ids = self.plan.return_ids and id_array(c.ids) or "null"
  out:put('{"index":', c.index)
  if self.chat then
    out:put(',"message":{"role":', quote(self.plan.role), ',"content":', quote(c.text),
      ',"refusal":null,"annotations":null,"audio":null,"function_call":null,'
      .. '"reasoning":null}')
  else
    out:put(',"text":', quote(c.text))
  end
  out:put(',"logprobs":', c.logprobs or "null", ',"finish_reason":"',
    FINISH[c.last.finish], '","stop_reason":', self:reason(c.last), ',"token_ids":', ids)
  if not self.chat then
    out:put(',"prompt_logprobs":', c.prompt_logprobs or "null", ',"prompt_token_ids":',
      self.plan.return_ids and id_array(c.prompt.ids) or "null")
  end
  out:put "}"
end

function M:body(choices, usage)
  out:reset()
  out:put('{"id":', quote(self.id), ',"object":"',
    self.chat and "chat.completion" or "text_completion", '","created":', self.created,
    ',"model":', quote(self.model), ',"choices":[')
  for i, c in ipairs(choices) do
    if i > 1 then out:put "," end
    put_choice(self, c)
  end
  out:put('],"service_tier":null,"system_fingerprint":null,"usage":', usage)
  if self.chat then
    out:put(',"prompt_logprobs":', choices[1].prompt_logprobs or "null",
      ',"prompt_token_ids":',
      self.plan.return_ids and id_array(choices[1].prompt.ids) or "null")
  end
  return (out:put ',"kv_transfer_params":null}':get())
end

-- The logprobs of a piece as its endpoint shows them; nil if none were asked for.
function M:logprobs_of(state, tokens, n)
  if self.plan.logprobs < 0 then return nil end
  return logprobs[self.chat and "chat" or "completion"](self, state, tokens, n)
end

-- ---- errors ------------------------------------------------------------------------

local KINDS = { [400] = "BadRequestError", [401] = "AuthenticationError",
  [403] = "PermissionDeniedError", [404] = "NotFoundError",
  [405] = "MethodNotAllowedError", [413] = "RequestEntityTooLargeError",
  [415] = "UnsupportedMediaTypeError", [422] = "UnprocessableEntityError",
  [429] = "RateLimitError", [500] = "InternalServerError",
  [501] = "NotImplementedError", [503] = "ServiceUnavailableError",
  [504] = "GatewayTimeoutError", [529] = "ServiceUnavailableError" }

function M.error_body(message, code, param)
  return ('{"error":{"message":%s,"type":"%s","param":%s,"code":%d}}'):format(
    quote(message), KINDS[code] or "BadRequestError", param and quote(param) or "null",
    code)
end

return M
