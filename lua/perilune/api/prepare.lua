-- SPDX-License-Identifier: Apache-2.0
-- api/prepare.lua - from a request's bytes to sequences that an engine can take.
--
-- What is long and alone happens here: parsing, checking, templates, tokenizing. It runs
-- on the lua thread for small requests and in the pool (api/pool.lua) for big ones, so it
-- knows nothing but its arguments, and its answer, the *plan*, is plain data: sequences
-- and ids are C's, named by their addresses.
--
--   plan = prepare.run(contexts, "chat", body)
--   plan.refused = { status, message, param }        or
--   plan.prompts[i] = { n_tokens, max_tokens, seqs = { address, ... }, ids, text }
--
-- contexts: of the models there are, made by fleet/served_models.lua. A context's
-- `naming` is there in the pool only, where it names the prompt's blocks.

local pl = require "perilune.ffi"
local fields = require "perilune.api.fields"
local json = require "perilune.json"
local models = require "perilune.fleet.served_models"
local hints = require "perilune.recipe.hints"
local params = require "perilune.api.params"
local conversation = require "perilune.api.conversation"
local messages = require "perilune.api.messages"
local passed_on = require "perilune.api.passed_on"
local prompts_of = require "perilune.api.prompts"
local C, ffi = pl.C, pl.ffi
local refuse, given = params.refuse, params.given

local M = {}

-- Token ids that all choices of a request may hold together.
local MAX_TOKENS = 2 ^ 26

-- Tables that are filled field by field are made with room, for growing is dear.
local new_table = require "table.new"
local new_ids = ffi.typeof "int32_t[?]"
local uintptr = ffi.typeof "uintptr_t"

local checked = prompts_of.checked

local array, room = new_ids(64), 64

-- Ids for C, which copies them: they stand until the next call.
local function int_array(ids)
  local n = #ids
  if n > room then array, room = new_ids(2 * n), 2 * n end
  for i = 1, n do array[i - 1] = ids[i] end
  return array, n
end

-- The sequences of the request that is being prepared: closed if it is refused. (A
-- finalizer for each would cost more than all else that happens to it here.)
local open, n_open = {}, 0

local function close_open()
  for i = 1, n_open do
    C.pl_seq_close(open[i])
    open[i] = nil
  end
  n_open = 0
end

-- One sequence with all that the request said about it.
local function open_seq(ctx, req, prompt, sampling, child)
  local p = sampling.p
  local seed = p.seed
  p.seed = seed + child
  local seq = C.pl_seq_open(prompt.tokens, prompt.n_tokens, p)
  p.seed = seed
  if seq == nil then refuse(ffi.string(C.pl_error_text())) end
  n_open = n_open + 1
  open[n_open] = seq
  checked(C.pl_seq_eos(seq, int_array(ctx.eos_ids)))
  checked(C.pl_seq_stop_ids(seq, int_array(sampling.stop_ids)))
  if sampling.allowed then checked(C.pl_seq_allow(seq, int_array(sampling.allowed))) end
  local bias = sampling.bias
  if bias and #bias.ids > 0 then
    local values = ffi.new("float[?]", #bias.values, bias.values)
    local ids, n = int_array(bias.ids)
    checked(C.pl_seq_bias(seq, ids, values, n))
  end
  for _, ids in ipairs(sampling.bad_ids) do
    checked(C.pl_seq_bad_word(seq, int_array(ids)))
  end
  local salt = params.string(req, "cache_salt")
  if salt == "" then refuse("cache_salt must be a non-empty string.", "cache_salt") end
  if salt then checked(C.pl_seq_salt(seq, salt, #salt)) end
  if ctx.naming then C.pl_naming_apply(ctx.naming, seq) end
  return seq
end

-- A bad word counts with and without the space that may stand before it, as in vLLM.
local function bad_word_ids(ctx, words)
  if #words == 0 then return words end
  local out = {}
  for _, word in ipairs(words) do
    for _, form in ipairs { word, " " .. word:gsub("^ +", "") } do
      local ids = prompts_of.list(prompts_of.text(ctx, form, #form, false))
      if #ids > 0 then out[#out + 1] = ids end
    end
  end
  return out
end

-- As a number, which is exact: no address has more than 48 bits.
local function address_of(seq)
  return (tonumber(ffi.cast(uintptr, seq)))
end

-- Each choice has its tokens and lists to itself: a few bytes may not ask for gigabytes.
local function check_choices(ctx, prompts, sampling, where)
  local lists = #sampling.stop_ids + #(sampling.allowed or {})
    + 2 * #(sampling.bias and sampling.bias.ids or {})
  for _, ids in ipairs(sampling.bad_ids) do lists = lists + #ids end
  local choices, total = #prompts * sampling.n, 0
  for _, prompt in ipairs(prompts) do
    total = total + (prompt.n_tokens + lists) * sampling.n
  end
  if choices > ctx.max_choices or total > MAX_TOKENS then
    refuse(("The request asks for %d choices that hold %d token ids in all; at most %d "
      .. "and %d are taken."):format(choices, total, ctx.max_choices, MAX_TOKENS),
      #prompts > 1 and where or "n")
  end
end

local function entry_of(ctx, plan, prompt, sampling)
  local entry = { n_tokens = prompt.n_tokens, max_tokens = sampling.p.max_tokens,
    seqs = new_table(sampling.n, 0) }
  if plan.echo then
    entry.text = plan.echo_content or prompt.text or prompts_of.decode(ctx, prompt)
  end
  if plan.return_ids or plan.echo then entry.ids = prompts_of.list(prompt) end
  return entry
end

-- Turns prompts into the plan's, each with n sequences.
local function plan_prompts(ctx, req, plan, prompts, sampling, asked, where)
  local keep = params.truncation(req, ctx)
  for _, prompt in ipairs(prompts) do
    if keep and prompt.n_tokens > keep then
      prompt.whole = prompt.tokens   -- what keeps the memory that tokens points into
      prompt.tokens = prompt.tokens + (prompt.n_tokens - keep)
      prompt.n_tokens, prompt.text = keep, nil
    end
    if prompt.n_tokens == 0 then refuse("The prompt is empty.", where) end
    params.limit(sampling, asked, prompt.n_tokens, ctx, where)
  end
  check_choices(ctx, prompts, sampling, where)
  plan.prompts = {}
  for i, prompt in ipairs(prompts) do
    params.limit(sampling, asked, prompt.n_tokens, ctx, where)
    local entry = entry_of(ctx, plan, prompt, sampling)
    for child = 0, sampling.n - 1 do
      entry.seqs[child + 1] = address_of(open_seq(ctx, req, prompt, sampling, child))
    end
    plan.prompts[i] = entry
  end
end

local function stream_options(req, plan)
  plan.stream = params.boolean(req, "stream")
  local options = given(req, "stream_options")
  if options == nil then return end
  if not plan.stream then
    refuse("Stream options can only be defined when `stream=True`.", "stream_options")
  end
  if not json.is_object(options) then
    refuse("stream_options must be an object.", "stream_options")
  end
  plan.include_usage = params.boolean(options, "include_usage")
  plan.continuous_usage = plan.include_usage
    and params.boolean(options, "continuous_usage_stats")
end

-- The context of the model asked for; of the only one, where none is named.
local function context_of(contexts, name)
  local only = #contexts == 1 and contexts[1]
  if only and (not name or only.names[name]) then return only end
  for _, ctx in ipairs(contexts) do
    if ctx.names[name] then return ctx end
  end
  if name then refuse(models.unknown(contexts, name), "model", 404) end
  if contexts[1] then refuse("model must be given: there are several.", "model") end
  refuse("No worker is available yet.", nil, 503)
end

-- What both endpoints have in common.
local function common(ctx, req, kind, odd)
  if odd then params.refuse_unsupported(req) end
  params.check_format(req)
  local plan = new_table(0, 24)
  plan.kind, plan.model = kind, params.string(req, "model")
  stream_options(req, plan)
  local sampling = params.read(req, ctx, odd)
  sampling.bad_ids = bad_word_ids(ctx, sampling.bad_words)
  plan.n, plan.stop, plan.skip_special = sampling.n, sampling.stop, sampling.skip_special
  plan.include_stop, plan.min_tokens = sampling.include_stop, sampling.p.min_tokens
  plan.return_ids = params.boolean(req, "return_token_ids")
  plan.as_ids = params.boolean(req, "return_tokens_as_token_ids", ctx.as_ids)
  plan.request_id = params.string(req, "request_id")
  plan.priority = sampling.p.priority
  plan.hints = hints.of_body(given(req, "nvext"))
  plan.echo = params.boolean(req, "echo")
  if sampling.p.priority ~= 0 and not ctx.priority then
    refuse("Got priority " .. sampling.p.priority .. " but Priority scheduling is not "
      .. "enabled.", "priority")
  end
  local prompt_logprobs = params.integer(req, "prompt_logprobs")
  if prompt_logprobs and plan.stream
      and (prompt_logprobs > 0 or prompt_logprobs == -1) then
    refuse("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
  end
  sampling.p.prompt_logprobs = params.logprobs(prompt_logprobs, "prompt_logprobs", ctx)
  plan.prompt_logprobs, plan.priority = sampling.p.prompt_logprobs, sampling.p.priority
  return plan, sampling
end

function M.completion(ctx, req, odd, node)
  local plan, sampling = common(ctx, req, "completion", odd)
  local asked = params.integer(req, "max_tokens") or 16
  local count = params.integer(req, "logprobs")
  sampling.p.logprobs = params.logprobs(count, "logprobs", ctx)
  plan.logprobs = sampling.p.logprobs
  if plan.echo and count and sampling.p.prompt_logprobs < 0 then
    sampling.p.prompt_logprobs = sampling.p.logprobs
  end
  plan.only_echo = plan.echo and asked == 0
  if plan.only_echo then asked = 1 end
  local prompts = prompts_of.forms(ctx, node,
    params.boolean(req, "add_special_tokens", true), plan.echo)
  plan_prompts(ctx, req, plan, prompts, sampling, asked, "prompt")
  return plan
end

local function chat_logprobs(ctx, req, sampling)
  local top = params.integer(req, "top_logprobs")
  local on = params.boolean(req, "logprobs")
  if top and top ~= 0 and not on then
    refuse("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
  end
  if top and top < -1 then
    refuse("`top_logprobs` must be a positive value or -1.", "top_logprobs")
  end
  sampling.p.logprobs = on and params.logprobs(top or 0, "top_logprobs", ctx) or -1
  return sampling.p.logprobs
end

function M.chat(ctx, req, odd)
  local plan, sampling = common(ctx, req, "chat", odd)
  plan.logprobs = chat_logprobs(ctx, req, sampling)
  local text = messages.render(ctx, req)
  local asked = params.integer(req, "max_completion_tokens")
    or params.integer(req, "max_tokens")
  local prompt = prompts_of.text(ctx, text, #text,
    params.boolean(req, "add_special_tokens"))
  if plan.echo then prompt.text = text end
  local last_role, last_text = conversation.last(req)
  plan.role = params.boolean(req, "add_generation_prompt", true) and ctx.response_role
    or last_role
  if plan.echo then plan.echo_content = last_role == plan.role and last_text or "" end
  plan_prompts(ctx, req, plan, { prompt }, sampling, asked, "messages")
  return plan
end

function M.tokenize(ctx, req, _, node)
  local prompt
  if given(req, "messages") ~= nil then
    local text = messages.render(ctx, req)
    prompt = prompts_of.text(ctx, text, #text, params.boolean(req, "add_special_tokens"))
  else
    if node == nil or C.pl_json_kind(node) ~= C.PL_JSON_STRING then
      refuse("prompt must be a string.", "prompt")
    end
    local special = params.boolean(req, "add_special_tokens", true)
    prompt = prompts_of.node(ctx, node, special)
  end
  local plan = { kind = "tokenize", max_model_len = ctx.max_model_len,
    ids = prompts_of.list(prompt) }
  if params.boolean(req, "return_token_strs") then
    plan.strings = {}
    for i, id in ipairs(plan.ids) do
      local buf = ffi.new "pl_buf"
      checked(C.pl_text_bytes(ctx.text, id, buf))
      plan.strings[i] = pl.take(buf)
    end
  end
  return plan
end

function M.detokenize(ctx, _, _, _, doc)
  local node = C.pl_json_find(doc, "tokens")
  if node == nil or C.pl_json_kind(node) ~= C.PL_JSON_ARRAY then
    refuse("tokens must be a list of token ids.", "tokens")
  end
  return { kind = "detokenize",
    text = prompts_of.decode(ctx, prompts_of.ids(ctx, node)) }
end

-- What may be long is read in place; all else of a request becomes Lua values.
local IN_PLACE = { prompt = true, tokens = true }
-- What another server may answer.
local GENERATE = { chat = true, completion = true }

local function explain(e)
  if type(e) == "table" then return e end
  return { status = 500, message = "Internal server error",
    trace = debug.traceback(tostring(e), 2) }
end

local asked                                 -- the model asked for, once it is known

local function plan_of(contexts, kind, doc, req, odd)
  local ctx = context_of(contexts, params.string(req, "model"))
  asked = ctx.key
  if ctx.upstream and GENERATE[kind] then
    return passed_on.plan(ctx, kind, req, C.pl_json_find(doc, "prompt"))
  end
  local plan = M[kind](ctx, req, odd, C.pl_json_find(doc, "prompt"), doc)
  if odd then plan.idle = fields.idle(req, kind) end
  return plan
end

-- The same of any document; true, or false and the refusal. The loop over its keys comes
-- before the protected call, for code compiled from that loop's end on may enter one but
-- not leave one.
local function try(contexts, kind, doc)
  asked = nil
  if C.pl_json_kind(doc) ~= C.PL_JSON_OBJECT then
    return false, { status = 400, message = "The body must be a JSON object." }
  end
  local req, is_plain = json.members(doc, IN_PLACE, fields.PLAIN[kind])
  local ok, plan = xpcall(plan_of, explain, contexts, kind, doc, req, not is_plain)
  plan.model_key = asked                    -- also of one that is refused
  return ok, plan
end

-- The plan for a request of `kind`: chat, completion, tokenize or detokenize; `body` may
-- be a string or a pointer. A defect in here is a 500 with a line in the log, never an
-- error thrown at the caller.
function M.run(contexts, kind, body, len)
  local doc = C.pl_json_open(body, len)
  if doc == nil then
    return { refused = { status = 400, message = ffi.string(C.pl_error_text()) } }
  end
  local ok, plan = try(contexts, kind, doc)
  C.pl_json_close(doc)
  if ok then
    n_open = 0                              -- they are the plan's
    return plan
  end
  close_open()
  return { refused = plan }
end

return M
