-- SPDX-License-Identifier: Apache-2.0
-- api/params.lua - sampling parameters: from a request's fields to pl_params and its
-- lists.
--
-- Names, defaults and messages are vLLM's (SamplingParams); what is wrong is refused
-- here, before anything is queued. Refusals are raised as tables { status, message, param
-- }, and caught once, in api/prepare.lua.

local pl = require "perilune.ffi"
local json = require "perilune.json"
local C, ffi = pl.C, pl.ffi
local new_table = require "table.new"

local M = {}

-- The list that is not there. Nobody adds to it.
local NONE = {}
local INT_MAX = 2147483647
-- Bytes of a stop string: stream.c takes no longer one.
local MAX_STOP = 65536

-- Stops the request: a 400 unless `status` says otherwise.
function M.refuse(message, param, status)
  error({ status = status or 400, message = message, param = param }, 0)
end
local refuse = M.refuse

local function shown(v)
  if type(v) == "string" then return "'" .. v:sub(1, 60) .. "'" end
  if json.is_long(v) then return v.digits:sub(1, 60) end
  if type(v) == "table" then return json.is_array(v) and "a list" or "an object" end
  return tostring(v)
end

-- A field's value or nil: absent and null are the same.
local function given(req, name)
  local v = req[name]
  if v ~= json.null then return v end
end
M.given = given

local function out_of_range(v, name)
  refuse(("%s is out of range, got %s."):format(name, shown(v)), name)
end

local function to_number(v, name)
  local n = json.tonumber(v)
  if not n then refuse(("%s must be a number, got %s."):format(name, shown(v)), name) end
  if json.is_long(v) then out_of_range(v, name) end
  return n
end

function M.number(req, name)
  local v = given(req, name)
  if v ~= nil then return to_number(v, name) end
end

local function to_integer(v, name)
  local n = json.tonumber(v)
  if not n or n % 1 ~= 0 and not json.is_long(v) then
    refuse(("%s must be an integer, got %s."):format(name, shown(v)), name)
  end
  if n > INT_MAX or n < -INT_MAX then out_of_range(v, name) end
  return n
end

function M.integer(req, name)
  local v = given(req, name)
  if v ~= nil then return to_integer(v, name) end
end

function M.boolean(req, name, default)
  local v = given(req, name)
  if v == nil then return default or false end
  if type(v) ~= "boolean" then
    refuse(("%s must be true or false, got %s."):format(name, shown(v)), name)
  end
  return v
end

function M.string(req, name)
  local v = given(req, name)
  if v ~= nil and type(v) ~= "string" then
    refuse(("%s must be a string, got %s."):format(name, shown(v)), name)
  end
  return v
end

function M.list(req, name, max)
  local v = given(req, name)
  if v == nil then return NONE end
  if not json.is_array(v) then
    refuse(("%s must be a list, got %s."):format(name, shown(v)), name)
  end
  if #v > max then refuse(("%s has more than %d entries."):format(name, max), name) end
  return v
end

-- A list of token ids below `vocab`.
local function ids(req, name, vocab)
  local list = M.list(req, name, vocab)
  if #list == 0 then return NONE end
  local out = new_table(#list, 0)
  for i, v in ipairs(list) do
    local id = to_integer(v, name)
    if id < 0 or id >= vocab then
      refuse(("%s contains out-of-vocab token id %d; the vocabulary has %d.")
        :format(name, id, vocab), name)
    end
    out[i] = id
  end
  return out
end

-- The engine's table of sampling options, a list. Each is a request field of that name,
-- with the row's default and bounds; those in OWN, which a request says in another way or
-- which have another default there, are read elsewhere.
local OWN = { max_tokens = true, logprobs = true, prompt_logprobs = true, seed = true }
M.ROWS = {}
while C.pl_params_row(#M.ROWS) ~= nil do
  local row = C.pl_params_row(#M.ROWS)
  M.ROWS[#M.ROWS + 1] = { name = ffi.string(row.name), kind = row.kind,
    initial = row.initial, low = row.low, high = row.high,
    wants = ffi.string(row.wants), what = ffi.string(row.what),
    is_own = OWN[ffi.string(row.name)] or false }
end

local READ = { [C.PL_PARAM_F32] = M.number, [C.PL_PARAM_I32] = M.integer }

local function read_row(req, row, default, p)
  local name = row.name
  if row.kind == C.PL_PARAM_BOOL then
    p[name] = M.boolean(req, name, default or row.initial == 1)
    return
  end
  local v = READ[row.kind](req, name) or default
  if not v then return end
  if not (v >= row.low and v <= row.high) then
    refuse(("%s must be %s, got %s."):format(name, row.wants, v), name)
  end
  p[name] = v
end

-- One call a row, written out: no function that LuaJIT compiles may meet a loop which it
-- has compiled by itself.
local calls = {}
for i, row in ipairs(M.ROWS) do
  if not row.is_own then
    calls[#calls + 1] = ("read(req, rows[%d], defaults.%s, p)"):format(i, row.name)
  end
end
local read_rows = loadstring("local read, rows = ... return function(req, defaults, p) "
  .. table.concat(calls, " ") .. " end")(read_row, M.ROWS)

local function read_options(req, defaults, p)
  read_rows(req, defaults, p)
  if p.temperature > 0 and p.temperature < 0.01 then p.temperature = 0.01 end
end

local function seed_of(req)
  local v = given(req, "seed")
  if v == nil then return (C.pl_entropy()) end
  local seed = json.to_int64(json.is_real(v) and v.value or v)
  if not seed then
    refuse(("seed must be an integer of 64 bits, got %s."):format(shown(v)), "seed")
  end
  return (ffi.cast("uint64_t", seed))
end

-- Token and string lists that go with the parameters.
local function read_lists(req, ctx, out)
  out.stop_ids = ids(req, "stop_token_ids", ctx.vocab)
  local allowed = ids(req, "allowed_token_ids", ctx.vocab)
  if given(req, "allowed_token_ids") then
    if #allowed == 0 then
      refuse("allowed_token_ids is not None and empty!", "allowed_token_ids")
    end
    out.allowed = allowed
  end
  local bias = given(req, "logit_bias")
  if bias ~= nil then out.bias = M.bias(bias, ctx.vocab) end
  out.bad_words = M.strings(req, "bad_words", 1024)
  out.stop = M.stop_strings(req)
end

function M.bias(v, vocab)
  if not json.is_object(v) then
    refuse(("logit_bias must be an object, got %s."):format(shown(v)), "logit_bias")
  end
  local bias = { ids = {}, values = {} }
  for _, key in ipairs(json.keys(v)) do
    local id, value = tonumber(key), v[key]
    if not id or not key:match "^%d+$" then
      refuse(("Invalid key in logit_bias: %s. Must be an integer."):format(shown(key)),
        "logit_bias")
    end
    value = to_number(value, "logit_bias")
    if id >= vocab then
      refuse(("token_id(s) [%d] in logit_bias contain out-of-vocab token ids.")
        :format(id), "logit_bias")
    end
    table.insert(bias.ids, id)
    table.insert(bias.values, math.max(-100, math.min(100, value)))
  end
  return bias
end

function M.strings(req, name, max)
  local list = M.list(req, name, max)
  if #list == 0 then return NONE end
  local out = new_table(#list, 0)
  for i, s in ipairs(list) do
    if type(s) ~= "string" then
      refuse(("%s must be a list of strings."):format(name), name)
    end
    out[i] = s
  end
  return out
end

function M.stop_strings(req)
  local v = given(req, "stop")
  local list = type(v) == "string" and { v } or M.strings(req, "stop", 64)
  for _, s in ipairs(list) do
    if s == "" then refuse("stop cannot contain an empty string.", "stop") end
    if #s > MAX_STOP then
      refuse(("stop has a string of %d bytes; at most %d are taken."):format(#s,
        MAX_STOP), "stop")
    end
  end
  return list
end

-- One request is read at a time, and what came of the one before is used up: so they
-- share what they are read into.
local params, read = ffi.new "pl_params", new_table(0, 16)

-- Reads everything but max_tokens and logprobs, whose meaning differs between the two
-- endpoints. `ctx`: vocab, defaults (of generation_config.json). Returns a table with
-- `p` (pl_params) and stop, stop_ids, allowed, bias, bad_words, n; good until the next
-- call. `odd`: of api/fields.lua.
function M.read(req, ctx, odd)
  local p, out = params, read
  C.pl_params_init(p)
  out.p, out.allowed, out.bias = p, nil, nil
  read_options(req, ctx.defaults, p)
  p.seed = seed_of(req)
  local n = M.integer(req, "n") or 1
  if n < 1 then refuse(("n must be at least 1, got %d."):format(n), "n") end
  if n > ctx.max_n then
    refuse(("n must be at most %d, got %d."):format(ctx.max_n, n), "n")
  end
  if n > 1 and p.temperature < 1e-5 then
    refuse(("n must be 1 when using greedy sampling, got %d."):format(n), "n")
  end
  out.n = n
  if odd then M.check_unused(req) end
  read_lists(req, ctx, out)
  out.skip_special = M.boolean(req, "skip_special_tokens", true)
  out.include_stop = M.boolean(req, "include_stop_str_in_output")
  if M.boolean(req, "use_beam_search") then
    refuse("beam search is not supported.", "use_beam_search")
  end
  return out
end

-- How many logprobs: nil is none. `max`: the server's --max-logprobs, -1 is no cap.
function M.logprobs(count, name, ctx)
  if count == nil then return -1 end
  if count == -1 then count = ctx.vocab end
  if count < 0 then
    refuse(("%s must be non-negative, got %d."):format(name, count), name)
  end
  if ctx.max_logprobs >= 0 and count > ctx.max_logprobs then
    refuse(("Requested %s of %d, which is greater than max allowed: %d")
      :format(name == "prompt_logprobs" and "prompt logprobs" or "sample logprobs", count,
        ctx.max_logprobs), name)
  end
  return (math.min(count, ctx.vocab))
end

-- How many of a prompt's last tokens are kept; nil: all.
function M.truncation(req, ctx)
  local k = M.integer(req, "truncate_prompt_tokens")
  if k == -1 then return ctx.max_model_len end
  if k and (k < 1 or k > ctx.max_model_len) then
    refuse(("truncate_prompt_tokens must be -1 or from 1 to max_model_len=%d, got %d.")
      :format(ctx.max_model_len, k), "truncate_prompt_tokens")
  end
  return k
end

M.UNSUPPORTED = { "structured_outputs", "guided_json", "guided_regex",
  "guided_choice", "guided_grammar", "prompt_embeds", "suffix", "logits_processors",
  "kv_transfer_params" }

local unsupported = {}
for _, name in ipairs(M.UNSUPPORTED) do unsupported[name] = true end

function M.refuse_unsupported(req)
  for _, name in json.pairs(req) do
    if unsupported[name] then
      local v = given(req, name)
      if v ~= nil and v ~= "" then refuse(("%s is not supported."):format(name), name) end
    end
  end
end

function M.check_format(req)
  local format = given(req, "response_format")
  if format ~= nil and not (type(format) == "table" and format.type == "text") then
    refuse("response_format other than {\"type\": \"text\"} is not supported.",
      "response_format")
  end
end

-- Fields that change nothing here: what they may be, so that a mistake is not hidden.
M.UNUSED = { length_penalty = M.number, spaces_between_special_tokens = M.boolean,
  user = M.string, parallel_tool_calls = M.boolean, include_reasoning = M.boolean,
  reasoning_effort = M.string }

function M.check_unused(req)
  for _, name in json.pairs(req) do
    if M.UNUSED[name] then M.UNUSED[name](req, name) end
  end
end

-- Sets max_tokens: what was asked, capped by generation_config's max_new_tokens, or the
-- rest of the context. `where` is vLLM's word for the prompt: "messages" or "prompt".
function M.limit(out, asked, n_prompt, ctx, where)
  local p, rest = out.p, ctx.max_model_len - n_prompt
  if asked and asked < 1 then
    refuse(("max_tokens must be at least 1, got %d."):format(asked), "max_tokens")
  end
  if rest < 1 or (asked and asked > rest) then
    local completion = asked or 0
    refuse(("This model's maximum context length is %d tokens. However, you requested %d "
      .. "tokens (%d in the %s, %d in the completion). Please reduce the length of the "
      .. "%s or completion."):format(ctx.max_model_len, n_prompt + completion, n_prompt,
      where, completion, where), where)
  end
  p.max_tokens = math.min(asked or rest, ctx.defaults.max_new_tokens or rest)
  if p.min_tokens > p.max_tokens then
    refuse(("min_tokens must be less than or equal to max_tokens=%d, got %d.")
      :format(p.max_tokens, p.min_tokens), "min_tokens")
  end
end

return M
